"""Expected counts under the distribution over paths, from the two recursions."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._closing import (
    Closing,
    Ending,
    close,
    ending,
    finished,
    normalizer,
    starting,
)
from jax_sprint.kernels._graph import Graph, Links, at_frame, nothing_but
from jax_sprint.kernels._recursion import arc_flows, sweep
from jax_sprint.kernels._semirings import LOG, SCALED, Semiring, Value

__all__ = ["Occupancy", "Shares", "Visits", "occupancy", "visits"]

Array = Any


class Shares(NamedTuple):
    """The same of each frame, up to a factor: what rounding its nodes share is still in it.

    Who sums them up may as well divide afterwards, when they are fewer.
    """

    node: Array  # [T, B, N]
    last: Array | None  # [B, J, N], in the last frame


class Occupancy(NamedTuple):
    """Expected counts; all are 0 in a sequence without paths."""

    log_total: Array  # [B] log-sum over all paths, -inf where there is none
    node: Array  # [T, B, N] probability that the path is in the node at that frame
    arc: Array  # [B, K, N] expected number of times that the path takes the arc of an in-slot
    start: Array  # [B, N] probability that the path starts in the node
    end: Array  # [B, N] probability that the path ends in the node
    last: Array | None  # [B, J, N] probability that the path takes the arc of `Graph.last`
    shares: Shares


class Visits(NamedTuple):
    """Expected counts of some frames."""

    node: Array  # [C, B, N]
    share: Array  # [C, B, N], see `Shares`
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
    scale = normalizer(node, at_last, endings)

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
    return Visits(node * scale, node, arc, jnp.sum(jnp.where(at_last, scale, 0.0), axis=0))


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
    found = visits(
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
    end, last = finished(closing, endings, start, found.at_end)
    shares = Shares(found.share, endings.last)
    return Occupancy(semiring.log(whole), found.node, found.arc, start, end, last, shares)


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
