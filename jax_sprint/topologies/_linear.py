"""Linear automata: the labels one after the other, with or without repetition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jax_sprint.topologies._common import (
    ArcList,
    Labels,
    Triple,
    check_labels,
    ragged,
    starts,
    to_automata,
)

if TYPE_CHECKING:
    from jax_sprint.automata import Automata

__all__ = ["linear", "linear_triple"]


def linear(
    labels: Labels,
    label_lengths: Any = None,
    *,
    loops: bool = True,
    num_labels: int | None = None,
    pad_to: Any = None,
) -> Automata:
    """Builds the automaton that goes through each label sequence from left to right.

    With `loops` a label lasts one frame or more; drawn for the labels ``a b``::

                        a           b
                       .-.         .-.
                  a    v |    b    v |
        ->  0 -------->  1 -------->  2 ->

    Without loops a label lasts exactly one frame, and the only path is the label sequence itself:
    the full-sum loss is then the cross-entropy of a given alignment.

    With loops there is one path per segmentation of the frames.  Where a label equals its
    neighbour (``a a``) several segmentations spell one frame label string, and each of them
    counts.  N labels take N + 1 states.

    Args:
        labels: `[B, N]` integers, or a list of B integer sequences.  Entries of an array beyond a
            sequence's length are ignored, whatever they hold.
        label_lengths: `[B]` integers, number of labels of each row; None: rows are used whole.
            Only an array of labels takes lengths.
        loops: whether a label may last more than one frame.
        num_labels: L, the size of the label axis of the log-posteriors; None: not checked here.
        pad_to: padded sizes, handed to `Automata.from_edges`.

    Returns:
        The automata of B sequences; all weights are 0.  A sequence without labels gets one state
        and no arc: it accepts zero frames and nothing else.  N labels have no path of fewer than N
        frames (without loops: of any other number than N); the loss is +inf there.

    Raises:
        TypeError: labels that are no integers, or traced.
        ValueError: a label out of range, lengths that do not fit.
    """
    return to_automata(
        linear_triple(labels, label_lengths, loops=loops, num_labels=num_labels),
        num_labels=num_labels,
        pad_to=pad_to,
    )


def linear_triple(
    labels: Labels,
    label_lengths: Any = None,
    *,
    loops: bool = True,
    num_labels: int | None = None,
) -> Triple:
    """The arcs of `linear`, not packed."""
    sequences = ragged(labels, label_lengths)
    check_labels(sequences, num_labels=num_labels)
    sizes = sequences.lengths + 1
    first = starts(sizes)
    source = first[sequences.sequence] + sequences.position

    arcs = ArcList()
    arcs.add(sequences.sequence, source, source + 1, sequences.flat)
    if loops:
        arcs.add(sequences.sequence, source + 1, source + 1, sequences.flat)
    return arcs.build(first, first + sizes - 1)[0]
