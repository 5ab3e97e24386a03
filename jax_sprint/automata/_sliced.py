"""Packing of one automaton that a whole batch shares, such as a denominator (numpy only).

A batch keeps a table per sequence, padded to the largest in-degree.  Here degrees may differ a
thousandfold, and one table serves all sequences, so its rows are *sliced*: sorted by degree and cut
into dense blocks of nearly equal degree,

    degree 0 | degree 1 | degree 2 | ... | up to 8 | more

and a row of higher degree is cut into pieces of up to 8, whose sums are the sources of a smaller
table of the same kind.  So the work is linear in the arcs, with little padding.  The order in which
the blocks follow each other *is* the numbering of states, nodes and labels inside the kernel (their
*places*), so that nothing has to be permuted there.

Arcs into an end state can only be taken in the last frame of a sequence: they are kept apart, as
*closing* arcs, and a state that no arc leaves is none of the recursion's.  The other arcs are
grouped into nodes, pairs of the state entered and the label emitted.  A state with one node is that
node; where a state has several, a table collects the state from its nodes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jax_sprint.automata._slices import ONCE, Plan, Slice, Table, ranks, rounded

__all__ = ["Slice", "Sliced", "Table", "slice_automaton"]

Array = Any


class Sliced(NamedTuple):
    """The tables of one automaton.  All are int32; *place* is explained above.

    Below, S and S' are numbers of states by the order of `single`, `merge`, `idle` and by that of
    `leaving`; N is that of nodes, U that of labels in use, C that of closing arcs (once for each
    mention of their end state), A that of start states and E that of edges.

    Attributes:
        single: states that have one node, from the states before.
        multi: nodes of the states that have several, from the states before.
        merge: those states, from the nodes of `multi`.
        idle: [I], one entry for each state that is never entered; they come last.
        leaving: states, in an order of their own, from the nodes that their arcs enter.
        labels: labels, from nodes.
        node_slot: [N] place of the node's label.
        node_leaving: [N] place in `leaving` of the node's state.
        slot_label: [U] the label, -1 on padding.
        start_entry: [M, S] entries of the automaton's list of start states, -1: none.
        start_leaving: [A] place in `leaving` of the start state.
        closing_arc, closing_end, closing_state, closing_slot: [C] edge, entry in the list of end
            states, place of the state that is left, and place of the label; -1 on padding, in the
            order of edges.
        exits: states, in an order of their own, from labels, over the closing arcs.
        exit_state, exit_leaving: [S], [S'] place in `exits` of each state.
        last: labels, in an order of their own, from states, over the closing arcs.
        last_slot: [U] place in `last` of each label.
        ends: end states, in an order of their own, from closing arcs.
        end_place: [Z] place in `ends` of each entry of the automaton's list of end states.
        empty: [P, 2] entries of the lists of start and end states that are the same state, -1 on
            padding: the paths without any edge.
        empty_start, empty_end: [M, A], [M, Z] the entries of `empty` in which a start or end state
            occurs, -1: none.
        arc_cell: [E] place of the edge among the entries of `single` and `multi`, slice after slice
            and within it column after column; behind the last one where it has none.
        arc_closing: [M, E] the closing arcs of each edge, -1: none.
        enter_begin, enter_count: [S] where the edges into the state start in the lists below.
        enter_arc, enter_source, enter_slot: [F] edge, place of the state that it leaves and of its
            label, sorted by state entered, then by edge.
        enter_span: [D] 0, 1, ...: as many as edges enter any one state.
    """

    single: Table
    multi: Table
    merge: Table
    idle: Array
    leaving: Table
    labels: Table
    node_slot: Array
    node_leaving: Array
    slot_label: Array
    start_entry: Array
    start_leaving: Array
    closing_arc: Array
    closing_end: Array
    closing_state: Array
    closing_slot: Array
    exits: Table
    exit_state: Array
    exit_leaving: Array
    last: Table
    last_slot: Array
    ends: Table
    end_place: Array
    empty: Array
    empty_start: Array
    empty_end: Array
    arc_cell: Array
    arc_closing: Array
    enter_begin: Array
    enter_count: Array
    enter_arc: Array
    enter_source: Array
    enter_slot: Array
    enter_span: Array


def _padded(values: np.ndarray, size: int, fill: int = -1) -> np.ndarray:
    out = np.full(size, fill, np.int32)
    out[: len(values)] = values
    return out


def _entries(keys: np.ndarray, count: int) -> np.ndarray:
    """[M, count]: the indices at which each key occurs, -1 behind them; keys < 0 are left out."""
    index = np.flatnonzero(keys >= 0)
    rank = ranks(keys[index], count)
    table = np.full((int(rank.max(initial=0)) + 1, count), -1, np.int32)
    table[rank, keys[index]] = index
    return table


def _joined(left: np.ndarray, right: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of indices (i, j) with left[i] == right[j], in the order of i; keys < count."""
    order = np.argsort(right, kind="stable")
    sizes = np.bincount(right, minlength=count)
    first = np.cumsum(sizes) - sizes
    repeats = sizes[left]
    i = np.repeat(np.arange(len(left)), repeats)
    within = np.arange(len(i)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return i, order[first[left][i] + within]


def slice_automaton(
    edge_from: np.ndarray,
    edge_to: np.ndarray,
    edge_emission: np.ndarray,
    num_edges: int,
    start_states: np.ndarray,
    end_states: np.ndarray,
    num_states: int,
    *,
    every: bool = False,
) -> Sliced:
    """Builds the tables.

    Args:
        edge_from, edge_to, edge_emission: [E] int, E >= `num_edges`; what follows is padding.
        num_edges: number of edges.
        start_states, end_states: [A], [Z] int, -1 on padding.
        num_states: number of states.
        every: make slices of all degrees, also those without any row, so that small automata
            share shapes.

    Returns:
        The tables.
    """
    source, target, label = (
        np.asarray(part[:num_edges], np.int64) for part in (edge_from, edge_to, edge_emission)
    )
    starts, ends = np.flatnonzero(start_states >= 0), np.flatnonzero(end_states >= 0)
    left = np.bincount(source, minlength=num_states)
    inner = np.flatnonzero(left[target] > 0)
    closing, end = _joined(target, end_states[ends], num_states)
    end = ends[end]

    # Labels in use, and nodes.
    used, slot = np.unique(label, return_inverse=True)
    slot = slot.reshape(-1)
    keys, node = np.unique(target[inner] * max(len(used), 1) + slot[inner], return_inverse=True)
    node = node.reshape(-1)
    node_state, node_label = np.divmod(keys, max(len(used), 1))
    nodes_of = np.bincount(node_state, minlength=num_states)
    alone = nodes_of[node_state] == 1

    # Places of states and nodes.
    state = np.full(num_states, -1, np.int64)
    number = np.cumsum(alone) - 1
    single_arcs = np.flatnonzero(alone[node])
    single = Plan(number[node[single_arcs]], int(alone.sum()), every, not alone.any())
    state[node_state[alone]] = single.place
    number_multi = np.cumsum(~alone) - 1
    multi_arcs = np.flatnonzero(~alone[node])
    multi = Plan(number_multi[node[multi_arcs]], int((~alone).sum()), every, False)
    many = np.flatnonzero(nodes_of > 1)
    row_of = np.zeros(num_states, np.int64)
    row_of[many] = np.arange(len(many))
    merge = Plan(row_of[node_state[~alone]], len(many), every, False)
    state[many] = single.size + merge.place
    idle = np.flatnonzero(nodes_of == 0)
    state[idle] = single.size + merge.size + np.arange(len(idle))
    num_idle = rounded(len(idle) + 1)
    num_places = single.size + merge.size + num_idle
    place = np.zeros(len(keys), np.int64)
    place[alone] = single.place
    place[~alone] = single.size + multi.place
    num_nodes = single.size + multi.size

    inner_source = state[source[inner]]
    leaving = Plan(source[inner], num_states, every)
    labels = Plan(node_label, len(used), every, not len(used))
    node_slot = np.zeros(num_nodes, np.int32)
    node_slot[place] = labels.place[node_label]
    node_leaving = np.zeros(num_nodes, np.int32)
    node_leaving[place] = leaving.place[node_state]
    slot_label = np.full(labels.size, -1, np.int32)
    slot_label[labels.place] = used

    exits = Plan(source[closing], num_states, every, depth=ONCE)
    number_closing = np.arange(len(closing))
    unused = int(exits.blocks[0][1]) - 1  # degree 0 has a row to spare
    exit_state = np.full(num_places, unused, np.int32)
    exit_state[state] = exits.place
    exit_leaving = np.full(leaving.size, unused, np.int32)
    exit_leaving[leaving.place] = exits.place
    last = Plan(slot[closing], len(used), every, depth=ONCE)
    last_slot = np.full(labels.size, int(last.blocks[0][1]) - 1, np.int32)
    last_slot[labels.place] = last.place

    end_entries = Plan(end, len(end_states), every, depth=ONCE)

    cell = np.empty(len(inner), np.int64)
    cell[single_arcs] = single.cell
    cell[multi_arcs] = single.cells + multi.cell
    arc_cell = np.full(len(edge_from), single.cells + multi.cells, np.int32)
    arc_cell[inner] = cell
    arc_closing = _entries(closing, len(edge_from))

    start_place = np.full(len(start_states), -1, np.int64)
    start_place[starts] = state[start_states[starts]]
    start_leaving = np.zeros(len(start_states), np.int32)
    start_leaving[starts] = leaving.place[start_states[starts]]
    first, second = _joined(start_states[starts], end_states[ends], num_states)
    empty = np.full((rounded(len(first)), 2), -1, np.int32)
    empty[: len(first)] = np.stack([starts[first], ends[second]], axis=1)

    entered = np.argsort(state[target[inner]], kind="stable")
    entries = inner[entered]
    count = np.bincount(state[target[inner]], minlength=num_places)
    room = rounded(max(len(inner), 64 * every))
    num_closing = rounded(len(closing))
    return Sliced(
        single=single.fill(inner_source[single_arcs], inner[single_arcs]),
        multi=multi.fill(
            inner_source[multi_arcs], inner[multi_arcs], target=single.size + multi.place
        ),
        merge=merge.fill(multi.place),
        idle=np.zeros(num_idle, np.int32),
        leaving=leaving.fill(place[node], inner),
        labels=labels.fill(place),
        node_slot=node_slot,
        node_leaving=node_leaving,
        slot_label=slot_label,
        start_entry=_entries(start_place, num_places),
        start_leaving=start_leaving,
        closing_arc=_padded(closing, num_closing),
        closing_end=_padded(end, num_closing),
        closing_state=_padded(state[source[closing]], num_closing),
        closing_slot=_padded(labels.place[slot[closing]], num_closing),
        exits=exits.fill(labels.place[slot[closing]], number_closing),
        exit_state=exit_state,
        exit_leaving=exit_leaving,
        last=last.fill(state[source[closing]], number_closing),
        last_slot=last_slot,
        ends=end_entries.fill(number_closing),
        end_place=end_entries.place.astype(np.int32),
        empty=empty,
        empty_start=_entries(empty[:, 0], len(start_states)),
        empty_end=_entries(empty[:, 1], len(end_states)),
        arc_cell=arc_cell,
        arc_closing=arc_closing,
        enter_begin=(np.cumsum(count) - count).astype(np.int32),
        enter_count=count.astype(np.int32),
        enter_arc=_padded(entries, room),
        enter_source=_padded(inner_source[entered], room),
        enter_slot=_padded(labels.place[slot[entries]], room),
        enter_span=np.arange(rounded(int(count.max(initial=1))), dtype=np.int32),
    )
