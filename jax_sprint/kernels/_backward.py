"""The backward recursion that leaves behind what is expected of each frame, and not itself.

Given the sum over all paths, the probabilities of a frame's nodes need that frame's alpha and beta
only.  So beta is never kept: the occupancies take the place of the scores, and the arcs' expected
counts are summed up on the way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._closing import Closing, Ending, counting, normalizer
from jax_sprint.kernels._graph import (
    Graph,
    Links,
    Side,
    collect,
    column,
    entering,
    leaving,
    nothing_but,
    per_sequence,
    sources,
)
from jax_sprint.kernels._semirings import SCALED, Value
from jax_sprint.kernels._steps import Place, each_frame, frame_of, frames_of

__all__ = ["Visits", "back"]

Array = Any


class Visits(NamedTuple):
    """Expected counts of some frames."""

    node: Array  # [C, B, N]
    arc: Array  # [B, K, N]
    at_end: Array  # [B, 1] what makes the last frame's probabilities sum to one; 0 elsewhere


class _Carry(NamedTuple):
    beta: Value  # of [B, N]
    entering: Value  # beta with the emission of the frame to come
    node: Array  # [C, B, N], scores of the frames to come, occupancies of those behind
    arc: Array | None  # [B, K, N]


def back(
    alphas: Value,
    before: Value,
    beta: Value,
    scores: Array,
    real: Array,
    first_frame: Array | int,
    closing: Closing,
    endings: Ending,
    links: Links,
    graph: Graph,
    whole: Value,
    with_arcs: bool,
) -> tuple[Value, Visits]:
    """Steps back through some frames.

    Args:
        alphas: of [C, B, N].
        before: of [B, N], alpha in the frame before the first.
        beta: of [B, N], that of the last frame that counts, before the sequence's last one.
        scores: [C, B, N] log-scores of the nodes; neither NaN nor +inf.
        real: [C, B] bool, the frames that count.
        first_frame: number of the first frame.
        closing: the last frame of each sequence.
        endings: how it is taken.
        links: scores of arcs, starts and ends.
        graph: the node graphs.
        whole: of [B], sum over all paths.
        with_arcs: whether to count the arcs; their counts are 0 otherwise.

    Returns:
        Beta before the first frame; and the expected counts.
    """
    counts = counting(real, closing.last - first_frame)
    frame = lax.broadcasted_iota(jnp.int32, real.shape, 0) + first_frame
    at_last = real & (frame == closing.last[None])
    ahead, side = entering(SCALED, graph, links.arcs), leaving(SCALED, graph, links.arcs)
    total = column(whole)
    zero = beta[0] * 0  # varies over every mesh axis over which any of the arguments does

    def entering_with(beta: Value, scores: Value, place: Array) -> Value:
        # Of one frame at a time: XLA would give half a block to another thread, which costs more.
        return SCALED.times(beta, SCALED.value(*frame_of(scores, place)))

    def enter(carry: _Carry, begin: Array, size: int, place: Array) -> tuple[_Carry, Value]:
        scores = frames_of((carry.node,), begin, size)
        beta = SCALED.tidy(carry.beta)
        return carry._replace(beta=beta, entering=entering_with(beta, scores, place)), scores

    def step(carry: _Carry, scores: Value, at: Place) -> _Carry:
        now, ends = (
            lax.dynamic_index_in_dim(flags, at.frame, 0, keepdims=False) & at.inside
            for flags in (counts, at_last)
        )
        alpha = frame_of(alphas, at.frame)
        inner = SCALED.ratio(SCALED.times(alpha, carry.beta), total)
        node = jnp.where(now[:, None], inner, jnp.where(ends[:, None], endings.node, 0.0))
        arc = carry.arc
        if arc is not None:
            earlier = per_sequence(
                jnp.broadcast_to(at.frame > 0, ends.shape),
                frame_of(alphas, jnp.maximum(at.frame - 1, 0)),
                before,
            )
            gamma = per_sequence(ends, closing.emitted, carry.entering)
            gamma = nothing_but(SCALED, (now | ends)[:, None], gamma)
            scale = normalizer(node, ends[:, None], endings)
            arc = arc + _flows(earlier, gamma, ahead, total, scale)
        after = per_sequence(now, collect(SCALED, carry.entering, side), carry.beta)
        return _Carry(
            after,
            entering_with(after, scores, at.next),
            lax.dynamic_update_index_in_dim(carry.node, node, at.frame, 0),
            arc,
        )

    arc = zero[:, None] + jnp.zeros(graph.in_arc.shape, zero.dtype)
    first = _Carry(beta, beta, scores + zero[None], arc if with_arcs else None)
    last = each_frame(real.shape[0], True, enter, step, first)
    scale = normalizer(last.node, at_last[:, :, None], endings)
    at_end = jnp.sum(jnp.where(at_last[:, :, None], scale, 0.0), axis=0)
    if last.arc is not None:
        arc = jnp.where(graph.in_arc >= 0, last.arc, 0.0)
    visits = Visits(last.node * scale, arc, at_end)
    return SCALED.tidy(last.beta), visits


def _flows(before: Value, after: Value, ahead: Side, total: Value, scale: Array) -> Array:
    """Probability [B, K, N] of each arc in a frame: source * weight * target."""
    flow = SCALED.times(sources(SCALED, before, ahead), ahead.weights)
    flow = SCALED.tidy(SCALED.times(flow, tuple(part[:, None] for part in after)))
    return SCALED.ratio(flow, column(total)) * scale[:, None]
