"""`sprint_loss` as a JAX function: values, gradients and transformations.

The pool here answers in this process with a loss whose derivative is known, so that what is tested
is the JAX side alone; `test_routes_agree.py` asks real Sprint subprocesses.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jax_sprint import (
    SprintClosedError,
    SprintCrashError,
    SprintInstancePool,
    SprintOptions,
    decode_tags,
    encode_tags,
    sprint_loss,
)

T, B, L = 7, 4, 5
TAGS = ["corpus/a/1", "corpus/a/2", "corpus/b/größe", "corpus/b/x"]
LENGTHS = np.array([7, 3, 0, 5], np.int32)


class QuadraticPool(SprintInstancePool):
    """loss = len(tag) / 2 * sum of squares of the valid frames; +inf where the length is zero."""

    def __init__(self, **options) -> None:
        super().__init__(SprintOptions(**options))
        self.calls: list[tuple[int, ...]] = []
        self.threads: set[int] = set()
        self.seen_types: set[type] = set()

    def get_batch_loss_and_error_signal(self, log_posteriors, seq_lengths, tags, **limits):
        if self.closed:
            raise SprintClosedError("closed")
        self.calls.append(log_posteriors.shape)
        self.threads.add(threading.get_ident())
        self.seen_types |= {type(log_posteriors), type(seq_lengths), type(tags)}
        names = decode_tags(tags)
        valid = np.arange(log_posteriors.shape[0])[:, None] < seq_lengths[None, :]
        scores = np.where(valid[:, :, None], log_posteriors, 0)
        scale = np.array([len(name) for name in names], np.float32)
        loss = scale / 2 * np.square(scores).sum((0, 2))
        loss = np.where(seq_lengths > 0, loss, np.inf).astype(np.float32)
        return loss, (scale[None, :, None] * scores).astype(np.float32)


@pytest.fixture
def pool():
    with QuadraticPool() as opened:
        yield opened


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(size=(T, B, L)).astype(np.float32)


def expected(scores, weight=None):
    """Loss [B] and the gradient of sum(weight * loss) [T, B, L], in float64."""
    valid = (np.arange(T)[:, None] < LENGTHS[None, :])[:, :, None]
    masked = np.where(valid, scores.astype(np.float64), 0)
    scale = np.array([len(tag) for tag in TAGS], np.float64)
    loss = np.where(LENGTHS > 0, scale / 2 * np.square(masked).sum((0, 2)), np.inf)
    weight = np.ones(B) if weight is None else weight
    return loss, weight[None, :, None] * scale[None, :, None] * masked


def finite_sum(pool, weight=None, **options):
    """A step as users write it: invalid sequences are left out of the sum."""

    def step(scores, lengths, tags):
        loss, valid = sprint_loss(scores, lengths, tags, sprint=pool, return_valid=True, **options)
        factor = 1.0 if weight is None else weight
        return jnp.sum(jnp.where(valid, loss * factor, 0.0))

    return step


def test_value_and_gradient_eager_and_jitted(pool, scores):
    weight = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
    loss, gradient = expected(scores, weight)
    tags = encode_tags(TAGS)
    np.testing.assert_allclose(sprint_loss(scores, LENGTHS, TAGS, sprint=pool), loss, rtol=1e-6)
    step = jax.value_and_grad(finite_sum(pool, weight))
    for run in (step, jax.jit(step)):
        value, got = run(jnp.asarray(scores), jnp.asarray(LENGTHS), tags)
        finite = np.where(np.isfinite(loss), loss * weight, 0).sum()
        np.testing.assert_allclose(value, finite, rtol=1e-4)
        np.testing.assert_allclose(got, gradient, rtol=1e-6)
    assert pool.seen_types == {np.ndarray}, "the host side must see numpy alone"


def test_forward_and_backward_ask_once(pool, scores):
    step = jax.jit(jax.value_and_grad(finite_sum(pool)))
    for _ in range(3):
        jax.block_until_ready(step(jnp.asarray(scores), jnp.asarray(LENGTHS), encode_tags(TAGS)))
    assert len(pool.calls) == 3
    assert step._cache_size() == 1


def test_one_trace_serves_other_segments(pool, scores):
    step = jax.jit(lambda s, n, t: sprint_loss(s, n, t, sprint=pool))
    first = step(scores, LENGTHS, encode_tags(TAGS))
    second = step(scores, LENGTHS, encode_tags([tag[:-1] for tag in TAGS]))
    assert step._cache_size() == 1
    ratio = [(len(tag) - 1) / len(tag) for tag in TAGS]
    keep = LENGTHS > 0
    np.testing.assert_allclose((second / first)[keep], np.array(ratio)[keep], rtol=1e-5)


def test_equal_pools_share_one_compilation(pool, scores):
    traces = []

    @jax.jit
    def step(scores):
        traces.append(1)
        return sprint_loss(scores, jnp.asarray(LENGTHS), encode_tags(TAGS), sprint=pool)

    for _ in range(3):
        step(jnp.asarray(scores))
    assert len(traces) == 1


def test_finite_differences(pool, scores):
    lengths = jnp.asarray(np.array([7, 3, 1, 5], np.int32))
    check_grads(
        lambda s: sprint_loss(s, lengths, encode_tags(TAGS), sprint=pool),
        (jnp.asarray(scores),),
        order=1,
        modes=["rev"],
        rtol=2e-2,
        atol=2e-2,
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_gradient_has_the_dtype_of_the_input(pool, scores, dtype):
    step = jax.jit(jax.value_and_grad(finite_sum(pool)))
    value, gradient = step(jnp.asarray(scores, dtype), LENGTHS, encode_tags(TAGS))
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected(scores)[1], rtol=2e-2)


def test_float64_input_keeps_a_float32_loss(pool, scores):
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(finite_sum(pool))(
            jnp.asarray(scores, jnp.float64), LENGTHS, encode_tags(TAGS)
        )
    assert gradient.dtype == np.float64
    np.testing.assert_allclose(gradient, expected(scores)[1], rtol=1e-6)
    assert value.dtype == np.float32


def test_batch_major(pool, scores):
    value, gradient = jax.jit(jax.value_and_grad(finite_sum(pool, time_major=False)))(
        jnp.asarray(scores.swapaxes(0, 1)), LENGTHS, encode_tags(TAGS)
    )
    np.testing.assert_allclose(gradient.swapaxes(0, 1), expected(scores)[1], rtol=1e-6)
    assert np.isfinite(value)


def test_no_path_is_infinite_invalid_and_without_gradient(pool, scores):
    def plain(s):
        return jnp.sum(sprint_loss(s, LENGTHS, encode_tags(TAGS), sprint=pool))

    value, gradient = jax.jit(jax.value_and_grad(plain))(jnp.asarray(scores))
    assert value == np.inf
    assert np.all(gradient[:, 2] == 0)
    assert np.all(np.isfinite(gradient))
    _, valid = sprint_loss(scores, LENGTHS, TAGS, sprint=pool, return_valid=True)
    assert valid.tolist() == [True, True, False, True]


def test_padding_may_hold_anything(pool, scores):
    dirty = scores.copy()
    dirty[3:, 1] = np.nan
    dirty[5:, 3] = -np.inf
    clean = jax.jit(jax.value_and_grad(finite_sum(pool)))
    want, got = (clean(jnp.asarray(s), LENGTHS, encode_tags(TAGS)) for s in (scores, dirty))
    np.testing.assert_array_equal(want[0], got[0])
    np.testing.assert_array_equal(want[1], got[1])
    assert np.all(np.asarray(got[1])[3:, 1] == 0)


def test_nan_in_a_valid_frame_stays_in_its_sequence(pool, scores):
    dirty = scores.copy()
    dirty[1, 1, 2] = np.nan
    loss, valid = sprint_loss(dirty, LENGTHS, TAGS, sprint=pool, return_valid=True)
    assert np.isnan(loss[1])
    assert valid.tolist() == [True, False, False, True]
    gradient = jax.grad(finite_sum(pool))(jnp.asarray(dirty), LENGTHS, encode_tags(TAGS))
    assert np.all(gradient[:, 1] == 0)
    np.testing.assert_allclose(gradient[:, 0], expected(scores)[1][:, 0], rtol=1e-6)


def test_empty_batch(pool):
    loss = sprint_loss(jnp.zeros((T, 0, L)), jnp.zeros((0,), jnp.int32), [], sprint=pool)
    assert loss.shape == (0,)


def test_vmap_folds_into_the_batch(pool, scores):
    lengths = jnp.asarray(np.array([LENGTHS, LENGTHS[::-1], LENGTHS]))
    tags = jnp.asarray(encode_tags(TAGS))
    stack = jnp.stack([jnp.asarray(scores * k) for k in (1.0, 2.0, 3.0)])
    step = jax.value_and_grad(finite_sum(pool))
    want = [step(s, n, tags) for s, n in zip(stack, lengths, strict=True)]
    pool.calls.clear()
    value, gradient = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))(stack, lengths, tags)
    assert pool.calls == [(T, 3 * B, L)]
    np.testing.assert_allclose(value, [w[0] for w in want], rtol=1e-6)
    np.testing.assert_allclose(gradient, np.stack([w[1] for w in want]), rtol=1e-6)
    nested = jax.vmap(jax.vmap(step, in_axes=(0, None, None)), in_axes=(None, 0, None))
    assert nested(stack, lengths, tags)[0].shape == (3, 3)


def test_scan_and_remat(pool, scores):
    tags = encode_tags(TAGS)
    step = finite_sum(pool)

    def epoch(stack):
        return jax.lax.scan(lambda c, s: (c + step(s, LENGTHS, tags), None), 0.0, stack)[0]

    stack = jnp.stack([jnp.asarray(scores)] * 3)
    once = jax.grad(step)(jnp.asarray(scores), LENGTHS, tags)
    np.testing.assert_allclose(jax.jit(jax.grad(epoch))(stack), np.stack([once] * 3), rtol=1e-6)
    again = jax.jit(jax.grad(jax.checkpoint(lambda s: step(s, LENGTHS, tags))))
    np.testing.assert_allclose(again(jnp.asarray(scores)), once, rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("outside", [True, False])
def test_shard_map(pool, check_vma, axis_type, outside):
    """One call per shard, above the size at which an automatically sharded callback hangs."""
    steps, batch, labels = 300, 8, 128
    values = np.random.default_rng(1).normal(size=(steps, batch, labels)).astype(np.float32)
    lengths = np.arange(steps - batch, steps, dtype=np.int32)
    tags = encode_tags([f"corpus/r/{i}" for i in range(batch)])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    specs = (P(None, "data"), P("data"), P("data"))

    def shard(s, n, t):
        if outside:
            return sprint_loss(s * 2.0, n, t, sprint=pool)
        total, gradient = jax.value_and_grad(
            lambda s: jnp.sum(sprint_loss(s * 2.0, n, t, sprint=pool))
        )(s)
        return jax.lax.psum(total, "data"), gradient

    out_specs = P("data") if outside else (P(), P(None, "data"))
    mapped = jax.shard_map(
        shard, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=check_vma
    )
    with jax.set_mesh(mesh):
        arguments = [
            jax.device_put(a, jax.NamedSharding(mesh, spec))
            for a, spec in zip((values, lengths, tags), specs, strict=True)
        ]
        if outside:
            step = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(mapped(*a))))
        else:
            step = jax.jit(mapped)
        total, gradient = jax.block_until_ready(step(*arguments))
    assert sorted(set(pool.calls)) == [(steps, 2, labels)]
    assert len(pool.calls) == 4
    valid = (np.arange(steps)[:, None] < lengths[None, :])[:, :, None]
    masked = np.where(valid, values, 0).astype(np.float64)
    np.testing.assert_allclose(total, 10 / 2 * 4 * np.square(masked).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 10 * 4 * masked, rtol=1e-5)


class FailingPool(QuadraticPool):
    """Cannot answer for one segment."""

    def get_batch_loss_and_error_signal(self, log_posteriors, seq_lengths, tags, **limits):
        if "corpus/r/2" in decode_tags(tags):
            raise SprintCrashError("Sprint died", segment="corpus/r/2", exit_status=-9)
        return super().get_batch_loss_and_error_signal(log_posteriors, seq_lengths, tags, **limits)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_failing_shard_lets_its_peers_go_on(check_vma):
    """Raising before a collective would leave the others waiting until XLA ends the process."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    scores = jnp.asarray(np.random.default_rng(3).normal(size=(T, 4, L)), jnp.float32)
    lengths, tags = np.full(4, T, np.int32), encode_tags([f"corpus/r/{i}" for i in range(4)])
    with FailingPool() as pool:

        def shard(s, n, t):
            loss, valid = sprint_loss(s, n, t, sprint=pool, return_valid=True)
            total = jax.lax.psum(jnp.sum(jnp.where(valid, loss, 0.0)), "data")
            return total, loss, valid

        mapped = jax.shard_map(
            shard,
            mesh=mesh,
            in_specs=(P(None, "data"), P("data"), P("data")),
            out_specs=(P(), P("data"), P("data")),
            check_vma=check_vma,
        )
        step = jax.jit(
            jax.grad(lambda s: (lambda t, *aux: (t, aux))(*mapped(s, lengths, tags)), has_aux=True)
        )
        gradient, (loss, valid) = jax.block_until_ready(step(scores))
        assert valid.tolist() == [True, True, False, True]
        assert np.isnan(loss[2])
        assert np.all(np.asarray(gradient)[:, 2] == 0)
        np.testing.assert_allclose(gradient[:, 3], 10 * scores[:, 3], rtol=1e-6)
        with pytest.raises(SprintCrashError, match="corpus/r/2"):
            pool.check()
        pool.check()


