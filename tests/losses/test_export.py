"""`jax.export` of the losses: symbolic numbers of frames and sequences, and the way to disk."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import export

from jax_sprint import Automata, full_sum_loss

L = 6


def batch(seed: int, size: int, frames: int) -> tuple[np.ndarray, np.ndarray, Automata]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(frames, size, L)).astype(np.float32)
    lengths = (frames - np.arange(size)).astype(np.int32)
    return x, lengths, Automata.from_edges(*oracles.hmm_like(rng, size, 1, L), num_labels=L)


@jax.jit
def step(x: Any, lengths: Any, automata: Automata) -> Any:
    def total(x: Any, weights: Any) -> Any:
        return full_sum_loss(x, lengths, automata.with_weights(weights)).sum()

    return jax.value_and_grad(total, (0, 1))(x, automata.weights)


def check(called: Any, arguments: tuple) -> None:
    wanted = step(*arguments)
    assert np.isfinite(wanted[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), called, wanted
    )


def test_symbolic_frames_and_sequences() -> None:
    b, t = export.symbolic_shape("b, t")
    x, lengths, automata = batch(0, 3, 14)

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *leaf.shape[1:]), leaf.dtype)

    exported = export.export(step)(
        jax.ShapeDtypeStruct((t, b, L), jnp.float32),
        jax.ShapeDtypeStruct((b,), jnp.int32),
        jax.tree.map(shape, automata),
    )
    check(exported.call(x, lengths, automata), (x, lengths, automata))
    rng = np.random.default_rng(1)
    other = Automata.from_edges(*oracles.hmm_like(rng, 5, 1, L), num_labels=L, pad_to=automata)
    x, lengths, _ = batch(1, 5, 23)
    check(exported.call(x, lengths, other), (x, lengths, other))


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stored_program_takes_automata_and_has_a_gradient(shared: bool) -> None:
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    x, lengths, automata = batch(0, 3, 14)
    if shared:
        automata = automata[0].shared()

    @jax.jit
    def loss(x: Any, lengths: Any, automata: Automata) -> Any:
        return full_sum_loss(x, lengths, automata, infeasible="zero").sum()

    stored = export.export(loss)(x, lengths, automata).serialize(vjp_order=1)
    again = export.deserialize(bytearray(stored))
    np.testing.assert_allclose(
        again.call(x, lengths, automata), loss(x, lengths, automata), rtol=1e-6
    )
    found = jax.grad(lambda x: again.call(x, lengths, automata))(x)
    wanted = jax.grad(lambda x: loss(x, lengths, automata))(x)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-6)
