"""`full_sum_loss(from_logits=True)` is `full_sum_loss` of the log_softmax, bad values included."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from jax_sprint import Automata, full_sum_loss

T, L = 24, 7
LENGTHS = np.array([24, 15, 1, 0, 20, 18])
B = len(LENGTHS)


def edges() -> oracles.EdgeList:
    return oracles.hmm_like(np.random.default_rng(0), B, 2, L)


def logits(spread: float = 3.0) -> np.ndarray:
    return (spread * np.random.default_rng(1).normal(size=(T, B, L)) + 2).astype(np.float32)


PRIOR = np.linspace(-3, -1, L).astype(np.float32)
SCALES = np.array([0.7, 1.3, 0.4], np.float32)


@partial(jax.jit, static_argnames=("from_logits", "checkpoint", "time_major"))
def run(x, automata, from_logits=True, checkpoint=None, time_major=True):
    """Loss, valid, and the gradients with respect to logits, prior and scales."""

    def loss(x, prior, scales):
        return full_sum_loss(
            x if from_logits else jax.nn.log_softmax(x),
            LENGTHS,
            automata,
            am_scale=scales[0],
            tdp_scale=scales[1],
            log_prior=prior,
            prior_scale=scales[2],
            from_logits=from_logits,
            checkpoint=checkpoint,
            return_valid=True,
            time_major=time_major,
        )

    value, pull, valid = jax.vjp(loss, x, PRIOR, SCALES, has_aux=True)
    return value, valid, pull(jnp.where(valid, 1.0, 0.0).astype(value.dtype))


@pytest.mark.parametrize("form", ["band", "tables", "shared", "checkpoint", "batch major"])
def test_same_loss_and_gradients(form: str) -> None:
    triple, options = edges(), {}
    if form == "shared":
        first = oracles.hmm_like(np.random.default_rng(2), 1, 2, L)
        automata = Automata.from_edges(*first, num_labels=L, shared=True)
    else:
        automata = Automata.from_edges(
            *triple, num_labels=L, pad_to={"band": 0} if form == "tables" else None
        )
    x = logits()
    if form == "checkpoint":
        options["checkpoint"] = True
    if form == "batch major":
        x, options["time_major"] = np.swapaxes(x, 0, 1).copy(), False
    found = run(x, automata, **options)
    wanted = run(x, automata, from_logits=False, **options)
    assert np.isfinite(wanted[0]).sum() >= 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, wanted)


@pytest.mark.optimized
@pytest.mark.parametrize("form", ["band", "shared"])
@pytest.mark.parametrize("where", ["valid", "padding"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_values(where: str, value: float, form: str) -> None:
    """They stay in their sequence, and in padding they are nothing at all."""
    if form == "shared":
        first = oracles.hmm_like(np.random.default_rng(2), 1, 2, L)
        automata = Automata.from_edges(*first, num_labels=L, shared=True)
    else:
        automata = Automata.from_edges(*edges(), num_labels=L)
    clean = logits()
    x = clean.copy()
    if where == "valid":
        x[3, 1, 2] = value
    else:
        x[15:, 1] = value
    loss, valid, (gradient, *_) = run(x, automata)
    base, base_valid, (base_gradient, *_) = run(clean, automata)
    others = np.arange(B) != 1
    np.testing.assert_array_equal(loss[others], base[others])
    np.testing.assert_array_equal(gradient[:, others], base_gradient[:, others])
    assert not np.asarray(gradient)[np.arange(T)[:, None] >= LENGTHS].any()
    if where == "padding":
        assert loss[1] == base[1]
        np.testing.assert_array_equal(gradient, base_gradient)
    elif value == -np.inf:
        assert base_valid[1]
        assert valid[1]
        assert np.isfinite(gradient).all()
        assert gradient[3, 1, 2] == 0
    else:
        assert np.isnan(loss[1])
        assert not valid[1]
        assert not np.asarray(gradient[:, 1]).any()


@pytest.mark.optimized
def test_large_logits_lose_no_digits() -> None:
    """A constant per frame changes nothing: not even a digit."""
    automata = Automata.from_edges(*edges(), num_labels=L)
    x = np.round(8 * logits()).astype(np.float32) / 8
    shift = np.float32(2.0**13) * np.arange(-12, 12, dtype=np.float32)[:, None, None]
    moved, _, (gradient, *_) = run(x + shift, automata)
    loss, _, (wanted, *_) = run(x, automata)
    np.testing.assert_array_equal(moved, loss)
    np.testing.assert_array_equal(gradient, wanted)


def test_low_precision_is_computed_in_float32() -> None:
    automata = Automata.from_edges(*edges(), num_labels=L)
    x = logits().astype(jnp.bfloat16)
    loss = full_sum_loss(x, LENGTHS, automata, from_logits=True)
    assert loss.dtype == jnp.float32
    wanted = full_sum_loss(x.astype(np.float32), LENGTHS, automata, from_logits=True)
    np.testing.assert_array_equal(loss, wanted)


@pytest.mark.slow
def test_derivatives_in_float64() -> None:
    with jax.enable_x64(True):
        automata = Automata.from_edges(*edges(), num_labels=L)
        x = logits(1.0).astype(np.float64)

        def loss(x, scale):
            value = full_sum_loss(
                x, LENGTHS, automata, am_scale=scale, from_logits=True, infeasible="zero"
            )
            return value.sum()

        check_grads(jax.jit(loss), (x, 0.8), order=2, atol=1e-5, rtol=1e-5, eps=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["band", "checkpoint"])
def test_second_derivatives_ignore_padding(form: str) -> None:
    """NaN and inf there are neither in a product with the Hessian, nor do they make it NaN."""
    automata = Automata.from_edges(*edges(), num_labels=L)
    clean, along = logits(), np.random.default_rng(3).normal(size=(T, B, L)).astype(np.float32)
    padded = np.arange(T)[:, None] >= LENGTHS
    bad = clean.copy()
    bad[padded] = np.tile(np.array([np.nan, np.inf, -np.inf, 1e38, 0, 1, 2], np.float32), (1, 1))

    def loss(x):
        return full_sum_loss(
            x,
            LENGTHS,
            automata,
            from_logits=True,
            infeasible="zero",
            checkpoint=form == "checkpoint",
        ).sum()

    @jax.jit
    def products(x):
        gradient = jax.grad(loss)
        forward = jax.jvp(gradient, (x,), (along,))[1]
        reverse = jax.grad(lambda x: jnp.sum(gradient(x) * along))(x)
        return forward, reverse

    wanted = products(clean)
    assert np.abs(wanted[0]).max() > 1e-3
    for found, of_clean in zip(products(bad), wanted, strict=True):
        np.testing.assert_array_equal(found, of_clean)
        assert not np.asarray(found)[padded].any()
    np.testing.assert_allclose(*wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.optimized
def test_memory_is_that_of_the_recursions() -> None:
    """With many labels nothing of the logits' size is kept beside the gradient."""
    automata = Automata.from_edges(*edges(), num_labels=2000)
    lengths = np.full(B, 60)
    given = 60 * B * 2000 * 4

    def temporary(from_logits: bool, gradient: bool = True) -> int:
        def loss(x):
            y = x if from_logits else jax.nn.log_softmax(x)
            return full_sum_loss(y, lengths, automata, from_logits=from_logits).sum()

        x = jax.ShapeDtypeStruct((60, B, 2000), jnp.float32)
        compiled = jax.jit(jax.value_and_grad(loss) if gradient else loss).lower(x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    needed = temporary(True)
    assert needed < given  # not even the exponentials
    assert needed < temporary(False)
    assert temporary(True, gradient=False) < given


@pytest.mark.parametrize(
    ("name", "value"),
    [("from_logits", None), ("from_logits", np.ones(3)), ("checkpoint", "yes"), ("checkpoint", 2)],
)
def test_what_is_no_bool_is_refused(name: str, value: object) -> None:
    automata = Automata.from_edges(*edges(), num_labels=L)
    with pytest.raises(ValueError, match=f"{name} must be True"):
        full_sum_loss(logits(), LENGTHS, automata, **{name: value})
