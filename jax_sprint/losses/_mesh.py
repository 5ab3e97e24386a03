"""The callback route on a mesh of devices: one call per shard of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_sprint.bridge import SprintInstancePool, SprintOptions
from jax_sprint.losses._arguments import check_arguments
from jax_sprint.losses._callback import sprint_loss

__all__ = ["sharded_sprint_loss"]


def sharded_sprint_loss(
    log_posteriors: jax.Array,
    seq_lengths: jax.Array,
    tags: jax.Array | np.ndarray | Sequence[str] | Sequence[bytes],
    *,
    sprint: SprintInstancePool | SprintOptions | Mapping[str, Any],
    mesh: Mesh,
    axis: str | tuple[str, ...] = "data",
    return_valid: bool = False,
    time_major: bool = True,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`sprint_loss` for a batch that is spread over a mesh of devices.

    For programs that are sharded automatically: there JAX would gather the whole batch onto one
    device for the callback.  This wraps the loss in `jax.shard_map`, so that each shard makes a
    call of its own, all at the same time, and loss and gradient stay where the posteriors are.
    Arguments that lie otherwise are moved.  Inside your own `shard_map` call `sprint_loss` itself.

    What `sprint_loss` says about `jax.shard_map` holds here: Sprint's failures raise nothing, but
    give NaN and not valid for their shard; `pool.check()`, after the step, raises what happened.

    Args:
        log_posteriors, seq_lengths, tags, sprint, return_valid, time_major: as in `sprint_loss`.
        mesh: the devices; all of one process, or, with `jax.distributed`, of several.  Devices that
            differ only in other axes than `axis` hold the same shard, and each asks about it.
        axis: the mesh axis, or axes, over which the batch is spread.  Their size must divide B;
            fill up with empty tags and length 0, which Sprint is not asked about.

    Returns:
        As `sprint_loss`, spread over `axis`.

    Raises:
        ValueError: as `sprint_loss`, or B cannot be spread evenly, or `mesh` has no such axis.
    """
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    for name in axes:
        if name not in mesh.shape:
            raise ValueError(
                f"mesh has no axis {name!r}, only {', '.join(map(repr, mesh.shape))}; name the "
                "one over which the batch is spread: axis="
            )
    arguments = check_arguments(log_posteriors, seq_lengths, tags, time_major)
    shards = int(np.prod([mesh.shape[name] for name in axes]))
    batch = arguments[1].shape[0]
    if batch % shards:
        raise ValueError(
            f"a batch of {batch} cannot be spread evenly over the {shards} devices of axis "
            f"{axis!r}; fill it up with empty tags and seq_lengths of 0"
        )
    rows = P(axes)
    specs = (P(None, axes) if time_major else rows, rows, rows)
    if AxisType.Explicit in mesh.axis_types:
        arguments = tuple(
            jax.sharding.reshard(array, NamedSharding(mesh, spec))
            for array, spec in zip(arguments, specs, strict=True)
        )
    local = partial(sprint_loss, sprint=sprint, return_valid=True, time_major=time_major)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(rows, rows))
    loss, valid = mapped(*arguments)
    return (loss, valid) if return_valid else loss
