"""Short requests that are written together, and what is sent ahead when."""

from __future__ import annotations

import math
import select
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jax_sprint.bridge import SprintInstancePool, SprintOptions, SprintSubprocessInstance
from jax_sprint.bridge import ahead as ahead_module
from jax_sprint.bridge.ahead import Ahead
from jax_sprint.bridge.forecast import Forecast
from jax_sprint.bridge.options import default_control_module
from jax_sprint.bridge.pool_instance import PoolInstance
from jax_sprint.bridge.requests import StartRequest
from jax_sprint.bridge.work import Batch, Job, WorkQueue
from jax_sprint.errors import SprintCrashError, SprintProtocolError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

QUEUE_CHILD = Path(__file__).with_name("queue_sprint.py")
SECOND_CHILD = Path(__file__).with_name("second_sprint.py")


def child(*arguments: str, **attributes: object) -> SprintOptions:
    settings: dict = {
        "exec_path": [sys.executable, str(QUEUE_CHILD)],
        "config": list(arguments),
        "start_timeout": 20.0,
        # What waits for it, hangs.
        "request_timeout": 300.0,
        "exit_timeout": 2.0,
    }
    return SprintOptions(**{**settings, **attributes})


def second(**attributes: object) -> SprintOptions:
    path = [sys.executable, str(SECOND_CHILD), default_control_module()[0]]
    return child(exec_path=path, **attributes)


def keep_back(instance: SprintSubprocessInstance, name: str, shape=(9, 7)) -> np.ndarray:
    frames = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    assert instance.get_loss_and_error_signal__send(name, shape[0], frames, keep_back=True)
    return frames


def read(fake, instance: SprintSubprocessInstance, name: str, frames: np.ndarray) -> None:
    got, loss, error_signal = instance.get_loss_and_error_signal__read()
    want = fake.expected(name, frames)
    assert got == name
    np.testing.assert_allclose(loss, want[0], rtol=1e-5)
    np.testing.assert_array_equal(error_signal, want[1])


# ------------------------------------------------------------------------------- one instance


@pytest.mark.parametrize("memory", [True, False])
def test_several_are_written_at_once(fake, memory: bool) -> None:
    with SprintSubprocessInstance(child(shared_memory=memory)) as instance:
        assert instance._child is not None
        channel = instance._child.channel
        before = channel.bytes_sent
        sent = [(f"a/fine/{b}", keep_back(instance, f"a/fine/{b}", (3 + b, 5))) for b in range(6)]
        # Arrays that go through the pipe are not kept.
        assert (channel.bytes_sent == before) is memory
        assert instance.flush() == (6 if memory else 0)
        assert instance.flush() == 0
        for name, frames in sent:
            read(fake, instance, name, frames)
        assert not instance.is_calculating


def test_automata_too_and_both_in_turn(fake) -> None:
    with SprintSubprocessInstance(child()) as instance:
        for _ in range(3):
            for b in range(4):
                instance.export_allophone_state_fsa_by_segment_name__send(
                    f"a/fine/{b}", keep_back=True
                )
            assert instance.flush() == 4
            for b in range(4):
                want = fake.expected_automaton(f"a/fine/{b}")
                got = instance.export_allophone_state_fsa_by_segment_name__read()
                assert got[:2] == want[:2]
                np.testing.assert_array_equal(got[2].reshape(-1), want[2])
            frames = keep_back(instance, "a/fine/9")
            instance.flush()
            read(fake, instance, "a/fine/9", frames)


@pytest.mark.parametrize("how", ["read", "await", "next"])
def test_nobody_waits_for_what_was_kept_back(fake, how: str) -> None:
    with SprintSubprocessInstance(child()) as instance:
        frames = keep_back(instance, "a/fine/1")
        if how == "await":
            assert instance.await_answer()
        if how == "next":
            # One that is not kept back takes those before it along.
            posteriors = np.zeros((2, 3), np.float32)
            instance.get_loss_and_error_signal__send("a/fine/2", 2, posteriors)
            assert instance.flush() == 0
        read(fake, instance, "a/fine/1", frames)
        if how == "next":
            read(fake, instance, "a/fine/2", posteriors)


def test_a_slow_one_does_not_hold_back_the_answers_before_it(fake) -> None:
    with SprintSubprocessInstance(child()) as instance:
        frames = [keep_back(instance, f"a/fine/{b}") for b in range(2)]
        keep_back(instance, "a/hang/2")
        keep_back(instance, "a/fine/3")
        instance.flush()
        for b in range(2):
            read(fake, instance, f"a/fine/{b}", frames[b])
        assert not instance.has_answer()
        assert instance.count_answers() == 0
        instance.kill()
        with pytest.raises(SprintCrashError) as caught:
            instance.get_loss_and_error_signal__read()
        assert caught.value.segment == "a/hang/2"


