"""Expected counts under the distribution over paths, from the two recursions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._recursion import (
    Graph,
    Links,
    arc_flows,
    close,
    collect,
    entering,
    nothing_but,
    sweep,
)
from jax_sprint.kernels._semirings import LOG, SCALED, Semiring, Value

__all__ = ["Occupancy", "occupancy"]

Array = Any


class Occupancy(NamedTuple):
    """Expected counts; all are 0 in a sequence without paths."""

    log_total: Array  # [B] log-sum over all paths, -inf where there is none
    node: Array  # [T, B, N] probability that the path is in the node at that frame
    arc: Array  # [B, K, N] expected number of times that the path takes the arc of an in-slot
    start: Array  # [B, N] probability that the path starts in the node
    end: Array  # [B, N] probability that the path ends in the node
    last: Array | None  # [B, J, N] probability that the path takes the arc of `Graph.last`


def _counts(
    semiring: Semiring,
    scores: Array,
    last_scores: Array | None,
    links: Links,
    graph: Graph,
    real: Array,
) -> Occupancy:
    closing = close(semiring, scores, last_scores, links, graph, real)
    whole, alphas, gammas, alpha, beta = sweep(semiring, scores, links, graph, real, closing)
    total = tuple(part[:, None] for part in whole)
    has_frames = closing.last >= 0
    frame = lax.broadcasted_iota(jnp.int32, (*real.shape, 1), 0)
    at_last = frame == closing.last[None, :, None]

    # Before any exp, not after: what is not counted may be anything, and 0 * inf is no gradient.
    counts = real[:, :, None] & (frame < closing.last[None, :, None])
    gammas = nothing_but(semiring, counts, gammas)
    inner = semiring.over(semiring.times(alphas, gammas), semiring.value(scores))
    inner = semiring.ratio(inner, tuple(part[None] for part in total))
    entered = collect(semiring, alpha, entering(semiring, graph, links.arcs))
    end = semiring.ratio(semiring.tidy(semiring.times(entered, closing.emitted)), total)
    node = jnp.where(at_last, end[None], inner)
    # Each frame's occupancies sum to one: this takes out what rounding the two recursions share.
    mass = jnp.sum(node, axis=2, keepdims=True)
    last = None
    if closing.arcs is not None:
        taken = semiring.times(tuple(part[:, None] for part in alpha), closing.arcs)
        last = semiring.ratio(semiring.tidy(taken), tuple(part[:, None] for part in total))
        mass = mass + jnp.where(at_last, jnp.sum(last, axis=(1, 2))[None, :, None], 0.0)
    scale = jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)
    node = node * scale
    at_end = jnp.sum(jnp.where(at_last, scale, 0.0), axis=0)
    if last is not None:
        last = last * at_end[:, :, None]

    empty = ~has_frames[:, None]
    onward = tuple(jnp.where(empty, e, b) for e, b in zip(closing.end, beta, strict=True))
    start = semiring.ratio(semiring.tidy(semiring.times(closing.start, onward)), total)
    mass = jnp.sum(start, axis=1, keepdims=True)
    start = start * jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)
    end = jnp.where(empty, start, end * at_end)

    before = tuple(
        jnp.concatenate([first[None], rest[:-1]])
        for first, rest in zip(closing.start, alphas, strict=True)
    )
    after = tuple(
        jnp.where(at_last, e[None], g) for e, g in zip(closing.emitted, gammas, strict=True)
    )

    def weigh(flow: Value) -> Array:
        return semiring.ratio(flow, tuple(part[None] for part in total)) * scale

    arc = arc_flows(semiring, before, after, links.arcs, graph, weigh)
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
