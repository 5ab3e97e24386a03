"""A shared automaton under vmap, scan, remat, forward mode and shard_map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_sprint import Automata, full_sum_loss

GRAPH = oracles.chain()
AUTOMATA = Automata.from_edges(*GRAPH, num_labels=3, shared=True)
X = np.random.default_rng(8).normal(size=(9, 4, 3)).astype(np.float32)
LENGTHS = np.array([9, 4, 7, 2])


def objective(x, weights, lengths=LENGTHS):
    return full_sum_loss(x, lengths, AUTOMATA.with_weights(weights)).sum()


@pytest.fixture(scope="module")
def plain():
    return jax.jit(jax.value_and_grad(objective, (0, 1)))(X, AUTOMATA.weights)


def close(got, wanted) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, wanted)


def test_vmap_scan_remat_and_forward_mode(plain) -> None:
    both = jnp.stack([jnp.asarray(X), 2 * jnp.asarray(X)])
    mapped = jax.vmap(jax.value_and_grad(objective, (0, 1)), in_axes=(0, None))
    close(jax.tree.map(lambda a: a[0], jax.jit(mapped)(both, AUTOMATA.weights)), plain)

    @jax.jit
    def twice(x, weights):
        def body(carry, scale):
            return carry + jax.checkpoint(objective)(scale * x, weights), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.ones(2))[0]

    close(
        jax.value_and_grad(twice, (0, 1))(X, AUTOMATA.weights),
        jax.tree.map(lambda a: 2 * a, plain),
    )
    along = (X[::-1].copy(), np.ones(AUTOMATA.weights.shape, np.float32))
    _, change = jax.jit(lambda *d: jax.jvp(objective, (X, AUTOMATA.weights), d))(*along)
    expected = sum((g * d).sum() for g, d in zip(plain[1], along, strict=True))
    np.testing.assert_allclose(change, expected, rtol=1e-4)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_shard_map_with_learnable_weights(plain, check_vma: bool, axis_type: AxisType) -> None:
    """Each device sums over its sequences; the gradient of the shared weights over all."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis_type,))

    def local(x, weights, lengths):
        return jax.lax.psum(objective(x, weights, lengths), "batch")

    specs = (P(None, "batch"), P(), P("batch"))
    total = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
    with jax.set_mesh(mesh):
        arguments = [
            jax.device_put(value, jax.NamedSharding(mesh, spec))
            for value, spec in zip((X, AUTOMATA.weights, LENGTHS), specs, strict=True)
        ]
        close(jax.jit(jax.value_and_grad(total, (0, 1)))(*arguments), plain)


def test_runs_are_bit_for_bit_the_same(plain) -> None:
    run = jax.jit(jax.value_and_grad(objective, (0, 1)))
    for _ in range(3):
        again = run(X, AUTOMATA.weights)
        same = jax.tree.map(
            lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), again, plain
        )
        assert all(jax.tree.leaves(same))