def test_death_in_the_middle_of_a_group(fake) -> None:
    with SprintSubprocessInstance(child()) as instance:
        names = ["a/fine/0", "a/fine/1", "a/kill/2", "a/fine/3", "a/fine/4"]
        frames = [keep_back(instance, name) for name in names]
        instance.flush()
        for b in range(2):
            read(fake, instance, names[b], frames[b])
        with pytest.raises(SprintCrashError, match="SIGKILL") as caught:
            instance.get_loss_and_error_signal__read()
        assert caught.value.segment == "a/kill/2"
        assert not instance.is_calculating


def test_a_group_that_the_child_never_took(fake) -> None:
    # It lives, and its answers could still come; but it has closed the pipe of the requests.
    with SprintSubprocessInstance(second()) as instance:
        assert instance._child is not None
        frames = keep_back(instance, "a/close input/1")
        read(fake, instance, "a/close input/1", frames)
        poller = select.poll()
        poller.register(instance._child.channel.write_fd, 0)
        assert poller.poll(20_000)
        keep_back(instance, "a/b/2")
        keep_back(instance, "a/b/3")
        instance.flush()
        # Without waiting for `request_timeout`.
        assert instance.await_answer()
        with pytest.raises(SprintCrashError, match="closed its pipe, though it was") as caught:
            instance.get_loss_and_error_signal__read()
        assert caught.value.segment == "a/b/2"


# -------------------------------------------------------------------------------------- a pool


def batch(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(9, count, 7)).astype(np.float32), np.full(count, 9)


@pytest.mark.parametrize("fault", ["name", "number", "offset", "shape"])
@pytest.mark.parametrize("num_instances", [1, 2])
def test_a_wrong_answer_in_the_middle_of_a_group(fake, fault: str, num_instances: int) -> None:
    names = [f"a/{fault if b == 5 else 'b'}/{b}" for b in range(14)]
    log_posteriors, lengths = batch(14)
    with SprintInstancePool(second(on_error="mask", num_instances=num_instances)) as pool:
        for _ in range(2):
            loss, error_signal = pool.get_batch_loss_and_error_signal(
                log_posteriors, lengths, names
            )
            assert np.flatnonzero(np.isnan(loss)).tolist() == [5]
            for b in (*range(5), *range(6, 14)):
                want = fake.expected(names[b], log_posteriors[:, b])
                np.testing.assert_allclose(loss[b], want[0], rtol=1e-5)
                np.testing.assert_array_equal(error_signal[:, b], want[1])
            with pytest.raises(SprintProtocolError) as caught:
                pool.check()
            assert caught.value.segment == names[5]


def test_what_went_through_few_system_calls_is_right(fake) -> None:
    # As many as there is room for, of all lengths, for a child that takes no time.
    rng = np.random.default_rng(1)
    log_posteriors = rng.normal(size=(40, 300, 20)).astype(np.float32)
    lengths = rng.integers(0, 41, 300)
    names = [f"a/fine/{b}" for b in range(300)]
    with SprintInstancePool(child(num_instances=2)) as pool:
        loss, error_signal = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        assert pool.stats()["requests"] == np.count_nonzero(lengths)
    for b, length in enumerate(lengths):
        if length:
            want = fake.expected(names[b], log_posteriors[:length, b])
            np.testing.assert_allclose(loss[b], want[0], rtol=1e-4)
            np.testing.assert_array_equal(error_signal[:length, b], want[1])
        assert (error_signal[length:, b] == 0).all()


def test_writing_fails_for_a_reason_of_our_own(fake, monkeypatch) -> None:
    log_posteriors, lengths = batch(6)
    log_posteriors[:, 5] = np.nan
    names = [f"a/fine/{b}" for b in range(6)]
    flush = PoolInstance.flush
    failures = [OSError("no memory")]

    def fail(instance: PoolInstance) -> int:
        # Once, when some are under way.
        if failures and len(instance._pending) >= 2:
            raise failures.pop()
        return flush(instance)

    monkeypatch.setattr(PoolInstance, "flush", fail)
    with SprintInstancePool(child()) as pool:
        with pytest.raises(OSError, match="no memory"):
            pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        loss, _ = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        assert np.flatnonzero(np.isnan(loss)).tolist() == [5]


# ------------------------------------------------------------------------ who gets what, and when


class Roomy:
    """An instance with room for anything."""

    def has_room(self, name: str, data_bytes: int) -> bool:
        return True


def job(cost: int, batch: Batch | None = None) -> Job:
    return Job(batch or Batch(), 0, "a/b/1", cost, StartRequest())


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(ahead_module.time, "monotonic", lambda: clock.now)
    return clock


def answered(ahead: Ahead, cost: int, seconds: float, times: int = 30) -> None:
    for _ in range(times):
        ahead.answered(cost, seconds, 1)


def test_a_slow_sprint_takes_less_ahead(clock) -> None:
    # Of 99 frames each: ten are in the queue, enough to keep the other one busy meanwhile.
    for seconds, fits in ((0.1, True), (0.2, True), (0.5, False)):
        ahead = Ahead(1)
        answered(ahead, 99, seconds)
        ahead.since = clock.now
        ahead.add(job(99))
        assert ahead.fits(job(99), 1000, 0.1 / 100, Roomy()) is fits
    # Without others there is no reason to wait.
    ahead = Ahead(0)
    ahead.add(job(99))
    assert ahead.fits(job(99), 0, 1e-3, Roomy())


