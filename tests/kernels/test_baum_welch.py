"""`fast_baum_welch`: RETURNN's names and layouts, traced edges."""

from __future__ import annotations

import jax
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import fast_baum_welch

pytestmark = pytest.mark.optimized
T, B, L, E, STATES = 5, 3, 4, 64, 40


@jax.jit
def traced(am_scores, seq_mask, edges, weights, start_end_states):
    return fast_baum_welch(
        am_scores=am_scores,
        seq_mask=seq_mask,
        edges=edges,
        weights=weights,
        start_end_states=start_end_states,
        n_states=STATES,
    )


def pad(automata: oracles.EdgeList) -> tuple:
    """To E edges, with dead ones that hold nonsense, as over-allocated automata do."""
    more = E - automata.edges.shape[1]
    junk = np.full((4, more), 7, np.uint32)
    weights = np.concatenate([automata.weights, np.full(more, np.inf, np.float32)])
    return np.concatenate([automata.edges, junk], axis=1).astype(np.int32), weights


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 50.0, 1000.0]), gaps=st.booleans())
@settings(max_examples=80, deadline=None)
def test_traced_edges_against_all_paths(seed: int, spread: float, gaps: bool) -> None:
    rng = np.random.default_rng(seed)
    automata = oracles.random_automata(
        rng, B, max_states=3, density=0.8, gaps=gaps, interleave=gaps
    )
    x = (spread * rng.normal(size=(T, B, L))).astype(np.float32)
    lengths = rng.integers(0, T + 1, B)
    mask = (np.arange(T)[:, None] < lengths).astype(np.float32)
    x[mask == 0] = np.nan
    edges, weights = pad(automata)
    fwdbwd, obs = traced(-x, mask, edges, weights, automata.start_end_states.astype(np.int32))
    assert (fwdbwd.shape, obs.shape) == ((T, B, L), (T, B))
    for b in range(B):
        answer = oracles.by_enumeration(automata, b, x[: lengths[b], b].astype(float))
        np.testing.assert_allclose(
            np.exp(-np.asarray(fwdbwd[: lengths[b], b], float)), answer.posteriors, atol=1e-5
        )
        np.testing.assert_allclose(obs[: lengths[b], b], answer.loss, rtol=2e-6, atol=1e-5)
        assert (np.asarray(fwdbwd[lengths[b] :, b]) == np.inf).all()
        assert not np.asarray(obs[lengths[b] :, b]).any()


def test_bad_values_touch_one_sequence_only() -> None:
    rng = np.random.default_rng(0)
    automata = oracles.hmm_like(rng, B, 1, L)
    x = rng.normal(size=(16, B, L)).astype(np.float32)
    states = int(automata.start_end_states.max()) + 1

    @jax.jit
    def run(x, edges):
        return fast_baum_welch(
            am_scores=-x,
            seq_mask=np.ones((16, B), np.float32),
            edges=edges,
            weights=automata.weights,
            start_end_states=automata.start_end_states,
            n_states=states,
        )

    wanted = run(x, automata.edges)
    edges = automata.edges.copy()
    edges[2, np.argmax(edges[3] == 2)] = L
    x[3, 1] = np.nan
    got = run(x, edges)
    for clean, dirty in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(clean[:, 0], dirty[:, 0])
        assert np.isnan(dirty[:, 1:]).all()


GOOD = {
    "am_scores": np.zeros((4, 1, 2), np.float32),
    "seq_mask": np.ones((4, 1), np.float32),
    "edges": np.array([[0], [1], [0], [0]], np.uint32),
    "weights": np.zeros(1, np.float32),
    "start_end_states": np.array([[0], [1]], np.uint32),
    "n_states": 2,
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_states", None, "n_states must be a Python int"),
        ("n_states", 1, "start_end_states holds 1, but n_states is 1"),
        ("am_scores", np.zeros((4, 2), np.float32), r"am_scores must be a float array \[T, B, L\]"),
        ("seq_mask", np.ones((1, 4), np.float32), r"seq_mask must have shape \(4, 1\)"),
        ("edges", np.zeros((3, 1), np.uint32), "edges must be integer of shape"),
        ("edges", np.array([[0], [1], [2], [0]], np.uint32), r"emission index outside of 0..1"),
        ("edges", np.array([[0], [2], [0], [0]], np.uint32), r"to index outside of 0..1"),
        ("edges", np.array([[0], [1], [0], [1]], np.uint32), r"sequence index outside of 0..0"),
        ("weights", np.zeros(2, np.float32), r"weights must be float of shape \[1\]"),
        ("start_end_states", np.zeros((2, 2), np.uint32), "start_end_states must be integer"),
    ],
)
def test_bad_arguments_are_named(name: str, value, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fast_baum_welch(**GOOD | {name: value})


def test_one_path_that_is_too_short_for_the_frames() -> None:
    fwdbwd, obs = fast_baum_welch(**GOOD)
    assert (np.asarray(fwdbwd) == np.inf).all()
    assert (np.asarray(obs) == np.inf).all()
