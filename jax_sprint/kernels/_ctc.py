"""`ctc_loss`: the CTC loss under optax's name and signature, on the same recursions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint.kernels._graph import Graph, Links, apart
from jax_sprint.kernels._inputs import at_least_one_frame
from jax_sprint.kernels._partition import partition
from jax_sprint.kernels._scores import Layout, Problem
from jax_sprint.kernels._softmax import normalized

__all__ = ["ctc_loss"]

Array = Any


def _tables(labels: Array, lengths: Array, blank: Array) -> tuple[Graph, Layout]:
    """The CTC topology as a band of width 3.

    Node 0 is the start, odd nodes are blanks, node 2 i is label i::

         0 -> 1 blank <-> (loops everywhere)
         0 -> 2 label 1;   1 -> 2;   2 -> 3 blank;   2 -> 4 label 2 unless it equals label 1; ...
    """
    batch, most = labels.shape
    nodes = -(-(2 * most + 2) // 8) * 8
    node = jax.lax.broadcasted_iota(jnp.int32, (1, nodes), 1)
    ends = 2 * lengths[:, None]
    used = (node >= 1) & (node <= ends + 1)
    if most:
        place = jnp.clip(node // 2 - 1, 0, most - 1)
        place = jnp.broadcast_to(place, (batch, nodes))
        own = jnp.take_along_axis(labels, place, axis=1, mode="clip")
        before = jnp.take_along_axis(labels, jnp.maximum(place - 1, 0), axis=1, mode="clip")
    else:
        own = before = jnp.broadcast_to(blank, (batch, nodes))
    is_label = node % 2 == 0
    skips = is_label & ((node == 2) | ((node >= 4) & (own != before)))
    allowed = jnp.stack([used, used, used & skips], axis=1)
    label = jnp.where(used, jnp.where(is_label, own, blank), -1)

    # Slot 0 is the blank, slot i label i where it occurs first.
    first = labels
    if most:
        same = labels[:, :, None] == labels[:, None, :]
        first = jnp.where(labels == blank, 0, jnp.argmax(same, axis=2).astype(jnp.int32) + 1)
    real = jax.lax.broadcasted_iota(jnp.int32, (1, most), 1) < lengths[:, None]
    order = jax.lax.broadcasted_iota(jnp.int32, (1, most), 1) + 1
    slot_label = jnp.where(real & (first == order), labels, -1)
    slot_label = jnp.concatenate([jnp.broadcast_to(blank, (batch, 1)), slot_label], axis=1)
    slot = jnp.zeros((batch, nodes), jnp.int32)
    if most:
        slot = jnp.where(is_label, jnp.take_along_axis(first, place, axis=1, mode="clip"), slot)
    graph = Graph(
        in_arc=jnp.where(allowed, 0, -1),
        in_node=None,
        out_arc=None,
        out_node=None,
        start=jnp.broadcast_to(jnp.where(node == 0, 0, -1), (batch, nodes)),
        end=jnp.where((node == ends) | (node == ends + 1), 0, -1),
        last=None,
    )
    return graph, Layout(label=label, slot=jnp.where(used, slot, most + 1), slot_label=slot_label)


@jax.jit
def _run(
    logits: Array,
    logit_paddings: Array,
    labels: Array,
    label_paddings: Array,
    blank: Array,
    log_epsilon: Array,
) -> Array:
    dtype = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    num_labels = logits.shape[2]
    logits = at_least_one_frame(logits, 1)
    real = (logit_paddings == 0).T
    if not real.shape[0]:
        real = jnp.zeros((1, real.shape[1]), bool)
    labels = labels.astype(jnp.int32)
    kept = label_paddings == 0
    lengths = jnp.sum(kept.astype(jnp.int32), axis=1)
    broken = jnp.any(kept & ((labels < 0) | (labels >= num_labels)), axis=1)
    graph, layout = jax.tree_util.tree_map(apart, _tables(labels, lengths, blank.astype(jnp.int32)))
    nothing = jnp.zeros((labels.shape[0], 1), dtype)
    problem = Problem(
        am_scale=jnp.ones((), dtype),
        bias=jnp.zeros(layout.slot_label.shape, dtype),
        links=Links(nothing, nothing, nothing),
        shift=None,
        offset=None,
        graph=graph,
        layout=layout,
        real=real,
        broken=broken,
    )
    loss = partition(1, logits, normalized(1, logits, problem))
    return jnp.where(loss == jnp.inf, -log_epsilon.astype(dtype), loss)


def ctc_loss(
    logits: Array,
    logit_paddings: Array,
    labels: Array,
    label_paddings: Array,
    *,
    blank_id: int = 0,
    log_epsilon: float = -1e5,
) -> Array:
    """The CTC loss (Graves et al., 2006), a drop-in for `optax.ctc_loss`.

    Everything may be traced.  Unlike optax's, the loss is exact to float32's rounding for any
    length and however peaked the logits are.

    Args:
        logits: [B, T, K] float, unnormalised; log_softmax is taken inside.
        logit_paddings: [B, T], 1.0 marks padding frames (wherever they are), 0.0 the others.
        labels: [B, N] integer, in 0..K-1 where not padding.
        label_paddings: [B, N], 1.0 marks padding; rows of zeros, then ones.
        blank_id: label of the blank.
        log_epsilon: minus this is the loss of a sequence without any alignment, as optax has it;
            its gradient is exactly 0 here.  -inf makes it +inf, as in `full_sum_loss`.

    Returns:
        Loss [B] in nats, float32, or float64 for float64 logits.  NaN, with gradient exactly 0,
        for a sequence with NaN or +inf in a valid frame or with a label out of range.

    Raises:
        ValueError: wrong rank, dtype or shape, a concrete label or `blank_id` out of range.
    """
    shape = np.shape(logits)
    if len(shape) != 3 or not jnp.issubdtype(jnp.result_type(logits), jnp.floating):
        raise ValueError(
            f"logits must be a float array [B, T, K], got {jnp.result_type(logits)} of shape "
            f"{shape}"
        )
    if np.shape(logit_paddings) != shape[:2]:
        raise ValueError(
            f"logit_paddings must have shape {shape[:2]}, [B, T] of logits, got "
            f"{np.shape(logit_paddings)}"
        )
    labels_shape = np.shape(labels)
    if (
        len(labels_shape) != 2
        or labels_shape[0] != shape[0]
        or not jnp.issubdtype(jnp.result_type(labels), jnp.integer)
    ):
        raise ValueError(
            f"labels must be an integer array [B, N] with B = {shape[0]} as in logits, got "
            f"{jnp.result_type(labels)} of shape {labels_shape}"
        )
    if np.shape(label_paddings) != labels_shape:
        raise ValueError(
            f"label_paddings must have shape {labels_shape}, like labels, got "
            f"{np.shape(label_paddings)}"
        )
    if not isinstance(blank_id, jax.core.Tracer) and not 0 <= int(blank_id) < shape[2]:
        raise ValueError(f"blank_id is {blank_id}, but logits has {shape[2]} labels (0-based)")
    if not isinstance(labels, jax.core.Tracer) and not isinstance(label_paddings, jax.core.Tracer):
        values = np.asarray(labels)
        bad = (np.asarray(label_paddings) == 0) & ((values < 0) | (values >= shape[2]))
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"labels[{at[0]}, {at[1]}] is {values[at]}, but logits has {shape[2]} labels"
            )
    return _run(
        jnp.asarray(logits),
        jnp.asarray(logit_paddings),
        jnp.asarray(labels),
        jnp.asarray(label_paddings),
        jnp.asarray(blank_id),
        jnp.asarray(log_epsilon),
    )
