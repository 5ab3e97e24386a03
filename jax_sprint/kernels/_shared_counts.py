"""Expected counts of labels, edges, start and end states over one automaton for a whole batch.

The backward recursion runs over the frames together with what is made of it: for each frame the
labels' posteriors come out, and the edges' counts are added up where they are wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.automata._sliced import Sliced
from jax_sprint.automata._slices import Slice, Table
from jax_sprint.kernels._graph import gather
from jax_sprint.kernels._platform import if_any
from jax_sprint.kernels._semirings import Value
from jax_sprint.kernels._shared_recursion import (
    Forward,
    Scores,
    Weighted,
    blocks_of,
    choose,
    emission_if,
    empty_paths,
    forward,
    frame_at,
    part_of,
    seeded,
    sweep,
    weighted,
)
from jax_sprint.kernels._shared_sums import (
    LOGS,
    NUMBERS,
    UNROLLED,
    Kind,
    collect,
    nothing,
    valued,
    weigh,
    weighted_parts,
)

__all__ = ["Counts", "counts"]

Array = Any


class Counts(NamedTuple):
    """Expected counts under the distribution over paths."""

    log_total: Array  # [B] log-sum over all paths, -inf where there is none
    labels: Array  # [T, B, V] probability of the label in the frame
    arcs: Array | None  # [B, E] expected number of times that the path takes the edge
    starts: Array | None  # [B, A] probability of starting there
    ends: Array | None  # [B, Z]


def _inverse(mass: Array) -> Array:
    return jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)


def _at(array: Array, index: Array) -> Array:
    """Sums over the first axis of rows of [P, B] at [M, R], 0 where the index is negative."""
    picked = gather(array, jnp.maximum(index, 0))
    return jnp.sum(jnp.where((index >= 0)[:, :, None], picked, 0.0), axis=0)


def _edge_parts(tables: Sliced, weights: Weighted) -> list[tuple[Slice, Value]]:
    """Slices of the edges' tables and their weights, in the order of `Sliced.arc_cell`."""

    def of_edges(table: Table, values: Value) -> Iterator[tuple[Slice, Value]]:
        count = len(table.slices) + len(table.pieces)
        return itertools.islice(weighted_parts(table, values), count)

    return [*of_edges(tables.single, weights.single), *of_edges(tables.multi, weights.multi)]


class _Spread:
    """From the labels in use to all labels."""

    def __init__(self, tables: Sliced, num_labels: int) -> None:
        slots = tables.slot_label.shape[0]
        place = jnp.where(tables.slot_label < 0, num_labels, tables.slot_label)
        index = jnp.full(num_labels, slots, jnp.int32)
        self.index = index.at[place].set(jnp.arange(slots, dtype=jnp.int32), mode="drop")

    def __call__(self, by_slot: Array) -> Array:
        """[U, B] -> [B, V]."""
        return gather(jnp.pad(by_slot, ((0, 1), (0, 0))), self.index).T


