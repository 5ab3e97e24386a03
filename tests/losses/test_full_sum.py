"""`full_sum_loss` against path enumeration and float64 dynamic programming: values, gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jax_sprint import Automata, full_sum_loss

T, B, L = 5, 3, 4
SIZES = {
    "edges": 64, "states": 8, "nodes": 24, "slots": 4, "band": 0, "in_arcs": 48, "out_arcs": 48
}  # fmt: skip


@jax.jit
def loss_and_gradients(log_posteriors, lengths, automata, weights, am_scale, tdp_scale, prior, ps):
    def total(log_posteriors, weights, am_scale, tdp_scale, prior, ps):
        loss, valid = full_sum_loss(
            log_posteriors,
            lengths,
            automata.with_weights(weights),
            am_scale=am_scale,
            tdp_scale=tdp_scale,
            log_prior=prior,
            prior_scale=ps,
            return_valid=True,
        )
        return jnp.sum(jnp.where(valid, loss, 0.0)), (loss, valid)

    (_, (loss, valid)), gradients = jax.value_and_grad(total, range(6), has_aux=True)(
        log_posteriors, weights, am_scale, tdp_scale, prior, ps
    )
    return loss, valid, gradients


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([1.0, 30.0, 300.0]),
    scales=st.tuples(*[st.floats(0.1, 2.0)] * 3),
    gaps=st.booleans(),
    interleave=st.booleans(),
    density=st.sampled_from([0.2, 0.5, 0.9]),
)
@example(seed=9724, spread=300.0, scales=(1, 1, 1.5), gaps=True, interleave=True, density=0.5)
@settings(max_examples=120, deadline=None)
def test_everything_against_all_paths(seed, spread, scales, gaps, interleave, density) -> None:
    rng = np.random.default_rng(seed)
    automata = oracles.random_automata(rng, B, gaps=gaps, interleave=interleave, density=density)
    x = (spread * rng.normal(size=(T, B, L))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = -np.inf
    lengths = rng.integers(0, T + 1, B)
    am, tdp, ps = (np.float32(scale) for scale in scales)
    prior = rng.normal(size=L).astype(np.float32)
    packed = Automata.from_edges(*automata, num_labels=L, pad_to=SIZES)
    loss, valid, gradients = loss_and_gradients(
        x, lengths, packed, packed.weights, am, tdp, prior, ps
    )
    expected = [np.zeros(x.shape), None, 0.0, 0.0, np.zeros(L), 0.0]
    tolerance = 2e-5 * max(1.0, spread)  # one float32 rounding of a score of this size
    for b in range(B):
        real = x[: lengths[b], b]
        scores = oracles.frame_scores(real, am_scale=am, log_prior=prior, prior_scale=ps)
        answer = oracles.by_enumeration(automata, b, scores, float(tdp))
        assert bool(valid[b]) == (answer.loss < np.inf)
        # Each frame's score is rounded once, and large ones may cancel in the sum.
        largest = np.max(np.abs(scores), initial=1.0, where=np.isfinite(scores))
        rounding = 2e-5 + lengths[b] * np.spacing(np.float32(largest))
        np.testing.assert_allclose(loss[b], answer.loss, rtol=2e-6, atol=rounding)
        uses = answer.edge_uses
        got = np.asarray(gradients[1][b])
        np.testing.assert_allclose(got[: len(uses)], tdp * uses, atol=tolerance)
        assert not got[len(uses) :].any()
        expected[0][: lengths[b], b] = -am * answer.posteriors
        expected[2] -= (answer.posteriors * np.where(answer.posteriors > 0, real, 0.0)).sum()
        weights = automata.weights[automata.edges[3] == b]
        expected[3] += (uses * weights).sum()
        expected[4] += ps * answer.posteriors.sum(axis=0)
        expected[5] += (answer.posteriors * prior).sum()
    np.testing.assert_allclose(gradients[0], expected[0], atol=tolerance)
    for got, wanted in zip(gradients[2:], expected[2:], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=15 * tolerance)


def dynamic_programming_agrees(automata, x, lengths, packed, rtol=1e-6, atol=1e-5) -> None:
    def total(x):
        loss = full_sum_loss(x, lengths, packed)
        return jnp.sum(jnp.where(jnp.isfinite(loss), loss, 0.0)), loss

    (_, loss), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(x)
    for b in range(x.shape[1]):
        answer = oracles.by_dynamic_programming(automata, b, x[: lengths[b], b].astype(float))
        np.testing.assert_allclose(loss[b], answer.loss, rtol=rtol)
        np.testing.assert_allclose(-gradient[: lengths[b], b], answer.posteriors, atol=atol)
        assert not np.asarray(gradient[lengths[b] :, b]).any()


@pytest.mark.parametrize("form", ["band", "tables"])
@pytest.mark.parametrize("kind", ["hmm", "ctc"])
def test_band_and_tables_agree_with_dynamic_programming(form: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "hmm":
        automata = oracles.hmm_like(rng, 4, 8, 30)
    else:
        automata = oracles.ctc_like(rng.integers(1, 6, (4, 12)), rng.integers(0, 13, 4))
    packed = Automata.from_edges(*automata, pad_to=None if form == "band" else {"band": 0})
    assert (packed.band > 0) == (form == "band")
    x = np.asarray(jax.nn.log_softmax(5 * rng.normal(size=(60, 4, 30)).astype(np.float32)))
    dynamic_programming_agrees(automata, x, np.array([60, 55, 30, 44]), packed)


@pytest.mark.parametrize(
    "name", ["a_mono3_default", "b_ctc_blank", "b_rna_blank", "d_tdp_skip", "e_pron_score"]
)
def test_automata_of_the_real_rasr(golden_dir, name: str) -> None:
    data = np.load(golden_dir / f"{name}.npz")
    automata = oracles.EdgeList(data["edges"], data["weights"], data["start_end_states"])
    rng = np.random.default_rng(1)
    labels = int(automata.edges[2].max()) + 1
    batch = automata.start_end_states.shape[1]
    x = rng.normal(size=(250, batch, labels)).astype(np.float32)
    lengths = rng.integers(150, 251, batch)
    dynamic_programming_agrees(automata, x, lengths, Automata.from_edges(*automata))


@pytest.mark.parametrize(
    ("form", "order"), [pytest.param("band", 2, marks=pytest.mark.slow), ("tables", 1)]
)
def test_derivatives_in_float64(form: str, order: int) -> None:
    rng = np.random.default_rng(3)
    automata = oracles.hmm_like(rng, 2, 1, 5)
    with jax.enable_x64(True):
        packed = Automata.from_edges(*automata, pad_to=None if form == "band" else {"band": 0})
        x, prior = rng.normal(size=(14, 2, 5)), rng.normal(size=5)

        @jax.jit
        def loss(x, weights, prior, scales):
            return full_sum_loss(
                x,
                np.array([14, 13]),
                packed.with_weights(weights),
                am_scale=scales[0],
                tdp_scale=scales[1],
                log_prior=prior,
                prior_scale=scales[2],
            )

        arguments = (x, packed.weights.astype(np.float64), prior, np.array([0.7, 1.3, 0.4]))
        assert loss(*arguments).dtype == jnp.float64
        check_grads(loss, arguments, order=order, modes=["rev"], rtol=1e-5, atol=1e-5)
        if order == 1:
            check_grads(loss, arguments, order=1, modes=["fwd"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_hessian_vector_product_is_the_covariance() -> None:
    """The Hessian is minus the covariance of label indicators: here, from all paths."""
    rng = np.random.default_rng(5)
    automata = oracles.random_automata(rng, 1, max_states=4, density=0.9)
    x = rng.normal(size=(4, 1, 4)).astype(np.float32)
    packed = Automata.from_edges(*automata, pad_to=SIZES)

    def loss(x):
        return full_sum_loss(x, np.array([4]), packed)[0]

    direction = rng.normal(size=x.shape).astype(np.float32)
    over = jax.jit(lambda x, d: jax.jvp(jax.grad(loss), (x,), (d,))[1])(x, direction)
    back = jax.jit(jax.grad(lambda x, d: jnp.sum(jax.grad(loss)(x) * d)))(x, direction)
    paths = oracles.enumerate_paths(automata, 0, 4)
    frames = np.arange(4)
    scores = np.array([x[frames, 0, list(p[0])].sum() - p[2] for p in paths])
    share = np.exp(scores - oracles.log_sum(scores))
    hot = np.zeros((len(paths), 4, 4))
    for row, path in zip(hot, paths, strict=True):
        row[frames, list(path[0])] = 1
    along = (hot * direction[:, 0]).sum(axis=(1, 2))
    mean = (share[:, None, None] * hot).sum(axis=0)
    covariance = (share[:, None, None] * hot * along[:, None, None]).sum(axis=0)
    expected = -(covariance - mean * (share * along).sum())
    np.testing.assert_allclose(over[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(back[:, 0], expected, atol=1e-5)


def test_batch_major_and_shared_automata() -> None:
    rng = np.random.default_rng(6)
    automata = oracles.hmm_like(rng, 1, 4, 6)
    packed = Automata.from_edges(*automata)
    x = rng.normal(size=(20, 3, 6)).astype(np.float32)
    lengths = np.array([20, 17, 15])
    tiled = Automata.concat([packed] * 3)

    @partial(jax.jit, static_argnames="time_major")
    def run(x, automata, time_major=True):
        def total(x):
            loss = full_sum_loss(x, lengths, automata, time_major=time_major)
            return loss.sum(), loss

        return jax.value_and_grad(total, has_aux=True)(x)

    (_, wanted), gradient = run(x, tiled)
    (_, shared), shared_gradient = run(x, packed.shared())
    (_, major), major_gradient = run(np.swapaxes(x, 0, 1), tiled, time_major=False)
    np.testing.assert_allclose(shared, wanted, rtol=1e-6)
    np.testing.assert_allclose(major, wanted, rtol=1e-6)
    np.testing.assert_allclose(shared_gradient, gradient, atol=1e-6)
    np.testing.assert_allclose(jnp.swapaxes(major_gradient, 0, 1), gradient, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_accumulates_in_float32(dtype) -> None:
    rng = np.random.default_rng(7)
    packed = Automata.from_edges(*oracles.hmm_like(rng, 2, 4, 6))
    x = jnp.asarray(rng.normal(size=(200, 2, 6)), dtype)
    lengths = np.array([200, 180])

    @jax.jit
    def run(x):
        return jax.value_and_grad(lambda x: full_sum_loss(x, lengths, packed).sum())(x)

    loss, gradient = run(x)
    wanted, full = run(x.astype(jnp.float32))
    assert (loss.dtype, gradient.dtype) == (jnp.float32, dtype)
    assert loss == wanted
    np.testing.assert_allclose(gradient.astype(jnp.float32), full, atol=4e-3)
