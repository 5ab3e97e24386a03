"""Both routes give the same loss and the same gradient, with real Sprint subprocesses.

The automata are those of the golden configurations: a three-state monophone HMM with optional
silence, pronunciation variants and penalties, and the CTC topology.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sprint import (
    Automata,
    SprintInstancePool,
    SprintOptions,
    encode_tags,
    full_sum_loss,
    sprint_loss,
)

CASES = {"a_mono3_default": 46, "b_ctc_blank": 16}  # configuration: more labels than it emits


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, golden_dir: Path):
    tags = [str(tag) for tag in np.load(golden_dir / f"{request.param}.npz")["tags"]]
    options = SprintOptions(
        config=f"--config=config/{request.param}.config", cwd=golden_dir, num_instances=2
    )
    with SprintInstancePool(options) as pool:
        yield pool, tags, CASES[request.param]


def batch_of(tags, automata, labels, seed, scale=1.0):
    """Logits [T, B, L], and lengths from just feasible to ample."""
    rng = np.random.default_rng(seed)
    shortest = np.asarray(automata.num_states) + 1
    # The same for every seed, so that one compilation serves all tests of a case.
    lengths = (shortest + 7 * np.arange(len(tags)) % 40).astype(np.int32)
    steps = int(lengths.max()) + 3
    logits = rng.normal(size=(steps, len(tags), labels)) * scale
    return jnp.asarray(logits, jnp.float32), jnp.asarray(lengths)


@functools.lru_cache(maxsize=4)
def jitted_routes(pool):
    def callback(logits, lengths, encoded):
        loss, valid = sprint_loss(
            jax.nn.log_softmax(logits), lengths, encoded, sprint=pool, return_valid=True
        )
        return jnp.sum(jnp.where(valid, loss, 0.0)), (loss, valid)

    def fsa(logits, lengths, automata, scales):
        loss, valid = full_sum_loss(
            jax.nn.log_softmax(logits), lengths, automata, return_valid=True, **scales
        )
        return jnp.sum(jnp.where(valid, loss, 0.0)), (loss, valid)

    return [jax.jit(jax.value_and_grad(route, has_aux=True)) for route in (callback, fsa)]


def both(pool, tags, automata, logits, lengths, **scales):
    """(loss [B], valid [B], gradient [T, B, L]) of the callback route and of the FSA route."""
    callback, fsa = jitted_routes(pool)
    asked = callback(logits, lengths, encode_tags(tags))
    summed = fsa(logits, lengths, automata, scales)
    return [(*aux, gradient) for (_, aux), gradient in (asked, summed)]


def assert_same(callback, fsa):
    np.testing.assert_array_equal(callback[1], fsa[1])
    np.testing.assert_allclose(callback[0], fsa[0], rtol=1e-5)
    np.testing.assert_allclose(callback[2], fsa[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 20.0, 200.0])
def test_loss_and_gradient_are_equal(case, scale):
    """Also where a softmax leaves the label that must be taken a probability below exp(-700)."""
    pool, tags, labels = case
    automata = Automata.from_edges(*pool.get_automata_for_batch(tags), num_labels=labels)
    logits, lengths = batch_of(tags, automata, labels, seed=int(scale), scale=scale)
    callback, fsa = both(pool, tags, automata, logits, lengths)
    assert np.all(callback[1]), "every segment of this batch has a path"
    assert_same(callback, fsa)


def test_sequences_too_short_for_any_path(case):
    pool, tags, labels = case
    automata = Automata.from_edges(*pool.get_automata_for_batch(tags), num_labels=labels)
    logits, lengths = batch_of(tags, automata, labels, seed=3)
    lengths = lengths.at[0].set(1).at[2].set(0)
    callback, fsa = both(pool, tags, automata, logits, lengths)
    assert_same(callback, fsa)
    for loss, valid, gradient in (callback, fsa):
        assert loss[0] == np.inf
        assert loss[2] == np.inf
        assert valid.tolist()[:3] == [False, True, False]
        assert np.all(np.asarray(gradient)[:, [0, 2]] == 0)
        beyond = np.arange(logits.shape[0])[:, None] >= np.asarray(lengths)[None, :]
        assert np.all(np.asarray(gradient)[beyond] == 0)


def test_finite_differences_through_sprint(case):
    """The error signal is d loss / d log-posteriors, every entry on its own."""
    pool, tags, labels = case
    automata = Automata.from_edges(*pool.get_automata_for_batch(tags), num_labels=labels)
    logits, lengths = batch_of(tags, automata, labels, seed=4)
    scores = jax.nn.log_softmax(logits)

    @jax.jit
    def loss(scores):
        return sprint_loss(scores, lengths, encode_tags(tags), sprint=pool)

    gradient = jax.grad(lambda s: jnp.sum(loss(s)))(scores)
    rng = np.random.default_rng(5)
    for _ in range(3):
        direction = jnp.asarray(rng.normal(size=scores.shape), jnp.float32)

        def difference(h, direction=direction):
            return (loss(scores + h * direction) - loss(scores - h * direction)) / (2 * h)

        # Richardson: the loss is float32, which forbids a step so small that h^2 vanishes.
        extrapolated = (4 * difference(0.04) - difference(0.08)) / 3
        want = jnp.sum(gradient * direction, axis=(0, 2))
        np.testing.assert_allclose(extrapolated, want, rtol=5e-3, atol=3e-2)


def test_frames_of_a_gradient_sum_to_minus_one(case):
    """Each valid frame's label posteriors sum to one."""
    pool, tags, labels = case
    automata = Automata.from_edges(*pool.get_automata_for_batch(tags), num_labels=labels)
    logits, lengths = batch_of(tags, automata, labels, seed=6)
    scores = jax.nn.log_softmax(logits)
    for loss in (
        lambda s: sprint_loss(s, lengths, encode_tags(tags), sprint=pool),
        lambda s: full_sum_loss(s, lengths, automata),
    ):
        sums = np.asarray(jax.grad(lambda s, loss=loss: jnp.sum(loss(s)))(scores).sum(-1))
        inside = np.arange(scores.shape[0])[:, None] < np.asarray(lengths)[None, :]
        np.testing.assert_allclose(sums[inside], -1, atol=1e-5)
        assert np.all(sums[~inside] == 0)


