"""Connectionist temporal classification: every label for one frame or more, blanks between."""

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

__all__ = ["ctc", "ctc_triple"]


def ctc(
    labels: Labels,
    label_lengths: Any = None,
    *,
    blank: int = 0,
    num_labels: int | None = None,
    pad_to: Any = None,
) -> Automata:
    """Builds the CTC automaton of each label sequence.

    Its paths are exactly the frame label strings that give the label sequence when runs of equal
    labels are merged and blanks are then removed, each of them once.  Drawn for the labels
    ``a b`` (``-`` is the blank)::

            -           a           -           b           -
           .-.         .-.         .-.         .-.         .-.
           v |    a    v |    -    v |    b    v |    -    v |
        ->  0 -------->  1 -------->  2 -------->  3 -------->  4
                         |                         ^
                         '----------- b -----------'
                               only if a != b

    There is one end state, 5, which no arc leaves: each arc into the states 3 and 4, where a path
    may end, is there a second time with 5 as its target.  Since both 3 -> 5 and 3 -> 3 cannot be
    the last arc of one path, no string is counted twice.  N labels take 2 N + 2 states.

    Args:
        labels: `[B, N]` integers, or a list of B integer sequences.  Entries of an array beyond a
            sequence's length are ignored, whatever they hold.
        label_lengths: `[B]` integers, number of labels of each row; None: rows are used whole.
            Only an array of labels takes lengths.
        blank: the blank's index on the label axis.
        num_labels: L, the size of the label axis of the log-posteriors; None: not checked here.
        pad_to: padded sizes, handed to `Automata.from_edges`.

    Returns:
        The automata of B sequences; all weights are 0.  A sequence without labels gets one state
        with a blank loop: any number of blanks, zero included.  A sequence of N labels, R of which
        equal their predecessor, has no path of fewer than N + R frames; the loss is +inf there.

    Raises:
        TypeError: labels that are no integers, or traced.
        ValueError: a label that is the blank or out of range, lengths that do not fit.

    Example:
        >>> from jax_sprint import topologies
        >>> automata = topologies.ctc([[3, 1, 4], [1, 5]], num_labels=6)

    Source: Graves et al., "Connectionist temporal classification", ICML 2006.
    """
    return to_automata(
        ctc_triple(labels, label_lengths, blank=blank, num_labels=num_labels),
        num_labels=num_labels,
        pad_to=pad_to,
    )


def ctc_triple(
    labels: Labels,
    label_lengths: Any = None,
    *,
    blank: int = 0,
    num_labels: int | None = None,
) -> Triple:
    """The arcs of `ctc`, not packed."""
    sequences = ragged(labels, label_lengths)
    check_labels(sequences, num_labels=num_labels, blank=blank)
    lengths, batch = sequences.lengths, np.arange(sequences.batch)
    sizes = np.where(lengths > 0, 2 * lengths + 2, 1)
    first = starts(sizes)
    end = first + sizes - 1

    # Label j sits between the blanks at state - 1 and state + 1.
    sequence, position, label = sequences.sequence, sequences.position, sequences.flat
    state = first[sequence] + 2 * position + 1
    last = position == lengths[sequence] - 1
    direct = np.zeros(label.size, bool)
    direct[1:] = (position[1:] > 0) & (label[1:] != label[:-1])

    arcs = ArcList()
    arcs.add(batch, first, first, blank)
    arcs.add(sequence, state + 1, state + 1, blank)
    arcs.add(sequence, state, state, label)
    arcs.add(sequence, state - 1, state, label)
    arcs.add(sequence, state, state + 1, blank)
    arcs.add(sequence[direct], state[direct] - 2, state[direct], label[direct])

    # The arcs into the last label and the last blank once more, into the end state.
    final = end[sequence]
    for where, source, emitted in (
        (last, state - 1, label),
        (last, state, label),
        (last & direct, state - 2, label),
        (last, state, np.full_like(label, blank)),
        (last, state + 1, np.full_like(label, blank)),
    ):
        arcs.add(sequence[where], source[where], final[where], emitted[where], ends=True)
    return arcs.build(first, end)[0]
