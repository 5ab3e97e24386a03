"""Where the labels' scores come into the node graphs; `_labels` is the way back."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sprint.kernels._graph import Graph, Links, apart, at_index, flat_shape, gather
from jax_sprint.kernels._platform import if_any

__all__ = [
    "FrameParts",
    "Layout",
    "Problem",
    "Scores",
    "bad_values",
    "clean",
    "frame_scores",
    "holds_bad",
    "last_label",
    "last_scores",
    "node_scores",
]

Array = Any


class Layout(NamedTuple):
    """How the nodes of a batch meet the labels."""

    label: Array  # [B, N] int32, -1: none
    slot: Array  # [B, N] int32 in 0..U, U: none
    slot_label: Array  # [B, U] int32, -1: none


class Problem(NamedTuple):
    """What the loss is a function of, besides the log-posteriors."""

    am_scale: Array  # scalar of the dtype to compute in, as all floats below
    bias: Array  # [B, U], added to every score of the label of a slot
    links: Links  # log-scores of arcs, starts and ends
    shift: Array | None  # [T, B] constants, subtracted from the log-posteriors first of all
    offset: Array | None  # [T, B], added to the score of every label of a frame
    graph: Graph
    layout: Layout
    real: Array  # [T, B] bool, the frames that count
    broken: Array  # [B] bool, sequences whose loss is NaN whatever else holds


class Scores(NamedTuple):
    """Log-scores of what the graphs emit, of the dtype of `Problem.bias`."""

    node: Array  # [T, B, N], 0 on padding frames, -inf where a node has no label
    last: Array | None  # [B, J, N], of `Graph.last`, in the last frame
    bad: Array  # [B] bool, whether a value in use is NaN or +inf


def node_scores(time_axis: int, log_posteriors: Array, problem: Problem) -> Scores:
    """Gathers the labels' scores, once for all frames.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        log_posteriors: float, as `time_axis` says; T > 0.
        problem: the rest.

    Returns:
        The scores.
    """
    return Scores(
        frame_scores(
            time_axis,
            log_posteriors,
            FrameParts(problem.real, problem.shift, problem.offset),
            problem,
            # Log-posteriors are the log_softmax of something, as a rule, which XLA fuses into the
            # gather: a branch would have it write them down.
            branch=problem.offset is not None,
        ),
        last_scores(time_axis, log_posteriors, problem),
        bad_values(time_axis, log_posteriors, problem),
    )


def bad_values(time_axis: int, log_posteriors: Array, problem: Problem) -> Array:
    """Whether a sequence uses a value that is NaN or +inf [B]."""
    real, offset = problem.real, problem.offset
    # A score is bad where one of its parts is: no need to look at [T, B, N].
    bad = ~(jnp.abs(problem.am_scale) < jnp.inf)
    used = problem.layout.slot_label >= 0
    bad = bad | jnp.any(used & ~(problem.bias < jnp.inf), axis=1)
    if offset is not None:
        return bad | jnp.any(real & ~(offset < jnp.inf), axis=0)
    wrong = holds_bad(log_posteriors)
    return bad | jnp.any(real & (wrong.T if time_axis == 1 else wrong), axis=0)


def holds_bad(scores: Array) -> Array:
    """Whether any of [..., V] is NaN or +inf.

    By the sum: XLA's maximum does not see NaN in large arrays, on a CPU.  Where finite scores add
    up to +inf, one of them is as good as that.
    """
    dtype = jnp.float64 if scores.dtype == jnp.float64 else jnp.float32
    return ~(jnp.sum(scores, axis=-1, dtype=dtype) < jnp.inf)


def _scaled(
    raw: Array, bias: Array, shift: Array | None, offset: Array | None, problem: Problem
) -> Array:
    if shift is not None:
        raw = raw - shift
    none = raw == -jnp.inf  # kept out of the product: its derivative would be NaN
    score = jnp.where(none, -jnp.inf, jnp.where(none, 0.0, raw) * problem.am_scale) + bias
    if offset is not None:
        score = score + offset
    return jnp.where(score < jnp.inf, score, 0.0)


def _bias_of(slot: Array, problem: Problem) -> Array:
    return at_index(problem.bias, jnp.where(slot < problem.bias.shape[1], slot, -1))


class FrameParts(NamedTuple):
    """What of a `Problem` belongs to some frames, all [C, B]."""

    real: Array
    shift: Array | None
    offset: Array | None


def frame_scores(
    time_axis: int,
    log_posteriors: Array,
    parts: FrameParts,
    problem: Problem,
    branch: bool = True,
) -> Array:
    """Scores [C, B, N] of the nodes in some frames.

    Args:
        time_axis: 0 for [C, B, V], 1 for [B, C, V].
        log_posteriors: float, those frames; C > 0.
        parts: of those frames.
        problem: the rest.
        branch: whether to compute them in a branch of their own, see `if_any`.
    """
    label = apart(jnp.clip(problem.layout.label, 0, max(log_posteriors.shape[2] - 1, 0)))
    bias = apart(_bias_of(problem.layout.slot, problem))

    def some(log_posteriors: Array, parts: FrameParts) -> Array:
        return _picked_scores(time_axis, log_posteriors, parts, label, bias, problem)

    def none(log_posteriors: Array, parts: FrameParts) -> Array:
        # Those of one frame, which does not count, for all of them: on a mesh they vary as they do.
        first = lax.slice_in_dim(log_posteriors, 0, 1, axis=time_axis)
        row = some(first, FrameParts(*(part if part is None else part[:1] for part in parts)))
        return jnp.broadcast_to(row, (log_posteriors.shape[time_axis], *row.shape[1:]))

    if not branch or log_posteriors.shape[time_axis] == 1:
        return some(log_posteriors, parts)
    return if_any(jnp.any(parts.real), some, none, log_posteriors, parts)


def _at_labels(log_posteriors: Array, label: Array, time_axis: int) -> Array:
    """Values at labels [B, N]: [C, B, N] of [C, B, V], or [B, C, N] of [B, C, V]."""
    rows, columns, num_labels = log_posteriors.shape
    index = jnp.expand_dims(label, time_axis)
    sizes = (rows, columns, num_labels)
    alone = sizes[1 - time_axis] == 1 and all(isinstance(size, int) for size in sizes)
    if alone and math.prod(sizes) <= np.iinfo(np.int32).max:
        # As one array: with two of three indices XLA would write them all to memory first.
        frame = lax.broadcasted_iota(jnp.int32, (rows, columns, 1), time_axis)
        return gather(log_posteriors.reshape(-1), frame * num_labels + index)
    # The index is given in full: XLA's gather then runs over the frames one after the other.
    index = jnp.broadcast_to(index, (rows, columns, label.shape[1]))
    return jnp.take_along_axis(log_posteriors, index, axis=2, mode="promise_in_bounds")


def _picked_scores(
    time_axis: int,
    log_posteriors: Array,
    parts: FrameParts,
    label: Array,
    bias: Array,
    problem: Problem,
) -> Array:
    raw = _at_labels(log_posteriors, label, time_axis)
    if time_axis == 1:
        raw = jnp.swapaxes(raw, 0, 1)
    shift, offset = (part if part is None else part[:, :, None] for part in parts[1:])
    score = _scaled(raw.astype(bias.dtype), bias[None], shift, offset, problem)
    score = jnp.where(problem.layout.label[None] >= 0, score, -jnp.inf)
    return jnp.where(parts.real[:, :, None], score, 0.0)


def last_scores(time_axis: int, log_posteriors: Array, problem: Problem) -> Array | None:
    """Scores [B, J, N] of the labels of `Graph.last` in each sequence's last frame."""
    last, real = problem.graph.last, problem.real
    if last is None:
        return None
    num_labels = log_posteriors.shape[2]
    frame = lax.broadcasted_iota(jnp.int32, real.shape, 0)
    frame = jnp.max(jnp.where(real, frame, 0), axis=0)
    shape = (1, frame.shape[0]) if time_axis == 0 else (frame.shape[0], 1)
    at = jnp.broadcast_to(frame.reshape(*shape, 1), (*shape, num_labels))
    row = jnp.take_along_axis(log_posteriors, at, axis=time_axis, mode="promise_in_bounds")
    row = jnp.squeeze(row, time_axis).astype(problem.bias.dtype)
    raw = at_index(row, jnp.minimum(last_label(problem), num_labels - 1))

    def there(part: Array | None) -> Array | None:
        if part is None:
            return None
        row = jnp.take_along_axis(part, frame[None], axis=0, mode="promise_in_bounds")
        return row[0][:, None, None]

    shift, offset = there(problem.shift), there(problem.offset)
    score = _scaled(raw, _bias_of(last.slot, problem), shift, offset, problem)
    score = jnp.where(last.arc >= 0, score, -jnp.inf)
    return jnp.where(jnp.any(real, axis=0)[:, None, None], score, 0.0)


def last_label(problem: Problem) -> Array:
    """Labels [B, J, N] of the arcs of `Graph.last`, -1 where there is none."""
    assert problem.graph.last is not None
    slot_label, slot = problem.layout.slot_label, problem.graph.last.slot
    padded = jnp.pad(slot_label, ((0, 0), (0, 1)), constant_values=-1)
    label = jnp.take_along_axis(
        padded, slot.reshape(flat_shape(slot)), axis=1, mode="promise_in_bounds"
    )
    return label.reshape(slot.shape)


def clean(links: Links) -> tuple[Links, Array]:
    """Scores without NaN and +inf, and whether a sequence has such a one [B]."""
    bad = [~(part < jnp.inf) for part in links]
    parts = [jnp.where(b, 0.0, part) for part, b in zip(links, bad, strict=True)]
    return Links(*parts), jnp.any(jnp.concatenate(bad, axis=1), axis=1)
