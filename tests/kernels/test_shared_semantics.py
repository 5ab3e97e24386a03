"""One automaton shared by the batch says of bad sequences what automata of their own say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jax_sprint import Automata, full_sum_loss, viterbi

pytestmark = pytest.mark.optimized
T, L = 12, 5
CASES = {
    "good": np.isfinite,
    "NaN in a valid frame": np.isnan,
    "good, and anything in padding": np.isfinite,
    "+inf": np.isnan,
    "-inf everywhere": np.isposinf,
    "one label forbidden": np.isfinite,
    "no frame": np.isposinf,
    "too short": np.isposinf,
    "traced length too long": np.isnan,
    "traced length negative": np.isnan,
    "good, all frames": np.isfinite,
}


def batch(cyclic: bool):
    """One automaton, and scores and lengths of a sequence per case."""
    rng = np.random.default_rng(0)
    edges = [(0, 1, 0, 0), (1, 2, 1, 0), (2, 3, 2, 0), (3, 4, 3, 0), (2, 4, 4, 0)]
    edges += [(s, s, s - 1, 0) for s in (1, 2, 3)]
    if cyclic:
        edges += [(3, 1, 4, 0), (2, 1, 3, 0), (1, 3, 0, 0)]
    one = oracles.EdgeList(
        np.array(edges, np.uint32).T.copy(),
        rng.random(len(edges)).astype(np.float32),
        np.array([[0], [4]], np.uint32),
    )
    x = rng.normal(size=(T, len(CASES), L)).astype(np.float32)
    lengths = np.full(len(CASES), 9)
    clean = x.copy(), lengths.copy()
    for b, case in enumerate(CASES):
        if case == "NaN in a valid frame":
            x[4, b, 2] = np.nan
        elif case == "good, and anything in padding":
            x[9, b], x[10, b], x[11, b] = np.nan, np.inf, -np.inf
        elif case == "+inf":
            x[3, b, 1] = np.inf
        elif case == "-inf everywhere":
            x[:, b] = -np.inf
        elif case == "one label forbidden":
            x[:, b, 4] = -np.inf
        elif case == "no frame":
            lengths[b] = 0
        elif case == "too short":
            lengths[b] = 2 - cyclic
        elif case == "traced length too long":
            lengths[b] = T + 1
        elif case == "traced length negative":
            lengths[b] = -1
        elif case == "good, all frames":
            lengths[b] = clean[1][b] = T
    return one, (x, lengths), clean


def repeated(one: oracles.EdgeList) -> Automata:
    alone = Automata.from_edges(*one, num_labels=L)
    return Automata.concat([alone] * len(CASES))


@jax.jit
def run(x, lengths, automata):
    def losses(x, weights):
        return full_sum_loss(x, lengths, automata.with_weights(weights), return_valid=True)

    loss, pull, valid = jax.vjp(losses, x, automata.weights, has_aux=True)
    d_x, d_weights = pull(jnp.where(valid, 1.0, jnp.inf))
    return loss, valid, d_x, d_weights


@pytest.mark.slow
@pytest.mark.parametrize("cyclic", [False, True])
def test_the_same_answers_as_without_sharing(cyclic: bool) -> None:
    one, bad, _ = batch(cyclic)
    shared = Automata.from_edges(*one, num_labels=L).shared()
    loss, valid, d_x, d_weights = run(*bad, shared)
    wanted = run(*bad, repeated(one))
    for b, (case, is_so) in enumerate(CASES.items()):
        assert is_so(loss[b]), case
        assert bool(valid[b]) == (is_so is np.isfinite), case
        if not valid[b]:
            assert not np.asarray(d_x[:, b]).any(), case
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(d_x, wanted[2], atol=1e-6)
    np.testing.assert_allclose(d_weights, np.sum(wanted[3], axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cyclic", [False, True])
def test_bad_sequences_leave_their_neighbours_alone(cyclic: bool) -> None:
    one, bad, clean = batch(cyclic)
    shared = Automata.from_edges(*one, num_labels=L).shared()
    dirty, wanted = run(*bad, shared), run(*clean, shared)
    for b, case in enumerate(CASES):
        if case.startswith("good"):
            assert dirty[0][b] == wanted[0][b]
            np.testing.assert_array_equal(dirty[2][:, b], wanted[2][:, b])


@pytest.mark.slow
@pytest.mark.parametrize("cyclic", [False, True])
def test_best_paths_are_the_same_as_without_sharing(cyclic: bool) -> None:
    one, bad, _ = batch(cyclic)
    decode = jax.jit(lambda x, lengths, automata: viterbi(x, lengths, automata))
    alignment, score = decode(*bad, Automata.from_edges(*one, num_labels=L).shared())
    expected, best = decode(*bad, repeated(one))
    np.testing.assert_allclose(score, best, rtol=1e-6)
    np.testing.assert_array_equal(alignment, expected)
