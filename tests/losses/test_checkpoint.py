"""`full_sum_loss(checkpoint=True)` gives what `full_sum_loss` gives, in less memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_sprint import Automata, full_sum_loss

L = 6
LENGTHS = np.array([50, 33, 1, 0, 41])


def batch(form: str) -> Automata:
    rng = np.random.default_rng(0)
    edges = oracles.hmm_like(rng, 5, 2, L)
    return Automata.from_edges(
        *edges, num_labels=L, pad_to={"band": 0} if form == "tables" else None
    )


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(50, 5, L)).astype(np.float32), rng.normal(size=L).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["band", "tables"])
@pytest.mark.parametrize("time_major", [True, False])
def test_same_values_and_gradients(form: str, time_major: bool) -> None:
    automata, (x, prior) = batch(form), inputs()
    x[40:, 1] = np.nan  # padding
    if not time_major:
        x = np.swapaxes(x, 0, 1)

    def total(x, weights, prior, scales, checkpoint):
        loss, valid = full_sum_loss(
            x,
            LENGTHS,
            automata.with_weights(weights),
            am_scale=scales[0],
            tdp_scale=scales[1],
            log_prior=prior,
            prior_scale=scales[2],
            checkpoint=checkpoint,
            return_valid=True,
            time_major=time_major,
        )
        return jnp.where(valid, loss, 0.0).sum(), loss

    arguments = (x, automata.weights, prior, np.array([0.7, 1.3, 0.4], np.float32))
    found, wanted = (
        jax.jit(
            jax.value_and_grad(lambda *a, c=checkpoint: total(*a, c), (0, 1, 2, 3), has_aux=True)
        )(*arguments)
        for checkpoint in (True, False)
    )
    assert np.isfinite(wanted[0][1]).sum() == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, wanted)


@pytest.mark.slow
def test_second_derivatives() -> None:
    automata, (x, _) = batch("band"), inputs()

    def product(checkpoint):
        def total(x):
            return full_sum_loss(
                x, LENGTHS, automata, infeasible="zero", checkpoint=checkpoint
            ).sum()

        return jax.jit(lambda x: jax.jvp(jax.grad(total), (x,), (x,))[1])(x)

    wanted = product(False)
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(product(True), wanted, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_in_shard_map(check_vma: bool) -> None:
    automata, (x, _) = batch("band"), inputs()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))

    def step(x, lengths, automata):
        def total(x):
            loss = full_sum_loss(x, lengths, automata, infeasible="zero", checkpoint=True)
            return loss.sum()

        return jax.grad(total)(x)

    spec = (P(None, "data"), P("data"), P("data"))
    sharded = jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=spec, out_specs=P(None, "data"), check_vma=check_vma
        )
    )
    np.testing.assert_allclose(sharded(x, LENGTHS, automata), step(x, LENGTHS, automata), atol=1e-6)


@pytest.mark.optimized
def test_memory_grows_with_the_root_of_the_frames() -> None:
    """XLA's own account of what it allocates, beside arguments and results."""
    rng = np.random.default_rng(0)
    automata = Automata.from_edges(*oracles.hmm_like(rng, 1, 60, 8), num_labels=8)
    nodes = automata.sizes["nodes"]

    def temporary(frames: int, checkpoint: bool | None) -> int:
        def step(x, lengths):
            return jax.value_and_grad(
                lambda x: full_sum_loss(x, lengths, automata, checkpoint=checkpoint).sum()
            )(x)

        x = jax.ShapeDtypeStruct((frames, 1, 8), jnp.float32)
        lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
        return jax.jit(step).lower(x, lengths).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(1600, True), temporary(6400, True)
    log_posteriors = 6400 * 8 * 4
    # Four times the frames: twice the part that is by nodes, four times that by labels.
    assert large < 2.5 * small + 6 * log_posteriors
    assert large < temporary(6400, False) / 8
    assert large < 100 * np.sqrt(6400) * nodes * 4 + 6 * log_posteriors
    # Left open, the sizes decide.
    assert temporary(1600, None) == temporary(1600, False)
    many = (1 << 27) // (16 * nodes)
    assert temporary(many, None) < temporary(many, False) / 8
