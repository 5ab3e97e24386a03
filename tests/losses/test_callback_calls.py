"""JAX repeats, drops and overlaps calls of a pure callback; with real Sprints it does no harm."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sprint import SprintInstancePool, SprintOptions, encode_tags, sprint_loss

FAKE = Path(__file__).parent.parent / "bridge" / "fake_sprint.py"
T, B, L = 9, 3, 4
LENGTHS = np.array([9, 5, 7], np.int32)


@pytest.fixture(scope="module")
def pool():
    options = SprintOptions(exec_path=[sys.executable, str(FAKE)], num_instances=2)
    with SprintInstancePool(options) as opened:
        opened.start()
        yield opened


@pytest.fixture
def scores():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, B, L)), jnp.float32)


def names(batch: int = 0) -> np.ndarray:
    return encode_tags([f"corpus/batch {batch}/{b}" for b in range(B)], 32)


def asked(pool, function) -> float:
    """How many segments Sprint was asked about meanwhile."""
    before = pool.stats()["requests"]
    jax.block_until_ready(function())
    return pool.stats()["requests"] - before


def total(pool, scores, tags):
    return jnp.sum(sprint_loss(scores, LENGTHS, tags, sprint=pool))


def test_repeated(pool, scores) -> None:
    plain = jax.jit(jax.grad(lambda s, t: total(pool, s, t)))
    again = jax.jit(jax.grad(jax.checkpoint(lambda s, t: total(pool, s, t))))
    assert asked(pool, lambda: plain(scores, names())) == B
    assert asked(pool, lambda: again(scores, names())) >= B
    np.testing.assert_array_equal(again(scores, names()), plain(scores, names()))


def test_dropped(pool, scores) -> None:
    @jax.jit
    def unused(s, t):
        total(pool, s, t)
        return s.sum()

    assert asked(pool, lambda: unused(scores, names())) == 0

    @jax.jit
    def sometimes(s, t, wanted):
        return jax.lax.cond(wanted, lambda: total(pool, s, t), lambda: jnp.float32(0))

    assert asked(pool, lambda: sometimes(scores, names(), False)) == 0
    assert asked(pool, lambda: sometimes(scores, names(), True)) == B


def test_concurrent(pool, scores) -> None:
    """Several threads run the same compiled step, each on segments of its own."""
    step = jax.jit(jax.value_and_grad(lambda s, t: total(pool, s, t)))
    want = [step(scores * (k + 1), names(k)) for k in range(4)]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(15):
            value, gradient = step(scores * (k + 1), names(k))
            if value != want[k][0] or not np.array_equal(gradient, want[k][1]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert step._cache_size() == 1
