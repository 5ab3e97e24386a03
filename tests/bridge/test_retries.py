"""Segments that fail once, segments that always fail, and what the pool remembers of it."""

from __future__ import annotations

import gc
import random
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest

from jax_sprint.bridge import ReaderThread, SprintInstancePool
from jax_sprint.bridge.options import default_control_module
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintError,
    SprintProtocolError,
    SprintRequestError,
    SprintStartError,
    SprintTimeoutError,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

SECOND = Path(__file__).with_name("second_sprint.py")
LENGTHS = np.array([5, 6, 7, 8])
NAMES = ["a/fine/1", "a/fine/2", "a/fine/3", "a/fine/4"]


def batch(labels: int = 5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 4, labels)).astype(np.float32), LENGTHS


def ask(pool: SprintInstancePool, names) -> tuple[np.ndarray, np.ndarray]:
    return pool.get_batch_loss_and_error_signal(*batch(), names)


def caught(function) -> BaseException:
    with pytest.raises((SprintError, ValueError)) as caught:
        function()
    return caught.value


def check(fake, names, log_posteriors, lengths, loss, error_signal, masked=()) -> None:
    for b, (name, length) in enumerate(zip(names, lengths, strict=True)):
        if b in masked:
            assert np.isnan(loss[b])
            assert (error_signal[:, b] == 0).all()
            continue
        want = fake.expected(name, log_posteriors[:length, b])
        assert loss[b] == want[0]
        np.testing.assert_array_equal(error_signal[:length, b], want[1])


def test_a_segment_that_kills_its_sprint_once(options, fake, tmp_path) -> None:
    marked = options(
        num_instances=2, max_retries=1, control_config={"marker": tmp_path / "was here"}
    )
    names = ["a/fine/1", "a/once/2", "a/fine/3", "a/fine/4"]
    with SprintInstancePool(marked) as pool:
        result = pool.get_batch_loss_and_error_signal(*batch(), names)
        check(fake, names, *batch(), *result)
        stats = pool.stats()
        assert pool.last_error is None
    assert stats["requests"] == 4
    assert stats["retries"] == stats["restarts"] == 1
    assert stats["failures"] == stats["masked"] == 0
    assert 2 <= stats["starts"] <= 3
    assert stats["bytes_sent"] > 4 * 5 * LENGTHS.sum()
    assert stats["bytes_received"] > 4 * 5 * LENGTHS.sum()
    assert stats["child_seconds"] > 0
    assert stats["start_seconds"] > 0


def test_a_segment_that_always_kills_its_sprint(options, fake) -> None:
    names = ["a/fine/1", "a/exit/2", "a/fine/3", "a/fine/4"]
    with SprintInstancePool(options(max_retries=2)) as pool:
        with pytest.raises(SprintCrashError, match=r"tried 3 times") as caught:
            pool.get_batch_loss_and_error_signal(*batch(), names)
        assert caught.value.segment == "a/exit/2"
        assert caught.value.exit_status == 5
        assert pool.last_error is caught.value
        assert pool.stats()["retries"] == 2
        assert pool.stats()["requests"] == 3
        result = pool.get_batch_loss_and_error_signal(*batch(), NAMES)
        check(fake, NAMES, *batch(), *result)
        with pytest.raises(SprintCrashError):
            pool.check()
        pool.check()
        assert pool.last_error is None


def test_a_refusal_is_not_repeated(options) -> None:
    with SprintInstancePool(options(max_retries=3)) as pool:
        with pytest.raises(SprintRequestError):
            pool.get_automata_for_batch(["a/unknown/1"])
        assert pool.stats()["retries"] == 0
        assert pool.stats()["starts"] == 1


def test_mask(options, fake) -> None:
    names = ["a/unknown/1", "a/fine/2", "a/exit/3", "a/nan error/4"]
    with SprintInstancePool(options(on_error="mask", num_instances=2)) as pool:
        result = pool.get_batch_loss_and_error_signal(*batch(), names)
        check(fake, names, *batch(), *result, masked=(0, 2, 3))
        assert pool.stats()["masked"] == pool.stats()["failures"] == 3
        assert isinstance(pool.last_error, SprintRequestError)
        assert "2 more of the 4" in str(pool.last_error)
        # There is no such thing as half an automaton.
        with pytest.raises(SprintError):
            pool.get_automata_for_batch(["a/unknown/1"])


