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

What is kept of a frame takes the place of its emissions, which nobody needs afterwards: on a CPU
the first touch of fresh memory costs as much as the arithmetic.  Where JAX differentiates the
recursion (`Semiring.by_jax`), nothing may be overwritten, and it is a plain scan.

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
    start: Value  # alpha_{-1}
    end: Value  # beta in the last frame
    emitted: Value  # emission * beta in the last frame
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
    return Closing(last, start, end, emitted, before, arcs)


def _entering(semiring: Semiring, ahead: Array | bool, x: Value, emission: Value) -> Value:
    """What the neighbours collect: alpha of the frame before; or beta with the emission."""
    if isinstance(ahead, bool):
        return x if ahead else semiring.times(x, emission)
    return _where(ahead, x, semiring.times(x, emission))


def _entered(semiring: Semiring, ahead: Array | bool, x: Value, emission: Value) -> Value:
    """What is collected, as alpha or beta."""
    if isinstance(ahead, bool):
        return semiring.times(x, emission) if ahead else x
    return _where(ahead, semiring.times(x, emission), x)


def _kept(ahead: Array | bool, before: Value, after: Value) -> Value:
    """The frame's alpha, which the step gives; or its beta, with which the step began."""
    if isinstance(ahead, bool):
        return after if ahead else before
    return _where(ahead, after, before)


def steps(
    semiring: Semiring,
    side: Side,
    ahead: Array | bool,
    first: Value,
    counts: Array,
    emission: Value,
    keep: bool = True,
) -> tuple[Value, Value | None]:
    """One recursion, or both.

    Args:
        semiring: what to compute in.
        side: where to collect from.
        ahead: whether to go from the first frame to the last, or from the last to the first; or
            [B] bool, whether a sequence is of the forward half of `both`.
        first: of [B, N], the first x.
        counts: [T, B] bool, the frames to take a step in.
        emission: of [T, B, N].
        keep: whether to keep alpha, or beta, of every frame.

    Returns:
        The last x; and what is kept, of [T, B, N], in frames that do not count the x before.
    """
    run = _scan if semiring.by_jax else _overwrite
    return run(semiring, side, ahead, first, counts, emission, keep)


def _scan(
    semiring: Semiring,
    side: Side,
    ahead: Array | bool,
    first: Value,
    counts: Array,
    emission: Value,
    keep: bool,
) -> tuple[Value, Value | None]:
    def step(x: Value, frame: tuple[Array, Value]) -> tuple[Value, Value | None]:
        now, emitted = frame
        after = collect(semiring, _entering(semiring, ahead, x, emitted), side)
        after = _where(now, semiring.tidy(_entered(semiring, ahead, after, emitted)), x)
        return after, _kept(ahead, x, after) if keep else None

    return lax.scan(step, first, (counts, emission), reverse=ahead is False)


def _overwrite(
    semiring: Semiring,
    side: Side,
    ahead: Array | bool,
    first: Value,
    counts: Array,
    emission: Value,
    keep: bool,
) -> tuple[Value, Value | None]:
    frames = counts.shape[0]
    size = min(BLOCK, frames) if isinstance(frames, int) else 1  # symbolic in `jax.export`
    blocks = (frames + size - 1) // size
    # Steps beyond the frames come first.  They change nothing, and what they keep is overwritten.
    early = blocks * size - frames
    # Over mesh axes the emissions may vary less than what takes their place.
    kept = tuple(array + (part * 0)[None] for array, part in zip(emission, first, strict=True))

    def frame(number: Array) -> Array:
        return frames - 1 + early - number if ahead is False else number - early

    def block(number: Array, carry: tuple[Value, Value | None]) -> tuple[Value, Value | None]:
        x, kept = carry
        begin = frame(number * size + (size - 1 if ahead is False else 0))
        begin = jnp.clip(begin, 0, frames - size)
        # Read as a whole, so that the loop within only writes: XLA copies what a loop both reads
        # and overwrites, all frames of it, unless it can prove that the one comes before the other.
        emissions = tuple(
            lax.dynamic_slice_in_dim(array, begin, size, 0)
            for array in (emission if kept is None else kept)
        )

        def emitted(t: Array) -> Value:
            place = jnp.clip(t - begin, 0, size - 1)
            return tuple(
                lax.dynamic_index_in_dim(array, place, 0, keepdims=False) for array in emissions
            )

        def ready(x: Value, t: Array) -> Value | None:
            # Made at the end of the step before: within a step XLA would multiply element by
            # element while it pads, in `collect`.
            return None if ahead is True else _entering(semiring, ahead, x, emitted(t))

        def step(place: Array, carry: tuple) -> tuple:
            x, entering, kept = carry
            t = frame(number * size + place)
            here = jnp.clip(t, 0, frames - 1)
            now = lax.dynamic_index_in_dim(counts, here, 0, keepdims=False) & (here == t)
            after = collect(semiring, x if entering is None else entering, side)
            after = _where(now, _entered(semiring, ahead, after, emitted(t)), x)
            if kept is not None:
                kept = tuple(
                    lax.dynamic_update_index_in_dim(array, value, here, 0)
                    for array, value in zip(kept, _kept(ahead, x, after), strict=True)
                )
            return after, ready(after, frame(number * size + place + 1)), kept

        x = semiring.tidy(x)
        x, _, kept = lax.fori_loop(0, size, step, (x, ready(x, frame(number * size)), kept))
        return x, kept

    x, kept = lax.fori_loop(0, blocks, block, (first, kept if keep else None))
    return semiring.tidy(x), kept


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
    assert alphas is not None
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
    if at_once():
        batch = scores.shape[1]
        last, values = steps(
            semiring,
            both(semiring, ahead, back),
            lax.iota(jnp.int32, 2 * batch) < batch,
            _stack(closing.start, turn(graph, closing.before), 0),
            jnp.concatenate([counts, counts[::-1]], axis=1),
            _stack(emission, tuple(array[::-1] for array in turn(graph, emission)), 1),
        )
        assert values is not None
        alpha = tuple(array[:batch] for array in last)
        beta = turn(graph, tuple(array[batch:] for array in last))
        alphas = tuple(array[:, :batch] for array in values)
        betas = turn(graph, tuple(array[::-1, batch:] for array in values))
    else:
        alpha, alphas = steps(semiring, ahead, True, closing.start, counts, emission)
        beta, betas = steps(semiring, back, False, closing.before, counts, emission)
        assert alphas is not None
        assert betas is not None
    return total_of(semiring, alpha, closing), alphas, betas, alpha, beta


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
