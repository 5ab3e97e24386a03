"""Sums over the sliced tables of one automaton, for all sequences of a batch at once.

Values are laid out with the batch as the minor axis, [places, B]: so a source is a row of B
neighbours, and gathering it is a copy that vectorises on a CPU and coalesces on a GPU.

A value of two parts, such as mantissa and exponent, travels as *one* complex array.  XLA's fusions
have one result: with two, the sums would be computed twice, and as the gathers are not to be
repeated they would be written to memory first; that costs four times as much (measured on CPU).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jax_sprint.automata._slices import Slice, Table
from jax_sprint.kernels._graph import apart, gather
from jax_sprint.kernels._semirings import LOG, SCALED, Semiring, Value

__all__ = [
    "LOGS",
    "NUMBERS",
    "PAIRS",
    "UNROLLED",
    "Kind",
    "Weights",
    "collect",
    "nothing",
    "valued",
    "weigh",
]

Array = Any

UNROLLED = 2


@dataclasses.dataclass(frozen=True)
class Kind:
    """A semiring, and how its values become one array and come back."""

    semiring: Semiring
    join: Callable[[Value], Array]
    split: Callable[[Array], Value]


def _integer(dtype: Any) -> tuple[Any, int]:
    """Integer type as wide as a float, and the bits of 1.0."""
    if dtype == jnp.float64:
        return jnp.int64, 1023 << 52
    return jnp.int32, 127 << 23


def _join_pair(value: Value) -> Array:
    """Mantissa and exponent; the exponent's bits are made to be those of a normal float."""
    mantissa, exponent = value
    integer, one = _integer(mantissa.dtype)
    bits = exponent.astype(integer) + jnp.asarray(one, integer)
    return lax.complex(mantissa, lax.bitcast_convert_type(bits, mantissa.dtype))


def _split_pair(packed: Array) -> Value:
    mantissa, carried = lax.real(packed), lax.imag(packed)
    integer, one = _integer(mantissa.dtype)
    bits = lax.bitcast_convert_type(carried, integer)
    return mantissa, (bits - jnp.asarray(one, integer)).astype(jnp.int32)


class _Numbers:
    """Plain sums of plain numbers."""

    zero: tuple[float | int, ...] = (0.0,)
    never: tuple[float | int, ...] = (0.0,)
    by_jax = True

    def value(self, scores: Array) -> Value:
        return (jnp.exp(scores),)

    def times(self, a: Value, b: Value) -> Value:
        return (a[0] * b[0],)

    def plus(self, terms: Sequence[Value]) -> Value:
        total = terms[0][0]
        for (term,) in terms[1:]:
            total = total + term
        return (total,)

    def plus_over(self, a: Value, axis: int) -> Value:
        return (jnp.sum(a[0], axis=axis),)

    def tidy(self, a: Value) -> Value:
        return a

    def log(self, a: Value) -> Array:
        return jnp.log(a[0])

    def ratio(self, a: Value, b: Value) -> Array:
        return a[0] / b[0]


def _only(value: Value) -> Array:
    return value[0]


def _alone(packed: Array) -> Value:
    return (packed,)


PAIRS = Kind(SCALED, _join_pair, _split_pair)
LOGS = Kind(LOG, _only, _alone)
NUMBERS = Kind(_Numbers(), _only, _alone)


class Weights(NamedTuple):
    """Values [K, R] of the entries of a table, part by part as in `Table`."""

    slices: tuple[Value, ...]
    pieces: tuple[Value, ...]
    deep: Weights | None


def valued(kind: Kind, scores: Array) -> Value:
    """The values [E + 2] of log-scores [E], and of -inf and of 0 behind them, for `weigh`."""
    for more in (-jnp.inf, 0.0):
        scores = lax.pad(scores, jnp.asarray(more, scores.dtype), [(0, 1, 0)])
    values = kind.semiring.value(scores)
    # Apart, or each part of each table would have the exponentials of its own.
    return values if kind.semiring.by_jax else tuple(map(apart, values))


