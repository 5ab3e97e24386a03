"""Where few of the labels occur in a graph, gradients reach them one by one: the same numbers.

The same automata, once with their own labels only and once with many more that none of them has.
"""

from __future__ import annotations

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from jax_sprint import Automata, ctc_loss, forward_backward, full_sum_loss, viterbi
from jax_sprint.kernels import _labels, _scores

T, FEW, MANY = 16, 7, 900
LENGTHS = np.array([16, 13, 1, 0, 14])
B = len(LENGTHS)
EDGES = oracles.hmm_like(np.random.default_rng(0), B, 2, FEW)
# Labels of the graphs, in no order, among the many.
PLACES = np.random.default_rng(5).choice(MANY, FEW, replace=False)


def few(dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(T, B, FEW)).astype(dtype)


def many(x: np.ndarray, rest: float = -1.5) -> np.ndarray:
    wide = np.full((T, B, MANY), rest, x.dtype)
    wide[:, :, PLACES] = x
    return wide


def automata(labels: int) -> Automata:
    edges, weights, ends = EDGES
    if labels == MANY:
        edges = edges.copy()
        edges[2] = PLACES[edges[2]]
    return Automata.from_edges(edges, weights, ends, num_labels=labels)


@partial(jax.jit, static_argnames=("checkpoint", "time_major", "from_logits"))
def run(x, automata, prior, scales, checkpoint=None, time_major=True, from_logits=False):
    """Loss, and the gradients with respect to scores, weights, prior and scales."""

    def loss(x, weights, prior, scales):
        losses = full_sum_loss(
            x,
            LENGTHS,
            Automata(**{**vars(automata), "weights": weights}),
            am_scale=scales[0],
            tdp_scale=scales[1],
            log_prior=prior,
            prior_scale=scales[2],
            checkpoint=checkpoint,
            time_major=time_major,
            from_logits=from_logits,
        )
        # Another factor for each, as a mean over some would have.
        factors = jnp.arange(1.0, B + 1, dtype=jnp.float32)
        return jnp.sum(jnp.where(jnp.isfinite(losses), losses * factors, 0.0)), losses

    found, losses = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(
        x, automata.weights, prior, scales
    )
    return losses, found


SCALES = np.array([0.7, 1.3, 0.4], np.float32)
PRIOR = np.linspace(-3, -1, FEW).astype(np.float32)


def wide_prior() -> np.ndarray:
    prior = np.zeros(MANY, np.float32)
    prior[PLACES] = PRIOR
    return prior