def test_scales_and_prior(golden_dir, tmp_path):
    labels = CASES["a_mono3_default"]
    scales = {"am_scale": 0.7, "tdp_scale": 0.3, "prior_scale": 0.4}
    log_prior = np.log(np.random.default_rng(7).dirichlet(np.ones(labels))).astype(np.float32)
    np.save(tmp_path / "prior.npy", log_prior)
    options = SprintOptions(
        config=[
            "--config=config/a_mono3_default.config",
            *(f"--*.criterion.{name.replace('_', '-')}={v}" for name, v in scales.items()),
            f"--*.criterion.prior-file={tmp_path / 'prior.npy'}",
        ],
        cwd=golden_dir,
    )
    tags = [str(tag) for tag in np.load(golden_dir / "a_mono3_default.npz")["tags"]][:4]
    with SprintInstancePool(options) as pool:
        automata = Automata.from_edges(*pool.get_automata_for_batch(tags), num_labels=labels)
        logits, lengths = batch_of(tags, automata, labels, seed=8)
        assert_same(*both(pool, tags, automata, logits, lengths, log_prior=log_prior, **scales))


def test_options_instead_of_a_pool(golden_dir):
    """Options, and the ancestor's dict, find the one global pool of theirs."""
    config = f"--config={golden_dir / 'config' / 'b_ctc_blank.config'}"
    options = SprintOptions(config=config, cwd=golden_dir)
    pool = SprintInstancePool.get_global_instance(options)
    try:
        scores = jax.nn.log_softmax(jnp.zeros((30, 1, 16)))
        lengths = jnp.asarray([30], jnp.int32)
        by_pool = sprint_loss(scores, lengths, ["tiny/rec1/seg1"], sprint=pool)
        by_options = sprint_loss(scores, lengths, ["tiny/rec1/seg1"], sprint=options)
        np.testing.assert_array_equal(by_pool, by_options)
        assert SprintInstancePool.get_global_instance(options) is pool
        assert np.isfinite(by_pool[0])
    finally:
        pool.close()