def weigh(kind: Kind, table: Table, values: Value) -> Weights:
    """The values of a table's weights.

    Args:
        kind: of which values.
        table: if its entries have weights, these are `values`; else they are one.
        values: of [E + 2], from `valued`.
    """
    zero = values[0].shape[0] - 2
    parts = _parts(table)
    if not parts:
        return _as_table(table, iter(()))
    place = lax.concatenate(
        [
            lax.reshape(
                jnp.where(part.source >= 0, zero + 1 if part.arc is None else part.arc, zero),
                (part.source.size,),
            )
            for part in parts
        ],
        0,
    )
    picked = tuple(gather(array, place) for array in values)
    ends = list(itertools.accumulate(part.source.size for part in parts))
    return _as_table(
        table,
        (
            tuple(
                lax.reshape(lax.slice_in_dim(array, end - part.source.size, end), part.source.shape)
                for array in picked
            )
            for part, end in zip(parts, ends, strict=True)
        ),
    )


def _parts(table: Table) -> list[Slice]:
    deep = [] if table.deep is None else _parts(table.deep)
    return [*table.slices, *table.pieces, *deep]


def _as_table(table: Table, values: Iterator[Value]) -> Weights:
    """The values of `_parts`, in their places."""
    slices = tuple(next(values) for _ in table.slices)
    pieces = tuple(next(values) for _ in table.pieces)
    deep = None if table.deep is None else _as_table(table.deep, values)
    return Weights(slices, pieces, deep)


def nothing(kind: Kind, packed: Array, size: int) -> Value:
    """Zeros [size, B] for an array [places, B]; on a mesh they vary over the same axes."""
    parts = kind.split(packed[:1])
    zeros = (
        jnp.full(part.shape, zero, part.dtype)
        for part, zero in zip(parts, kind.semiring.zero, strict=True)
    )
    return tuple(
        jnp.broadcast_to(jnp.where(part == part, zero, zero), (size, packed.shape[1]))
        for part, zero in zip(parts, zeros, strict=True)
    )


def _sum(kind: Kind, packed: Array, part: Slice, weight: Value, depth: int) -> Value:
    width, size = part.source.shape
    if width == 0:
        return nothing(kind, packed, size)
    index = jnp.maximum(part.source, 0)
    if depth >= UNROLLED:
        picked = kind.split(gather(packed, index))
        return kind.semiring.plus_over(
            kind.semiring.times(picked, tuple(array[:, :, None] for array in weight)), 0
        )
    return kind.semiring.plus(
        [
            kind.semiring.times(
                kind.split(gather(packed, index[k])), tuple(array[k][:, None] for array in weight)
            )
            for k in range(width)
        ]
    )


Finish = Callable[[Value, int], Value]


def _blocks(
    kind: Kind,
    packed: Array,
    table: Table,
    weights: Weights,
    finish: Finish,
    depth: int,
    begin: int,
) -> list[Array]:
    blocks = []
    for part, weight in zip(table.slices, weights.slices, strict=True):
        value = _sum(kind, packed, part, weight, depth)
        blocks.append(kind.join(finish(value, begin)))
        begin += part.target.shape[0]
    if table.deep is not None and weights.deep is not None:
        pieces = [
            kind.join(_sum(kind, packed, part, weight, depth))
            for part, weight in zip(table.pieces, weights.pieces, strict=True)
        ]
        sums = jnp.concatenate(pieces)
        blocks += _blocks(kind, sums, table.deep, weights.deep, finish, depth + 1, begin)
    return blocks


def collect(
    kind: Kind,
    packed: Array,
    table: Table,
    weights: Weights,
    finish: Finish | None = None,
    *,
    depth: int = 0,
) -> Array:
    """For each row of the table the sum of its sources, times their weights.

    Args:
        kind: of which values.
        packed: [places, B], joined values.
        table: which sources to add.
        weights: from `weigh`.
        finish: what to do to the sums [R, B] of the rows from a place on; None: tidy them.
        depth: sums of tables of a depth below `UNROLLED` are written out, which is faster but takes
            longer to compile.

    Returns:
        Joined values [rows, B].
    """

    def tidy(value: Value, begin: int) -> Value:
        return kind.semiring.tidy(value)

    blocks = _blocks(kind, packed, table, weights, finish or tidy, depth, 0)
    if not blocks:
        return packed[:0]
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks)
