"""The embedded Sprint's automata against a slow enumeration of everything that may be heard.

The enumerator knows no automata.  It writes down every choice of pronunciations and silences, every
phone in its context, every way to spread the states over the frames, and adds up penalties by the
rules.  It is used on random lexica, so features meet here that no exported automaton combines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from automaton_compare import Fsa, label_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.graph_builder import AllophoneStateGraphBuilder
from jax_sprint.embedded.lexicon import Lemma, Lexicon, Phoneme, Pronunciation

Sequences = dict[tuple[int, ...], float]


@dataclass(frozen=True)
class Setup:
    """What is varied. Penalties are (loop, forward, skip, exit)."""

    prons: tuple[tuple[tuple[tuple[int, ...], float], ...], ...]  # per word: (phonemes, score)
    words: tuple[int, ...]
    silence: bool
    states: int = 1
    repetitions: int = 1
    dense: bool = False
    across: bool = False
    fix: bool = False
    corrected: bool = False
    speech: tuple[float, ...] = (1.0, 0.5, math.inf, 0.25)
    quiet: tuple[float, ...] = (0.5, 2.0, math.inf, 3.0)
    entry: tuple[float, ...] = (math.inf, 0.75, math.inf, 0.0)
    topology: str = "hmm"
    normalize: bool = False

    @property
    def num_phonemes(self) -> int:
        return max(p for word in self.prons for phonemes, _ in word for p in phonemes)


def build(setup: Setup) -> Fsa:
    """What the embedded Sprint makes of it. Silence and blank come last in the lexicon."""
    speech = [Phoneme(i, f"P{i}") for i in range(1, setup.num_phonemes + 1)]
    lemmas = [
        Lemma(i, (f"w{i}",), tuple(Pronunciation(*pron) for pron in word))
        for i, word in enumerate(setup.prons)
    ]
    others = []
    for name, orths, wanted in (
        ("silence", ("[s]", ""), setup.silence),
        ("blank", ("[b]",), setup.topology != "hmm"),
    ):
        if wanted:
            number = len(speech) + len(others) + 1
            others.append(Phoneme(number, f"[{name}]", False))
            lemmas.append(Lemma(len(lemmas), orths, (Pronunciation((number,)),), special=name))
    values: dict[str, object] = {
        "*.state-tying.type": "no-tying-dense" if setup.dense else "monophone",
        "*.phonology.history-length": 1,
        "*.phonology.future-length": 1,
        "*.hmm.states-per-phone": setup.states,
        "*.hmm.state-repetitions": setup.repetitions,
        "*.hmm.across-word-model": setup.across,
        "*.fix-allophone-context-at-word-boundaries": setup.fix,
        "*.transducer-builder-filter-out-invalid-allophones": setup.across,
        "*.tdp.applicator-type": "corrected" if setup.corrected else "legacy",
        "*.topology": setup.topology,
        "*.allow-for-silence-repetitions": False,
        "*.normalize-lemma-sequence-scores": setup.normalize,
    }
    for name, penalties in (
        ("*", setup.speech),
        ("silence", setup.quiet),
        ("entry-m1", setup.entry),
        ("entry-m2", setup.entry),
    ):
        for kind, value in zip(("loop", "forward", "skip", "exit"), penalties, strict=True):
            values[f"*.tdp.{name}.{kind}"] = "infinity" if math.isinf(value) else value
    config = Configuration.from_dict(values)
    lexicon = Lexicon([*speech, *others], lemmas)
    built = AllophoneStateGraphBuilder(config, lexicon).build(
        " ".join(f"w{word}" for word in setup.words)
    )
    return Fsa(built.num_states, built.edges, built.weights)


# -- the enumerator -------------------------------------------------------------------------------

SILENCE = "silence"
DIRECT = "direct"  # no silence, and no context across the boundary
JOINED = "joined"  # no silence, context reaches across


def utterances(setup: Setup) -> Iterator[tuple[list, list[str], float]]:
    """(pronunciations, boundaries before, between and behind, cost) of every way to say it."""
    inner = []
    if setup.across:
        inner.append(JOINED)
    if not setup.fix:
        inner.append(DIRECT)
    outer = [DIRECT]
    if setup.silence:
        inner.append(SILENCE)
        outer.append(SILENCE)
    count = len(setup.words)
    for chosen in itertools.product(*(setup.prons[word] for word in setup.words)):
        score = sum(score for _, score in chosen)
        if setup.normalize and setup.silence:
            score += (count + 1) * math.log(2)
        for between in itertools.product(inner, repeat=max(count - 1, 0)):
            for before in outer:
                for behind in outer:
                    yield [p for p, _ in chosen], [before, *between, behind], score


def words_as_states(setup: Setup, prons, boundaries) -> Iterator[list[tuple[int, bool]]]:
    """Every word, silences too, as its states: (emission, whether it is silence)."""
    for i, phonemes in enumerate(prons):
        if boundaries[i] == SILENCE:
            yield [(emission(setup, setup.num_phonemes + 1, 0, 3, 0, 0), True)]
        states = []
        for k, phoneme in enumerate(phonemes):
            before = phonemes[k - 1] if k > 0 else 0
            after = phonemes[k + 1] if k + 1 < len(phonemes) else 0
            if k == 0 and boundaries[i] == JOINED:
                before = prons[i - 1][-1]
            if k == len(phonemes) - 1 and boundaries[i + 1] == JOINED:
                after = prons[i + 1][0]
            flags = (1 if k == 0 else 0) + (2 if k == len(phonemes) - 1 else 0)
            for state in range(setup.states):
                one = emission(setup, phoneme, state, flags, before, after)
                states += [(one, False)] * setup.repetitions
        yield states
    if boundaries[-1] == SILENCE:
        yield [(emission(setup, setup.num_phonemes + 1, 0, 3, 0, 0), True)]


def emission(setup: Setup, phoneme: int, state: int, flags: int, before: int, after: int) -> int:
    if not setup.dense:
        return (phoneme - 1) * setup.states + state
    # Phonemes of the inventory, and one number for "none".
    base = setup.num_phonemes + setup.silence + (setup.topology != "hmm") + 1
    return (((phoneme * setup.states + state) * 4 + flags) * base + before) * base + after


def spread(setup: Setup, words: list[list[tuple[int, bool]]], frames: int) -> Iterator:
    """(emissions, cost) of every way to spread the states of all words over the frames."""

    def penalties(silence: bool):
        return setup.quiet if silence else setup.speech

    def go(word: int, position: int, left: int, heard: tuple[int, ...], cost: float):
        if math.isinf(cost):
            return
        states = words[word]
        label, silence = states[position]
        loop, forward, skip, leave = penalties(silence)
        heard = (*heard, label)
        if left == 0:
            if word == len(words) - 1 and position == len(states) - 1:
                yield heard, cost + leave
            return
        yield from go(word, position, left - 1, heard, cost + loop)
        if position + 1 < len(states):
            yield from go(word, position + 1, left - 1, heard, cost + forward)
        if position + 2 < len(states):
            yield from go(word, position + 2, left - 1, heard, cost + skip)
        if position == len(states) - 1 and word + 1 < len(words):
            enter, jump = (forward, skip) if setup.corrected else (setup.entry[1], setup.entry[2])
            yield from go(word + 1, 0, left - 1, heard, cost + leave + enter)
            if len(words[word + 1]) > 1:
                yield from go(word + 1, 1, left - 1, heard, cost + leave + jump)

    enter = 0.0 if setup.corrected else setup.entry[1]
    jump = setup.speech[2] if setup.corrected else setup.entry[2]
    yield from go(0, 0, frames - 1, (), enter)
    if len(words[0]) > 1:
        yield from go(0, 1, frames - 1, (), jump)


def collect(items: Iterator[tuple[tuple[int, ...], float]]) -> Sequences:
    result: Sequences = {}
    for sequence, cost in items:
        before = result.get(sequence, math.inf)
        result[sequence] = -float(np.logaddexp(-before, -cost))
    return result


def enumerate_hmm(setup: Setup, frames: int) -> Sequences:
    def items():
        for prons, boundaries, score in utterances(setup):
            words = list(words_as_states(setup, prons, boundaries))
            for sequence, cost in spread(setup, words, frames):
                yield sequence, cost + score

    return collect(items())


def enumerate_blanks(setup: Setup, frames: int) -> Sequences:
    """Every string of labels and blanks, against every way to say it."""
    blank = setup.num_phonemes + setup.silence
    said = []
    for prons, boundaries, score in utterances(setup):
        words = words_as_states(setup, prons, boundaries)
        said.append(([label for word in words for label, _ in word], score))

    def read(string: tuple[int, ...]) -> list[int]:
        if setup.topology == "rna":
            return [label for label in string if label != blank]
        return [label for label, _ in itertools.groupby(string) if label != blank]

    def items():
        for string in itertools.product(range(blank + 1), repeat=frames):
            for labels, score in said:
                if read(string) == labels:
                    yield string, score

    return collect(items())


def shortest(setup: Setup) -> int:
    return min(
        sum(len(word) for word in words_as_states(setup, prons, boundaries))
        for prons, boundaries, _ in utterances(setup)
    )


def assert_same(fsa: Fsa, expected: Sequences, frames: int) -> None:
    ours = label_sequences(fsa, frames)
    assert ours.keys() == expected.keys()
    for sequence, cost in expected.items():
        assert abs(ours[sequence] - cost) < 1e-4, (sequence, ours[sequence], cost)


# -- random setups --------------------------------------------------------------------------------

PENALTY = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.5])


@st.composite
def lexica(draw, *, variants: int, max_length: int = 3):
    words = []
    for _ in range(draw(st.integers(1, 2))):
        prons = draw(
            st.lists(
                st.lists(st.integers(1, 3), min_size=1, max_size=max_length).map(tuple),
                min_size=1,
                max_size=variants,
                unique=True,
            )
        )
        scores = draw(st.lists(PENALTY, min_size=len(prons), max_size=len(prons)))
        words.append(tuple(zip(prons, scores, strict=True)))
    spoken = draw(st.lists(st.integers(0, len(words) - 1), min_size=1, max_size=2))
    return tuple(words), tuple(spoken)


def penalty_set(skip: st.SearchStrategy[float], loop: st.SearchStrategy[float] = PENALTY):
    return st.tuples(loop, PENALTY, skip, PENALTY)


NEVER = st.just(math.inf)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_variants_scores_states_and_silence(data):
    prons, words = data.draw(lexica(variants=3))
    states, repetitions = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 1)]))
    setup = Setup(
        prons,
        words,
        silence=data.draw(st.booleans()),
        states=states,
        repetitions=repetitions,
        dense=data.draw(st.booleans()),
        corrected=data.draw(st.booleans()),
        speech=data.draw(penalty_set(NEVER)),
        quiet=data.draw(penalty_set(NEVER)),
        entry=data.draw(penalty_set(NEVER, NEVER)),
        normalize=data.draw(st.booleans()),
    )
    fsa = build(setup)
    for frames in range(shortest(setup), shortest(setup) + 3):
        assert_same(fsa, enumerate_hmm(setup, frames), frames)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_skips(data):
    # One pronunciation each: where several share their end, skips over what differs meet in one
    # arc, of which RASR keeps the best or the sum, as it happens.
    prons, words = data.draw(lexica(variants=1))
    skip = st.sampled_from([0.5, 2.0, math.inf])
    setup = Setup(
        prons,
        words,
        silence=data.draw(st.booleans()),
        states=data.draw(st.integers(1, 2)),
        dense=data.draw(st.booleans()),
        corrected=data.draw(st.booleans()),
        speech=data.draw(penalty_set(skip)),
        quiet=data.draw(penalty_set(skip)),
        entry=data.draw(penalty_set(skip, NEVER)),
    )
    fsa = build(setup)
    for frames in range(max(1, shortest(setup) // 2), shortest(setup) + 2):
        assert_same(fsa, enumerate_hmm(setup, frames), frames)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_context_across_words(data):
    prons, words = data.draw(lexica(variants=2))
    corrected = data.draw(st.booleans())
    speech = data.draw(penalty_set(NEVER))
    if corrected:
        # Where ways meet and part, the corrected applicator charges forward twice.
        speech = (speech[0], 0.0, *speech[2:])
    setup = Setup(
        prons,
        words,
        silence=data.draw(st.booleans()),
        states=data.draw(st.integers(1, 2)),
        dense=True,
        across=True,
        fix=data.draw(st.booleans()),
        corrected=corrected,
        speech=speech,
        quiet=data.draw(penalty_set(NEVER)),
        entry=data.draw(penalty_set(NEVER, NEVER)),
    )
    fsa = build(setup)
    for frames in range(shortest(setup), shortest(setup) + 3):
        assert_same(fsa, enumerate_hmm(setup, frames), frames)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_without_context_across_words_the_fix_makes_silence_mandatory(data):
    prons, words = data.draw(lexica(variants=2))
    setup = Setup(prons, words, silence=True, dense=True, fix=True)
    fsa = build(setup)
    for frames in range(shortest(setup), shortest(setup) + 2):
        assert_same(fsa, enumerate_hmm(setup, frames), frames)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_blanks(data):
    prons, words = data.draw(lexica(variants=2, max_length=2))
    free = (0.0, 0.0, math.inf, 0.0)
    setup = Setup(
        prons,
        words,
        silence=data.draw(st.booleans()),
        topology=data.draw(st.sampled_from(["ctc", "rna"])),
        speech=free,
        quiet=free,
        entry=(math.inf, 0.0, math.inf, 0.0),
        corrected=data.draw(st.booleans()),
    )
    fsa = build(setup)
    for frames in range(1, 6):
        assert_same(fsa, enumerate_blanks(setup, frames), frames)
