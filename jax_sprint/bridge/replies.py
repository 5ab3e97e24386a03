"""What may be asked and answered: checks of requests before they go, of replies when they come."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_sprint.bridge.copier import Copier
from jax_sprint.sprint_side.jax_sprint_control.wire import FormatError

__all__ = [
    "SLACK_BYTES",
    "check_handshake",
    "check_name",
    "check_request",
    "copy_unless_nan",
    "describe",
    "holds_nan",
    "is_float",
    "offers",
    "parse_automata",
    "parse_automaton",
    "parse_loss",
    "reason",
    "segments",
    "split",
    "under_way",
]

# What a reply may hold besides the array that was asked for, such as an exception's text.
SLACK_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 19
# From how many blocks on other threads are asked to help.
_SHARED_BLOCKS = 3

_Block = tuple[np.ndarray, np.ndarray]
_minimum = np.minimum.reduce


def is_float(dtype: np.dtype) -> bool:
    """Whether these are floating point numbers, also those that numpy itself does not know."""
    return dtype.kind == "f" or dtype.name.startswith(("float", "bfloat"))


def check_name(segment_name: Any) -> None:
    """Raises ValueError unless this can be the name of a segment."""
    if not isinstance(segment_name, str) or not segment_name or "\0" in segment_name:
        raise ValueError(
            f"the segment name must be a non-empty str, got {segment_name!r}; full names look like "
            "corpus/recording/segment"
        )


def check_request(segment_name: Any, length: Any, log_posteriors: Any) -> np.ndarray:
    """Raises ValueError unless these can be sent as one segment's posteriors [T, L].

    Returns the posteriors.
    """
    check_name(segment_name)
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
        raise ValueError(
            f"seg_len must be an int of at least 1, got {length!r} for {segment_name!r}"
        )
    array = np.asarray(log_posteriors)
    if array.ndim != 2 or not is_float(array.dtype):
        raise ValueError(
            f"log_posteriors must be [T, L] floating point, got {array.dtype} {array.shape} for "
            f"{segment_name!r}"
        )
    if array.shape[0] != length or array.shape[1] < 1:
        raise ValueError(
            f"log_posteriors {array.shape} must have seg_len = {length} frames and at least one "
            f"label, for {segment_name!r}; cut the padding off: log_posteriors[:seg_len]"
        )
    return array


def check_handshake(answer: Any, version: int) -> str | None:
    """Says what is wrong with the answer to the handshake, None if it is fine."""
    status, values = split(answer)
    if status == "exception":
        return (
            f"Sprint's control module refused the handshake: {reason(values)}; it may speak "
            f"another protocol version than {version}"
        )
    if status != "ok" or len(values) < 2 or not isinstance(values[0], str):
        return f"the answer to the handshake is {describe(answer)}"
    if isinstance(values[1], bool) or values[1] != version:
        return (
            f"Sprint's control module {describe(values[0])} speaks protocol version "
            f"{describe(values[1])}, we speak {version}; use the control module of this package "
            "(control_module=None)"
        )
    return None


def under_way(answer: tuple) -> int:
    """How many requests the other side permits at the same time, by its answer to the handshake."""
    return _count(answer, 4)


def segments(answer: tuple) -> int:
    """About how many segments the other side permits one request to be, likewise."""
    return _count(answer, 5)


def _count(answer: tuple, place: int) -> int:
    count = answer[place] if len(answer) > place else 1
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 1


def offers(answer: tuple, version: int) -> bool:
    """Whether the answer to the handshake lists this further version of the protocol."""
    return len(answer) > 3 and isinstance(answer[3], list) and version in answer[3]


def split(answer: Any) -> tuple[str | None, tuple]:
    """Splits a reply into its status and the rest; status None where it is no reply at all."""
    if isinstance(answer, tuple) and answer and isinstance(answer[0], str):
        return answer[0], answer[1:]
    return None, ()


def reason(values: tuple) -> str:
    """The text of an ``("exception", text)`` reply."""
    if values and isinstance(values[0], str) and values[0].strip():
        return values[0][:4000]
    return "(it gave no reason; its standard error may)"


def parse_loss(
    values: tuple,
    shape: tuple[int, int],
    out: np.ndarray | None = None,
    copier: Copier | None = None,
) -> tuple[float, np.ndarray]:
    """Reads ``(loss, error_signal)``.

    Args:
        values: what came behind "ok".
        shape: (T, L) of the request.
        out: [T, L] float32, where to put the error signal; None makes a new array.
        copier: helps with large ones.

    Returns:
        loss, and error signal [T, L] float32, zero if the loss is not finite.

    Raises:
        FormatError: anything is not as it must be, or a finite loss comes with an error signal
            that is not finite.
    """
    if len(values) != 2:
        raise FormatError(f"the answer must be (loss, error_signal), but has {len(values)} parts")
    loss, error_signal = values
    if type(loss) is not float:
        loss = _number(loss)
    if not isinstance(error_signal, np.ndarray) or error_signal.dtype.kind != "f":
        raise FormatError(
            f"the error signal must be an array of floats, got {describe(error_signal)}"
        )
    if error_signal.shape != shape:
        hint = "; it is transposed" if error_signal.shape == shape[::-1] else ""
        raise FormatError(f"the error signal must be {shape}, got {error_signal.shape}{hint}")
    if out is None:
        out = np.empty(shape, np.float32)
    if not math.isfinite(loss):
        out.fill(0)
        return loss, out
    if error_signal.dtype == np.float32 and out.nbytes <= _BLOCK_BYTES:
        finite = _copy_finite((out, error_signal))
    elif error_signal.dtype == np.float32:
        finite = _share(_copy_finite, out, error_signal, copier)
    else:
        with np.errstate(all="ignore"):
            finite = _share(_copy_finite, out, error_signal, None)
    if not finite:
        out.fill(0)
        raise FormatError(f"the loss is {loss}, but the error signal holds NaN or infinity")
    return loss, out


def _number(loss: Any) -> float:
    if isinstance(loss, np.ndarray) and loss.size == 1 and loss.dtype.kind in "fiu":
        loss = loss.reshape(())[()]
    if isinstance(loss, bool) or not isinstance(loss, int | float | np.integer | np.floating):
        raise FormatError(f"the loss must be a number, got {describe(loss)}")
    return float(loss)


def copy_unless_nan(out: np.ndarray, frames: np.ndarray, copier: Copier | None = None) -> bool:
    """Copies log-posteriors; False if they hold NaN, and then `out` may hold anything.

    Args:
        out: [T, L] float32, contiguous.
        frames: [T, L] floating point.
        copier: helps with large ones.
    """
    if out.nbytes <= _BLOCK_BYTES:
        return _copy_numbers((out, frames))
    return _share(_copy_numbers, out, frames, copier if frames.dtype == np.float32 else None)


def _share(
    copy: Callable[[_Block], bool], out: np.ndarray, source: np.ndarray, copier: Copier | None
) -> bool:
    """Copies block by block, so that each is judged while it is still in the cache.

    For overflows the caller is to set `np.errstate`, which does not reach the copier's threads.
    """
    rows = max(1, _BLOCK_BYTES // (4 * out.shape[1]))
    if len(out) <= rows:
        return copy((out, source))
    blocks = (
        (out[first : first + rows], source[first : first + rows])
        for first in range(0, len(out), rows)
    )
    if copier is not None and len(out) >= _SHARED_BLOCKS * rows:
        return copier.run(copy, blocks)
    return all(map(copy, blocks))


def _copy_finite(block: _Block) -> bool:
    """Copies an error signal and tells whether all of it is finite.

    It is copied before it is judged, as the other side may still write to where it lies.
    """
    out, source = block
    np.copyto(out, source, casting="same_kind")
    # A sum is finite unless something in it is not (or it overflows); einsum's is twice as fast as
    # sum's, which is more exact.
    return math.isfinite(np.einsum("tl->", out)) or bool(np.isfinite(out).all())


def _copy_numbers(block: _Block) -> bool:
    out, source = block
    np.copyto(out, source, casting="same_kind")
    return not math.isnan(_minimum(out.reshape(-1)))


def holds_nan(frames: np.ndarray) -> bool:
    """Whether anything in a floating point array is NaN; its minimum is then."""
    return bool(frames.size) and bool(np.isnan(np.minimum.reduce(frames, axis=None)))


def parse_automaton(values: tuple) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Reads ``(num_states, num_edges, edges, weights)``.

    Returns:
        num_states, num_edges E, edges [3, E] uint32 (from, to, emission index), weights [E]
        float32.

    Raises:
        FormatError: anything is not as it must be.
    """
    if len(values) != 4:
        raise FormatError(
            "the answer must be (num_states, num_edges, edges, weights), but has "
            f"{len(values)} parts"
        )
    num_states, num_edges, edges, weights = values
    for name, number in (("num_states", num_states), ("num_edges", num_edges)):
        if (
            isinstance(number, bool)
            or not isinstance(number, int | np.integer)
            or not 0 <= number < 1 << 31
        ):
            raise FormatError(f"{name} must be a count, got {describe(number)}")
    num_states, num_edges = int(num_states), int(num_edges)
    if num_states < 1:
        raise FormatError("an automaton without any state")
    if (
        not isinstance(edges, np.ndarray)
        or edges.dtype.kind not in "iu"
        or edges.size != 3 * num_edges
    ):
        raise FormatError(
            f"edges must hold 3 * {num_edges} unsigned integers, got {describe(edges)}"
        )
    if (
        not isinstance(weights, np.ndarray)
        or weights.dtype.kind != "f"
        or weights.shape != (num_edges,)
    ):
        raise FormatError(f"weights must be {num_edges} floats, got {describe(weights)}")
    edges = edges.reshape(3, num_edges)
    if num_edges and (edges.min() < 0 or edges[:2].max() >= num_states):
        raise FormatError(f"an edge leads to or from a state beyond the {num_states} there are")
    if np.isnan(weights).any():
        raise FormatError("the weights hold NaN")
    return (
        num_states,
        num_edges,
        edges.astype(np.uint32, copy=False),
        weights.astype(np.float32, copy=False),
    )


def parse_automata(
    sizes: np.ndarray, edges: np.ndarray, weights: np.ndarray
) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """Takes the automata of several segments apart.

    Args:
        sizes: [segments, 2] uint32, states and edges of each.
        edges: [3, sum of all edges] uint32: from, to, emission index, states numbered within each.
        weights: [sum of all edges] float32.

    Returns:
        What `parse_automaton` gives, of each, in arrays of its own.

    Raises:
        FormatError: anything is not as it must be.
    """
    states, counts = sizes[:, 0], sizes[:, 1].astype(np.int64)
    if states.min() < 1 or states.max() >= 1 << 31:
        raise FormatError(f"automata of {states.tolist()} states")
    if (edges[:2] >= np.repeat(states, counts)).any():
        raise FormatError("an edge leads to or from a state beyond those that there are")
    if np.isnan(weights).any():
        raise FormatError("the weights hold NaN")
    automata = []
    begin = 0
    for number, count in sizes.tolist():
        end = begin + count
        automata.append((number, count, edges[:, begin:end].copy(), weights[begin:end].copy()))
        begin = end
    return automata


def describe(value: Any) -> str:
    """Describes what came from the other side, briefly whatever its size."""
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {value.shape}"
    return reprlib.repr(value)[:200]
