"""`sprint_loss` on several devices that wait for each other, with real Sprints.

The programs run in processes of their own: they need eight devices, and XLA ends a process whose
devices have waited too long for each other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = ROOT / "tests" / "bridge" / "fake_sprint.py"

PROLOGUE = f"""
import sys, threading
sys.path.insert(0, {str(ROOT)!r})
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
from jax_sprint import *

DEVICES = 8
assert jax.device_count() == DEVICES
mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
specs = (P(None, "data"), P("data"), P("data"))
rng = np.random.default_rng(0)

def options(**attributes):
    return SprintOptions(exec_path=[sys.executable, {str(FAKE)!r}], **attributes)

def mapped(pool):
    def shard(scores, lengths, tags):
        loss, valid = sprint_loss(scores * 2.0, lengths, tags, sprint=pool, return_valid=True)
        total = jax.lax.psum(jnp.sum(jnp.where(valid, loss, 0.0)), "data")
        return total, (loss, valid)
    return jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=(P(), (P("data"), P("data"))))

def run(pool, scores, lengths, names):
    step = jax.jit(jax.value_and_grad(mapped(pool), has_aux=True))
    arguments = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip((scores, lengths, encode_tags(names)), specs)
    ]
    return jax.block_until_ready(step(*arguments))
"""


def start(program: str, *flags: str) -> subprocess.CompletedProcess[str]:
    flags = ("--xla_force_host_platform_device_count=8", *flags)
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "XLA_FLAGS": " ".join(flags)},
    )


def test_eight_shards_give_what_one_device_gives() -> None:
    """Well over 100 kB per shard; the shards' segments spread over all children."""
    done = start(
        """
        T, B, L = 150, 16, 400
        scores = jnp.asarray(rng.normal(size=(T, B, L)), jnp.float32)
        lengths = np.arange(T - B, T, dtype=np.int32)
        names = [f"corpus/r{b}/{b}" for b in range(B)]
        assert scores.nbytes / DEVICES > 400_000
        with SprintInstancePool(options(num_instances=3)) as pool:
            assert pool.start() == 3
            for _ in range(3):
                (total, (loss, valid)), gradient = run(pool, scores, lengths, names)
            served = [
                thread.instance.traffic[0]
                for thread in threading.enumerate()
                if isinstance(thread, ReaderThread)
            ]
            alone, one = jax.jit(jax.value_and_grad(
                lambda s: jnp.sum(sprint_loss(s * 2.0, lengths, encode_tags(names), sprint=pool))
            ))(jax.device_put(np.asarray(scores), jax.devices()[0]))
            tags = encode_tags(names)
            wrapped, spread = jax.block_until_ready(jax.jit(jax.value_and_grad(lambda s: jnp.sum(
                sharded_sprint_loss(s * 2.0, lengths, tags, sprint=pool, mesh=mesh)
            )))(scores))
            pool.check()
        assert valid.all()
        np.testing.assert_allclose(total, alone, rtol=1e-5)
        np.testing.assert_allclose(wrapped, alone, rtol=1e-5)
        np.testing.assert_array_equal(gradient, one)
        np.testing.assert_array_equal(spread, one)
        assert spread.sharding.spec[1] == "data", spread.sharding
        assert len(served) == 3
        assert min(served) > 100_000, served
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr[-4000:]


STOPPED = """
    T, B, L = 60, 8, 500
    scores = jnp.asarray(rng.normal(size=(T, B, L)), jnp.float32)
    lengths = np.full(B, T, np.int32)
    names = [f"corpus/r{b}/{b}" for b in range(B)]
    names[5] = "corpus/stop/5"
    with SprintInstancePool(options(num_instances=2, batch_timeout=LIMIT)) as pool:
        pool.start()
        (total, (loss, valid)), gradient = run(pool, scores, lengths, names)
        assert valid.tolist() == [b != 5 for b in range(B)]
        assert np.isnan(loss[5])
        assert np.isfinite(total)
        assert np.all(np.asarray(gradient)[:, 5] == 0)
        assert np.all(np.any(np.asarray(gradient) != 0, (0, 2))[[0, 1, 2, 3, 4, 6, 7]])
        try:
            pool.check()
        except SprintTimeoutError as error:
            assert error.segment == "corpus/stop/5"
            print("in time")
        # The same program goes on.
        names[5] = "corpus/r/5"
        (total, (loss, valid)), gradient = run(pool, scores, lengths, names)
        assert valid.all()
        pool.check()
        print("fine")
"""
# Instead of 20 and 40 s.
SOON = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=2",
    "--xla_cpu_collective_call_terminate_timeout_seconds=6",
)


def test_a_stopped_sprint_among_peers_ends_in_time() -> None:
    done = start(STOPPED.replace("LIMIT", "2.5"), *SOON)
    assert done.stdout == "in time\nfine\n", done.stderr[-4000:]


def test_without_the_deadline_xla_ends_the_process() -> None:
    """What the test above would look like; and that the flags are those that count."""
    done = start(STOPPED.replace("LIMIT", "100.0"), *SOON)
    assert done.returncode == -signal.SIGABRT
    assert "Termination timeout" in done.stderr
    assert done.stdout == ""


def test_the_deadline_inside_shard_map_is_there_by_itself() -> None:
    done = start(
        """
        import jax_sprint.losses._callback as callback
        assert callback._PATIENCE_OF_PEERS < 30
        callback._PATIENCE_OF_PEERS = 1.5
        scores = jnp.zeros((5, 8, 3))
        lengths = np.full(8, 5, np.int32)
        names = [f"corpus/r{b}/{b}" for b in range(7)] + ["corpus/hang/7"]
        with SprintInstancePool(options(num_instances=2)) as pool:
            pool.start()
            (total, (loss, valid)), _ = run(pool, scores, lengths, names)
            assert valid.tolist() == [True] * 7 + [False]
            # Alone nobody waits, and the request has all of its time.
            slow = ["corpus/slow/0"] * 8
            assert jnp.isfinite(sprint_loss(scores, lengths, slow, sprint=pool)).all()
            print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr[-4000:]


AUTOMATIC = """
    import warnings
    scores = jnp.asarray(rng.normal(size=(60, 8, 50)), jnp.float32)
    lengths = np.full(8, 60, np.int32)
    names = [f"corpus/r{b}/{b}" for b in range(8)]
    with SprintInstancePool(options(num_instances=2, batch_timeout=LIMIT)) as pool:
        pool.start()

        @jax.jit
        def step(scores, lengths, tags):
            def total(s):
                loss, valid = sprint_loss(s * 2.0, lengths, tags, sprint=pool, return_valid=True)
                return jnp.sum(jnp.where(valid, loss, 0.0)), (loss, valid)
            (value, (loss, valid)), gradient = jax.value_and_grad(total, has_aux=True)(scores)
            return value, loss, valid, jnp.sum(gradient, 1)

        def run(names):
            return jax.block_until_ready(step(*(
                jax.device_put(array, NamedSharding(mesh, spec))
                for array, spec in zip((scores, lengths, encode_tags(names)), specs)
            )))

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            want = run(names)
        assert any("sharded_sprint_loss asks" in str(w.message) for w in caught), caught
        assert want[2].all()
        _, loss, valid, _ = run(["corpus/FAULT/0", *names[1:]])
        assert not valid.any()
        assert np.isnan(loss).all()
        try:
            pool.check()
        except SprintError as error:
            print(type(error).__name__)
        np.testing.assert_array_equal(run(names)[3], want[3])
        # Called eagerly nobody waits: the error itself arrives.
        try:
            sprint_loss(jax.device_put(scores, NamedSharding(mesh, specs[0])), lengths,
                        ["corpus/exit/0", *names[1:]], sprint=pool)
        except SprintCrashError as error:
            print(error.segment)
"""


@pytest.mark.parametrize(("fault", "kind"), [("exit", "Crash"), ("hang", "Timeout")])
def test_automatic_sharding_has_peers_too(fault: str, kind: str) -> None:
    done = start(AUTOMATIC.replace("FAULT", fault).replace("LIMIT", "2.5"), *SOON)
    assert done.stdout == f"Sprint{kind}Error\ncorpus/exit/0\n", done.stderr[-4000:]


def test_ctrl_c_among_peers() -> None:
    """A terminal sends it to the whole process group; the step ends, and the pool goes on."""
    program = """
        import os, signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        scores = jnp.zeros((5, 8, 3))
        lengths = np.full(8, 5, np.int32)
        names = [f"corpus/slow/{b}" for b in range(8)]
        with SprintInstancePool(options(num_instances=2, config="--sleep=0.6")) as pool:
            pool.start()
            run(pool, scores, lengths, [f"corpus/r/{b}" for b in range(8)])
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                run(pool, scores, lengths, names)
                time.sleep(5)
            except KeyboardInterrupt:
                print("interrupted")
            (_, (loss, valid)), _ = run(pool, scores, lengths, [f"corpus/r/{b}" for b in range(8)])
            assert valid.all()
            print("fine")
    """
    done = start(program)
    assert done.stdout == "interrupted\nfine\n", done.stderr[-4000:]


@pytest.mark.parametrize("layout", ["batch-major", "explicit"])
def test_a_mesh_of_other_kinds(layout: str) -> None:
    done = start(
        f"""
        layout = {layout!r}
        kind = AxisType.Explicit if layout == "explicit" else AxisType.Auto
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
        scores = jnp.asarray(rng.normal(size=(8, 5, 3)), jnp.float32)
        if layout == "explicit":
            scores = scores.swapaxes(0, 1)
        lengths = np.full(8, 5, np.int32)
        names = encode_tags([f"corpus/r/{{b}}" for b in range(8)])
        with SprintInstancePool(options(num_instances=2)) as pool:
            major = layout == "explicit"
            want = sprint_loss(scores, lengths, names, sprint=pool, time_major=major)
            for axis in ("data", ("data", "model")):
                def step(s):
                    return jnp.sum(sharded_sprint_loss(
                        s, lengths, names, sprint=pool, mesh=mesh, axis=axis, time_major=major
                    ))
                with jax.set_mesh(mesh):
                    value, gradient = jax.jit(jax.value_and_grad(step))(scores)
                np.testing.assert_allclose(value, want.sum(), rtol=1e-6)
                np.testing.assert_array_equal(gradient, jax.grad(lambda s: jnp.sum(
                    sprint_loss(s, lengths, names, sprint=pool, time_major=major)))(scores))
            try:
                sharded_sprint_loss(
                    scores, lengths, names, sprint=pool, mesh=mesh, axis="time", time_major=major
                )
            except ValueError as error:
                assert "no axis 'time', only 'data', 'model'" in str(error), error
                print("so")
            three = scores[:, :3] if major else scores[:3]
            try:
                sharded_sprint_loss(
                    three, lengths[:3], names[:3], sprint=pool, mesh=mesh, time_major=major
                )
            except ValueError as error:
                assert "a batch of 3 cannot be spread evenly over the 4 devices" in str(error)
                print("fine")
        """
    )
    assert done.stdout == "so\nfine\n", done.stderr[-4000:]