def test_the_next_one_is_sent_just_before_it_is_due(clock) -> None:
    ahead = Ahead(7)
    assert ahead.due_in() == math.inf
    answered(ahead, 99, 0.02)
    ahead.since = clock.now
    assert ahead.due_in() == math.inf
    ahead.add(job(99))
    # With so little left in the queue some other Sprint might be free first.
    assert not ahead.fits(job(99), 100, 0.02 / 100, Roomy())
    left = ahead.due_in()
    assert 0.015 < left < 0.02
    clock.now += left + 1e-4
    assert ahead.fits(job(99), 100, 0.02 / 100, Roomy())
    # Then nothing is to be looked for any more.
    assert ahead.due_in() == math.inf
    ahead.add(job(99))
    assert not ahead.fits(job(99), 100, 0.02 / 100, Roomy())
    assert ahead.due_in() == math.inf


def test_nothing_is_sent_early_to_a_sprint_that_cannot_be_foreseen(clock) -> None:
    ahead = Ahead(7)
    for seconds in (0.02, 0.05, 0.01, 0.03) * 8:
        ahead.answered(99, seconds, 1)
    ahead.since = clock.now
    ahead.add(job(99))
    assert ahead.due_in() == math.inf
    clock.now += 10.0
    assert not ahead.fits(job(99), 100, 0.02 / 100, Roomy())


def test_what_failed_gets_no_followers() -> None:
    ahead = Ahead(0)
    first = job(99)
    ahead.add(first)
    first.attempts = 1
    assert not ahead.fits(job(99), 1000, 1e-3, Roomy())


def test_who_was_handed_back_before_is_not_missed() -> None:
    ahead = Ahead(0)
    one, two = job(10), job(20)
    ahead.add(one)
    ahead.add(two)
    for gone in (two, two, one, one):
        ahead.remove(gone)
    assert not ahead.jobs
    assert ahead._load == ahead._load_bytes == 0


@pytest.mark.parametrize(
    ("law", "costs"),
    [
        (lambda cost: 0.02, (200, 150, 100, 50)),
        (lambda cost: 1e-4 * cost, (200, 150, 100, 50)),
        (lambda cost: 0.005 + 1e-4 * cost, (200, 150, 100, 50)),
        (lambda cost: 0.02, (7,)),
    ],
)
def test_a_forecast(law, costs) -> None:
    forecast = Forecast()
    assert forecast.seconds(10) == 0.0
    assert forecast.error == math.inf
    for _ in range(12):
        for cost in costs:
            forecast.learn(cost, law(cost), 1)
    for cost in costs:
        assert forecast.seconds(cost) == pytest.approx(law(cost), rel=1e-3)
    assert forecast.error < 1e-3
    # Several at once count for as many.
    forecast.learn(costs[0], 3 * law(costs[0]), 3)
    assert forecast.seconds(costs[0]) == pytest.approx(law(costs[0]), rel=1e-3)
    # It is never negative, and a surprise is remembered.
    assert forecast.seconds(0) >= 0.0
    forecast.learn(costs[0], 10.0, 1)
    assert forecast.error > 1.0


def test_the_last_to_come_is_woken_first() -> None:
    queue = WorkQueue()
    queue.answered(1, 1e-6)
    taken: list[int] = []
    got = threading.Semaphore(0)

    def serve(number: int) -> None:
        while queue.get(number) is not None:
            taken.append(number)
            got.release()

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=serve, args=(number,)))
        threads[-1].start()
        while len(queue._gates) <= number:
            pass
    try:
        for _ in range(20):
            assert queue.put([job(1)])
            assert got.acquire(timeout=20)
            while len(queue._gates) < 3:
                pass
        assert taken == [2] * 20
    finally:
        queue.close()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(("labels", "short"), [(7, True), (8000, False)])
def test_two_threads_are_worth_it_for_large_copies(fake, monkeypatch, labels, short) -> None:
    # What is handled by one thread at a time counts by what it waited for Sprint alone.
    seen: list[tuple[float, float]] = []
    real = WorkQueue.answered

    def record(self, cost, waited, count=1, took=None, kind=""):
        seen.append((waited, took))
        real(self, cost, waited, count, took, kind)

    monkeypatch.setattr(WorkQueue, "answered", record)
    log_posteriors = np.random.default_rng(0).normal(size=(9, 12, labels)).astype(np.float32)
    names = [f"a/fine/{b}" for b in range(12)]
    with SprintInstancePool(child(num_instances=2)) as pool:
        pool.get_batch_loss_and_error_signal(log_posteriors, np.full(12, 9), names)
    assert seen
    assert all(waited <= took for waited, took in seen)
    assert all(waited == took for waited, took in seen) is not short