def counts(
    kind: Kind,
    scores: Scores,
    tables: Sliced,
    lengths: Array,
    *,
    arcs: bool,
    marks: bool,
    dtype: Any,
    block: int | None = None,
) -> Counts:
    """Forward-backward.

    Args:
        kind: what to compute in.
        scores: see there.
        tables: the automaton.
        lengths: [B] int32 in 0..T.
        arcs: whether the edges' counts are wanted.
        marks: whether those of the start and end states are.
        dtype: of the labels' posteriors.
        block: if given, alphas are kept before every `block`-th frame only, and computed again for
            one block after the other.

    Returns:
        The counts; those that are not wanted are None.
    """
    semiring = kind.semiring
    weights = weighted(kind, scores, tables)
    ahead = forward(kind, scores, tables, lengths, weights, keep=True, block=block)
    whole = tuple(part[None] for part in ahead.whole)
    seed = seeded(scores, lengths)
    spread = _Spread(tables, scores.frames.shape[2])
    exits = gather(ahead.exits, tables.exit_leaving)
    ones = valued(NUMBERS, scores.bias)
    by_label = weigh(NUMBERS, tables.labels, ones)
    singles = _rows(tables.single)
    nodes = tables.node_slot.shape[0]

    def betas(time: Array, x: Array) -> Array:
        """beta_t in the order of `leaving`, from x_{t+1}."""

        def finish(value: Value, begin: int) -> Value:
            none = nothing(kind, x, value[0].shape[0])
            value = choose(time + 2 < lengths, semiring.tidy(value), none)
            return choose(time + 2 == lengths, kind.split(part_of(exits, begin, value)), value)

        return collect(kind, x, tables.leaving, weights.leaving, finish)

    def node_values(labels: Array, beta: Array) -> Array:
        """x_t, from the emissions and beta_t."""
        emitted = kind.split(gather(labels, tables.node_slot))
        return kind.join(semiring.times(emitted, kind.split(gather(beta, tables.node_leaving))))

    def shares(alpha: Array, before: Array, beta: Array, x: Array) -> Array:
        """Probabilities [N, B] of the nodes, up to rounding, from alpha_t and alpha_{t-1}."""
        after = gather(beta, tables.node_leaving[:singles])
        product = semiring.times(kind.split(alpha[:singles]), kind.split(after))
        node = semiring.ratio(product, whole)
        if singles < nodes:
            pre = collect(kind, before, tables.multi, weights.multi)
            product = semiring.times(kind.split(pre), kind.split(x[singles:]))
            node = jnp.concatenate([node, semiring.ratio(product, whole)])
        return node

    def unless(size: int, of: Kind, *arrays: Array) -> Array:
        """Zeros, for frames that no sequence has."""
        some = sum(_magnitude(kind, array[:1]) for array in arrays)
        packed = of.join(of.semiring.value(some))
        return of.join(nothing(of, packed, size))

    def flows(source: Array, x: Array, part: Slice, weight: Value) -> Array:
        """Share [K, R, B] of the paths that take each edge."""
        flow = semiring.times(
            kind.split(gather(source, jnp.maximum(part.source, 0))),
            kind.split(gather(x, part.target)[None]),
        )
        return semiring.ratio(
            semiring.times(flow, tuple(array[:, :, None] for array in weight)),
            tuple(array[None] for array in whole),
        )

    def step(carry: tuple, frame: tuple) -> tuple[tuple, Array]:
        x, used = carry
        time, posteriors, alpha, before = frame
        if posteriors is None:
            posteriors = frame_at(scores.frames, time)
        inner = jnp.any(time + 1 < lengths)
        labels = emission_if(kind, inner, scores, tables, posteriors, seed)
        beta = if_any(inner, betas, lambda _, x: unless(exits.shape[0], kind, x, exits), time, x)
        x = if_any(inner, node_values, lambda *a: unless(nodes, kind, *a), labels, beta)
        node = if_any(inner, shares, lambda *a: unless(nodes, NUMBERS, *a), alpha, before, beta, x)
        label = collect(NUMBERS, node, tables.labels, by_label)
        # Each frame's posteriors sum to one: this takes out what rounding the recursions share.
        scale = _inverse(jnp.sum(label, axis=0))
        used = tuple(
            total + flows(before, x, part, weight) * scale[None, None]
            for total, (part, weight) in zip(used, parts(), strict=True)
        )
        return (x, used), spread(label * scale[None]).astype(dtype)

    def parts() -> list[tuple[Slice, Value]]:
        return _edge_parts(tables, weights) if arcs else []

    zero = nothing(NUMBERS, _magnitude(kind, ahead.last), 1)[0]
    used = tuple(jnp.broadcast_to(zero, (*part.source.shape, zero.shape[1])) for part, _ in parts())

    def back(carry: tuple, start: Array, alphas: Array, times: Array) -> tuple[tuple, Array]:
        """Over the frames `times`, from alphas before the first and at each of them."""
        if kind is LOGS:
            before = jnp.concatenate([start[None], alphas[:-1]])
            frames = (times, scores.frames, alphas, before)
            return lax.scan(jax.checkpoint(step), carry, frames, reverse=True)

        def found(carry: tuple, frame: tuple) -> tuple[tuple, Array]:
            index, time = frame
            at = [
                lax.dynamic_index_in_dim(alphas, jnp.maximum(i, 0), axis=0, keepdims=False)
                for i in (index, index - 1)
            ]
            before = jnp.where(index == 0, start, at[1]) if arcs or singles < nodes else at[0]
            return step(carry, (time, None, at[0], before))

        index = jnp.arange(times.shape[0], dtype=jnp.int32)
        return lax.scan(found, carry, (index, times), reverse=True)

    frames = scores.frames.shape[0]
    carry = (kind.join(nothing(kind, ahead.last, nodes)), used)
    if block is None:
        times = jnp.arange(frames, dtype=jnp.int32)
        (x, used), labels = back(carry, ahead.start, ahead.alphas, times)
    else:

        def again(carry: tuple, frame: tuple) -> tuple[tuple, Array]:
            start, times = frame
            _, alphas = sweep(kind, scores, tables, lengths, weights, start, times, True)
            return back(carry, start, alphas, times)

        (x, used), labels = lax.scan(
            again, carry, (ahead.alphas, blocks_of(frames, block)), reverse=True
        )
        labels = labels.reshape(-1, *labels.shape[2:])[:frames]

    # The last frame: its labels come from the closing arcs.
    last = collect(
        kind,
        ahead.last,
        tables.last,
        weigh(kind, tables.last, valued(kind, weights.closing)),
        depth=UNROLLED,
    )
    last = semiring.times(kind.split(gather(last, tables.last_slot)), kind.split(ahead.labels))
    share = semiring.ratio(last, whole)
    scale = jnp.where(lengths > 0, _inverse(jnp.sum(share, axis=0)), 0.0)
    column = jnp.arange(lengths.shape[0], dtype=jnp.int32)
    labels = labels.at[lengths - 1, column].add(
        spread(share * scale[None]).astype(dtype), mode="drop", wrap_negative_indices=False
    )
    result = Counts(semiring.log(ahead.whole), labels, None, None, None)
    if arcs or marks:
        closing = _closing(kind, ahead, tables, weights, whole) * scale[None]
    if arcs:
        cells = [total.reshape(-1, total.shape[-1]) for total in used]
        cells.append(zero)
        flow = gather(jnp.concatenate(cells), tables.arc_cell)
        result = result._replace(arcs=(flow + _at(closing, tables.arc_closing)).T)
    if marks:
        empty = semiring.ratio(
            tuple(part[:, None] for part in empty_paths(kind, scores, tables)), whole
        )
        empty = jnp.where(lengths[None] == 0, empty, 0.0)
        first = jnp.full((), -1, jnp.int32)
        beta = gather(betas(first, x), tables.start_leaving)
        value = kind.semiring.value(scores.starts)
        start = semiring.times(kind.split(beta), tuple(part[:, None] for part in value))
        share = semiring.ratio(start, whole)
        share = share * _inverse(jnp.sum(share, axis=0))[None]
        share = jnp.where(lengths[None] > 0, share, 0.0)
        end = collect(
            NUMBERS, closing, tables.ends, weigh(NUMBERS, tables.ends, ones), depth=UNROLLED
        )
        result = result._replace(
            starts=(share + _at(empty, tables.empty_start)).T,
            ends=(gather(end, tables.end_place) + _at(empty, tables.empty_end)).T,
        )
    return result


def _rows(table: Table | None) -> int:
    if table is None:
        return 0
    return sum(part.target.shape[0] for part in table.slices) + _rows(table.deep)


def _magnitude(kind: Kind, packed: Array) -> Array:
    return kind.split(packed)[0]


def _closing(kind: Kind, ahead: Forward, tables: Sliced, weights: Weighted, whole: Value) -> Array:
    """[C, B], shares of the paths that end with each closing arc, up to rounding."""
    semiring = kind.semiring
    value = semiring.value(weights.closing)
    flow = semiring.times(
        kind.split(gather(ahead.last, jnp.maximum(tables.closing_state, 0))),
        kind.split(gather(ahead.labels, jnp.maximum(tables.closing_slot, 0))),
    )
    return semiring.ratio(semiring.times(flow, tuple(part[:, None] for part in value)), whole)
