"""The loop of words against enumeration, and what error rates count."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sprint import viterbi
from jax_sprint.demo.decoding import WordLoop, collapse, greedy_labels
from jax_sprint.demo.evaluation import error_rate
from jax_sprint.demo.pronunciations import Pronunciation

LABELS = ("[blank]", "A", "B")
LEXICON = {
    "ab": (Pronunciation(("A", "B")), Pronunciation(("A", "A"), score=0.3)),
    "b": (Pronunciation(("B",), score=0.1),),
}
PENALTY = 0.2
FRAMES = 5


def _spellings(max_labels: int) -> dict[tuple[int, ...], dict[tuple[str, ...], float]]:
    """Cost of every string of words, by its string of labels."""
    index = {label: number for number, label in enumerate(LABELS)}
    choices = [
        (word, tuple(index[phone] for phone in variant.phones), variant.score + PENALTY)
        for word, variants in LEXICON.items()
        for variant in variants
    ]
    found: dict[tuple[int, ...], dict[tuple[str, ...], float]] = {}
    for number in range(max_labels + 1):
        for chosen in itertools.product(choices, repeat=number):
            labels = tuple(label for _, phones, _ in chosen for label in phones)
            words = tuple(word for word, _, _ in chosen)
            cost = sum(cost for _, _, cost in chosen)
            costs = found.setdefault(labels, {})
            costs[words] = min(cost, costs.get(words, np.inf))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_best_words_are_those_of_the_best_path(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (FRAMES, 1, len(LABELS))).astype(np.float32)
    log_posteriors = jax.nn.log_softmax(jnp.asarray(scores))
    table = np.asarray(log_posteriors)[:, 0]
    spellings = _spellings(FRAMES)
    ranked = sorted(
        (cost - sum(table[frame, label] for frame, label in enumerate(path)), words)
        for path in itertools.product(range(len(LABELS)), repeat=FRAMES)
        for words, cost in spellings.get(tuple(collapse(np.array(path))), {}).items()
    )
    loop = WordLoop(LEXICON, LABELS, word_penalty=PENALTY)
    lengths = jnp.full((1,), FRAMES, jnp.int32)
    expanded = jnp.take(log_posteriors, jnp.asarray(loop.source), axis=-1)
    _, score = viterbi(expanded, lengths, loop.automaton)
    assert -float(score[0]) == pytest.approx(float(ranked[0][0]), abs=1e-4)
    assert loop.decode(log_posteriors, lengths) == [list(ranked[0][1])]


def test_repeated_words_and_an_empty_sequence():
    best = np.array([[2, 2, 0, 2, 1, 2], [0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]]).T
    log_posteriors = np.log(np.where(np.eye(3)[best] > 0, 0.9, 0.05)).astype(np.float32)
    loop = WordLoop(LEXICON, LABELS)
    lengths = np.array([6, 6, 0], np.int32)
    assert loop.decode(jnp.asarray(log_posteriors), lengths) == [["b", "b", "ab"], [], []]
    assert greedy_labels(jnp.asarray(log_posteriors), lengths) == [[2, 2, 1, 2], [], []]


def test_collapse():
    assert collapse(np.array([0, 1, 1, 0, 1, 2, 2, 0])) == [1, 1, 2]
    assert collapse(np.array([], np.int64)) == []


def test_error_rate():
    assert error_rate([["a", "b"], ["c", "d"]], [["a", "b"], ["c", "d"]]) == 0.0
    assert error_rate([["a", "b"], ["c", "d"]], [["a"], ["c", "x", "d"]]) == 50.0
    assert error_rate([[1, 2, 3, 4]], [[]]) == 100.0
