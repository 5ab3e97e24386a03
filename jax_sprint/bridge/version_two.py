"""Version 2 of the protocol, our side: requests under way, and where their data lie."""

from __future__ import annotations

import collections
import itertools
import os
import time
from collections.abc import Sequence

import numpy as np

from jax_sprint.bridge.answers import Asked, result_of
from jax_sprint.bridge.copier import Copier
from jax_sprint.bridge.replies import copy_unless_nan, holds_nan
from jax_sprint.sprint_side.jax_sprint_control import wire_v2
from jax_sprint.sprint_side.jax_sprint_control.wire import (
    Channel,
    FormatError,
    PeerClosedError,
)

__all__ = ["VersionTwo"]

# The least that a pipe holds.
_PIPE_BYTES = 4096
_REQUESTS = {
    wire_v2.LOSS_REPLY: wire_v2.LOSS_REQUEST,
    wire_v2.AUTOMATON_REPLY: wire_v2.AUTOMATON_REQUEST,
    wire_v2.LOSSES_REPLY: wire_v2.LOSSES_REQUEST,
    wire_v2.AUTOMATA_REPLY: wire_v2.AUTOMATA_REQUEST,
}


class VersionTwo:
    """Numbered binary messages, arrays in shared memory.

    A request whose data lie in the memory may be kept back and written together with others: its
    few bytes are then one system call, and wake the child once.  `flush` writes them; until then
    nobody must wait for an answer.

    Args:
        channel: our ends of the pipes.
        memory: the memory that the child has mapped too, None for everything through the pipe.
        under_way: how many requests the child permits at the same time.
        segments: about how many segments it permits one of them to be.
    """

    version = 2

    def __init__(
        self,
        channel: Channel,
        memory: wire_v2.Memory | None,
        under_way: int = 1,
        segments: int = 1,
    ) -> None:
        self.channel = channel
        self._memory = memory
        self._limit = under_way
        self.segments = 1 if memory is None else segments
        self.quick = memory is not None
        where = "through the pipe" if memory is None else "in shared memory"
        self.description = f"version 2, arrays {where}"
        self._numbers = itertools.count(1)
        # In the order in which they were sent, which is that of the answers.
        self._asked: collections.deque[Asked] = collections.deque()
        self._pipe_bytes = 0
        # The last of them, as they are to be written.
        self._kept_back: list[bytes] = []
        # What was found for a request of this size, and not used yet.
        self._found: tuple[int, int] | None = None
        # Answers that were received as a whole, and not looked at yet.
        self._messages: collections.deque[wire_v2.Message] = collections.deque()
        # The child does not read any more: so many, the last ones, it never got.
        self._not_taken: PeerClosedError | None = None
        self._num_not_taken = 0
        self._memory_sent = self._memory_received = 0

    @property
    def traffic(self) -> tuple[int, int]:
        return (
            self.channel.bytes_sent + self._memory_sent,
            self.channel.bytes_received + self._memory_received,
        )

    @property
    def is_ready(self) -> bool:
        """Whether it is known without looking that `answer` will not wait."""
        return bool(self._messages) or self._is_over()

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
            start = self._place(data_bytes)
            if start is None:
                return False
            self._found = data_bytes, start
            return True
        # Losses do not wait behind automata, nor these behind losses: keeps the memory simple.
        return not data_bytes and not asked[-1].end

    def has_answer(self) -> bool:
        """Whether the next answer was received as a whole, as far as is known."""
        return bool(self._messages or self.count_answers())

    def count_answers(self) -> int:
        """How many answers have come as a whole, as far as is known."""
        self._messages.extend(wire_v2.read_complete(self.channel))
        return len(self._messages)

    def flush(self) -> int:
        """Writes what was kept back; says how many requests that were."""
        kept = self._kept_back
        if not kept:
            return 0
        self._kept_back = []
        # It fits into the pipe: see `has_room`.
        self._write([b"".join(kept)], None, len(kept))
        return len(kept)

    def ask_loss(
        self,
        name: str,
        log_posteriors: np.ndarray,
        timeout: float,
        refuse: bool,
        copier: Copier | None = None,
        keep_back: bool = False,
    ) -> bool:
        """Sends posteriors [T, L]; with `refuse`, False and nothing is sent if they hold NaN.

        With `keep_back`, they may be sent only with the next `flush`.
        """
        rows, columns = shape = log_posteriors.shape
        size = 4 * rows * columns
        memory = self._memory
        if memory is None:
            deadline = time.monotonic() + timeout
            if refuse and holds_nan(log_posteriors):
                return False
            posteriors = np.ascontiguousarray(log_posteriors, np.float32)
            payload = posteriors.reshape(-1).view(np.uint8).data
            tag = name.encode()
            self._ask(wire_v2.LOSS_REPLY, tag, shape, size, None, False, payload, deadline)
            return True
        start = self._start(size)
        target = memory.array(shape, start)
        if not refuse:
            np.copyto(target, log_posteriors, casting="same_kind")
        elif not copy_unless_nan(target, log_posteriors, copier):
            return False
        self._memory_sent += size
        place = (start, memory.size)
        self._ask(wire_v2.LOSS_REPLY, name.encode(), shape, size, place, keep_back)
        return True

    def ask_automaton(self, name: str, timeout: float, keep_back: bool = False) -> None:
        self._ask(wire_v2.AUTOMATON_REPLY, name.encode(), (0, 0), 0, None, keep_back)

    def ask_losses(self, names: Sequence[str], frames: Sequence[np.ndarray]) -> list[bool]:
        """Sends posteriors, each [T, L], of several segments, at the latest with the next `flush`.

        Those that hold NaN are left out; says which were not.
        """
        memory = self._memory
        assert memory is not None
        columns = frames[0].shape[1]
        start = self._start(4 * columns * sum(map(len, frames)))
        taken = []
        rows = 0
        target = memory.array((sum(map(len, frames)), columns), start)
        for each in frames:
            taken.append(copy_unless_nan(target[rows : rows + len(each)], each))
            rows += len(each) if taken[-1] else 0
        if not rows:
            return taken
        left = [i for i, fine in enumerate(taken) if fine]
        table = wire_v2.make_table([names[i] for i in left], [len(frames[i]) for i in left])
        size = 4 * rows * columns
        self._memory_sent += size
        place = (start, memory.size)
        kind = wire_v2.LOSSES_REPLY
        self._ask(kind, table, (rows, columns), size, place, True, segments=len(left))
        return taken

    def ask_automata(self, names: Sequence[str]) -> None:
        """Asks for several automata, at the latest with the next `flush`."""
        table = wire_v2.make_table(names)
        kind = wire_v2.AUTOMATA_REPLY
        self._ask(kind, table, (0, 0), 0, None, True, segments=len(names))

    def answer(self, timeout: float, max_bytes: int | None) -> object:
        """The next answer.  Arrays in it are valid until the next request."""
        asked, messages = self._asked[0], self._messages
        if messages:
            message = messages.popleft()
        elif self._is_over():
            raise PeerClosedError(str(self._not_taken))
        else:
            self.flush()
            limit = self.channel.max_bytes if max_bytes is None else max_bytes
            message = wire_v2.read_message(self.channel, time.monotonic() + timeout, limit)
        if message.number != asked.number or message.name != asked.tag:
            raise FormatError(
                f"the answer is number {message.number}, for {message.name[:200]!r}, but number "
                f"{asked.number}, for {asked.tag!r}, was asked for"
            )
        self._asked.popleft()
        self._found = None
        self._pipe_bytes -= asked.pipe_bytes
        if not self._asked and (messages or self.channel.ahead):
            more = f"{len(messages)} messages and {self.channel.ahead} bytes"
            raise FormatError(f"{more} too many follow the answer to the last request")
        result = result_of(message, asked, self._memory)
        if message.flags & wire_v2.IN_MEMORY or message.kind == wire_v2.LOSSES_REPLY:
            self._memory_received += 4 * asked.shape[0] * asked.shape[1]
        return result

    def say_exit(self, timeout: float) -> None:
        number = next(self._numbers)
        deadline = time.monotonic() + timeout
        wire_v2.write_message(self.channel, deadline, wire_v2.EXIT, number, b"")

    # ------------------------------------------------------------------------------------ inside

    def _ask(
        self,
        kind: int,
        tag: bytes,
        shape: tuple[int, int],
        size: int,
        place: tuple[int, int] | None,
        keep_back: bool,
        payload: memoryview | None = None,
        deadline: float | None = None,
        segments: int = 0,
    ) -> None:
        """Puts down what must be answered, and writes the request unless it is kept back.

        Nobody waits for that, but for a payload, as what waits in the pipe has room in it.
        """
        number = next(self._numbers)
        header = wire_v2.make_header(
            _REQUESTS[kind], number, tag, shape[0], shape[1], 0.0, size, place, segments
        )
        pipe_bytes = len(header)
        start = end = 0
        if place is not None:
            start = place[0]
            end = start + _region(size)
        elif payload is not None:
            pipe_bytes += size
        self._asked.append(Asked(number, kind, tag, segments, shape, start, end, pipe_bytes))
        self._pipe_bytes += pipe_bytes
        if keep_back:
            self._kept_back.append(header)
            return
        self.flush()
        self._write([header] if payload is None else [header, payload], deadline, 1)
        if self._is_over():
            raise PeerClosedError(str(self._not_taken))

    def _is_over(self) -> bool:
        """Whether the child never got any of the requests that are under way."""
        return self._not_taken is not None and len(self._asked) <= self._num_not_taken

    def _write(self, pieces: list, deadline: float | None, count: int) -> None:
        """Writes so many requests, the last ones."""
        try:
            self.channel.write_raw(pieces, deadline)
        except PeerClosedError as error:
            if self._not_taken is None:
                # The answers to those before it may still be there: they come first.  Without the
                # frames it came through, which hold this object, and the memory with it.
                error.__context__ = None
                self._not_taken = error.with_traceback(None)
            self._num_not_taken += count

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

    def _start(self, size: int) -> int:
        """Where in the memory a request of that size goes; it is made larger where needed."""
        found, self._found = self._found, None
        start = found[1] if found is not None and found[0] == size else self._place(size)
        return self._grow(size) if start is None else start

    def _grow(self, size: int) -> int:
        assert self._memory is not None
        # Half a request more, so that a row of growing segments does not map each time.
        wanted = wire_v2.reply_offset(_region(size) * (3 if self._limit == 1 else 5) // 2)
        os.ftruncate(self._memory.fd, wanted)
        self._memory.require(wanted)
        return 0


def _region(size: int) -> int:
    """How much memory a request and its answer take."""
    return -(-size // wire_v2.PAGE) * 2 * wire_v2.PAGE
