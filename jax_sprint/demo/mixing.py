"""Puts pieces of speech into one recording: pauses, level, speed and background noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_sprint.demo.features import resample

__all__ = ["LEVEL", "join"]

LEVEL = 0.05
"""Root mean square of speech in every recording that the demo makes; full scale is 1."""

_EDGE_SECONDS = (0.06, 0.15)
_PAUSE_SECONDS = (0.03, 0.2)
_FLOOR_DB = 40.0
_NOISE_DB = (15.0, 45.0)
_GAIN_DB = 3.0
_SPEED = 0.1


def join(
    pieces: Sequence[tuple[np.ndarray, int]], rng: np.random.Generator, *, vary: bool
) -> tuple[np.ndarray, int]:
    """Joins pieces of speech, with short pauses, at a common level over a noise floor.

    Args:
        pieces: samples [N] float32 and samples per second of each; at least one.
        rng: draws the pauses, the noise and the variation.
        vary: whether to vary speed (by up to a tenth, pitch with it), the pieces' levels (by up
            to 3 dB) and the noise (15 to 45 dB below the speech); otherwise the noise is 40 dB
            below and all else as recorded.

    Returns:
        Samples [N'] float32 and samples per second, the highest of the pieces.
    """
    rate = max(rate for _, rate in pieces)
    parts = [_silence(rng, _EDGE_SECONDS, rate)]
    for index, (audio, own_rate) in enumerate(pieces):
        if index:
            parts.append(_silence(rng, _PAUSE_SECONDS, rate))
        gain = 10 ** (rng.uniform(-_GAIN_DB, _GAIN_DB) / 20) if vary else 1.0
        level = np.sqrt(np.mean(np.square(audio))) + 1e-6
        parts.append(resample(audio, own_rate, rate) * np.float32(gain * LEVEL / level))
    parts.append(_silence(rng, _EDGE_SECONDS, rate))
    joined = np.concatenate(parts)
    below = _FLOOR_DB
    if vary:
        joined = resample(joined, rate * rng.uniform(1 - _SPEED, 1 + _SPEED), rate)
        below = rng.uniform(*_NOISE_DB)
    noise = rng.standard_normal(len(joined), dtype=np.float32)
    return joined + np.float32(LEVEL * 10 ** (-below / 20)) * noise, rate


def _silence(rng: np.random.Generator, seconds: tuple[float, float], rate: int) -> np.ndarray:
    return np.zeros(int(rate * rng.uniform(*seconds)), np.float32)
