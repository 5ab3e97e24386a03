"""The entropy of the distribution over paths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_sprint.automata import Automata
from jax_sprint.losses._full_sum import full_sum_loss

__all__ = ["path_entropy"]

Array = Any


def path_entropy(
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    *,
    am_scale: float | Array = 1.0,
    tdp_scale: float | Array = 1.0,
    log_prior: Array | None = None,
    prior_scale: float | Array = 0.0,
    time_major: bool = True,
) -> Array:
    """How undecided the model is among the paths of each sequence's automaton.

    With Z the sum over all paths of exp(score), the entropy of p(path) = exp(score) / Z is
    log Z - E[score].  All scores being linear in the scales, E[score] is the derivative of log Z in
    their direction, so that one forward-mode derivative of `full_sum_loss` gives both.
    Differentiable; regularisers of CTC maximise it (Liu, Jin and Zhang, NeurIPS 2018).

    Arguments and errors are those of `jax_sprint.full_sum_loss`.

    Returns:
        Entropy [B] in nats, of the loss's dtype: at least 0 but for rounding, about 1e-7 of the
        loss in float32.  NaN for invalid sequences, with gradient exactly 0.
    """
    scales = tuple(jnp.asarray(scale, _float(scale)) for scale in (am_scale, tdp_scale))
    if log_prior is not None:
        scales += (jnp.asarray(prior_scale, _float(prior_scale)),)

    def loss(*scales: Array) -> Array:
        return full_sum_loss(
            log_posteriors,
            seq_lengths,
            automata,
            am_scale=scales[0],
            tdp_scale=scales[1],
            log_prior=log_prior,
            prior_scale=0.0 if log_prior is None else scales[2],
            time_major=time_major,
        )

    value, change = jax.jvp(loss, scales, scales)
    valid = jnp.isfinite(value)
    # Minus the loss is log Z, and minus its change E[score].
    return jnp.where(valid, change - jnp.where(valid, value, 0.0), jnp.nan)


def _float(scale: Any) -> Any:
    dtype = jnp.result_type(scale)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
