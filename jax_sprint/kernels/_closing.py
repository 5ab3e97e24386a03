"""The last frame of each sequence, which is no part of the recursions, and how paths start and end.

Its arcs may lead into end states that nothing leaves (`Graph.last`), and it is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._graph import (
    Graph,
    Links,
    apart,
    at_index,
    collect,
    column,
    entering,
    leaving,
    nothing_but,
    per_sequence,
)
from jax_sprint.kernels._semirings import Semiring, Value

__all__ = [
    "Closing",
    "Ending",
    "close",
    "counting",
    "ending",
    "finished",
    "normalizer",
    "starting",
    "total_of",
    "varying_zero",
]

Array = Any


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


def counting(real: Array, until: Array) -> Array:
    """The frames that count [T, B], before `until` [B]."""
    return real & (lax.broadcasted_iota(jnp.int32, real.shape, 0) < until[None])


def total_of(semiring: Semiring, alpha: Value, closing: Closing) -> Value:
    """Sum over all paths [B], `alpha` being that of the frame before the last."""
    end = per_sequence(closing.last >= 0, closing.before, closing.end)
    return tuple(map(apart, semiring.tidy(semiring.plus_over(semiring.times(alpha, end), 1))))


class Ending(NamedTuple):
    """Probabilities of the ways to take the last frame, up to the rounding of the total."""

    node: Array  # [B, N], into a node
    last: Array | None  # [B, J, N], by an arc of `Graph.last`


def ending(
    semiring: Semiring, alpha: Value, closing: Closing, links: Links, graph: Graph, whole: Value
) -> Ending:
    """From `alpha` in the frame before the last, and the sum over all paths."""
    entered = collect(semiring, alpha, entering(semiring, graph, links.arcs))
    node = semiring.tidy(semiring.times(entered, closing.emitted))
    last = None
    if closing.arcs is not None:
        taken = semiring.tidy(semiring.times(column(alpha), closing.arcs))
        last = semiring.ratio(taken, column(column(whole)))
    return Ending(apart(semiring.ratio(node, column(whole))), last)


def normalizer(node: Array, at_last: Array, endings: Ending) -> Array:
    """What makes a frame's probabilities sum to one: it takes out what rounding its nodes share.

    Args:
        node: [..., B, N].
        at_last: [..., B, 1] bool, whether it is the sequence's last frame.
        endings: how that is taken.

    Returns:
        [..., B, 1], 0 where the probabilities are.
    """
    mass = jnp.sum(node, axis=-1, keepdims=True)
    if endings.last is not None:
        mass = mass + jnp.where(at_last, jnp.sum(endings.last, axis=(1, 2))[:, None], 0.0)
    return jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)


def starting(semiring: Semiring, closing: Closing, beta: Value, whole: Value) -> Array:
    """Probability [B, N] that the path starts in the node; `beta` is that before any frame."""
    empty = closing.last[:, None] < 0
    onward = tuple(jnp.where(empty, e, b) for e, b in zip(closing.end, beta, strict=True))
    start = semiring.ratio(semiring.tidy(semiring.times(closing.start, onward)), column(whole))
    mass = jnp.sum(start, axis=1, keepdims=True)
    return start * jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)


def finished(
    closing: Closing, endings: Ending, start: Array, at_end: Array
) -> tuple[Array, Array | None]:
    """The `end` and `last` of `Occupancy`."""
    end = jnp.where(closing.last[:, None] < 0, start, endings.node * at_end)
    return end, None if endings.last is None else endings.last * at_end[:, :, None]
