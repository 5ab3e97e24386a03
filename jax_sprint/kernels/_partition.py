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

from jax_sprint.kernels._recursion import (
    Graph,
    arc_flows,
    arc_scores,
    backward,
    forward,
)
from jax_sprint.kernels._semirings import LOG, SCALED, Semiring, Value

__all__ = [
    "Layout",
    "Occupancy",
    "clean_arcs",
    "label_posteriors",
    "node_scores",
    "occupancy",
    "partition",
    "solve",
]

Array = Any


class Layout(NamedTuple):
    """How the nodes of a batch meet the labels."""

    label: Array  # [B, N] int32, -1: none
    slot: Array  # [B, N] int32 in 0..U, U: none
    slot_label: Array  # [B, U] int32, -1: none


class Occupancy(NamedTuple):
    """Expected counts under the distribution over paths."""

    log_total: Array  # [B] log-sum over all paths, -inf where there is none
    node: Array  # [T, B, N] probability that the path is in the node at that frame
    arc: Array  # [B, K, N] expected number of times that the path takes the arc of an in-slot


def node_scores(
    log_posteriors: Array,
    am_scale: Array,
    bias: Array,
    offset: Array | None,
    layout: Layout,
    real: Array,
    time_axis: int,
) -> tuple[Array, Array, Array]:
    """Gathers the labels' scores, once for all frames.

    Args:
        log_posteriors: [T, B, V], or [B, T, V] where `time_axis` is 1.
        am_scale: scalar.
        bias: [B, N], added to each frame's score of the node.
        offset: [T, B], added to every score of the frame, or None.
        layout: labels of the nodes.
        real: [T, B] bool, False on padding frames.
        time_axis: 0 or 1.

    Returns:
        Scores [T, B, N] with 0 on padding frames and -inf where a node has no label, the unscaled
        scores [T, B, N], and whether a value in use is NaN or +inf [B] bool.
    """
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
    scaled = jnp.where(raw == -jnp.inf, -jnp.inf, raw * am_scale) + bias[None]
    if offset is not None:
        scaled = scaled + offset[:, :, None]
    # A score is bad where one of its parts is: no need to look at [T, B, N] again.
    emits = layout.label >= 0
    bad = jnp.any(real & ~(peak < jnp.inf), axis=0) | ~(jnp.abs(am_scale) < jnp.inf)
    bad = bad | jnp.any(emits & ~(bias < jnp.inf), axis=1)
    if offset is not None:
        bad = bad | jnp.any(real & ~(offset < jnp.inf), axis=0)
    scaled = jnp.where(scaled < jnp.inf, scaled, 0.0)
    scores = jnp.where(emits[None], scaled, -jnp.inf)
    return jnp.where(real[:, :, None], scores, 0.0), raw, bad


def _counts(semiring: Semiring, scores: Array, arcs: Array, graph: Graph, real: Array) -> tuple:
    start, alphas, whole = forward(semiring, scores, arcs, graph, real)
    betas = backward(semiring, scores, arcs, graph, real)
    column = tuple(part[None, :, None] for part in whole)
    node = semiring.ratio(semiring.times(alphas, betas), column)
    node = jnp.where(real[:, :, None], node, 0.0)
    # Each frame's occupancies sum to one: this takes out what rounding the two recursions share.
    mass = jnp.sum(node, axis=2, keepdims=True)
    scale = jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)
    node = node * scale

    before = tuple(
        jnp.concatenate([first[None], rest[:-1]]) for first, rest in zip(start, alphas, strict=True)
    )
    after = semiring.times(semiring.value(scores), betas)

    def weigh(flow: Value) -> Array:
        return jnp.where(real[:, :, None], semiring.ratio(flow, column) * scale, 0.0)

    arc = arc_flows(semiring, before, after, arcs, graph, weigh)
    return semiring.log(whole), node, arc


@jax.custom_jvp
def occupancy(scores: Array, arcs: Array, graph: Graph, real: Array) -> Occupancy:
    """Forward-backward.

    Args:
        scores: [T, B, N] log-scores of the nodes, without NaN and +inf.
        arcs: [B, E] log-scores of the edges, likewise.
        graph: the node graphs.
        real: [T, B] bool, the frames that count.

    Returns:
        The occupancies.
    """
    return Occupancy(*_counts(SCALED, scores, arcs, graph, real))


@occupancy.defjvp
def _occupancy_jvp(primals: tuple, tangents: tuple) -> tuple[Occupancy, Occupancy]:
    scores, arcs, graph, real = primals

    def plain(scores: Array, arcs: Array) -> tuple:
        return _counts(LOG, scores, arcs, graph, real)

    _, change = jax.jvp(plain, (scores, arcs), tangents[:2])
    return occupancy(*primals), Occupancy(*change)


