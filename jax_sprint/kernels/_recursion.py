"""The two recursions over a batch of node graphs, in any semiring.

With s_t(v) the score of node v in frame t and w(u, v) that of the arc from u to v,

    alpha_t(v) = s_t(v) * sum_u alpha_{t-1}(u) * w(u, v)      alpha_{-1} given by the start states
    gamma_t(u) = s_t(u) * sum_v w(u, v) * gamma_{t+1}(v)      gamma = emission * beta

(L. R. Rabiner, A tutorial on hidden Markov models, 1989, III.A, with the emissions on nodes, and on
both sides of the frame).  They have one form.  So `sweep` can run them both at once, as one batch
of 2 B: the backward half sees the frames, and in a band also the nodes, in reverse.

All arrays are time-major.  A step consists of a few elementwise fusions over [B, N]: nothing of the
size of the arcs is ever kept per frame, and nothing is scattered.

The last frame of each sequence is no part of the sweep.  Its arcs may lead into end states that
nothing leaves (`Graph.last`), and it is computed once, in `close`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._graph import (
    Graph,
    Links,
    Side,
    apart,
    at_frame,
    at_index,
    both,
    collect,
    entering,
    leaving,
    nothing_but,
    turn,
    widen,
)
from jax_sprint.kernels._semirings import Semiring, Value

__all__ = [
    "BLOCK",
    "Closing",
    "alphas_of",
    "arc_flows",
    "at_once",
    "close",
    "counting",
    "forward",
    "steps",
    "sweep",
    "total_of",
    "varying_zero",
]

Array = Any

BLOCK = 4
"""Frames between two calls of `Semiring.tidy`."""


def varying_zero(row: Array, links: Links, real: Array) -> Array:
    """Zeros [B, N] that vary over every mesh axis over which any of the arguments does.

    `row` holds the scores [B, N] of any frame.
    """
    nothing = jnp.zeros((), row.dtype)
    zero = jnp.where(jnp.isfinite(row), nothing, jnp.zeros_like(row))
    zero = zero + real[0].astype(row.dtype)[:, None] * 0
    for part in links:
        top = jnp.max(part, axis=1, keepdims=True, initial=-jnp.inf)
        zero = zero + jnp.where(jnp.isfinite(top), top * 0, nothing)
    return zero


def _where(condition: Array, yes: Value, no: Value) -> Value:
    """Sequence by sequence; `condition` is [B]."""
    return tuple(jnp.where(condition[:, None], y, n) for y, n in zip(yes, no, strict=True))


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
    row: Callable[[Array], Array],
    last_scores: Array | None,
    links: Links,
    graph: Graph,
    real: Array,
) -> Closing:
    """Computes the last frame.

    Args:
        semiring: what to compute in.
        row: gives the log-scores [B, N] of the nodes in the frames [B] int32, neither NaN nor
            +inf; those of any frame where the index is negative.
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
    last_row = row(last)
    zero = varying_zero(last_row, links, real)
    start = semiring.value(zero + at_index(links.starts, graph.start))
    end = semiring.value(zero + at_index(links.ends, graph.end))
    some = (last >= 0)[:, None]
    emitted = semiring.times(end, semiring.value(last_row))
    emitted = tuple(map(apart, nothing_but(semiring, some, emitted)))
    side = leaving(semiring, graph, links.arcs)
    before = collect(semiring, emitted, side)
    arcs = None
    if graph.last is not None:
        into = at_index(links.ends, jnp.where(graph.last.arc >= 0, graph.last.end, -1))
        weights = at_index(links.arcs, graph.last.arc) + into
        arcs = semiring.times(semiring.value(weights), semiring.value(last_scores))
        arcs = nothing_but(semiring, some[:, None], arcs)
        before = semiring.plus([before, semiring.plus_over(arcs, 1)])
    before = semiring.tidy(before)
    return Closing(last, next_to_last, start, end, emitted, before, arcs)


