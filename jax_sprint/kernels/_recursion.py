"""The two recursions over a batch of node graphs, in any semiring, as one sweep.

With s_t(v) the score of node v in frame t and w(u, v) that of the arc from u to v,

    alpha_t(v) = s_t(v) * sum_u alpha_{t-1}(u) * w(u, v)      alpha_{-1} given by the start states
    gamma_t(u) = s_t(u) * sum_v w(u, v) * gamma_{t+1}(v)      gamma = emission * beta

(L. R. Rabiner, A tutorial on hidden Markov models, 1989, III.A, with the emissions on nodes, and on
both sides of the frame).  They have one form.  So `sweep` runs them both at once, as one batch of
2 B: the backward half sees the frames, and in a band also the nodes, in reverse.  On a CPU this
halves the number of small steps, on a GPU that of the kernels that are launched.

All arrays are time-major.  A step consists of a few elementwise fusions over [2 B, N]: nothing of
the size of the arcs is ever kept per frame, and nothing is scattered.  In a band each step puts
D - 1 columns of zeros before the nodes, so that the neighbours at a distance are plain slices,
which vectorise.

The last frame of each sequence is no part of the sweep.  Its arcs may lead into end states that
nothing leaves (`Graph.last`), and it is computed once, in `close`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._semirings import Semiring, Value

__all__ = [
    "BLOCK",
    "Closing",
    "Graph",
    "Last",
    "Links",
    "Side",
    "alphas_of",
    "arc_flows",
    "at_frame",
    "at_index",
    "close",
    "collect",
    "entering",
    "flat_shape",
    "forward",
    "leaving",
    "nothing_but",
    "predecessors",
    "sweep",
    "varying_zero",
]

Array = Any

_UNROLLED = 16  # slots that are summed one by one, which XLA fuses, and not by a reduction

BLOCK = 4
"""Frames between two calls of `Semiring.tidy`."""


class Last(NamedTuple):
    """Arcs into end states that nothing leaves, by the node that they leave."""

    arc: Array  # [B, J, N] int32, -1: none
    end: Array  # [B, J, N] int32, which end state
    slot: Array  # [B, J, N] int32 in 0..U, place of the label; U: none


class Graph(NamedTuple):
    """Node graphs of a batch; see `jax_sprint.automata.Automata` for the tables.

    `in_node`, `out_arc` and `out_node` are None in a band.
    """

    in_arc: Array  # [B, K, N] int32
    in_node: Array | None  # [B, K, N] int32
    out_arc: Array | None  # [B, O, N] int32
    out_node: Array | None  # [B, O, N] int32
    start: Array  # [B, N] int32, which start state, -1: none
    end: Array  # [B, N] int32, which end state, -1: none
    last: Last | None


class Links(NamedTuple):
    """Log-scores of everything but the emissions, neither NaN nor +inf."""

    arcs: Array  # [B, E]
    starts: Array  # [B, A]
    ends: Array  # [B, Z]


class Side(NamedTuple):
    """One direction of the recursion: how a node finds the nodes whose values it collects."""

    weights: Value  # of [B, K, N]
    nodes: Array | None  # [B, K, N], or None in a band: slot d is the node d places before


def flat_shape(array: Array) -> tuple[int, int]:
    """[B, X] for an array [B, ...]; a reshape to -1 fails where B is 0."""
    return array.shape[0], math.prod(array.shape[1:])


def at_index(scores: Array, index: Array) -> Array:
    """Scores [B, E] at `index` [B, ...], -inf where that is negative."""
    flat = jnp.maximum(index, 0).reshape(flat_shape(index))
    picked = jnp.take_along_axis(scores, flat, axis=1, mode="promise_in_bounds")
    return jnp.where(index >= 0, picked.reshape(index.shape), -jnp.inf)


def _neighbours(value: Value, side: Side, slot: int) -> Value:
    """Values [B, N] of the nodes of a slot; in a band `value` is [B, D - 1 + N]."""
    if side.nodes is not None:
        return tuple(
            jnp.take_along_axis(array, side.nodes[:, slot], axis=1, mode="promise_in_bounds")
            for array in value
        )
    slots, nodes = side.weights[0].shape[1:]
    start = slots - 1 - slot
    return tuple(lax.slice_in_dim(array, start, start + nodes, axis=1) for array in value)


def _widen(semiring: Semiring, value: Value, axis: int, low: int) -> Value:
    config = [(low if place == axis else 0, 0, 0) for place in range(value[0].ndim)]
    return tuple(
        lax.pad(array, jnp.asarray(zero, array.dtype), config)
        for array, zero in zip(value, semiring.zero, strict=True)
    )


def collect(semiring: Semiring, value: Value, side: Side) -> Value:
    """Sum over slots of value * weight: [B, N]."""
    batch, slots, nodes = side.weights[0].shape
    if side.nodes is not None and slots > _UNROLLED:
        flat = side.nodes.reshape(batch, slots * nodes)
        picked = tuple(
            jnp.take_along_axis(array, flat, axis=1, mode="promise_in_bounds").reshape(
                batch, slots, nodes
            )
            for array in value
        )
        return semiring.plus_over(semiring.times(picked, side.weights), 1)
    if side.nodes is None:
        value = _widen(semiring, value, 1, slots - 1)
    return semiring.plus(
        [
            semiring.times(
                _neighbours(value, side, slot), tuple(weight[:, slot] for weight in side.weights)
            )
            for slot in range(slots)
        ]
    )


def entering(semiring: Semiring, graph: Graph, arcs: Array) -> Side:
    """The forward direction."""
    return Side(semiring.value(at_index(arcs, graph.in_arc)), graph.in_node)


def leaving(semiring: Semiring, graph: Graph, arcs: Array) -> Side:
    """The backward direction; in a band over the nodes in reverse order."""
    if graph.in_node is not None:
        return Side(semiring.value(at_index(arcs, graph.out_arc)), graph.out_node)
    scores = at_index(arcs, graph.in_arc)
    slots, nodes = scores.shape[1:]
    none = jnp.full((), -jnp.inf, scores.dtype)
    moved = []
    for slot in range(slots):
        by = min(slot, nodes)
        moved.append(lax.pad(scores[:, slot], none, [(0, 0, 0), (-by, by, 0)]))
    return Side(semiring.value(jnp.stack(moved, axis=1)[:, :, ::-1]), None)


def _turn(graph: Graph, value: Value) -> Value:
    """Nodes in the order of the backward direction, and back."""
    return value if graph.in_node is not None else tuple(a[..., ::-1] for a in value)


def _both(semiring: Semiring, ahead: Side, back: Side) -> Side:
    """The two directions as one batch."""
    slots = max(ahead.weights[0].shape[1], back.weights[0].shape[1])

    def fill(array: Array, value: float | int) -> Array:
        none = jnp.asarray(value, array.dtype)
        return lax.pad(array, none, [(0, 0, 0), (0, slots - array.shape[1], 0), (0, 0, 0)])

    weights = tuple(
        jnp.concatenate([fill(a, zero), fill(b, zero)])
        for a, b, zero in zip(ahead.weights, back.weights, semiring.zero, strict=True)
    )
    if ahead.nodes is None:
        return Side(weights, None)
    return Side(weights, jnp.concatenate([fill(ahead.nodes, 0), fill(back.nodes, 0)]))


def varying_zero(scores: Array, links: Links, real: Array) -> Array:
    """Zeros [B, N] that vary over every mesh axis over which any of the arguments does."""
    nothing = jnp.zeros((), scores.dtype)
    zero = jnp.where(jnp.isfinite(scores[0]), nothing, jnp.zeros_like(scores[0]))
    zero = zero + real[0].astype(scores.dtype)[:, None] * 0
    for part in links:
        top = jnp.max(part, axis=1, keepdims=True, initial=-jnp.inf)
        zero = zero + jnp.where(jnp.isfinite(top), top * 0, nothing)
    return zero


def _where(condition: Array, yes: Value, no: Value) -> Value:
    """Sequence by sequence; `condition` is [B]."""
    return tuple(jnp.where(condition[:, None], y, n) for y, n in zip(yes, no, strict=True))


def nothing_but(semiring: Semiring, condition: Array, value: Value) -> Value:
    """The value where the condition holds, zero elsewhere."""
    return tuple(
        jnp.where(condition, array, jnp.asarray(zero, array.dtype))
        for array, zero in zip(value, semiring.zero, strict=True)
    )


class Closing(NamedTuple):
    """The ends of the sequences, seen from the frames before; values are of [B, N]."""

    last: Array  # [B] int32 the last frame that counts, -1 where there is none
    next_to_last: Array  # [B] int32 the one before, -1 where there is none
    start: Value  # alpha_{-1}
    end: Value  # beta in the last frame
    emitted: Value  # gamma in the last frame
    before: Value  # beta in the frame before
    arcs: Value | None  # of [B, J, N], the arcs of `Graph.last` with their emissions


def close(
    semiring: Semiring,
    scores: Array,
    last_scores: Array | None,
    links: Links,
    graph: Graph,
    real: Array,
) -> Closing:
    """Computes the last frame.

    Args:
        semiring: what to compute in.
        scores: [T, B, N] log-scores of the nodes, neither NaN nor +inf; T > 0.
        last_scores: [B, J, N] log-scores of the labels of `graph.last` in the last frame, or None.
        links: scores of arcs, starts and ends.
        graph: the node graphs.
        real: [T, B] bool, the frames that count.

    Returns:
        The values.
    """
    frame = lax.broadcasted_iota(jnp.int32, real.shape, 0)
    last = jnp.max(jnp.where(real, frame, -1), axis=0)
    next_to_last = jnp.max(jnp.where(real & (frame < last[None]), frame, -1), axis=0)
    zero = varying_zero(scores, links, real)
    start = semiring.value(zero + at_index(links.starts, graph.start))
    end = semiring.value(zero + at_index(links.ends, graph.end))
    some = (last >= 0)[:, None]
    emitted = semiring.times(end, semiring.value(at_frame(scores, last)))
    emitted = nothing_but(semiring, some, emitted)
    side = leaving(semiring, graph, links.arcs)
    before = _turn(graph, collect(semiring, _turn(graph, emitted), side))
    arcs = None
    if graph.last is not None:
        into = at_index(links.ends, jnp.where(graph.last.arc >= 0, graph.last.end, -1))
        weights = at_index(links.arcs, graph.last.arc) + into
        arcs = semiring.times(semiring.value(weights), semiring.value(last_scores))
        arcs = nothing_but(semiring, some[:, None], arcs)
        before = semiring.plus([before, semiring.plus_over(arcs, 1)])
    before = semiring.tidy(before)
    return Closing(last, next_to_last, start, end, emitted, before, arcs)


def at_frame(scores: Array, frame: Array) -> Array:
    """scores [T, B, N] at `frame` [B], or at frame 0 where that is negative: [B, N]."""
    index = jnp.broadcast_to(jnp.maximum(frame, 0)[None, :, None], (1, *scores.shape[1:]))
    return jnp.take_along_axis(scores, index, axis=0, mode="promise_in_bounds")[0]


def _steps(
    semiring: Semiring, side: Side, first: Value, counts: Array, emission: Value
) -> tuple[Value, Value]:
    """x_t = emission_t * collect(x_{t-1}) where the frame counts; the last x, and all [T, B, N]."""
    frames = counts.shape[0]
    # A symbolic number of frames (`jax.export`) cannot be divided into blocks.
    size = BLOCK if isinstance(frames, int) else 1
    more = -frames % size if size > 1 else 0
    if more:
        counts = jnp.pad(counts, ((0, more), (0, 0)))
        emission = tuple(jnp.pad(array, ((0, more), (0, 0), (0, 0))) for array in emission)

    def step(x: Value, frame: tuple[Array, Value]) -> tuple[Value, Value]:
        now, emitted = frame
        x = _where(now, semiring.times(collect(semiring, x, side), emitted), x)
        return x, x

    def block(x: Value, frames: Any) -> tuple[Value, Value]:
        return lax.scan(step, semiring.tidy(x), frames)

    blocks = jax.tree_util.tree_map(
        lambda a: a.reshape(a.shape[0] // size, size, *a.shape[1:]), (counts, emission)
    )
    x, xs = lax.scan(block, first, blocks)
    return semiring.tidy(x), tuple(a.reshape(frames + more, *a.shape[2:])[:frames] for a in xs)


def _counting(real: Array, until: Array) -> Array:
    return real & (lax.broadcasted_iota(jnp.int32, real.shape, 0) < until[None])


def _total(semiring: Semiring, alpha: Value, closing: Closing) -> Value:
    """Sum over all paths [B], `alpha` being that of the frame before the last."""
    end = _where(closing.last >= 0, closing.before, closing.end)
    return semiring.tidy(semiring.plus_over(semiring.times(alpha, end), 1))


def forward(
    semiring: Semiring, scores: Array, links: Links, graph: Graph, real: Array, closing: Closing
) -> Value:
    """The sum over all paths [B]; arguments as for `close`."""
    side = entering(semiring, graph, links.arcs)
    counts = _counting(real, closing.last)
    alpha, _ = _steps(semiring, side, closing.start, counts, semiring.value(scores))
    return _total(semiring, alpha, closing)


def alphas_of(
    semiring: Semiring, scores: Array, links: Links, graph: Graph, real: Array, closing: Closing
) -> tuple[Value, Value, Value]:
    """The forward half alone; arguments as for `close`.

    Returns:
        alpha [T, B, N], in frames that do not count that of the frame before; alpha [B, N] in the
        frame before the last; and in the last.
    """
    side = entering(semiring, graph, links.arcs)
    counts = _counting(real, closing.last)
    alpha, alphas = _steps(semiring, side, closing.start, counts, semiring.value(scores))
    emission = semiring.value(at_frame(scores, closing.last))
    final = semiring.tidy(semiring.times(collect(semiring, alpha, side), emission))
    return alphas, alpha, nothing_but(semiring, (closing.last >= 0)[:, None], final)


def sweep(
    semiring: Semiring, scores: Array, links: Links, graph: Graph, real: Array, closing: Closing
) -> tuple[Value, Value, Value, Value, Value]:
    """Both recursions; arguments as for `close`.

    Returns:
        The sum over all paths [B]; alpha [T, B, N], in frames that do not count that of the frame
        before; gamma [T, B, N] = emission * beta, for the frames that count, the last excepted;
        alpha [B, N] in the frame before the last; beta [B, N] before the first frame.
    """
    ahead, back = entering(semiring, graph, links.arcs), leaving(semiring, graph, links.arcs)
    emission = semiring.value(scores)
    # The frame before the last is the backward half's first value; it emits by itself.
    there = semiring.value(at_frame(scores, closing.next_to_last))
    first = _turn(graph, semiring.times(closing.before, there))
    turned = _turn(graph, emission)
    counts = jnp.concatenate(
        [_counting(real, closing.last), _counting(real, closing.next_to_last)[::-1]], axis=1
    )
    last, values = _steps(
        semiring,
        _both(semiring, ahead, back),
        tuple(jnp.concatenate(pair) for pair in zip(closing.start, first, strict=True)),
        counts,
        tuple(jnp.concatenate([a, b[::-1]], axis=1) for a, b in zip(emission, turned, strict=True)),
    )
    batch = scores.shape[1]
    alpha = tuple(array[:batch] for array in last)
    beta = collect(semiring, tuple(array[batch:] for array in last), back)
    beta = _where(closing.next_to_last >= 0, _turn(graph, beta), closing.before)
    alphas = tuple(array[:, :batch] for array in values)
    gammas = _turn(graph, tuple(array[::-1, batch:] for array in values))
    return _total(semiring, alpha, closing), alphas, gammas, alpha, beta


def arc_flows(
    semiring: Semiring, before: Value, after: Value, arcs: Array, graph: Graph, weigh: Any
) -> Array:
    """Sums over frames of source * weight * target for each arc, slot by slot.

    Args:
        semiring: what to compute in.
        before: [T, B, N], alphas of the frame before.
        after: [T, B, N], emission times beta.
        arcs: [B, E] log-scores of the edges.
        graph: the node graphs.
        weigh: turns products [T, B, N] into probabilities.

    Returns:
        [B, K, N].
    """
    side = entering(semiring, graph, arcs)
    slots, nodes = graph.in_arc.shape[1:]
    if graph.in_node is None:
        before = _widen(semiring, before, 2, slots - 1)

    def one(slot: Array) -> Array:
        weight = tuple(
            lax.dynamic_index_in_dim(array, slot, axis=1, keepdims=False)[None]
            for array in side.weights
        )
        if graph.in_node is None:
            start = slots - 1 - slot
            source = tuple(
                lax.dynamic_slice_in_dim(array, start, nodes, axis=2) for array in before
            )
        else:
            index = lax.dynamic_index_in_dim(graph.in_node, slot, axis=1, keepdims=False)[None]
            source = tuple(
                jnp.take_along_axis(array, index, axis=2, mode="promise_in_bounds")
                for array in before
            )
        flow = semiring.times(semiring.times(source, weight), after)
        return jnp.sum(weigh(semiring.tidy(flow)), axis=0)

    used = lax.map(one, jnp.arange(slots, dtype=jnp.int32))
    return jnp.where(graph.in_arc >= 0, jnp.swapaxes(used, 0, 1), 0.0)


def predecessors(array: Array, graph: Graph, slot: int, fill: float) -> Array:
    """Values [B, N] of the nodes from which each node's slot comes; `fill` where none is."""
    if graph.in_node is not None:
        return jnp.take_along_axis(array, graph.in_node[:, slot], axis=1, mode="promise_in_bounds")
    by = min(slot, array.shape[1])
    return lax.pad(array, jnp.asarray(fill, array.dtype), [(0, 0, 0), (by, -by, 0)])
