"""From the occupancies of nodes to the posteriors of labels, and to gradients of their scores."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels._graph import flat_shape
from jax_sprint.kernels._scores import Problem

__all__ = ["at_slots", "by_slot", "spread", "weighted"]

Array = Any


def _by_slot(occupancy: Array, slot: Array, slots: int) -> Array:
    """Sums [B, X, N] over the nodes of each slot: [B, X, U]."""
    members = slot[:, :, None] == lax.broadcasted_iota(jnp.int32, (1, 1, slots), 2)
    # Not an einsum: it may order the result so that the gather below strides over the frames.
    return lax.dot_general(
        occupancy,
        members.astype(occupancy.dtype),
        (((2,), (1,)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST,
    )


def _places(slot_label: Array, num_labels: int) -> Array:
    """Where in [B, V] the slots' labels lie, [B, U, 2]; behind it for slots without one."""
    slots = slot_label.shape[1]
    nowhere = num_labels + lax.broadcasted_iota(jnp.int32, (1, slots), 1)
    label = jnp.where((slot_label < 0) | (slot_label >= num_labels), nowhere, slot_label)
    rows = lax.broadcasted_iota(jnp.int32, slot_label.shape, 0)
    return jnp.stack([rows, label], axis=2)


def _is_sparse(num_labels: Any, slots: Any) -> bool:
    """Whether few of the labels have a slot, so that it pays to go to these one by one.

    That takes some ten times as long for each as to pass over a label.
    """
    return isinstance(num_labels, int) and isinstance(slots, int) and num_labels > 16 * slots


def weighted(by_slot: Array, values: Array, problem: Problem, time_axis: int) -> Array:
    """Values times what the slots hold, to be summed over the last axis.

    JAX transposes it for the gradient, which adds what the slots hold to [C, B, V], in the same
    pass in which XLA makes the softmax's part of it; or, where few of the labels have a slot, in
    place, all frames of a label at once, behind that.

    Args:
        by_slot: [C, B, U], or [B, C, U], as `time_axis` says.
        values: [C, B, V], or [B, C, V]; may be of a shorter type.
        problem: gives the slots.
        time_axis: 0 or 1.
    """
    if _is_sparse(values.shape[2], by_slot.shape[2]):
        return by_slot * at_slots(values, problem, time_axis).astype(by_slot.dtype)
    return spread(by_slot, problem, values.shape[2], time_axis) * values.astype(by_slot.dtype)


def at_slots(values: Array, problem: Problem, time_axis: int) -> Array:
    """Values at the labels of the slots, 0 where there is none.

    Args:
        values: [C, B, V], or [B, C, V], as `time_axis` says.
        problem: gives the slots.
        time_axis: 0 or 1.

    Returns:
        [C, B, U], or [B, C, U].
    """
    frames, num_labels = values.shape[time_axis], values.shape[2]
    shape = [1, 1, 1]
    shape[time_axis] = frames
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=(time_axis,),
        collapsed_slice_dims=(1 - time_axis, 2),
        start_index_map=(1 - time_axis, 2),
    )
    return lax.gather(
        values,
        _places(problem.layout.slot_label, num_labels),
        dimensions,
        tuple(shape),
        unique_indices=True,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
        fill_value=0,
    )


def spread(by_slot: Array, problem: Problem, num_labels: int, time_axis: int) -> Array:
    """What the slots hold, at their labels: from [C, B, U] to [C, B, V], or [B, C, U] likewise."""
    slot_label = problem.layout.slot_label
    batch, slots = slot_label.shape
    if _is_sparse(num_labels, slots):
        dimensions = lax.ScatterDimensionNumbers(
            update_window_dims=(time_axis,),
            inserted_window_dims=(1 - time_axis, 2),
            scatter_dims_to_operand_dims=(1 - time_axis, 2),
        )
        return lax.scatter_add(
            jnp.zeros((*by_slot.shape[:2], num_labels), by_slot.dtype),
            _places(slot_label, num_labels),
            by_slot,
            dimensions,
            unique_indices=True,
            mode=lax.GatherScatterMode.FILL_OR_DROP,
        )
    # A gather from an inverse table: into dense labels it is several times faster than a scatter.
    places = _places(slot_label, num_labels)
    columns = lax.broadcasted_iota(jnp.int32, (batch, slots), 1)
    where = jnp.full((batch, num_labels), slots, jnp.int32)
    where = where.at[places[:, :, 0], places[:, :, 1]].set(columns, mode="drop")
    where = jnp.expand_dims(where, time_axis)
    some = where < slots
    # Not a column of zeros to gather from: padding is a branch for each label, and XLA's loop over
    # the labels, with all that is fused into it, would be scalar.
    where = jnp.broadcast_to(jnp.minimum(where, slots - 1), (*by_slot.shape[:2], num_labels))
    held = jnp.take_along_axis(by_slot, where, axis=2, mode="promise_in_bounds")
    return jnp.where(some, held, jnp.zeros((), by_slot.dtype))


def by_slot(
    node: Array,
    last: Array | None,
    problem: Problem,
    time_axis: int,
    first_frame: Array | int = 0,
) -> Array:
    """Probabilities of the slots' labels [C, B, U], or [B, C, U]; 0 where a frame's shares are.

    Args:
        node: [C, B, N], shares (see `Shares`) of the frames from `first_frame` on.
        last: [B, J, N], those of the arcs of `Graph.last` in the last frame, or None.
        problem: what they were computed for.
        time_axis: 0 or 1.
        first_frame: number of the first frame.
    """
    layout, arcs = problem.layout, problem.graph.last
    slots = layout.slot_label.shape[1]
    shares = _by_slot(jnp.swapaxes(node, 0, 1), layout.slot, slots)
    if last is not None and arcs is not None:
        frame = lax.broadcasted_iota(jnp.int32, problem.real.shape, 0)
        at = jnp.max(jnp.where(problem.real, frame, -1), axis=0)
        more = _by_slot(
            last.reshape(flat_shape(last))[:, None], arcs.slot.reshape(flat_shape(last)), slots
        )
        here = lax.broadcasted_iota(jnp.int32, (1, shares.shape[1], 1), 1) + first_frame
        here = here == at[:, None, None]
        shares = shares + jnp.where(here, more, 0.0)
    mass = jnp.sum(shares, axis=2, keepdims=True)
    shares = shares * jnp.where(mass > 0, 1.0 / jnp.where(mass > 0, mass, 1.0), 0.0)
    return jnp.swapaxes(shares, 0, 1) if time_axis == 0 else shares
