"""From a checked edge list to the leaves of an `Automata` (numpy only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_sprint.automata._nodes import node_tables
from jax_sprint.automata._sizes import bucket, fix, ranks
from jax_sprint.automata._states import Grouped, Marks

__all__ = ["NODE_LEAVES", "pack"]

NODE_LEAVES = (
    "node_label",
    "node_start",
    "node_end",
    "node_slot",
    "slot_label",
    "in_arc",
    "in_node",
    "out_arc",
    "out_node",
    "last_arc",
    "last_end",
    "last_slot",
)
"""Leaves of an `Automata` that are tables of nodes."""


def pack(
    grouped: Grouped,
    marks: Marks,
    edges: np.ndarray,
    weights: np.ndarray,
    sizes: Mapping[str, int],
    *,
    tables: bool = True,
) -> dict[str, Any]:
    """Everything but `num_labels` that an `Automata` holds, by name.

    Args:
        grouped: the states.
        marks: start and end states.
        edges: [4, E] uint32.
        weights: [E] float32.
        sizes: padded sizes that the caller fixes.
        tables: make the tables of nodes; else these leaves are None.
    """
    num_sequences = marks.num_sequences
    edge_sequence = edges[3].astype(np.int64)
    position = np.arange(edges.shape[1])
    if (np.diff(edge_sequence) < 0).any():
        position = np.argsort(edge_sequence, kind="stable")
        edge_sequence = edge_sequence[position]
        grouped = grouped._replace(
            from_place=grouped.from_place[position], to_place=grouped.to_place[position]
        )
    emission = edges[2, position].astype(np.int64)
    edge_rank, edge_counts = ranks(edge_sequence, num_sequences)
    state_rank, state_counts = ranks(grouped.sequence, num_sequences)
    leaves: dict[str, Any] = dict.fromkeys(NODE_LEAVES)
    band = 0
    if tables:
        leaves, band = node_tables(grouped, marks, emission, edge_sequence, edge_rank, sizes)

    most = int(edge_counts.max(initial=0))
    width = fix(sizes, "edges", most, bucket(most))
    place = edge_sequence * width + edge_rank

    def spread(values: np.ndarray, dtype: type, fill: int = 0) -> np.ndarray:
        out: np.ndarray = np.full(num_sequences * width, fill, dtype)
        out[place] = values
        return out.reshape(num_sequences, width)

    most = int(state_counts.max(initial=0))
    columns = fix(sizes, "states", most, bucket(most))
    state_ids = np.zeros((num_sequences, columns), np.uint32)
    state_ids[grouped.sequence, state_rank] = grouped.ids
    for kind, these in (
        ("start", slice(0, marks.num_starts)),
        ("end", slice(marks.num_starts, None)),
    ):
        owner = marks.sequence[these]
        rank, counts = ranks(owner, num_sequences)
        most = int(counts.max(initial=0))
        shape = num_sequences, fix(sizes, f"{kind}s", most, max(most, 1))
        leaves[f"{kind}_states"] = np.full(shape, -1, np.int32)
        leaves[f"{kind}_states"][owner, rank] = state_rank[grouped.mark_place[these]]
        leaves[f"{kind}_weights"] = np.zeros(shape, np.float32)
        leaves[f"{kind}_weights"][owner, rank] = marks.weight[these]
    return leaves | {
        "weights": spread(weights[position], np.float32),
        "edge_from": spread(state_rank[grouped.from_place], np.int32),
        "edge_to": spread(state_rank[grouped.to_place], np.int32),
        "edge_emission": spread(emission, np.int32),
        "edge_position": spread(position, np.int32, -1),
        "state_ids": state_ids,
        "num_states": state_counts.astype(np.int32),
        "band": band,
    }
