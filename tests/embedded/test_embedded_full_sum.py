"""The sum over all paths and its derivative: against enumeration, and where it is hard."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.criterion import Criterion, cross_entropy
from jax_sprint.embedded.errors import ConfigurationError
from jax_sprint.embedded.full_sum import NodeGraph, full_sum


def automaton(num_states, arcs):
    """From a list of (from, to, emission, weight)."""
    edges = np.array([arc[:3] for arc in arcs], np.uint32).reshape(-1, 3).T
    weights = np.array([arc[3] for arc in arcs], np.float32)
    return SimpleNamespace(num_states=num_states, edges=edges, weights=weights)


def linear(labels, loop=0.0, forward=0.0):
    """One state a label, each with a loop."""
    arcs = []
    for i, label in enumerate(labels):
        arcs += [(i, i + 1, label, forward), (i + 1, i + 1, label, loop)]
    return automaton(len(labels) + 1, arcs)


def enumerate_paths(fsa, scores):
    """Every path's score and labels, by walking."""
    paths = [(0, 0.0, ())]
    for frame in scores:
        paths = [
            (int(to), score - float(weight) + float(frame[emission]), (*labels, int(emission)))
            for state, score, labels in paths
            for (origin, to, emission), weight in zip(fsa.edges.T, fsa.weights, strict=True)
            if origin == state and weight < np.inf
        ]
    return [(score, labels) for state, score, labels in paths if state == fsa.num_states - 1]


def reference(fsa, scores):
    paths = [p for p in enumerate_paths(fsa, scores) if p[0] > -math.inf]
    occupancy = np.zeros(scores.shape)
    if not paths:
        return math.inf, occupancy
    peak = max(score for score, _ in paths)
    total = peak + math.log(math.fsum(math.exp(score - peak) for score, _ in paths))
    for score, labels in paths:
        for frame, label in enumerate(labels):
            occupancy[frame, label] += math.exp(score - total)
    return -total, occupancy


def evaluate(criterion, scores, fsa):
    """Loss and gradient of an automaton."""
    graph = NodeGraph.from_automaton(fsa.num_states, fsa.edges, fsa.weights, criterion.tdp_scale)
    return criterion.full_sum(scores, graph)


def random_scores(seed, frames, labels, spread=1.0):
    scores = np.random.default_rng(seed).normal(size=(frames, labels)) * spread
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


@st.composite
def problems(draw):
    states = draw(st.integers(2, 5))
    arc = st.tuples(
        st.integers(0, states - 1),
        st.integers(0, states - 1),
        st.integers(0, 3),
        st.one_of(st.floats(-5, 5, width=32), st.just(np.inf), st.just(300.0)),
    )
    arcs = draw(st.lists(arc, min_size=1, max_size=9))
    score = st.one_of(st.floats(-1000, 3), st.just(-np.inf))
    frames = draw(st.integers(1, 4))
    scores = draw(st.lists(st.lists(score, min_size=4, max_size=4), min_size=1, max_size=frames))
    return automaton(states, arcs), np.array(scores)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_agrees_with_enumeration(problem):
    fsa, scores = problem
    loss, gradient = evaluate(Criterion(), scores, fsa)
    expected, occupancy = reference(fsa, scores)
    if math.isinf(expected):
        assert loss == math.inf
        assert not gradient.any()
    else:
        assert loss == pytest.approx(expected, rel=1e-12, abs=1e-11)
        np.testing.assert_allclose(-gradient, occupancy, atol=1e-6)


@pytest.mark.parametrize("name", ["a_mono3_legacy", "b_ctc_blank", "b_rna_blank", "c_tri_dense"])
def test_derivative_of_rasr_automata_by_finite_differences(golden_dir, name):
    data = np.load(golden_dir / f"{name}.npz")
    rng = np.random.default_rng(3)
    criterion = Criterion(am_scale=0.7, tdp_scale=0.3)
    for b in range(2):
        mask = data["edges"][3] == b
        first, last = data["start_end_states"][:, b]
        edges = data["edges"][:3, mask].astype(np.int64)
        edges[:2] -= int(first)
        fsa = SimpleNamespace(
            num_states=int(last - first) + 1, edges=edges, weights=data["weights"][mask]
        )
        scores = random_scores(b, 60, int(edges[2].max()) + 2)
        loss, gradient = evaluate(criterion, scores, fsa)
        assert math.isfinite(loss)
        np.testing.assert_allclose(gradient.sum(axis=1), -0.7, atol=1e-5)
        for _ in range(20):
            direction = rng.normal(size=scores.shape)
            step = 1e-4 * direction
            upper, _ = evaluate(criterion, scores + step, fsa)
            lower, _ = evaluate(criterion, scores - step, fsa)
            slope = (gradient * direction).sum()
            assert (upper - lower) / 2e-4 == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("peak", [1.0, 100.0, 1000.0])
