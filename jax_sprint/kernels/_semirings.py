"""The arithmetic of the recursions: one algorithm, the semiring as its parameter.

A value is a tuple of arrays of one shape.  The recursions need five things of a semiring: the
value of a log-score, the product, the sum of several values, a `tidy` step that keeps
representations bounded (every few frames), and the way back to log-scores.

`SCALED` carries the float kernels.  A value is a pair (m, e) that stands for m * 2**e, with m a
float (in [1, 2) after `tidy`), or 0, and e an int32 *of each state by itself*.  So its relative
precision is that of one float32 rounding, whatever the scores are: a path of score -1000 per frame
beside others near 0 neither underflows nor loses a digit, there is no rescaling per frame whose
range could be exceeded, and the exponents, being integers, add up without error however long the
sequence.  None of its operations is transcendental: scores go through `exp` once, outside of the
recursion.  It is written in `lax`: `jnp`'s operators are slower to trace, and there are many.
Between two tidy steps, at most 4 frames apart, a mantissa grows at most by 2^4 * (2 K)^4 for K
summands and shrinks at most by 2^-4, far from float32's limits; what an alignment of exponents
drops is smaller than the rest by 2^-80 or so.  A sum's exponent is never below that of zero, which
added up 8 times stays an int32: in a product with emission, weight and `never` it counts 7 times.

`LOG` is the textbook's log semiring.  JAX can differentiate it as often as it likes, so that second
derivatives come from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax.numpy as jnp
from jax import lax

__all__ = ["FLOOR", "LOG", "SCALED", "Semiring", "Value", "power_of_two"]

Array = Any
Value = tuple[Array, ...]

FLOOR = -(1 << 27)
"""Exponent of zero.  Masses below 2**FLOOR (scores below -9.3e7 nats) count as zero."""

_CLIP = 1 << 22
"""Largest exponent of one score: beyond 2.9e6 nats a score counts as -inf."""

# ln 2 in two parts: products of the first with integers below 2**15 are exact in float32.
_LN2_HIGH = 355.0 / 512.0
_LN2_LOW = -2.121944400546905827679e-4
_LOG2_E = 1.4426950408889634


def _bits(dtype: Any) -> tuple[Any, int, int]:
    """Integer type of the same width, number of fraction bits and exponent bias of a float."""
    if dtype == jnp.float64:
        return jnp.int64, 52, 1023
    return jnp.int32, 23, 127


def _like(array: Array, constant: float) -> Array:
    return lax.full_like(array, constant)


def _fit(*arrays: Array) -> Sequence[Array]:
    """The arrays, broadcast against each other."""
    first = arrays[0].shape
    same = all(array.shape == first for array in arrays)
    return arrays if same else jnp.broadcast_arrays(*arrays)


def power_of_two(exponent: Array, dtype: Any) -> Array:
    """2**exponent for int32 exponents below 128; 0 where that is below the normal numbers."""
    integer, fraction, bias = _bits(dtype)
    shifted = lax.max(lax.add(exponent, _like(exponent, bias)), _like(exponent, 0))
    shifted = lax.convert_element_type(shifted, integer)
    return lax.bitcast_convert_type(lax.shift_left(shifted, _like(shifted, fraction)), dtype)


class Semiring(Protocol):
    """What the recursions ask of a semiring."""

    zero: tuple[float | int, ...]
    never: tuple[float | int, ...]  # times anything is zero to any sum, however large the others
    by_jax: bool  # whether JAX differentiates what is computed in it

    def value(self, scores: Array) -> Value: ...

    def times(self, a: Value, b: Value) -> Value: ...

    def plus(self, terms: Sequence[Value]) -> Value: ...

    def plus_over(self, a: Value, axis: int) -> Value: ...

    def tidy(self, a: Value) -> Value: ...

    def log(self, a: Value) -> Array: ...

    def ratio(self, a: Value, b: Value) -> Array: ...


class _Scaled:
    """Sums of products, each value with an exponent of its own."""

    zero: tuple[float | int, ...] = (0.0, FLOOR)
    never: tuple[float | int, ...] = (0.0, 4 * FLOOR)
    by_jax = False

    def value(self, scores: Array) -> Value:
        """exp(scores): `scores` are natural logarithms, -inf gives zero."""
        scaled = lax.mul(scores, _like(scores, _LOG2_E))
        scaled = lax.round(scaled, lax.RoundingMethod.TO_NEAREST_EVEN)
        some = lax.gt(scaled, _like(scaled, -_CLIP))
        nothing = _like(scaled, 0)
        exponent = lax.select(some, lax.min(scaled, _like(scaled, _CLIP)), nothing)
        rest = lax.sub(lax.select(some, scores, nothing), exponent * _LN2_HIGH)
        rest = lax.sub(rest, exponent * _LN2_LOW)
        mantissa = lax.select(some, lax.exp(rest), nothing)
        exponent = lax.convert_element_type(exponent, jnp.int32)
        return mantissa, lax.select(some, exponent, _like(exponent, FLOOR))

    def times(self, a: Value, b: Value) -> Value:
        return lax.mul(*_fit(a[0], b[0])), lax.add(*_fit(a[1], b[1]))

    def plus(self, terms: Sequence[Value]) -> Value:
        top = _like(terms[0][1], FLOOR)
        for _, exponent in terms:
            top = lax.max(*_fit(top, exponent))
        # As `power_of_two` does, with the bias taken off once for all terms.
        dtype = terms[0][0].dtype
        integer, fraction, bias = _bits(dtype)
        base, low = lax.sub(top, _like(top, bias)), _like(top, 0)
        shift = lax.full_like(top, fraction, integer)
        total = None
        for mantissa, exponent in terms:
            bits = lax.max(lax.sub(*_fit(exponent, base)), low)
            bits = lax.shift_left(lax.convert_element_type(bits, integer), shift)
            part = lax.mul(*_fit(mantissa, lax.bitcast_convert_type(bits, dtype)))
            total = part if total is None else lax.add(total, part)
        return total, top

    def plus_over(self, a: Value, axis: int) -> Value:
        top = jnp.max(a[1], axis=axis, keepdims=True)
        scale = power_of_two(lax.sub(*_fit(a[1], top)), a[0].dtype)
        return jnp.sum(lax.mul(*_fit(a[0], scale)), axis=axis), jnp.squeeze(top, axis)

    def tidy(self, a: Value) -> Value:
        """Moves the mantissa's exponent over; exact."""
        mantissa, exponent = _fit(*a)
        integer, fraction, bias = _bits(mantissa.dtype)
        bits = lax.bitcast_convert_type(mantissa, integer)
        more = lax.shift_right_arithmetic(bits, _like(bits, fraction))
        more = lax.convert_element_type(more, jnp.int32)
        exponent = lax.add(exponent, lax.sub(more, _like(more, bias)))
        zero = lax.bitwise_or(
            lax.eq(mantissa, _like(mantissa, 0)), lax.lt(exponent, _like(exponent, FLOOR))
        )
        bits = lax.bitwise_and(bits, _like(bits, (1 << fraction) - 1))
        bits = lax.bitwise_or(bits, _like(bits, bias << fraction))
        moved = lax.bitcast_convert_type(bits, mantissa.dtype)
        return (
            lax.select(zero, _like(moved, 0), moved),
            lax.select(zero, _like(exponent, FLOOR), exponent),
        )

    def log(self, a: Value) -> Array:
        """Natural logarithm; the integer part enters in two exact pieces."""
        mantissa, exponent = self.tidy(a)
        zero = mantissa == 0
        dtype = mantissa.dtype
        high = (exponent + 2048) >> 12
        low = exponent - (high << 12)
        small = jnp.log(jnp.where(zero, 1.0, mantissa)) + exponent.astype(dtype) * _LN2_LOW
        small = small + low.astype(dtype) * _LN2_HIGH
        score = high.astype(dtype) * (4096 * _LN2_HIGH) + small
        return jnp.where(zero, -jnp.inf, score)

    def ratio(self, a: Value, b: Value) -> Array:
        """a / b for a <= b (up to a power of two or so); 0 where a or b is zero."""
        low, high = _fit(a[0], b[0])
        zero = lax.eq(high, _like(high, 0))
        exponent = lax.sub(*_fit(a[1], b[1]))
        scale = power_of_two(lax.min(exponent, _like(exponent, 100)), low.dtype)
        share = lax.div(lax.mul(*_fit(low, scale)), lax.select(zero, _like(high, 1), high))
        return lax.select(zero, _like(share, 0), share)


