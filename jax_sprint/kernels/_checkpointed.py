"""The loss in memory of O(sqrt(T) * N): the recursions are kept at block boundaries only.

The forward recursion leaves its values behind every sqrt(T) frames.  The backward one then goes
from block to block: it computes the block's forward values again, its own, the expected counts, and
reduces these to what the derivatives need.  That costs a second forward recursion, and no array of
all frames by nodes (A. Griewank, Optimization Methods and Software 1, 1992, with one level).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._closing import (
    Closing,
    close,
    counting,
    ending,
    finished,
    starting,
    total_of,
)
from jax_sprint.kernels._graph import entering, leaving
from jax_sprint.kernels._labels import by_slot
from jax_sprint.kernels._occupancy import visits
from jax_sprint.kernels._partition import Summary, change_of, loss_of, summary
from jax_sprint.kernels._scores import (
    FrameParts,
    Problem,
    bad_values,
    clean,
    frame_scores,
    last_scores,
)
from jax_sprint.kernels._semirings import SCALED, Value
from jax_sprint.kernels._steps import BLOCK, steps, there_and_back

__all__ = ["checkpointed_partition"]

Array = Any


class _Frames(NamedTuple):
    """The frames in blocks; R blocks of C frames."""

    log_posteriors: Array  # [R, C, B, V] or [R, B, C, V]
    parts: FrameParts  # of [R, C, B]
    first: Array  # [R] int32, number of the first frame


def _blocks(time_axis: int, log_posteriors: Array, problem: Problem) -> _Frames:
    frames = log_posteriors.shape[time_axis]
    size = -(-max(math.isqrt(frames), 1) // BLOCK) * BLOCK
    count = -(-frames // size)
    more = count * size - frames

    def cut(array: Array, axis: int) -> Array:
        pad = [(0, 0)] * array.ndim
        pad[axis] = (0, more)
        shape = (*array.shape[:axis], count, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, pad).reshape(shape), axis, 0)

    return _Frames(
        cut(log_posteriors, time_axis),
        FrameParts(
            *(
                part if part is None else cut(part, 0)
                for part in (problem.real, problem.shift, problem.offset)
            )
        ),
        jnp.arange(count, dtype=jnp.int32) * size,
    )


def _row(time_axis: int, log_posteriors: Array, problem: Problem, frame: Array) -> Array:
    """Scores [B, N] of the nodes in the frames [B], as `close` asks for them."""
    frame = jnp.maximum(frame, 0)
    shape = (1, frame.shape[0]) if time_axis == 0 else (frame.shape[0], 1)
    at = jnp.broadcast_to(frame.reshape(*shape, 1), (*shape, log_posteriors.shape[2]))
    row = jnp.take_along_axis(log_posteriors, at, axis=time_axis, mode="promise_in_bounds")

    def there(part: Array | None) -> Array | None:
        if part is None:
            return None
        return jnp.take_along_axis(part, frame[None], axis=0, mode="promise_in_bounds")

    parts = FrameParts(*map(there, (problem.real, problem.shift, problem.offset)))
    return frame_scores(time_axis, row, parts, problem)[0]


def _forward(
    time_axis: int, log_posteriors: Array, problem: Problem
) -> tuple[Array, Closing, Value, Value, Value, _Frames]:
    """Bad sequences, the last frames, the total, the last alpha, and that before each block."""
    links, bad = clean(problem.links)
    bad = bad | bad_values(time_axis, log_posteriors, problem) | problem.broken
    graph, real = problem.graph, problem.real
    closing = close(
        SCALED,
        partial(_row, time_axis, log_posteriors, problem),
        last_scores(time_axis, log_posteriors, problem),
        links,
        graph,
        real,
    )
    ahead = entering(SCALED, graph, links.arcs)
    frames = _blocks(time_axis, log_posteriors, problem)

    def block(alpha: Value, part: _Frames) -> tuple[Value, Value]:
        scores = frame_scores(time_axis, part.log_posteriors, part.parts, problem)
        counts = counting(part.parts.real, closing.last - part.first)
        after, _ = steps(SCALED, ahead, True, alpha, counts, SCALED.value(scores), keep=False)
        return after, alpha

    alpha, before = lax.scan(block, SCALED.tidy(closing.start), frames)
    return bad, closing, total_of(SCALED, alpha, closing), alpha, before, frames


def _summary(
    time_axis: int, with_arcs: bool, log_posteriors: Array, problem: Problem
) -> tuple[Array, Summary]:
    bad, closing, whole, alpha, before, frames = _forward(time_axis, log_posteriors, problem)
    links, _ = clean(problem.links)
    graph = problem.graph
    loss = loss_of(SCALED.log(whole), bad)
    valid = jnp.isfinite(loss)
    ahead, back = entering(SCALED, graph, links.arcs), leaving(SCALED, graph, links.arcs)
    endings = ending(SCALED, alpha, closing, links, graph, whole)

    def block(carry: tuple, part: tuple[_Frames, Value]) -> tuple[tuple, Array]:
        beta, arc, at_end = carry
        frames, before = part
        scores = frame_scores(time_axis, frames.log_posteriors, frames.parts, problem)
        emission = SCALED.value(scores)
        real, first = frames.parts.real, frames.first
        counts = counting(real, closing.last - first)
        _, alphas, beta, betas = there_and_back(
            SCALED, (ahead, back), (before, beta), counts, emission
        )
        found = visits(
            SCALED,
            alphas,
            before,
            betas,
            scores,
            real,
            first,
            closing,
            endings,
            links,
            graph,
            whole,
        )
        share = jnp.where(valid[None, :, None], found.share, 0.0)
        last = endings.last
        if last is not None:
            last = jnp.where(valid[:, None, None], last, 0.0)
        slots = by_slot(share, last, problem, time_axis, first)
        if with_arcs:
            arc = arc + found.arc
        return (beta, arc, at_end + found.at_end), slots

    zero = jnp.where(valid, jnp.zeros_like(loss), 0.0)[:, None]
    none = zero[:, :, None] + jnp.zeros(graph.in_arc.shape, zero.dtype)
    start_of = (SCALED.tidy(closing.before), none, zero)
    (beta, arc, at_end), slots = lax.scan(block, start_of, (frames, before), reverse=True)
    start = starting(SCALED, closing, beta, whole)
    end, last = finished(closing, endings, start, at_end)

    def kept(array: Array) -> Array:
        return jnp.where(valid.reshape((-1,) + (1,) * (array.ndim - 1)), array, 0.0)

    slots = jnp.moveaxis(slots, 0, time_axis)
    shape = [slots.shape[0], slots.shape[2], slots.shape[3]]
    shape[time_axis] = slots.shape[time_axis] * slots.shape[time_axis + 1]
    slots = lax.slice_in_dim(
        slots.reshape(shape), 0, log_posteriors.shape[time_axis], axis=time_axis
    )
    return loss, Summary(
        slots,
        kept(arc),
        kept(start),
        kept(end),
        None if last is None else kept(last),
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiable_summary(
    time_axis: int, with_arcs: bool, log_posteriors: Array, problem: Problem
) -> tuple[Array, Summary]:
    return _summary(time_axis, with_arcs, log_posteriors, problem)


@_differentiable_summary.defjvp
def _summary_jvp(time_axis: int, with_arcs: bool, primals: tuple, tangents: tuple) -> tuple:
    """Second derivatives keep all frames."""
    del with_arcs
    return jax.jvp(partial(summary, time_axis), primals, tangents)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def checkpointed_partition(time_axis: int, log_posteriors: Array, problem: Problem) -> Array:
    """`partition` in less memory; T must be known."""
    bad, _, whole, *_ = _forward(time_axis, log_posteriors, problem)
    return loss_of(SCALED.log(whole), bad)


def _partition_jvp(time_axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    symbolic_zero = jax.custom_derivatives.SymbolicZero
    with_arcs = not isinstance(tangents[1].links.arcs, symbolic_zero)
    loss, found = _differentiable_summary(time_axis, with_arcs, *primals)
    return loss, change_of(loss, found, time_axis, primals, tangents)


checkpointed_partition.defjvp(_partition_jvp, symbolic_zeros=True)
