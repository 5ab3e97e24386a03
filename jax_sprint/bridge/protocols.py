"""The two ways to put a request and to get its answer: protocol versions 1 and 2, our side.

Both give the answer in the form of version 1, ``("ok", *results)`` or ``("exception", text)``, so
that what comes is judged in one place (`replies`).
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import itertools
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_sprint.bridge.copier import Copier
from jax_sprint.bridge.replies import copy_unless_nan, holds_nan
from jax_sprint.sprint_side.jax_sprint_control import wire_v2
from jax_sprint.sprint_side.jax_sprint_control.wire import (
    Channel,
    FormatError,
    PeerClosedError,
)

__all__ = ["VersionOne", "VersionTwo", "make_memory"]

_FIRST_SIZE = 1 << 22
# The least that a pipe holds.
_PIPE_BYTES = 4096
_REQUESTS = {
    wire_v2.LOSS_REPLY: wire_v2.LOSS_REQUEST,
    wire_v2.AUTOMATON_REPLY: wire_v2.AUTOMATON_REQUEST,
}


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

    def has_room(self, name: str, data_bytes: int) -> bool:
        """Whether such a request may be sent while others are under way: never."""
        return False

    def has_answer(self) -> bool:
        """Whether the next answer was received as a whole, as far as is known."""
        return False

    def ask_loss(
        self,
        name: str,
        log_posteriors: np.ndarray,
        timeout: float,
        refuse: bool,
        copier: Copier | None = None,
    ) -> bool:
        """Sends posteriors [T, L]; with `refuse`, False and nothing is sent if they hold NaN."""
        if refuse and holds_nan(log_posteriors):
            return False
        posteriors = np.asarray(log_posteriors, dtype=np.float32)
        self.channel.send(
            ("get_loss_and_error_signal", name, posteriors.shape[0], posteriors), timeout
        )
        return True

    def ask_automaton(self, name: str, timeout: float) -> None:
        self.channel.send(("export_allophone_state_fsa_by_segment_name", name), timeout)

    def answer(self, timeout: float, max_bytes: int | None) -> object:
        """The next answer.  Arrays in it are valid until the next request."""
        return self.channel.receive(timeout, max_bytes)

    def say_exit(self, timeout: float) -> None:
        self.channel.send(("exit",), timeout)


class _Asked(NamedTuple):
    """A request under way: what its answer must say, and where its data lie in the memory."""

    number: int
    kind: int
    tag: bytes
    shape: tuple[int, int]
    start: int
    end: int
    pipe_bytes: int


class VersionTwo:
    """Numbered binary messages, arrays in shared memory.

    Args:
        channel: our ends of the pipes.
        memory: the memory that the child has mapped too, None for everything through the pipe.
        under_way: how many requests the child permits at the same time.
    """

    version = 2

    def __init__(self, channel: Channel, memory: wire_v2.Memory | None, under_way: int = 1) -> None:
        self.channel = channel
        self._memory = memory
        self._limit = under_way
        self.quick = memory is not None
        where = "through the pipe" if memory is None else "in shared memory"
        self.description = f"version 2, arrays {where}"
        self._numbers = itertools.count(1)
        # In the order in which they were sent, which is that of the answers.
        self._asked: collections.deque[_Asked] = collections.deque()
        self._pipe_bytes = 0
        self._not_taken: PeerClosedError | None = None
        self._memory_sent = self._memory_received = 0

    @property
    def traffic(self) -> tuple[int, int]:
        return (
            self.channel.bytes_sent + self._memory_sent,
            self.channel.bytes_received + self._memory_received,
        )

    def has_room(self, name: str, data_bytes: int) -> bool:
        """Whether such a request may be sent while others are under way.

        What waits in the pipe must fit into it, however small the system made it: we must never
        wait for the child to read while it waits for us to.
        """
        asked = self._asked
        if not asked:
            return True
        waiting = self._pipe_bytes + wire_v2.message_bytes(name)
        if self._memory is None:
            waiting += data_bytes
        if len(asked) >= self._limit or waiting > _PIPE_BYTES or self._not_taken is not None:
            return False
        if self._memory is None:
            return True
        if data_bytes and asked[-1].end:
            return self._place(data_bytes) is not None
        # Losses do not wait behind automata, nor these behind losses: keeps the memory simple.
        return not data_bytes and not asked[-1].end

    def has_answer(self) -> bool:
        """Whether the next answer was received as a whole, as far as is known."""
        if wire_v2.is_complete(self.channel):
            return True
        self.channel.fetch()
        return wire_v2.is_complete(self.channel)

    def ask_loss(
        self,
        name: str,
        log_posteriors: np.ndarray,
        timeout: float,
        refuse: bool,
        copier: Copier | None = None,
    ) -> bool:
        """Sends posteriors [T, L]; with `refuse`, False and nothing is sent if they hold NaN."""
        deadline = time.monotonic() + timeout
        rows, columns = shape = log_posteriors.shape
        size = 4 * rows * columns
        if self._memory is None:
            if refuse and holds_nan(log_posteriors):
                return False
            posteriors = np.ascontiguousarray(log_posteriors, np.float32)
            self._ask(wire_v2.LOSS_REPLY, name, shape, deadline, payload=[posteriors.reshape(-1)])
            return True
        start = self._place(size)
        if start is None:
            start = self._grow(size)
        target = self._memory.array(shape, start)
        if not refuse:
            np.copyto(target, log_posteriors, casting="same_kind")
        elif not copy_unless_nan(target, log_posteriors, copier):
            return False
        self._memory_sent += size
        self._ask(wire_v2.LOSS_REPLY, name, shape, deadline, memory=(start, size))
        return True

    def ask_automaton(self, name: str, timeout: float) -> None:
        self._ask(wire_v2.AUTOMATON_REPLY, name, (0, 0), time.monotonic() + timeout)

    def answer(self, timeout: float, max_bytes: int | None) -> object:
        """The next answer.  Arrays in it are valid until the next request."""
        limit = self.channel.max_bytes if max_bytes is None else max_bytes
        asked = self._asked[0]
        if self._not_taken is not None and len(self._asked) == 1:
            raise PeerClosedError(str(self._not_taken))
        message = wire_v2.read_message(self.channel, time.monotonic() + timeout, limit)
        if (message.number, message.name) != (asked.number, asked.tag):
            raise FormatError(
                f"the answer is number {message.number}, for {message.name[:200]!r}, but number "
                f"{asked.number}, for {asked.tag!r}, was asked for"
            )
        self._asked.popleft()
        self._pipe_bytes -= asked.pipe_bytes
        if not self._asked and self.channel.ahead:
            raise FormatError(f"{self.channel.ahead} bytes too many follow a message")
        if message.kind == wire_v2.EXCEPTION_REPLY:
            text = b"" if message.payload is None else message.payload.tobytes()
            return ("exception", text.decode("utf-8", "replace"))
        if message.kind != asked.kind:
            raise FormatError(f"the answer is of kind {message.kind}, not {asked.kind}")
        rows, columns = message.rows, message.columns
        if asked.kind == wire_v2.AUTOMATON_REPLY:
            if message.payload_bytes != 16 * columns or (columns and message.payload is None):
                raise FormatError(f"{columns} edges in {message.payload_bytes} bytes")
            if not columns:
                return ("ok", rows, 0, np.zeros(0, np.uint32), np.zeros(0, np.float32))
            edges = message.payload[: 12 * columns].view(np.uint32)
            return ("ok", rows, columns, edges, message.payload[12 * columns :].view(np.float32))
        if message.payload_bytes != 4 * rows * columns or not rows * columns:
            raise FormatError(f"an error signal {rows, columns} in {message.payload_bytes} bytes")
        if (rows, columns) != asked.shape:
            raise FormatError(f"the error signal must be {asked.shape}, got {rows, columns}")
        if message.flags & wire_v2.IN_MEMORY:
            # Where it lies is our decision, not the child's.
            offset = asked.start + wire_v2.reply_offset(message.payload_bytes)
            if self._memory is None or message.offset != offset:
                raise FormatError("the error signal is said to lie where nothing was agreed upon")
            error_signal = self._memory.array(asked.shape, offset)
            self._memory_received += message.payload_bytes
        else:
            error_signal = message.payload.view(np.float32).reshape(asked.shape)
        return ("ok", message.loss, error_signal)

    def say_exit(self, timeout: float) -> None:
        number = next(self._numbers)
        deadline = time.monotonic() + timeout
        wire_v2.write_message(self.channel, deadline, wire_v2.EXIT, number, b"")

    # ------------------------------------------------------------------------------------ inside

    def _ask(
        self,
        kind: int,
        name: str,
        shape: tuple[int, int],
        deadline: float,
        payload: Sequence = (),
        memory: tuple[int, int] | None = None,
    ) -> None:
        number, tag = next(self._numbers), name.encode()
        start = end = 0
        place = None
        if memory is not None:
            assert self._memory is not None
            start, size = memory
            end = start + _region(size)
            place = (start, size, self._memory.size)
        request = _REQUESTS[kind]
        rows, columns = shape
        try:
            wire_v2.write_message(
                self.channel, deadline, request, number, tag, rows, columns, 0.0, payload, place
            )
        except PeerClosedError as error:
            if not self._asked:
                raise
            # The answers to those before it may still be there: they come first.  Without the
            # frames it came through, which hold this object, and the memory with it.
            error.__context__ = None
            self._not_taken = error.with_traceback(None)
        pipe_bytes = wire_v2.message_bytes(name)
        for piece in payload:
            pipe_bytes += piece.nbytes
        self._asked.append(_Asked(number, kind, tag, shape, start, end, pipe_bytes))
        self._pipe_bytes += pipe_bytes

    def _place(self, size: int) -> int | None:
        """Where in the memory there is room for a request of that size and its answer.

        As far in front as possible, as that is likely to be in the processor's cache.
        """
        assert self._memory is not None
        size = _region(size)
        asked = self._asked
        if not asked or not asked[-1].end:
            # Automata take no room, and they are not mixed with losses while these wait.
            # Twice: for the next one to be written while the child works on this one.
            needed = size if self._limit == 1 else 2 * size
            return 0 if needed <= self._memory.size else None
        first, last = asked[0].start, asked[-1].end
        if last <= first:  # has begun in front again
            return last if last + size <= first else None
        if size <= first:
            return 0
        return last if last + size <= self._memory.size else None

    def _grow(self, size: int) -> int:
        assert self._memory is not None
        # Half a request more, so that a row of growing segments does not map each time.
        wanted = wire_v2.reply_offset(_region(size) * (3 if self._limit == 1 else 5) // 2)
        os.ftruncate(self._memory.fd, wanted)
        self._memory.require(wanted)
        return 0


def _region(size: int) -> int:
    """How much memory a request and its answer take."""
    return 2 * wire_v2.reply_offset(size)


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
