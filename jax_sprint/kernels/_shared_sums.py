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
from typing import Any

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
    "collect",
    "nothing",
    "valued",
    "weigh",
    "weighted_parts",
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


def valued(kind: Kind, scores: Array) -> Value:
    """The values [E + 2] of log-scores [E], and of -inf and of 0 behind them, for `weigh`."""
    for more in (-jnp.inf, 0.0):
        scores = lax.pad(scores, jnp.asarray(more, scores.dtype), [(0, 1, 0)])
    values = kind.semiring.value(scores)
    # Apart, or each part of each table would have the exponentials of its own.
    return values if kind.semiring.by_jax else tuple(map(apart, values))


def weigh(kind: Kind, table: Table, values: Value) -> Value:
    """The values [P] of a table's weights, part after part, for `weighted_parts`.

    Args:
        kind: of which values.
        table: if its entries have weights, these are `values`; else they are one.
        values: of [E + 2], from `valued`.
    """
    zero = values[0].shape[0] - 2
    parts = _parts(table)
    if not parts:
        return tuple(array[:0] for array in values)
    # Joined first, and looked at as a whole: each part by itself would be a kernel of its own.
    own = [part.source if part.arc is None else part.arc for part in parts]
    place = lax.concatenate([lax.reshape(array, (array.size,)) for array in own], 0)
    # Parts with weights come before those of `deep`, whose entries are sums.
    weighted = sum(part.source.size for part in parts if part.arc is not None)
    entry = lax.iota(jnp.int32, place.shape[0])
    used = jnp.where(entry < weighted, place, zero + 1)
    place = jnp.where(place >= 0, used, zero)
    return tuple(gather(array, place) for array in values)


def _parts(table: Table) -> list[Slice]:
    deep = [] if table.deep is None else _parts(table.deep)
    return [*table.slices, *table.pieces, *deep]


def weighted_parts(table: Table, weights: Value) -> Iterator[tuple[Slice, Value]]:
    """The parts of a table, those of `deep` last, and the values [K, R] of their weights.

    To be cut where they are used: before a loop, XLA would make a kernel and an array of each.
    """
    begin = 0
    for part in _parts(table):
        end = begin + part.source.size
        yield (
            part,
            tuple(
                lax.reshape(lax.slice_in_dim(array, begin, end), part.source.shape)
                for array in weights
            ),
        )
        begin = end


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
    if depth >= UNROLLED:
        picked = kind.split(gather(packed, part.source))
        return kind.semiring.plus_over(
            kind.semiring.times(picked, tuple(array[:, :, None] for array in weight)), 0
        )
    return kind.semiring.plus(
        [
            kind.semiring.times(
                kind.split(gather(packed, part.source[k])),
                tuple(array[k][:, None] for array in weight),
            )
            for k in range(width)
        ]
    )


Finish = Callable[[Value, int], Value]


def _blocks(
    kind: Kind,
    packed: Array,
    table: Table,
    parts: Iterator[tuple[Slice, Value]],
    finish: Finish,
    depth: int,
    begin: int,
) -> list[Array]:
    blocks = []
    for part, weight in itertools.islice(parts, len(table.slices)):
        value = _sum(kind, packed, part, weight, depth)
        blocks.append(kind.join(finish(value, begin)))
        begin += part.target.shape[0]
    if table.deep is not None:
        pieces = [
            kind.join(_sum(kind, packed, part, weight, depth))
            for part, weight in itertools.islice(parts, len(table.pieces))
        ]
        sums = jnp.concatenate(pieces)
        blocks += _blocks(kind, sums, table.deep, parts, finish, depth + 1, begin)
    return blocks


def collect(
    kind: Kind,
    packed: Array,
    table: Table,
    weights: Value,
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

    parts = weighted_parts(table, weights)
    blocks = _blocks(kind, packed, table, parts, finish or tidy, depth, 0)
    if not blocks:
        return packed[:0]
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks)
