"""Expected visits of states and edges, in the numbering of the automata."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jax_sprint.automata import Automata
from jax_sprint.kernels._graph import flat_shape
from jax_sprint.kernels._occupancy import Occupancy
from jax_sprint.kernels._scores import Problem

__all__ = ["Occupancies", "by_state_and_edge"]

Array = Any


class Occupancies(NamedTuple):
    """Where the paths of each sequence go, weighted by their probability; 0 if it is invalid.

    Attributes:
        states: [T, B, S] (or [B, T, S]), probability that the path is in the state after the
            frame; states as `Automata.state_ids` orders them.
        edges: [B, E], expected number of times that the path takes the edge, as in
            `Automata.weights`; that is also the derivative of the loss with respect to the cost of
            the edge, at a `tdp_scale` of 1.
        starts: [B, A], probability that the path starts there, as in `Automata.start_states`.
        ends: [B, Z], likewise, as in `Automata.end_states`.
    """

    states: Array
    edges: Array
    starts: Array
    ends: Array


def _sum_at(values: Array, index: Array, size: int) -> Array:
    """Sums values [B, ...] by index [B, ...] in 0..size-1, dropping negative ones: [B, size]."""
    batch = index.shape[0]
    flat = jnp.where(index >= 0, index, size).reshape(flat_shape(index))
    rows = jnp.broadcast_to(lax.broadcasted_iota(jnp.int32, (batch, 1), 0), flat.shape)
    total = jnp.zeros((batch, size), values.dtype)
    return total.at[rows, flat].add(values.reshape(flat.shape), mode="drop")


def _picked(values: Array, index: Array) -> Array:
    """values [B, E] at index [B, ...], -1 where that is negative."""
    flat = jnp.maximum(index, 0).reshape(flat_shape(index))
    found = jnp.take_along_axis(values, flat, axis=1, mode="promise_in_bounds")
    return jnp.where(index >= 0, found.reshape(index.shape), -1)


def by_state_and_edge(
    counts: Occupancy, problem: Problem, automata: Automata, time_axis: int
) -> Occupancies:
    """Translates the occupancies of nodes and arcs.

    Args:
        counts: of valid sequences only.
        problem: what they were computed for.
        automata: the batch.
        time_axis: 0 or 1, where the time is in `states`.

    Returns:
        The occupancies.
    """
    graph, last = problem.graph, problem.graph.last
    edge_to, end_states = jnp.asarray(automata.edge_to), jnp.asarray(automata.end_states)
    size = automata.state_ids.shape[1]
    # All edges into a node lead to the same state.
    state = _picked(edge_to, jnp.max(graph.in_arc, axis=1))
    numbers = lax.broadcasted_iota(jnp.int32, (1, 1, size), 2)
    members = (state[:, :, None] == numbers).astype(counts.node.dtype)
    dimensions = (((2,), (1,)), ((0,), (0,)))
    states = lax.dot_general(
        jnp.swapaxes(counts.node, 0, 1), members, dimensions, precision=lax.Precision.HIGHEST
    )
    edges = _sum_at(counts.arc, graph.in_arc, automata.weights.shape[1])
    ends = _sum_at(counts.end, graph.end, automata.end_weights.shape[1])
    if last is not None:
        edges = edges + _sum_at(counts.last, last.arc, automata.weights.shape[1])
        into = jnp.where(last.arc >= 0, last.end, -1)
        more = _sum_at(counts.last, into, automata.end_weights.shape[1])
        ends = ends + more
        frame = lax.broadcasted_iota(jnp.int32, problem.real.shape, 0)
        at = jnp.max(jnp.where(problem.real, frame, -1), axis=0)
        here = lax.broadcasted_iota(jnp.int32, (1, states.shape[1], 1), 1) == at[:, None, None]
        finals = jnp.where(end_states < 0, -1, end_states)
        states = states + jnp.where(here, _sum_at(more, finals, size)[:, None], 0.0)
    return Occupancies(
        states=states if time_axis else jnp.swapaxes(states, 0, 1),
        edges=edges,
        starts=_sum_at(counts.start, graph.start, automata.start_weights.shape[1]),
        ends=ends,
    )
