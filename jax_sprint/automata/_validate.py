"""Checks of the edge-list format, the one in which Sprint and RETURNN exchange automata."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_edge_list"]


def _require(array: Any, name: str, dtype: type, shape: str, ok: bool) -> None:
    if array.dtype != dtype or not ok:
        raise ValueError(
            f"{name} must be {np.dtype(dtype).name} of shape {shape}, got {array.dtype.name} of "
            f"shape {tuple(array.shape)}; convert it with .astype(np.{np.dtype(dtype).name}), "
            "or reshape it"
        )


def check_edge_list(
    edges: Any, weights: Any, start_end_states: Any, num_labels: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checks what can be said of the three arrays one by one.

    Args:
        edges: [4, E] uint32: from, to, emission, sequence.
        weights: [E] float32, costs in nats.
        start_end_states: [2, B] uint32.
        num_labels: number of labels L, or None.

    Returns:
        The three as numpy arrays.

    Raises:
        ValueError: names the argument, the first offending place and value, and the remedy.
    """
    arrays = []
    for name, value in (
        ("edges", edges),
        ("weights", weights),
        ("start_end_states", start_end_states),
    ):
        try:
            arrays.append(np.asarray(value))
        except Exception as error:  # a tracer: jax raises one of several types
            raise ValueError(
                f"{name} must be a concrete array, got {type(value).__name__} ({error}); build the "
                "automata outside of the traced function and pass them in, or use fast_baum_welch, "
                "which takes traced edges"
            ) from error
    edges, weights, states = arrays
    _require(edges, "edges", np.uint32, "[4, E]", edges.ndim == 2 and edges.shape[0] == 4)
    _require(weights, "weights", np.float32, f"[{edges.shape[1]}]", weights.ndim == 1)
    _require(
        states, "start_end_states", np.uint32, "[2, B]", states.ndim == 2 and states.shape[0] == 2
    )
    if weights.shape[0] != edges.shape[1]:
        raise ValueError(
            f"weights has {weights.shape[0]} entries but edges has {edges.shape[1]} columns; "
            "there must be one weight per edge"
        )
    bad = np.isnan(weights) | (weights == -np.inf)
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"weights[{at}] is {weights[at]}; a weight is a cost in nats: finite, or +inf for an "
            "edge that is forbidden"
        )
    num_sequences = states.shape[1]
    bad = edges[3] >= num_sequences
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"edges[3, {at}] names sequence {edges[3, at]}, but start_end_states has only "
            f"{num_sequences} sequences (indices count from 0)"
        )
    bad = states[1] < states[0]
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"start_end_states[:, {at}] has the end state {states[1, at]} before the start state "
            f"{states[0, at]}; row 0 holds start states, row 1 end states"
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
    return edges, weights, states
