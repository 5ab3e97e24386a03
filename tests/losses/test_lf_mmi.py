"""`lf_mmi_loss` against all paths, finite differences, and what it says where paths are missing."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from jax_sprint import Automata, lf_mmi_loss, topologies

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lf_mmi.py"
LABELS = [[1, 2], [3, 1, 1], [2]]
TEXT = [*LABELS, [1, 3, 2, 1], [2, 2, 3]]


def graphs() -> tuple[oracles.EdgeList, oracles.EdgeList]:
    """The numerators of a batch of three, and a bigram over four labels, blank among them."""
    numerator = topologies.ctc(np.array([[1, 2, 0], [3, 1, 1], [2, 0, 0]]), np.array([2, 3, 1]))
    denominator = topologies.ngram(TEXT, order=2)
    return oracles.EdgeList(*numerator.to_edges()), oracles.EdgeList(*denominator.to_edges())


def packed() -> tuple[Automata, Automata]:
    numerator, denominator = graphs()
    return (
        Automata.from_edges(*numerator, num_labels=4),
        Automata.from_edges(*denominator, num_labels=4, shared=True),
    )


@jax.jit
def value_and_gradients(x, lengths, numerator, denominator, scales, prior):
    def total(x, scales, prior):
        loss, valid = lf_mmi_loss(
            x,
            lengths,
            numerator,
            denominator,
            am_scale=scales[0],
            tdp_scale=scales[1],
            denominator_scale=scales[2],
            log_prior=prior,
            prior_scale=scales[3],
            return_valid=True,
        )
        return jnp.sum(jnp.where(valid, loss, 0.0)), (loss, valid)

    return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(x, scales, prior)


SCALES = np.array([0.8, 1.2, 0.9, 0.3], np.float32)
PRIOR = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))


def test_value_and_gradients_against_all_paths() -> None:
    rng = np.random.default_rng(0)
    numerator, denominator = graphs()
    x, lengths = 3 * rng.normal(size=(6, 3, 4)).astype(np.float32), np.array([6, 5, 3])
    (_, (loss, valid)), gradients = value_and_gradients(x, lengths, *packed(), SCALES, PRIOR)
    am, tdp, share, ps = SCALES.astype(float)
    assert valid.all()
    for b, length in enumerate(lengths):
        real = x[:length, b].astype(float)
        scores = oracles.frame_scores(real, am_scale=am, log_prior=PRIOR, prior_scale=ps)
        own = oracles.by_enumeration(numerator, b, scores, tdp)
        every = oracles.by_enumeration(denominator, 0, scores, tdp)
        np.testing.assert_allclose(loss[b], own.loss - share * every.loss, rtol=1e-5, atol=1e-5)
        wanted = -am * (own.posteriors - share * every.posteriors)
        np.testing.assert_allclose(gradients[0][:length, b], wanted, atol=1e-5)
        assert not np.asarray(gradients[0])[length:, b].any()


@pytest.mark.slow
def test_finite_differences_in_float64() -> None:
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        numerator, denominator = packed()
        x, lengths = rng.normal(size=(6, 3, 4)), np.array([6, 5, 2])

        @jax.jit
        def loss(x, weights, scales, prior):
            return lf_mmi_loss(
                x,
                lengths,
                numerator,
                denominator.with_weights(weights),
                am_scale=scales[0],
                tdp_scale=scales[1],
                denominator_scale=scales[2],
                log_prior=prior,
                prior_scale=scales[3],
            )

        weights = denominator.weights.astype(np.float64)
        arguments = (x, weights, SCALES.astype(float), PRIOR.astype(float))
        assert loss(*arguments).dtype == jnp.float64
        check_grads(loss, arguments, order=1, modes=["rev", "fwd"], rtol=1e-5, atol=1e-5)


@pytest.mark.optimized
def test_missing_paths_and_bad_values_never_make_a_good_loss() -> None:
    """Sequence 0: no numerator; 1: NaN; 2: no denominator; 3: as it should be."""
    one = topologies.linear(np.array([[1, 2]] * 4), np.array([2] * 4), num_labels=4)
    dead = oracles.EdgeList(
        np.array([[0, 1], [1, 2], [1, 2], [0, 0]], np.uint32),
        np.zeros(2, np.float32),
        np.array([[0], [2]], np.uint32),
    )
    x = np.random.default_rng(2).normal(size=(3, 4, 4)).astype(np.float32)
    x[1, 1, 3] = np.nan
    lengths = np.array([1, 2, 3, 2])
    denominator = Automata.from_edges(*dead, num_labels=4, shared=True)

    @jax.jit
    def pulled(x):
        loss, pull, valid = jax.vjp(
            lambda x: lf_mmi_loss(x, lengths, one, denominator, return_valid=True),
            x,
            has_aux=True,
        )
        return loss, valid, pull(jnp.where(valid, 1.0, jnp.inf))[0]

    loss, valid, gradient = pulled(x)
    np.testing.assert_array_equal(loss[:3], [np.inf, np.nan, np.inf])
    assert valid.tolist() == [False, False, False, True]
    assert not np.asarray(gradient)[:, :3].any()
    np.testing.assert_allclose(loss[3], 0.0, atol=1e-6)  # both have the one path 1, 2


def test_one_denominator_for_several_sequences_must_be_shared() -> None:
    numerator, _ = packed()
    denominator = topologies.ngram(TEXT, order=2)
    x = np.zeros((6, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"pass denominator.shared\(\)"):
        lf_mmi_loss(x, np.array([6, 6, 6]), numerator, denominator)


def test_a_trigram_of_phones_goes_round() -> None:
    """40 phones: about 1,000 histories; the packed denominator gives its edges back."""
    rng = np.random.default_rng(3)
    follow = np.stack([rng.choice(40, 6, replace=False) for _ in range(40)])
    text = []
    for _ in range(400):
        phones = [int(rng.integers(40))]
        for _ in range(29):
            phones.append(int(follow[phones[-1], min(rng.geometric(0.4) - 1, 5)]))
        text.append([phone + 1 for phone in phones])
    denominator = topologies.ngram(text, order=3, prune=0.02, num_labels=41, shared=True)
    edges = denominator.to_edges()
    again = Automata.from_edges(*edges, num_labels=41, shared=True)
    for one, other in zip(again.to_edges(), edges, strict=True):
        np.testing.assert_array_equal(one, other)
    numerator = topologies.ctc(np.array([text[0][:9]]), np.array([9]), num_labels=41)
    x = rng.normal(size=(20, 1, 41)).astype(np.float32)
    loss = lf_mmi_loss(x, np.array([20]), numerator, again)
    scores = x[:, 0].astype(float)
    own = oracles.by_dynamic_programming(oracles.EdgeList(*numerator.to_edges()), 0, scores)
    every = oracles.by_dynamic_programming(oracles.EdgeList(*edges), 0, scores)
    np.testing.assert_allclose(loss[0], own.loss - every.loss, rtol=1e-5)


@pytest.mark.slow
def test_the_example_learns(capsys) -> None:
    before, after = runpy.run_path(str(EXAMPLE))["main"](["--steps", "60"])
    assert after < 0.2 * before
    assert "label errors" in capsys.readouterr().out
