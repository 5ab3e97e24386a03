"""The two ways to put a request and to get its answer: protocol versions 1 and 2, our side.

Both give the answer in the form of version 1, ``("ok", *results)`` or ``("exception", text)``, so
that what comes is judged in one place (`replies`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os

import numpy as np

from jax_sprint.bridge.copier import Copier
from jax_sprint.bridge.replies import holds_nan
from jax_sprint.bridge.version_two import VersionTwo
from jax_sprint.sprint_side.jax_sprint_control import wire_v2
from jax_sprint.sprint_side.jax_sprint_control.wire import Channel

__all__ = ["VersionOne", "VersionTwo", "make_memory"]

_FIRST_SIZE = 1 << 22


class VersionOne:
    """Pickles, understood by every control module, RETURNN's too."""

    version = 1

    description = "version 1, arrays through the pipe"

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    @property
    def traffic(self) -> tuple[int, int]:
        return self.channel.bytes_sent, self.channel.bytes_received

    # Whether sending never waits, and neither does reading where `has_answer`.
    quick = False

    # Whether it is known without looking that `answer` will not wait.
    is_ready = False

    # About how many segments one request may be.
    segments = 1

    def has_room(self, name: str, data_bytes: int) -> bool:
        """Whether such a request may be sent while others are under way: never."""
        return False

    def has_answer(self) -> bool:
        """Whether the next answer was received as a whole, as far as is known."""
        return False

    def count_answers(self) -> int:
        """How many answers have come as a whole, as far as is known."""
        return 0

    def flush(self) -> int:
        """Writes what was kept back; nothing ever is."""
        return 0

    def ask_loss(
        self,
        name: str,
        log_posteriors: np.ndarray,
        timeout: float,
        refuse: bool,
        copier: Copier | None = None,
        keep_back: bool = False,
    ) -> bool:
        """Sends posteriors [T, L]; with `refuse`, False and nothing is sent if they hold NaN."""
        if refuse and holds_nan(log_posteriors):
            return False
        posteriors = np.asarray(log_posteriors, dtype=np.float32)
        self.channel.send(
            ("get_loss_and_error_signal", name, posteriors.shape[0], posteriors), timeout
        )
        return True

    def ask_automaton(self, name: str, timeout: float, keep_back: bool = False) -> None:
        self.channel.send(("export_allophone_state_fsa_by_segment_name", name), timeout)

    def answer(self, timeout: float, max_bytes: int | None) -> object:
        """The next answer.  Arrays in it are valid until the next request."""
        return self.channel.receive(timeout, max_bytes)

    def say_exit(self, timeout: float) -> None:
        self.channel.send(("exit",), timeout)


def make_memory() -> wire_v2.Memory | None:
    """An anonymous file for one child, None where the system has no such thing.

    It can grow but not shrink: a child that made it smaller would kill us with SIGBUS at the next
    access.  Nobody may change that any more, nor keep us from making it larger.
    """
    if not hasattr(os, "memfd_create") or not hasattr(fcntl, "F_ADD_SEALS"):
        return None
    with contextlib.ExitStack() as cleanup:
        try:
            fd = os.memfd_create("jax_sprint", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            cleanup.callback(os.close, fd)
            # Another user cannot come to it through /proc either; this would hold if he could.
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, _FIRST_SIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            memory = wire_v2.Memory(fd)
            memory.require(_FIRST_SIZE)
        except OSError:
            return None
        cleanup.pop_all()
    return memory
