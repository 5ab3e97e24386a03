"""Recurrent neural aligner: every label for exactly one frame, blanks between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

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

__all__ = ["rna", "rna_triple"]


def rna(
    labels: Labels,
    label_lengths: Any = None,
    *,
    blank: int = 0,
    num_labels: int | None = None,
    pad_to: Any = None,
) -> Automata:
    """Builds the RNA automaton of each label sequence.

    Its paths are exactly the frame label strings that give the label sequence when blanks are
    removed, each of them once: as CTC, but a label lasts one frame, so that equal labels may
    follow each other directly.  Drawn for the labels ``a b`` (``-`` is the blank)::

            -           -           -
           .-.         .-.         .-.
           v |    a    v |    b    v |
        ->  0 -------->  1 -------->  2 ->

    The last state is the end state; its blank loop stays.  N labels take N + 1 states.

    Args:
        labels: `[B, N]` integers, or a list of B integer sequences.  Entries of an array beyond a
            sequence's length are ignored, whatever they hold.
        label_lengths: `[B]` integers, number of labels of each row; None: rows are used whole.
            Only an array of labels takes lengths.
        blank: the blank's index on the label axis.
        num_labels: L, the size of the label axis of the log-posteriors; None: not checked here.
        pad_to: padded sizes, handed to `Automata.from_edges`.

    Returns:
        The automata of B sequences; all weights are 0.  A sequence without labels accepts any
        number of blanks, zero included.  N labels have no path of fewer than N frames; the loss is
        +inf there.

    Raises:
        TypeError: labels that are no integers, or traced.
        ValueError: a label that is the blank or out of range, lengths that do not fit.

    Source: Sak et al., "Recurrent neural aligner", Interspeech 2017.
    """
    return to_automata(
        rna_triple(labels, label_lengths, blank=blank, num_labels=num_labels),
        num_labels=num_labels,
        pad_to=pad_to,
    )


def rna_triple(
    labels: Labels,
    label_lengths: Any = None,
    *,
    blank: int = 0,
    num_labels: int | None = None,
) -> Triple:
    """The arcs of `rna`, not packed."""
    sequences = ragged(labels, label_lengths)
    check_labels(sequences, num_labels=num_labels, blank=blank)
    sizes = sequences.lengths + 1
    first = starts(sizes)
    state = np.arange(int(sizes.sum()))
    source = first[sequences.sequence] + sequences.position

    arcs = ArcList()
    arcs.add(np.repeat(np.arange(sequences.batch), sizes), state, state, blank)
    arcs.add(sequences.sequence, source, source + 1, sequences.flat)
    return arcs.build(first, first + sizes - 1)[0]
