"""How the labels of an n-gram model are spelled out: their HMM states, blanks, silence, costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_sprint.topologies._common import Ragged, check_labels, cost, integers

__all__ = ["TDPS", "Spelling", "read_vocabulary", "spell"]

TDPS = ("loop", "forward", "skip", "exit", "silence_loop", "silence_exit")


def read_vocabulary(text: Ragged, vocabulary: Any, name: str) -> np.ndarray:
    """The sorted vocabulary `[V] int64`: the given one, or the labels of the text."""
    check_labels(text, name=name)
    if not text.batch:
        raise ValueError(f"{name} is empty; an n-gram model needs at least one sequence")
    if vocabulary is None:
        words = np.unique(text.flat)
        if not words.size:
            raise ValueError(f"{name} has no label at all; give the `vocabulary`")
        return words
    words = np.unique(integers(vocabulary, "vocabulary", ndim=1))
    if not words.size:
        raise ValueError("vocabulary is empty; give the labels that the model should know")
    unknown = np.setdiff1d(text.flat, words)
    if unknown.size:
        raise ValueError(
            f"{name} has the label {unknown[0]}, which is not in the vocabulary; add it there, "
            "or map it to another label first"
        )
    return words


@dataclass(frozen=True)
class Spelling:
    """How labels become chains of emitting nodes.

    Attributes:
        words: `[V] int64`, the sorted vocabulary.
        emissions: the labels of all chains, one chain after the other, in the order of `words`.
        sizes: `[V] int64`, the length of each chain.
        filler: label of the node that may stand between labels (blank, silence); None: none.
        separate: whether equal labels need the filler between them.
        costs: `loop`, `forward`, `skip`, `exit` of labels, `silence_loop`, `silence_exit` of the
            filler.
    """

    words: np.ndarray
    emissions: np.ndarray
    sizes: np.ndarray
    filler: int | None
    separate: bool
    costs: Mapping[str, float]


def spell(
    topology: str,
    words: np.ndarray,
    blank: int,
    states: Mapping[int, Any] | None,
    silence: int | None,
    tdps: Mapping[str, float] | None,
    num_labels: int | None,
) -> Spelling:
    """Reads and checks the arguments of `ngram` that have the same names; see there."""
    unknown = sorted(set(tdps or {}) - set(TDPS))
    if unknown:
        raise ValueError(f"tdps has the key {unknown[0]!r}; known are {', '.join(TDPS)}")
    costs = {name: np.inf if name == "skip" else 0.0 for name in TDPS}
    costs |= {name: cost(value, f"tdps[{name!r}]") for name, value in (tdps or {}).items()}
    one_each = np.ones(words.size, np.int64)
    as_row = Ragged(words, np.asarray([words.size]))
    if topology == "hmm":
        if silence is not None:
            quiet = Ragged(np.asarray([silence], np.int64), np.ones(1, np.int64))
            check_labels(quiet, name="silence", num_labels=num_labels)
        if states is None:
            check_labels(as_row, name="vocabulary", num_labels=num_labels)
            return Spelling(words, words, one_each, silence, False, costs)
        chains = []
        for word in words.tolist():
            if word not in states:
                raise ValueError(f"states has no entry for the label {word}; give its HMM states")
            chains.append(integers(states[word], f"states[{word}]", ndim=1))
            if not chains[-1].size:
                raise ValueError(f"states[{word}] is empty; a label needs at least one HMM state")
            chain = Ragged(chains[-1], np.asarray([chains[-1].size]))
            check_labels(chain, name=f"states[{word}]", num_labels=num_labels)
        sizes = np.asarray([chain.size for chain in chains], np.int64)
        return Spelling(words, np.concatenate(chains), sizes, silence, False, costs)
    blanks = topology in ("ctc", "rna")
    check_labels(as_row, name="vocabulary", num_labels=num_labels, blank=blank if blanks else None)
    if topology in ("rna", "once"):
        costs["loop"] = np.inf
    return Spelling(words, words, one_each, blank if blanks else None, topology == "ctc", costs)
