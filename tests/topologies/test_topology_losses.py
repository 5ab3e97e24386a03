"""Topologies through the public API: against optax, against plain recursion, learnable TDPs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_sprint import Automata, full_sum_loss, topologies
from jax_sprint.topologies._ngram import ngram_triple

ROOT = Path(__file__).resolve().parents[2]
COSTS = {"loop": 0.7, "forward": 0.9, "skip": 2.3, "exit": 1.1} | {
    "silence_loop": 0.2,
    "silence_exit": 1.9,
}


def load_example():
    spec = importlib.util.spec_from_file_location("learn_tdps", ROOT / "examples" / "learn_tdps.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def log_posteriors(rng, *shape):
    return jax.nn.log_softmax(jnp.asarray(rng.normal(size=shape), jnp.float32), axis=-1)


@pytest.mark.parametrize("blank", [0, 6])
def test_ctc_is_optax_ctc(blank):
    rng = np.random.default_rng(2)
    frames, batch, num_labels, width = 21, 6, 7, 5
    lengths = np.asarray([21, 20, 13, 9, 7, 4])
    label_lengths = np.asarray([5, 4, 5, 0, 1, 2])
    labels = rng.integers(1, 6, size=(batch, width))
    labels[2, :4] = [3, 3, 4, 4]  # repetitions need blanks
    logits = jnp.asarray(rng.normal(size=(batch, frames, num_labels)), jnp.float32)

    automata = topologies.ctc(labels, label_lengths, blank=blank, num_labels=num_labels)
    paddings = (np.arange(frames) >= lengths[:, None]).astype(np.float32)
    label_paddings = (np.arange(width) >= label_lengths[:, None]).astype(np.float32)

    def ours(logits):
        scores = jax.nn.log_softmax(jnp.swapaxes(logits, 0, 1), axis=-1)
        losses = full_sum_loss(scores, lengths, automata)
        return jnp.sum(losses), losses

    def theirs(logits):
        losses = optax.ctc_loss(logits, paddings, labels, label_paddings, blank_id=blank)
        return jnp.sum(losses), losses

    (_, mine), my_gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(logits)
    # optax mixes dtypes, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        (_, truth), gradient = jax.jit(jax.value_and_grad(theirs, has_aux=True))(logits)
    np.testing.assert_allclose(mine, truth, rtol=1e-5)
    np.testing.assert_allclose(my_gradient, gradient, atol=1e-5)


def test_too_few_frames_have_no_path_and_empty_sequences_have_blanks():
    rng = np.random.default_rng(0)
    scores = log_posteriors(rng, 4, 4, 5)
    labels = [[1, 1, 2], [1, 2, 3], [1, 1, 2], []]
    lengths = np.asarray([3, 3, 4, 4])
    loss, valid = full_sum_loss(scores, lengths, topologies.ctc(labels), return_valid=True)
    np.testing.assert_array_equal(valid, [False, True, True, True])
    assert loss[0] == np.inf
    np.testing.assert_allclose(loss[1], -(scores[0, 1, 1] + scores[1, 1, 2] + scores[2, 1, 3]))
    np.testing.assert_allclose(loss[3], -jnp.sum(scores[:, 3, 0]), rtol=1e-6)
    zero = full_sum_loss(scores, np.zeros(4, np.int32), topologies.ctc(labels))
    np.testing.assert_array_equal(zero, [np.inf, np.inf, np.inf, 0.0])


def test_linear_without_loops_is_the_cross_entropy():
    rng = np.random.default_rng(1)
    scores = log_posteriors(rng, 6, 2, 5)
    labels = rng.integers(0, 5, size=(2, 6))
    automata = topologies.linear(labels, [6, 4], loops=False)
    picked = np.take_along_axis(np.asarray(scores), labels.T[:, :, None], axis=2)[..., 0]
    expected = [-picked[:, 0].sum(), -picked[:4, 1].sum()]
    np.testing.assert_allclose(
        full_sum_loss(scores, np.asarray([6, 4]), automata), expected, rtol=1e-6
    )


def test_ngram_as_denominator(score):
    rng = np.random.default_rng(4)
    text = [rng.integers(1, 6, size=n).tolist() for n in (3, 5, 7, 2, 6)]
    for order, topology in ((2, "linear"), (3, "rna")):
        triple = ngram_triple(text, order=order, topology=topology)
        scores = log_posteriors(rng, 12, 1, 6)
        automata = topologies.ngram(text, order=order, topology=topology, num_labels=6)
        loss = full_sum_loss(scores, np.asarray([12]), automata)
        np.testing.assert_allclose(loss[0], score(triple, scores[:, 0]), rtol=1e-6)


def test_ngram_shared_by_a_batch(score):
    rng = np.random.default_rng(8)
    text = [[1, 2], [2, 2, 3], [3, 1, 1]]
    scores, lengths = log_posteriors(rng, 9, 3, 4), np.asarray([9, 4, 6])
    loss = full_sum_loss(scores, lengths, topologies.ngram(text, order=2).shared())
    triple = ngram_triple(text, order=2)
    expected = [score(triple, scores[:n, b]) for b, n in enumerate(lengths)]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_weights_by_arc_class_are_the_weights():
    utterances = [[[1, 2, 3], [4, 5]], [[3]], [[5, 4], [1, 2, 3]]]
    automata, classes = topologies.hmm(
        utterances, silence=0, **COSTS, num_labels=6, return_arc_classes=True
    )
    assert isinstance(automata, Automata)
    assert classes.shape == automata.weights.shape
    assert classes.dtype == np.int32
    names = ["loop", "forward", "skip", "exit"]
    penalties = jnp.asarray(
        [COSTS[n] for n in names] + [COSTS.get(f"silence_{n}", 0.0) for n in names], jnp.float32
    )
    scores = log_posteriors(np.random.default_rng(6), 15, 3, 6)
    lengths = np.asarray([15, 4, 11])
    expected = np.asarray(full_sum_loss(scores, lengths, automata))

    @jax.jit
    def learnable(penalties):
        def total(p):
            losses = full_sum_loss(scores, lengths, automata.with_weights(p[jnp.asarray(classes)]))
            return jnp.sum(losses), losses

        (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(penalties)
        return losses, gradient

    losses, gradient = learnable(penalties)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    # Each frame pays one penalty; so all of them, moved by one, move the loss by the frames.
    np.testing.assert_allclose(learnable(penalties + 1.0)[0], expected + lengths, rtol=1e-5)
    assert float(jnp.sum(gradient)) == pytest.approx(lengths.sum(), rel=1e-5)
    assert gradient[topologies.ArcClass.SPEECH_EXIT] == pytest.approx(5.0, rel=1e-5)  # words


def test_learn_tdps_example_comes_close():
    example = load_example()
    # optax.adam itself promotes int32 to float.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        learned, truth, history = example.learn(num_utterances=60, steps=60, seed=3)
    kinds = list(example.LEARNT)
    at_first = np.log([3, 3, 3, 1.5, 2, 2])
    before, after = np.abs(at_first - truth[kinds]), np.abs(learned[kinds] - truth[kinds])
    assert after.max() < 0.25 < before.max()
    assert after.sum() < 0.2 * before.sum()
    assert history[-1] < history[0] - 0.05


def test_learn_tdps_mass_is_that_of_the_automaton():
    # Sum over all lengths, by a loss on posteriors of 1: the correction of the example is exact.
    example = load_example()
    penalties = example.penalties_of(jnp.asarray([0.5, -0.3, -1.0]), jnp.asarray(0.2))
    automata, classes = topologies.hmm(
        [[[1, 2, 3, 4]]], skip=0.0, num_labels=5, return_arc_classes=True
    )
    automata = automata.with_weights(penalties[jnp.asarray(classes)])
    flat = jnp.zeros((120, 1, 5))
    total = jax.jit(jax.vmap(lambda n: full_sum_loss(flat, n, automata)))
    losses = total(jnp.arange(1, 121)[:, None])
    assert float(jnp.sum(jnp.exp(-losses))) == pytest.approx(
        float(jnp.exp(example.log_mass(penalties))), rel=1e-5
    )
