"""hmm: its paths against a recursion over words, states and durations; arc classes; RASR."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import topologies
from jax_sprint.topologies import ArcClass
from jax_sprint.topologies._hmm import hmm_triple

COSTS = dict(
    zip(
        (
            "loop",
            "forward",
            "skip",
            "exit",
            "silence_loop",
            "silence_forward",
            "silence_skip",
            "silence_exit",
        ),
        (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
        strict=True,
    )
)


def unit_strings(states, frames, tdps, at=0):
    """Every (string, cost) of exactly `frames` frames through one word from state `at`."""
    if frames == 1 and at == len(states) - 1:
        yield (states[at],), tdps[3]
    if frames > 1:
        for step in range(3):
            if at + step < len(states):
                for string, total in unit_strings(states, frames - 1, tdps, at + step):
                    yield (states[at], *string), tdps[step] + total


def utterance_strings(words, silence, frames, costs):
    """Every (string, cost) of an utterance, by choosing silences, durations and paths in turn."""
    speech, quiet = list(costs.values())[:4], list(costs.values())[4:]
    gaps = [False] if silence is None else [False, True]
    for choice in product(gaps, repeat=len(words) + 1):
        units = [(silence, quiet)] if choice[0] else []
        for word, after in zip(words, choice[1:], strict=True):
            units += [(word, speech)] + ([(silence, quiet)] if after else [])

        def fill(rest, left):
            if not rest:
                if not left:
                    yield (), 0.0
                return
            for used in range(1, left + 1):
                for string, total in unit_strings(rest[0][0], used, rest[0][1]):
                    for more, added in fill(rest[1:], left - used):
                        yield string + more, total + added

        if units:
            yield from fill(units, frames)


def grouped(pairs):
    strings = defaultdict(list)
    for string, total in pairs:
        if total < np.inf:
            strings[string].append(total)
    return {string: sorted(totals) for string, totals in strings.items()}


WORDS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    utterances=st.lists(WORDS, min_size=1, max_size=2),
    silence=st.sampled_from([None, [0], [0, 7], [7, 8, 9]]),
    frames=st.integers(0, 5),
    forbidden=st.sets(st.sampled_from(list(COSTS)), max_size=3),
)
def test_paths_are_those_of_the_definition(paths, utterances, silence, frames, forbidden):
    # Powers of two: a sum tells which penalties were paid, and how often.
    costs = COSTS | dict.fromkeys(forbidden, np.inf)
    triple, _ = hmm_triple(utterances, silence=silence, **costs)
    for words, found in zip(utterances, paths(triple, frames), strict=True):
        assert found == grouped(utterance_strings(words, silence, frames, costs))


@settings(max_examples=30, deadline=None)
@given(utterances=st.lists(WORDS, min_size=1, max_size=3), silence=st.sampled_from([None, 0]))
def test_classes_give_the_weights_back(utterances, silence):
    triple, classes = hmm_triple(utterances, silence=silence, **COSTS)
    np.testing.assert_array_equal(np.asarray(list(COSTS.values()))[classes], triple.weights)
    # A silence has the label 0 alone here, and an arc belongs to the state that it enters.
    np.testing.assert_array_equal(classes >= ArcClass.SILENCE_LOOP, triple.edges[2] == 0)


@settings(max_examples=30, deadline=None)
@given(utterances=st.lists(WORDS, min_size=1, max_size=3), silence=st.sampled_from([None, 0]))
def test_states_are_numbered_in_order(utterances, silence):
    (edges, _, ends), _ = hmm_triple(utterances, silence=silence, **COSTS)
    source, target, _, sequence = edges.astype(np.int64)
    first, last = ends.astype(np.int64)
    assert np.all(source <= target)
    assert np.all(source >= first[sequence])
    assert np.all(target <= last[sequence])
    np.testing.assert_array_equal(first[1:], last[:-1] + 1)
    assert not np.isin(target, first).any()
    if silence is not None:
        assert not np.isin(source, last).any()


def test_forms_of_an_utterance():
    as_words, _ = hmm_triple([[[1, 2, 3]], [[4]]])
    for other in (
        hmm_triple([[1, 2, 3], [4]])[0],
        hmm_triple(np.asarray([[1, 2, 3], [4, -1, -1]]), [3, 1])[0],
        hmm_triple([np.asarray([1, 2, 3]), [np.asarray([4])]])[0],
    ):
        for mine, theirs in zip(as_words, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_utterance_without_words_is_silence_alone(paths):
    triple, _ = hmm_triple([[], [[1]]], silence=9, silence_loop=0.5, silence_exit=2.0)
    assert paths(triple, 0)[0] == {}
    assert paths(triple, 1)[0] == {(9,): [2.0]}
    assert paths(triple, 3)[0] == {(9, 9, 9): [3.0]}
    assert paths(triple, 1)[1] == {(1,): [0.0]}


def test_without_silence_it_is_rasrs_automaton_arc_by_arc(one_golden):
    golden = one_golden("e_nosil", "tiny/rec1/seg3")
    see, bob = [36, 37, 38, 24, 25, 26], [9, 10, 11, 0, 1, 2, 9, 10, 11]
    for mine, theirs in zip(hmm_triple([[see, bob, see]], loop=3.0)[0], golden, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("name", "words", "silence", "costs", "forwards"),
    [
        (
            "b_hmm1_sil",
            [[13, 9], [4, 1, 4], [13, 9]],
            0,
            {},
            (0.0, 0.0),
        ),
        (
            "e_nosil",
            [
                [36, 37, 38, 24, 25, 26],
                [9, 10, 11, 0, 1, 2, 9, 10, 11],
                [36, 37, 38, 24, 25, 26],
            ],
            None,
            {"loop": 3.0},
            (0.0, 0.0),
        ),
        (
            "d_tdp_noskip",
            [
                [37, 38, 39, 25, 26, 27],
                [10, 11, 12, 1, 2, 3, 10, 11, 12],
                [37, 38, 39, 25, 26, 27],
            ],
            0,
            {
                "loop": 2.5,
                "forward": 0.25,
                "exit": 0.25 + 1.5,
                "silence_loop": 0.5,
                "silence_forward": 3.5,
                "silence_exit": 3.5 + 4.0,
            },
            (0.25, 3.5),
        ),
    ],
)
def test_scores_are_those_of_rasrs_automaton(
    one_golden, score, name, words, silence, costs, forwards
):
    golden = one_golden(name, "tiny/rec1/seg3")
    triple, classes = hmm_triple([words], silence=silence, **costs)
    # At the end of an utterance RASR charges the exit alone, not the forward that precedes it.
    ending = triple.edges[1] == triple.start_end_states[1, 0]
    discount = np.where(ending, np.asarray(forwards)[classes // 4], 0.0)
    mine = triple._replace(weights=triple.weights - discount)
    rng = np.random.default_rng(5)
    for frames in (20, 21, 22, 40):
        log_probs = rng.normal(size=(frames, 45))
        assert score(mine, log_probs) == pytest.approx(score(golden, log_probs), rel=1e-7)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: topologies.hmm([[[1]], []]),
            ValueError,
            r"state_sequences\[1\] is empty.*`silence`",
        ),
        (
            lambda: topologies.hmm([[[1], []]]),
            ValueError,
            r"state_sequences\[0\]\[1\] is a word without states",
        ),
        (lambda: topologies.hmm([[1]], loop=float("nan")), ValueError, "loop is nan"),
        (lambda: topologies.hmm([[1]], silence_exit=-np.inf), ValueError, "silence_exit is -inf"),
        (lambda: topologies.hmm([[1]], silence=[]), ValueError, "silence is an empty list"),
        (
            lambda: topologies.hmm([[1]], silence=3, num_labels=3),
            ValueError,
            r"silence\[0\]\[0\] is 3",
        ),
        (
            lambda: topologies.hmm([[[1], [2, 5]]], num_labels=5),
            ValueError,
            r"state_sequences\[0\]\[2\] is 5",
        ),
        (lambda: topologies.hmm([[[1.5]]]), TypeError, r"\[0\]\[0\] must hold integers"),
        (lambda: topologies.hmm([[[1], 2]]), ValueError, r"\[0\]\[1\] must be one-dim"),
        (lambda: topologies.hmm([1, 2]), ValueError, r"state_sequences\[0\] is 1; .*wrap"),
        (lambda: topologies.hmm("ab"), TypeError, "state_sequences must be"),
        (
            lambda: topologies.hmm(np.ones((2, 2), int), [0, 2]),
            ValueError,
            r"state_sequences\[0\] is empty",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
