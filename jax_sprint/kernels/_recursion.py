"""The two recursions over a batch of node graphs, in any semiring.

With s_t(v) the score of node v in frame t and w(u, v) that of the arc from u to v,

    alpha_t(v) = s_t(v) * sum_u alpha_{t-1}(u) * w(u, v)          alpha_{-1} = 1 at the start node
    beta_t(u)  = sum_v w(u, v) * s_{t+1}(v) * beta_{t+1}(v)       beta_{len-1} = 1 at final nodes

(L. R. Rabiner, A tutorial on hidden Markov models, 1989, III.A, with the emissions on nodes).  All
arrays are time-major.  Both are `lax.scan`s whose step consists of a few elementwise fusions over
[B, N]: nothing of the size of the arcs is ever kept per frame, and nothing is scattered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._semirings import Semiring, Value

__all__ = ["Graph", "arc_scores", "backward", "forward", "predecessors", "total"]

Array = Any

_UNROLLED = 8  # slots that are summed one by one, which XLA fuses, and not by a reduction


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


def _shift(array: Array, by: int) -> Array:
    """Moves [..., N] by `by` nodes, to higher numbers if positive; what moves in is not used."""
    if by == 0:
        return array
    nodes = array.shape[-1]
    pad = [(0, 0, 0)] * (array.ndim - 1)
    zero = jnp.zeros((), array.dtype)
    return lax.pad(array, zero, [*pad, (by, -by, 0)]) if abs(by) < nodes else jnp.zeros_like(array)


def predecessors(value: Value, graph: Graph, slot: int) -> Value:
    """The value [T, B, N] of the node from which each node's slot comes."""
    if graph.in_node is None:
        return tuple(_shift(array, slot) for array in value)
    index = graph.in_node[None, :, slot]
    return tuple(
        jnp.take_along_axis(array, index, axis=2, mode="promise_in_bounds") for array in value
    )


def _collect(
    semiring: Semiring, value: Value, weights: Value, nodes: Array | None, sign: int
) -> Value:
    """Sum over slots of value * weight: [B, N], weights [B, K, N]."""
    slots = weights[0].shape[1]
    if nodes is not None and slots > _UNROLLED:
        picked = tuple(_pick(array, nodes) for array in value)
        return semiring.plus_over(semiring.times(picked, weights), 1)
    terms = []
    for slot in range(slots):
        if nodes is None:
            picked = tuple(_shift(array, sign * slot) for array in value)
        else:
            picked = tuple(
                jnp.take_along_axis(array, nodes[:, slot], axis=1, mode="promise_in_bounds")
                for array in value
            )
        terms.append(semiring.times(picked, tuple(weight[:, slot] for weight in weights)))
    return semiring.plus(terms)


def _start(semiring: Semiring, graph: Graph, like: Array) -> Value:
    """One at node 0; `like` [B, N] lends its dtype and, under shard_map, its varying axes."""
    column = lax.broadcasted_iota(jnp.int32, like.shape, 1)
    return semiring.value(jnp.where(column == 0, like, -jnp.inf))


def _end(semiring: Semiring, graph: Graph, like: Array) -> Value:
    return semiring.value(jnp.where(graph.final, like, -jnp.inf))


def _zero(scores: Array, arcs: Array, lengths: Array) -> Array:
    """Zeros [B, N] that vary over every mesh axis over which any of the arguments does."""
    nothing = jnp.zeros((), scores.dtype)
    first = jnp.where(jnp.isfinite(scores[0]), nothing, scores[0] * 0)
    zero = jnp.where(jnp.isfinite(first), first, nothing)
    zero = zero + (lengths * 0).astype(scores.dtype)[:, None]
    arc = jnp.max(arcs, axis=1, keepdims=True)
    return zero + jnp.where(jnp.isfinite(arc), arc * 0, nothing)


def forward(
    semiring: Semiring, scores: Array, arcs: Array, graph: Graph, lengths: Array
) -> tuple[Value, Value]:
    """The alphas.

    Args:
        semiring: what to compute in.
        scores: [T, B, N] log-scores of the nodes, not NaN; 0 on padding frames.
        arcs: [B, E] log-scores of the edges.
        graph: the node graphs.
        lengths: [B] int32.

    Returns:
        alpha_{-1} [B, N] and alpha_0 .. alpha_{T-1} [T, B, N].
    """
    weights = semiring.value(arc_scores(arcs, graph.in_arc))
    start = _start(semiring, graph, _zero(scores, arcs, lengths))

    def step(alpha: Value, frame: Value) -> tuple[Value, Value]:
        alpha = _collect(semiring, alpha, weights, graph.in_node, 1)
        alpha = semiring.tidy(semiring.times(alpha, frame))
        return alpha, alpha

    return start, lax.scan(step, start, semiring.value(scores))[1]


def backward(semiring: Semiring, scores: Array, arcs: Array, graph: Graph, lengths: Array) -> Value:
    """The betas [T, B, N], zero on padding frames; arguments as for `forward`."""
    if graph.out_arc is None:
        entering = semiring.value(arc_scores(arcs, graph.in_arc))
        slots = graph.in_arc.shape[1]
        absent = semiring.value(jnp.full((), -jnp.inf, scores.dtype))
        weights = tuple(
            jnp.stack([_leaving(array, slot, fill) for slot in range(slots)], axis=1)
            for array, fill in zip(entering, absent, strict=True)
        )
    else:
        weights = semiring.value(arc_scores(arcs, graph.out_arc))
    like = _zero(scores, arcs, lengths)
    end = _end(semiring, graph, like)
    none = semiring.value(like - jnp.inf)
    times = lax.broadcasted_iota(jnp.int32, (scores.shape[0],), 0)

    def step(after: Value, frame: tuple[Array, Value]) -> tuple[Value, Value]:
        time, emission = frame
        beta = _collect(semiring, after, weights, graph.out_node, -1)
        last = (time == lengths - 1)[:, None]
        beta = tuple(jnp.where(last, e, b) for e, b in zip(end, beta, strict=True))
        beta = semiring.tidy(beta)
        return semiring.tidy(semiring.times(beta, emission)), beta

    return lax.scan(step, none, (times, semiring.value(scores)), reverse=True)[1]


def _leaving(array: Array, slot: int, fill: Array) -> Array:
    """Weights [B, K, N] of a band by the node that they leave: [B, N] for one slot."""
    nodes = array.shape[-1]
    if slot >= nodes:
        return jnp.broadcast_to(fill, array[:, 0].shape)
    return lax.pad(array[:, slot], fill, [(0, 0, 0), (-slot, slot, 0)])


def total(semiring: Semiring, start: Value, alphas: Value, graph: Graph, lengths: Array) -> Value:
    """Sum over all paths of exactly `lengths` frames: [B]."""

    def last(first: Array, rest: Array) -> Array:
        if not rest.shape[0]:
            return first
        at = jnp.maximum(lengths - 1, 0)[None, :, None]
        picked = jnp.take_along_axis(rest, at, axis=0, mode="clip")[0]
        return jnp.where((lengths > 0)[:, None], picked, first)

    alpha = tuple(jax.tree_util.tree_map(last, start, alphas))
    end = _end(semiring, graph, jnp.zeros(graph.final.shape, alpha[0].dtype))
    return semiring.plus_over(semiring.times(alpha, end), 1)
