"""Both routes on an accelerator give what they give on the CPU."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sprint import (
    Automata,
    SprintInstancePool,
    SprintOptions,
    ctc_loss,
    encode_tags,
    full_sum_loss,
    sprint_loss,
    viterbi,
)

pytestmark = pytest.mark.gpu
LABELS = 46


@pytest.fixture(scope="module")
def batch(golden_dir: Path):
    """Log-posteriors [T, B, L], lengths [B], tags and automata of the golden three-state HMM."""
    golden = np.load(golden_dir / "a_mono3_default.npz")
    automata = Automata.from_edges(
        golden["edges"], golden["weights"], golden["start_end_states"], num_labels=LABELS
    )
    rng = np.random.default_rng(0)
    lengths = (automata.num_states + 1 + 5 * np.arange(len(automata))).astype(np.int32)
    scores = rng.normal(size=(int(lengths.max()) + 2, len(automata), LABELS)).astype(np.float32)
    return jax.nn.log_softmax(4 * scores), lengths, [str(tag) for tag in golden["tags"]], automata


def on_both(function, *arguments):
    """Results of the jitted function on the CPU and on the first GPU."""
    results = []
    for platform in ("cpu", "gpu"):
        device = jax.devices(platform)[0]
        placed = jax.device_put(arguments, device)
        result = jax.block_until_ready(jax.jit(function)(*placed))
        leaf = jax.tree_util.tree_leaves(result)[0]
        assert leaf.devices() == {device}
        results.append(jax.device_get(result))
    return results


def test_full_sum_loss(batch):
    scores, lengths, _, automata = batch
    step = jax.value_and_grad(lambda s, n, a: jnp.sum(full_sum_loss(s, n, a)))
    cpu, gpu = on_both(step, scores, lengths, automata)
    np.testing.assert_allclose(gpu[0], cpu[0], rtol=1e-6)
    np.testing.assert_allclose(gpu[1], cpu[1], atol=1e-5)


def test_viterbi(batch):
    scores, lengths, _, automata = batch
    cpu, gpu = on_both(viterbi, scores, lengths, automata)
    np.testing.assert_array_equal(gpu[0], cpu[0])
    np.testing.assert_allclose(gpu[1], cpu[1], rtol=1e-6)


def test_ctc_loss():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, 50, 20)).astype(np.float32)
    labels = rng.integers(1, 20, (4, 12))
    step = jax.value_and_grad(
        lambda x: jnp.sum(ctc_loss(x, np.zeros((4, 50)), labels, np.zeros((4, 12))))
    )
    cpu, gpu = on_both(step, logits)
    np.testing.assert_allclose(gpu[0], cpu[0], rtol=1e-6)
    np.testing.assert_allclose(gpu[1], cpu[1], atol=1e-5)


def test_sprint_loss(batch, golden_dir: Path):
    scores, lengths, tags, automata = batch
    options = SprintOptions(config="--config=config/a_mono3_default.config", cwd=golden_dir)
    with SprintInstancePool(options) as pool:
        step = jax.value_and_grad(lambda s, n, t: jnp.sum(sprint_loss(s, n, t, sprint=pool)))
        cpu, gpu = on_both(step, scores, lengths, encode_tags(tags))
    np.testing.assert_allclose(gpu[0], cpu[0], rtol=1e-6)
    np.testing.assert_allclose(gpu[1], cpu[1], atol=1e-6)
    want = jax.grad(lambda s: jnp.sum(full_sum_loss(s, lengths, automata)))(scores)
    np.testing.assert_allclose(gpu[1], want, atol=1e-5)
