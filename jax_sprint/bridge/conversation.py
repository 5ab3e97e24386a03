"""Requests and answers on one child process, and what becomes of it when something goes wrong."""

from __future__ import annotations

import collections
import math
import os
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from jax_sprint.bridge import replies
from jax_sprint.bridge.copier import Copier
from jax_sprint.bridge.handshake import DEATH_PATIENCE
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.process import ChildProcess
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintError,
    SprintProtocolError,
    SprintRequestError,
    SprintTimeoutError,
)
from jax_sprint.sprint_side.jax_sprint_control.wire import (
    FormatError,
    PeerClosedError,
    WireTimeoutError,
)

__all__ = ["Conversation", "Pending"]


class Pending(NamedTuple):
    """A request whose answer was not read yet; `shape` is None if it was for an automaton."""

    segment: str
    shape: tuple[int, int] | None
    latest: float


class Conversation:
    """Keeps the requests under way in order, each with its deadline.

    A request's deadline begins when it is sent or, if it was sent ahead, when the answer before it
    was read: until then Sprint cannot begin with it.  A failure ends the child, and with it all
    requests under way; only that of the first one is raised.

    Args:
        options: whose deadlines hold.
    """

    # Helps with large copies; also a pool's.
    _copier: Copier | None = None
    # Whether requests are to be looked at; a pool has checked them, and asks `has_room` first.
    _checks = True

    def __init__(self, options: SprintOptions) -> None:
        self.options = options
        self._child: ChildProcess | None = None
        self._finalizer: weakref.finalize | None = None
        self._pending: collections.deque[Pending] = collections.deque()
        self._deadline = 0.0
        # Of the monotonic clock: no request lasts longer, whatever `request_timeout` says.
        self._latest = math.inf

    def _send(
        self,
        segment: str,
        ask: Callable[[ChildProcess, float], bool],
        data_bytes: int = 0,
        shape: tuple[int, int] | None = None,
    ) -> bool:
        if self._checks:
            self._check_process()
        child = self._child
        if child is None:
            raise SprintClosedError(
                "this Sprint has no child process (it was ended, or failed earlier); init() starts "
                "a new one",
                segment=segment,
            )
        now = time.monotonic()
        deadline = min(now + self.options.request_timeout, self._latest)
        if not self._pending:
            self._deadline = deadline
        elif self._checks and not child.protocol.has_room(segment, data_bytes):
            raise SprintError(
                f"the answer for {self._pending[0].segment!r} was not read yet; read it before "
                "the next request",
                segment=segment,
            )
        try:
            if not self._pending and child.channel.poll(0):
                self._unexpected(child, segment)
            if not ask(child, max(0.0, deadline - now)):
                return False
        except (PeerClosedError, WireTimeoutError) as error:
            self._broken(error, segment)
        except BaseException:
            # Also a KeyboardInterrupt: half a message may be on its way.
            self._drop(child)
            raise
        self._pending.append(Pending(segment, shape, self._latest))
        return True

    def flush(self) -> int:
        """Sends what was kept back; says how many requests that were."""
        return 0 if self._child is None else self._child.protocol.flush()

    def _unexpected(self, child: ChildProcess, segment: str) -> NoReturn:
        """Something can be read though nothing was asked: the end, or an answer to nothing."""
        try:
            child.channel.receive(0.0, replies.SLACK_BYTES)
        except PeerClosedError as error:
            self._broken(error, segment)
        except (WireTimeoutError, FormatError) as error:
            self._fail(SprintProtocolError, f"Sprint sent something unasked: {error}", segment)
        self._fail(SprintProtocolError, "Sprint sent an answer that nobody asked for", segment)

    def _read(self, max_bytes: int | None) -> tuple:
        child, segment = self._child, self._pending[0].segment
        assert child is not None
        try:
            answer = child.protocol.answer(self._left(), max_bytes)
        except (PeerClosedError, WireTimeoutError) as error:
            self._broken(error, segment)
        except FormatError as error:
            self._fail(
                SprintProtocolError, f"Sprint's answer is no valid message: {error}", segment
            )
        except BaseException:
            self._drop(child)
            raise
        self._pending.popleft()
        if self._pending:
            # Sprint begins with the next one only now.
            self._deadline = min(
                time.monotonic() + self.options.request_timeout, self._pending[0].latest
            )
        status, values = replies.split(answer)
        if status == "ok":
            return values
        if status == "exception":
            raise SprintRequestError(
                f"Sprint cannot serve {segment!r}: {replies.reason(values)}", segment=segment
            )
        self._fail(
            SprintProtocolError,
            f"Sprint's answer is neither ok nor exception, but {replies.describe(answer)}",
            segment,
        )

    def _broken(self, error: Exception, segment: str) -> NoReturn:
        """The pipe ended or the deadline passed: find out what became of the child, and raise."""
        child = self._child
        assert child is not None
        if isinstance(error, PeerClosedError):
            if child.wait(DEATH_PATIENCE):
                self._fail(SprintCrashError, f"Sprint died ({error})", segment, by_us=False)
            self._fail(
                SprintCrashError,
                f"Sprint closed its pipe, though it was running ({error})",
                segment,
            )
        self._fail(
            SprintTimeoutError,
            f"Sprint, pid {child.pid}, gave no complete answer within {self._limit()} ({error}); "
            "it was killed",
            segment,
        )

    def _fail(
        self, kind: type[SprintError], message: str, segment: str | None, by_us: bool = True
    ) -> NoReturn:
        """Ends the child and raises with what it left behind."""
        child = self._child
        assert child is not None
        if by_us and child.wait(0):
            by_us = False
        self._drop(child)
        if by_us:
            child.exit_status = None
        raise child.error(kind, message, segment) from None

    def _drop(self, child: ChildProcess) -> None:
        child.finish()
        self._child = None
        self._pending.clear()
        self._forget()

    def _forget(self) -> None:
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.detach()

    def _first(self) -> tuple[ChildProcess, Pending]:
        if self._checks:
            self._check_process()
        if self._child is None:
            raise SprintClosedError("this Sprint has no child process; init() starts a new one")
        if not self._pending:
            raise SprintError("no request was sent whose answer could be read; send one first")
        return self._child, self._pending[0]

    def _limit(self) -> str:
        latest = self._pending[0].latest if self._pending else self._latest
        if self._deadline == latest:
            return "what was left of its batch's time"
        return f"request_timeout = {self.options.request_timeout} s"

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _check_process(self) -> None:
        child = self._child
        if child is not None and child.owner_pid != os.getpid():
            raise SprintError(
                f"this Sprint was started by process {child.owner_pid}, but this is process "
                f"{os.getpid()}, made by os.fork; start one here, or use multiprocessing's spawn"
            )
