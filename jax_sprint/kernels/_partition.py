"""The log-sum over all paths, its derivatives, and what padding and bad values do to it.

    case (of one sequence)                              loss    valid   gradient
    -----------------------------------------------------------------------------------
    some path has a finite score                        finite  True    exact
    no path: the graph allows none of that length,
      or -inf scores or +inf weights forbid all         +inf    False   exactly 0
    length 0, a start state is an end state             their   True    exact: 0, but for the
      (without costs of starting and ending: 0)         costs           starts and ends
    length 0 otherwise; an automaton without edges      +inf    False   exactly 0
    NaN or +inf in a valid frame, at any label          NaN     False   exactly 0
    NaN in a scale, a prior or a weight in use          NaN     False   exactly 0
    traced length < 0 or > T, traced emission >= L      NaN     False   exactly 0
    (the same, concrete)                                ValueError
    anything at all in padding frames                   ignored         exactly 0 there

`full_sum_loss(infeasible=...)` may turn the +inf into 0 or an error, never what is valid or the
gradient.  A sequence never touches another one.  Scores below about -3e6 nats per frame, and paths
below -9e7 in all, count as impossible.

First derivatives are formed by hand from the occupancies (forward-backward); they are the tangent
rule of a `custom_jvp`, linear in the tangents, so JAX turns them round for reverse mode.  They hold
the posteriors of the labels that a graph has, and nothing of the size [T, B, V]: see `weighted`.
Second derivatives come from the same recursions in the log semiring.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_sprint.kernels._closing import close
from jax_sprint.kernels._graph import apart, at_frame, at_index
from jax_sprint.kernels._labels import at_slots, by_slot, weighted
from jax_sprint.kernels._occupancy import Occupancy, occupancy
from jax_sprint.kernels._recursion import forward
from jax_sprint.kernels._scores import Problem, clean, node_scores
from jax_sprint.kernels._semirings import SCALED

__all__ = ["Summary", "change_of", "loss_of", "only", "partition", "solve", "summary"]

Array = Any


class Summary(NamedTuple):
    """What the first derivatives need, 0 for invalid sequences; see `Occupancy`."""

    slots: Array  # [T, B, U] or [B, T, U], probability of each slot's label
    arc: Array  # [B, K, N]
    start: Array  # [B, N]
    end: Array  # [B, N]
    last: Array | None  # [B, J, N]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def partition(time_axis: int, log_posteriors: Array, problem: Problem) -> Array:
    """Minus the log-sum over all paths, as in the table above.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        log_posteriors: float, as `time_axis` says; T > 0.
        problem: the rest.

    Returns:
        Loss [B]; a sequence is valid where it is finite.
    """
    scores = node_scores(time_axis, log_posteriors, problem)
    links, bad = clean(problem.links)
    graph, real = problem.graph, problem.real
    closing = close(SCALED, partial(at_frame, scores.node), scores.last, links, graph, real)
    whole = forward(SCALED, scores.node, links, graph, real, closing)
    return loss_of(SCALED.log(whole), scores.bad | bad | problem.broken)


def loss_of(log_total: Array, bad: Array) -> Array:
    """The loss [B]."""
    return jnp.where(bad, jnp.nan, -log_total)


def solve(time_axis: int, log_posteriors: Array, problem: Problem) -> tuple[Array, Occupancy]:
    """Loss [B] and the occupancies of valid sequences; see `partition`."""
    scores = node_scores(time_axis, log_posteriors, problem)
    links, bad = clean(problem.links)
    counts = occupancy(scores.node, scores.last, links, problem.graph, problem.real)
    loss = loss_of(counts.log_total, scores.bad | bad | problem.broken)
    return loss, only(counts, apart(jnp.isfinite(loss)))


def only(counts: Occupancy, valid: Array) -> Occupancy:
    """The occupancies of valid sequences, 0 for the others."""

    def at(array: Array | None, axis: int) -> Array | None:
        if array is None:
            return None
        shape = [1] * array.ndim
        shape[axis] = valid.shape[0]
        return jnp.where(valid.reshape(shape), array, 0.0)

    return counts._replace(
        node=at(counts.node, 1),
        arc=at(counts.arc, 0),
        start=at(counts.start, 0),
        end=at(counts.end, 0),
        last=at(counts.last, 0),
        shares=counts.shares._replace(
            node=at(counts.shares.node, 1), last=at(counts.shares.last, 0)
        ),
    )


def summary(time_axis: int, log_posteriors: Array, problem: Problem) -> tuple[Array, Summary]:
    """Loss [B], and what its first derivatives need; see `partition`."""
    loss, counts = solve(time_axis, log_posteriors, problem)
    slots = by_slot(*counts.shares, problem, time_axis)
    return loss, Summary(slots, counts.arc, counts.start, counts.end, counts.last)


def _nonzero(tangent: Any) -> bool:
    return not isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _picked(tangent: Array, index: Array) -> Array:
    """Tangents [B, E] at `index` [B, ...], 0 where that is negative."""
    return jnp.where(index >= 0, at_index(tangent, index), 0.0)


def change_of(
    loss: Array,
    found: Summary,
    time_axis: int,
    primals: tuple[Array, Problem],
    tangents: tuple[Any, Problem],
) -> Array:
    """The derivative of the loss [B] in the direction of `tangents` (symbolic zeros allowed)."""
    log_posteriors, problem = primals
    d_log_posteriors, d_problem = tangents
    graph, last = problem.graph, problem.graph.last
    change = jnp.zeros_like(loss)
    if _nonzero(d_log_posteriors):
        posteriors = (found.slots * problem.am_scale).astype(log_posteriors.dtype)
        posteriors = posteriors.astype(loss.dtype)
        product = weighted(posteriors, d_log_posteriors, problem, time_axis)
        change = change - jnp.sum(product, axis=(time_axis, 2))
    if _nonzero(d_problem.am_scale):
        raw = at_slots(log_posteriors, problem, time_axis).astype(loss.dtype)
        if problem.shift is not None:
            raw = raw - jnp.expand_dims(problem.shift if time_axis == 0 else problem.shift.T, 2)
        share = jnp.where(found.slots > 0, raw, 0.0) * found.slots
        change = change - jnp.sum(share, axis=(time_axis, 2)) * d_problem.am_scale
    if _nonzero(d_problem.bias):
        share = jnp.sum(found.slots, axis=time_axis) * d_problem.bias
        change = change - jnp.sum(share, axis=1)
    offset = d_problem.offset
    if offset is not None and _nonzero(offset):
        change = change - jnp.sum(jnp.where(problem.real, offset, 0.0), axis=0)
    arcs, starts, ends = d_problem.links
    if _nonzero(arcs):
        change = change - jnp.sum(found.arc * _picked(arcs, graph.in_arc), axis=(1, 2))
        if last is not None:
            change = change - jnp.sum(found.last * _picked(arcs, last.arc), axis=(1, 2))
    if _nonzero(starts):
        change = change - jnp.sum(found.start * _picked(starts, graph.start), axis=1)
    if _nonzero(ends):
        change = change - jnp.sum(found.end * _picked(ends, graph.end), axis=1)
        if last is not None:
            into = jnp.where(last.arc >= 0, last.end, -1)
            change = change - jnp.sum(found.last * _picked(ends, into), axis=(1, 2))
    # A select, not a product: an invalid sequence's cotangent may be inf or NaN.
    return jnp.where(jnp.isfinite(loss), change, 0.0)


def _partition_jvp(time_axis: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    loss, found = summary(time_axis, *primals)
    return loss, change_of(loss, found, time_axis, primals, tangents)


partition.defjvp(_partition_jvp, symbolic_zeros=True)
