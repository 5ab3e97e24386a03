"""How much of a training is computed for nothing, on padding."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jax_sprint import Automata
from jax_sprint.demo.batches import Batch

__all__ = ["Padding"]

_NODES_LIKE_THE_MODEL = 700
"""How many nodes of an automaton cost as much in a frame as the model does: on two cores."""


@dataclass
class Padding:
    """Counts of what a number of batches hold, and of what is computed for them.

    The model computes frames.  The recursions over the automata compute cells: in every frame, one
    for each node, which is a state together with the label that was emitted on the way to it.

    Attributes:
        shapes: the different shapes of the batches, each of which is compiled.
        frames: valid input frames.
        padded_frames: with those of the padding.
        cells: valid frames times nodes, summed over segments; 0 if the batches had no automata.
        padded_cells: with those of the padding.
    """

    shapes: set[Hashable] = field(default_factory=set)
    frames: int = 0
    padded_frames: int = 0
    cells: int = 0
    padded_cells: int = 0

    def add(self, batch: Batch, targets: Any) -> bool:
        """Counts a batch.

        Args:
            batch: features and lengths.
            targets: what the training step gets beside it; its automata, or anything else.

        Returns:
            Whether this was the first batch of its shape.
        """
        leaves, structure = jax.tree.flatten((batch.features, targets))
        shape = (structure, tuple(leaf.shape for leaf in leaves))
        first = shape not in self.shapes
        self.shapes.add(shape)
        rows, frames, _ = batch.features.shape
        self.frames += int(batch.lengths.sum())
        self.padded_frames += rows * frames
        if isinstance(targets, Automata):
            starts = targets.sizes.get("starts", 1)
            nodes = starts + np.count_nonzero(np.asarray(targets.node_label) >= 0, axis=1)
            self.cells += int((batch.lengths * nodes).sum())
            # The recursions end with the longest sequence (on a CPU).
            longest = int(batch.lengths.max(initial=0))
            self.padded_cells += rows * longest * targets.sizes["nodes"]
        return first

    @property
    def frame_share(self) -> float:
        """Share of the frames that are padding, 0 to 1: of the model's work."""
        return _share(self.frames, self.padded_frames)

    @property
    def cell_share(self) -> float:
        """Share of the cells that are padding, 0 to 1: of the recursions' work."""
        return _share(self.cells, self.padded_cells)

    @property
    def work_share(self) -> float:
        """Share of the step's work that is done on padding, 0 to 1."""
        worth = _NODES_LIKE_THE_MODEL
        return _share(
            worth * self.frames + self.cells, worth * self.padded_frames + self.padded_cells
        )


def _share(valid: int, padded: int) -> float:
    return 1.0 - valid / padded if padded else 0.0
