"""Reading the utterances of `hmm`: words of HMM states, with optional silence between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_sprint.topologies._common import Ragged, check_labels, concatenate, integers, ragged

__all__ = ["Units", "read_words"]


@dataclass(frozen=True)
class Units:
    """Words and silences of the whole batch, in their order.

    Attributes:
        batch: B.
        labels: `[nodes] int64`, label of each HMM state.
        sizes: `[units] int64`, number of HMM states of each unit.
        sequence: `[units] int64`.
        silent: `[units] int64`, 1 for silence.
        optional: `[units] bool`, whether a path may pass the unit over.
    """

    batch: int
    labels: np.ndarray
    sizes: np.ndarray
    sequence: np.ndarray
    silent: np.ndarray
    optional: np.ndarray


def read_words(
    state_sequences: Any, state_lengths: Any, silence: Any, num_labels: int | None
) -> Units:
    """Reads and checks what `hmm` was given; see there for the arguments and the errors."""
    quiet = None
    if silence is not None:
        quiet = integers([silence] if np.ndim(silence) == 0 else silence, "silence", ndim=1)
        if not quiet.size:
            raise ValueError("silence is an empty list; give a label, or None for no silence")
        quiet_ragged = Ragged(quiet, np.asarray([quiet.size]))
        check_labels(quiet_ragged, name="silence", num_labels=num_labels)

    utterances = _utterances(state_sequences, state_lengths)
    words: list[np.ndarray] = []
    rows: list[tuple[int, int, bool]] = []  # sequence, silent, optional
    for b, utterance in enumerate(utterances):
        if not utterance and quiet is None:
            raise ValueError(
                f"state_sequences[{b}] is empty, and an HMM without states accepts nothing; leave "
                "the utterance out of the batch, or pass `silence`, which then fills it"
            )
        if quiet is not None:
            words.append(quiet)
            rows.append((b, 1, bool(utterance)))
        for w, states in enumerate(utterance):
            if not states.size:
                raise ValueError(
                    f"state_sequences[{b}][{w}] is a word without states; give it at least one "
                    "state, or leave it out"
                )
            words.append(states)
            rows.append((b, 0, False))
            if quiet is not None:
                words.append(quiet)
                rows.append((b, 1, True))
    table = np.asarray(rows, np.int64).reshape(-1, 3)
    sizes = np.asarray([word.size for word in words], np.int64)
    labels = concatenate(words)
    per_utterance = np.zeros(len(utterances), np.int64)
    np.add.at(per_utterance, table[:, 0], np.where(table[:, 1] == 0, sizes, 0))
    speech = labels[np.repeat(table[:, 1] == 0, sizes)]
    check_labels(Ragged(speech, per_utterance), name="state_sequences", num_labels=num_labels)
    return Units(len(utterances), labels, sizes, table[:, 0], table[:, 1], table[:, 2].astype(bool))


def _utterances(state_sequences: Any, state_lengths: Any) -> list[list[np.ndarray]]:
    """Each utterance as its words."""
    if hasattr(state_sequences, "ndim") or state_lengths is not None:
        rows = ragged(
            state_sequences, state_lengths, name="state_sequences", lengths_name="state_lengths"
        )
        pieces = np.split(rows.flat, np.cumsum(rows.lengths)[:-1]) if rows.batch else []
        return [[piece] if piece.size else [] for piece in pieces]
    if isinstance(state_sequences, str | bytes) or not hasattr(state_sequences, "__iter__"):
        raise TypeError(
            "state_sequences must be an integer array [B, N] or a list of utterances, "
            f"got {type(state_sequences).__name__}"
        )
    utterances = []
    for b, utterance in enumerate(state_sequences):
        name = f"state_sequences[{b}]"
        if not hasattr(utterance, "__len__"):
            raise ValueError(
                f"{name} is {utterance!r}; an utterance is a list of words or of labels; wrap a "
                "single utterance in a list"
            )
        if any(hasattr(word, "__len__") for word in utterance):
            words = [integers(word, f"{name}[{w}]", ndim=1) for w, word in enumerate(utterance)]
        else:
            words = [integers(utterance, name, ndim=1)] if len(utterance) else []
        utterances.append(words)
    return utterances
