"""One deadline for a whole batch: whatever its segments wait for, it ends in time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from jax_sprint.bridge import SprintInstancePool
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintStartError,
    SprintTimeoutError,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

LENGTHS = np.array([8, 7, 6, 5])
NAMES = ["a/fine/1", "a/fine/2", "a/fine/3", "a/fine/4"]
POSTERIORS = np.random.default_rng(0).normal(size=(8, 4, 5)).astype(np.float32)


def ask(pool: SprintInstancePool, names=NAMES, **limits) -> tuple[np.ndarray, np.ndarray]:
    return pool.get_batch_loss_and_error_signal(POSTERIORS, LENGTHS, names, **limits)


def check(fake, names, loss, error_signal, failed=()) -> None:
    for b, (name, length) in enumerate(zip(names, LENGTHS, strict=True)):
        if b in failed:
            assert np.isnan(loss[b])
            assert (error_signal[:, b] == 0).all()
            continue
        want = fake.expected(name, POSTERIORS[:length, b])
        assert loss[b] == want[0]
        np.testing.assert_array_equal(error_signal[:length, b], want[1])


def test_a_stopped_sprint_costs_its_own_segment_only(options, fake) -> None:
    # The request's own time-out would take ten times as long.
    limited = options(num_instances=2, batch_timeout=2.0, on_error="mask")
    names = ["a/stop/1", *NAMES[1:]]
    with SprintInstancePool(limited) as pool:
        assert pool.start() == 2
        before = time.monotonic()
        result = ask(pool, names)
        assert time.monotonic() - before < 15
        check(fake, names, *result, failed=[0])
        with pytest.raises(SprintTimeoutError, match="left of its batch's time") as caught:
            pool.check()
        assert caught.value.segment == "a/stop/1"
        check(fake, NAMES, *ask(pool))


def test_what_waits_for_a_free_sprint(options, fake) -> None:
    names = ["a/hang/1", *NAMES[1:]]
    with SprintInstancePool(options(batch_timeout=1.5, on_error="mask")) as pool:
        pool.start()
        # The longest goes first, and the others find nobody.
        check(fake, names, *ask(pool, names), failed=[0, 1, 2, 3])
        assert "3 more of the 4 requests failed" in str(pool.last_error)
        assert pool.stats()["failures"] == pool.stats()["masked"] == 4
        check(fake, NAMES, *ask(pool))
    with SprintInstancePool(options()) as pool:
        pool.start()

        def ask_for(names, timeout):
            pool.get_batch_loss_and_error_signal(POSTERIORS, LENGTHS, names, timeout=timeout)

        with ThreadPoolExecutor() as threads:
            busy = threads.submit(ask_for, ["a/hang/1", *NAMES[1:]], 2.5)
            time.sleep(0.5)
            with pytest.raises(SprintTimeoutError, match=r"= 1.0 s: no Sprint was free for it"):
                ask_for(NAMES, 1.0)
            # It tells of the one that kept the Sprint from the others.
            with pytest.raises(SprintTimeoutError, match="gave no complete answer") as caught:
                busy.result()
            assert caught.value.segment == "a/hang/1"


def test_a_sprint_that_is_still_starting_goes_on(options, fake) -> None:
    slow = options("slow start", "--sleep=2.5", batch_timeout=0.5)
    with SprintInstancePool(slow) as pool:
        with pytest.raises(SprintTimeoutError, match="still starting"):
            ask(pool)
        assert pool.start() == 1
        check(fake, NAMES, *ask(pool))
        stats = pool.stats()
    assert stats["starts"] == 1
    assert stats["failures"] == stats["requests"] == 4


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_is_none(options, timeout: float) -> None:
    with SprintInstancePool(options()) as pool:
        with pytest.raises(ValueError, match="timeout must be a positive"):
            ask(pool, timeout=timeout)
        assert pool.stats()["starts"] == 0


def test_retries_end_with_the_batch(options) -> None:
    with SprintInstancePool(options(max_retries=10_000, batch_timeout=2.0)) as pool:
        # Between two tries it is a Sprint that is starting.
        with pytest.raises((SprintCrashError, SprintTimeoutError)):
            ask(pool, ["a/exit/1", *NAMES[1:]])
        assert pool.stats()["retries"] < 200


def test_a_start_that_fails_again_and_again_ends_with_the_batch(options) -> None:
    with (
        SprintInstancePool(options("dies", max_retries=10_000, batch_timeout=2.0)) as pool,
        pytest.raises((SprintTimeoutError, SprintStartError)),
    ):
        ask(pool)


def test_without_retries_the_message_says_so(options) -> None:
    with (
        SprintInstancePool(options()) as pool,
        pytest.raises(SprintCrashError, match="max_retries = 0; 1 would have asked"),
    ):
        ask(pool, ["a/kill/1", *NAMES[1:]])


def test_an_interruption_while_a_sprint_starts(options, fake, monkeypatch) -> None:
    """Who has gone is not asked for: his arrays may be gone as well."""
    with SprintInstancePool(options("slow start", "--sleep=2")) as pool:

        def interrupt() -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(pool._crew, "check", interrupt)
            with pytest.raises(KeyboardInterrupt):
                ask(pool)
        assert pool.start() == 1
        assert pool.stats()["bytes_sent"] == 0
        check(fake, NAMES, *ask(pool))


def test_starting_all(options, tmp_path) -> None:
    with SprintInstancePool(
        options("meet", num_instances=3, control_config={"meet": tmp_path, "number": 3})
    ) as pool:
        # Each of them waits until all three have come.
        assert pool.start() == 3
        assert pool.start() == 3
        assert pool.stats()["starts"] == 3
        assert pool.stats()["requests"] == 0


def test_starting_some(options, tmp_path, caplog) -> None:
    one = options("only first", num_instances=3, control_config={"marker": tmp_path / "first"})
    with SprintInstancePool(one) as pool:
        assert pool.start() == 1
        assert caplog.text.count("no licence left") == 2
    with SprintInstancePool(options("dies", num_instances=2)) as pool:
        with pytest.raises(SprintStartError, match="1 more of the 2(?s:.*)licence file"):
            pool.start()
        assert isinstance(pool.last_error, SprintStartError)


def test_starting_by_several_threads_at_once(options) -> None:
    with SprintInstancePool(options(num_instances=2)) as pool:
        started: list[int] = []
        threads = [threading.Thread(target=lambda: started.append(pool.start())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert started == [2] * 4
        assert pool.stats()["starts"] == 2


def test_closing_while_all_start(options) -> None:
    with SprintInstancePool(options("silent", num_instances=2)) as pool:
        closer = threading.Timer(0.5, pool.close)
        closer.start()
        with pytest.raises(SprintClosedError):
            pool.start()
        closer.join()


def test_a_child_that_died_in_between_is_replaced(options, fake) -> None:
    with SprintInstancePool(options(num_instances=1)) as pool:
        pool.start()
        for child in psutil.Process().children():
            if "fake_sprint.py" in " ".join(child.cmdline()):
                child.kill()
                child.wait(5)
        check(fake, NAMES, *ask(pool))
        assert pool.stats()["restarts"] == 1
        assert pool.stats()["failures"] == pool.stats()["retries"] == 0
