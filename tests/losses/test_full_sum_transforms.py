"""`full_sum_loss` under jit, vmap, scan, remat and shard_map; learnable weights in all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_sprint import Automata, ctc_loss, full_sum_loss

B, T, L = 4, 20, 6
RNG = np.random.default_rng(0)
AUTOMATA = Automata.from_edges(*oracles.hmm_like(RNG, B, 4, L), num_labels=L)
X = RNG.normal(size=(T, B, L)).astype(np.float32)
LENGTHS = np.array([20, 17, 19, 15])


def objective(x, weights, lengths=LENGTHS, automata=AUTOMATA):
    return full_sum_loss(x, lengths, automata.with_weights(weights)).sum()


@pytest.fixture(scope="module")
def plain():
    """Loss and gradients without any transformation but jit."""
    return jax.jit(jax.value_and_grad(objective, (0, 1)))(X, AUTOMATA.weights)


def close(got, wanted) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, wanted)


def test_eager(plain) -> None:
    close(jax.value_and_grad(objective, (0, 1))(X, AUTOMATA.weights), plain)


def test_automata_as_argument_and_as_constant(plain) -> None:
    traced = jax.jit(
        lambda x, automata: jax.value_and_grad(objective, (0, 1))(
            x, automata.weights, automata=automata
        )
    )
    close(traced(X, AUTOMATA), plain)


def test_recompiles_only_for_new_shapes() -> None:
    rng = np.random.default_rng(1)
    traces = []

    @jax.jit
    def step(x, lengths, automata):
        traces.append(1)
        return full_sum_loss(x, lengths, automata)

    for phones in (10, 11, 12):
        step(X, LENGTHS, Automata.from_edges(*oracles.hmm_like(rng, B, phones, L), num_labels=L))
    assert len(traces) <= 2


def test_vmap(plain) -> None:
    both = jnp.stack([jnp.asarray(X), 2 * jnp.asarray(X)])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(objective, (0, 1)), in_axes=(0, None)))(
        both, AUTOMATA.weights
    )
    close((values[0], jax.tree.map(lambda g: g[0], gradients)), plain)
    one_by_one = jax.jit(
        jax.vmap(
            lambda x, length, automata: full_sum_loss(
                x[:, None], length[None], jax.tree.map(lambda leaf: leaf[None], automata)
            )[0],
            in_axes=(1, 0, 0),
        )
    )(X, LENGTHS, AUTOMATA)
    np.testing.assert_allclose(one_by_one.sum(), plain[0], rtol=1e-6)


def test_scan_and_remat(plain) -> None:
    @jax.jit
    def run(x, weights):
        def total(x, weights):
            def body(carry, scale):
                return carry + jax.checkpoint(objective)(scale * x, weights), None

            return jax.lax.scan(body, jnp.zeros(()), jnp.ones(2))[0]

        return jax.value_and_grad(total, (0, 1))(x, weights)

    close(run(X, AUTOMATA.weights), jax.tree.map(lambda a: 2 * a, plain))


def test_forward_mode(plain) -> None:
    rng = np.random.default_rng(2)
    d_x = rng.normal(size=X.shape).astype(np.float32)
    d_w = rng.normal(size=AUTOMATA.weights.shape).astype(np.float32)
    _, change = jax.jit(lambda *d: jax.jvp(objective, (X, AUTOMATA.weights), d))(d_x, d_w)
    expected = (plain[1][0] * d_x).sum() + (plain[1][1] * d_w).sum()
    np.testing.assert_allclose(change, expected, rtol=1e-4)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_shard_map(plain, check_vma: bool, axis_type: AxisType, where: str) -> None:
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis_type,))
    specs = (P(None, "batch"), P("batch"), P("batch"), P("batch"))

    if where == "inside":

        def local(x, weights, lengths, automata):
            value, gradients = jax.value_and_grad(objective, (0, 1))(x, weights, lengths, automata)
            return jax.lax.psum(value, "batch"), gradients

        run = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=specs,
            out_specs=(P(), (P(None, "batch"), P("batch"))),
            check_vma=check_vma,
        )
    else:

        def local(x, weights, lengths, automata):
            return full_sum_loss(x, lengths, automata.with_weights(weights))

        losses = jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=P("batch"), check_vma=check_vma
        )

        def run(x, weights, lengths, automata):
            return jax.value_and_grad(lambda x, w: losses(x, w, lengths, automata).sum(), (0, 1))(
                x, weights
            )

    with jax.set_mesh(mesh):
        arguments = [
            jax.device_put(value, jax.tree.map(lambda _, s=spec: NamedSharding(mesh, s), value))
            for value, spec in zip((X, AUTOMATA.weights, LENGTHS, AUTOMATA), specs, strict=True)
        ]
        close(jax.jit(run)(*arguments), plain)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_replicated_automaton_with_learnable_weights(where: str) -> None:
    """Each device sums over its sequences; the gradient of the shared weights over all."""
    shared = AUTOMATA[0].shared()
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))

    def total(x, weights, lengths):
        return objective(x, weights, lengths, shared)

    wanted = jax.jit(jax.value_and_grad(total, (0, 1)))(X, shared.weights, LENGTHS)
    specs = (P(None, "batch"), P(), P("batch"))

    def everywhere(x, weights, lengths):
        return jax.lax.psum(total(x, weights, lengths), "batch")

    if where == "inside":
        run = jax.shard_map(
            lambda *a: jax.value_and_grad(everywhere, (0, 1))(*a),
            mesh=mesh,
            in_specs=specs,
            out_specs=(P(), (P(None, "batch"), P())),
        )
    else:
        sharded = jax.shard_map(everywhere, mesh=mesh, in_specs=specs, out_specs=P())
        run = jax.value_and_grad(sharded, (0, 1))
    close(jax.jit(run)(X, shared.weights, LENGTHS), wanted)


def test_automatic_sharding(plain) -> None:
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, P(None, "batch")))
    close(jax.jit(jax.value_and_grad(objective, (0, 1)))(x, AUTOMATA.weights), plain)


@pytest.mark.parametrize("check_vma", [True, False])
def test_ctc_loss_in_shard_map(check_vma: bool) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(B, T, L)).astype(np.float32)
    labels = rng.integers(1, L, (B, 5))
    paddings = np.zeros((B, T), np.float32), np.zeros((B, 5), np.float32)

    def loss(logits, logit_paddings, labels, label_paddings):
        return ctc_loss(logits, logit_paddings, labels, label_paddings)

    arguments = (logits, paddings[0], labels, paddings[1])
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(
        loss, mesh=mesh, in_specs=(P("batch"),) * 4, out_specs=P("batch"), check_vma=check_vma
    )
    wanted = jax.jit(jax.value_and_grad(lambda x: loss(x, *arguments[1:]).sum()))(logits)
    got = jax.jit(jax.value_and_grad(lambda x: sharded(x, *arguments[1:]).sum()))(logits)
    close(got, wanted)
