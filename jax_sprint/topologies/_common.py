"""What the builders share: reading label sequences, sorting arcs, handing over to `Automata`.

Everything here is numpy on the host.  A builder works on a *ragged* batch, that is on one flat
array of labels and one array of lengths, so that no Python loop runs over labels or arcs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "ArcList",
    "Labels",
    "Ragged",
    "Triple",
    "check_labels",
    "integers",
    "ragged",
    "to_automata",
]

# A batch of label sequences: an array [B, N] of integers, or a sequence of B integer sequences.
Labels = Any

_MAX_LABEL = np.iinfo(np.int32).max


class Triple(NamedTuple):
    """Automata as the pool hands them over: what `Automata.from_edges` takes.

    Attributes:
        edges: `[4, E] uint32`, rows from-state, to-state, emission (label), sequence; the states
            of sequence b follow those of sequence b - 1.
        weights: `[E] float32`, costs (negative natural-log probabilities).
        start_end_states: `[2, B] uint32`, start and end state of each sequence.
    """

    edges: np.ndarray
    weights: np.ndarray
    start_end_states: np.ndarray


@dataclass(frozen=True)
class Ragged:
    """B label sequences, one after the other.

    Attributes:
        flat: `[sum of lengths] int64`, the labels.
        lengths: `[B] int64`.
    """

    flat: np.ndarray
    lengths: np.ndarray

    @property
    def batch(self) -> int:
        return int(self.lengths.size)

    @property
    def sequence(self) -> np.ndarray:
        """`[sum of lengths] int64`: which sequence each label belongs to."""
        return np.repeat(np.arange(self.batch), self.lengths)

    @property
    def position(self) -> np.ndarray:
        """`[sum of lengths] int64`: the index of each label within its sequence."""
        return np.arange(self.flat.size) - np.repeat(starts(self.lengths), self.lengths)


def starts(sizes: np.ndarray) -> np.ndarray:
    """Offsets of consecutive blocks of the given sizes: the exclusive cumulative sum, int64."""
    return np.cumsum(sizes, dtype=np.int64) - sizes


def ragged(
    labels: Labels,
    lengths: Any = None,
    *,
    name: str = "labels",
    lengths_name: str = "label_lengths",
) -> Ragged:
    """Reads label sequences in either of the accepted forms.

    Args:
        labels: `[B, N]` array of integers, or a sequence of B integer sequences.
        lengths: `[B]` integers; entries of an array beyond them are ignored, whatever they hold.
            None: an array's rows are used whole.
        name: the caller's name of `labels`, for messages.
        lengths_name: the caller's name of `lengths`.

    Returns:
        The sequences, flat.

    Raises:
        TypeError: no integers, or traced arrays.
        ValueError: a wrong number of axes, or lengths that do not fit.
    """
    if lengths is None and not hasattr(labels, "ndim"):
        if isinstance(labels, str | bytes | Mapping) or not hasattr(labels, "__iter__"):
            raise TypeError(
                f"{name} must be an integer array [B, N] or a list of integer sequences, "
                f"got {type(labels).__name__}"
            )
        rows = [integers(row, f"{name}[{index}]", ndim=1) for index, row in enumerate(labels)]
        sizes = np.asarray([row.size for row in rows], np.int64)
        flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return Ragged(flat, sizes)
    table = integers(labels, name, ndim=2)
    batch, width = table.shape
    if lengths is None:
        return Ragged(table.reshape(-1), np.full(batch, width, np.int64))
    sizes = integers(lengths, lengths_name, ndim=1)
    if sizes.shape != (batch,):
        raise ValueError(
            f"{lengths_name} has {sizes.size} entries but {name} has {batch} sequences; "
            "give one length per sequence"
        )
    bad = np.flatnonzero((sizes < 0) | (sizes > width))
    if bad.size:
        raise ValueError(
            f"{lengths_name}[{bad[0]}] is {sizes[bad[0]]}, but {name} has rows of {width} labels; "
            f"lengths must lie between 0 and {width}"
        )
    return Ragged(table[np.arange(width) < sizes[:, None]], sizes)


def integers(values: Any, name: str, *, ndim: int) -> np.ndarray:
    """Reads an integer array of `ndim` axes as int64, or says which argument is none."""
    try:
        array = np.asarray(values)
    except TypeError as error:
        raise TypeError(
            f"{name} cannot be read as an array ({type(values).__name__}); automata are built on "
            "the host, so build them outside jit and pass them in as an argument"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array of integers: {error}") from error
    if array.ndim != ndim:
        shape = "[B, N], or a list of sequences" if ndim == 2 else "one-dimensional"
        raise ValueError(f"{name} must be {shape}; got shape {array.shape}")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}")
    return array.astype(np.int64)


def check_labels(
    sequences: Ragged,
    *,
    name: str = "labels",
    num_labels: int | None = None,
    blank: int | None = None,
) -> None:
    """Refuses labels that no emission could score.

    Args:
        sequences: what `ragged` returned.
        name: the caller's name of the labels, for messages.
        num_labels: size of the label axis; None: unknown, labels need only fit in 31 bits.
        blank: a label that must not occur among them.

    Raises:
        ValueError: a label out of range, or the blank among the labels.
    """
    if num_labels is not None and num_labels <= 0:
        raise ValueError(f"num_labels is {num_labels}; it must be positive")
    limit = _MAX_LABEL if num_labels is None else num_labels
    if blank is not None and not 0 <= blank < limit:
        raise ValueError(f"blank is {blank}; it must lie between 0 and {limit - 1}")
    flat = sequences.flat
    bad = (flat < 0) | (flat >= limit)
    reason = f"labels must lie between 0 and {limit - 1}"
    if not bad.any() and blank is not None:
        bad = flat == blank
        reason = (
            "that is the blank, which the topology inserts itself; remove it from the labels or "
            "choose another `blank`"
        )
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        row, column = int(sequences.sequence[at]), int(sequences.position[at])
        raise ValueError(f"{name}[{row}][{column}] is {flat[at]}; {reason}")


class ArcList:
    """Collects arcs in blocks and puts them into the order in which RASR writes them.

    The order within a sequence: first all arcs that do not end the automaton, sorted by
    (to - from), then to, then from, so that self-loops lead; then the arcs into the end state.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, ...]] = []

    def add(
        self,
        sequence: np.ndarray,
        source: np.ndarray,
        target: np.ndarray,
        label: np.ndarray | int,
        weight: np.ndarray | float = 0.0,
        *,
        tag: np.ndarray | int = 0,
        ends: bool = False,
    ) -> None:
        """Adds one block of arcs.

        Args:
            sequence: `[n]` integers, the sequence of each arc.
            source: `[n]` integers, from-states.
            target: `[n]` integers, to-states.
            label: `[n]` integers or one for all.
            weight: `[n]` costs or one for all.
            tag: `[n]` integers or one for all, carried along (arc classes).
            ends: whether these are the arcs into the end state, which come last.
        """
        columns = (sequence, source, target, label, weight, tag, ends)
        self._blocks.append(tuple(np.broadcast_to(c, np.shape(sequence)) for c in columns))

    def build(self, start: np.ndarray, end: np.ndarray) -> tuple[Triple, np.ndarray]:
        """Sorts everything added so far.

        Args:
            start: `[B]` integers, start states.
            end: `[B]` integers, end states.

        Returns:
            The automata, and the tags `[E] int32` in the order of their arcs.
        """
        sequence, source, target, label, weight, tag, ends = (
            np.concatenate([block[column] for block in self._blocks]) for column in range(7)
        )
        order = np.lexsort((source, target, target - source, ends, sequence))
        edges = np.stack([source, target, label, sequence])[:, order].astype(np.uint32)
        triple = Triple(
            edges, weight[order].astype(np.float32), np.stack([start, end]).astype(np.uint32)
        )
        return triple, tag[order].astype(np.int32)


def to_automata(
    triple: Triple, *, num_labels: int | None, pad_to: Any, shared: bool = False
) -> Any:
    """Packs the triple; imported late, so that the builders themselves need no jax."""
    from jax_sprint.automata import Automata

    return Automata.from_edges(*triple, num_labels=num_labels, pad_to=pad_to, shared=shared)


def cost(value: float, name: str) -> float:
    """Reads one cost.

    Args:
        value: negative natural-log probability; +inf forbids what it belongs to.
        name: the caller's name of it.

    Raises:
        ValueError: NaN or -inf.
    """
    number = float(value)
    if np.isnan(number) or number == -np.inf:
        raise ValueError(
            f"{name} is {number}; it must be a cost, that is a negative log probability: "
            "a finite number, or inf to forbid these arcs"
        )
    return number


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """`np.concatenate` that also takes no parts at all, as int64."""
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
