"""`fast_baum_welch`: the recursion under the names and layouts of RETURNN's operation.

Its edges may be traced, so that nothing can be packed on the host: the recursion walks over the
edge list and sums by state with segment operations.  Where the edges are concrete, `Automata` and
`forward_backward` do the same faster.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sprint.kernels._scores import holds_bad
from jax_sprint.kernels._semirings import FLOOR, SCALED, Value, power_of_two

__all__ = ["fast_baum_welch"]

Array = Any


def _sum_by(terms: Value, target: Array, size: int) -> Value:
    """Sums scaled values [E] by `target` [E]: [size]."""
    mantissa, exponent = terms
    exponent = jnp.where(mantissa == 0, FLOOR, exponent)
    top = jnp.full((size,), FLOOR, jnp.int32).at[target].max(exponent, mode="drop")
    scale = power_of_two(exponent - top[target], mantissa.dtype)
    total = jnp.zeros((size,), mantissa.dtype).at[target].add(mantissa * scale, mode="drop")
    return SCALED.tidy((total, top))


@partial(jax.jit, static_argnames="n_states")
def _run(
    am_scores: Array,
    seq_mask: Array,
    edges: Array,
    weights: Array,
    start_end_states: Array,
    *,
    n_states: int,
) -> tuple[Array, Array]:
    _, batch, num_labels = am_scores.shape
    dtype = jnp.float64 if am_scores.dtype == jnp.float64 else jnp.float32
    real = seq_mask != 0
    source, target, label, sequence = (row.astype(jnp.int32) for row in edges)
    start, end = (row.astype(jnp.int32) for row in start_end_states)
    weights = weights.astype(dtype)

    # A dead edge may hold anything; a live one that points nowhere breaks its sequence.
    live = ~(weights == jnp.inf)
    inside = (source >= 0) & (source < n_states) & (target >= 0) & (target < n_states)
    inside = inside & (label >= 0) & (label < num_labels) & (sequence >= 0) & (sequence < batch)
    wrong = live & ~(inside & (weights > -jnp.inf))
    sequence = jnp.clip(sequence, 0, max(batch - 1, 0))
    broken = jnp.zeros((batch,), jnp.int32).at[sequence].max(wrong.astype(jnp.int32)) > 0
    broken = broken | (start < 0) | (start >= n_states) | (end < 0) | (end >= n_states)
    label = jnp.clip(label, 0, max(num_labels - 1, 0))
    live = live & inside
    source, target = (jnp.where(live, state, n_states) for state in (source, target))
    size = n_states + 1  # the last state takes in the dead edges
    arcs = SCALED.value(jnp.where(live & (weights > -jnp.inf), -weights, -jnp.inf))
    column = lax.broadcasted_iota(jnp.int32, (size,), 0)

    def at(states: Array) -> Array:
        return jnp.zeros((size,), bool).at[states].set(True, mode="drop")

    owner = jnp.zeros((size,), jnp.int32).at[target].max(sequence, mode="drop")
    order = lax.broadcasted_iota(jnp.int32, (batch,), 0)
    owner = owner.at[start].set(order, mode="drop").at[end].set(order, mode="drop")
    one = SCALED.value(jnp.where(at(start) & (column < n_states), jnp.zeros((), dtype), -jnp.inf))

    def emissions(frame: Array, counts: Array) -> tuple[Value, Array]:
        scores = -frame[sequence, label].astype(dtype)
        bad = counts[sequence] & live & ~(scores < jnp.inf)
        return SCALED.value(jnp.where(bad, -jnp.inf, scores)), bad

    def step(alpha: Value, frame: tuple[Array, Array]) -> tuple[Value, Value]:
        scores, counts = frame
        score, _ = emissions(scores, counts)
        flow = SCALED.times(SCALED.times(tuple(a[source] for a in alpha), arcs), score)
        after = _sum_by(SCALED.tidy(flow), target, size)
        keep = counts[owner]
        after = tuple(jnp.where(keep, new, old) for new, old in zip(after, alpha, strict=True))
        return after, alpha

    last, alphas = lax.scan(step, one, (am_scores, real))
    whole = tuple(part[end] for part in last)
    bad = jnp.any(real & holds_bad(-am_scores), axis=0) | broken
    later = jnp.cumsum(real.astype(jnp.int32)[::-1], axis=0)[::-1]
    is_last = real & (later == 1)
    final = at(end)
    done = SCALED.value(jnp.where(final, jnp.zeros((), dtype), -jnp.inf))

    def back(beta: Value, frame: tuple) -> tuple[Value, Array]:
        scores, counts, ends, alpha = frame
        here = tuple(jnp.where(ends[owner], d, b) for d, b in zip(done, beta, strict=True))
        score, _ = emissions(scores, counts)
        after = SCALED.tidy(SCALED.times(SCALED.times(arcs, score), tuple(b[target] for b in here)))
        flow = SCALED.tidy(SCALED.times(tuple(a[source] for a in alpha), after))
        share = SCALED.ratio(flow, tuple(part[sequence] for part in whole))
        share = jnp.where(counts[sequence] & live, share, 0.0)
        row = jnp.zeros((batch, num_labels), dtype).at[sequence, label].add(share)
        before = _sum_by(after, source, size)
        keep = counts[owner]
        beta = tuple(jnp.where(keep, new, old) for new, old in zip(before, beta, strict=True))
        return beta, row

    none = SCALED.value(jnp.full((size,), -jnp.inf, dtype))
    _, rows = lax.scan(back, none, (am_scores, real, is_last, alphas), reverse=True)
    mass = jnp.sum(rows, axis=2, keepdims=True)
    rows = rows / jnp.where(mass > 0, mass, 1.0)
    some = rows > 0
    fwdbwd = jnp.where(some, -jnp.log(jnp.where(some, rows, 1.0)), jnp.inf)
    fwdbwd = jnp.where(bad[None, :, None], jnp.nan, fwdbwd)
    fwdbwd = jnp.where(real[:, :, None], fwdbwd, jnp.inf)
    score = jnp.where(bad, jnp.nan, -SCALED.log(whole))
    return fwdbwd, jnp.where(real, score[None], 0.0)


def fast_baum_welch(
    *,
    am_scores: Array,
    seq_mask: Array,
    edges: Array,
    weights: Array,
    start_end_states: Array,
    n_states: int | None = None,
) -> tuple[Array, Array]:
    """Baum-Welch over a batch of automata, with RETURNN's argument names and layouts.

    Everything may be traced but `n_states`.  The results are constants to differentiation, as
    RETURNN's are: d loss / d log-posteriors is -exp(-fwdbwd), or use `full_sum_loss`.

    Args:
        am_scores: [T, B, L] float, negative-log scores.
        seq_mask: [T, B], nonzero marks the valid frames.
        edges: [4, E] integer: from, to, emission, sequence; states numbered across the batch.
        weights: [E] float, costs; +inf marks a dead edge, whose other entries do not matter.
        start_end_states: [2, B] integer.
        n_states: number of states of the whole batch, a Python int.

    Returns:
        `fwdbwd` [T, B, L], -log of the probability of each label given the automaton, +inf where
        that is zero and on padding; `obs_scores` [T, B], -log of the sum over all paths, the same
        in all valid frames of a sequence, 0 on padding.  float32, or float64 for float64 input.
        A sequence without any path has both +inf (RETURNN: `obs_scores` 0); one with NaN in a
        valid frame, or a live edge out of range, has NaN.

    Raises:
        ValueError: wrong rank, dtype or shape, `n_states` missing, or concrete edges out of range.
    """
    if n_states is None or isinstance(n_states, jax.core.Tracer):
        raise ValueError(
            "n_states must be a Python int, the number of states of the whole batch: array sizes "
            "depend on it"
        )
    n_states = int(n_states)
    shape = np.shape(am_scores)
    if len(shape) != 3 or not jnp.issubdtype(jnp.result_type(am_scores), jnp.floating):
        raise ValueError(
            f"am_scores must be a float array [T, B, L], got {jnp.result_type(am_scores)} of shape "
            f"{shape}"
        )
    if np.shape(seq_mask) != shape[:2]:
        raise ValueError(f"seq_mask must have shape {shape[:2]}, [T, B], got {np.shape(seq_mask)}")
    count = np.shape(edges)[1] if np.ndim(edges) == 2 else -1
    for name, value, wanted, kind in (
        ("edges", edges, (4, count), jnp.integer),
        ("weights", weights, (count,), jnp.floating),
        ("start_end_states", start_end_states, (2, shape[1]), jnp.integer),
    ):
        found = np.shape(value)
        if found != wanted or not jnp.issubdtype(jnp.result_type(value), kind):
            raise ValueError(
                f"{name} must be {'integer' if kind is jnp.integer else 'float'} of shape "
                f"{list(wanted) if count >= 0 else '[4, E]'}, got {jnp.result_type(value)} of "
                f"shape {found}"
            )
    _check_values(edges, weights, start_end_states, n_states, shape)
    arguments = (am_scores, seq_mask, edges, weights, start_end_states)
    return _run(*(lax.stop_gradient(jnp.asarray(value)) for value in arguments), n_states=n_states)


def _check_values(
    edges: Array, weights: Array, start_end_states: Array, n_states: int, shape: tuple[int, ...]
) -> None:
    """Checks the values that are concrete."""
    traced = jax.core.Tracer
    if not isinstance(start_end_states, traced):
        states = np.asarray(start_end_states).astype(np.int64)
        if states.max(initial=0) >= n_states or states.min(initial=0) < 0:
            raise ValueError(f"start_end_states holds {states.max()}, but n_states is {n_states}")
    if isinstance(edges, traced) or isinstance(weights, traced):
        return
    rows = np.asarray(edges).astype(np.int64)
    live = np.asarray(weights) != np.inf
    limits = (("from", n_states), ("to", n_states), ("emission", shape[2]), ("sequence", shape[1]))
    for row, (name, limit) in zip(rows, limits, strict=True):
        bad = live & ((row < 0) | (row >= limit))
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(
                f"edges[:, {at}] = {rows[:, at].tolist()} has a {name} index outside of "
                f"0..{limit - 1}"
            )
