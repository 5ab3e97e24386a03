"""Which states belong to which sequence (numpy only)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Grouped", "Marks", "group_states"]


class Marks(NamedTuple):
    """Start and end states of all sequences, those of the starts first, each by sequence."""

    state: np.ndarray  # [M] uint32
    sequence: np.ndarray  # [M] int64
    weight: np.ndarray  # [M] float32, costs
    num_starts: int
    num_sequences: int


class Grouped(NamedTuple):
    """Which states there are, and where edges and marks refer to them."""

    ids: np.ndarray  # [N] uint32, the numbers given, sorted by sequence, then by number
    sequence: np.ndarray  # [N] sequence of each
    from_place: np.ndarray  # [E] index into these
    to_place: np.ndarray  # [E]
    mark_place: np.ndarray  # [M]


def group_states(edges: np.ndarray, marks: Marks, limits: np.ndarray | None) -> Grouped:
    """Finds out which states belong to which sequence.

    Args:
        edges: [4, E] uint32.
        marks: start and end states.
        limits: [2, B] uint32, the lowest and highest state of each sequence; states outside of
            them that lead nowhere are refused.  None: not checked.

    Returns:
        The states.

    Raises:
        ValueError: if two sequences share a state, or an edge leaves its sequence's states.
    """
    seq = edges[3].astype(np.int64)
    has_edges = np.zeros(marks.num_sequences, bool)
    has_edges[seq] = True
    # A sequence without edges shares nothing: its states are appended apart.
    used = has_edges[marks.sequence]
    numbers_used, owners_used = marks.state[used], marks.sequence[used]
    top = int(max(edges[:2].max(initial=0), marks.state.max(initial=0))) + 1
    if top <= 8 * (edges.shape[1] + len(used)) + (1 << 16):
        numbers, from_state, to_state, marked = None, edges[0], edges[1], numbers_used
        size = top
    else:
        numbers, inverse = np.unique(
            np.concatenate([edges[0], edges[1], numbers_used]), return_inverse=True
        )
        count = edges.shape[1]
        from_state, to_state = inverse[:count], inverse[count : 2 * count]
        marked = inverse[2 * count :]
        size = len(numbers)
    owner = np.full(size, -1, np.int64)
    owner[from_state] = seq
    owner[to_state] = seq
    owner[marked] = owners_used
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
    bad = owner[marked] != owners_used
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"state {numbers_used[at]}, a start or end state of sequence {owners_used[at]}, is "
            f"also used by sequence {owner[marked][at]}; no two sequences may share a state"
        )
    present = np.flatnonzero(owner >= 0)
    sequence = owner[present]
    if (np.diff(sequence) < 0).any():
        order = np.argsort(sequence, kind="stable")
        present, sequence = present[order], sequence[order]
    place = np.empty(size, np.int64)
    place[present] = np.arange(len(present))
    ids = (present if numbers is None else numbers[present]).astype(np.uint32)
    from_place, to_place = place[from_state], place[to_state]
    if limits is not None:
        _check_dangling(edges, limits, ids, sequence, from_place, to_place)
    mark_place = np.zeros(len(used), np.int64)
    mark_place[used] = place[marked]
    grouped = Grouped(ids, sequence, from_place, to_place, mark_place)
    return grouped if used.all() else _insert_empty(grouped, marks, used)


def _check_dangling(
    edges: np.ndarray,
    limits: np.ndarray,
    ids: np.ndarray,
    sequence: np.ndarray,
    from_place: np.ndarray,
    to_place: np.ndarray,
) -> None:
    """Refuses states that lie outside of [start, end] and lead nowhere: they are a slip."""
    outside = (ids < limits[0, sequence]) | (ids > limits[1, sequence])
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
            f"{state} lies outside of {limits[0, b]}..{limits[1, b]}, the start and end state of "
            f"sequence {b}, and no path goes through it"
        )


def _insert_empty(grouped: Grouped, marks: Marks, used: np.ndarray) -> Grouped:
    """Adds the states of the sequences without edges."""
    pairs, inverse = np.unique(
        np.stack([marks.sequence[~used], marks.state[~used].astype(np.int64)]),
        axis=1,
        return_inverse=True,
    )
    sequence = np.concatenate([grouped.sequence, pairs[0]])
    order = np.argsort(sequence, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    count = len(grouped.ids)
    mark_place = np.empty_like(grouped.mark_place)
    mark_place[used] = place[:count][grouped.mark_place[used]]
    mark_place[~used] = place[count:][inverse.reshape(-1)]
    return Grouped(
        np.concatenate([grouped.ids, pairs[1].astype(np.uint32)])[order],
        sequence[order],
        place[grouped.from_place],
        place[grouped.to_place],
        mark_place,
    )
