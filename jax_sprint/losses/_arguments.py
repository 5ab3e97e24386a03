"""The arguments of the callback route, checked before anything is traced or sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint.bridge import encode_tags

__all__ = ["check_arguments", "is_tracing"]


def is_tracing() -> bool:
    """Whether this runs inside a program that is being traced."""
    # Inside a traced program every operation is staged, whatever its operands are.
    return isinstance(jnp.zeros((), jnp.float32), jax.core.Tracer)


def check_arguments(
    log_posteriors: Any, seq_lengths: Any, tags: Any, time_major: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The arguments of `sprint_loss` as arrays; ValueError says which is not as described there."""
    log_posteriors = jnp.asarray(log_posteriors)
    layout = "[T, B, L]" if time_major else "[B, T, L]"
    if log_posteriors.ndim != 3:
        raise ValueError(
            f"log_posteriors must be {layout}, got shape {log_posteriors.shape}; for a single "
            "segment add a batch axis of one"
        )
    if not jnp.issubdtype(log_posteriors.dtype, jnp.floating):
        raise ValueError(
            f"log_posteriors must be floating point, got {log_posteriors.dtype}; pass natural-log "
            "probabilities, such as jax.nn.log_softmax gives"
        )
    batch = log_posteriors.shape[1 if time_major else 0]
    seq_lengths = jnp.asarray(seq_lengths)
    if seq_lengths.shape != (batch,) or not jnp.issubdtype(seq_lengths.dtype, jnp.integer):
        raise ValueError(
            f"seq_lengths must be [B] integer with B = {batch} as in log_posteriors {layout} = "
            f"{log_posteriors.shape}, got {seq_lengths.dtype} {seq_lengths.shape}; "
            "is time_major right?"
        )
    if isinstance(tags, str | bytes):
        raise ValueError(f"tags must hold one segment name per sequence, got the single {tags!r}")
    if isinstance(tags, Sequence):
        if is_tracing():
            raise ValueError(
                "tags is a Python list inside a traced program: these names would be frozen into "
                "it and used for every later batch; pass encode_tags(tags) as an argument of the "
                "jitted function instead"
            )
        tags = encode_tags(list(tags))
    if not isinstance(tags, jax.Array) and np.asarray(tags).dtype.kind in "OSU":
        if is_tracing():
            raise ValueError(
                "tags is an array of strings inside a traced program, where it would be frozen; "
                "pass encode_tags(tags) as an argument of the jitted function instead"
            )
        tags = encode_tags(np.asarray(tags).tolist())
    tags = jnp.asarray(tags)
    if tags.dtype != jnp.uint8 or tags.ndim != 2 or tags.shape[0] != batch:
        raise ValueError(
            f"tags must be the uint8 array [B, W] that encode_tags makes, with B = {batch}, got "
            f"{tags.dtype} {tags.shape}"
        )
    return log_posteriors, seq_lengths.astype(jnp.int32), tags
