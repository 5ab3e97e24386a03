"""Checks of the arguments that the kernels share, and their translation for the recursions.

Shapes and dtypes are always checked.  Values are checked where they are concrete; where they are
traced, a sequence with a length or an emission out of range is marked as broken instead, because
JAX clamps indices and would return a silently good loss.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint.automata import Automata
from jax_sprint.kernels._graph import Graph, Last, Links
from jax_sprint.kernels._scores import Layout, Problem

__all__ = ["at_least_one_frame", "check", "prepare"]

Array = Any


def _concrete(value: Any) -> np.ndarray | None:
    """The value as numpy, or None where it is traced."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def check(
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    log_prior: Array | None,
    time_major: bool,
) -> None:
    """Raises ValueError for what no batch may be; see `full_sum_loss` for the arguments."""
    if not isinstance(automata, Automata):
        raise ValueError(
            f"automata must be an Automata, got {type(automata).__name__}; build it with "
            "Automata.from_edges(edges, weights, start_end_states)"
        )
    shape, dtype = np.shape(log_posteriors), jnp.result_type(log_posteriors)
    axes = "[T, B, L]" if time_major else "[B, T, L]"
    if len(shape) != 3 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"log_posteriors must be a float array {axes}, got {dtype} of shape {shape}"
        )
    num_frames, batch = shape[:2] if time_major else (shape[1], shape[0])
    lengths_shape, lengths_dtype = np.shape(seq_lengths), jnp.result_type(seq_lengths)
    if not jnp.issubdtype(lengths_dtype, jnp.integer) or lengths_shape != (batch,):
        raise ValueError(
            f"seq_lengths must be an integer array of shape [{batch}] (the batch of "
            f"log_posteriors {axes} {shape}), got {lengths_dtype} of shape {lengths_shape}"
        )
    if np.ndim(automata.weights) == 2 and automata.batch_size != batch:
        raise ValueError(
            f"automata holds {automata.batch_size} sequences, but log_posteriors {axes} of shape "
            f"{shape} has a batch of {batch}; is time_major={time_major} right?"
        )
    num_labels = shape[2]
    if automata.num_labels is not None and automata.num_labels != num_labels:
        raise ValueError(
            f"the automata were built for num_labels={automata.num_labels}, but log_posteriors "
            f"{axes} of shape {shape} has {num_labels} labels"
        )
    if log_prior is not None and np.shape(log_prior) != (num_labels,):
        raise ValueError(
            f"log_prior must have shape [{num_labels}], one natural-log probability per label, got "
            f"{np.shape(log_prior)}"
        )
    lengths = _concrete(seq_lengths)
    if lengths is not None and lengths.size:
        bad = (lengths < 0) | (lengths > num_frames)
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(
                f"seq_lengths[{at}] is {lengths[at]}, but must lie in 0..{num_frames}, the number "
                f"of frames of log_posteriors {axes} {shape}"
            )
    if automata.num_labels is None:
        labels = _concrete(automata.slot_label)
        if labels is not None and labels.max(initial=-1) >= num_labels:
            raise ValueError(
                f"the automata emit label {labels.max()}, but log_posteriors {axes} of shape "
                f"{shape} has only {num_labels} labels"
            )


def at_least_one_frame(log_posteriors: Array, time_axis: int) -> Array:
    """Appends a padding frame where there is none at all, so that the recursions have one."""
    if log_posteriors.shape[time_axis]:
        return log_posteriors
    pad = [(0, 0)] * 3
    pad[time_axis] = (0, 1)
    return jnp.pad(log_posteriors, pad)


def prepare(
    num_frames: int,
    num_labels: int,
    dtype: Any,
    seq_lengths: Array,
    automata: Automata,
    am_scale: Array,
    tdp_scale: Array,
    log_prior: Array | None,
    prior_scale: Array,
) -> Problem:
    """Translates the arguments of `full_sum_loss`, after `check`, for `partition` and `solve`.

    `num_frames` is T before `at_least_one_frame`; floats come out as `dtype`.
    """
    if automata.node_label is None:
        raise ValueError(
            "this needs the padded tables of a batch, which this shared automaton does not have; "
            "build it with Automata.from_edges(...) without shared=True, and pass that batch"
        )
    batch = seq_lengths.shape[0]

    def leaf(array: Any) -> Any:
        if array is None:
            return None
        array = jnp.asarray(array)
        if np.ndim(automata.weights) == 1:  # one automaton for the whole batch
            array = jnp.broadcast_to(array[None], (batch, *array.shape))
        return array

    slot_label = leaf(automata.slot_label)
    seq_lengths = seq_lengths.astype(jnp.int32)
    broken = (seq_lengths < 0) | (seq_lengths > num_frames)
    broken = broken | jnp.any(slot_label >= num_labels, axis=1)
    tdp_scale = jnp.asarray(tdp_scale, dtype)

    def scored(weights: Any, known: Any) -> Array:
        """Log-scores of costs; a forbidden edge stays forbidden at any scale."""
        weights = leaf(weights).astype(dtype)
        scores = jnp.where(weights == jnp.inf, -jnp.inf, -tdp_scale * weights)
        return jnp.where(leaf(known) >= 0, scores, 0.0)

    bias = jnp.zeros(slot_label.shape, dtype)
    if log_prior is not None:
        prior = jnp.asarray(log_prior).astype(dtype) * -jnp.asarray(prior_scale, dtype)
        index = jnp.clip(slot_label, 0, max(num_labels - 1, 0))
        bias = jnp.where(slot_label >= 0, prior[index], 0.0)
    return Problem(
        am_scale=jnp.asarray(am_scale, dtype),
        bias=bias,
        links=Links(
            scored(automata.weights, automata.edge_position),
            scored(automata.start_weights, automata.start_states),
            scored(automata.end_weights, automata.end_states),
        ),
        shift=None,
        offset=None,
        graph=Graph(
            in_arc=leaf(automata.in_arc),
            in_node=leaf(automata.in_node),
            out_arc=leaf(automata.out_arc),
            out_node=leaf(automata.out_node),
            start=leaf(automata.node_start),
            end=leaf(automata.node_end),
            last=Last(leaf(automata.last_arc), leaf(automata.last_end), leaf(automata.last_slot)),
        ),
        layout=Layout(leaf(automata.node_label), leaf(automata.node_slot), slot_label),
        real=jax.lax.broadcasted_iota(jnp.int32, (max(num_frames, 1), 1), 0)
        < jnp.clip(seq_lengths, 0, num_frames)[None],
        broken=broken,
    )
