"""The pool: right answers in the right place, from many children, for many callers."""

from __future__ import annotations

import gc
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from jax_sprint.bridge import ReaderThread, SprintInstancePool, encode_tags
from jax_sprint.bridge.options import default_control_module
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintRequestError,
    SprintStartError,
    SprintTimeoutError,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def make_batch(lengths, labels: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    steps = max([*lengths, 1])
    log_posteriors = rng.normal(size=(steps, len(lengths), labels)).astype(np.float32)
    return log_posteriors, np.array(lengths, np.int32)


def check(fake, names, log_posteriors, lengths, loss, error_signal, skip=()) -> None:
    assert loss.dtype == error_signal.dtype == np.float32
    assert loss.shape == lengths.shape
    assert error_signal.shape == log_posteriors.shape
    for b, (name, length) in enumerate(zip(names, lengths, strict=True)):
        assert (error_signal[length:, b] == 0).all()
        if b in skip:
            continue
        want = fake.expected(name, log_posteriors[:length, b])
        assert loss[b] == (want[0] if length else np.inf)
        np.testing.assert_array_equal(error_signal[:length, b], want[1])


@pytest.mark.parametrize("num_instances", [1, 3])
def test_loss_and_error_signal(options, fake, num_instances: int) -> None:
    log_posteriors, lengths = make_batch([7, 0, 12, 1, 5, 12, 3])
    names = [f"corpus/rec {b}/1" for b in range(len(lengths))]
    names[4] = names[2]  # a segment may occur twice
    with SprintInstancePool(options(num_instances=num_instances)) as pool:
        for tags in (names, [n.encode() for n in names], np.array(names), encode_tags(names)):
            result = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, tags)
            check(fake, names, log_posteriors, lengths, *result)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", "bfloat16"])
@pytest.mark.parametrize("version", [1, 2])
def test_other_floats_are_sent_as_float32(options, fake, dtype, version: int) -> None:
    log_posteriors, lengths = make_batch([4, 2])
    log_posteriors = log_posteriors.astype(jnp.bfloat16 if dtype == "bfloat16" else dtype)
    names = ["a/b/1", "a/b/2"]
    child = options()
    if version == 2:
        script = Path(__file__).with_name("second_sprint.py")
        child = child.replace(exec_path=[sys.executable, str(script), default_control_module()[0]])
    with SprintInstancePool(child) as pool:
        result = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
    check(fake, names, log_posteriors.astype(np.float32), lengths, *result)


def test_padding_may_hold_anything_and_frames_may_not(options, fake) -> None:
    log_posteriors, lengths = make_batch([4, 2, 3, 4])
    log_posteriors[2:, 1] = np.nan
    log_posteriors[3:, 2] = -np.inf
    log_posteriors[1, 0, 2] = np.nan  # a valid frame: this sequence only
    log_posteriors[0, 3, 1] = -np.inf  # a probability of zero is fine
    names = [f"a/b/{b}" for b in range(4)]
    with SprintInstancePool(options()) as pool:
        loss, error_signal = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
    assert np.isnan(loss[0])
    assert (error_signal[:, 0] == 0).all()
    check(fake, names, log_posteriors, lengths, loss, error_signal, skip=(0,))


def test_empty_batch(options) -> None:
    with SprintInstancePool(options()) as pool:
        loss, error_signal = pool.get_batch_loss_and_error_signal(
            np.zeros((3, 0, 5), np.float32), np.zeros(0, np.int32), []
        )
        assert loss.shape == (0,)
        assert error_signal.shape == (3, 0, 5)
        loss, _ = pool.get_batch_loss_and_error_signal(
            np.zeros((0, 2, 5), np.float32), np.zeros(2, np.int32), ["", ""]
        )
        assert (loss == np.inf).all()
        edges, weights, states = pool.get_automata_for_batch([])
    assert (edges.shape, weights.shape, states.shape) == ((4, 0), (0,), (2, 0))
    assert (edges.dtype, weights.dtype, states.dtype) == (np.uint32, np.float32, np.uint32)


@pytest.mark.parametrize("num_instances", [1, 2])
def test_automata(options, fake, num_instances: int) -> None:
    names = [f"corpus/{b}" for b in range(9)]
    with SprintInstancePool(options(num_instances=num_instances)) as pool:
        edges, weights, states = pool.get_automata_for_batch(encode_tags(names))
    assert (edges.dtype, weights.dtype, states.dtype) == (np.uint32, np.float32, np.uint32)
    offset = first = 0
    for b, name in enumerate(names):
        num_states, num_edges, want_edges, want_weights = fake.expected_automaton(name)
        part = slice(first, first + num_edges)
        want_edges = want_edges.reshape(3, -1)
        np.testing.assert_array_equal(edges[:2, part], want_edges[:2] + offset)
        np.testing.assert_array_equal(edges[2, part], want_edges[2])
        assert (edges[3, part] == b).all()
        np.testing.assert_array_equal(weights[part], want_weights)
        assert states[:, b].tolist() == [offset, offset + num_states - 1]
        offset += num_states
        first += num_edges
    assert edges.shape == (4, first)


