"""Large arrays whose memory is used again when nobody holds them any more.

The system hands out large pieces of memory page by page, each zeroed, which takes longer than
writing the error signal into them; and it takes them back each time.
"""

from __future__ import annotations

import collections
import math
import weakref

import numpy as np

__all__ = ["Buffers"]

# Below this the allocator itself keeps memory for the next time.
_SMALLEST = 1 << 20
_KEPT, _KEPT_BYTES = 8, 1 << 30


class Buffers:
    """Hands out arrays and keeps the memory of those that were dropped, up to 1 GiB.

    May be used from several threads at once.
    """

    def __init__(self) -> None:
        self._free: collections.deque[np.ndarray] = collections.deque()
        self._keeps = True

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 array that holds anything; it and its views may be kept as long as wanted."""
        count = math.prod(shape)
        if 4 * count < _SMALLEST:
            return np.empty(shape, np.float32)
        self._keeps = True
        memory = self._fitting(count)
        # Every view of this array refers to it, and not to the memory behind: so it is gone when
        # the last of them is.
        array = np.frombuffer(memory.data, np.float32, count)
        weakref.finalize(array, self._returned, memory).atexit = False
        return array.reshape(shape)

    def clear(self) -> None:
        """Lets go of the memory, of arrays in use when they are dropped, until the next `empty`."""
        self._keeps = False
        self._free.clear()

    def _fitting(self, count: int) -> np.ndarray:
        while True:
            try:
                memory = self._free.pop()
            except IndexError:
                return np.empty(count, np.float32)
            if count <= memory.size <= 4 * count:
                return memory

    def _returned(self, memory: np.ndarray) -> None:
        free = self._free
        room = _KEPT_BYTES - sum(kept.nbytes for kept in list(free))
        if self._keeps and len(free) < _KEPT and memory.nbytes <= room:
            free.append(memory)
