"""The two ways to put a request and to get its answer: protocol versions 1 and 2, our side.

Both give the answer in the form of version 1, ``("ok", *results)`` or ``("exception", text)``, so
that what comes is judged in one place (`replies`).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import time

import numpy as np

from jax_sprint.sprint_side.jax_sprint_control import wire_v2
from jax_sprint.sprint_side.jax_sprint_control.wire import Channel, FormatError

__all__ = ["VersionOne", "VersionTwo", "make_memory"]

_FIRST_SIZE = 1 << 20


class VersionOne:
    """Pickles, understood by every control module, RETURNN's too."""

    version = 1

    description = "version 1, arrays through the pipe"

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    @property
    def traffic(self) -> tuple[int, int]:
        return self.channel.bytes_sent, self.channel.bytes_received

    def ask_loss(self, name: str, log_posteriors: np.ndarray, timeout: float) -> None:
        posteriors = np.asarray(log_posteriors, dtype=np.float32)
        self.channel.send(
            ("get_loss_and_error_signal", name, posteriors.shape[0], posteriors), timeout
        )

    def ask_automaton(self, name: str, timeout: float) -> None:
        self.channel.send(("export_allophone_state_fsa_by_segment_name", name), timeout)

    def answer(self, timeout: float, max_bytes: int | None) -> object:
        """The answer.  Arrays in it are valid until the next request."""
        return self.channel.receive(timeout, max_bytes)

    def say_exit(self, timeout: float) -> None:
        self.channel.send(("exit",), timeout)


class VersionTwo:
    """Numbered binary messages, arrays in shared memory.

    Args:
        channel: our ends of the pipes.
        memory: the memory that the child has mapped too, None for everything through the pipe.
    """

    version = 2

    def __init__(self, channel: Channel, memory: wire_v2.Memory | None) -> None:
        self.channel = channel
        self._memory = memory
        where = "through the pipe" if memory is None else "in shared memory"
        self.description = f"version 2, arrays {where}"
        self._numbers = itertools.count(1)
        self._asked = (0, 0, b"", (0, 0))
        self._memory_sent = self._memory_received = 0

    @property
    def traffic(self) -> tuple[int, int]:
        return (
            self.channel.bytes_sent + self._memory_sent,
            self.channel.bytes_received + self._memory_received,
        )

    def ask_loss(self, name: str, log_posteriors: np.ndarray, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        rows, columns = shape = log_posteriors.shape
        self._asked = (next(self._numbers), wire_v2.LOSS_REPLY, name.encode(), shape)
        number, _, tag, _ = self._asked
        arguments = (self.channel, deadline, wire_v2.LOSS_REQUEST, number, tag, rows, columns)
        if self._memory is None:
            posteriors = np.ascontiguousarray(log_posteriors, np.float32)
            wire_v2.write_message(*arguments, payload=[posteriors.reshape(-1)])
            return
        size = 4 * rows * columns
        total = wire_v2.reply_offset(size) + size
        if total > self._memory.size:
            # Half as much again, so that a row of growing segments does not map each time.
            os.ftruncate(self._memory.fd, wire_v2.reply_offset(total * 3 // 2))
            self._memory.require(total)
        np.copyto(self._memory.array(shape, 0), log_posteriors, casting="same_kind")
        self._memory_sent += size
        wire_v2.write_message(*arguments, memory=(0, size, self._memory.size))

    def ask_automaton(self, name: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        number = next(self._numbers)
        self._asked = (number, wire_v2.AUTOMATON_REPLY, name.encode(), (0, 0))
        wire_v2.write_message(
            self.channel, deadline, wire_v2.AUTOMATON_REQUEST, number, name.encode()
        )

    def answer(self, timeout: float, max_bytes: int | None) -> object:
        """The answer.  Arrays in it are valid until the next request."""
        limit = self.channel.max_bytes if max_bytes is None else max_bytes
        message = wire_v2.read_message(self.channel, time.monotonic() + timeout, limit)
        number, kind, tag, shape = self._asked
        if (message.number, message.name) != (number, tag):
            raise FormatError(
                f"the answer is number {message.number}, for {message.name[:200]!r}, but number "
                f"{number}, for {tag!r}, was asked for"
            )
        if message.kind == wire_v2.EXCEPTION_REPLY:
            text = b"" if message.payload is None else message.payload.tobytes()
            return ("exception", text.decode("utf-8", "replace"))
        if message.kind != kind:
            raise FormatError(f"the answer is of kind {message.kind}, not {kind}")
        rows, columns = message.rows, message.columns
        if kind == wire_v2.AUTOMATON_REPLY:
            if message.payload_bytes != 16 * columns or (columns and message.payload is None):
                raise FormatError(f"{columns} edges in {message.payload_bytes} bytes")
            if not columns:
                return ("ok", rows, 0, np.zeros(0, np.uint32), np.zeros(0, np.float32))
            edges = message.payload[: 12 * columns].view(np.uint32)
            return ("ok", rows, columns, edges, message.payload[12 * columns :].view(np.float32))
        if message.payload_bytes != 4 * rows * columns or not rows * columns:
            raise FormatError(f"an error signal {rows, columns} in {message.payload_bytes} bytes")
        if (rows, columns) != shape:
            raise FormatError(f"the error signal must be {shape}, got {rows, columns}")
        if message.flags & wire_v2.IN_MEMORY:
            # Where it lies is our decision, not the child's.
            if self._memory is None or message.offset != wire_v2.reply_offset(4 * rows * columns):
                raise FormatError("the error signal is said to lie where nothing was agreed upon")
            error_signal = self._memory.array(shape, message.offset)
            self._memory_received += message.payload_bytes
        else:
            error_signal = message.payload.view(np.float32).reshape(shape)
        return ("ok", message.loss, error_signal)

    def say_exit(self, timeout: float) -> None:
        number = next(self._numbers)
        deadline = time.monotonic() + timeout
        wire_v2.write_message(self.channel, deadline, wire_v2.EXIT, number, b"")


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
            os.ftruncate(fd, _FIRST_SIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            memory = wire_v2.Memory(fd)
            memory.require(_FIRST_SIZE)
        except OSError:
            return None
        cleanup.pop_all()
    return memory
