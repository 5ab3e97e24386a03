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

        With `every` all slices are made, also those without any row; with `idle` those of degree
        0 have at least one row, which is zero.
        """
        level = min(depth, len(_WIDTHS) - 1)
        widths = _WIDTHS[level] if widths is None else widths
        self.row = row
        degree = np.bincount(row, minlength=count)
        self.rank = ranks(row, count)
        self.widths = np.array([0, *widths])
        self.kind = np.searchsorted(self.widths, degree)
        top = widths[-1]
        deep = np.flatnonzero(degree > top)
        self.place = np.zeros(count, np.int64)
        self.blocks: list[tuple[int, int, int, np.ndarray]] = []  # kind, begin, size, rows
        begin = 0
        for kind in range(len(self.widths)):
            rows = np.flatnonzero(self.kind == kind)
            if len(rows) or every or (kind == 0 and idle):
                size = rounded(len(rows) + (kind == 0))
                self.blocks.append((kind, begin, size, rows))
                self.place[rows] = begin + np.arange(len(rows))
                begin += size
        self.pieces: Plan | None = None
        self.deep: Plan | None = None
        if len(deep):
            number = np.zeros(count, np.int64)
            number[deep] = np.arange(len(deep))
            parts = -(-degree[deep] // top)
            first = np.cumsum(parts) - parts
            self.mine = np.flatnonzero(self.kind[row] == len(self.widths))
            piece = first[number[row[self.mine]]] + self.rank[self.mine] // top
            self.pieces = Plan(piece, int(parts.sum()), False, False, depth, _PIECES[level])
            self.piece_row = np.repeat(deep, parts)
            owner = np.repeat(np.arange(len(deep)), parts)
            self.deep = Plan(owner, len(deep), False, False, depth + 1)
            self.place[deep] = begin + self.deep.place
            begin += self.deep.size
        self.size: int = begin

    def slices(
        self, source: np.ndarray, arc: np.ndarray | None, target: np.ndarray
    ) -> tuple[Slice, ...]:
        slices = []
        for kind, begin, size, rows in self.blocks:
            mine = np.flatnonzero(self.kind[self.row] == kind)
            width = int(self.widths[kind])
            cell = self.rank[mine] * size + self.place[self.row[mine]] - begin
            tables: list[Any] = []
            for values in (source, arc):
                if values is None:
                    tables.append(None)
                    continue
                table = np.full(width * size, -1, np.int32)
                table[cell] = values[mine]
                tables.append(table.reshape(width, size))
            targets = np.zeros(size, np.int32)
            targets[: len(rows)] = target[rows]
            slices.append(Slice(tables[0], tables[1], targets))
        return tuple(slices)

    def fill(
        self, source: np.ndarray, arc: np.ndarray | None = None, target: np.ndarray | None = None
    ) -> Table:
        """The table whose entries have these sources [M] and weights [M]; `target` is by row."""
        if target is None:
            target = self.place
        whole = self.slices(source, arc, target)
        if self.pieces is None or self.deep is None:
            return Table(whole, (), None)
        mine = self.mine
        pieces = self.pieces.slices(
            source[mine], None if arc is None else arc[mine], target[self.piece_row]
        )
        return Table(whole, pieces, self.deep.fill(self.pieces.place))

    def cells(self, first: int) -> tuple[np.ndarray, int]:
        """Place [M] of each entry if the slices, then the pieces, are laid out one by one."""
        cell = np.zeros(len(self.row), np.int64)
        for kind, begin, size, _ in self.blocks:
            mine = np.flatnonzero(self.kind[self.row] == kind)
            cell[mine] = first + self.rank[mine] * size + self.place[self.row[mine]] - begin
            first += int(self.widths[kind]) * size
        if self.pieces is not None:
            cell[self.mine], first = self.pieces.cells(first)
        return cell, first
