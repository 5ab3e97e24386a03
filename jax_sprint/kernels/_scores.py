"""Where the node graphs meet the labels: scores in, posteriors out."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._graph import Graph, Links, apart, at_index, flat_shape

__all__ = [
    "FrameParts",
    "Layout",
    "Problem",
    "Scores",
    "bad_values",
    "by_label",
    "clean",
    "frame_scores",
    "last_label",
    "last_scores",
    "node_scores",
    "normalized",
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
        ),
        last_scores(time_axis, log_posteriors, problem),
        bad_values(time_axis, log_posteriors, problem),
    )


def normalized(time_axis: int, logits: Array, problem: Problem) -> Problem:
    """The problem of the logits' log_softmax, as one of the logits.

    Each path takes one label per frame, so the softmax's normaliser comes out of the sum, as an
    offset.  The peak is taken out first: it is exact, and a logit of 90 would leave few digits to a
    loss of 1.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        logits: float, as `time_axis` says.
        problem: that of the log-posteriors, without `shift` and `offset`.
    """
    dtype = problem.bias.dtype
    real = problem.real if time_axis == 0 else problem.real.T
    peak = lax.stop_gradient(jnp.max(logits, axis=2, initial=-jnp.inf)).astype(dtype)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    # NaN, +inf and padding are kept out, or their derivatives would be NaN; `bad_values` sees them.
    used = real[:, :, None] & (logits < jnp.inf)
    clean = jnp.where(used, logits.astype(dtype) - peak[:, :, None], -jnp.inf)
    total = jnp.sum(jnp.exp(clean), axis=2)
    some = total > 0
    normalizer = jnp.where(some, jnp.log(jnp.where(some, total, 1.0)), jnp.nan)
    normalizer = jnp.where(real, normalizer, 0.0)
    if time_axis == 1:
        peak, normalizer = peak.T, normalizer.T
    return problem._replace(
        shift=jnp.where(problem.real, peak, 0.0),
        offset=-problem.am_scale * normalizer,
    )


def bad_values(time_axis: int, log_posteriors: Array, problem: Problem) -> Array:
    """Whether a sequence uses a value that is NaN or +inf [B]."""
    real, offset = problem.real, problem.offset
    peak = jnp.max(log_posteriors, axis=2, initial=-jnp.inf)
    if time_axis == 1:
        peak = jnp.swapaxes(peak, 0, 1)
    # A score is bad where one of its parts is: no need to look at [T, B, N].
    bad = jnp.any(real & ~(peak < jnp.inf), axis=0) | ~(jnp.abs(problem.am_scale) < jnp.inf)
    used = problem.layout.slot_label >= 0
    bad = bad | jnp.any(used & ~(problem.bias < jnp.inf), axis=1)
    if offset is not None:
        bad = bad | jnp.any(real & ~(offset < jnp.inf), axis=0)
    return bad


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
    time_axis: int, log_posteriors: Array, parts: FrameParts, problem: Problem
) -> Array:
    """Scores [C, B, N] of the nodes in some frames.

    Args:
        time_axis: 0 for [C, B, V], 1 for [B, C, V].
        log_posteriors: float, those frames.
        parts: of those frames.
        problem: the rest.
    """
    layout = problem.layout
    index = apart(jnp.clip(layout.label, 0, max(log_posteriors.shape[2] - 1, 0)))
    # The index is given in full: XLA's gather then runs over the frames one after the other.
    frames = log_posteriors.shape[:2]
    index = jnp.broadcast_to(jnp.expand_dims(index, time_axis), (*frames, index.shape[1]))
    raw = jnp.take_along_axis(log_posteriors, index, axis=2, mode="promise_in_bounds")
    if time_axis == 1:
        raw = jnp.swapaxes(raw, 0, 1)
    bias = apart(_bias_of(layout.slot, problem))
    shift, offset = (part if part is None else part[:, :, None] for part in parts[1:])
    score = _scaled(raw.astype(bias.dtype), bias[None], shift, offset, problem)
    score = jnp.where(layout.label[None] >= 0, score, -jnp.inf)
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


def _by_slot(occupancy: Array, slot: Array, slots: int) -> Array:
    """Sums [B, X, N] over the nodes of each slot: [B, X, U]."""
    members = slot[:, :, None] == lax.broadcasted_iota(jnp.int32, (1, 1, slots), 2)
    # Not an einsum: it may order the result so that the gather below strides over the frames.
    return lax.dot_general(
        occupancy,
        members.astype(occupancy.dtype),
        (((2,), (1,)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST,
    )


def _spread(by_slot: Array, problem: Problem, num_labels: int, time_axis: int) -> Array:
    """From [C, B, U] to [C, B, V], or from [B, C, U] to [B, C, V]."""
    batch, slots = problem.layout.slot_label.shape
    by_slot = jnp.pad(by_slot, ((0, 0), (0, 0), (0, 1)))
    rows = lax.broadcasted_iota(jnp.int32, (batch, slots), 0)
    columns = lax.broadcasted_iota(jnp.int32, (batch, slots), 1)
    label = problem.layout.slot_label
    label = jnp.where(label < 0, num_labels, label)
    where = jnp.full((batch, num_labels), slots, jnp.int32)
    where = where.at[rows, label].set(columns, mode="drop")
    where = jnp.broadcast_to(jnp.expand_dims(where, time_axis), (*by_slot.shape[:2], num_labels))
    return jnp.take_along_axis(by_slot, where, axis=2, mode="promise_in_bounds")


def by_label(
    node: Array,
    last: Array | None,
    problem: Problem,
    num_labels: int,
    time_axis: int,
    first_frame: Array | int = 0,
) -> Array:
    """Probabilities of the labels [C, B, V], or [B, C, V]; 0 where a frame's shares are.

    Args:
        node: [C, B, N], shares (see `Shares`) of the frames from `first_frame` on.
        last: [B, J, N], those of the arcs of `Graph.last` in the last frame, or None.
        problem: what they were computed for.
        num_labels: V.
        time_axis: 0 or 1.
        first_frame: number of the first frame.
    """
    layout, arcs = problem.layout, problem.graph.last
    slots = layout.slot_label.shape[1]
    by_slot = _by_slot(jnp.swapaxes(node, 0, 1), layout.slot, slots)
    if last is not None and arcs is not None:
        frame = lax.broadcasted_iota(jnp.int32, problem.real.shape, 0)
        at = jnp.max(jnp.where(problem.real, frame, -1), axis=0)
        more = _by_slot(
            last.reshape(flat_shape(last))[:, None], arcs.slot.reshape(flat_shape(last)), slots
        )
        here = lax.broadcasted_iota(jnp.int32, (1, by_slot.shape[1], 1), 1) + first_frame
        here = here == at[:, None, None]
        by_slot = by_slot + jnp.where(here, more, 0.0)
    mass = jnp.sum(by_slot, axis=2, keepdims=True)
    by_slot = by_slot * jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)
    if time_axis == 0:
        by_slot = jnp.swapaxes(by_slot, 0, 1)
    return _spread(by_slot, problem, num_labels, time_axis)
