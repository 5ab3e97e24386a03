"""From log-posteriors to words and labels: Viterbi over a loop of words, and greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint import Automata, viterbi
from jax_sprint.demo.pronunciations import Pronunciation

__all__ = ["WordLoop", "collapse", "greedy_labels"]


class WordLoop:
    """Any string of words of a lexicon, each in any of its pronunciations, in the CTC topology.

    Drawn for one word ``a b`` (``-`` is the blank; every state but the start has a loop)::

              .-------------- a ---------------.     .--------- b (if a != b) --------.
              |                                v     |                                v
        -> start --- - --> pause --- a -------> a_0 ---- - ----> blank ------ b -----> b_1
                             ^                                                          |
                             '---------------------------- - ---------------------------'

    and from the last label of a word straight to the first of the next, if they differ.  Arcs into
    `pause` and into last labels are there a second time, into the one end state.

    So that a path tells its words, each position of each pronunciation is a decoding label of its
    own, which takes the posteriors of its phoneme; `words` reads an alignment of such labels.

    Attributes:
        source: [P + 1] int32, the acoustic label of each decoding label; 0 is the blank.
        automaton: the loop, shared by all sequences of a batch.
    """

    def __init__(
        self,
        lexicon: Mapping[str, Sequence[Pronunciation]],
        labels: Sequence[str],
        *,
        word_penalty: float = 0.0,
    ) -> None:
        """Builds the loop.

        Args:
            lexicon: pronunciations of the words to choose from.
            labels: the acoustic labels; the blank is the first.
            word_penalty: cost of each word in nats, on top of its pronunciation's score.
        """
        index = {label: number for number, label in enumerate(labels)}
        start, pause = 0, 1
        source = [0]
        arcs: list[tuple[int, int, int, float]] = [(start, pause, 0, 0.0), (pause, pause, 0, 0.0)]
        last_states = {pause}
        # State, decoding label, acoustic label, cost of the word.
        firsts: list[tuple[int, int, int, float]] = []
        lasts: list[tuple[int, int]] = []
        self._word_of: dict[int, str] = {}
        states = 2
        for word, variants in sorted(lexicon.items()):
            for variant in variants:
                phones = [index[phone] for phone in variant.phones]
                for position, phone in enumerate(phones):
                    state, label = states, len(source)
                    states += 1
                    source.append(phone)
                    arcs.append((state, state, label, 0.0))
                    if position == 0:
                        firsts.append((state, label, phone, variant.score + word_penalty))
                        self._word_of[label] = word
                    else:
                        blank, previous = state - 1, state - 2
                        arcs.append((blank, state, label, 0.0))
                        if phones[position - 1] != phone:
                            arcs.append((previous, state, label, 0.0))
                    if position == len(phones) - 1:
                        lasts.append((state, phone))
                        last_states.add(state)
                        arcs.append((state, pause, 0, 0.0))
                    else:
                        arcs += [(state, states, 0, 0.0), (states, states, 0, 0.0)]
                        states += 1
        for state, label, phone, cost in firsts:
            arcs += [(start, state, label, cost), (pause, state, label, cost)]
            arcs += [(last, state, label, cost) for last, final in lasts if final != phone]
        end = states
        arcs += [(begin, end, label, cost) for begin, to, label, cost in arcs if to in last_states]
        edges = np.array([(begin, to, label, 0) for begin, to, label, _ in arcs], np.uint32).T
        self.source = np.array(source, np.int32)
        self.automaton = Automata.from_edges(
            edges,
            np.array([cost for *_, cost in arcs], np.float32),
            np.array([[start], [end]], np.uint32),
            num_labels=len(source),
        ).shared()

    def words(self, alignment: np.ndarray) -> list[str]:
        """Reads the words off an alignment.

        Args:
            alignment: [T] decoding labels, padding cut off.

        Returns:
            The words in the order of time.
        """
        # A word begins where its first position does; it cannot be entered again without
        # another label in between.
        before = np.concatenate([[-1], alignment[:-1]])
        entered = alignment[alignment != before]
        return [self._word_of[label] for label in entered.tolist() if label in self._word_of]

    def decode(self, log_posteriors: jax.Array, seq_lengths: jax.Array) -> list[list[str]]:
        """Finds the best words.

        Args:
            log_posteriors: [T, B, L] float32, natural-log probabilities.
            seq_lengths: [B] int32, frames of each sequence.

        Returns:
            The words of each sequence; none where it has no frames.
        """
        lengths = np.asarray(seq_lengths)
        alignment, _ = _align_expanded(
            log_posteriors,
            jnp.asarray(lengths),
            jnp.asarray(self.source),
            self.automaton,
        )
        return [
            self.words(column[:length])
            for column, length in zip(np.asarray(alignment).T, lengths, strict=True)
        ]


@jax.jit
def _align_expanded(
    log_posteriors: jax.Array, seq_lengths: jax.Array, source: jax.Array, automata: Automata
) -> Any:
    return viterbi(jnp.take(log_posteriors, source, axis=-1), seq_lengths, automata)


def collapse(frames: np.ndarray, blank: int = 0) -> list[int]:
    """Merges runs of equal labels and drops blanks.

    Args:
        frames: [T] labels, padding cut off.
        blank: label to drop.

    Returns:
        The label sequence.
    """
    if not len(frames):
        return []
    changed = np.concatenate([[True], frames[1:] != frames[:-1]])
    return [label for label in frames[changed].tolist() if label != blank]


def greedy_labels(log_posteriors: jax.Array, seq_lengths: jax.Array) -> list[list[int]]:
    """Takes the best label of each frame of [T, B, L] and collapses them, without a lexicon."""
    best = np.asarray(jnp.argmax(log_posteriors, axis=-1))
    return [
        collapse(column[:length])
        for column, length in zip(best.T, np.asarray(seq_lengths), strict=True)
    ]