GOOD = (np.zeros((4, 2, 3), np.float32), np.array([4, 1]), ["a/b/1", "a/b/2"])
BAD = {
    "rank": ((GOOD[0][0], *GOOD[1:]), r"log_posteriors must be \[T, B, L\], got shape \(2, 3\)"),
    "dtype": ((GOOD[0].astype(int), *GOOD[1:]), "floating point, got int64"),
    "lengths rank": ((GOOD[0], np.array([[4, 1]]), GOOD[2]), r"seq_lengths must be \[B\] integer"),
    "lengths dtype": ((GOOD[0], np.array([4.0, 1.0]), GOOD[2]), "integer, got float64"),
    "lengths count": ((GOOD[0], np.array([4, 1, 1]), GOOD[2]), "has 3 entries.*batch of 2"),
    "too long": ((GOOD[0], np.array([1, 5]), GOOD[2]), r"seq_lengths\[1\] = 5 is not within 0 to"),
    "negative": ((GOOD[0], np.array([-1, 4]), GOOD[2]), r"seq_lengths\[0\] = -1 is not within"),
    "tags count": ((*GOOD[:2], ["a/b/1"]), "tags names 1 segments.*batch of 2"),
    "one tag": ((*GOOD[:2], "a/b/1"), "one segment name per sequence"),
    "empty tag": ((*GOOD[:2], ["a/b/1", ""]), r"tags\[1\] is empty"),
    "tag type": ((*GOOD[:2], ["a/b/1", 7]), r"tags\[1\] must be str or bytes, got int"),
    "no labels": ((GOOD[0][:, :, :0], *GOOD[1:]), "has no labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_child_is_started(options, case: str) -> None:
    arguments, text = BAD[case]
    with SprintInstancePool(options()) as pool:
        with pytest.raises(ValueError, match=text):
            pool.get_batch_loss_and_error_signal(*arguments)
        assert not psutil.Process().children()


def test_bad_tags_for_automata(options) -> None:
    with SprintInstancePool(options()) as pool:
        with pytest.raises(ValueError, match=r"tags\[1\] is empty"):
            pool.get_automata_for_batch(["a/b/c", ""])
        with pytest.raises(ValueError, match="uint8 array"):
            pool.get_automata_for_batch(np.zeros((2, 3), np.float32))


def test_one_failure_among_others(options, fake) -> None:
    log_posteriors, lengths = make_batch([5, 6, 7, 8])
    names = ["a/fine/1", "a/unknown/2", "a/fine/3", "a/exit/4"]
    with SprintInstancePool(options(num_instances=2)) as pool:
        for _ in range(2):
            with pytest.raises(SprintRequestError, match=r"1 more of the 4") as caught:
                pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
            assert caught.value.segment == "a/unknown/2"
        with pytest.raises(SprintCrashError) as caught:
            pool.get_batch_loss_and_error_signal(
                log_posteriors, lengths, [*names[:1], "a/fine/2", *names[2:]]
            )
        assert caught.value.segment == "a/exit/4"
        assert caught.value.exit_status == 5
        assert "lattice not found" in caught.value.stderr_tail
        # Nobody's answer has gone to somebody else.
        names = [f"a/fine/{b}" for b in range(4)]
        result = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        check(fake, names, log_posteriors, lengths, *result)
        with pytest.raises(SprintRequestError, match="1 more of the 3"):
            pool.get_automata_for_batch(["a/unknown/1", "a/b/2", "a/unknown/3"])


def test_a_start_that_fails_is_tried_once_per_batch(options, tmp_path) -> None:
    log_posteriors, lengths = make_batch([4] * 20)
    names = [f"a/b/{b}" for b in range(20)]
    silent = options("silent", start_timeout=0.7, control_config={"starts": tmp_path / "starts"})
    with (
        SprintInstancePool(silent) as pool,
        pytest.raises(SprintTimeoutError, match="19 more of the 20"),
    ):
        pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
    assert (tmp_path / "starts").read_text() == "started\n"


def test_a_start_that_fails_once(options, fake, tmp_path) -> None:
    marked = options("once", control_config={"marker": tmp_path / "was here"})
    with SprintInstancePool(marked) as pool:
        with pytest.raises(SprintStartError, match="SIGKILL"):
            pool.get_automata_for_batch(["a/b/c"])
        edges, _, _ = pool.get_automata_for_batch(["a/b/c"])
    assert edges.shape[1] == fake.expected_automaton("a/b/c")[1]


def test_longest_first(options, fake) -> None:
    log_posteriors, lengths = make_batch([1, 4, 2, 6, 3, 5])
    names = [f"a/b/{b}" for b in range(6)]
    with SprintInstancePool(options()) as pool:
        pool.get_automata_for_batch(["a/b/0"])
        served = []
        instance = next(t for t in threading.enumerate() if isinstance(t, ReaderThread)).instance
        original = instance.get_loss_and_error_signal__send
        instance.get_loss_and_error_signal__send = lambda name, length, array, **more: (
            served.append(length) or original(name, length, array, **more)
        )
        result = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
    assert served == [6, 5, 4, 3, 2, 1]
    check(fake, names, log_posteriors, lengths, *result)


def test_children_start_and_compute_at_the_same_time(options, tmp_path) -> None:
    # Each waits until three are there, first at its start and then in the middle of a request.
    together = options("meet", num_instances=3, control_config={"meet": tmp_path, "number": 3})
    log_posteriors, lengths = make_batch([3, 4, 5])
    with SprintInstancePool(together) as pool:
        names = ["a/meet/1", "a/meet/2", "a/meet/3"]
        pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        assert len(children()) == 3


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "_guardian_main.py" not in " ".join(child.cmdline())
    ]


def test_children_are_lazy_and_kept(options) -> None:
    with SprintInstancePool(options(num_instances=8)) as pool:
        assert not children()
        pool.get_automata_for_batch(["a/b/1"])
        (first,) = children()
        for _ in range(3):
            pool.get_automata_for_batch(["a/b/1"])
        assert children() == [first]
        pool.get_automata_for_batch([f"a/b/{b}" for b in range(3)])
        assert 1 <= len(children()) <= 3
        threads = [t for t in threading.enumerate() if isinstance(t, ReaderThread)]
        assert 1 <= len(threads) <= 3
    assert not children()


def test_many_threads_at_once(options, fake) -> None:
    def one(seed: int) -> None:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(0, 9, size=rng.integers(1, 6)).tolist()
        log_posteriors, lengths = make_batch(lengths, seed=seed)
        names = [f"a/b {seed}/{b}" for b in range(len(lengths))]
        result = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        check(fake, names, log_posteriors, lengths, *result)
        edges, _, states = pool.get_automata_for_batch(names)
        total = sum(fake.expected_automaton(name)[0] for name in names)
        assert states[1, -1] + 1 == total
        assert edges[:2].max() < total

    with SprintInstancePool(options(num_instances=3)) as pool, ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(60)))


