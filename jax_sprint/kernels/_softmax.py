"""The softmax of logits, as it comes into the scores: without keeping its exponentials."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._scores import Problem

__all__ = ["log_softmax", "normalized"]

Array = Any


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mass(dtype: Any, logits: Array, real: Array) -> tuple[Array, Array]:
    """A frame's peak, a constant, and the sum of exp(logits - peak).

    The sum is that of all frames, and has nothing between exp and its argument, so that XLA keeps
    no exponentials: it takes them again for the derivative, which costs less than to write and read
    an array of the logits' size.

    Args:
        dtype: what to compute in.
        logits: [T, B, V], or [B, T, V]; in padding frames anything.
        real: [T, B], or [B, T], bool, the frames that count: the others have no derivative.

    Returns:
        Two arrays like `real`.  The sum is NaN or +inf in frames that hold NaN or +inf; the peak
        need not be one of them.
    """
    del real
    peak = jnp.max(logits, axis=2, initial=-jnp.inf).astype(dtype)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    return peak, jnp.sum(jnp.exp(logits.astype(dtype) - peak[:, :, None]), axis=2)


@_mass.defjvp
def _mass_jvp(dtype: Any, primals: tuple, tangents: tuple) -> tuple:
    logits, real = primals
    peak, total = _mass(dtype, logits, real)
    # Kept out before exp, not after: 0 * inf and 0 * NaN are no derivatives.  The difference is
    # another one than in `_mass`: XLA would compute it once for both, and write it to memory.
    fine = real & (total < jnp.inf)
    centre = jnp.where(fine, peak, 0.0)[:, :, None]
    exps = jnp.exp(jnp.where(fine[:, :, None], logits.astype(dtype) - centre, -jnp.inf))
    change = jnp.sum(exps * tangents[0].astype(dtype), axis=2)
    return (peak, total), (jnp.zeros_like(peak), change)


def _normalizer(dtype: Any, logits: Array, real: Array) -> tuple[Array, Array]:
    """The peak of each frame, and what its log_softmax subtracts besides; both 0 in padding.

    The latter is NaN in a frame that holds NaN or +inf, or nothing but -inf.
    """
    peak, total = _mass(dtype, logits, real)
    some = (total > 0) & (total < jnp.inf)
    rest = jnp.where(some, jnp.log(jnp.where(some, total, 1.0)), jnp.nan)
    return jnp.where(real, peak, 0.0), jnp.where(real, rest, 0.0)


def log_softmax(time_axis: int, logits: Array, lengths: Array, dtype: Any) -> Array:
    """log_softmax over the labels, whose derivative is 0 in padding, whatever that holds.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        logits: float, as `time_axis` says.
        lengths: [B] integer, numbers of frames.
        dtype: what to compute in.

    Returns:
        An array like `logits` of that type; in padding anything, NaN in frames without a softmax.
    """
    frame = lax.broadcasted_iota(jnp.int32, logits.shape[:2], time_axis)
    real = frame < jnp.expand_dims(lengths.astype(jnp.int32), time_axis)
    peak, rest = _normalizer(dtype, logits, real)
    return (logits.astype(dtype) - peak[:, :, None]) - rest[:, :, None]


def normalized(time_axis: int, logits: Array, problem: Problem) -> Problem:
    """The problem of the logits' log_softmax, as one of the logits.

    Each path takes one label per frame, so the softmax's normaliser comes out of the sum, as an
    offset.  The peak is taken out first: it is exact, and a logit of 90 would leave few digits to a
    loss of 1.

    Args:
        time_axis: 0 for [T, B, V], 1 for [B, T, V].
        logits: float, as `time_axis` says.
        problem: that of the log-posteriors, without `shift` and `offset`.
    """
    real = problem.real if time_axis == 0 else problem.real.T
    peak, rest = _normalizer(problem.bias.dtype, logits, real)
    if time_axis == 1:
        peak, rest = peak.T, rest.T
    # The offset of a frame with NaN or +inf is NaN, which `bad_values` sees.
    return problem._replace(shift=peak, offset=-problem.am_scale * rest)
