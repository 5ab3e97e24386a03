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

import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._semirings import Semiring, Value

__all__ = ["Graph", "arc_scores", "backward", "forward", "predecessors", "zero_like"]

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


def zero_like(scores: Array, arcs: Array, real: Array) -> Array:
    """Zeros [B, N] that vary over every mesh axis over which any of the arguments does."""
    nothing = jnp.zeros((), scores.dtype)
    first = jnp.where(jnp.isfinite(scores[0]), nothing, scores[0] * 0)
    zero = jnp.where(jnp.isfinite(first), first, nothing)
    zero = zero + real[0].astype(scores.dtype)[:, None] * 0
    arc = jnp.max(arcs, axis=1, keepdims=True)
    return zero + jnp.where(jnp.isfinite(arc), arc * 0, nothing)


def _where(condition: Array, yes: Value, no: Value) -> Value:
    """Sequence by sequence; `condition` is [B]."""
    return tuple(jnp.where(condition[:, None], y, n) for y, n in zip(yes, no, strict=True))


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
    weights = semiring.value(arc_scores(arcs, graph.in_arc))
    zero = zero_like(scores, arcs, real)
    start = _start(semiring, graph, zero)

    def step(alpha: Value, frame: tuple[Array, Value]) -> tuple[Value, Value]:
        counts, emission = frame
        after = _collect(semiring, alpha, weights, graph.in_node, 1)
        after = semiring.tidy(semiring.times(after, emission))
        alpha = _where(counts, after, alpha)
        return alpha, alpha

    last, alphas = lax.scan(step, start, (real, semiring.value(scores)))
    total = semiring.plus_over(semiring.times(last, _end(semiring, graph, zero)), 1)
    return start, alphas, total


def backward(semiring: Semiring, scores: Array, arcs: Array, graph: Graph, real: Array) -> Value:
    """The betas [T, B, N], arbitrary where not `real`; arguments as for `forward`."""
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
    zero = zero_like(scores, arcs, real)
    end = _end(semiring, graph, zero)
    none = semiring.value(zero - jnp.inf)
    later = jnp.cumsum(real.astype(jnp.int32)[::-1], axis=0)[::-1]
    is_last = real & (later == 1)

    def step(after: Value, frame: tuple[Array, Array, Value]) -> tuple[Value, Value]:
        counts, last, emission = frame
        beta = _collect(semiring, after, weights, graph.out_node, -1)
        beta = semiring.tidy(_where(last, end, beta))
        return _where(counts, semiring.tidy(semiring.times(beta, emission)), after), beta

    return lax.scan(step, none, (real, is_last, semiring.value(scores)), reverse=True)[1]


def _leaving(array: Array, slot: int, fill: Array) -> Array:
    """Weights [B, K, N] of a band by the node that they leave: [B, N] for one slot."""
    nodes = array.shape[-1]
    if slot >= nodes:
        return jnp.broadcast_to(fill, array[:, 0].shape)
    return lax.pad(array[:, slot], fill, [(0, 0, 0), (-slot, slot, 0)])
