"""Large arguments of a callback, in pieces where JAX would hang on the whole.

Up to jax 0.11 a callback's arguments larger than 100 KiB are copied by a task of XLA's CPU client.
Its pool has one thread per core (the environment variable NPROC can say another number) or device,
whichever are more, and a program with a callback occupies one per device.  Where no thread is left,
on a single core or with forced host devices, reading the argument waits for a copy that never
starts.  Smaller arguments are copied at once, on the calling thread.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

__all__ = ["InPieces", "copies_may_starve", "in_pieces"]

# Elements of float32: XLA's CPU client copies up to 100 KiB on the calling thread.
_INLINE_SIZE = 24_000
# Every piece costs some 30 ms of compilation.
_MOST_PIECES = 256

HostCall = Callable[[Any, Any, Any], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class InPieces:
    """A callback whose first argument arrives in pieces, as its last ones."""

    host_call: HostCall
    shape: tuple[int, ...]

    def __call__(
        self, seq_lengths: Any, tags: Any, *pieces: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        log_posteriors = np.empty(math.prod(self.shape), np.float32)
        start = 0
        for piece in map(np.asarray, pieces):
            log_posteriors[start : start + piece.size] = piece
            start += piece.size
        return self.host_call(log_posteriors.reshape(self.shape), seq_lengths, tags)


def copies_may_starve() -> bool:
    """Whether reading a large argument on the host can hang for ever; see the module."""
    if jax.default_backend() != "cpu" or jax.__version_info__ >= (0, 12):
        return False
    told = os.environ.get("NPROC", "")
    if told.isdecimal():
        threads = int(told)
    elif hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    else:
        threads = os.cpu_count() or 1
    return jax.local_device_count() >= threads


def in_pieces(array: jax.Array) -> list[jax.Array]:
    """Cuts a float32 array into flat pieces that are copied on the calling thread.

    Raises:
        ValueError: there would be more pieces than compile in reasonable time.
    """
    if array.size > _MOST_PIECES * _INLINE_SIZE:
        raise ValueError(
            f"log_posteriors of shape {array.shape} are too large for a callback here: jax "
            f"{jax.__version__} on CPU hangs on them, since {jax.local_device_count()} devices "
            "occupy every thread of its client.  Set the environment variable NPROC to a number "
            "larger than that of the devices before jax starts, use jax 0.12 or later, or split "
            f"the batch until a call has at most {_MOST_PIECES * _INLINE_SIZE} elements"
        )
    flat = array.reshape(-1)
    return [flat[i : i + _INLINE_SIZE] for i in range(0, flat.size, _INLINE_SIZE)]
