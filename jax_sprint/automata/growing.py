"""Padded sizes that batches of one kind share, learnt from the batches themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from jax_sprint.automata._automata import Automata

__all__ = ["GrowingSizes"]

_ROUND = 4


class GrowingSizes:
    """Padded sizes for several kinds of batches, so that each kind keeps one shape.

    Where the largest automaton is not known beforehand, neither is `pad_to`.  Here the first batch
    of a kind gets the sizes that it needs, its nodes hardly rounded, and so do those after it until
    one does not fit: then the sizes grow, and a jitted step compiles once more.  That is rare where
    the first batch of a kind holds what seem to be the largest automata.

    For several threads at once.

    Args:
        kind: of a batch, such as the number of its padded frames; None: all are of one kind.

    Example:
        >>> sizes = GrowingSizes(kind=lambda batch: batch.num_frames)
        >>> for batch, automata in prefetch(batches, pool, pad_to=sizes):
        ...     state = step(state, batch, automata)
    """

    def __init__(self, kind: Callable[[Any], Hashable] | None = None) -> None:
        if kind is not None and not callable(kind):
            raise ValueError(f"kind must be a function of a batch or None, got {kind!r}")
        self._kind = kind
        self._lock = threading.Lock()
        self._known: dict[Hashable, dict[str, int]] = {}
        self._shapes = 0

    @property
    def shapes(self) -> int:
        """How many different shapes there were so far, those that were outgrown included."""
        return self._shapes

    def kind(self, batch: Any) -> Hashable:
        """What kind of batch this is."""
        return None if self._kind is None else self._kind(batch)

    def pack(
        self,
        kind: Hashable,
        edges: Any,
        weights: Any,
        start_end_states: Any,
        *,
        num_labels: int | None = None,
    ) -> Automata:
        """Makes the automata of a batch, padded as all of its kind.

        Args:
            kind: of the batch, as `kind` tells it.
            edges, weights, start_end_states, num_labels: as for `Automata.from_edges`.

        Raises:
            ValueError: as `Automata.from_edges`.
        """

        def padded(sizes: dict[str, int]) -> Automata:
            return Automata.from_edges(
                edges, weights, start_end_states, num_labels=num_labels, pad_to=sizes
            )

        with self._lock:
            known = self._known.get(kind)
        if known is not None:
            try:
                return padded(known)
            except ValueError:
                # Too small; or the automata are wrong, which comes again below.
                pass
        with self._lock:
            known = self._known.get(kind, {})
            # Tables have other sizes than a band: these must be known of this batch as well.
            needed = _needed(padded({"band": 0} if known.get("band") == 0 else {}))
            sizes = {name: max(size, known.get(name, 0)) for name, size in needed.items()}
            if 0 in (needed["band"], known.get("band")):
                sizes["band"] = 0
            automata = padded(sizes)
            self._known[kind] = automata.sizes
            self._shapes += 1
        return automata


def _needed(automata: Automata) -> dict[str, int]:
    """The sizes of a batch, hardly rounded where the kernels' work is proportional to them."""
    nodes = np.count_nonzero(np.asarray(automata.node_label) >= 0, axis=1).max(initial=0)
    sizes = automata.sizes
    tight = -(-(int(nodes) + sizes.get("starts", 1)) // _ROUND) * _ROUND
    return sizes | {"nodes": min(sizes["nodes"], tight)}
