"""What single segments contribute to a packed batch, kept to be put together again (numpy only).

Where all padded sizes are fixed, a sequence's part of each leaf of `Automata` depends on its own
automaton alone, but for two numberings that run through the batch: `state_ids` and `edge_position`.
So these parts are kept, one after the other in one array per segment, and a batch is 32 copies of
such rows and two sums.  Nothing is checked twice.

A row belongs to the very arrays it was made of, which nobody may write to: whoever has a changed
automaton has other arrays, and gets another row.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Layout", "OneAutomaton", "Rows", "join", "keeps"]

OneAutomaton = tuple[int, int, np.ndarray, np.ndarray]
"""num_states, num_edges E, edges [3, E] uint32 (from, to, emission), weights [E] float32."""

# Of an entry, beside its arrays.
_ENTRY_BYTES = 500


class _Part(NamedTuple):
    """Where in a row a leaf lies."""

    name: str
    begin: int
    end: int
    shape: tuple[int, ...]
    dtype: np.dtype


class _Row(NamedTuple):
    edges: np.ndarray
    weights: np.ndarray
    values: np.ndarray  # int32, whatever the leaves' types
    num_bytes: int


def join(automata: Sequence[OneAutomaton]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers the states of several automata through, as `Automata.from_edges` takes them."""
    states = np.array([automaton[0] for automaton in automata], np.int64)
    counts = np.array([automaton[1] for automaton in automata], np.int64)
    first = np.cumsum(states) - states
    edges = np.empty((4, int(counts.sum())), np.uint32)
    own = [np.zeros((3, 0), np.uint32), *(automaton[2] for automaton in automata)]
    np.concatenate(own, axis=1, out=edges[:3])
    edges[:2] += np.repeat(first, counts).astype(np.uint32)
    edges[3] = np.repeat(np.arange(len(counts)), counts)
    weights = np.concatenate([np.zeros(0, np.float32), *(each[3] for each in automata)])
    return edges, weights, np.stack([first, first + states - 1]).astype(np.uint32)


def keeps(automaton: OneAutomaton) -> bool:
    """Whether its arrays will stay as they are."""
    return not (automaton[2].flags.writeable or automaton[3].flags.writeable)


class Layout:
    """Cuts packed batches of certain sizes into rows, and puts rows together.

    Args:
        leaves: all leaves of a packed batch by name, each [B, ...]; None where there is none.
    """

    def __init__(self, leaves: Mapping[str, np.ndarray | None]) -> None:
        self._parts: list[_Part] = []
        self._missing = [name for name, leaf in leaves.items() if leaf is None]
        begin = 0
        for name, leaf in leaves.items():
            if leaf is not None:
                if leaf.dtype.itemsize != 4:
                    raise TypeError(f"the leaf {name} has items of {leaf.dtype.itemsize} bytes")
                end = begin + leaf[:1].size
                self._parts.append(_Part(name, begin, end, leaf.shape[1:], leaf.dtype))
                begin = end
        self.size = begin
        """Of a row: so many numbers of four bytes."""

    def cut(
        self, leaves: Mapping[str, np.ndarray | None], automata: Sequence[OneAutomaton]
    ) -> list[np.ndarray]:
        """The rows of a batch that was packed from these automata, joined."""
        rows = np.empty((len(automata), self.size), np.int32)
        for part in self._parts:
            leaf = leaves[part.name]
            assert leaf is not None
            rows[:, part.begin : part.end] = leaf.reshape(len(automata), -1).view(np.int32)
        self._renumber(rows, automata, -1)
        # Each by itself, so that it can be let go by itself.
        return [row.copy() for row in rows]

    def assemble(
        self, rows: Sequence[np.ndarray], automata: Sequence[OneAutomaton]
    ) -> dict[str, np.ndarray | None]:
        """The leaves of a batch of these rows."""
        values = np.empty((len(rows), self.size), np.int32)
        np.concatenate(rows, out=values.reshape(-1))
        self._renumber(values, automata, 1)
        leaves: dict[str, np.ndarray | None] = dict.fromkeys(self._missing)
        for name, begin, end, shape, dtype in self._parts:
            leaf = np.ascontiguousarray(values[:, begin:end]).view(dtype)
            leaves[name] = leaf.reshape(len(rows), *shape)
        return leaves

    def _renumber(
        self, values: np.ndarray, automata: Sequence[OneAutomaton], direction: int
    ) -> None:
        """From numbers within the segment to those within the batch, or back."""
        counts = np.array([automaton[:2] for automaton in automata], np.int32)
        firsts = direction * (np.cumsum(counts, axis=0, dtype=np.int32) - counts)
        places = {part.name: slice(part.begin, part.end) for part in self._parts}
        ids, positions = values[:, places["state_ids"]], values[:, places["edge_position"]]
        used = np.arange(ids.shape[1], dtype=np.int32) < values[:, places["num_states"]]
        np.add(ids, firsts[:, :1], out=ids, where=used)
        np.add(positions, firsts[:, 1:], out=positions, where=positions >= 0)


class Rows:
    """Rows of several layouts, those used last, up to so many bytes; for several threads at once.

    Args:
        max_bytes: of the rows, and of the automata that they belong to.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: collections.OrderedDict[tuple[Hashable, int, int], _Row]
        self._kept = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What is held at present."""
        return self._bytes

    def get(self, layout: Layout, automata: Sequence[OneAutomaton]) -> list[np.ndarray | None]:
        """The rows of these automata; None for those that are not known."""
        found: list[np.ndarray | None] = []
        kept = self._kept
        with self._lock:
            for _, _, edges, weights in automata:
                key = layout, id(edges), id(weights)
                row = kept.get(key)
                # While it is kept the arrays live, so no others can have their identity.
                if row is not None:
                    kept.move_to_end(key)
                found.append(None if row is None else row.values)
        return found

    def put(
        self, layout: Layout, automata: Sequence[OneAutomaton], rows: Sequence[np.ndarray]
    ) -> None:
        """Keeps the rows of those automata that stay as they are."""
        with self._lock:
            for automaton, values in zip(automata, rows, strict=True):
                _, _, edges, weights = automaton
                key = layout, id(edges), id(weights)
                size = values.nbytes + edges.nbytes + weights.nbytes + _ENTRY_BYTES
                if key in self._kept or size > self._max_bytes or not keeps(automaton):
                    continue
                self._kept[key] = _Row(edges, weights, values, size)
                self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].num_bytes

    def forget(self, layout: Any) -> None:
        """Lets go of the rows of a layout that is not used any more."""
        with self._lock:
            for key in [key for key in self._kept if key[0] is layout]:
                self._bytes -= self._kept.pop(key).num_bytes
