"""`forward_backward`: loss, label posteriors, and occupancies of states and edges."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint.automata import Automata
from jax_sprint.kernels._expected import Occupancies, by_state_and_edge
from jax_sprint.kernels._inputs import at_least_one_frame, check, prepare
from jax_sprint.kernels._labels import by_slot, spread
from jax_sprint.kernels._partition import solve
from jax_sprint.kernels._shared import prepare_shared, shared_solve

__all__ = ["forward_backward"]

Array = Any


@partial(jax.jit, static_argnames=("time_major", "with_occupancies"))
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
    with_occupancies: bool,
) -> tuple[Array, Array, Occupancies | None]:
    time_axis = 0 if time_major else 1
    num_frames, num_labels = log_posteriors.shape[time_axis], log_posteriors.shape[2]
    dtype = jnp.float64 if log_posteriors.dtype == jnp.float64 else jnp.float32
    arguments = (
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
    if automata.sliced is not None and not with_occupancies:
        frames = at_least_one_frame(log_posteriors, time_axis)
        loss, found = shared_solve(time_axis, frames, prepare_shared(*arguments))
        return loss, jax.lax.slice_in_dim(found.labels, 0, num_frames, axis=time_axis), None
    problem = prepare(*arguments)
    loss, counts = solve(time_axis, at_least_one_frame(log_posteriors, time_axis), problem)
    posteriors = by_slot(*counts.shares, problem, time_axis)
    posteriors = spread(posteriors, problem, num_labels, time_axis)
    posteriors = jax.lax.slice_in_dim(posteriors, 0, num_frames, axis=time_axis)
    if not with_occupancies:
        return loss, posteriors, None
    if np.ndim(automata.weights) == 1:
        batch = seq_lengths.shape[0]
        automata = jax.tree_util.tree_map(
            lambda leaf: jnp.broadcast_to(jnp.asarray(leaf)[None], (batch, *np.shape(leaf))),
            dataclasses.replace(automata, sliced=None),
        )
    occupancies = by_state_and_edge(counts, problem, automata, time_axis)
    states = jax.lax.slice_in_dim(occupancies.states, 0, num_frames, axis=time_axis)
    return loss, posteriors, occupancies._replace(states=states)


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
    return_occupancies: bool = False,
    time_major: bool = True,
) -> tuple:
    """The full-sum loss, and how probable each label is in each frame given the automaton.

    Arguments and errors are those of `jax_sprint.full_sum_loss`.

    Returns:
        Loss [B] in nats, as `full_sum_loss` gives it, and posteriors [T, B, L] (or [B, T, L] where
        `time_major` is False), probabilities, of the loss's dtype: they sum to one in each valid
        frame, and are 0 in padding frames and throughout invalid sequences.  With `return_valid`
        also valid [B] bool; with `return_occupancies` also, as the last, `Occupancies`: how often
        the paths visit each state and each edge.  All but valid are differentiable.
    """
    check(log_posteriors, seq_lengths, automata, log_prior, time_major)
    loss, posteriors, occupancies = _run(
        jnp.asarray(log_posteriors),
        jnp.asarray(seq_lengths),
        automata,
        am_scale,
        tdp_scale,
        log_prior,
        0.0 if log_prior is None else prior_scale,
        time_major=time_major,
        with_occupancies=return_occupancies,
    )
    result: tuple = (loss, posteriors)
    if return_valid:
        result += (jnp.isfinite(loss),)
    return (*result, occupancies) if return_occupancies else result