class _Log:
    """Log-scores; plus is logsumexp.  Differentiable, with zero derivatives at -inf."""

    zero: tuple[float | int, ...] = (-jnp.inf,)
    never: tuple[float | int, ...] = (-jnp.inf,)
    by_jax = True

    def value(self, scores: Array) -> Value:
        return (scores,)

    def times(self, a: Value, b: Value) -> Value:
        return (a[0] + b[0],)

    def plus(self, terms: Sequence[Value]) -> Value:
        return self.plus_over((jnp.stack([term[0] for term in terms]),), 0)

    def plus_over(self, a: Value, axis: int) -> Value:
        (scores,) = a
        top = lax.stop_gradient(jnp.max(scores, axis=axis, keepdims=True))
        top = jnp.where(top == -jnp.inf, 0.0, top)
        total = jnp.sum(self._exp(scores, top), axis=axis)
        zero = total == 0
        score = jnp.log(jnp.where(zero, 1.0, total)) + jnp.squeeze(top, axis)
        return (jnp.where(zero, -jnp.inf, score),)

    def tidy(self, a: Value) -> Value:
        return a

    def log(self, a: Value) -> Array:
        return a[0]

    def ratio(self, a: Value, b: Value) -> Array:
        return self._exp(a[0], jnp.where(b[0] == -jnp.inf, 0.0, b[0]))

    @staticmethod
    def _exp(scores: Array, reference: Array) -> Array:
        zero = scores == -jnp.inf
        return jnp.where(zero, 0.0, jnp.exp(jnp.where(zero, 0.0, scores - reference)))


SCALED = _Scaled()
LOG = _Log()
