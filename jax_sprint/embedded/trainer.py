"""A segment-wise trainer with a network that is one layer of type python.

It calls a control module and a layer in the order in which RASR's segment-wise trainer does:
`forward`, `init_segment`, `notify_segment_loss`, `backpropagate`; a segment without a path is
passed over after `init_segment`, as RASR passes over a bad lattice.  The criterion is full-sum;
what the layer puts out is taken for log-posteriors.

===========================================  ===================================================
``neural-network.python-layer``              ``layer-type`` must be ``python``;
                                             ``dimension-input`` (default 1; its values are 0),
                                             ``dimension-output``; ``pymod-path``, ``-name``,
                                             ``-config``
``trainer.frame-shift``                      ours: seconds a frame (default 0.01).  There being no
                                             audio, a segment has as many frames as fit into its
                                             start and end, rounded, at least 1
===========================================  ===================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np

from jax_sprint.embedded.callback import SprintCallback
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.corpus import Segment
from jax_sprint.embedded.errors import ControlModuleError

__all__ = ["SegmentwiseTrainer"]


class SegmentwiseTrainer:
    """Runs segments through the layer and the criterion.

    Args:
        config: of the application.
        callback: what computes the criterion.
        load_module: loads the module that a component names.

    Raises:
        ConfigurationError: the layer is not configured, or a value makes no sense.
        ControlModuleError: the module has no `SprintNnPythonLayer`.
    """

    def __init__(
        self,
        config: Configuration,
        callback: SprintCallback,
        load_module: Callable[[Configuration], ModuleType],
    ) -> None:
        layer = config.select("neural-network.python-layer")
        layer.get_choice("layer-type", ["python"], "python")
        self._inputs = layer.get_int("dimension-input", 1, minimum=1)
        self._labels = layer.get_int("dimension-output", 0, minimum=0)
        if not self._labels:
            raise layer.error("dimension-output", "the number of labels is not given")
        trainer = config.select("trainer")
        self._shift = trainer.get_float("frame-shift", 0.01)
        if not 0.0 < self._shift < math.inf:
            raise trainer.error("frame-shift", "it must be a positive number of seconds")
        self._callback = callback
        module = load_module(layer)
        make = getattr(module, "SprintNnPythonLayer", None)
        if make is None:
            raise ControlModuleError(f"the module {module.__name__!r} has no 'SprintNnPythonLayer'")
        self._layer = make(config=layer.get_str("pymod-config", ""))
        self._layer.setOutputDimension(size=self._labels)
        self._layer.setInputDimension(stream=0, size=self._inputs)
        self._layer.initializeNetworkParameters()
        trainable = self._layer.isTrainable()
        if not isinstance(trainable, bool):
            raise ControlModuleError(f"isTrainable() must give a bool, not {trainable!r}")
        count = self._layer.getNumberOfFreeParameters()
        if not isinstance(count, int) or count < 0:
            raise ControlModuleError(
                f"getNumberOfFreeParameters() must give an int of at least 0, not {count!r}"
            )

    def frames(self, segment: Segment) -> int:
        """How many frames a segment has.

        Raises:
            ControlModuleError: the corpus does not say where it ends.
        """
        length = segment.end - segment.start
        if not math.isfinite(length):
            raise ControlModuleError(
                f"segment {segment.full_name!r} has no end, so its number of frames is not known"
            )
        return max(1, round(length / self._shift))

    def run(self, segments: Iterable[Segment], control: Any) -> None:
        """Trains on segments.

        Args:
            segments: in the order in which they are wanted.
            control: the object that `init` gave, or None without PythonControl.

        Raises:
            ControlModuleError: the layer gave something of the wrong type or shape.
        """
        for segment in segments:
            self._process(segment, control)
        self._layer.finalize()

    def _process(self, segment: Segment, control: Any) -> None:
        frames = self.frames(segment)
        output = self._layer.forward(input=[np.zeros((self._inputs, frames), np.float32)])
        self._check("forward", output, (self._labels, frames))
        if control is not None:
            control.init_segment(segment_name=segment.full_name)
        loss, error = self._callback(
            "calculate_criterion",
            log_posteriors=output,
            orthography=segment.orth,
            output_error_type="error-signal",
            segment_name=segment.full_name,
        )
        if not math.isfinite(loss):
            return
        if control is not None:
            control.notify_segment_loss(segment_name=segment.full_name, loss=loss)
        back = self._layer.backpropagate(errorSignalIn=error)
        if not isinstance(back, tuple) or len(back) != 1:
            raise ControlModuleError(f"backpropagate() must give a tuple of 1, not {back!r:.80}")
        self._check("backpropagate", back[0], (self._inputs, frames))

    def _check(self, method: str, value: Any, shape: tuple[int, int]) -> None:
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
            found = (
                f"{value.dtype} {value.shape}"
                if isinstance(value, np.ndarray)
                else type(value).__name__
            )
            raise ControlModuleError(f"{method}() must give float32 {shape}, not {found}")