def test_these_are_few_and_those_are_many() -> None:
    slots = automata(MANY).slot_label.shape[1]
    assert _labels._is_sparse(MANY, slots)
    assert not _labels._is_sparse(FEW, slots)


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("time_major", [True, False])
def test_the_same_numbers(checkpoint, time_major) -> None:
    def turned(x):
        return x if time_major else np.ascontiguousarray(np.swapaxes(x, 0, 1))

    options = {"checkpoint": checkpoint, "time_major": time_major}
    x = few()
    want, (to_scores, *to_rest) = run(turned(x), automata(FEW), PRIOR, SCALES, **options)
    # In the padding, and at labels that no graph has, anything may be.
    wide = many(x)
    wide[LENGTHS[1] :, 1] = np.nan
    wide[:, 3] = np.inf
    got, found = run(turned(wide), automata(MANY), wide_prior(), SCALES, **options)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    gradient = turned(np.asarray(found[0]))
    np.testing.assert_allclose(gradient[:, :, PLACES], turned(np.asarray(to_scores)), atol=1e-6)
    rest = np.delete(gradient, PLACES, axis=2)
    assert not rest.any()
    for b, length in enumerate(LENGTHS):
        assert not gradient[length:, b].any()
    weights, prior, scales = found[1:]
    np.testing.assert_allclose(weights, to_rest[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prior[PLACES], to_rest[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scales, to_rest[2], rtol=1e-5)


@functools.cache
def compiled(how: str):
    """Gradient [T, B, MANY] and losses, by one of the ways to them."""
    frames = np.arange(T)[None] >= LENGTHS[:, None]

    def loss(x):
        if how == "ctc_loss":
            labels = np.tile(PLACES[:2], (B, 1)).astype(np.int32)
            logits = jnp.swapaxes(x, 0, 1)
            found = ctc_loss(
                logits, frames.astype(np.float32), labels, np.zeros(labels.shape, np.float32)
            )
        elif how == "shared":
            edges = oracles.hmm_like(np.random.default_rng(2), 1, 2, FEW)
            edges[0][2] = PLACES[edges[0][2]]
            one = Automata.from_edges(*edges, num_labels=MANY, shared=True)
            found = full_sum_loss(x, LENGTHS, one)
        else:
            options = {
                "full_sum_loss": {},
                "checkpoint": {"checkpoint": True},
                "from_logits": {"from_logits": True},
                "both": {"from_logits": True, "checkpoint": True},
            }[how]
            found = full_sum_loss(x, LENGTHS, automata(MANY), **options)
        return jnp.sum(jnp.where(jnp.isfinite(found), found, 0.0)), found

    return jax.jit(jax.grad(loss, has_aux=True))


def losses_of(how: str, wide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gradient, found = compiled(how)(wide)
    return np.asarray(found), np.asarray(gradient)


WAYS = ["full_sum_loss", "checkpoint", "from_logits", "both", "ctc_loss", "shared"]


@pytest.mark.parametrize("how", WAYS)
def test_bad_values_wherever_they_are(how) -> None:
    """XLA's own maximum overlooks NaN in arrays of this size, on a CPU."""
    fine, gradient = losses_of(how, many(few()))
    others = [0, 2, 3, 4]
    assert np.isfinite(fine[[0, 4]]).all()
    for bad in (np.nan, np.inf):
        for label in (0, int(PLACES[0]), int(PLACES[3]), 500, MANY - 1):
            wide = many(few())
            wide[3, 0, label] = bad
            found, moved = losses_of(how, wide)
            assert np.isnan(found[0]), (bad, label)
            assert not moved[:, 0].any()
            np.testing.assert_array_equal(found[1:], fine[1:])
            np.testing.assert_array_equal(moved[:, 1:], gradient[:, 1:])
    wide = many(few())
    wide[LENGTHS[4] :, 4] = np.nan
    wide[:, 3] = np.inf
    found, moved = losses_of(how, wide)
    np.testing.assert_array_equal(found[others], fine[others])
    np.testing.assert_array_equal(moved[:, others], gradient[:, others])
    # One label may be impossible.
    wide = many(few())
    wide[3, 0, MANY - 1] = -np.inf
    assert np.isfinite(losses_of(how, wide)[0][0])


def test_bad_values_in_what_is_no_loss() -> None:
    wide = many(few())
    wide[3, 0, MANY - 1] = np.nan
    one = automata(MANY)
    loss, posteriors, *_ = forward_backward(wide, LENGTHS, one)
    assert np.isnan(loss[0])
    assert not np.asarray(posteriors)[:, 0].any()
    assert np.isfinite(loss[4])
    *_, valid = viterbi(wide, LENGTHS, one, return_valid=True)
    assert not valid[0]
    assert valid[4]


def test_from_logits() -> None:
    x = 3 * many(few(), rest=-0.5)
    got, found = run(x, automata(MANY), wide_prior(), SCALES, from_logits=True)

    @jax.jit
    def outside(x):
        def loss(x):
            losses = full_sum_loss(
                jax.nn.log_softmax(x),
                LENGTHS,
                automata(MANY),
                am_scale=SCALES[0],
                tdp_scale=SCALES[1],
                log_prior=wide_prior(),
                prior_scale=SCALES[2],
            )
            factors = jnp.arange(1.0, B + 1, dtype=jnp.float32)
            return jnp.sum(jnp.where(jnp.isfinite(losses), losses * factors, 0.0)), losses

        return jax.grad(loss, has_aux=True)(x)

    gradient, want = outside(x)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    np.testing.assert_allclose(found[0], gradient, atol=2e-6)


@pytest.mark.slow
def test_derivatives_of_both_orders() -> None:
    one = automata(MANY)
    x = jnp.asarray(many(few()))
    direction = many(few()[::-1])

    def loss(moved):
        losses = full_sum_loss(x + moved * direction, LENGTHS, one, from_logits=True)
        return jnp.sum(jnp.where(jnp.isfinite(losses), losses, 0.0))

    check_grads(jax.jit(loss), (jnp.float32(0.1),), order=2, modes=["fwd", "rev"], rtol=0.02)


def test_under_vmap() -> None:
    one = automata(MANY)
    x = np.stack([many(few()), many(2 * few())])
    step = jax.jit(jax.grad(lambda x: full_sum_loss(x, LENGTHS, one)[:2].sum()))
    both = jax.jit(jax.vmap(step))(x)
    for b in range(2):
        np.testing.assert_allclose(both[b], step(x[b]), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats(dtype) -> None:
    x = jnp.asarray(many(few())).astype(dtype)
    one = automata(MANY)
    step = jax.jit(jax.grad(lambda x: full_sum_loss(x, LENGTHS, one)[:2].sum()))
    gradient, exact = step(x), step(x.astype(jnp.float32))
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient.astype(jnp.float32), exact, atol=5e-3)


def test_posteriors() -> None:
    wide = forward_backward(many(few()), LENGTHS, automata(MANY))
    narrow = forward_backward(few(), LENGTHS, automata(FEW))
    np.testing.assert_allclose(wide[1][:, :, PLACES], narrow[1], atol=1e-6)
    assert not np.delete(np.asarray(wide[1]), PLACES, axis=2).any()


# ------------------------------------------------------------------------------ the pieces


@pytest.mark.parametrize("time_axis", [0, 1])
def test_both_ways_agree_and_are_transposes(monkeypatch, time_axis) -> None:
    rng = np.random.default_rng(3)
    slot_label = np.array([[4, 0, -1, 9, -1], [2, 8, 7, 1, 12], [-1, -1, -1, -1, -1]], np.int32)
    layout = _scores.Layout(label=None, slot=None, slot_label=jnp.asarray(slot_label))
    problem = _scores.Problem(*[None] * 6, layout, None, None)  # type: ignore[arg-type]
    shape = (6, 3) if time_axis == 0 else (3, 6)
    by_slot = jnp.asarray(rng.normal(size=(*shape, 5)).astype(np.float32))
    values = jnp.asarray(rng.normal(size=(*shape, 10)).astype(np.float32))
    found = []
    for sparse in (True, False):
        monkeypatch.setattr(_labels, "_is_sparse", lambda *_, sparse=sparse: sparse)
        wide = _labels.spread(by_slot, problem, 10, time_axis)
        total, gradient = jax.value_and_grad(
            lambda v: _labels.weighted(by_slot, v, problem, time_axis).sum()
        )(values)
        found.append((wide, total, gradient))
    (wide, total, gradient), others = found
    for one, other in zip(found[0], others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_array_equal(gradient, wide)
    np.testing.assert_allclose(total, jnp.sum(wide * values), rtol=1e-5)
    want = np.zeros((*shape, 10), np.float32)
    for b, row in enumerate(slot_label):
        for u, label in enumerate(row):
            if 0 <= label < 10:
                place = (slice(None), b) if time_axis == 0 else (b,)
                want[(*place, ..., label)] += np.asarray(by_slot)[(*place, ..., u)]
    np.testing.assert_array_equal(wide, want)


@pytest.mark.optimized
def test_nothing_else_of_that_size_is_made() -> None:
    one = automata(MANY)
    x = many(few())
    step = jax.value_and_grad(lambda x: full_sum_loss(x, LENGTHS, one, from_logits=True)[:2].sum())
    memory = jax.jit(step).lower(x).compile().memory_analysis()
    # The gradient itself, in which the softmax is made, and what the recursions keep.
    assert memory.temp_size_in_bytes < 0.5 * x.nbytes
