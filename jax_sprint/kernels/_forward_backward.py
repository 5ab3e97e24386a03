"""`forward_backward`: loss and label posteriors."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jax_sprint.automata import Automata
from jax_sprint.kernels._inputs import at_least_one_frame, check, prepare
from jax_sprint.kernels._partition import label_posteriors, only, solve

__all__ = ["forward_backward"]

Array = Any


@partial(jax.jit, static_argnames="time_major")
def _run(
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    am_scale: Array,
    tdp_scale: Array,
    log_prior: Array | None,
    prior_scale: Array,
    *,
    time_major: bool,
) -> tuple[Array, Array]:
    time_axis = 0 if time_major else 1
    num_frames, num_labels = log_posteriors.shape[time_axis], log_posteriors.shape[2]
    dtype = jnp.float64 if log_posteriors.dtype == jnp.float64 else jnp.float32
    problem = prepare(
        num_frames,
        num_labels,
        dtype,
        seq_lengths,
        automata,
        am_scale,
        tdp_scale,
        log_prior,
        prior_scale,
    )
    loss, counts, _ = solve(time_axis, at_least_one_frame(log_posteriors, time_axis), problem)
    counts = only(counts, jnp.isfinite(loss))
    posteriors = label_posteriors(counts, problem, num_labels, time_axis)
    return loss, jax.lax.slice_in_dim(posteriors, 0, num_frames, axis=time_axis)


def forward_backward(
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    *,
    am_scale: float | Array = 1.0,
    tdp_scale: float | Array = 1.0,
    log_prior: Array | None = None,
    prior_scale: float | Array = 0.0,
    return_valid: bool = False,
    time_major: bool = True,
) -> tuple[Array, Array] | tuple[Array, Array, Array]:
    """The full-sum loss, and how probable each label is in each frame given the automaton.

    Arguments and errors are those of `jax_sprint.full_sum_loss`.

    Returns:
        Loss [B] in nats, as `full_sum_loss` gives it, and posteriors [T, B, L] (or [B, T, L] where
        `time_major` is False), probabilities, of the loss's dtype: they sum to one in each valid
        frame, and are 0 in padding frames and throughout invalid sequences.  With `return_valid`
        also valid [B] bool.  Both are differentiable.
    """
    check(log_posteriors, seq_lengths, automata, log_prior, time_major)
    loss, posteriors = _run(
        jnp.asarray(log_posteriors),
        jnp.asarray(seq_lengths),
        automata,
        am_scale,
        tdp_scale,
        log_prior,
        0.0 if log_prior is None else prior_scale,
        time_major=time_major,
    )
    return (loss, posteriors, jnp.isfinite(loss)) if return_valid else (loss, posteriors)
