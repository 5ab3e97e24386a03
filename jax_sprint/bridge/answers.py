"""What an answer of version 2 must say, and what it holds, in the form of version 1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jax_sprint.sprint_side.jax_sprint_control import wire_v2
from jax_sprint.sprint_side.jax_sprint_control.wire import FormatError

__all__ = ["Asked", "result_of"]


class Asked(NamedTuple):
    """A request under way: what its answer must say, and where its data lie in the memory."""

    number: int
    kind: int  # of the answer
    tag: bytes
    segments: int  # 0: one, by itself
    shape: tuple[int, int]
    start: int
    end: int
    pipe_bytes: int


def result_of(message: wire_v2.Message, asked: Asked, memory: wire_v2.Memory | None) -> tuple:
    """Reads an answer.

    Args:
        message: it came next.
        asked: what was asked for first, of those that were not answered.
        memory: what the child has mapped too.

    Returns:
        ("exception", text), or "ok" and: loss and error signal [T, L]; states, edges E, edges
        [3 E], weights [E]; for several segments losses [segments] float64 and error signals
        [sum T, L]; or states and edges [segments, 2], edges [3, sum E], weights [sum E].

    Raises:
        FormatError: it does not fit to what was asked for.
    """
    if message.kind == wire_v2.EXCEPTION_REPLY:
        text = b"" if message.payload is None else message.payload.tobytes()
        return ("exception", text.decode("utf-8", "replace"))
    if message.kind != asked.kind:
        raise FormatError(f"the answer is of kind {message.kind}, not {asked.kind}")
    if message.segments != asked.segments:
        raise FormatError(f"the answer is for {message.segments} segments, not {asked.segments}")
    if asked.kind == wire_v2.AUTOMATON_REPLY:
        return ("ok", message.rows, *_edges(message, 0))
    if asked.kind == wire_v2.AUTOMATA_REPLY:
        num_edges, edges, weights = _edges(message, 8 * asked.segments)
        if message.payload is None:
            raise FormatError(f"{asked.segments} automata in no bytes")
        sizes = message.payload[: 8 * asked.segments].view(np.uint32).reshape(-1, 2)
        if sizes[:, 1].sum(dtype=np.int64) != num_edges:
            raise FormatError(f"automata of {sizes[:, 1].tolist()} edges have {num_edges} together")
        return ("ok", sizes, edges.reshape(3, num_edges), weights)
    shape, size = (message.rows, message.columns), message.payload_bytes
    if asked.kind == wire_v2.LOSSES_REPLY:
        if size != 8 * asked.segments or message.payload is None:
            raise FormatError(f"{asked.segments} losses in {size} bytes")
        size = 4 * asked.shape[0] * asked.shape[1]
    elif size != 4 * shape[0] * shape[1] or not size:
        raise FormatError(f"an error signal {shape} in {size} bytes")
    if shape != asked.shape:
        raise FormatError(f"the error signal must be {asked.shape}, got {shape}")
    if asked.kind == wire_v2.LOSSES_REPLY:
        return ("ok", message.payload.view(np.float64), _signal(asked, size, memory))
    if not message.flags & wire_v2.IN_MEMORY:
        return ("ok", message.loss, message.payload.view(np.float32).reshape(asked.shape))
    # Where it lies is our decision, not the child's.
    if memory is None or message.offset != asked.start + wire_v2.reply_offset(size):
        raise FormatError("the error signal is said to lie where nothing was agreed upon")
    return ("ok", message.loss, _signal(asked, size, memory))


def _signal(asked: Asked, size: int, memory: wire_v2.Memory | None) -> np.ndarray:
    assert memory is not None
    return memory.array(asked.shape, asked.start + wire_v2.reply_offset(size))


def _edges(message: wire_v2.Message, before: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of edges, edges and weights, behind so many bytes of the payload."""
    count = message.columns
    if message.payload_bytes != before + 16 * count or (count and message.payload is None):
        raise FormatError(f"{count} edges in {message.payload_bytes - before} bytes")
    if not count:
        return 0, np.zeros(0, np.uint32), np.zeros(0, np.float32)
    middle = before + 12 * count
    return (
        count,
        message.payload[before:middle].view(np.uint32),
        message.payload[middle:].view(np.float32),
    )
