"""`viterbi` against dynamic programming and all paths."""

from __future__ import annotations

import jax
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import Automata, viterbi

T, B, L = 5, 3, 4
SIZES = {
    "edges": 64, "states": 8, "nodes": 24, "slots": 4, "band": 0, "in_arcs": 48, "out_arcs": 48
}  # fmt: skip


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 100.0]))
@settings(max_examples=80, deadline=None)
def test_the_best_of_all_paths(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    automata = oracles.random_automata(rng, B, density=0.6)
    x = (spread * rng.normal(size=(T, B, L))).astype(np.float32)
    lengths = rng.integers(0, T + 1, B)
    prior = rng.normal(size=L).astype(np.float32)
    packed = Automata.from_edges(*automata, pad_to=SIZES)
    alignment, score, valid = viterbi(
        x,
        lengths,
        packed,
        am_scale=0.5,
        tdp_scale=0.75,
        log_prior=prior,
        prior_scale=0.25,
        return_valid=True,
    )
    assert (alignment.dtype, alignment.shape) == (np.int32, (T, B))
    for b in range(B):
        real = oracles.frame_scores(
            x[: lengths[b], b], am_scale=0.5, log_prior=prior, prior_scale=0.25
        )
        paths = oracles.enumerate_paths(automata, b, int(lengths[b]))
        frames = np.arange(len(real))
        totals = [real[frames, list(p[0])].sum() - 0.75 * p[2] for p in paths]
        assert bool(valid[b]) == bool(paths)
        labels = np.asarray(alignment[:, b])
        assert (labels[lengths[b] :] == -1).all()
        if not paths:
            assert score[b] == -np.inf
            assert (labels == -1).all()
            continue
        np.testing.assert_allclose(score[b], max(totals), rtol=1e-5, atol=1e-5)
        aligned = oracles.alignment_score(automata, b, real, labels[: lengths[b]], 0.75)
        np.testing.assert_allclose(aligned, max(totals), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_frames", [500, 5000])
def test_band_and_tables_agree_and_are_exact_for_long_sequences(num_frames: int) -> None:
    rng = np.random.default_rng(1)
    automata = oracles.hmm_like(rng, 2, 8, 12)
    x = rng.normal(size=(num_frames, 2, 12)).astype(np.float32)
    lengths = np.array([num_frames, num_frames - 13])
    results = [
        viterbi(x, lengths, Automata.from_edges(*automata, pad_to=pad_to))
        for pad_to in (None, {"band": 0})
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for b in range(2):
        real = x[: lengths[b], b].astype(float)
        best = oracles.best_score(automata, b, real)
        np.testing.assert_allclose(results[0][1][b], best, rtol=1e-6)
        labels = np.asarray(results[0][0])[: lengths[b], b]
        assert oracles.alignment_score(automata, b, real, labels) == pytest.approx(best, rel=1e-12)


def test_ties_go_to_the_first_edge_whatever_the_packing() -> None:
    edges = np.array([[0, 0, 1, 2], [1, 2, 3, 3], [0, 1, 2, 2], [0, 0, 0, 0]], np.uint32)
    ends = np.array([[0], [3]], np.uint32)
    x = np.zeros((2, 1, 3), np.float32)
    for order, first in (([0, 1, 2, 3], 0), ([0, 1, 3, 2], 1), ([1, 0, 2, 3], 0)):
        for pad_to in (None, {"band": 0}):
            packed = Automata.from_edges(
                edges[:, order].copy(), np.zeros(4, np.float32), ends, pad_to=pad_to
            )
            alignment, _ = viterbi(x, np.array([2]), packed)
            assert alignment[:, 0].tolist() == [first, 2]


@pytest.mark.parametrize("end", [2, 3])
def test_ties_between_the_labels_of_one_state(end: int) -> None:
    """One edge leaves a state that two edges with different labels enter; `end` may have a loop."""
    for first, second in ((0, 1), (1, 0)):
        edges = np.array([[0, 0, 1, 2], [1, 1, 2, end], [first, second, 2, 2], [0, 0, 0, 0]])
        edges = edges[:, : 4 if end == 2 else 3].astype(np.uint32)
        ends = np.array([[0], [2]], np.uint32)
        x = np.zeros((3, 1, 3), np.float32)
        batch = Automata.from_edges(edges, np.zeros(edges.shape[1], np.float32), ends)
        for automata in (batch, batch.shared()):
            for length in range(2, 4 if end == 2 else 3):
                alignment, score = viterbi(x, np.array([length]), automata)
                assert score[0] == 0
                assert alignment[:length, 0].tolist() == [first] + [2] * (length - 1)


@pytest.mark.optimized
def test_batch_major_bad_values_and_no_gradient() -> None:
    rng = np.random.default_rng(2)
    automata = oracles.hmm_like(rng, 3, 1, 4)
    packed = Automata.from_edges(*automata)
    x = rng.normal(size=(16, 3, 4)).astype(np.float32)
    lengths = np.array([16, 2, 14])
    alignment, score, valid = viterbi(x, lengths, packed, return_valid=True)
    assert valid.tolist() == [True, False, True]
    major = viterbi(np.swapaxes(x, 0, 1), lengths, packed, time_major=False)
    np.testing.assert_array_equal(major[0].T, alignment)
    np.testing.assert_array_equal(major[1], score)
    x[3, 2, 1] = np.nan
    alignment, score = viterbi(x, lengths, packed)
    assert np.isnan(score[2])
    assert np.isfinite(score[0])
    assert (np.asarray(alignment[:, 2]) == -1).all()
    gradient = jax.grad(lambda x: viterbi(x, lengths, packed)[1][0])(x)
    assert not np.asarray(gradient).any()
    with pytest.raises(ValueError, match=r"seq_lengths\[0\] is 17"):
        viterbi(x, np.array([17, 2, 3]), packed)
    empty, none = viterbi(np.zeros((0, 3, 4), np.float32), np.zeros(3, int), packed)
    assert empty.shape == (0, 3)
    assert none.tolist() == [-np.inf] * 3
