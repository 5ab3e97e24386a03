"""The two recursions over a batch of node graphs, in any semiring.

With s_t(v) the score of node v in frame t and w(u, v) that of the arc from u to v,

    alpha_t(v) = s_t(v) * sum_u alpha_{t-1}(u) * w(u, v)      alpha_{-1} given by the start states
    beta_{t-1}(u) = sum_v w(u, v) * s_t(v) * beta_t(v)

(L. R. Rabiner, A tutorial on hidden Markov models, 1989, III.A, with the emissions on nodes).  A
step collects from the neighbours; the emission is multiplied in before that or after.  So `sweep`
can run both at once, as one batch of 2 B: the backward half sees the frames, and in a band also the
nodes, in reverse.

All arrays are time-major.  A step consists of a few elementwise fusions over [B, N]: nothing of the
size of the arcs is ever kept per frame, and nothing is scattered.

The last frame of each sequence is no part of the sweep; see `_closing`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels import _platform
from jax_sprint.kernels._closing import Closing, counting, total_of
from jax_sprint.kernels._graph import (
    Graph,
    Links,
    at_frame,
    both,
    collect,
    entering,
    leaving,
    nothing_but,
    turn,
    widen,
)
from jax_sprint.kernels._semirings import Semiring, Value
from jax_sprint.kernels._steps import steps, there_and_back

__all__ = ["alphas_of", "arc_flows", "forward", "sweep"]

Array = Any


def forward(
    semiring: Semiring, scores: Array, links: Links, graph: Graph, real: Array, closing: Closing
) -> Value:
    """The sum over all paths [B].

    Args:
        semiring: what to compute in.
        scores: [T, B, N] log-scores of the nodes, neither NaN nor +inf; T > 0.
        links: scores of arcs, starts and ends.
        graph: the node graphs.
        real: [T, B] bool, the frames that count.
        closing: the last frame.
    """
    side = entering(semiring, graph, links.arcs)
    counts = counting(real, closing.last)
    alpha, _ = steps(
        semiring, side, True, closing.start, counts, semiring.value(scores), keep=False
    )
    return total_of(semiring, alpha, closing)


def alphas_of(
    semiring: Semiring, scores: Array, links: Links, graph: Graph, real: Array, closing: Closing
) -> tuple[Value, Value, Value]:
    """The forward half alone; arguments as for `forward`.

    Returns:
        alpha [T, B, N], in frames that do not count that of the frame before; alpha [B, N] in the
        frame before the last; and in the last.
    """
    side = entering(semiring, graph, links.arcs)
    counts = counting(real, closing.last)
    alpha, alphas = steps(semiring, side, True, closing.start, counts, semiring.value(scores))
    emission = semiring.value(at_frame(scores, closing.last))
    final = semiring.tidy(semiring.times(collect(semiring, alpha, side), emission))
    return alphas, alpha, nothing_but(semiring, (closing.last >= 0)[:, None], final)


def sweep(
    semiring: Semiring, scores: Array, links: Links, graph: Graph, real: Array, closing: Closing
) -> tuple[Value, Value, Value, Value, Value]:
    """Both recursions; arguments as for `forward`.

    Returns:
        The sum over all paths [B]; alpha [T, B, N], in frames that do not count that of the frame
        before; beta [T, B, N], for the frames that count, the last excepted; alpha [B, N] in the
        frame before the last; beta [B, N] before the first frame.
    """
    ahead, back = entering(semiring, graph, links.arcs), leaving(semiring, graph, links.arcs)
    emission = semiring.value(scores)
    counts = counting(real, closing.last)
    if _platform.launches():
        # Half as many steps.  On a CPU the second copy of the emissions costs more than those.
        batch = scores.shape[1]
        last, values = steps(
            semiring,
            both(semiring, ahead, back),
            lax.iota(jnp.int32, 2 * batch) < batch,
            _stack(closing.start, turn(graph, closing.before), 0),
            jnp.concatenate([counts, counts[::-1]], axis=1),
            _stack(emission, tuple(array[::-1] for array in turn(graph, emission)), 1),
        )
        alpha = tuple(array[:batch] for array in last)
        beta = turn(graph, tuple(array[batch:] for array in last))
        alphas = tuple(array[:, :batch] for array in values)
        betas = turn(graph, tuple(array[::-1, batch:] for array in values))
    else:
        alpha, alphas, beta, betas = there_and_back(
            semiring, (ahead, back), (closing.start, closing.before), counts, emission
        )
    return total_of(semiring, alpha, closing), alphas, betas, alpha, beta


def _stack(a: Value, b: Value, axis: int) -> Value:
    return tuple(jnp.concatenate(pair, axis=axis) for pair in zip(a, b, strict=True))


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
        before = widen(semiring, before, 2, slots - 1)

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