def test_masked_segments_count_as_nothing(scores):
    """on_error="mask": the pool says NaN, which is told from NaN in the posteriors."""

    class MaskingPool(QuadraticPool):
        def get_batch_loss_and_error_signal(self, log_posteriors, seq_lengths, tags, **limits):
            loss, error = super().get_batch_loss_and_error_signal(log_posteriors, seq_lengths, tags)
            loss[1], error[:, 1] = np.nan, 0
            return loss, error

    dirty = jnp.asarray(scores).at[0, 3, 0].set(jnp.nan)
    with MaskingPool(on_error="mask") as pool:
        step = jax.jit(
            lambda s: sprint_loss(s, LENGTHS, encode_tags(TAGS), sprint=pool, return_valid=True)
        )
        loss, valid = step(dirty)
        assert valid.tolist() == [True, False, False, False]
        assert loss[1] == 0
        assert loss[2] == np.inf
        assert np.isnan(loss[3])
        gradient = jax.grad(lambda s: step(s)[0][:2].sum())(dirty)
        assert np.all(np.asarray(gradient)[:, 1] == 0)
        assert np.any(np.asarray(gradient)[:, 0] != 0)


def test_replicated_posteriors_get_the_sum_over_shards(pool, scores):
    """Posteriors that every shard shares, with other segments on each."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    tags = encode_tags([f"corpus/r/{'x' * i}" for i in range(4)])
    lengths = np.array([7, 7, 3, 1], np.int32)
    one = jnp.asarray(scores[:, :1])

    @jax.jit
    def step(s):
        mapped = jax.shard_map(
            lambda s, n, t: sprint_loss(s, n, t, sprint=pool),
            mesh=mesh,
            in_specs=(P(), P("data"), P("data")),
            out_specs=P("data"),
        )
        return jnp.sum(mapped(s, lengths, tags))

    want = jax.grad(
        lambda s: jnp.sum(sprint_loss(jnp.repeat(s, 4, 1), lengths, tags, sprint=pool))
    )(one)
    np.testing.assert_allclose(jax.grad(step)(one), want, rtol=1e-5)


def test_a_closed_pool_opens_again_without_a_new_trace(pool, scores):
    step = jax.jit(lambda s: sprint_loss(s, LENGTHS, encode_tags(TAGS), sprint=pool))
    want = step(jnp.asarray(scores))
    pool.close()
    with pytest.raises(SprintClosedError, match="init"):
        sprint_loss(scores, LENGTHS, TAGS, sprint=pool)
    # JAX passes on the message, not the type: JaxRuntimeError, or ValueError from jax 0.12 on.
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="SprintClosedError"):
        jax.block_until_ready(step(jnp.asarray(scores)))
    pool.init()
    np.testing.assert_array_equal(step(jnp.asarray(scores)), want)
    assert step._cache_size() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot bind to a core")
def test_one_core_does_not_hang():
    """With one core the CPU client has one thread, which runs the program and so the callback."""
    program = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import jax, jax.numpy as jnp, numpy as np
        import jax_sprint

        class Pool(jax_sprint.SprintInstancePool):
            def get_batch_loss_and_error_signal(self, log_posteriors, seq_lengths, tags, **limits):
                return log_posteriors.sum((0, 2)), np.ones_like(log_posteriors)

        with Pool(jax_sprint.SprintOptions()) as pool:
            tags = jax_sprint.encode_tags(["a", "b"])
            lengths = np.array([300, 300], np.int32)
            step = jax.jit(lambda x: jax_sprint.sprint_loss(x * 2, lengths, tags, sprint=pool))
            for _ in range(4):  # the argument is still being computed when the program starts
                print(float(step(jnp.ones((300, 2, 500)) + 1.0)[0]))
    """
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["600000.0"] * 4


