"""A layer of Sprint's network whose output comes from the parent process.

For criteria that only Sprint's own trainer computes, such as lattice-based MMI: `layer-type =
python`.  Sprint calls `forward` and gets the log-posteriors that the parent sent with its request,
and `backpropagate` with the error signal that the parent gets back.
"""

import math

import numpy as np

from .control import PythonControl
from .settings import Settings

__all__ = ["SprintNnPythonLayer"]


class SprintNnPythonLayer:
    """Called by Sprint, by keyword; matrices are (dimension, frames)."""

    def __init__(self, config="", **_ignored):
        self._control = PythonControl.shared(Settings.parse(config))
        self._input_sizes = {}
        self._output_size = None

    def setInputDimension(self, stream, size):
        """Sprint tells the size of an input stream; what comes in is not used."""
        self._input_sizes[stream] = size

    def setOutputDimension(self, size):
        """Sprint tells the number of labels."""
        self._output_size = size

    def initializeNetworkParameters(self):
        """There are none."""

    def loadNetworkParameters(self, filename):
        """There are none."""

    def saveNetworkParameters(self, filename):
        """There are none."""

    def isTrainable(self):
        """True, or Sprint would not propagate the error signal down to us."""
        return True

    def getNumberOfFreeParameters(self):
        """None of Sprint's."""
        return 0

    def forward(self, input):
        """Gives the log-posteriors of the segment that Sprint works on.

        A length or a number of labels that differs from Sprint's would end its process, so then
        the request is answered with an exception and Sprint gets a uniform distribution.

        Args:
            input: list of (dimension, T) float32; only T is used.

        Returns:
            (L, T) float32, natural-log probabilities.
        """
        frames = input[0].shape[1]
        request = self._control.current
        if request is None:
            raise RuntimeError(
                "Sprint wants posteriors, but no segment was asked for; "
                "set python-segment-order = true"
            )
        shape = request.log_posteriors.shape
        labels = self._output_size or shape[1]
        if shape != (frames, labels):
            request.fail(
                "segment %r: log_posteriors have %d frames and %d labels, but Sprint has %d and %d"
                % (request.segment, shape[0], shape[1], frames, labels)
            )
            return np.full((labels, frames), -math.log(labels), np.float32)
        return request.log_posteriors.T

    def backpropagate(self, errorSignalIn):
        """Takes the error signal.

        Args:
            errorSignalIn: (L, T) float32.

        Returns:
            One (dimension, T) float32 of zeros for each input stream: nothing lies below us.
        """
        request = self._control.current
        if request is not None and not request.done:
            # Sprint reuses its memory.
            request.set_error_signal(np.array(errorSignalIn, dtype=np.float32).T)
        frames = errorSignalIn.shape[1]
        return tuple(
            np.zeros((size, frames), np.float32) for _, size in sorted(self._input_sizes.items())
        )

    def finalize(self):
        """Sprint ends."""
