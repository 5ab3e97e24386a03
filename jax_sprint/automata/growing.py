"""Padded sizes that batches of one kind share, learnt from the batches themselves."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from jax_sprint.automata._automata import Automata
from jax_sprint.automata._rows import Layout, OneAutomaton, Rows, join

__all__ = ["GrowingSizes"]

_ROUND = 4


class GrowingSizes:
    """Padded sizes for several kinds of batches, so that each kind keeps one shape.

    Where the largest automaton is not known beforehand, neither is `pad_to`.  Here the first batch
    of a kind gets the sizes that it needs, its nodes hardly rounded, and so do those after it until
    one does not fit: then the sizes grow, and a jitted step compiles once more.  That is rare where
    the first batch of a kind holds what seem to be the largest automata.

    What was packed once is kept by segment, so that a batch of segments that were seen before is
    only put together (`pack_each`, which `prefetch` uses where it can).

    For several threads at once.

    Args:
        kind: of a batch, such as the number of its padded frames; None: all are of one kind.
        keep_bytes: how much of what was packed is kept, those segments that were used last; 0:
            nothing.

    Example:
        >>> sizes = GrowingSizes(kind=lambda batch: batch.num_frames)
        >>> for batch, automata in prefetch(batches, pool, pad_to=sizes):
        ...     state = step(state, batch, automata)
    """

    def __init__(
        self, kind: Callable[[Any], Hashable] | None = None, *, keep_bytes: int = 256 << 20
    ) -> None:
        if kind is not None and not callable(kind):
            raise ValueError(f"kind must be a function of a batch or None, got {kind!r}")
        if isinstance(keep_bytes, bool) or not isinstance(keep_bytes, int) or keep_bytes < 0:
            raise ValueError(f"keep_bytes must be an int of at least 0, got {keep_bytes!r}")
        self._rows = Rows(keep_bytes)
        self._layouts: dict[tuple[Hashable, int | None], _Packing] = {}
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

    def pack_each(
        self,
        kind: Hashable,
        automata: Sequence[OneAutomaton],
        *,
        num_labels: int | None = None,
    ) -> Automata:
        """As `pack`, from the automata of single segments, which are remembered.

        Args:
            kind: of the batch, as `kind` tells it.
            automata: per sequence its number of states, the first of which is the start, the last
                the end; its number of edges E; edges [3, E] uint32: from, to, emission; weights
                [E] float32.  Only those whose arrays are not writeable are remembered, as the
                pool's cache gives them.
            num_labels: as for `Automata.from_edges`.

        Returns:
            What `pack` gives for the same automata, with their states numbered through.

        Raises:
            ValueError: as `Automata.from_edges`.
        """
        packing = self._packing(kind, num_labels)
        if packing is None or not automata:
            return self.pack(kind, *join(automata), num_labels=num_labels)
        rows = self._rows.get(packing.layout, automata)
        missing = {id(one[2]): one for one, row in zip(automata, rows, strict=True) if row is None}
        if missing:
            new = list(missing.values())
            try:
                packed = Automata.from_edges(
                    *join(new), num_labels=num_labels, pad_to=packing.sizes
                )
            except ValueError:
                # Too small, or wrong.
                return self.pack(kind, *join(automata), num_labels=num_labels)
            made = packing.layout.cut(_leaves(packed), new)
            self._rows.put(packing.layout, new, made)
            by_edges = dict(zip(missing, made, strict=True))
            rows = [
                by_edges[id(one[2])] if row is None else row
                for one, row in zip(automata, rows, strict=True)
            ]
        leaves = packing.layout.assemble([row for row in rows if row is not None], automata)
        return Automata(**leaves, sliced=None, num_labels=num_labels, band=packing.sizes["band"])

    def _packing(self, kind: Hashable, num_labels: int | None) -> _Packing | None:
        """How batches of that kind are packed at present; None where that is not known yet."""
        with self._lock:
            sizes = self._known.get(kind)
            packing = self._layouts.get((kind, num_labels))
            if sizes is None or (packing is not None and packing.sizes is sizes):
                return packing
            if packing is not None:
                self._rows.forget(packing.layout)
            template = Automata.from_edges(
                np.zeros((4, 0), np.uint32),
                np.zeros(0, np.float32),
                np.zeros((2, 1), np.uint32),
                pad_to=sizes,
            )
            packing = self._layouts[kind, num_labels] = _Packing(sizes, Layout(_leaves(template)))
            return packing


@dataclasses.dataclass(frozen=True)
class _Packing:
    sizes: dict[str, int]
    layout: Layout


def _leaves(automata: Automata) -> dict[str, Any]:
    """The leaves by name, without those that a batch never has."""
    names = [field.name for field in dataclasses.fields(automata)]
    return {
        name: getattr(automata, name)
        for name in names
        if name not in ("sliced", "num_labels", "band")
    }


def _needed(automata: Automata) -> dict[str, int]:
    """The sizes of a batch, hardly rounded where the kernels' work is proportional to them."""
    nodes = np.count_nonzero(np.asarray(automata.node_label) >= 0, axis=1).max(initial=0)
    sizes = automata.sizes
    tight = -(-(int(nodes) + sizes.get("starts", 1)) // _ROUND) * _ROUND
    return sizes | {"nodes": min(sizes["nodes"], tight)}
