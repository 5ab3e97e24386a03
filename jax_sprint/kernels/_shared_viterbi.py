"""`viterbi` over one automaton that a whole batch shares.

The forward recursion is that of `jax_sprint.kernels._shared_recursion` in the semiring of maxima.
Which edge was the best is not kept: going back, only the edges into the state at hand are looked
at again, which is little beside the recursion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jax_sprint.automata._sliced import Sliced
from jax_sprint.kernels._graph import gather
from jax_sprint.kernels._semirings import Value
from jax_sprint.kernels._shared import SharedProblem, clean
from jax_sprint.kernels._shared_recursion import Scores, emission_if, forward, seeded, weighted
from jax_sprint.kernels._shared_sums import Kind

__all__ = ["shared_viterbi"]

Array = Any


def _add(high: Array, low: Array, score: Array) -> tuple[Array, Array]:
    """(high + low) + score as an unevaluated sum (Knuth's TwoSum); `high` may be -inf."""
    whole = high + score
    part = whole - high
    error = (high - (whole - part)) + (score - part)
    error = jnp.where(whole == -jnp.inf, 0.0, error) + low
    top = whole + error
    return top, jnp.where(top == -jnp.inf, 0.0, error - (top - whole))


class _Best:
    """Maxima of sums; a value is an unevaluated sum of two floats, so that a tie is a tie."""

    zero: tuple[float | int, ...] = (-jnp.inf, 0.0)
    never: tuple[float | int, ...] = (-jnp.inf, 0.0)
    by_jax = False

    def value(self, scores: Array) -> Value:
        return scores, jnp.zeros_like(scores)

    def times(self, a: Value, b: Value) -> Value:
        high, low = _add(a[0], a[1], b[0])
        return high, jnp.where(high == -jnp.inf, 0.0, low + b[1])

    def plus(self, terms: Sequence[Value]) -> Value:
        top = terms[0][0]
        for high, _ in terms[1:]:
            top = jnp.maximum(top, high)
        rest = jnp.where(terms[0][0] == top, terms[0][1], -jnp.inf)
        for high, low in terms[1:]:
            rest = jnp.maximum(rest, jnp.where(high == top, low, -jnp.inf))
        return top, rest

    def plus_over(self, a: Value, axis: int) -> Value:
        top = jnp.max(a[0], axis=axis, keepdims=True)
        rest = jnp.max(jnp.where(a[0] == top, a[1], -jnp.inf), axis=axis)
        return jnp.squeeze(top, axis), rest

    def tidy(self, a: Value) -> Value:
        return a

    def log(self, a: Value) -> Array:
        return a[0] + jnp.where(a[0] == -jnp.inf, 0.0, a[1])

    def ratio(self, a: Value, b: Value) -> Array:
        return jnp.exp(self.log(a) - self.log(b))


def _join(value: Value) -> Array:
    return lax.complex(*value)


def _split(packed: Array) -> Value:
    return lax.real(packed), lax.imag(packed)


BEST = Kind(_Best(), _join, _split)


def _first_best(high: Array, low: Array) -> Array:
    """The first index [B] of the largest score [X, B]."""
    top = jnp.max(high, axis=0, keepdims=True)
    low = jnp.where(high == top, low, -jnp.inf)
    best = low == jnp.max(low, axis=0, keepdims=True)
    return jnp.argmax(best, axis=0).astype(jnp.int32)


def _pairs(array: Array, row: Array) -> Array:
    """array [P, B] at rows [..., B]."""
    column = lax.broadcasted_iota(jnp.int32, row.shape, row.ndim - 1)
    return array.at[row, column].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _closing(last: Array, labels: Array, scores: Scores, tables: Sliced) -> tuple[Array, Array]:
    """Best closing arc: place of the state that it leaves, and of its label [B]."""
    arc = gather(scores.arcs, jnp.maximum(tables.closing_arc, 0))
    arc = jnp.where(tables.closing_arc >= 0, arc, -jnp.inf)
    end = gather(scores.ends, jnp.maximum(tables.closing_end, 0))
    value = _split(gather(last, jnp.maximum(tables.closing_state, 0)))
    value = _add(value[0], value[1], (arc + end)[:, None])
    label = lax.real(gather(labels, jnp.maximum(tables.closing_slot, 0)))
    best = _first_best(*_add(value[0], value[1], label))
    return gather(tables.closing_state, best), gather(tables.closing_slot, best)


def shared_viterbi(
    time_axis: int, log_posteriors: Array, problem: SharedProblem
) -> tuple[Array, Array]:
    """The best path.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        log_posteriors: float, as `time_axis` says; T > 0.
        problem: from `prepare_shared`.

    Returns:
        Labels [T, B] int32, -1 on padding and throughout invalid sequences, and scores [B].
    """
    frames = jnp.swapaxes(log_posteriors, 0, 1) if time_axis else log_posteriors
    scores, bad = clean(frames, problem.am_scale, problem)
    tables, lengths = problem.tables, problem.lengths
    weights = weighted(BEST, scores, tables)
    ahead = forward(BEST, scores, tables, lengths, weights, keep=True)
    alphas, seed = ahead.alphas, seeded(scores, lengths)
    score = jnp.where(bad, jnp.nan, BEST.semiring.log(ahead.whole))

    def step(state: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        time, posteriors = frame
        inner = time + 1 < lengths
        labels = emission_if(BEST, jnp.any(inner), scores, tables, posteriors, seed)
        earlier = lax.dynamic_index_in_dim(alphas, jnp.maximum(time - 1, 0), axis=0, keepdims=False)
        before = jnp.where(time == 0, ahead.start, earlier)
        entry = gather(tables.enter_begin, state)[None] + tables.enter_span[:, None]
        real = tables.enter_span[:, None] < gather(tables.enter_count, state)[None]
        entry = jnp.where(real, entry, 0)
        source, slot = gather(tables.enter_source, entry), gather(tables.enter_slot, entry)
        arc = gather(scores.arcs, jnp.maximum(gather(tables.enter_arc, entry), 0))
        high, low = _split(_pairs(before, jnp.maximum(source, 0)))
        high, low = _add(high, low, arc)
        high, low = _add(high, low, lax.real(_pairs(labels, jnp.maximum(slot, 0))))
        best = _first_best(jnp.where(real, high, -jnp.inf), low)[None]
        label = gather(tables.slot_label, jnp.maximum(_pairs(slot, best)[0], 0))
        state = jnp.where(inner, jnp.maximum(_pairs(source, best)[0], 0), state)
        return state, label

    state, slot = _closing(ahead.last, ahead.labels, scores, tables)
    final = gather(tables.slot_label, jnp.maximum(slot, 0))
    times = jnp.arange(frames.shape[0], dtype=jnp.int32)
    state = jnp.maximum(state, 0) + jnp.zeros_like(lengths)
    _, labels = lax.scan(step, state, (times, scores.frames), reverse=True)
    labels = jnp.where(times[:, None] + 1 == lengths[None], final[None], labels)
    shown = (times[:, None] < lengths[None]) & jnp.isfinite(score)[None]
    return jnp.where(shown, labels, -1), score