def test_nothing_underflows(peak):
    """Every frame makes the only labels of the automaton e^-peak less likely than another."""
    frames, labels = 400, [1, 2, 1, 3] * 10
    scores = np.full((frames, 5), -peak)
    scores[:, 0] = 0.0
    scores[:, 1] -= 0.25 * peak
    fsa = linear(labels, loop=0.5, forward=0.1)
    loss, gradient = evaluate(Criterion(), scores, fsa)
    assert math.isfinite(loss)
    # The best path: each "1" once.
    best = frames * peak + 20 * 0.25 * peak + 40 * 0.1 + 360 * 0.5
    assert best - 400 * math.log(5) < loss <= best
    np.testing.assert_allclose(gradient.sum(axis=1), -1.0, atol=1e-6)
    assert not gradient[:, 0].any()


def test_a_path_that_looks_hopeless_until_the_end_is_kept():
    """State 2 is reached by e^-4000 of the mass, but only it leads to the end."""
    fsa = automaton(4, [(0, 0, 0, 0), (0, 1, 1, 0), (1, 2, 1, 0), (2, 2, 0, 0), (2, 3, 2, 0)])
    scores = np.zeros((30, 3))
    scores[:, 1] = -2000.0
    scores[:, 2] = -5000.0
    loss, gradient = evaluate(Criterion(), scores, fsa)
    assert loss == pytest.approx(9000.0 - math.log(28), rel=1e-12)
    assert gradient[-1, 2] == -1.0


def test_scales_prior_and_weights_enter_as_documented():
    fsa = linear([0, 1, 2], loop=1.5, forward=0.25)
    scores = random_scores(0, 6, 4)
    log_prior = np.log(np.array([0.1, 0.2, 0.3, 0.4]))
    criterion = Criterion(am_scale=0.6, tdp_scale=0.3, prior_scale=0.2, log_prior=log_prior)
    loss, gradient = evaluate(criterion, scores, fsa)
    scaled = automaton(4, [(*edge, 0.3 * w) for edge, w in zip(fsa.edges.T, fsa.weights)])  # noqa: B905
    expected, occupancy = reference(scaled, 0.6 * scores - 0.2 * log_prior)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, -0.6 * occupancy, atol=1e-6)


def test_parallel_arcs_and_a_hub_with_many_arcs():
    """More arcs into one state than a column of the table holds."""
    arcs = [(0, 1 + i, i % 7, 0.1 * i) for i in range(40)]
    arcs += [(1 + i, 41, (3 * i) % 5, 0.05 * i) for i in range(40)]
    arcs += [(41, 41, 0, 1.0), (41, 42, 1, 0.0), (41, 42, 1, 0.5), (41, 42, 2, 0.0)]
    fsa = automaton(43, arcs)
    scores = random_scores(1, 4, 7)
    loss, gradient = evaluate(Criterion(), scores, fsa)
    expected, occupancy = reference(fsa, scores)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(-gradient, occupancy, atol=1e-6)


def test_no_path_gives_infinite_loss_and_exactly_zero():
    fsa = linear([0, 1, 2])
    for frames in (0, 1, 2):
        loss, gradient = evaluate(Criterion(), np.zeros((frames, 3)), fsa)
        assert loss == math.inf
        assert gradient.shape == (frames, 3)
        assert not gradient.any()
    scores = np.zeros((5, 3))
    scores[2] = -np.inf
    loss, gradient = evaluate(Criterion(), scores, fsa)
    assert loss == math.inf
    assert not gradient.any()
    unreachable = automaton(4, [(0, 1, 0, 0), (1, 1, 0, 0), (2, 3, 0, 0)])
    loss, gradient = evaluate(Criterion(), np.zeros((5, 3)), unreachable)
    assert loss == math.inf
    assert not gradient.any()
    assert evaluate(Criterion(), np.zeros((5, 3)), automaton(2, []))[0] == math.inf
    assert evaluate(Criterion(), np.zeros((5, 3)), linear([0], loop=np.inf, forward=np.inf))[0] > 1


def test_no_frames_is_a_path_where_the_start_is_the_end():
    assert evaluate(Criterion(), np.zeros((0, 3)), automaton(1, []))[0] == 0.0


