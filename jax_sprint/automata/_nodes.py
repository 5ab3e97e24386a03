"""From edges to the tables that the kernels walk over, all of it vectorised (numpy only).

The kernels do not walk over states and edges as Sprint numbers them but over *nodes*: a node is a
pair (state, emission of the edges that enter it), besides one node for each start state, before any
frame.

    edge list                              nodes of the sequence
       (0)--a-->(1)--b-->(2)                 0: start
                 |                           1: (1, a)   <- 0
                 +---c-->(3)                 2: (2, b)   <- 1
                                             3: (3, c)   <- 1

So each node has one emission, whose scores are gathered once for all frames, and what is left
inside the recursion is to collect the nodes before a node.  Where a state is entered with several
emissions, an edge that leaves it appears once for each of these nodes.

Edges into an end state that no edge leaves can only be the last of a path.  They are kept apart, by
the node that they leave (`last_arc`), and enter after the recursion: otherwise one state that half
the others lead to would widen the tables of all.

Where every arc leads from node v - d to node v with a small d >= 0 (CTC, HMM: d is 0, 1 or 2) the
tables form a *band*: slot d belongs to the predecessor v - d, and no index is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jax_sprint.automata._sizes import bucket, degree_bucket, fix, ranks
from jax_sprint.automata._states import Grouped, Marks

__all__ = ["node_tables"]

# A band of width D costs about what D / 2 gathered slots cost (measured on CPU).
_MAX_BAND = 16

# A node that so many edges leave into end states is rare enough to treat these as others.
_MAX_LAST = 16


def node_tables(
    grouped: Grouped,
    marks: Marks,
    emission: np.ndarray,
    edge_sequence: np.ndarray,
    edge_rank: np.ndarray,
    sizes: Mapping[str, int],
) -> tuple[dict[str, np.ndarray | None], int]:
    """Builds the kernels' tables.

    Args:
        grouped: the states, and the edges' indices into them, the edges sorted by sequence.
        marks: start and end states.
        emission: [E].
        edge_sequence: [E] sequence of each edge.
        edge_rank: [E] place of each edge among those of its sequence.
        sizes: padded sizes that the caller fixes.

    Returns:
        The leaves of `Automata` that are about nodes, and the width of the band (0: none).
    """
    num_sequences, num_states = marks.num_sequences, len(grouped.ids)
    from_place, to_place = grouped.from_place, grouped.to_place
    span = int(emission.max(initial=0)) + 1
    start_rank, counts = ranks(marks.sequence[: marks.num_starts], num_sequences)
    most = int(counts.max(initial=0))
    starts = fix(sizes, "starts", most, max(most, 1))
    start_place = grouped.mark_place[: marks.num_starts]
    end_rank = np.full(num_states, -1, np.int64)
    end_rank[grouped.mark_place[marks.num_starts :]] = ranks(
        marks.sequence[marks.num_starts :], num_sequences
    )[0]

    dead_end = end_rank >= 0
    dead_end[from_place] = False
    is_last = dead_end[to_place]
    for keep_apart in (True, False):
        if not keep_apart:
            is_last = np.zeros(len(to_place), bool)
        nodes = _nodes(grouped, emission, is_last, span, num_sequences, starts)
        arc, source = _arcs(grouped, nodes, start_place, start_rank)
        needed = int(nodes.counts.max(initial=0)) + starts
        width = fix(sizes, "nodes", needed, bucket(needed))
        last = is_last[arc]
        at_source = edge_sequence[arc] * width + source
        most = int(np.bincount(at_source[last], minlength=1).max(initial=0))
        if most <= max(_MAX_LAST, sizes.get("last_arcs", 0)):
            break
    slots = fix(sizes, "last_arcs", most, degree_bucket(most))

    leaves: dict[str, np.ndarray | None] = {}
    final, at = arc[last], at_source[last]
    order = np.argsort(at, kind="stable")
    final, at = final[order], at[order]
    slot, _ = ranks(at, num_sequences * width)
    cell = (edge_sequence[final] * slots + slot) * width + at % width
    last_arc = np.full((num_sequences, slots, width), -1, np.int32)
    last_arc.reshape(-1)[cell] = edge_rank[final]
    last_end = np.zeros((num_sequences, slots, width), np.int32)
    last_end.reshape(-1)[cell] = end_rank[to_place[final]]
    leaves.update(last_arc=last_arc, last_end=last_end)

    arc, source = arc[~last], source[~last]
    target = nodes.rank[nodes.of_edge[arc]] if len(arc) else source
    tables, band = _arc_tables(
        edge_sequence[arc], edge_rank[arc], source, target, num_sequences, width, sizes
    )
    leaves.update(tables)

    flat_node = nodes.sequence * width + nodes.rank
    flat_start = marks.sequence[: marks.num_starts] * width + start_rank
    label = np.full((num_sequences, width), -1, np.int32)
    label.reshape(-1)[flat_node] = nodes.label
    node_start = np.full((num_sequences, width), -1, np.int32)
    node_start.reshape(-1)[flat_start] = start_rank
    node_end = np.full((num_sequences, width), -1, np.int32)
    node_end.reshape(-1)[flat_node] = end_rank[nodes.state]
    node_end.reshape(-1)[flat_start] = end_rank[start_place]
    leaves.update(node_label=label, node_start=node_start, node_end=node_end)

    # Distinct labels of each sequence: posteriors are summed over these before they are spread.
    pairs, place = np.unique(
        np.concatenate(
            [nodes.sequence * span + nodes.label, edge_sequence[final] * span + emission[final]]
        ),
        return_inverse=True,
    )
    pair_sequence, pair_label = np.divmod(pairs, span)
    pair_rank, pair_counts = ranks(pair_sequence, num_sequences)
    needed = int(pair_counts.max(initial=0))
    labels = fix(sizes, "slots", needed, bucket(needed))
    slot_label = np.full((num_sequences, labels), -1, np.int32)
    slot_label[pair_sequence, pair_rank] = pair_label
    node_slot = np.full((num_sequences, width), labels, np.int32)
    last_slot = np.full((num_sequences, slots, width), labels, np.int32)
    if len(pairs):
        of_place = pair_rank[place]
        node_slot.reshape(-1)[flat_node] = of_place[: len(nodes.rank)]
        last_slot.reshape(-1)[cell] = of_place[len(nodes.rank) :]
    leaves.update(slot_label=slot_label, node_slot=node_slot, last_slot=last_slot)
    return leaves, band


class _Nodes(NamedTuple):
    """The nodes other than those of the start states, sorted by sequence."""

    state: np.ndarray  # index into the states
    label: np.ndarray
    sequence: np.ndarray
    rank: np.ndarray  # column
    counts: np.ndarray  # [B]
    of_edge: np.ndarray  # [E] the node that the edge enters; meaningless where it is a last one


def _nodes(
    grouped: Grouped,
    emission: np.ndarray,
    is_last: np.ndarray,
    span: int,
    num_sequences: int,
    starts: int,
) -> _Nodes:
    keys, node = np.unique((grouped.to_place * span + emission)[~is_last], return_inverse=True)
    of_edge = np.zeros(len(is_last), np.int64)
    of_edge[~is_last] = node
    state, label = np.divmod(keys, span)
    sequence = grouped.sequence[state]
    rank, counts = ranks(sequence, num_sequences)
    return _Nodes(state, label, sequence, rank + starts, counts, of_edge)


def _arcs(
    grouped: Grouped,
    nodes: _Nodes,
    start_place: np.ndarray,
    start_rank: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Arcs between nodes: an edge leaves every node of its from state.

    Returns:
        The edge and the column of the source node of each arc.
    """
    from_place = grouped.from_place
    of_state = np.concatenate([start_place, nodes.state])
    rank = np.concatenate([start_rank, nodes.rank])
    per_state = np.bincount(of_state, minlength=len(grouped.ids))
    first = np.cumsum(per_state) - per_state
    rank = rank[np.argsort(of_state, kind="stable")]
    repeats = per_state[from_place]
    if (repeats == 1).all():
        return np.arange(len(from_place)), rank[first[from_place]]
    arc = np.repeat(np.arange(len(from_place)), repeats)
    within = np.arange(len(arc)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return arc, rank[first[from_place][arc] + within]


def _arc_tables(
    sequence: np.ndarray,
    edge: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    num_sequences: int,
    width: int,
    sizes: Mapping[str, int],
) -> tuple[dict[str, np.ndarray | None], int]:
    """`in_arc` and so on, and the width of the band, of the arcs that are given."""
    flat_target, flat_source = sequence * width + target, sequence * width + source
    in_degree = int(np.bincount(flat_target, minlength=1).max(initial=0)) if len(edge) else 0
    out_degree = int(np.bincount(flat_source, minlength=1).max(initial=0)) if len(edge) else 0
    edge = edge.astype(np.int32)
    offset = target - source
    reach = int(offset.max(initial=0)) + 1
    band = 0
    wanted = sizes.get("band")
    limit = min(_MAX_BAND, 2 * in_degree + 1) if wanted is None else wanted
    if reach <= limit and offset.min(initial=0) >= 0:
        band = wanted if wanted else degree_bucket(reach)
        cell = (sequence * band + offset) * width + target
        if (np.bincount(cell, minlength=1).max(initial=0) if len(edge) else 0) > 1:
            band = 0  # parallel edges with one emission
    if wanted and not band:
        raise ValueError(
            f"pad_to['band'] is {wanted}, but this batch's arcs do not fit into such a band; "
            "pad_to={'band': 0, ...} on every host makes all of them use tables"
        )
    if band:
        table = np.full((num_sequences, band, width), -1, np.int32)
        table.reshape(-1)[cell] = edge
        return {"in_arc": table, "in_node": None, "out_arc": None, "out_node": None}, band
    leaves: dict[str, np.ndarray | None] = {}
    for side, here, other, degree in (
        ("in", flat_target, source, in_degree),
        ("out", flat_source, target, out_degree),
    ):
        slots = fix(sizes, f"{side}_arcs", degree, degree_bucket(degree))
        order = np.argsort(here, kind="stable")
        slot, _ = ranks(here[order], num_sequences * width)
        b, v = np.divmod(here[order], width)
        arcs = np.full((num_sequences, slots, width), -1, np.int32)
        nodes = np.zeros((num_sequences, slots, width), np.int32)
        arcs[b, slot, v] = edge[order]
        nodes[b, slot, v] = other[order]
        leaves[f"{side}_arc"], leaves[f"{side}_node"] = arcs, nodes
    return leaves, 0
