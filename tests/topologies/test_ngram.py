"""ngram: the model against its formulas, the automaton against enumeration, sums against 1."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations, groupby, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import topologies
from jax_sprint.topologies._common import ragged
from jax_sprint.topologies._ngram import ngram_triple
from jax_sprint.topologies._ngram_model import estimate

BEGIN, END = "begin", "end"
TEXT = [[1, 2, 1], [2, 2, 3], [1], [3, 1, 2, 1], [2]]


class Reference:
    """The formulas of the docstring, by dictionaries and recursion over one history at a time."""

    def __init__(self, text, order, smoothing="witten-bell", discount=0.5, min_count=1):
        self.words = sorted({w for sequence in text for w in sequence})
        self.order, self.smoothing, self.discount = order, smoothing, discount
        self.counts = defaultdict(Counter)
        for sequence in text:
            marked = [BEGIN, *sequence, END]
            for i in range(1, len(marked)):
                for k in range(min(order - 1, i) + 1):
                    self.counts[tuple(marked[i - k : i])][marked[i]] += 1
        self.kept = {h for h, c in self.counts.items() if sum(c.values()) >= min_count} | {()}

    def history(self, prefix):
        known = [BEGIN, *prefix]
        longest = known[max(0, len(known) - self.order + 1) :]
        while tuple(longest) not in self.kept:
            longest = longest[1:]
        return tuple(longest)

    def conditional(self, word, history):
        counts = self.counts[history]
        total, distinct, c = sum(counts.values()), len(counts), counts[word]
        if self.smoothing == "none":
            return c / total
        shorter = self.conditional(word, history[1:]) if history else 1.0 / (len(self.words) + 1)
        if self.smoothing == "witten-bell":
            return (c + distinct * shorter) / (total + distinct)
        taken = self.discount if c else 0.0
        return (c - taken + self.discount * distinct * shorter) / total

    def sequence(self, words, allow_empty=True):
        total = 1.0
        for i, word in enumerate([*words, END]):
            total *= self.conditional(word, self.history(words[:i]))
        if not allow_empty:
            total /= 1.0 - self.conditional(END, self.history([]))
            total *= len(words) > 0
        return total


def collapse(string):
    return [label for label, _ in groupby(string) if label != 0]


def drop(string):
    return [label for label in string if label != 0]


@pytest.mark.parametrize("topology", ["ctc", "rna", "once"])
@pytest.mark.parametrize("smoothing", ["witten-bell", "absolute", "none"])
@pytest.mark.parametrize(("order", "min_count"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 3)])
def test_each_frame_string_has_one_path_with_the_models_probability(
    paths, topology, smoothing, order, min_count
):
    model = Reference(TEXT, order, smoothing, min_count=min_count)
    triple = ngram_triple(
        TEXT, order=order, topology=topology, smoothing=smoothing, min_count=min_count
    )
    rule = {"ctc": collapse, "rna": drop, "once": list}[topology]
    alphabet = [1, 2, 3] if topology == "once" else [0, 1, 2, 3]
    for frames in (1, 2, 4):
        found = paths(triple, frames)[0]
        expected = {
            string: model.sequence(rule(string), allow_empty=topology != "once")
            for string in product(alphabet, repeat=frames)
        }
        assert set(found) == {s for s, p in expected.items() if p > 0}
        for string, costs in found.items():
            assert len(costs) == 1
            assert np.exp(-costs[0]) == pytest.approx(expected[string], rel=1e-5)


TEXTS = st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=1, max_size=6).filter(any)


@settings(max_examples=40, deadline=None)
@given(
    text=TEXTS,
    order=st.integers(1, 4),
    smoothing=st.sampled_from(["witten-bell", "absolute", "none"]),
    min_count=st.integers(1, 3),
    max_histories=st.sampled_from([None, 1, 4]),
    prune=st.sampled_from([0.0, 0.1, 1.0]),
    allow_empty=st.booleans(),
)
def test_the_model_sums_to_one(
    text, order, smoothing, min_count, max_histories, prune, allow_empty
):
    sequences = ragged(text)
    words = np.unique(sequences.flat)
    model = estimate(
        sequences,
        order=order,
        vocabulary=words,
        smoothing=smoothing,
        discount=0.7,
        min_count=min_count,
        max_histories=max_histories,
        prune=prune,
        allow_empty=allow_empty,
    )
    n = model.final.size
    ending = np.exp(-model.final)
    step = np.zeros((n, n))
    np.add.at(step, (model.source, model.target), np.exp(-model.cost))
    np.testing.assert_allclose(step.sum(1) + ending, 1.0, atol=1e-12)
    # All label sequences of every length together: the sum over k of step^k, in closed form.
    np.testing.assert_allclose(np.linalg.solve(np.eye(n) - step, ending), 1.0, atol=1e-9)
    if max_histories is not None:
        assert n <= max_histories + 1
    # Deterministic: one arc per state and label; so each sequence is counted once.
    assert np.unique(np.stack([model.source, model.label]), axis=1).shape[1] == model.label.size
    assert not allow_empty or smoothing == "none" or prune or np.isfinite(model.final[0])


@pytest.mark.parametrize("smoothing", ["witten-bell", "absolute", "none"])
@pytest.mark.parametrize("topology", ["once", "linear", "ctc"])
def test_sum_over_all_lengths_by_enumeration(score, smoothing, topology):
    # All strings of T frames together, T = 1, 2, ...: with one frame per label they are all label
    # sequences.  Otherwise a label sequence recurs once per way of spelling it.
    triple = ngram_triple(TEXT, order=2, topology=topology, smoothing=smoothing)
    model = Reference(TEXT, 2, smoothing)
    totals = [np.exp(-score(triple, np.zeros((frames, 4)))) for frames in range(1, 80)]
    if topology == "once":
        assert sum(totals) == pytest.approx(1.0, abs=1e-5)
        return
    for frames in (1, 2, 3, 4):
        if topology == "ctc":
            expected = sum(
                model.sequence(collapse(s)) for s in product([0, 1, 2, 3], repeat=frames)
            )
        else:
            expected = sum(
                model.sequence(s, allow_empty=False)
                * len(list(combinations(range(1, frames), n - 1)))
                for n in range(1, frames + 1)
                for s in product([1, 2, 3], repeat=n)
            )
        assert totals[frames - 1] == pytest.approx(expected, rel=1e-5)


def test_hmm_with_normalised_penalties_sums_to_one(score):
    # Geometric durations: loop + forward = 1 within a label, loop + exit = 1 at its end, so frame
    # strings of all lengths have probability 1 together; silence is taken or not with one half.
    half = -np.log(0.5)
    triple = ngram_triple(
        TEXT,
        order=2,
        topology="hmm",
        states={1: [4, 5], 2: [6], 3: [7, 8, 9]},
        tdps={"loop": -np.log(0.25), "forward": -np.log(0.75), "exit": -np.log(0.75)},
    )
    totals = [np.exp(-score(triple, np.zeros((frames, 10)))) for frames in range(1, 150)]
    assert sum(totals) == pytest.approx(1.0, abs=1e-5)

    quiet = ngram_triple(
        TEXT,
        order=2,
        topology="hmm",
        silence=0,
        tdps={"loop": half, "exit": 2 * half, "silence_loop": half, "silence_exit": half},
    )
    totals = [np.exp(-score(quiet, np.zeros((frames, 10)))) for frames in range(1, 200)]
    # After a label: silence or not, a half each, so that the way on and the end keep their
    # probability. At the start: silence or not, and no penalty chooses, so each counts in full;
    # but no label at all is only silence.
    empty = Reference(TEXT, 2).sequence([])
    assert sum(totals) == pytest.approx(2.0 - empty, abs=1e-5)


def test_hmm_paths_spell_the_states(paths):
    triple = ngram_triple(
        [[1], [2]],
        order=2,
        topology="hmm",
        states={1: [4, 5, 6], 2: [7]},
        smoothing="none",
        silence=0,
        tdps={"loop": 1.0, "forward": 2.0, "skip": 4.0, "exit": 8.0}
        | {"silence_loop": 16.0, "silence_exit": 32.0},
    )
    choice = float(np.float32(np.log(2)))

    def rounded(found):
        return {s: [round(c - choice, 4) for c in costs] for s, costs in found.items()}

    assert rounded(paths(triple, 1)[0]) == {(7,): [8.0]}
    assert rounded(paths(triple, 2)[0]) == {
        (7, 7): [9.0],
        (0, 7): [40.0],
        (7, 0): [40.0],
        (4, 6): [12.0],
    }
    three = rounded(paths(triple, 3)[0])
    assert three[(4, 5, 6)] == [12.0]
    assert three[(4, 4, 6)] == [13.0]
    assert three[(0, 7, 0)] == [72.0]
    assert three[(0, 4, 6)] == [44.0]
    assert (7, 4, 6) not in three


def test_pruning_keeps_the_text_and_drops_arcs(paths):
    whole = ngram_triple(TEXT, order=3, topology="once")
    slim = ngram_triple(TEXT, order=3, topology="once", prune=0.2)
    seen = ngram_triple(TEXT, order=3, topology="once", prune=1.0)
    assert seen.weights.size <= slim.weights.size < whole.weights.size
    for triple in (slim, seen):
        for sequence in TEXT:
            assert tuple(sequence) in paths(triple, len(sequence))[0]


def test_vocabulary_beyond_the_text(paths):
    triple = ngram_triple([[1, 2]], order=2, vocabulary=[1, 2, 5], topology="once")
    assert (5, 1) in paths(triple, 2)[0]
    seen = ngram_triple([[1, 2]], order=2, vocabulary=[1, 2, 5], topology="once", smoothing="none")
    assert set(paths(seen, 2)[0]) == {(1, 2)}


def test_empty_sequences_count_where_blanks_can_stand_for_them(paths):
    with_empty = ngram_triple([[], [1], [1]], order=2, smoothing="none")
    found = paths(with_empty, 2)[0]
    assert np.exp(-found[(0, 0)][0]) == pytest.approx(1 / 3, rel=1e-6)
    without = ngram_triple([[1], [1]], order=2, smoothing="none")
    assert (0, 0) not in paths(without, 2)[0]


def test_every_state_is_on_a_path():
    edges, weights, ends = ngram_triple(TEXT, order=3, min_count=2)
    n_states = int(ends[1, 0]) + 1
    assert ends[0, 0] == 0
    assert ends.shape == (2, 1)
    assert not edges[3].any()
    assert np.isfinite(weights).all()
    forward, backward = {0}, {n_states - 1}
    for _ in range(n_states):
        forward |= {int(t) for s, t in edges[:2].T if int(s) in forward}
        backward |= {int(s) for s, t in edges[:2].T if int(t) in backward}
    assert forward == backward == set(range(n_states))
    assert n_states - 1 not in edges[0]
    assert 0 not in edges[1]


def test_a_large_text_is_counted_by_the_formulas():
    # Long enough that contexts, suffixes and positions all take part; spot-checked.
    rng = np.random.default_rng(0)
    text = [rng.integers(1, 12, size=n).tolist() for n in rng.integers(1, 30, size=150)]
    triple = ngram_triple(text, order=3, topology="once", min_count=4)
    model = Reference(text, 3, min_count=4)
    leaving = {
        (int(s), int(label), int(t)): float(w)
        for (s, t, label, _), w in zip(triple.edges.T, triple.weights, strict=True)
    }
    follow = defaultdict(list)
    for (s, label, t), w in leaving.items():
        follow[s, label].append((t, w))
    end = int(triple.start_end_states[1, 0])
    for sequence in text[:10]:
        total, at = 0.0, {0: 0.0}
        for label in sequence:
            step = {}
            for state, so_far in at.items():
                for target, weight in follow[state, label]:
                    assert target not in step
                    step[target] = so_far + weight
            at = step
        total = at[end]
        expected = -np.log(model.sequence(sequence, allow_empty=False))
        assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"order": 0}, ValueError, "order is 0"),
        ({"order": 1.5}, ValueError, "order is 1.5"),
        ({"topology": "CTC"}, ValueError, "topology is 'CTC'; it must be one of ctc"),
        ({"smoothing": "kneser-ney"}, ValueError, "smoothing is 'kneser-ney'.*witten-bell"),
        ({"discount": 1.0}, ValueError, "discount is 1.0"),
        ({"min_count": 0}, ValueError, "min_count is 0"),
        ({"max_histories": 0}, ValueError, "max_histories is 0"),
        ({"prune": 1.5}, ValueError, "prune is 1.5"),
        ({"silence": 0}, ValueError, 'silence needs topology="hmm"'),
        ({"blank": 2}, ValueError, r"vocabulary\[0\]\[1\] is 2; .*blank"),
        ({"num_labels": 3}, ValueError, r"is 3; labels must lie between 0 and 2"),
        ({"vocabulary": [1, 2]}, ValueError, "label 3, which is not in the vocabulary"),
        ({"vocabulary": []}, ValueError, "vocabulary is empty"),
        ({"topology": "hmm", "tdps": {"lop": 1}}, ValueError, "key 'lop'; known are loop"),
        ({"topology": "hmm", "tdps": {"loop": float("nan")}}, ValueError, r"tdps\['loop'\] is nan"),
        ({"topology": "hmm", "states": {1: [0], 2: [1]}}, ValueError, "no entry for the label 3"),
        (
            {"topology": "hmm", "states": {1: [0], 2: [], 3: [1]}},
            ValueError,
            r"states\[2\] is empty",
        ),
        ({"label_sequences": []}, ValueError, "label_sequences is empty"),
        ({"label_sequences": [[]]}, ValueError, "no label at all"),
        ({"label_sequences": [[1], []], "topology": "once"}, ValueError, r"\[1\] is empty"),
        ({"label_sequences": [["a"]]}, TypeError, "must hold integers"),
    ],
)
def test_bad_input_is_refused_by_name(changes, error, message):
    arguments = {"label_sequences": TEXT, "order": 2} | changes
    text = arguments.pop("label_sequences")
    with pytest.raises(error, match=message):
        topologies.ngram(text, **arguments)


def test_a_smoothed_model_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("jax_sprint.topologies._ngram_model._MAX_TABLE", 10)
    with pytest.raises(ValueError, match="raise `min_count`"):
        topologies.ngram(TEXT, order=3)
