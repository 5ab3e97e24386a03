"""`ctc_loss` against optax, and where it is better."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from jax_sprint import Automata, ctc_loss, full_sum_loss, topologies

pytestmark = pytest.mark.optimized
B, T, K, N = 5, 24, 8, 6


def batch(seed: int, repeats: bool = False):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.normal(size=(B, T, K))).astype(np.float32)
    logit_paddings = (np.arange(T) >= rng.integers(14, T + 1, B)[:, None]).astype(np.float32)
    labels = np.full((B, N), 3) if repeats else rng.integers(1, K, (B, N))
    label_paddings = (np.arange(N) >= np.array([6, 3, 0, 1, 5])[:, None]).astype(np.float32)
    return logits, logit_paddings, labels, label_paddings


@partial(jax.jit, static_argnames=("function", "blank_id"))
def value_and_gradient(function, logits, *rest, blank_id=0):
    def total(logits):
        loss = function(logits, *rest, blank_id=blank_id)
        return loss.sum(), loss

    return jax.value_and_grad(total, has_aux=True)(logits)


def both(*arguments, **options):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wanted = value_and_gradient(optax.ctc_loss, *arguments, **options)
    return value_and_gradient(ctc_loss, *arguments, **options), wanted


@pytest.mark.parametrize("blank_id", [0, K - 1])
@pytest.mark.parametrize("repeats", [False, True])
def test_agrees_with_optax(blank_id: int, repeats: bool) -> None:
    logits, logit_paddings, labels, label_paddings = batch(0, repeats)
    if blank_id:
        labels = labels - 1
    ((_, loss), gradient), ((_, wanted), expected) = both(
        logits, logit_paddings, labels, label_paddings, blank_id=blank_id
    )
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, atol=2e-4)


def test_padding_frames_may_lie_anywhere() -> None:
    logits, _, labels, label_paddings = batch(1)
    holes = (np.random.default_rng(1).random((B, T)) < 0.2).astype(np.float32)
    ((_, loss), gradient), ((_, wanted), _) = both(
        logits, holes, labels, label_paddings, blank_id=0
    )
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert not np.asarray(gradient)[holes == 1].any()
    logits[holes == 1] = np.nan
    np.testing.assert_array_equal(ctc_loss(logits, holes, labels, label_paddings), loss)


def test_agrees_with_the_topology_and_float64() -> None:
    logits, logit_paddings, labels, label_paddings = batch(2)
    lengths = (logit_paddings == 0).sum(axis=1)
    sizes = (label_paddings == 0).sum(axis=1)
    log_posteriors = jax.nn.log_softmax(logits)
    packed = topologies.ctc(labels, sizes)
    fsa = full_sum_loss(log_posteriors, lengths, packed, time_major=False)
    loss = ctc_loss(logits, logit_paddings, labels, label_paddings)
    np.testing.assert_allclose(loss, fsa, rtol=1e-5)
    automata = oracles.ctc_like(labels, sizes)
    assert isinstance(packed, Automata)
    for b in range(B):
        x = np.asarray(logits[b, : lengths[b]], float)
        x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
        answer = oracles.by_dynamic_programming(automata, b, x)
        np.testing.assert_allclose(loss[b], answer.loss, rtol=1e-6)


def test_what_has_no_alignment_costs_minus_log_epsilon() -> None:
    logits, logit_paddings, labels, label_paddings = batch(3, repeats=True)
    logit_paddings[0, 10:] = 1.0  # six equal labels need eleven frames

    def total(logits, **options):
        loss = ctc_loss(logits, logit_paddings, labels, label_paddings, **options)
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(logits)
    assert loss[0] == 1e5
    assert not np.asarray(gradient[0]).any()
    assert np.abs(gradient[1]).max() > 0
    assert total(logits, log_epsilon=-np.inf)[1][0] == np.inf


def test_bad_values_touch_one_sequence_only() -> None:
    logits, logit_paddings, labels, label_paddings = batch(4)
    wanted = ctc_loss(logits, logit_paddings, labels, label_paddings)
    logits[1, 2, 3] = np.nan
    labels[4, 0] = K
    padding = np.broadcast_to((logit_paddings != 0)[:, :, None], logits.shape)
    assert padding.any()
    logits[padding] = np.resize([np.nan, np.inf, -np.inf], int(padding.sum()))
    gradient, loss = jax.jit(
        jax.grad(
            lambda x, y: (lambda loss: (loss.sum(), loss))(
                ctc_loss(x, logit_paddings, y, label_paddings)
            ),
            has_aux=True,
        )
    )(logits, labels)
    assert np.isnan(loss).tolist() == [False, True, False, False, True]
    np.testing.assert_allclose(loss[jnp.array([0, 2, 3])], wanted[jnp.array([0, 2, 3])], rtol=1e-6)
    assert not np.asarray(gradient[jnp.array([1, 4])]).any()
    assert not np.asarray(gradient)[padding].any()
    assert np.abs(gradient[jnp.array([0, 2, 3])]).max(axis=(1, 2)).all()


def test_bfloat16_gives_a_float32_loss_and_its_own_gradient() -> None:
    logits, *rest = batch(5)
    half = jnp.asarray(logits, jnp.bfloat16)
    loss, gradient = jax.jit(jax.value_and_grad(lambda x: ctc_loss(x, *rest).sum()))(half)
    wanted = ctc_loss(half.astype(jnp.float32), *rest).sum()
    assert (loss.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


def test_empty_extents() -> None:
    nothing = np.zeros((2, 0, K), np.float32), np.zeros((2, 0), np.float32)
    labels = np.ones((2, 1), int), np.array([[0.0], [1.0]], np.float32)
    assert ctc_loss(*nothing, *labels).tolist() == [1e5, 0.0]
    logits = np.zeros((2, 3, K), np.float32)
    none = np.zeros((2, 0), int), np.zeros((2, 0), np.float32)
    loss = ctc_loss(logits, np.zeros((2, 3), np.float32), *none)
    np.testing.assert_allclose(loss, 3 * np.log(K), rtol=1e-6)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, np.zeros((B, T), np.float32), r"logits must be a float array \[B, T, K\]"),
        (0, np.zeros((B, T, K), np.int32), "logits must be a float array.*got int32"),
        (1, np.zeros((B, T + 1), np.float32), "logit_paddings must have shape"),
        (2, np.zeros((B, N), np.float32), "labels must be an integer array"),
        (2, np.zeros((B + 1, N), np.int32), "labels must be an integer array"),
        (2, np.full((B, N), K), r"labels\[0, 0\] is 8, but logits has 8 labels"),
        (3, np.zeros((B, N + 1), np.float32), "label_paddings must have shape"),
    ],
)
def test_bad_arguments_are_named(place: int, value: np.ndarray, message: str) -> None:
    arguments = list(batch(6))
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        ctc_loss(*arguments)


def test_blank_out_of_range() -> None:
    with pytest.raises(ValueError, match="blank_id is 8"):
        ctc_loss(*batch(6), blank_id=K)
