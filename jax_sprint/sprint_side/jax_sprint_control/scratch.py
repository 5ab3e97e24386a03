"""Memory for one large array at a time, used again for the next."""

import sys

import numpy as np

__all__ = ["Scratch"]


class Scratch:
    """Fresh memory comes from the system page by page, which takes longer than computing on it."""

    def __init__(self):
        self._memory = np.empty(0, np.float32)

    def like(self, array):
        """A float32 array of the same shape, which holds anything.

        It is not that of an earlier call, if somebody still holds that or a part of it.
        """
        # Two: our attribute, and the argument of the call.
        if self._memory.size < array.size or sys.getrefcount(self._memory) > 2:
            self._memory = np.empty(array.size, np.float32)
        return self._memory[: array.size].reshape(array.shape)