def steps(
    semiring: Semiring,
    side: Side,
    first: Value,
    counts: Array,
    emission: Value,
    reverse: bool = False,
) -> tuple[Value, Value]:
    """x_t = emission_t * collect(x_{t-1}) where the frame counts; the last x, and all [T, B, N].

    With `reverse` from the last frame to the first.
    """
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
        return lax.scan(step, semiring.tidy(x), frames, reverse=reverse)

    blocks = jax.tree_util.tree_map(
        lambda a: a.reshape(a.shape[0] // size, size, *a.shape[1:]), (counts, emission)
    )
    x, xs = lax.scan(block, first, blocks, reverse=reverse)
    return semiring.tidy(x), tuple(a.reshape(frames + more, *a.shape[2:])[:frames] for a in xs)


def counting(real: Array, until: Array) -> Array:
    """The frames that count [T, B], before `until` [B]."""
    return real & (lax.broadcasted_iota(jnp.int32, real.shape, 0) < until[None])


def total_of(semiring: Semiring, alpha: Value, closing: Closing) -> Value:
    """Sum over all paths [B], `alpha` being that of the frame before the last."""
    end = _where(closing.last >= 0, closing.before, closing.end)
    return tuple(map(apart, semiring.tidy(semiring.plus_over(semiring.times(alpha, end), 1))))


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
    alpha, _ = steps(semiring, side, closing.start, counts, semiring.value(scores))
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
    alpha, alphas = steps(semiring, side, closing.start, counts, semiring.value(scores))
    emission = semiring.value(at_frame(scores, closing.last))
    final = semiring.tidy(semiring.times(collect(semiring, alpha, side), emission))
    return alphas, alpha, nothing_but(semiring, (closing.last >= 0)[:, None], final)


def sweep(
    semiring: Semiring, scores: Array, links: Links, graph: Graph, real: Array, closing: Closing
) -> tuple[Value, Value, Value, Value, Value]:
    """Both recursions; arguments as for `forward`.

    Returns:
        The sum over all paths [B]; alpha [T, B, N], in frames that do not count that of the frame
        before; gamma [T, B, N] = emission * beta, for the frames that count, the last excepted;
        alpha [B, N] in the frame before the last; beta [B, N] before the first frame.
    """
    ahead, back = entering(semiring, graph, links.arcs), leaving(semiring, graph, links.arcs)
    emission = semiring.value(scores)
    # The frame before the last is the backward recursion's first value; it emits by itself.
    there = semiring.value(at_frame(scores, closing.next_to_last))
    first = semiring.times(closing.before, there)
    counts = counting(real, closing.last)
    back_counts = counting(real, closing.next_to_last)
    if at_once():
        batch = scores.shape[1]
        last, values = steps(
            semiring,
            both(semiring, ahead, back),
            _stack(closing.start, turn(graph, first), 0),
            jnp.concatenate([counts, back_counts[::-1]], axis=1),
            _stack(emission, tuple(array[::-1] for array in turn(graph, emission)), 1),
        )
        alpha = tuple(array[:batch] for array in last)
        gamma = turn(graph, tuple(array[batch:] for array in last))
        alphas = tuple(array[:, :batch] for array in values)
        gammas = turn(graph, tuple(array[::-1, batch:] for array in values))
    else:
        alpha, alphas = steps(semiring, ahead, closing.start, counts, emission)
        gamma, gammas = steps(semiring, back, first, back_counts, emission, reverse=True)
    beta = collect(semiring, gamma, back)
    beta = _where(closing.next_to_last >= 0, beta, closing.before)
    return total_of(semiring, alpha, closing), alphas, gammas, alpha, beta


def at_once() -> bool:
    """Whether `sweep` runs both recursions as one batch.

    That halves the number of steps, which is what counts where each launches kernels.  On a CPU
    the second copy of the emissions costs more than the steps do.
    """
    return jax.default_backend() != "cpu"


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