def test_not_a_number_stays_within_what_the_automaton_uses():
    fsa = linear([0, 2])
    scores = random_scores(2, 5, 4)
    clean, _ = evaluate(Criterion(), scores, fsa)
    scores[3, 1] = np.nan  # no path emits label 1
    assert evaluate(Criterion(), scores, fsa)[0] == clean
    for bad in (np.nan, np.inf):
        scores[3, 2] = bad
        loss, gradient = evaluate(Criterion(), scores, fsa)
        assert math.isnan(loss)
        assert np.isnan(gradient).all()


def test_a_label_that_the_posteriors_lack_is_an_error():
    with pytest.raises(ValueError, match="emits label 5, but the posteriors have only 5 labels"):
        evaluate(Criterion(), np.zeros((4, 5)), linear([0, 5]))


def test_a_state_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        NodeGraph.from_automaton(3, np.array([[0], [3], [0]]), np.zeros(1))


def test_occupancy_is_of_the_labels_that_occur():
    graph = NodeGraph.from_automaton(3, np.array([[0, 1], [1, 2], [7, 4]]), np.zeros(2))
    assert graph.labels.tolist() == [4, 7]
    loss, occupancy = full_sum(graph, np.zeros((2, 9)))
    assert loss == 0.0
    np.testing.assert_array_equal(occupancy, [[0.0, 1.0], [1.0, 0.0]])


# -- configuration -----------------------------------------------------------------------------


def test_configuration(tmp_path):
    prior = np.log(np.array([0.5, 0.25, 0.25]))
    files = {
        "prior.npy": lambda path: np.save(path, prior),
        "prior.txt": lambda path: np.savetxt(path, prior),
        "prior.xml": lambda path: path.write_text(
            '<?xml version="1.0"?>\n<vector-f32 size="3">\n'
            + " ".join(str(value) for value in prior)
            + "\n</vector-f32>\n"
        ),
    }
    for name, write in files.items():
        write(tmp_path / name)
        criterion = Criterion.from_configuration(
            Configuration.from_dict(
                {
                    "*.training-criterion": "full-sum",
                    "*.criterion.am-scale": 0.5,
                    "*.criterion.tdp-scale": 0.0,
                    "*.criterion.prior-scale": 0.3,
                    "*.criterion.prior-file": tmp_path / name,
                }
            )
        )
        assert (criterion.am_scale, criterion.tdp_scale, criterion.prior_scale) == (0.5, 0.0, 0.3)
        np.testing.assert_allclose(criterion.log_prior, prior)
    with pytest.raises(ConfigurationError, match="prior has 3 labels, the posteriors have 4"):
        evaluate(criterion, np.zeros((5, 4)), linear([0]))
    assert Criterion.from_configuration(Configuration.from_dict({})) == Criterion()


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"*.training-criterion": "ctc"}, "full-sum, cross-entropy, none"),
        ({"*.training-criterion": "squared-error"}, "not offered here"),
        ({"*.criterion.am-scale": "much"}, "criterion.am-scale.*'much'"),
        ({"*.criterion.am-scale": "infinity"}, "a number"),
        ({"*.criterion.prior-scale": "1"}, "needs a 'prior-file'"),
        (
            {"*.criterion.prior-scale": "1", "*.criterion.prior-file": "gone"},
            "cannot read the prior file 'gone'",
        ),
    ],
)
def test_bad_configuration(resources, message):
    with pytest.raises(ConfigurationError, match=message):
        Criterion.from_configuration(Configuration.from_dict(resources))


@pytest.mark.parametrize("text", ["", "one two", "inf"])
def test_bad_prior_files(tmp_path, text):
    file = tmp_path / "prior.txt"
    file.write_text(text)
    resources = {"*.criterion.prior-scale": 1, "*.criterion.prior-file": file}
    with pytest.raises(ConfigurationError, match="the prior file"):
        Criterion.from_configuration(Configuration.from_dict(resources))


def test_cross_entropy():
    posteriors = np.exp(random_scores(4, 3, 4)).astype(np.float32)
    loss, error = cross_entropy(posteriors, np.array([1, 0, 3], np.float32))
    expected = -np.log(posteriors[[0, 1, 2], [1, 0, 3]].astype(np.float64)).sum()
    assert loss == pytest.approx(expected)
    np.testing.assert_allclose(error, posteriors - np.eye(4, dtype=np.float32)[[1, 0, 3]])
    for bad in ([1, 0], [1, 0, 4], [1, 0, 0.5], [-1, 0, 0]):
        with pytest.raises(ValueError, match="alignment must"):
            cross_entropy(posteriors, np.array(bad))