def label_posteriors(node: Array, layout: Layout, num_labels: int, time_axis: int) -> Array:
    """Sums node occupancies [T, B, N] by label: [T, B, V], or [B, T, V]."""
    batch = node.shape[1]
    slots = layout.slot_label.shape[1]
    members = layout.slot[:, :, None] == jax.lax.broadcasted_iota(jnp.int32, (1, 1, slots), 2)
    # Not an einsum: it may order the result so that the gather below strides over the frames.
    by_slot = jax.lax.dot_general(
        jnp.swapaxes(node, 0, 1),
        members.astype(node.dtype),
        (((2,), (1,)), ((0,), (0,))),
        precision=jax.lax.Precision.HIGHEST,
    )
    if time_axis == 0:
        by_slot = jnp.swapaxes(by_slot, 0, 1)
    by_slot = jnp.pad(by_slot, ((0, 0), (0, 0), (0, 1)))
    rows = jax.lax.broadcasted_iota(jnp.int32, (batch, slots), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (batch, slots), 1)
    label = jnp.where(layout.slot_label < 0, num_labels, layout.slot_label)
    where = jnp.full((batch, num_labels), slots, jnp.int32)
    where = where.at[rows, label].set(columns, mode="drop")
    where = jnp.broadcast_to(jnp.expand_dims(where, time_axis), (*by_slot.shape[:2], num_labels))
    return jnp.take_along_axis(by_slot, where, axis=2, mode="promise_in_bounds")


def _clean_arcs(arcs: Array, graph: Graph) -> tuple[Array, Array]:
    """Arc scores without NaN and +inf, and whether a sequence uses such a one."""
    bad = ~(arcs < jnp.inf)
    used = jnp.any(jnp.where(bad, 1.0, 0.0) > 0, axis=1)
    return jnp.where(bad, 0.0, arcs), used


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def partition(
    time_axis: int,
    log_posteriors: Array,
    am_scale: Array,
    bias: Array,
    arcs: Array,
    offset: Array | None,
    graph: Graph,
    layout: Layout,
    real: Array,
    broken: Array,
) -> Array:
    """Minus the log-sum over all paths, as in the table above.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        log_posteriors: float, as `time_axis` says; T > 0.
        am_scale: scalar of the dtype to compute in, as all floats below.
        bias: [B, N], added to every frame's score of a node.
        arcs: [B, E], log-scores of the edges.
        offset: [T, B], added to the score of every label of a frame, or None.
        graph: the node graphs.
        layout: labels of the nodes.
        real: [T, B] bool, the frames that count.
        broken: [B] bool, sequences whose loss is NaN whatever else holds.

    Returns:
        Loss [B]; a sequence is valid where it is finite.
    """
    scores, _, bad = node_scores(log_posteriors, am_scale, bias, offset, layout, real, time_axis)
    clean, bad_arcs = clean_arcs(arcs)
    _, _, whole = forward(SCALED, scores, clean, graph, real)
    return _loss(SCALED.log(whole), bad | bad_arcs | broken)


def _loss(log_total: Array, bad: Array) -> Array:
    return jnp.where(bad, jnp.nan, -log_total)


def _nonzero(tangent: Any) -> bool:
    return not isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _partition_jvp(time_axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    log_posteriors, am_scale, _, _, offset, graph, layout, real, _ = primals
    d_log_posteriors, d_am_scale, d_bias, d_arcs, d_offset = tangents[:5]
    loss, counts, raw = solve(time_axis, *primals)
    valid = jnp.isfinite(loss)
    node = jnp.where(valid[None, :, None], counts.node, 0.0)
    change = jnp.zeros_like(loss)
    if _nonzero(d_log_posteriors):
        posteriors = label_posteriors(node, layout, log_posteriors.shape[2], time_axis)
        posteriors = (posteriors * am_scale).astype(log_posteriors.dtype)
        product = posteriors.astype(loss.dtype) * d_log_posteriors.astype(loss.dtype)
        change = change - jnp.sum(product, axis=(time_axis, 2))
    if _nonzero(d_am_scale):
        share = jnp.where(node > 0, node * jnp.where(node > 0, raw, 0.0), 0.0)
        change = change - jnp.sum(share, axis=(0, 2)) * d_am_scale
    if _nonzero(d_bias):
        change = change - jnp.sum(jnp.sum(node, axis=0) * d_bias, axis=1)
    if offset is not None and _nonzero(d_offset):
        change = change - jnp.sum(jnp.where(real, d_offset, 0.0), axis=0)
    if _nonzero(d_arcs):
        used = jnp.where(valid[:, None, None], counts.arc, 0.0)
        taken = jnp.where(graph.in_arc >= 0, arc_scores(d_arcs, graph.in_arc), 0.0)
        change = change - jnp.sum(used * taken, axis=(1, 2))
    # A select, not a product: an invalid sequence's cotangent may be inf or NaN.
    return loss, jnp.where(valid, change, 0.0)


partition.defjvp(_partition_jvp, symbolic_zeros=True)


def clean_arcs(arcs: Array) -> tuple[Array, Array]:
    """Arc scores without NaN and +inf, and whether a sequence has such a one."""
    bad = ~(arcs < jnp.inf)
    return jnp.where(bad, 0.0, arcs), jnp.any(bad, axis=1)


def solve(
    time_axis: int,
    log_posteriors: Array,
    am_scale: Array,
    bias: Array,
    arcs: Array,
    offset: Array | None,
    graph: Graph,
    layout: Layout,
    real: Array,
    broken: Array,
) -> tuple[Array, Occupancy, Array]:
    """Loss [B], occupancies, and the nodes' unscaled scores [T, B, N]; see `partition`."""
    scores, raw, bad = node_scores(log_posteriors, am_scale, bias, offset, layout, real, time_axis)
    clean, bad_arcs = clean_arcs(arcs)
    counts = occupancy(scores, clean, graph, real)
    return _loss(counts.log_total, bad | bad_arcs | broken), counts, raw
