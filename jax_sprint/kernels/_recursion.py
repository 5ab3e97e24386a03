"""The two recursions over a batch of node graphs, in any semiring.

With s_t(v) the score of node v in frame t and w(u, v) that of the arc from u to v,

    alpha_t(v) = s_t(v) * sum_u alpha_{t-1}(u) * w(u, v)          alpha_{-1} = 1 at the start node
    beta_t(u)  = sum_v w(u, v) * s_{t+1}(v) * beta_{t+1}(v)       beta_{len-1} = 1 at final nodes

(L. R. Rabiner, A tutorial on hidden Markov models, 1989, III.A, with the emissions on nodes).  All
arrays are time-major.  Both are `lax.scan`s whose step consists of a few elementwise fusions over
[B, N]: nothing of the size of the arcs is ever kept per frame, and nothing is scattered.

In a band each step puts D - 1 columns of zeros before (alpha) or behind (beta) the nodes, so that
the neighbours at a distance are plain slices, which vectorise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._semirings import Semiring, Value

__all__ = [
    "BLOCK",
    "Graph",
    "arc_flows",
    "arc_scores",
    "backward",
    "forward",
    "predecessors",
    "zero_like",
]

Array = Any

_UNROLLED = 16  # slots that are summed one by one, which XLA fuses, and not by a reduction

BLOCK = 4
"""Frames between two calls of `Semiring.tidy`."""


class Graph(NamedTuple):
    """Node graphs of a batch; see `jax_sprint.automata.Automata` for the tables.

    `in_node`, `out_arc` and `out_node` are None in a band.
    """

    in_arc: Array  # [B, K, N] int32
    in_node: Array | None  # [B, K, N] int32
    out_arc: Array | None  # [B, O, N] int32
    out_node: Array | None  # [B, O, N] int32
    final: Array  # [B, N] bool


def _pick(array: Array, index: Array) -> Array:
    """array [B, N] at index [B, K, N] -> [B, K, N]."""
    batch, slots, nodes = index.shape
    flat = jnp.take_along_axis(
        array, index.reshape(batch, slots * nodes), axis=1, mode="promise_in_bounds"
    )
    return flat.reshape(batch, slots, nodes)


def arc_scores(scores: Array, arcs: Array) -> Array:
    """Scores [B, E] of the arcs [B, K, N], -inf where there is no arc."""
    return jnp.where(arcs >= 0, _pick(scores, jnp.maximum(arcs, 0)), -jnp.inf)


class _Side(NamedTuple):
    """One direction of the recursion: how a node finds the nodes whose values it collects."""

    weights: Value  # of [B, K, N]
    nodes: Array | None  # [B, K, N], or None in a band
    low: int  # columns of zeros before the nodes
    high: int  # and behind them


def _widen(semiring: Semiring, value: Value, side: _Side) -> Value:
    if not side.low + side.high:
        return value
    config = [(0, 0, 0), (side.low, side.high, 0)]
    return tuple(
        lax.pad(array, jnp.asarray(zero, array.dtype), config)
        for array, zero in zip(value, semiring.zero, strict=True)
    )


def _neighbours(value: Value, side: _Side, slot: int) -> Value:
    """Values [B, N] of the nodes of a slot; `value` is [B, low + N + high]."""
    if side.nodes is not None:
        return tuple(
            jnp.take_along_axis(array, side.nodes[:, slot], axis=1, mode="promise_in_bounds")
            for array in value
        )
    nodes = side.weights[0].shape[-1]
    start = side.low - slot if side.low else slot
    return tuple(lax.slice_in_dim(array, start, start + nodes, axis=-1) for array in value)


def _collect(semiring: Semiring, value: Value, side: _Side) -> Value:
    """Sum over slots of value * weight: [B, N]."""
    slots = side.weights[0].shape[1]
    if side.nodes is not None and slots > _UNROLLED:
        picked = tuple(_pick(array, side.nodes) for array in value)
        return semiring.plus_over(semiring.times(picked, side.weights), 1)
    value = _widen(semiring, value, side)
    return semiring.plus(
        [
            semiring.times(
                _neighbours(value, side, slot), tuple(weight[:, slot] for weight in side.weights)
            )
            for slot in range(slots)
        ]
    )


def _entering(semiring: Semiring, graph: Graph, arcs: Array) -> _Side:
    weights = semiring.value(arc_scores(arcs, graph.in_arc))
    low = 0 if graph.in_node is not None else max(graph.in_arc.shape[1] - 1, 0)
    return _Side(weights, graph.in_node, low, 0)


def _leaving(semiring: Semiring, graph: Graph, arcs: Array) -> _Side:
    if graph.in_node is not None:
        weights = semiring.value(arc_scores(arcs, graph.out_arc))
        return _Side(weights, graph.out_node, 0, 0)
    scores = arc_scores(arcs, graph.in_arc)
    slots, nodes = scores.shape[1:]
    none = jnp.full((), -jnp.inf, scores.dtype)
    moved = [
        lax.pad(scores[:, slot], none, [(0, 0, 0), (-min(slot, nodes), min(slot, nodes), 0)])
        for slot in range(slots)
    ]
    return _Side(semiring.value(jnp.stack(moved, axis=1)), None, 0, max(slots - 1, 0))


def zero_like(scores: Array, arcs: Array, real: Array) -> Array:
    """Zeros [B, N] that vary over every mesh axis over which any of the arguments does."""
    nothing = jnp.zeros((), scores.dtype)
    zero = jnp.where(jnp.isfinite(scores[0]), nothing, jnp.zeros_like(scores[0]))
    zero = zero + real[0].astype(scores.dtype)[:, None] * 0
    arc = jnp.max(arcs, axis=1, keepdims=True)
    return zero + jnp.where(jnp.isfinite(arc), arc * 0, nothing)


def _where(condition: Array, yes: Value, no: Value) -> Value:
    """Sequence by sequence; `condition` is [B]."""
    return tuple(jnp.where(condition[:, None], y, n) for y, n in zip(yes, no, strict=True))


def _in_blocks(semiring: Semiring, step: Any, carry: Value, frames: Any, reverse: bool) -> Any:
    """A scan whose carry is tidied every `BLOCK` frames; the frames are a multiple of that."""

    def block(carry: Value, frames: Any) -> tuple[Value, Any]:
        return lax.scan(step, semiring.tidy(carry), frames, reverse=reverse)

    count = jax.tree_util.tree_leaves(frames)[0].shape[0] // BLOCK
    blocks = jax.tree_util.tree_map(lambda a: a.reshape(count, BLOCK, *a.shape[1:]), frames)
    carry, outputs = lax.scan(block, carry, blocks, reverse=reverse)
    frames = count * BLOCK
    return carry, jax.tree_util.tree_map(lambda a: a.reshape(frames, *a.shape[2:]), outputs)


def emissions(semiring: Semiring, scores: Array, real: Array) -> tuple[Array, Value]:
    """Frames for the recursions, filled up to whole blocks: `real` and the values of `scores`."""
    more = -scores.shape[0] % BLOCK
    if more:
        scores = jnp.pad(scores, ((0, more), (0, 0), (0, 0)))
        real = jnp.pad(real, ((0, more), (0, 0)))
    return real, semiring.value(scores)


def forward(
    semiring: Semiring, scores: Array, arcs: Array, graph: Graph, real: Array
) -> tuple[Value, Value, Value]:
    """The alphas.

    Args:
        semiring: what to compute in.
        scores: [T, B, N] log-scores of the nodes, neither NaN nor +inf; T > 0.
        arcs: [B, E] log-scores of the edges, likewise.
        graph: the node graphs.
        real: [T, B] bool, the frames that count; over the others alpha stays as it is.

    Returns:
        alpha_{-1} [B, N], alpha_0 .. alpha_{T-1} [T, B, N], and the sum over all paths [B].
    """
    side = _entering(semiring, graph, arcs)
    zero = zero_like(scores, arcs, real)
    column = lax.broadcasted_iota(jnp.int32, zero.shape, 1)
    start = semiring.value(jnp.where(column == 0, zero, -jnp.inf))

    def step(alpha: Value, frame: tuple[Array, Value]) -> tuple[Value, Value]:
        counts, emission = frame
        after = semiring.times(_collect(semiring, alpha, side), emission)
        alpha = _where(counts, after, alpha)
        return alpha, alpha

    frames = emissions(semiring, scores, real)
    last, alphas = _in_blocks(semiring, step, start, frames, False)
    end = semiring.value(jnp.where(graph.final, zero, -jnp.inf))
    whole = semiring.times(semiring.tidy(last), end)
    alphas = tuple(array[: scores.shape[0]] for array in alphas)
    return start, alphas, semiring.tidy(semiring.plus_over(whole, 1))


def backward(semiring: Semiring, scores: Array, arcs: Array, graph: Graph, real: Array) -> Value:
    """The betas [T, B, N], arbitrary where not `real`; arguments as for `forward`."""
    side = _leaving(semiring, graph, arcs)
    zero = zero_like(scores, arcs, real)
    end = semiring.value(jnp.where(graph.final, zero, -jnp.inf))
    none = semiring.value(zero - jnp.inf)
    real, values = emissions(semiring, scores, real)
    later = jnp.cumsum(real.astype(jnp.int32)[::-1], axis=0)[::-1]

    def step(after: Value, frame: tuple[Array, Array, Value]) -> tuple[Value, Value]:
        counts, last, emission = frame
        beta = _where(last, end, _collect(semiring, after, side))
        return _where(counts, semiring.times(beta, emission), after), beta

    frames = (real, real & (later == 1), values)
    _, betas = _in_blocks(semiring, step, none, frames, True)
    return tuple(array[: scores.shape[0]] for array in betas)


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
    side = _entering(semiring, graph, arcs)
    slots = graph.in_arc.shape[1]
    if graph.in_node is None:
        config = [(0, 0, 0), (0, 0, 0), (side.low, 0, 0)]
        before = tuple(
            lax.pad(array, jnp.asarray(zero, array.dtype), config)
            for array, zero in zip(before, semiring.zero, strict=True)
        )

    def one(slot: Array) -> Array:
        weight = tuple(
            lax.dynamic_index_in_dim(array, slot, axis=1, keepdims=False)[None]
            for array in side.weights
        )
        if graph.in_node is None:
            nodes = graph.in_arc.shape[2]
            source = tuple(
                lax.dynamic_slice_in_dim(array, side.low - slot, nodes, axis=2) for array in before
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
