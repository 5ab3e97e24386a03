"""The log-sum over all paths, its derivatives, and what padding and bad values do to it.

    case (of one sequence)                              loss    valid   gradient
    -----------------------------------------------------------------------------------
    some path has a finite score                        finite  True    exact
    no path: the graph allows none of that length,
      or -inf scores or +inf weights forbid all         +inf    False   exactly 0
    length 0, the start state is the end state          0       True    exactly 0
    length 0 otherwise; an automaton without edges      +inf    False   exactly 0
    NaN or +inf in a valid frame, at any label          NaN     False   exactly 0
    NaN in a scale, a prior or a weight in use          NaN     False   exactly 0
    traced length < 0 or > T, traced emission >= L      NaN     False   exactly 0
    (the same, concrete)                                ValueError
    anything at all in padding frames                   ignored         exactly 0 there

A sequence never touches another one.  Scores below about -3e6 nats per frame, and paths below
-9e7 in all, count as impossible.

First derivatives are formed by hand from the occupancies (forward-backward); they are the tangent
rule of a `custom_jvp`, linear in the tangents, so JAX turns them round for reverse mode.  The
posteriors are spread over the labels by a gather from an inverse table: a scatter into [T, B, V]
costs several times more.  Second derivatives come from the same recursions in the log semiring.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._occupancy import Occupancy, occupancy
from jax_sprint.kernels._recursion import Graph, Links, at_index, close, flat_shape, forward
from jax_sprint.kernels._semirings import SCALED

__all__ = [
    "Layout",
    "Problem",
    "clean",
    "label_posteriors",
    "node_scores",
    "only",
    "partition",
    "solve",
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
    offset: Array | None  # [T, B], added to the score of every label of a frame
    graph: Graph
    layout: Layout
    real: Array  # [T, B] bool, the frames that count
    broken: Array  # [B] bool, sequences whose loss is NaN whatever else holds


class Scores(NamedTuple):
    """Log-scores of what the graphs emit, and what they are made of."""

    node: Array  # [T, B, N], 0 on padding frames, -inf where a node has no label
    last: Array | None  # [B, J, N], of `Graph.last`, in the last frame
    raw_node: Array  # [T, B, N], the log-posteriors
    raw_last: Array | None  # [B, J, N]
    bad: Array  # [B] bool, whether a value in use is NaN or +inf


def node_scores(time_axis: int, log_posteriors: Array, problem: Problem) -> Scores:
    """Gathers the labels' scores, once for all frames.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        log_posteriors: float, as `time_axis` says; T > 0.
        problem: the rest.

    Returns:
        The scores, of the dtype of `problem.bias`.
    """
    am_scale, bias, offset, real = problem.am_scale, problem.bias, problem.offset, problem.real
    layout, last = problem.layout, problem.graph.last
    num_labels = log_posteriors.shape[2]
    index = jnp.clip(layout.label, 0, max(num_labels - 1, 0))
    # The index is given in full: XLA's gather then runs over the frames one after the other.
    frames = log_posteriors.shape[:2]
    index = jnp.broadcast_to(jnp.expand_dims(index, time_axis), (*frames, index.shape[1]))
    raw = jnp.take_along_axis(log_posteriors, index, axis=2, mode="promise_in_bounds")
    peak = jnp.max(log_posteriors, axis=2, initial=-jnp.inf)
    if time_axis == 1:
        raw, peak = jnp.swapaxes(raw, 0, 1), jnp.swapaxes(peak, 0, 1)
    raw = raw.astype(bias.dtype)
    # A score is bad where one of its parts is: no need to look at [T, B, N] again.
    bad = jnp.any(real & ~(peak < jnp.inf), axis=0) | ~(jnp.abs(am_scale) < jnp.inf)
    bad = bad | jnp.any((layout.slot_label >= 0) & ~(bias < jnp.inf), axis=1)
    if offset is not None:
        bad = bad | jnp.any(real & ~(offset < jnp.inf), axis=0)

    def scaled(raw: Array, bias: Array, offset: Array | None) -> Array:
        none = raw == -jnp.inf  # kept out of the product: its derivative would be NaN
        score = jnp.where(none, -jnp.inf, jnp.where(none, 0.0, raw) * am_scale) + bias
        if offset is not None:
            score = score + offset
        return jnp.where(score < jnp.inf, score, 0.0)

    slots = bias.shape[1]

    def bias_of(slot: Array) -> Array:
        return at_index(bias, jnp.where(slot < slots, slot, -1))

    node = scaled(raw, bias_of(layout.slot)[None], None if offset is None else offset[:, :, None])
    node = jnp.where(layout.label[None] >= 0, node, -jnp.inf)
    node = jnp.where(real[:, :, None], node, 0.0)
    if last is None:
        return Scores(node, None, raw, None, bad)
    frame = lax.broadcasted_iota(jnp.int32, real.shape, 0)
    frame = jnp.max(jnp.where(real, frame, 0), axis=0)
    at = jnp.expand_dims(frame, (time_axis, 2)) if time_axis else frame[None, :, None]
    at = jnp.broadcast_to(at, (*_one(frames, time_axis), num_labels))
    row = jnp.take_along_axis(log_posteriors, at, axis=time_axis, mode="promise_in_bounds")
    row = jnp.squeeze(row, time_axis).astype(bias.dtype)
    there = at_index(row, jnp.minimum(last_label(problem), num_labels - 1))
    if offset is not None:
        offset = jnp.take_along_axis(offset, frame[None], axis=0, mode="promise_in_bounds")[0]
        offset = offset[:, None, None]
    score = scaled(there, bias_of(last.slot), offset)
    score = jnp.where(last.arc >= 0, score, -jnp.inf)
    score = jnp.where(jnp.any(real, axis=0)[:, None, None], score, 0.0)
    return Scores(node, score, raw, there, bad)


def last_label(problem: Problem) -> Array:
    """Labels [B, J, N] of the arcs of `Graph.last`, -1 where there is none."""
    slot_label, slot = problem.layout.slot_label, problem.graph.last.slot
    padded = jnp.pad(slot_label, ((0, 0), (0, 1)), constant_values=-1)
    flat = slot.reshape(flat_shape(slot))
    label = jnp.take_along_axis(padded, flat, axis=1, mode="promise_in_bounds")
    return label.reshape(slot.shape)


def _one(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(1 if place == axis else size for place, size in enumerate(shape))


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


def label_posteriors(counts: Occupancy, problem: Problem, num_labels: int, time_axis: int) -> Array:
    """Sums occupancies by label: [T, B, V], or [B, T, V]."""
    layout, last = problem.layout, problem.graph.last
    batch, slots = layout.slot_label.shape
    by_slot = _by_slot(jnp.swapaxes(counts.node, 0, 1), layout.slot, slots)
    if last is not None:
        frame = lax.broadcasted_iota(jnp.int32, problem.real.shape, 0)
        at = jnp.max(jnp.where(problem.real, frame, -1), axis=0)
        flat = counts.last.reshape(flat_shape(counts.last))[:, None]
        more = _by_slot(flat, last.slot.reshape(flat_shape(last.slot)), slots)
        here = lax.broadcasted_iota(jnp.int32, (1, by_slot.shape[1], 1), 1) == at[:, None, None]
        by_slot = by_slot + jnp.where(here, more, 0.0)
    if time_axis == 0:
        by_slot = jnp.swapaxes(by_slot, 0, 1)
    by_slot = jnp.pad(by_slot, ((0, 0), (0, 0), (0, 1)))
    rows = lax.broadcasted_iota(jnp.int32, (batch, slots), 0)
    columns = lax.broadcasted_iota(jnp.int32, (batch, slots), 1)
    label = jnp.where(layout.slot_label < 0, num_labels, layout.slot_label)
    where = jnp.full((batch, num_labels), slots, jnp.int32)
    where = where.at[rows, label].set(columns, mode="drop")
    where = jnp.broadcast_to(jnp.expand_dims(where, time_axis), (*by_slot.shape[:2], num_labels))
    return jnp.take_along_axis(by_slot, where, axis=2, mode="promise_in_bounds")


def clean(links: Links) -> tuple[Links, Array]:
    """Scores without NaN and +inf, and whether a sequence has such a one [B]."""
    bad = [~(part < jnp.inf) for part in links]
    parts = [jnp.where(b, 0.0, part) for part, b in zip(links, bad, strict=True)]
    return Links(*parts), jnp.any(jnp.concatenate(bad, axis=1), axis=1)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def partition(time_axis: int, log_posteriors: Array, problem: Problem) -> Array:
    """Minus the log-sum over all paths, as in the table above.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        log_posteriors: float, as `time_axis` says; T > 0.
        problem: the rest.

    Returns:
        Loss [B]; a sequence is valid where it is finite.
    """
    scores = node_scores(time_axis, log_posteriors, problem)
    links, bad = clean(problem.links)
    graph, real = problem.graph, problem.real
    closing = close(SCALED, scores.node, scores.last, links, graph, real)
    whole = forward(SCALED, scores.node, links, graph, real, closing)
    return _loss(SCALED.log(whole), scores.bad | bad | problem.broken)


def _loss(log_total: Array, bad: Array) -> Array:
    return jnp.where(bad, jnp.nan, -log_total)


def _nonzero(tangent: Any) -> bool:
    return not isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _weighed(occupancy: Array, values: Array) -> Array:
    """occupancy * values, 0 where the occupancy is."""
    return jnp.where(occupancy > 0, occupancy * jnp.where(occupancy > 0, values, 0.0), 0.0)


def _picked(tangent: Array, index: Array) -> Array:
    """Tangents [B, E] at `index` [B, ...], 0 where that is negative."""
    return jnp.where(index >= 0, at_index(tangent, index), 0.0)


def _partition_jvp(time_axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    log_posteriors, problem = primals
    d_log_posteriors, d_problem = tangents
    graph, last = problem.graph, problem.graph.last
    loss, counts, scores = solve(time_axis, *primals)
    valid = jnp.isfinite(loss)
    counts = only(counts, valid)
    slots = problem.layout.slot_label.shape[1]
    change = jnp.zeros_like(loss)
    if _nonzero(d_log_posteriors):
        posteriors = label_posteriors(counts, problem, log_posteriors.shape[2], time_axis)
        posteriors = (posteriors * problem.am_scale).astype(log_posteriors.dtype)
        product = posteriors.astype(loss.dtype) * d_log_posteriors.astype(loss.dtype)
        change = change - jnp.sum(product, axis=(time_axis, 2))
    if _nonzero(d_problem.am_scale):
        share = jnp.sum(_weighed(counts.node, scores.raw_node), axis=(0, 2))
        if last is not None:
            share = share + jnp.sum(_weighed(counts.last, scores.raw_last), axis=(1, 2))
        change = change - share * d_problem.am_scale
    if _nonzero(d_problem.bias):
        of_node = _picked(
            d_problem.bias, jnp.where(problem.layout.slot < slots, problem.layout.slot, -1)
        )
        change = change - jnp.sum(jnp.sum(counts.node, axis=0) * of_node, axis=1)
        if last is not None:
            of_last = _picked(d_problem.bias, jnp.where(last.slot < slots, last.slot, -1))
            change = change - jnp.sum(counts.last * of_last, axis=(1, 2))
    if problem.offset is not None and _nonzero(d_problem.offset):
        change = change - jnp.sum(jnp.where(problem.real, d_problem.offset, 0.0), axis=0)
    arcs, starts, ends = d_problem.links
    if _nonzero(arcs):
        change = change - jnp.sum(counts.arc * _picked(arcs, graph.in_arc), axis=(1, 2))
        if last is not None:
            change = change - jnp.sum(counts.last * _picked(arcs, last.arc), axis=(1, 2))
    if _nonzero(starts):
        change = change - jnp.sum(counts.start * _picked(starts, graph.start), axis=1)
    if _nonzero(ends):
        change = change - jnp.sum(counts.end * _picked(ends, graph.end), axis=1)
        if last is not None:
            into = jnp.where(last.arc >= 0, last.end, -1)
            change = change - jnp.sum(counts.last * _picked(ends, into), axis=(1, 2))
    # A select, not a product: an invalid sequence's cotangent may be inf or NaN.
    return loss, jnp.where(valid, change, 0.0)


partition.defjvp(_partition_jvp, symbolic_zeros=True)


def only(counts: Occupancy, valid: Array) -> Occupancy:
    """The occupancies of valid sequences, 0 for the others."""

    def at(array: Array | None, axis: int) -> Array | None:
        if array is None:
            return None
        shape = [1] * array.ndim
        shape[axis] = -1
        return jnp.where(valid.reshape(shape), array, 0.0)

    return counts._replace(
        node=at(counts.node, 1),
        arc=at(counts.arc, 0),
        start=at(counts.start, 0),
        end=at(counts.end, 0),
        last=at(counts.last, 0),
    )


def solve(
    time_axis: int, log_posteriors: Array, problem: Problem
) -> tuple[Array, Occupancy, Scores]:
    """Loss [B], occupancies, and the scores; see `partition`."""
    scores = node_scores(time_axis, log_posteriors, problem)
    links, bad = clean(problem.links)
    counts = occupancy(scores.node, scores.last, links, problem.graph, problem.real)
    return _loss(counts.log_total, scores.bad | bad | problem.broken), counts, scores
