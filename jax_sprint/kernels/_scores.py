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
    "at_slots",
    "bad_values",
    "by_slot",
    "clean",
    "frame_scores",
    "holds_bad",
    "last_label",
    "last_scores",
    "node_scores",
    "normalized",
    "spread",
    "weighted",
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
    # NaN, +inf and padding are kept out, or their derivatives would be NaN.  The two former make
    # the total inf and the offset NaN, which `bad_values` sees: the peak need not be one of them.
    used = real[:, :, None] & (logits < jnp.inf)
    instead = jnp.where(real, jnp.inf, -jnp.inf).astype(dtype)[:, :, None]
    clean = jnp.where(used, logits.astype(dtype) - peak[:, :, None], instead)
    total = jnp.sum(jnp.exp(clean), axis=2)
    some = (total > 0) & (total < jnp.inf)
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


def _places(slot_label: Array, num_labels: int) -> Array:
    """Where in [B, V] the slots' labels lie, [B, U, 2]; behind it for slots without one."""
    slots = slot_label.shape[1]
    nowhere = num_labels + lax.broadcasted_iota(jnp.int32, (1, slots), 1)
    label = jnp.where((slot_label < 0) | (slot_label >= num_labels), nowhere, slot_label)
    rows = lax.broadcasted_iota(jnp.int32, slot_label.shape, 0)
    return jnp.stack([rows, label], axis=2)


def _is_sparse(num_labels: Any, slots: Any) -> bool:
    """Whether few of the labels have a slot, so that it pays to go to these one by one.

    That takes some ten times as long for each as to pass over a label.
    """
    return isinstance(num_labels, int) and isinstance(slots, int) and num_labels > 16 * slots


def weighted(by_slot: Array, values: Array, problem: Problem, time_axis: int) -> Array:
    """Values times what the slots hold, to be summed over the last axis.

    JAX transposes it for the gradient, which adds what the slots hold to [C, B, V], in the same
    pass in which XLA makes the softmax's part of it; or, where few of the labels have a slot, in
    place, all frames of a label at once, behind that.

    Args:
        by_slot: [C, B, U], or [B, C, U], as `time_axis` says.
        values: [C, B, V], or [B, C, V].
        problem: gives the slots.
        time_axis: 0 or 1.
    """
    if _is_sparse(values.shape[2], by_slot.shape[2]):
        return by_slot * at_slots(values, problem, time_axis)
    return spread(by_slot, problem, values.shape[2], time_axis) * values


def at_slots(values: Array, problem: Problem, time_axis: int) -> Array:
    """Values at the labels of the slots, 0 where there is none.

    Args:
        values: [C, B, V], or [B, C, V], as `time_axis` says.
        problem: gives the slots.
        time_axis: 0 or 1.

    Returns:
        [C, B, U], or [B, C, U].
    """
    frames, num_labels = values.shape[time_axis], values.shape[2]
    shape = [1, 1, 1]
    shape[time_axis] = frames
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=(time_axis,),
        collapsed_slice_dims=(1 - time_axis, 2),
        start_index_map=(1 - time_axis, 2),
    )
    return lax.gather(
        values,
        _places(problem.layout.slot_label, num_labels),
        dimensions,
        tuple(shape),
        unique_indices=True,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
        fill_value=0,
    )


def spread(by_slot: Array, problem: Problem, num_labels: int, time_axis: int) -> Array:
    """What the slots hold, at their labels: from [C, B, U] to [C, B, V], or [B, C, U] likewise."""
    slot_label = problem.layout.slot_label
    batch, slots = slot_label.shape
    if _is_sparse(num_labels, slots):
        dimensions = lax.ScatterDimensionNumbers(
            update_window_dims=(time_axis,),
            inserted_window_dims=(1 - time_axis, 2),
            scatter_dims_to_operand_dims=(1 - time_axis, 2),
        )
        return lax.scatter_add(
            jnp.zeros((*by_slot.shape[:2], num_labels), by_slot.dtype),
            _places(slot_label, num_labels),
            by_slot,
            dimensions,
            unique_indices=True,
            mode=lax.GatherScatterMode.FILL_OR_DROP,
        )
    # A gather from an inverse table: into dense labels it is several times faster than a scatter.
    by_slot = jnp.pad(by_slot, ((0, 0), (0, 0), (0, 1)))
    places = _places(slot_label, num_labels)
    columns = lax.broadcasted_iota(jnp.int32, (batch, slots), 1)
    where = jnp.full((batch, num_labels), slots, jnp.int32)
    where = where.at[places[:, :, 0], places[:, :, 1]].set(columns, mode="drop")
    where = jnp.broadcast_to(jnp.expand_dims(where, time_axis), (*by_slot.shape[:2], num_labels))
    return jnp.take_along_axis(by_slot, where, axis=2, mode="promise_in_bounds")


def by_slot(
    node: Array,
    last: Array | None,
    problem: Problem,
    time_axis: int,
    first_frame: Array | int = 0,
) -> Array:
    """Probabilities of the slots' labels [C, B, U], or [B, C, U]; 0 where a frame's shares are.

    Args:
        node: [C, B, N], shares (see `Shares`) of the frames from `first_frame` on.
        last: [B, J, N], those of the arcs of `Graph.last` in the last frame, or None.
        problem: what they were computed for.
        time_axis: 0 or 1.
        first_frame: number of the first frame.
    """
    layout, arcs = problem.layout, problem.graph.last
    slots = layout.slot_label.shape[1]
    shares = _by_slot(jnp.swapaxes(node, 0, 1), layout.slot, slots)
    if last is not None and arcs is not None:
        frame = lax.broadcasted_iota(jnp.int32, problem.real.shape, 0)
        at = jnp.max(jnp.where(problem.real, frame, -1), axis=0)
        more = _by_slot(
            last.reshape(flat_shape(last))[:, None], arcs.slot.reshape(flat_shape(last)), slots
        )
        here = lax.broadcasted_iota(jnp.int32, (1, shares.shape[1], 1), 1) + first_frame
        here = here == at[:, None, None]
        shares = shares + jnp.where(here, more, 0.0)
    mass = jnp.sum(shares, axis=2, keepdims=True)
    shares = shares * jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)
    return jnp.swapaxes(shares, 0, 1) if time_axis == 0 else shares
