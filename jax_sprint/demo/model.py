"""The acoustic model: a small residual convolutional net over time, written as matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["SUBSAMPLING", "AcousticModel", "frame_log_posteriors", "output_lengths"]

Lengths = TypeVar("Lengths", int, np.ndarray, jax.Array)

SUBSAMPLING = 3
"""Input frames per output frame: 30 ms, short enough for the fastest four phonemes."""


def output_lengths(lengths: Lengths) -> Lengths:
    """Gives the number of output frames for a number of input frames, or for an array of them."""
    return (lengths + (SUBSAMPLING - 1)) // SUBSAMPLING


def _context(frames: jax.Array, offsets: Sequence[int]) -> jax.Array:
    """Puts each frame's neighbours beside it.

    A convolution is then one matrix product, which a CPU runs faster than its convolution.

    Args:
        frames: [B, T, D].
        offsets: which neighbours; those outside of 0..T-1 are zero.

    Returns:
        [B, T, D * len(offsets)].
    """
    reach = max(abs(offset) for offset in offsets)
    padded = jnp.pad(frames, ((0, 0), (reach, reach), (0, 0)))
    length = frames.shape[1]
    return jnp.concatenate(
        [padded[:, reach + offset : reach + offset + length] for offset in offsets], axis=-1
    )


class AcousticModel(nn.Module):
    """Log-mel features in, unnormalised label scores out, one frame for every three.

    Attributes:
        num_labels: number of labels, the blank included.
        width: channels of the hidden layers.
        dilations: one residual block each, over frames -d, 0 and +d.
        dropout: rate of the dropout in each block while training.
    """

    num_labels: int
    width: int = 96
    dilations: tuple[int, ...] = (1, 1, 2, 2, 3)
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: jax.Array, lengths: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits.

        Args:
            features: [B, T, D] float32, T a multiple of `SUBSAMPLING`; padding is ignored.
            lengths: [B] int32, valid input frames.
            train: whether to drop units; needs the random stream "dropout".

        Returns:
            [B, T / SUBSAMPLING, num_labels] float32.
        """
        batch, length, bins = features.shape
        valid = jnp.arange(length)[None, :] < lengths[:, None]
        features = jnp.where(valid[:, :, None], features, jnp.float32(0))
        stacked = features.reshape(batch, length // SUBSAMPLING, SUBSAMPLING * bins)
        kept = (jnp.arange(stacked.shape[1])[None, :] < output_lengths(lengths)[:, None])[
            :, :, None
        ]
        hidden = nn.Dense(self.width)(_context(stacked, (-1, 0, 1)))
        for dilation in self.dilations:
            inner = jnp.where(kept, nn.LayerNorm()(hidden), jnp.float32(0))
            inner = nn.relu(nn.Dense(self.width)(_context(inner, (-dilation, 0, dilation))))
            inner = nn.Dropout(self.dropout, deterministic=not train)(inner)
            hidden = hidden + inner
        return nn.Dense(self.num_labels)(nn.LayerNorm()(hidden))


def frame_log_posteriors(
    model: AcousticModel, parameters: Any, features: jax.Array, lengths: jax.Array, **options: Any
) -> jax.Array:
    """Applies a model.

    Args:
        model: which.
        parameters: of the model.
        features: [B, T, D] float32.
        lengths: [B] int32, valid input frames.
        **options: `train`, and `rngs` with the random stream "dropout" where it is True.

    Returns:
        [T / SUBSAMPLING, B, num_labels] float32, natural-log probabilities, time first.
    """
    logits: Any = model.apply(parameters, features, lengths, **options)
    return jnp.swapaxes(jax.nn.log_softmax(logits), 0, 1)
