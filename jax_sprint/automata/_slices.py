"""Sparse matrices in slices: rows sorted by degree, cut into dense blocks (numpy only).

A row of high degree is cut into pieces, whose sums are the sources of a smaller table of the same
kind.  So the work is linear in the entries, with little padding, however much the degrees differ:

    degree 0 | degree 1 | degree 2 | up to 4 | up to 8 | more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ONCE", "Plan", "Slice", "Table", "ranks", "rounded"]

Array = Any

# Degrees of the slices, and of the pieces of rows of higher degree, by the depth of the table.  The
# kernel writes out the sums of the first two tables: few widths, as each costs time to compile.
_WIDTHS = ((1, 2, 4, 8), (3, 8), (8, 64))
_PIECES = ((4, 8), (8,), (64,))
ONCE = 2  # depth of tables that are used once per call, whose sums are not written out


class Slice(NamedTuple):
    """Rows of nearly equal degree.

    Attributes:
        source: [K, R] int32, place of what is added up; -1 on padding.
        arc: [K, R] int32, index of the weight, -1 on padding; None: no weights.
        target: [R] int32, place of the row that the entries belong to.
    """

    source: Array
    arc: Array | None
    target: Array


class Table(NamedTuple):
    """A sparse matrix in slices.

    Attributes:
        slices: the rows of low degree, ascending; their sums in this order, and then those of
            `deep`, make up the result.
        pieces: pieces of the rows of high degree.
        deep: those rows, as sums over the pieces; None where there are none.
    """

    slices: tuple[Slice, ...]
    pieces: tuple[Slice, ...]
    deep: Table | None


def rounded(size: int) -> int:
    """Rounds up, by an eighth at most (or to 8), so that similar automata share shapes."""
    step = max(8, 1 << max(size.bit_length() - 4, 0))
    return max(-(-size // step), 1) * step


def ranks(groups: np.ndarray, count: int) -> np.ndarray:
    """How many earlier entries belong to the same group."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=count)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


class Plan:
    """Where each row of a table goes, before it is known where its sources are."""

    def __init__(
        self,
        row: np.ndarray,
        count: int,
        every: bool,
        idle: bool = True,
        depth: int = 0,
        widths: Sequence[int] | None = None,
    ) -> None:
        """`row` [M] is the row of each entry, `count` the number of rows.

        With `every` all slices are made, also those without any row; with `idle` there is at least
        one row of degree 0 to spare, after the others.
        """
        level = min(depth, len(_WIDTHS) - 1)
        widths = _WIDTHS[level] if widths is None else widths
        degree = np.bincount(row, minlength=count)
        rank = ranks(row, count)
        bounds = np.array([0, *widths])
        kind = np.searchsorted(bounds, degree)
        top = widths[-1]
        deep = np.flatnonzero(degree > top)
        self.place = np.zeros(count, np.int64)
        self.blocks: list[tuple[int, int, np.ndarray]] = []  # width, size, rows
        # Cells of a block go column after column: first + rank * size + place in the block.
        sizes, firsts = np.zeros(len(bounds) + 1, np.int64), np.zeros(len(bounds) + 1, np.int64)
        begin = cells = 0
        for this, width in enumerate((0, *widths)):
            rows = np.flatnonzero(kind == this)
            if len(rows) or every or (this == 0 and idle):
                size = rounded(len(rows) + (this == 0))
                self.blocks.append((width, size, rows))
                self.place[rows] = begin + np.arange(len(rows))
                sizes[this], firsts[this] = size, cells - begin
                begin += size
                cells += width * size
        entry_kind = kind[row]
        self.cell = firsts[entry_kind] + rank * sizes[entry_kind] + self.place[row]
        self.pieces: Plan | None = None
        self.deep: Plan | None = None
        if len(deep):
            number = np.zeros(count, np.int64)
            number[deep] = np.arange(len(deep))
            parts = -(-degree[deep] // top)
            first = np.cumsum(parts) - parts
            mine = np.flatnonzero(entry_kind == len(bounds))
            piece = first[number[row[mine]]] + rank[mine] // top
            self.pieces = Plan(piece, int(parts.sum()), False, False, depth, _PIECES[level])
            self.cell[mine] = cells + self.pieces.cell
            cells += self.pieces.cells
            self.piece_row = np.repeat(deep, parts)
            owner = np.repeat(np.arange(len(deep)), parts)
            self.deep = Plan(owner, len(deep), False, False, depth + 1)
            self.place[deep] = begin + self.deep.place
            begin += self.deep.size
        self.size: int = begin
        self.cells: int = cells
        """Number of cells of all blocks, those of the pieces behind the others."""

    def _cut(self, flat: list[np.ndarray], first: int, target: np.ndarray) -> tuple[Slice, ...]:
        """The blocks' slices from the cells of `flat`, one array or two, from `first` on."""
        slices = []
        for width, size, rows in self.blocks:
            tables = [cells[first : first + width * size].reshape(width, size) for cells in flat]
            first += width * size
            targets = np.zeros(size, np.int32)
            targets[: len(rows)] = target[rows]
            slices.append(Slice(tables[0], tables[1] if len(tables) > 1 else None, targets))
        return tuple(slices)

    def fill(
        self, source: np.ndarray, arc: np.ndarray | None = None, target: np.ndarray | None = None
    ) -> Table:
        """The table whose entries have these sources [M] and weights [M]; `target` is by row."""
        if target is None:
            target = self.place
        flat = []
        for values in (source, arc):
            if values is not None:
                cells = np.full(self.cells, -1, np.int32)
                cells[self.cell] = values
                flat.append(cells)
        slices = self._cut(flat, 0, target)
        if self.pieces is None or self.deep is None:
            return Table(slices, (), None)
        pieces = self.pieces._cut(flat, self.cells - self.pieces.cells, target[self.piece_row])
        return Table(slices, pieces, self.deep.fill(self.pieces.place))
