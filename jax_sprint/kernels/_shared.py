"""The log-sum over all paths of one automaton that a whole batch shares, and its derivatives.

The table at the top of `jax_sprint.kernels._partition` holds here too; a weight of NaN concerns all
sequences, since they share it.  Derivatives are formed as they are there: the first from expected
counts, as the tangent rule of a `custom_jvp`, the second from the same recursions in the log
semiring.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_sprint.automata import Automata
from jax_sprint.automata._sliced import Sliced
from jax_sprint.kernels._scores import holds_bad
from jax_sprint.kernels._shared_counts import Counts, counts
from jax_sprint.kernels._shared_recursion import Scores, log_total
from jax_sprint.kernels._shared_sums import LOGS, PAIRS

__all__ = ["SharedProblem", "prepare_shared", "shared_partition", "shared_solve"]

Array = Any


class SharedProblem(NamedTuple):
    """What `shared_partition` takes, behind the log-posteriors."""

    am_scale: Array  # scalar, of the dtype to compute in, as all floats below
    bias: Array  # [V], added to every frame's score of a label
    arcs: Array  # [E] log-scores of the edges
    starts: Array  # [A] log-scores of the start states, -inf on padding
    ends: Array  # [Z] likewise
    tables: Sliced
    lengths: Array  # [B] int32, in 0..T
    broken: Array  # [B] bool, sequences whose loss is NaN whatever else holds


def prepare_shared(
    num_frames: int,
    num_labels: int,
    dtype: Any,
    seq_lengths: Array,
    automata: Automata,
    am_scale: Array,
    tdp_scale: Array,
    log_prior: Array | None,
    prior_scale: Array,
) -> SharedProblem:
    """Translates the arguments of `full_sum_loss`, after `check`; as `prepare` does for batches."""
    tdp_scale = jnp.asarray(tdp_scale, dtype)

    def cost(weights: Array, used: Array, absent: float) -> Array:
        weights = jnp.asarray(weights).astype(dtype)
        score = jnp.where(weights == jnp.inf, -jnp.inf, -tdp_scale * weights)
        return jnp.where(used, score, absent)

    bias = jnp.zeros(max(num_labels, 1), dtype)
    if log_prior is not None and num_labels:
        bias = jnp.asarray(log_prior).astype(dtype) * -jnp.asarray(prior_scale, dtype)
    tables = jax.tree_util.tree_map(jnp.asarray, automata.sliced)
    lengths = seq_lengths.astype(jnp.int32)
    broken = (lengths < 0) | (lengths > num_frames)
    return SharedProblem(
        am_scale=jnp.asarray(am_scale, dtype),
        bias=bias,
        arcs=cost(automata.weights, jnp.asarray(automata.edge_position) >= 0, 0.0),
        starts=cost(automata.start_weights, jnp.asarray(automata.start_states) >= 0, -jnp.inf),
        ends=cost(automata.end_weights, jnp.asarray(automata.end_states) >= 0, -jnp.inf),
        tables=tables,
        lengths=jnp.clip(lengths, 0, num_frames),
        broken=broken | jnp.any(tables.slot_label >= num_labels),
    )


def clean(log_posteriors: Array, am_scale: Array, problem: SharedProblem) -> tuple[Scores, Array]:
    """Scores without NaN and +inf, and whether a sequence uses such a one [B].

    `log_posteriors` is [T, B, V].
    """
    frames = log_posteriors
    if frames.shape[2] == 0:
        frames = jnp.pad(frames, ((0, 0), (0, 0), (0, 1)))
    wrong = holds_bad(frames)
    time = jax.lax.broadcasted_iota(jnp.int32, wrong.shape, 0)
    bad = jnp.any((time < problem.lengths[None]) & wrong, axis=0)
    used = problem.tables.slot_label
    bias = problem.bias.at[jnp.maximum(used, 0)].get(mode="clip")
    bad = bad | ~(jnp.abs(am_scale) < jnp.inf) | jnp.any((used >= 0) & ~(bias < jnp.inf))
    cleaned = []
    for scores in (problem.arcs, problem.starts, problem.ends):
        wrong = ~(scores < jnp.inf)
        bad = bad | jnp.any(wrong)
        cleaned.append(jnp.where(wrong, jnp.zeros_like(scores), scores))
    return Scores(frames, am_scale, problem.bias, *cleaned), bad | problem.broken


def _loss(total: Array, bad: Array) -> Array:
    return jnp.where(bad, jnp.nan, -total)


class _Wanted(NamedTuple):
    """What to make of the recursions: see `counts`."""

    arcs: bool
    marks: bool
    dtype: Any
    block: int | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _occupancy(wanted: _Wanted, scores: Scores, tables: Sliced, lengths: Array) -> Counts:
    return counts(PAIRS, scores, tables, lengths, **wanted._asdict())


def _nonzero(tangent: Any) -> bool:
    return not isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _occupancy_jvp(wanted: _Wanted, primals: tuple, tangents: tuple) -> tuple[Counts, Counts]:
    scores, tables, lengths = primals
    moving = [name for name in Scores._fields if _nonzero(getattr(tangents[0], name))]

    def plain(*values: Array) -> Counts:
        moved = scores._replace(**dict(zip(moving, values, strict=True)))
        return counts(LOGS, moved, tables, lengths, **wanted._replace(block=None)._asdict())

    along = tuple(getattr(tangents[0], name) for name in moving)
    _, change = jax.jvp(plain, tuple(getattr(scores, name) for name in moving), along)
    return _occupancy(wanted, *primals), change


_occupancy.defjvp(_occupancy_jvp, symbolic_zeros=True)


def shared_solve(
    time_axis: int,
    log_posteriors: Array,
    problem: SharedProblem,
    *,
    arcs: bool = False,
    marks: bool = False,
    dtype: Any = None,
    checkpoint: bool = False,
) -> tuple[Array, Counts]:
    """Loss [B] and expected counts, the labels' as `time_axis` says; see `shared_partition`.

    The counts of invalid sequences are 0.  `dtype` is that of the labels' posteriors; with
    `checkpoint` the recursion is kept at every sqrt(T)-th frame only, and computed twice.
    """
    frames = jnp.swapaxes(log_posteriors, 0, 1) if time_axis else log_posteriors
    scores, bad = clean(frames, problem.am_scale, problem)
    dtype = problem.bias.dtype if dtype is None else dtype
    block = math.isqrt(frames.shape[0]) if checkpoint else None
    wanted = _Wanted(arcs, marks, dtype, block)
    found = _occupancy(wanted, scores, problem.tables, problem.lengths)
    loss = _loss(found.log_total, bad)
    valid = jnp.isfinite(loss)
    labels = jnp.where(valid[None, :, None], found.labels, jnp.zeros((), dtype))
    labels = labels[:, :, : log_posteriors.shape[2]]
    rest = {
        name: jnp.where(valid[:, None], getattr(found, name), 0.0)
        for name in ("arcs", "starts", "ends")
        if getattr(found, name) is not None
    }
    labels = jnp.swapaxes(labels, 0, 1) if time_axis else labels
    return loss, found._replace(labels=labels, **rest)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def shared_partition(
    time_axis: int, checkpoint: bool, log_posteriors: Array, problem: SharedProblem
) -> Array:
    """Minus the log-sum over all paths.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        checkpoint: see `shared_solve`.
        log_posteriors: float, as `time_axis` says; T > 0.
        problem: from `prepare_shared`.

    Returns:
        Loss [B]; a sequence is valid where it is finite.
    """
    frames = jnp.swapaxes(log_posteriors, 0, 1) if time_axis else log_posteriors
    scores, bad = clean(frames, problem.am_scale, problem)
    return _loss(log_total(PAIRS, scores, problem.tables, problem.lengths), bad)


def _partition_jvp(
    time_axis: int, checkpoint: bool, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    log_posteriors, problem = primals
    d_log_posteriors, d_problem = tangents
    loss, found = shared_solve(
        time_axis,
        log_posteriors,
        problem,
        arcs=_nonzero(d_problem.arcs),
        marks=_nonzero(d_problem.starts) or _nonzero(d_problem.ends),
        dtype=log_posteriors.dtype,
        checkpoint=checkpoint,
    )
    labels, dtype = found.labels, loss.dtype
    change = jnp.zeros_like(loss)
    if _nonzero(d_log_posteriors):
        share = (labels.astype(dtype) * problem.am_scale).astype(log_posteriors.dtype)
        product = share.astype(dtype) * d_log_posteriors.astype(dtype)
        change = change - jnp.sum(product, axis=(time_axis, 2))
    if _nonzero(d_problem.am_scale):
        share = jnp.where(labels > 0, labels * jnp.where(labels > 0, log_posteriors, 0.0), 0.0)
        change = change - jnp.sum(share.astype(dtype), axis=(time_axis, 2)) * d_problem.am_scale
    if _nonzero(d_problem.bias) and labels.shape[2]:
        share = jnp.sum(labels.astype(dtype), axis=time_axis) * d_problem.bias[None]
        change = change - jnp.sum(share, axis=1)
    for name in ("arcs", "starts", "ends"):
        tangent = getattr(d_problem, name)
        if _nonzero(tangent):
            change = change - jnp.sum(getattr(found, name) * tangent[None], axis=1)
    # A select, not a product: an invalid sequence's cotangent may be inf or NaN.
    return loss, jnp.where(jnp.isfinite(loss), change, 0.0)


shared_partition.defjvp(_partition_jvp, symbolic_zeros=True)