def test_close_and_init(options) -> None:
    pool = SprintInstancePool(options())
    assert not pool.closed
    pool.get_automata_for_batch(["a/b/1"])
    pool.close()
    pool.close()
    assert pool.closed
    assert not children()
    with pytest.raises(SprintClosedError, match=r"init\(\) opens it again"):
        pool.get_automata_for_batch(["a/b/1"])
    with pytest.raises(SprintClosedError):
        pool.get_batch_loss_and_error_signal(*GOOD)
    pool.init()
    pool.init()
    assert not pool.closed
    pool.get_automata_for_batch(["a/b/1"])
    pool.close()


@pytest.mark.parametrize("fault", ["hang", "stop"])
def test_close_while_others_wait(options, fault: str) -> None:
    pool = SprintInstancePool(options(request_timeout=300.0))
    pool.get_automata_for_batch(["a/b/1"])
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(pool.get_automata_for_batch, [f"a/{fault}/1"])
        time.sleep(0.2)
        waiting = threads.submit(pool.get_automata_for_batch, ["a/b/2"])
        time.sleep(0.3)
        pool.close()
        for future in (running, waiting):
            with pytest.raises(SprintClosedError, match="closed"):
                future.result(5)


def test_close_while_a_child_starts(options) -> None:
    pool = SprintInstancePool(options("silent", start_timeout=300.0))
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(pool.get_automata_for_batch, ["a/b/1"])
        time.sleep(0.3)
        pool.close()
        with pytest.raises(SprintClosedError):
            starting.result(5)


def test_an_interrupted_caller_leaves_a_usable_pool(options, fake, monkeypatch) -> None:
    log_posteriors, lengths = make_batch([5, 6, 7])
    with SprintInstancePool(options()) as pool:
        pool.get_automata_for_batch(["a/b/1"])

        def interrupt() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(pool._crew, "check", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.get_batch_loss_and_error_signal(
                log_posteriors, lengths, ["a/fine/1", "a/fine/2", "a/hang/3"]
            )
        monkeypatch.undo()
        names = ["a/fine/1", "a/fine/2", "a/fine/3"]
        for _ in range(3):
            result = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
            check(fake, names, log_posteriors, lengths, *result)


def test_a_forgotten_pool_is_collected(options) -> None:
    pool = SprintInstancePool(options(num_instances=2))
    pool.get_automata_for_batch(["a/b/1", "a/b/2"])
    assert children()
    del pool
    gc.collect()
    assert not children()


def test_global_instance(options) -> None:
    config = {"key": 1}
    first = SprintInstancePool.get_global_instance(options(control_config=config))
    again = SprintInstancePool.get_global_instance(options(control_config=dict(config)))
    other = SprintInstancePool.get_global_instance(options(control_config={"key": 2}))
    unhashable = {"sprintExecPath": ["sprint"], "sprintControlConfig": {"a": [1, {}]}}
    try:
        assert first is again
        assert first is not other
        assert SprintInstancePool.get_global_instance(
            unhashable
        ) is SprintInstancePool.get_global_instance({**unhashable, "numInstances": "1"})
        first.close()
        assert SprintInstancePool.get_global_instance(options(control_config=config)) is first
        assert first.closed
    finally:
        SprintInstancePool._global_pools.clear()
