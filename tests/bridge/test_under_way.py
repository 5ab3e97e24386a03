"""Several requests under way on one child: right answers, and nobody pays for another's fault."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.bridge import SprintInstancePool, SprintOptions, SprintSubprocessInstance
from jax_sprint.bridge.requests import StartRequest
from jax_sprint.bridge.work import Batch, Job, WorkQueue
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintError,
    SprintProtocolError,
    SprintRequestError,
    SprintTimeoutError,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

CHILD = Path(__file__).with_name("queue_sprint.py")
COUNT = 12


def child(*arguments: str, **attributes: object) -> SprintOptions:
    settings: dict = {
        "exec_path": [sys.executable, str(CHILD)],
        "config": list(arguments),
        "start_timeout": 20.0,
        "request_timeout": 20.0,
        "exit_timeout": 2.0,
    }
    return SprintOptions(**{**settings, **attributes})


def batch(labels: int = 7, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    # All are equally long, so they are asked for in their order.
    rng = np.random.default_rng(0)
    log_posteriors = rng.normal(size=(9, count, labels)).astype(np.float32)
    return log_posteriors, np.full(count, 9)


def named(faults: dict[int, str], count: int = COUNT) -> list[str]:
    return [f"a/{faults.get(b, 'fine')}/{b}" for b in range(count)]


def check(fake, names, log_posteriors, lengths, loss, error_signal, failed=()) -> None:
    assert np.flatnonzero(np.isnan(loss)).tolist() == list(failed)
    for b, (name, length) in enumerate(zip(names, lengths, strict=True)):
        if b in failed:
            assert (error_signal[:, b] == 0).all()
            continue
        want = fake.expected(name, log_posteriors[:length, b])
        np.testing.assert_allclose(loss[b], want[0], rtol=1e-5)
        np.testing.assert_array_equal(error_signal[:length, b], want[1])


# ------------------------------------------------------------------------------- one instance


def send(instance: SprintSubprocessInstance, name: str, shape=(9, 7)) -> np.ndarray:
    frames = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    instance.get_loss_and_error_signal__send(name, shape[0], frames)
    return frames


def test_answers_come_in_the_order_of_the_requests(fake) -> None:
    # Of all sizes, so that the memory is used from the front again, and grows in between.
    rng = np.random.default_rng(0)
    sent = []
    deepest = 0
    with SprintSubprocessInstance(child()) as instance:
        for number in range(300):
            shape = (int(rng.integers(1, 60)), int(rng.integers(1, 4000 if number > 200 else 900)))
            automaton = rng.random() < 0.2
            name = f"a/fine/{number}"
            while sent and (
                rng.random() < 0.1
                or not instance.has_room(name, 0 if automaton else 4 * shape[0] * shape[1])
            ):
                read_one(fake, instance, *sent.pop(0))
            if automaton:
                instance.export_allophone_state_fsa_by_segment_name__send(name)
                sent.append((name, None))
            else:
                sent.append((name, send(instance, name, shape)))
            deepest = max(deepest, len(sent))
        while sent:
            read_one(fake, instance, *sent.pop(0))
        assert not instance.is_calculating
    assert deepest >= 4


def read_one(fake, instance, name, frames) -> None:
    if frames is None:
        states, count, edges, weights = instance.export_allophone_state_fsa_by_segment_name__read()
        want = fake.expected_automaton(name)
        assert (states, count) == want[:2]
        np.testing.assert_array_equal(edges.reshape(-1), want[2])
        np.testing.assert_array_equal(weights, want[3])
        return
    got, loss, error_signal = instance.get_loss_and_error_signal__read()
    want = fake.expected(name, frames)
    assert got == name
    np.testing.assert_allclose(loss, want[0], rtol=1e-5)
    np.testing.assert_array_equal(error_signal, want[1])


def test_there_is_room_while_it_fits_into_pipe_and_memory() -> None:
    with SprintSubprocessInstance(child()) as instance:
        assert instance.has_room("a/b/1", 1 << 40)  # the memory grows while nothing is under way
        send(instance, "a/slow/1")
        assert instance.has_room("a/b/1", 4)
        assert not instance.has_room("a/b/1", 1 << 30)
        assert not instance.has_room("a/" + 4000 * "b", 4)
        assert not instance.has_room("a/b/1", 0)  # losses and automata take turns
        count = 0
        while instance.has_room("a/b/1", 4 * 63):
            send(instance, "a/b/1")
            count += 1
        assert 10 <= count <= 60
        with pytest.raises(SprintError, match=r"for 'a/slow/1' was not read yet"):
            send(instance, "a/b/1")
        for _ in range(count + 1):
            instance.get_loss_and_error_signal__read()
        assert not instance.is_calculating


def test_the_wrong_half_is_an_error(fake) -> None:
    with SprintSubprocessInstance(child()) as instance:
        frames = send(instance, "a/fine/1")
        with pytest.raises(SprintError, match="the loss was asked for"):
            instance.export_allophone_state_fsa_by_segment_name__read()
        read_one(fake, instance, "a/fine/1", frames)
        instance.export_allophone_state_fsa_by_segment_name__send("a/fine/2")
        with pytest.raises(SprintError, match="the automaton was asked for"):
            instance.get_loss_and_error_signal__read()
        read_one(fake, instance, "a/fine/2", None)


def test_what_was_answered_before_the_death_is_there(fake) -> None:
    with SprintSubprocessInstance(child()) as instance:
        frames = [send(instance, f"a/fine/{b}") for b in range(3)]
        send(instance, "a/kill/3")
        send(instance, "a/fine/4")
        assert instance._child is not None
        assert instance._child.wait(10.0)
        # Nobody takes this one any more; still the answers before it come first.
        if instance.has_room("a/fine/5", 252):
            send(instance, "a/fine/5")
        for b in range(3):
            read_one(fake, instance, f"a/fine/{b}", frames[b])
        with pytest.raises(SprintCrashError, match="SIGKILL") as caught:
            instance.get_loss_and_error_signal__read()
        assert caught.value.segment == "a/kill/3"
        assert not instance.is_calculating
        assert not instance.is_alive


def test_each_request_has_its_own_deadline(fake) -> None:
    # Four times 0.4 s; nobody is too late, as Sprint begins with each when it has done the last.
    with SprintSubprocessInstance(child(request_timeout=1.2)) as instance:
        frames = [send(instance, f"a/slow/{b}") for b in range(4)]
        for b in range(4):
            read_one(fake, instance, f"a/slow/{b}", frames[b])
        send(instance, "a/fine/1")
        send(instance, "a/hang/2")
        instance.get_loss_and_error_signal__read()
        with pytest.raises(SprintTimeoutError, match=r"request_timeout = 1\.2 s") as caught:
            instance.get_loss_and_error_signal__read()
        assert caught.value.segment == "a/hang/2"


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    with SprintSubprocessInstance(child()) as instance:
        assert instance._child is not None
        memory = instance._child.memory
        assert memory is not None
        under_way = 0
        for _ in range(200):
            while not instance.has_room("a/fine/1", 4 * 500 * 100):
                instance.get_loss_and_error_signal__read()
                under_way -= 1
            send(instance, "a/fine/1", (500, 100))
            under_way += 1
        assert memory.size == 1 << 22
        for _ in range(under_way):
            instance.get_loss_and_error_signal__read()
        send(instance, "a/fine/1", (500, 1000))
        # Room for two, and half a request more.
        assert memory.size <= 5 * 4 * 500 * 1000 + 10 * 4096
        instance.get_loss_and_error_signal__read()


# -------------------------------------------------------------------------------------- a pool


@pytest.mark.parametrize("num_instances", [1, 2])
def test_the_next_one_is_there_when_sprint_is_done(fake, num_instances: int) -> None:
    faults = dict.fromkeys(range(COUNT - 1), "wait")
    if num_instances == 2:
        # Not at the end, when the other might be without work; now it has.
        faults = {0: "wait", 1: "slow", 2: "slow", 3: "slow"}
    names = named(faults)
    with SprintInstancePool(child(num_instances=num_instances)) as pool:
        pool.start()
        check(fake, names, *batch(), *pool.get_batch_loss_and_error_signal(*batch(), names))
        # Nobody has to wait for another request forever.
        check(fake, names[-1:], *batch(count=1), *only(pool, names[-1:]))


def only(pool, names):
    return pool.get_batch_loss_and_error_signal(*batch(count=1), names)


def test_automata_too(fake) -> None:
    names = named(dict.fromkeys(range(COUNT - 1), "wait"))
    for cached in (0, 1 << 20):
        with SprintInstancePool(child(automata_cache_bytes=cached)) as pool:
            edges, _, _ = pool.get_automata_for_batch(names)
            assert edges.shape[1] == sum(fake.expected_automaton(name)[1] for name in names)


@pytest.mark.parametrize("memory", [True, False])
def test_a_control_module_that_can_do_one_at_a_time(fake, memory: bool) -> None:
    with SprintInstancePool(child("--old", shared_memory=memory)) as pool:
        names = named({})
        for _ in range(2):
            check(fake, names, *batch(), *pool.get_batch_loss_and_error_signal(*batch(), names))
        edges, _, _ = pool.get_automata_for_batch(names)
        assert edges.shape[1] == sum(fake.expected_automaton(name)[1] for name in names)
        assert pool.stats()["starts"] == 1


@pytest.mark.parametrize("attributes", [{"protocol_version": 1}, {"shared_memory": False}])
def test_through_the_pipe(fake, attributes: dict) -> None:
    # Only automata may wait in a pipe of version 2, and what is as small.
    rng = np.random.default_rng(0)
    log_posteriors = rng.normal(size=(300, 6, 100)).astype(np.float32)
    lengths = np.array([300, 2, 1, 0, 200, 1])
    names = named({}, 6)
    with SprintInstancePool(child(**attributes)) as pool:
        loss, error_signal = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        assert np.isposinf(loss[3])
        for b in (0, 1, 2, 4, 5):
            want = fake.expected(names[b], log_posteriors[: lengths[b], b])
            np.testing.assert_allclose(loss[b], want[0], rtol=1e-4)
            np.testing.assert_array_equal(error_signal[: lengths[b], b], want[1])


def test_probabilities_that_sprint_keeps_do_not_change(fake) -> None:
    names = named({})
    log_posteriors, lengths = batch()
    with SprintInstancePool(child("--posteriors")) as pool:
        loss, error_signal = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        for b, name in enumerate(names):
            want = fake.expected(name, log_posteriors[:, b])
            np.testing.assert_allclose(loss[b], want[0], rtol=1e-4)
            np.testing.assert_allclose(error_signal[:, b], want[1], rtol=1e-4)


@pytest.mark.parametrize("num_instances", [1, 2])
def test_only_the_segment_that_sprint_died_of_fails(fake, num_instances: int) -> None:
    names = named({3: "kill", 8: "kill"})
    dying = child(num_instances=num_instances, on_error="mask")
    with SprintInstancePool(dying) as pool:
        result = pool.get_batch_loss_and_error_signal(*batch(), names)
        check(fake, names, *batch(), *result, failed=[3, 8])
        stats = pool.stats()
        assert stats["failures"] == 2
        assert stats["requests"] == COUNT - 2
        assert stats["retries"] == 0
        with pytest.raises(SprintCrashError, match="1 more of the 12") as caught:
            pool.check()
        assert caught.value.segment == "a/kill/3"


def test_what_was_answered_is_not_asked_again(fake, tmp_path: Path) -> None:
    names = named({4: "once"})
    dying = child(f"--served={tmp_path / 'served'}", f"--marker={tmp_path / 'marker'}")
    with SprintInstancePool(dying.replace(max_retries=1, num_instances=1)) as pool:
        result = pool.get_batch_loss_and_error_signal(*batch(), names)
        check(fake, names, *batch(), *result)
        assert pool.stats()["retries"] == 1
        assert pool.stats()["starts"] == 2
    lines = [line.split(" ", 1) for line in (tmp_path / "served").read_text().splitlines()]
    # What waited behind it had not been begun.
    assert Counter(name for _, name in lines) == {
        name: 2 if "once" in name else 1 for name in names
    }
    assert len({pid for pid, _ in lines}) == 2


@pytest.mark.parametrize("fault", ["refuse", "nan", "stop"])
def test_other_faults_in_the_middle(fake, fault: str) -> None:
    kind, starts = {
        "refuse": (SprintRequestError, 1),
        "nan": (SprintProtocolError, 2),
        "stop": (SprintTimeoutError, 2),
    }[fault]
    names = named({5: fault})
    quick = child(on_error="mask", request_timeout=1.0 if fault == "stop" else 20.0)
    with SprintInstancePool(quick) as pool:
        result = pool.get_batch_loss_and_error_signal(*batch(), names)
        check(fake, names, *batch(), *result, failed=[5])
        assert pool.stats()["starts"] == starts
        with pytest.raises(kind) as caught:
            pool.check()
        assert caught.value.segment == names[5]


def test_nan_in_the_middle_is_not_sent(fake, tmp_path: Path) -> None:
    log_posteriors, lengths = batch()
    log_posteriors[2, 0, 3] = log_posteriors[8, 5, 6] = np.nan
    names = named({})
    with SprintInstancePool(child(f"--served={tmp_path / 'served'}")) as pool:
        result = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        check(fake, names, log_posteriors, lengths, *result, failed=[0, 5])
        assert pool.stats()["failures"] == 0
    assert len((tmp_path / "served").read_text().splitlines()) == COUNT - 2


def test_a_batch_that_is_given_up_costs_no_other_one_its_answers(fake) -> None:
    # Both wait for the same Sprint; the kill that frees it is not held against the second one.
    cancelled = threading.Event()
    with (
        SprintInstancePool(child(automata_cache_bytes=0)) as pool,
        ThreadPoolExecutor(2) as threads,
    ):
        pool.start()
        first = threads.submit(
            pool.get_automata_for_batch, ["a/slow/0", "a/hang/1", "a/fine/2"], cancelled=cancelled
        )
        time.sleep(0.2)
        names = [f"a/fine/{b}" for b in range(3, 9)]
        second = threads.submit(pool.get_automata_for_batch, names)
        time.sleep(0.5)
        cancelled.set()
        with pytest.raises(SprintClosedError, match="cancelled"):
            first.result(20)
        edges, _, _ = second.result(20)
        assert edges.shape[1] == sum(fake.expected_automaton(name)[1] for name in names)
        assert pool.stats()["requests"] >= 6


def test_a_batch_with_less_time_does_not_wait_behind_one_with_more(fake) -> None:
    # The second batch's segment is the shorter one; it would be sent ahead, and nobody would look
    # at its deadline while the first one is computed.
    log_posteriors, _ = batch(count=1)
    with (
        SprintInstancePool(
            child(),
        ) as pool,
        ThreadPoolExecutor(1) as threads,
    ):
        pool.start()
        first = threads.submit(
            pool.get_batch_loss_and_error_signal, log_posteriors, [9], ["a/wait/1"]
        )
        time.sleep(0.3)
        before = time.monotonic()
        with pytest.raises(SprintTimeoutError, match="batch_timeout"):
            pool.get_batch_loss_and_error_signal(log_posteriors, [8], ["a/fine/2"], timeout=1.0)
        assert time.monotonic() - before < 8
        with pytest.raises(SprintRequestError, match="nothing waits"):
            first.result(30)


def test_others_are_called_if_it_takes_longer_than_it_used_to(tmp_path: Path) -> None:
    # After many that took no time one thread is thought to be enough.
    served = tmp_path / "served"
    with SprintInstancePool(child(f"--served={served}", num_instances=2)) as pool:
        pool.start()
        log_posteriors, lengths = batch(count=400)
        pool.get_batch_loss_and_error_signal(log_posteriors, lengths, named({}, 400))
        served.unlink()
        # Some were sent ahead before it was known.
        names = named(dict.fromkeys(range(COUNT), "slow"))
        pool.get_batch_loss_and_error_signal(*batch(), names)
        assert len({line.split()[0] for line in served.read_text().splitlines()}) == 2


def test_one_thread_is_enough_for_very_short_requests() -> None:
    queue = WorkQueue()
    taken: list[Job] = []
    got = threading.Semaphore(0)

    def take() -> None:
        while (job := queue.get()) is not None:
            taken.append(job)
            got.release()
            release.wait(20)

    def put(count: int) -> None:
        batch = Batch()
        assert queue.put([Job(batch, b, "a/b/1", 1, StartRequest()) for b in range(count)])

    release = threading.Event()
    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    while queue.missing() or queue._idle < 3:
        time.sleep(0.001)
    try:
        queue.answered(1, 20e-6)
        put(3)
        assert got.acquire(timeout=20)
        assert not got.acquire(timeout=0.2)  # the others sleep on
        queue.call()
        assert got.acquire(timeout=20)
        assert got.acquire(timeout=20)
    finally:
        release.set()
        while queue._idle < 3:
            time.sleep(0.001)
    # Long ones: all of them at once.
    release.clear()
    try:
        for _ in range(200):
            queue.answered(1, 0.1)
        put(3)
        for _ in range(3):
            assert got.acquire(timeout=20)
    finally:
        release.set()
        queue.close()
        for thread in threads:
            thread.join()


def test_close_with_several_under_way() -> None:
    pool = SprintInstancePool(child(request_timeout=300.0))
    pool.start()
    with ThreadPoolExecutor(1) as threads:
        names = named({2: "hang"})
        running = threads.submit(pool.get_batch_loss_and_error_signal, *batch(), names)
        time.sleep(0.5)
        pool.close()
        with pytest.raises(SprintClosedError, match="closed"):
            running.result(10)
