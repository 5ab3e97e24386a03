"""Checks of the edge-list format, the one in which Sprint and RETURNN exchange automata."""

from __future__ import annotations

from typing import Any

import numpy as np

from jax_sprint.automata._states import Marks

__all__ = ["check_edge_list", "check_marks", "check_start_end"]


def _require(array: Any, name: str, dtype: type, shape: str, ok: bool) -> None:
    if array.dtype != dtype or not ok:
        raise ValueError(
            f"{name} must be {np.dtype(dtype).name} of shape {shape}, got {array.dtype.name} of "
            f"shape {tuple(array.shape)}; convert it with .astype(np.{np.dtype(dtype).name}), "
            "or reshape it"
        )


def _concrete(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # a tracer: jax raises one of several types
        raise ValueError(
            f"{name} must be a concrete array, got {type(value).__name__} ({error}); build the "
            "automata outside of the traced function and pass them in, or use fast_baum_welch, "
            "which takes traced edges"
        ) from error


def _cost(name: str, weights: np.ndarray, of: str) -> None:
    bad = np.isnan(weights) | (weights == -np.inf)
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"{name}[{at}] is {weights[at]}; a weight is a cost in nats: finite, or +inf for {of} "
            "that is forbidden"
        )


def check_start_end(start_end_states: Any) -> Marks:
    """Checks `start_end_states` [2, B] uint32: one start and one end state each."""
    states = _concrete("start_end_states", start_end_states)
    _require(
        states, "start_end_states", np.uint32, "[2, B]", states.ndim == 2 and states.shape[0] == 2
    )
    bad = states[1] < states[0]
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"start_end_states[:, {at}] has the end state {states[1, at]} before the start state "
            f"{states[0, at]}; row 0 holds start states, row 1 end states"
        )
    count = states.shape[1]
    sequence = np.tile(np.arange(count), 2)
    return Marks(states.reshape(-1), sequence, np.zeros(2 * count, np.float32), count, count)


def check_marks(start_states: Any, start_weights: Any, end_states: Any, end_weights: Any) -> Marks:
    """Checks several weighted start and end states: [2, M] uint32 (state, sequence), [M] float32.

    A missing array of weights means no costs.
    """
    parts = []
    for kind, given, given_costs in (
        ("start", start_states, start_weights),
        ("end", end_states, end_weights),
    ):
        name = f"{kind}_states"
        states = _concrete(name, given)
        _require(states, name, np.uint32, "[2, M]", states.ndim == 2 and states.shape[0] == 2)
        count = states.shape[1]
        costs = np.zeros(count, np.float32) if given_costs is None else given_costs
        costs = _concrete(f"{kind}_weights", costs)
        _require(costs, f"{kind}_weights", np.float32, f"[{count}]", costs.shape == (count,))
        _cost(f"{kind}_weights", costs, f"a {kind} state")
        order = np.argsort(states[1], kind="stable")
        states, costs = states[:, order], costs[order]
        pairs = states[1].astype(np.int64) << 32 | states[0]
        if len(np.unique(pairs)) < count:
            twice = int(states[0, np.argmax(np.bincount(np.unique(pairs, return_inverse=True)[1]))])
            raise ValueError(f"{name} names a state twice, {twice} perhaps; give it once")
        parts.append((states, costs))
    (starts, start_costs), (ends, end_costs) = parts
    count = 1 + int(max(starts[1].max(initial=0), ends[1].max(initial=0)))
    for kind, states in (("start", starts), ("end", ends)):
        missing = np.setdiff1d(np.arange(count), states[1])
        if len(missing):
            raise ValueError(
                f"sequence {missing[0]} has no {kind} state in {kind}_states; each sequence from 0 "
                f"to {count - 1} needs one at least"
            )
    return Marks(
        np.concatenate([starts[0], ends[0]]),
        np.concatenate([starts[1], ends[1]]).astype(np.int64),
        np.concatenate([start_costs, end_costs]),
        starts.shape[1],
        count,
    )


def check_edge_list(
    edges: Any, weights: Any, num_sequences: int, num_labels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Checks what can be said of the edges and their weights one by one.

    Args:
        edges: [4, E] uint32: from, to, emission, sequence.
        weights: [E] float32, costs in nats.
        num_sequences: number of sequences B.
        num_labels: number of labels L, or None.

    Returns:
        The two as numpy arrays.

    Raises:
        ValueError: names the argument, the first offending place and value, and the remedy.
    """
    edges, weights = _concrete("edges", edges), _concrete("weights", weights)
    _require(edges, "edges", np.uint32, "[4, E]", edges.ndim == 2 and edges.shape[0] == 4)
    _require(weights, "weights", np.float32, f"[{edges.shape[1]}]", weights.ndim == 1)
    if weights.shape[0] != edges.shape[1]:
        raise ValueError(
            f"weights has {weights.shape[0]} entries but edges has {edges.shape[1]} columns; "
            "there must be one weight per edge"
        )
    _cost("weights", weights, "an edge")
    bad = edges[3] >= num_sequences
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"edges[3, {at}] names sequence {edges[3, at]}, but start_end_states has only "
            f"{num_sequences} sequences (indices count from 0)"
        )
    if num_labels is not None:
        if num_labels < 1:
            raise ValueError(f"num_labels must be positive, got {num_labels}")
        bad = edges[2] >= num_labels
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(
                f"edges[2, {at}] is the emission index {edges[2, at]}, but num_labels is "
                f"{num_labels}; the model's output layer must cover every emission index"
            )
    elif edges.shape[1] and edges[2].max() >= 1 << 31:
        raise ValueError(f"emission index {edges[2].max()} does not fit into 31 bits")
    return edges, weights
