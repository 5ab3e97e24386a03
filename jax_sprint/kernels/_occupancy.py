"""Expected counts under the distribution over paths, from the two recursions."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._graph import Graph, Links, apart, at_frame, collect, entering, nothing_but
from jax_sprint.kernels._recursion import Closing, arc_flows, close, sweep
from jax_sprint.kernels._semirings import LOG, SCALED, Semiring, Value

__all__ = [
    "Ending",
    "Occupancy",
    "Visits",
    "ending",
    "finished",
    "occupancy",
    "starting",
    "visits",
]

Array = Any


class Occupancy(NamedTuple):
    """Expected counts; all are 0 in a sequence without paths."""

    log_total: Array  # [B] log-sum over all paths, -inf where there is none
    node: Array  # [T, B, N] probability that the path is in the node at that frame
    arc: Array  # [B, K, N] expected number of times that the path takes the arc of an in-slot
    start: Array  # [B, N] probability that the path starts in the node
    end: Array  # [B, N] probability that the path ends in the node
    last: Array | None  # [B, J, N] probability that the path takes the arc of `Graph.last`


class Ending(NamedTuple):
    """Probabilities of the ways to take the last frame, up to the rounding of the total."""

    node: Array  # [B, N], into a node
    last: Array | None  # [B, J, N], by an arc of `Graph.last`


def _column(value: Value) -> Value:
    return tuple(part[:, None] for part in value)


def ending(
    semiring: Semiring, alpha: Value, closing: Closing, links: Links, graph: Graph, whole: Value
) -> Ending:
    """From `alpha` in the frame before the last, and the sum over all paths."""
    entered = collect(semiring, alpha, entering(semiring, graph, links.arcs))
    node = semiring.tidy(semiring.times(entered, closing.emitted))
    last = None
    if closing.arcs is not None:
        taken = semiring.tidy(semiring.times(_column(alpha), closing.arcs))
        last = semiring.ratio(taken, _column(_column(whole)))
    return Ending(apart(semiring.ratio(node, _column(whole))), last)


class Visits(NamedTuple):
    """Expected counts of some frames."""

    node: Array  # [C, B, N]
    arc: Array  # [B, K, N]
    at_end: Array  # [B, 1] what makes the last frame's probabilities sum to one; 0 elsewhere


def visits(
    semiring: Semiring,
    alphas: Value,
    before: Value,
    betas: Value,
    scores: Array,
    real: Array,
    first_frame: Array | int,
    closing: Closing,
    endings: Ending,
    links: Links,
    graph: Graph,
    whole: Value,
) -> Visits:
    """Expected counts of frames from `first_frame` on.

    Args:
        semiring: what to compute in.
        alphas: [C, B, N].
        before: [B, N], alpha in the frame before the first.
        betas: [C, B, N].
        scores: [C, B, N], log-scores of the nodes.
        real: [C, B] bool, the frames that count.
        first_frame: number of the first frame.
        closing: the last frame of each sequence.
        endings: how it is taken.
        links: scores of arcs, starts and ends.
        graph: the node graphs.
        whole: [B], sum over all paths.

    Returns:
        The counts.
    """
    frame = lax.broadcasted_iota(jnp.int32, (*real.shape, 1), 0) + first_frame
    at_last = frame == closing.last[None, :, None]
    total = tuple(part[None, :, None] for part in whole)
    # Before any exp, not after: what is not counted may be anything, and 0 * inf is no gradient.
    counts = real[:, :, None] & (frame < closing.last[None, :, None])
    betas = nothing_but(semiring, counts, betas)
    inner = semiring.ratio(semiring.times(alphas, betas), total)
    node = jnp.where(at_last, endings.node[None], inner)
    # Each frame's occupancies sum to one: this takes out what rounding the two recursions share.
    mass = jnp.sum(node, axis=2, keepdims=True)
    if endings.last is not None:
        mass = mass + jnp.where(at_last, jnp.sum(endings.last, axis=(1, 2))[None, :, None], 0.0)
    scale = jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)

    sources = tuple(
        jnp.concatenate([first[None], rest[:-1]])
        for first, rest in zip(before, alphas, strict=True)
    )
    gammas = semiring.times(betas, semiring.value(scores))
    targets = tuple(
        jnp.where(at_last, e[None], g) for e, g in zip(closing.emitted, gammas, strict=True)
    )

    def weigh(flow: Value) -> Array:
        return semiring.ratio(flow, total) * scale

    arc = arc_flows(semiring, sources, targets, links.arcs, graph, weigh)
    return Visits(node * scale, arc, jnp.sum(jnp.where(at_last, scale, 0.0), axis=0))


def starting(semiring: Semiring, closing: Closing, beta: Value, whole: Value) -> Array:
    """Probability [B, N] that the path starts in the node; `beta` is that before any frame."""
    empty = closing.last[:, None] < 0
    onward = tuple(jnp.where(empty, e, b) for e, b in zip(closing.end, beta, strict=True))
    start = semiring.ratio(semiring.tidy(semiring.times(closing.start, onward)), _column(whole))
    mass = jnp.sum(start, axis=1, keepdims=True)
    return start * jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)


def finished(
    closing: Closing, endings: Ending, start: Array, at_end: Array
) -> tuple[Array, Array | None]:
    """The `end` and `last` of `Occupancy`."""
    end = jnp.where(closing.last[:, None] < 0, start, endings.node * at_end)
    return end, None if endings.last is None else endings.last * at_end[:, :, None]


def _counts(
    semiring: Semiring,
    scores: Array,
    last_scores: Array | None,
    links: Links,
    graph: Graph,
    real: Array,
) -> Occupancy:
    closing = close(semiring, partial(at_frame, scores), last_scores, links, graph, real)
    whole, alphas, betas, alpha, beta = sweep(semiring, scores, links, graph, real, closing)
    endings = ending(semiring, alpha, closing, links, graph, whole)
    start = starting(semiring, closing, beta, whole)
    node, arc, at_end = visits(
        semiring,
        alphas,
        closing.start,
        betas,
        scores,
        real,
        0,
        closing,
        endings,
        links,
        graph,
        whole,
    )
    end, last = finished(closing, endings, start, at_end)
    return Occupancy(semiring.log(whole), node, arc, start, end, last)


@jax.custom_jvp
def occupancy(
    scores: Array, last_scores: Array | None, links: Links, graph: Graph, real: Array
) -> Occupancy:
    """Forward-backward.

    Args:
        scores: [T, B, N] log-scores of the nodes, without NaN and +inf; T > 0.
        last_scores: [B, J, N] those of the labels of `graph.last` in each sequence's last frame,
            or None where `graph.last` is.
        links: log-scores of the arcs, starts and ends.
        graph: the node graphs.
        real: [T, B] bool, the frames that count.

    Returns:
        The occupancies.
    """
    return _counts(SCALED, scores, last_scores, links, graph, real)


@occupancy.defjvp
def _occupancy_jvp(primals: tuple, tangents: tuple) -> tuple[Occupancy, Occupancy]:
    scores, last_scores, links, graph, real = primals

    def plain(scores: Array, last_scores: Array | None, links: Links) -> Occupancy:
        return _counts(LOG, scores, last_scores, links, graph, real)

    _, change = jax.jvp(plain, (scores, last_scores, links), tangents[:3])
    return occupancy(*primals), change
