"""Packing of an edge list into padded tables, all of it vectorised over edges (numpy only).

The kernel does not walk over states and edges as Sprint numbers them but over *nodes*: a node is a
pair (state, emission of the edges that enter it), plus one node for the start before any frame.

    edge list                              nodes of the sequence
       (0)--a-->(1)--b-->(2)                 0: start
                 |                           1: (1, a)   <- 0
                 +---c-->(2)                 2: (2, b)   <- 1
                                             3: (2, c)   <- 1

So each node has one emission, whose scores are gathered once for all frames, and what is left
inside the recursion is to collect the nodes before a node.  Where a state is entered with several
emissions, an edge that leaves it appears once for each of these nodes.

Where every arc leads from node v - d to node v with a small d >= 0 (CTC, HMM: d is 0, 1 or 2) the
tables form a *band*: slot d belongs to the predecessor v - d, and no index is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["SIZES", "bucket", "group_states", "node_tables"]

SIZES = ("edges", "states", "nodes", "slots", "band", "in_arcs", "out_arcs")
"""Names of the padded sizes, as in `Automata.sizes`."""

# A band of width D costs about what D / 2 gathered slots cost (measured on CPU).
_MAX_BAND = 16


def bucket(size: int, minimum: int = 8) -> int:
    """Rounds up to 2^k or 1.5 * 2^k, so that ragged batches share few shapes."""
    if size <= minimum:
        return minimum
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def _degree_bucket(size: int) -> int:
    return max(size, 1) if size <= 6 else bucket(size, 6)


def _fix(sizes: Mapping[str, int], name: str, needed: int, default: int) -> int:
    """The padded size: what `pad_to` demands, checked, or the bucket."""
    if name not in sizes:
        return default
    if sizes[name] < needed:
        raise ValueError(
            f"pad_to[{name!r}] is {sizes[name]}, but this batch needs {needed}; take the maximum "
            "over all hosts of Automata.sizes"
        )
    return int(sizes[name])


def _ranks(groups: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Place of each entry within its group (`groups` is sorted), and the sizes of the groups."""
    counts = np.bincount(groups, minlength=num_groups)
    first = np.cumsum(counts) - counts
    return np.arange(len(groups)) - first[groups], counts


