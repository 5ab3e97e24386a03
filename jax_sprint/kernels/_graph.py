"""Graphs of nodes in a batch, and how a node collects what comes from its neighbours.

In a band the neighbours at a distance are plain slices, which vectorise, of the values with D - 1
columns of zeros before them; in the other form they are gathered, slot by slot.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._semirings import Semiring, Value

__all__ = [
    "Graph",
    "Last",
    "Links",
    "Side",
    "apart",
    "at_frame",
    "at_index",
    "both",
    "collect",
    "column",
    "entering",
    "flat_shape",
    "gather",
    "leaving",
    "nothing_but",
    "per_sequence",
    "predecessors",
    "turn",
    "varying_as",
    "widen",
]

Array = Any

_UNROLLED = 16  # slots that are summed one by one, which XLA fuses, and not by a reduction


class Last(NamedTuple):
    """Arcs into end states that nothing leaves, by the node that they leave."""

    arc: Array  # [B, J, N] int32, -1: none
    end: Array  # [B, J, N] int32, which end state
    slot: Array  # [B, J, N] int32 in 0..U, place of the label; U: none


class Graph(NamedTuple):
    """Node graphs of a batch; see `jax_sprint.automata.Automata` for the tables.

    `in_node`, `out_arc` and `out_node` are None in a band.
    """

    in_arc: Array  # [B, K, N] int32
    in_node: Array | None  # [B, K, N] int32
    out_arc: Array | None  # [B, O, N] int32
    out_node: Array | None  # [B, O, N] int32
    start: Array  # [B, N] int32, which start state, -1: none
    end: Array  # [B, N] int32, which end state, -1: none
    last: Last | None


class Links(NamedTuple):
    """Log-scores of everything but the emissions, neither NaN nor +inf."""

    arcs: Array  # [B, E]
    starts: Array  # [B, A]
    ends: Array  # [B, Z]


class Side(NamedTuple):
    """One direction of the recursion: how a node finds the nodes whose values it collects."""

    weights: Value  # of [B, K, N]
    nodes: Array | None  # [B, K, N], or None in a band
    behind: bool = False  # in a band: slot d is the node d places before, or else behind


def apart(array: Array) -> Array:
    """The same array, not to be fused into what uses it.

    XLA on CPU fuses cheap operations into their consumers even where these broadcast them: what is
    computed for [B, N] would be computed anew in every frame.  It does not fuse gathers.
    """
    rows = lax.iota(jnp.int32, array.shape[0])
    return array.at[rows].get(mode="clip")


def flat_shape(array: Array) -> tuple[int, int]:
    """[B, X] for an array [B, ...]; a reshape to -1 fails where B is 0."""
    return array.shape[0], math.prod(array.shape[1:])


def column(value: Value) -> Value:
    """[B, 1, ...] of [B, ...]."""
    return tuple(part[:, None] for part in value)


def gather(array: Array, index: Array) -> Array:
    """Rows of an array; `index` is in bounds, or negative: the first row."""
    # As array.at[index].get() does, which takes three times as long to trace.  XLA clips by itself.
    rest = tuple(range(index.ndim, index.ndim + array.ndim - 1))
    return lax.gather(
        array,
        lax.expand_dims(index, (index.ndim,)),
        lax.GatherDimensionNumbers(
            offset_dims=rest, collapsed_slice_dims=(0,), start_index_map=(0,)
        ),
        (1, *array.shape[1:]),
        mode=lax.GatherScatterMode.CLIP,
    )


def at_index(scores: Array, index: Array) -> Array:
    """Scores [B, E] at `index` [B, ...], -inf where that is negative."""
    flat = jnp.maximum(index, 0).reshape(flat_shape(index))
    picked = jnp.take_along_axis(scores, flat, axis=1, mode="promise_in_bounds")
    return jnp.where(index >= 0, picked.reshape(index.shape), -jnp.inf)


def _neighbours(value: Value, side: Side, slot: int) -> Value:
    """Values [B, N] of the nodes of a slot; in a band `value` is what `_widened` gives."""
    if side.nodes is not None:
        return tuple(
            jnp.take_along_axis(array, side.nodes[:, slot], axis=1, mode="promise_in_bounds")
            for array in value
        )
    batch, slots, nodes = side.weights[0].shape
    if side.behind:
        size = batch * nodes
        return tuple(
            lax.slice_in_dim(array, slot, slot + size).reshape(batch, nodes) for array in value
        )
    start = slots - 1 - slot
    return tuple(lax.slice_in_dim(array, start, start + nodes, axis=1) for array in value)


def widen(semiring: Semiring, value: Value, axis: int, low: int, high: int = 0) -> Value:
    """Adds zeros before and behind the nodes."""
    config = [(low, high, 0) if place == axis else (0, 0, 0) for place in range(value[0].ndim)]
    return tuple(
        lax.pad(array, jnp.asarray(zero, array.dtype), config)
        for array, zero in zip(value, semiring.zero, strict=True)
    )


def _widened(semiring: Semiring, value: Value, side: Side) -> Value:
    """What the slots of a band are slices of: [B, D - 1 + N], or behind [B * N + D - 1].

    XLA on CPU is quick to add columns at the left of each row, and slow at the right.  So all rows
    become one there.  A sequence's last nodes then see the first ones of the next sequence, by arcs
    of weight `Semiring.never`.
    """
    batch, slots, nodes = side.weights[0].shape
    if not side.behind:
        return widen(semiring, value, 1, slots - 1)
    flat = tuple(array.reshape(batch * nodes) for array in value)
    return widen(semiring, flat, 0, 0, slots - 1)


def collect(semiring: Semiring, value: Value, side: Side) -> Value:
    """Sum over slots of value * weight: [B, N]."""
    batch, slots, nodes = side.weights[0].shape
    if side.nodes is not None and slots > _UNROLLED:
        flat = side.nodes.reshape(batch, slots * nodes)
        picked = tuple(
            jnp.take_along_axis(array, flat, axis=1, mode="promise_in_bounds").reshape(
                batch, slots, nodes
            )
            for array in value
        )
        return semiring.plus_over(semiring.times(picked, side.weights), 1)
    if side.nodes is None:
        value = _widened(semiring, value, side)
    return semiring.plus(
        [
            semiring.times(
                _neighbours(value, side, slot), tuple(weight[:, slot] for weight in side.weights)
            )
            for slot in range(slots)
        ]
    )


def entering(semiring: Semiring, graph: Graph, arcs: Array) -> Side:
    """The forward direction."""
    return Side(semiring.value(at_index(arcs, graph.in_arc)), graph.in_node)


def leaving(semiring: Semiring, graph: Graph, arcs: Array) -> Side:
    """The backward direction."""
    if graph.in_node is not None:
        return Side(semiring.value(at_index(arcs, graph.out_arc)), graph.out_node)
    scores = at_index(arcs, graph.in_arc)
    slots, nodes = scores.shape[1:]
    none = jnp.full((), -jnp.inf, scores.dtype)
    moved = []
    for slot in range(slots):
        by = min(slot, nodes)
        moved.append(lax.pad(scores[:, slot], none, [(0, 0, 0), (-by, by, 0)]))
    scores = jnp.stack(moved, axis=1)
    distance, node = (lax.broadcasted_iota(jnp.int32, (1, slots, nodes), axis) for axis in (1, 2))
    inside = distance + node < nodes
    weights = tuple(
        jnp.where(inside, part, jnp.asarray(never, part.dtype))
        for part, never in zip(semiring.value(scores), semiring.never, strict=True)
    )
    return Side(weights, None, behind=True)


def turn(graph: Graph, value: Value) -> Value:
    """In a band, the nodes in reverse order, so that what was behind comes before."""
    return value if graph.in_node is not None else tuple(a[..., ::-1] for a in value)


def both(semiring: Semiring, ahead: Side, back: Side) -> Side:
    """The two directions as one batch, in a band the second one over `turn`ed nodes."""
    slots = max(ahead.weights[0].shape[1], back.weights[0].shape[1])

    def fill(array: Array, value: float | int) -> Array:
        none = jnp.asarray(value, array.dtype)
        return lax.pad(array, none, [(0, 0, 0), (0, slots - array.shape[1], 0), (0, 0, 0)])

    if ahead.nodes is None:
        back = Side(tuple(array[:, :, ::-1] for array in back.weights), None)
    weights = tuple(
        jnp.concatenate([fill(a, zero), fill(b, zero)])
        for a, b, zero in zip(ahead.weights, back.weights, semiring.zero, strict=True)
    )
    if ahead.nodes is None or back.nodes is None:
        return Side(weights, None)
    return Side(weights, jnp.concatenate([fill(ahead.nodes, 0), fill(back.nodes, 0)]))


def predecessors(array: Array, graph: Graph, slot: int, fill: float) -> Array:
    """Values [B, N] of the nodes from which each node's slot comes; `fill` where none is."""
    if graph.in_node is not None:
        return jnp.take_along_axis(array, graph.in_node[:, slot], axis=1, mode="promise_in_bounds")
    by = min(slot, array.shape[1])
    return lax.pad(array, jnp.asarray(fill, array.dtype), [(0, 0, 0), (by, -by, 0)])


def nothing_but(semiring: Semiring, condition: Array, value: Value) -> Value:
    """The value where the condition holds, zero elsewhere."""
    return tuple(
        jnp.where(condition, array, jnp.asarray(zero, array.dtype))
        for array, zero in zip(value, semiring.zero, strict=True)
    )


def per_sequence(condition: Array, yes: Value, no: Value) -> Value:
    """Sequence by sequence; `condition` is [B], the values are of [B] or [B, N]."""
    condition = condition.reshape(condition.shape + (1,) * (yes[0].ndim - 1))
    return tuple(jnp.where(condition, y, n) for y, n in zip(yes, no, strict=True))


def varying_as(array: Array, other: Array) -> Array:
    """The array [T, B, N], varying over the mesh axes over which `other` [B, N] does."""
    varying = array + (other * 0)[None]
    return array if jax.typeof(array) == jax.typeof(varying) else varying


def at_frame(scores: Array, frame: Array) -> Array:
    """scores [T, B, N] at `frame` [B], or at frame 0 where that is negative: [B, N]."""
    index = jnp.broadcast_to(jnp.maximum(frame, 0)[None, :, None], (1, *scores.shape[1:]))
    return jnp.take_along_axis(scores, index, axis=0, mode="promise_in_bounds")[0]
