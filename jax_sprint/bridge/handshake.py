"""The first words with a new child: who it is, and which version of the protocol to speak."""

from __future__ import annotations

import time
from typing import Any, NoReturn

from jax_sprint.bridge import replies
from jax_sprint.bridge.process import ChildProcess
from jax_sprint.errors import (
    SprintError,
    SprintProtocolError,
    SprintStartError,
    SprintTimeoutError,
)
from jax_sprint.sprint_side.jax_sprint_control.wire import (
    FormatError,
    PeerClosedError,
    WireTimeoutError,
)

__all__ = ["DEATH_PATIENCE", "shake_hands"]

# The version in which every conversation begins.
_FIRST_VERSION = 1
# After its pipe has ended, the process should soon be gone as well, and have an exit status.
DEATH_PATIENCE = 1.0


def shake_hands(child: ChildProcess, deadline: float) -> None:
    """Agrees with a new child on a version of the protocol.

    Args:
        child: just started.  It is ended if this fails.
        deadline: of the monotonic clock.

    Raises:
        SprintStartError: the child ended, or closed its pipe, before it answered.
        SprintTimeoutError: it did not answer in time.
        SprintProtocolError: it answered something else.
    """
    answer = _converse(child, ("init", "SprintSubprocessInstance", _FIRST_VERSION), deadline)
    problem = replies.check_handshake(answer, _FIRST_VERSION)
    if problem:
        _fail(child, SprintProtocolError, problem)
    if child.options.protocol_version >= 2 and replies.offers(answer, 2):
        with_memory = child.memory is not None
        under_way, segments = replies.under_way(answer), replies.segments(answer)
        answer = _converse(child, ("upgrade", 2, with_memory), deadline)
        if answer != ("ok", 2, True) and answer != ("ok", 2, False):
            _fail(
                child,
                SprintProtocolError,
                f"the answer to the change to version 2 is {replies.describe(answer)}",
            )
        child.change_protocol(with_memory and answer[2], under_way, segments)


def _converse(child: ChildProcess, message: tuple, deadline: float) -> Any:
    try:
        child.channel.send(message, _left(deadline))
        return child.channel.receive(_left(deadline), replies.SLACK_BYTES)
    except PeerClosedError:
        ended = child.wait(DEATH_PATIENCE)
        _fail(
            child,
            SprintStartError,
            f"Sprint {'ended' if ended else 'closed its pipe'} before it answered the handshake: "
            f"{child.command[0]}",
        )
    except WireTimeoutError:
        _fail(
            child,
            SprintTimeoutError,
            f"Sprint did not answer the handshake within start_timeout = "
            f"{child.options.start_timeout} s; does it load the control module (--*.pymod-name), "
            "and does its configuration run it?",
        )
    except FormatError as error:
        _fail(child, SprintProtocolError, f"no valid answer to the handshake: {error}")


def _fail(child: ChildProcess, kind: type[SprintError], message: str) -> NoReturn:
    ended = child.wait(0)
    child.finish()
    if not ended:
        child.exit_status = None  # our own doing
    raise child.error(kind, message, None) from None


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