def group_states(
    edges: np.ndarray, states: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Finds out which states belong to which sequence.

    Args:
        edges: [4, E] uint32.
        states: [2, B] uint32, start and end states.

    Returns:
        Five arrays: the state numbers as given, sorted by sequence, then by number [N] uint32; the
        sequence of each [N]; the indices into these of each edge's from and to [E], and of the
        start and end states [2, B].

    Raises:
        ValueError: if two sequences share a state, or an edge leaves its sequence's states.
    """
    num_sequences = states.shape[1]
    seq = edges[3].astype(np.int64)
    has_edges = np.zeros(num_sequences, bool)
    has_edges[seq] = True
    # A sequence without edges shares nothing: its two states are appended apart.
    used = np.flatnonzero(has_edges)
    top = int(max(edges[:2].max(initial=0), states.max(initial=0))) + 1
    if top <= 8 * (edges.shape[1] + num_sequences) + (1 << 16):
        numbers, from_state, to_state, ends = None, edges[0], edges[1], states[:, used]
        size = top
    else:
        numbers, inverse = np.unique(
            np.concatenate([edges[0], edges[1], states[:, used].ravel()]), return_inverse=True
        )
        count = edges.shape[1]
        from_state, to_state = inverse[:count], inverse[count : 2 * count]
        ends = inverse[2 * count :].reshape(2, -1)
        size = len(numbers)
    owner = np.full(size, -1, np.int64)
    owner[from_state] = seq
    owner[to_state] = seq
    owner[ends] = used
    bad = (owner[from_state] != seq) | (owner[to_state] != seq)
    if bad.any():
        at = int(np.argmax(bad))
        row = 0 if owner[from_state[at]] != seq[at] else 1
        other = owner[(from_state, to_state)[row][at]]
        raise ValueError(
            f"edges[:, {at}] = {edges[:, at].tolist()} does not belong to its sequence: state "
            f"{edges[row, at]} is used by sequence {other}, edges[3, {at}] says {seq[at]}; no two "
            "sequences may share a state"
        )
    if (owner[ends] != used).any():
        at = int(np.argmax((owner[ends] != used).any(axis=0)))
        raise ValueError(
            f"start_end_states[:, {used[at]}] = {states[:, used[at]].tolist()} is also used by "
            f"sequence {owner[ends][:, at].max()}; no two sequences may share a state"
        )
    present = np.flatnonzero(owner >= 0)
    sequence = owner[present]
    if (np.diff(sequence) < 0).any():
        order = np.argsort(sequence, kind="stable")
        present, sequence = present[order], sequence[order]
    place = np.empty(size, np.int64)
    place[present] = np.arange(len(present))
    _check_dangling(
        edges,
        states,
        present if numbers is None else numbers[present],
        sequence,
        place[from_state],
        place[to_state],
    )
    ids = (present if numbers is None else numbers[present]).astype(np.uint32)
    end_places = np.zeros((2, num_sequences), np.int64)
    end_places[:, used] = place[ends]
    empty = np.flatnonzero(~has_edges)
    if len(empty):
        ids, sequence, shift, end_places = _insert_empty(ids, sequence, states, empty, end_places)
        return ids, sequence, shift[place[from_state]], shift[place[to_state]], end_places
    return ids, sequence, place[from_state], place[to_state], end_places


def _check_dangling(
    edges: np.ndarray,
    states: np.ndarray,
    ids: np.ndarray,
    sequence: np.ndarray,
    from_place: np.ndarray,
    to_place: np.ndarray,
) -> None:
    """Refuses states that lie outside of [start, end] and lead nowhere: they are a slip."""
    outside = (ids < states[0, sequence]) | (ids > states[1, sequence])
    if not outside.any():
        return
    left = np.zeros(len(ids), bool)
    entered = np.zeros(len(ids), bool)
    left[from_place] = True
    entered[to_place] = True
    bad = outside & ~(left & entered)
    if bad.any():
        state = int(ids[np.argmax(bad)])
        b = int(sequence[np.argmax(bad)])
        at = int(np.argmax((edges[0] == state) | (edges[1] == state)))
        raise ValueError(
            f"edges[:, {at}] = {edges[:, at].tolist()} does not belong to its sequence: state "
            f"{state} lies outside of {states[0, b]}..{states[1, b]}, the start and end state of "
            f"sequence {b}, and no path goes through it"
        )


def _insert_empty(
    ids: np.ndarray,
    sequence: np.ndarray,
    states: np.ndarray,
    empty: np.ndarray,
    end_places: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Adds the states of sequences without edges: one, or two where start and end differ."""
    extra_ids = np.concatenate([states[0, empty], states[1, empty]])
    extra_sequence = np.concatenate([empty, empty])
    keep = np.concatenate([np.ones(len(empty), bool), states[0, empty] != states[1, empty]])
    all_sequence = np.concatenate([sequence, extra_sequence[keep]])
    order = np.argsort(all_sequence, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    moved = place[: len(ids)]
    end_places = end_places.copy()
    if len(ids):
        end_places = moved[end_places]
    first = np.searchsorted(all_sequence[order], empty)
    end_places[0, empty] = first
    end_places[1, empty] = first + (states[0, empty] != states[1, empty])
    all_ids = np.concatenate([ids, extra_ids[keep]])
    return all_ids[order], all_sequence[order], moved, end_places


def node_tables(
    sequence: np.ndarray,
    from_place: np.ndarray,
    to_place: np.ndarray,
    emission: np.ndarray,
    edge_sequence: np.ndarray,
    edge_rank: np.ndarray,
    end_places: np.ndarray,
    sizes: Mapping[str, int],
) -> tuple[dict[str, np.ndarray | None], int]:
    """Builds the kernel's tables.

    Args:
        sequence: [N] sequence of each state, sorted.
        from_place, to_place: [E] indices into the states.
        emission: [E].
        edge_sequence: [E] sequence of each edge.
        edge_rank: [E] place of each edge among those of its sequence.
        end_places: [2, B] indices of start and end states.
        sizes: padded sizes that the caller fixes.

    Returns:
        The leaves `node_label`, `node_slot`, `slot_label`, `node_final`, `in_arc`, `in_node`,
        `out_arc`, `out_node` of `Automata`, and the width of the band (0: none).
    """
    num_sequences = end_places.shape[1]
    num_states = len(sequence)
    span = int(emission.max(initial=0)) + 1
    keys, node = np.unique(to_place * span + emission, return_inverse=True)
    node_state, node_label = np.divmod(keys, span)
    node_sequence = sequence[node_state]
    node_rank, node_counts = _ranks(node_sequence, num_sequences)
    node_rank = node_rank + 1  # node 0 is the start

    # Arcs from nodes: an edge leaves every node of its from state, and the start node.
    per_state = np.bincount(node_state, minlength=num_states)
    first_node = np.cumsum(per_state) - per_state
    repeats = per_state[from_place]
    at_start = from_place == end_places[0, edge_sequence]
    if (repeats == 1).all():
        arc = np.arange(len(from_place))
        source = node_rank[first_node[from_place]] if len(keys) else arc
    else:
        arc = np.repeat(np.arange(len(from_place)), repeats)
        within = np.arange(len(arc)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        source = node_rank[first_node[from_place][arc] + within] if len(keys) else arc
    starting = np.flatnonzero(at_start)
    arc = np.concatenate([arc, starting])
    source = np.concatenate([source, np.zeros(len(starting), np.int64)])
    target = node_rank[node[arc]] if len(keys) else source
    arc_sequence = edge_sequence[arc]

    needed = int(node_counts.max(initial=0)) + 1
    width = _fix(sizes, "nodes", needed, bucket(needed))
    flat_target = arc_sequence * width + target
    flat_source = arc_sequence * width + source
    rows = num_sequences * width
    in_degree = int(np.bincount(flat_target, minlength=1).max(initial=0)) if len(arc) else 0
    out_degree = int(np.bincount(flat_source, minlength=1).max(initial=0)) if len(arc) else 0

    offset = target - source
    reach = int(offset.max(initial=0)) + 1
    band = 0
    wanted = sizes.get("band")
    limit = min(_MAX_BAND, 2 * in_degree + 1) if wanted is None else wanted
    if reach <= limit and offset.min(initial=0) >= 0:
        band = wanted if wanted else _degree_bucket(reach)
        cell = (arc_sequence * band + offset) * width + target
        if (np.bincount(cell, minlength=1).max(initial=0) if len(arc) else 0) > 1:
            band = 0  # parallel edges with one emission
    if wanted and not band:
        raise ValueError(
            f"pad_to['band'] is {wanted}, but this batch's arcs do not fit into such a band; "
            "pad_to={'band': 0, ...} on every host makes all of them use tables"
        )

    leaves: dict[str, np.ndarray | None] = {}
    ranks = edge_rank[arc].astype(np.int32)
    if band:
        table = np.full((num_sequences, band, width), -1, np.int32)
        table.reshape(-1)[cell] = ranks
        leaves.update(in_arc=table, in_node=None, out_arc=None, out_node=None)
    else:
        for side, here, other, degree in (
            ("in", flat_target, source, in_degree),
            ("out", flat_source, target, out_degree),
        ):
            name = f"{side}_arcs"
            slots = _fix(sizes, name, degree, _degree_bucket(degree))
            order = np.argsort(here, kind="stable")
            slot, _ = _ranks(here[order], rows)
            b, v = np.divmod(here[order], width)
            arcs = np.full((num_sequences, slots, width), -1, np.int32)
            nodes = np.zeros((num_sequences, slots, width), np.int32)
            arcs[b, slot, v] = ranks[order]
            nodes[b, slot, v] = other[order]
            leaves[f"{side}_arc"], leaves[f"{side}_node"] = arcs, nodes

    flat_node = node_sequence * width + node_rank
    label = np.full((num_sequences, width), -1, np.int32)
    label.reshape(-1)[flat_node] = node_label
    final = np.zeros((num_sequences, width), bool)
    final.reshape(-1)[flat_node] = node_state == end_places[1, node_sequence]
    final[:, 0] = end_places[0] == end_places[1]
    leaves.update(node_label=label, node_final=final)

    # Distinct labels of each sequence: posteriors are summed over these before they are spread.
    pairs, slot = np.unique(node_sequence * span + node_label, return_inverse=True)
    pair_sequence, pair_label = np.divmod(pairs, span)
    pair_rank, pair_counts = _ranks(pair_sequence, num_sequences)
    needed = int(pair_counts.max(initial=0))
    slots = _fix(sizes, "slots", needed, bucket(needed))
    slot_label = np.full((num_sequences, slots), -1, np.int32)
    slot_label[pair_sequence, pair_rank] = pair_label
    node_slot = np.full((num_sequences, width), slots, np.int32)
    if len(keys):
        node_slot.reshape(-1)[flat_node] = pair_rank[slot]
    leaves.update(slot_label=slot_label, node_slot=node_slot)
    return leaves, band