@pytest.mark.filterwarnings("ignore:sprint_loss in a program that is sharded:UserWarning")
def test_automatic_sharding_gathers_the_batch(pool):
    """Outside shard_map the callback gets the whole batch, computed inside the program."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    values = np.random.default_rng(2).normal(size=(200, 8, 256)).astype(np.float32)
    lengths = np.full(8, 200, np.int32)
    tags = encode_tags(["t"] * 8)
    arguments = [
        jax.device_put(a, jax.NamedSharding(mesh, spec))
        for a, spec in ((values, P(None, "data")), (lengths, P("data")), (tags, P("data")))
    ]
    step = jax.jit(
        jax.value_and_grad(lambda s, n, t: jnp.sum(sprint_loss(s * 2.0, n, t, sprint=pool)))
    )
    total, gradient = jax.block_until_ready(step(*arguments))
    np.testing.assert_allclose(total, 2 * np.square(values, dtype=np.float64).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 4 * values, rtol=1e-6)
    assert pool.calls == [(200, 8, 256)]


@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason="this jax does not hang on them")
def test_arguments_on_which_jax_would_hang_are_refused(pool, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    shape = jax.ShapeDtypeStruct((1000, 8, 1000), jnp.float32)
    lengths, tags = np.full(8, 1000, np.int32), encode_tags(["t"] * 8)
    with pytest.raises(ValueError, match="NPROC"):
        jax.eval_shape(lambda s: sprint_loss(s, lengths, tags, sprint=pool), shape)
    monkeypatch.setenv("NPROC", "64")
    assert jax.eval_shape(lambda s: sprint_loss(s, lengths, tags, sprint=pool), shape).shape == (8,)
