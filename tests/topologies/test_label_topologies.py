"""ctc, rna, linear: their paths against the definition, by enumeration."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, groupby, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import topologies
from jax_sprint.topologies._ctc import ctc_triple
from jax_sprint.topologies._linear import linear_triple
from jax_sprint.topologies._rna import rna_triple

LABELS = st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=3)


def collapse(string, blank):
    return [label for label, _ in groupby(string) if label != blank]


def drop(string, blank):
    return [label for label in string if label != blank]


@pytest.mark.parametrize("rule", [collapse, drop])
@settings(max_examples=40, deadline=None)
@given(labels=LABELS, frames=st.integers(0, 5), blank=st.sampled_from([0, 4]))
def test_blank_topologies_hold_each_string_of_the_definition_once(
    paths, rule, labels, frames, blank
):
    build = ctc_triple if rule is collapse else rna_triple
    alphabet = [1, 2, 3, blank]
    for sequence, found in zip(labels, paths(build(labels, blank=blank), frames), strict=True):
        expected = {s for s in product(alphabet, repeat=frames) if rule(s, blank) == sequence}
        assert set(found) == expected
        assert all(costs == [0.0] for costs in found.values())


@settings(max_examples=40, deadline=None)
@given(labels=LABELS, frames=st.integers(0, 6))
def test_linear_has_one_path_per_segmentation(paths, labels, frames):
    for sequence, found in zip(labels, paths(linear_triple(labels), frames), strict=True):
        expected = Counter()
        n = len(sequence)
        for cuts in combinations(range(1, frames), n - 1) if n else ():
            bounds = (0, *cuts, frames)
            if frames >= n:
                string = [
                    label
                    for i, label in enumerate(sequence)
                    for _ in range(bounds[i], bounds[i + 1])
                ]
                expected[tuple(string)] += 1
        if not n and not frames:
            expected[()] = 1
        assert {s: len(c) for s, c in found.items()} == dict(expected)


@settings(max_examples=30, deadline=None)
@given(labels=LABELS, frames=st.integers(0, 5))
def test_linear_without_loops_is_the_sequence_itself(paths, labels, frames):
    for sequence, found in zip(
        labels, paths(linear_triple(labels, loops=False), frames), strict=True
    ):
        assert found == ({tuple(sequence): [0.0]} if len(sequence) == frames else {})


@pytest.mark.parametrize("build", [ctc_triple, rna_triple, linear_triple])
def test_padded_array_and_list_give_the_same(build):
    table = np.asarray([[1, 2, 2], [3, -7, 99], [0, 0, 0]], np.int16)
    as_list = build([[1, 2, 2], [3], []])
    for mine, other in zip(build(table, np.asarray([3, 1, 0])), as_list, strict=True):
        np.testing.assert_array_equal(mine, other)
    for mine, other in zip(build(table[:1]), build([[1, 2, 2]]), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("build", [ctc_triple, rna_triple, linear_triple])
@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.lists(st.integers(1, 5), max_size=9), max_size=5))
def test_layout_is_that_of_rasr(build, labels):
    edges, weights, ends = build(labels)
    source, target, _, sequence = edges.astype(np.int64)
    assert edges.shape == (4, weights.size)
    assert ends.shape == (2, len(labels))
    assert np.all(source <= target)
    assert np.all(np.diff(sequence) >= 0)
    states = np.diff(np.append(ends[0].astype(np.int64), 0))
    assert np.all(states[:-1] == (ends[1] - ends[0].astype(np.int64) + 1)[:-1])
    assert np.all(source >= ends[0].astype(np.int64)[sequence])
    assert np.all(target <= ends[1].astype(np.int64)[sequence])
    for b in range(len(labels)):
        here = sequence == b
        # Only the arcs doubled into an end state of its own come after the sorted ones.
        last = target == ends[1, b].astype(np.int64)
        inner = here & ~last if build is ctc_triple else here
        key = list(zip((target - source)[inner], target[inner], source[inner], strict=True))
        assert key == sorted(key)


@pytest.mark.parametrize(
    ("name", "build"), [("b_ctc_blank", ctc_triple), ("b_rna_blank", rna_triple)]
)
def test_scores_are_those_of_rasrs_automaton(one_golden, score, name, build):
    # "see bob see"; RASR's states differ in number (it has a start state of its own).
    golden = one_golden(name, "tiny/rec1/seg3")
    mine = build([[13, 9, 4, 1, 4, 13, 9]])
    rng = np.random.default_rng(3)
    for frames in (6, 7, 8, 20):
        log_probs = rng.normal(size=(frames, 15))
        assert score(mine, log_probs) == pytest.approx(score(golden, log_probs), rel=1e-12)


def test_rna_is_rasrs_automaton_arc_by_arc(one_golden):
    golden = one_golden("b_rna_blank", "tiny/rec1/seg3")
    for mine, theirs in zip(rna_triple([[13, 9, 4, 1, 4, 13, 9]]), golden, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: topologies.ctc([[1, 0, 2]]), ValueError, r"labels\[0\]\[1\] is 0; .*blank"),
        (lambda: topologies.rna([[1], [2, 3]], blank=3), ValueError, r"labels\[1\]\[1\] is 3"),
        (lambda: topologies.ctc([[1, -1]]), ValueError, r"labels\[0\]\[1\] is -1; .*between 0"),
        (
            lambda: topologies.linear([[1, 5]], num_labels=5),
            ValueError,
            r"labels\[0\]\[1\] is 5; .*between 0 and 4",
        ),
        (lambda: topologies.ctc([[1]], blank=4, num_labels=4), ValueError, "blank is 4"),
        (lambda: topologies.ctc([[1]], num_labels=0), ValueError, "num_labels is 0"),
        (lambda: topologies.ctc([[1.0]]), TypeError, r"labels\[0\] must hold integers.*float"),
        (lambda: topologies.ctc(np.ones((2, 3), bool)), TypeError, "integers, got dtype bool"),
        (lambda: topologies.ctc([1, 2]), ValueError, r"labels\[0\] must be one-dim"),
        (lambda: topologies.ctc(np.ones(3, int)), ValueError, r"\[B, N\].*\(3,\)"),
        (lambda: topologies.ctc("abc"), TypeError, "labels must be an integer array"),
        (lambda: topologies.ctc(7), TypeError, "labels must be an integer array"),
        (
            lambda: topologies.rna(np.ones((2, 3), int), [1, 4]),
            ValueError,
            r"label_lengths\[1\] is 4.*between 0 and 3",
        ),
        (lambda: topologies.rna(np.ones((2, 3), int), [-1, 1]), ValueError, "is -1"),
        (
            lambda: topologies.linear(np.ones((2, 3), int), [1]),
            ValueError,
            "1 entries but labels has 2",
        ),
        (lambda: topologies.linear([[1], [2, 3]], [1, 2]), ValueError, "cannot be read"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_traced_labels_are_refused():
    import jax

    with pytest.raises(TypeError, match="build them outside jit"):
        jax.jit(lambda x: ctc_triple(x).weights)(np.ones((1, 2), np.int32))
