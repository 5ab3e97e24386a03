"""Memory that parent and child both map."""

import mmap
import os

import numpy as np

from .pickle_names import FormatError

__all__ = ["Memory"]


class Memory:
    """One side's view of the shared file, mapped again when it has grown."""

    def __init__(self, fd):
        self.fd = fd
        self.size = 0
        self._map = None

    def require(self, size):
        """Maps at least `size` bytes.

        Raises:
            FormatError: the file is not that large.
        """
        if size <= self.size:
            return
        there = os.fstat(self.fd).st_size
        if there < size:
            raise FormatError("the shared memory has %d bytes, %d were announced" % (there, size))
        # The old map goes with the last array that uses it.
        self._map = mmap.mmap(self.fd, there)
        self.size = there

    def array(self, shape, offset):
        """A float32 array of that shape there; the caller has made sure that it fits."""
        assert self._map is not None, "nothing was mapped yet"
        return np.ndarray(shape, np.float32, self._map, offset)

    def close(self):
        """Closes the descriptor; the map goes with the last array that uses it."""
        self._map, self.size = None, 0
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)