def test_a_kept_error_keeps_nothing_else(options, fake) -> None:
    names = ["a/fine/1", "a/exit/2", "a/fine/3", "a/fine/4"]
    with SprintInstancePool(options(on_error="mask")) as pool:
        pool.start()
        gc.disable()
        try:
            log_posteriors, lengths = batch()
            caller = weakref.ref(log_posteriors)
            result = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
            check(fake, names, log_posteriors, lengths, *result, masked=[1])
            del log_posteriors
            assert caller() is None

            def fail() -> None:
                nonlocal caller
                log_posteriors, lengths = batch()
                caller = weakref.ref(log_posteriors)
                pool.get_batch_loss_and_error_signal(log_posteriors, lengths[:2], NAMES)

            error = caught(fail)
            assert caller() is not None
            # As a callback among peers does, which does not let it go on.
            pool.keep_error(error)
            assert caller() is None
            assert pool.last_error.__traceback__ is not None
        finally:
            gc.enable()


@pytest.mark.parametrize("stage", ["before", "inside", "after", "reply"])
def test_a_child_that_died_leaves_no_descriptor(options, fake, tmp_path, stage: str) -> None:
    """Not even until the next collection of garbage: a mapped memory has one of its own."""
    second = options(
        "",
        f"--death={stage} SIGKILL",
        exec_path=[sys.executable, str(SECOND), default_control_module()[0]],
        control_config={"marker": tmp_path / "dead"},
        max_retries=1,
    )
    with SprintInstancePool(second) as pool:
        pool.start()
        gc.collect()
        before = psutil.Process().num_fds()
        gc.disable()
        try:
            check(fake, NAMES, *batch(), *ask(pool, NAMES))
            assert pool.stats()["restarts"] == 1
            assert psutil.Process().num_fds() <= before
        finally:
            gc.enable()


def test_what_is_not_masked(options) -> None:
    with (
        SprintInstancePool(options("dies", on_error="mask")) as pool,
        pytest.raises(SprintStartError),
    ):
        pool.get_batch_loss_and_error_signal(*batch(), NAMES)
    # Whatever the reason is that there is none.
    for fault, kind in (("silent", SprintTimeoutError), ("version", SprintProtocolError)):
        with (
            SprintInstancePool(options(fault, on_error="mask", start_timeout=1.0)) as pool,
            pytest.raises(kind, match="version 7|did not answer the handshake"),
        ):
            pool.get_batch_loss_and_error_signal(*batch(), NAMES)
    pool = SprintInstancePool(options(on_error="mask", request_timeout=300.0))
    pool.get_automata_for_batch(["a/b/1"])
    closer = threading.Timer(0.5, pool.close)
    closer.start()
    with pytest.raises(SprintClosedError):
        pool.get_batch_loss_and_error_signal(*batch(), ["a/hang/1", *NAMES[1:]])
    closer.join()


def test_a_start_that_fails_once_is_repeated(options, tmp_path) -> None:
    marked = options("once", max_retries=1, control_config={"marker": tmp_path / "was here"})
    with SprintInstancePool(marked) as pool:
        pool.get_automata_for_batch(["a/b/1"])
        assert pool.stats()["starts"] == 2


def test_one_sprint_does_the_work_if_the_other_cannot_start(options, fake, tmp_path) -> None:
    # The second one fails to start again and again; its share goes to the first.
    single = options("only first", num_instances=2, control_config={"marker": tmp_path / "first"})
    with SprintInstancePool(single) as pool:
        pool.get_automata_for_batch(["a/b/1"])
        for _ in range(3):
            names = [f"a/slow/{b}" if b == 3 else f"a/b/{b}" for b in range(4)]
            result = pool.get_batch_loss_and_error_signal(*batch(), names)
            check(fake, names, *batch(), *result)
        assert pool.stats()["failures"] == 0
        # Without the first there is nobody.
        with pytest.raises(SprintError):
            pool.get_automata_for_batch(["a/exit/1", "a/b/2"])


def test_sprints_killed_at_random(options, fake) -> None:
    rng = random.Random(0)
    killed = 0
    stop = threading.Event()

    def assassin() -> None:
        nonlocal killed
        while not stop.wait(rng.uniform(0.05, 0.4)):
            readers = [t for t in threading.enumerate() if isinstance(t, ReaderThread)]
            victim = rng.choice(readers).instance
            # Not one that is starting, which on a busy machine takes longer than we wait.
            if victim is not None and victim.is_calculating:
                victim.kill()
                killed += 1

    with SprintInstancePool(options(num_instances=2, max_retries=8)) as pool:
        pool.get_automata_for_batch(["a/b/1", "a/b/2"])
        thread = threading.Thread(target=assassin)
        thread.start()
        try:
            while pool.stats()["restarts"] < 6:
                names = [f"a/{rng.random()}/{b}" for b in range(4)]
                result = pool.get_batch_loss_and_error_signal(*batch(), names)
                check(fake, names, *batch(), *result)
        finally:
            stop.set()
            thread.join()
        assert killed >= 6
        assert pool.stats()["failures"] == 0
