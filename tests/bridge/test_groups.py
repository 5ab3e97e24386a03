"""Several short segments in one request: the answers are those of single ones, and so are failures.

Whoever fails in a group is found by asking one by one.  A pool forms groups once it knows that its
Sprint is quick, so each test asks for something else first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint.bridge import SprintInstancePool, SprintOptions
from jax_sprint.bridge.groups import Question, split
from jax_sprint.bridge.version_two import VersionTwo
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintProtocolError,
    SprintRequestError,
    SprintTimeoutError,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

QUEUE_CHILD = Path(__file__).with_name("queue_sprint.py")


def child(*arguments: str, **attributes: object) -> SprintOptions:
    given: dict = {
        "exec_path": [sys.executable, str(QUEUE_CHILD)],
        "config": list(arguments),
        "start_timeout": 20.0,
        "request_timeout": 20.0,
        "exit_timeout": 2.0,
        "automata_cache_bytes": 0,
    }
    return SprintOptions(**{**given, **attributes})


@pytest.fixture
def sizes(monkeypatch) -> Iterator[list[int]]:
    """How many segments were in each group that was sent."""
    seen: list[int] = []
    for name in ("ask_losses", "ask_automata"):
        real = getattr(VersionTwo, name)

        def record(self, names, *more, real=real):
            seen.append(len(names))
            return real(self, names, *more)

        monkeypatch.setattr(VersionTwo, name, record)
    # However slow the machine is.
    monkeypatch.setattr("jax_sprint.bridge.groups._EACH_SECONDS", 10.0)
    monkeypatch.setattr("jax_sprint.bridge.groups._GROUP_SECONDS", 100.0)
    return seen


def posteriors(count: int, labels: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(9, count, labels)).astype(np.float32)


def ask(pool: SprintInstancePool, names: list[str], lengths=None, values=None):
    values = posteriors(len(names)) if values is None else values
    lengths = np.full(len(names), 9) if lengths is None else lengths
    return values, *pool.get_batch_loss_and_error_signal(values, lengths, names)


def warm_up(pool: SprintInstancePool, sizes: list[int], count: int = 16) -> None:
    names = [f"a/before/{b}" for b in range(count)]
    ask(pool, names)
    pool.get_automata(names)
    sizes.clear()


def check(fake, names, lengths, values, loss, error_signal) -> None:
    for b, name in enumerate(names):
        frames = values[: lengths[b], b].astype(np.float32)
        if np.isnan(frames).any():
            assert np.isnan(loss[b])
            assert not error_signal[:, b].any()
            continue
        if not lengths[b]:
            assert loss[b] == np.inf
            assert not error_signal[:, b].any()
            continue
        want = fake.expected(name, frames)
        np.testing.assert_allclose(loss[b], want[0], rtol=1e-5)
        np.testing.assert_array_equal(error_signal[: lengths[b], b], want[1])
        assert not error_signal[lengths[b] :, b].any()


# ------------------------------------------------------------------------------- right answers


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("num_instances", [1, 2])
def test_losses(fake, sizes, num_instances, dtype) -> None:
    rng = np.random.default_rng(1)
    with SprintInstancePool(child(num_instances=num_instances)) as pool:
        warm_up(pool, sizes)
        for count in (30, 7, 1, 2, 16):
            lengths = rng.integers(0, 10, count)
            values = rng.normal(size=(9, count, 7)).astype(dtype)
            values[4, 0] = np.nan  # maybe within its length
            names = [f"a/fine é/{b % 20}" for b in range(count)]
            check(fake, names, lengths, *ask(pool, names, lengths, values))
        assert pool.stats()["requests"] >= 16
    assert max(sizes) > 5


def test_a_group_of_nothing_but_nan(fake, sizes) -> None:
    names = [f"a/fine/{b}" for b in range(8)]
    values = posteriors(8)
    values[5] = np.nan
    with SprintInstancePool(child()) as pool:
        warm_up(pool, sizes)
        before = pool.stats()["requests"]
        _, loss, error_signal = ask(pool, names, values=values)
        assert np.isnan(loss).all()
        assert not error_signal.any()
        assert sizes
        assert pool.stats()["requests"] == before + 8
        check(fake, names, [9] * 8, *ask(pool, names))


@pytest.mark.parametrize("num_instances", [1, 2])
def test_automata(fake, sizes, num_instances) -> None:
    with SprintInstancePool(child(num_instances=num_instances)) as pool:
        warm_up(pool, sizes)
        names = [f"a/fine ü/{b}" for b in range(23)]
        for (states, count, edges, weights), name in zip(
            pool.get_automata(names), names, strict=True
        ):
            want = fake.expected_automaton(name)
            assert (states, count) == want[:2]
            np.testing.assert_array_equal(edges.reshape(-1), want[2])
            np.testing.assert_array_equal(weights, want[3])
        assert sum(sizes) >= 20
        assert pool.stats()["automata_from_sprint"] == 16 + 23


def test_counts_are_of_segments(sizes) -> None:
    names = [f"a/fine/{b}" for b in range(12)]
    with SprintInstancePool(child()) as pool:
        warm_up(pool, sizes)
        before = pool.stats()
        ask(pool, names)
        after = pool.stats()
        assert len(sizes) < len(names)
        assert after["requests"] - before["requests"] == len(names)
        data = 4 * 9 * 7 * len(names)
        for direction in ("bytes_sent", "bytes_received"):
            assert data < after[direction] - before[direction] < data + 400 * len(names)


@pytest.mark.parametrize(
    "attributes",
    [{"protocol_version": 1}, {"shared_memory": False}, {"config": ["--old"]}],
    ids=["version 1", "pipe", "old"],
)
def test_who_cannot_is_not_asked_for_long(fake, sizes, attributes) -> None:
    names = [f"a/fine/{b}" for b in range(10)]
    with SprintInstancePool(child(**attributes)) as pool:
        for _ in range(3):
            check(fake, names, [9] * 10, *ask(pool, names))
        stats = pool.stats()
        assert (stats["failures"], stats["retries"]) == (0, 0)
    assert not sizes


# ------------------------------------------------------------------------------------- failures


FAULTS = {
    "kill": SprintCrashError,
    "refuse": SprintRequestError,
    "nan": SprintProtocolError,
    "hang": SprintTimeoutError,
}


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("num_instances", [1, 2])
def test_who_fails_is_named_and_the_others_are_answered(fake, sizes, fault, num_instances) -> None:
    names = [f"a/{fault if b == 5 else 'fine'}/{b}" for b in range(14)]
    more = {"request_timeout": 1.0} if fault == "hang" else {}
    options = child(on_error="mask", num_instances=num_instances, **more)
    with SprintInstancePool(options) as pool:
        warm_up(pool, sizes)
        for _ in range(1 if fault == "hang" else 2):
            values, loss, error_signal = ask(pool, names)
            assert np.flatnonzero(np.isnan(loss)).tolist() == [5]
            rest = [b for b in range(14) if b != 5]
            check(
                fake,
                [names[b] for b in rest],
                [9] * 13,
                values[:, rest],
                loss[rest],
                error_signal[:, rest],
            )
            with pytest.raises(FAULTS[fault]) as caught:
                pool.check()
            assert caught.value.segment == names[5]
        assert sizes
        assert pool.stats()["failures"] == (1 if fault == "hang" else 2)


@pytest.mark.parametrize("fault", ["kill", "refuse"])
def test_an_automaton_that_fails_is_named(sizes, fault) -> None:
    names = [f"a/{fault if b in (3, 9) else 'fine'}/{b}" for b in range(14)]
    with SprintInstancePool(child()) as pool:
        warm_up(pool, sizes)
        with pytest.raises(FAULTS[fault], match="1 more of the 14 requests failed") as caught:
            pool.get_automata(names)
        assert caught.value.segment == names[3]
        assert sizes
        stats = pool.stats()
        assert stats["failures"] == 2
        # Those of the groups with a bad one; that is not held against them.
        assert stats["retries"] >= 2


def test_a_sprint_that_dies_by_chance_fails_nobody(fake, sizes, tmp_path) -> None:
    names = [f"a/{'once' if b == 5 else 'fine'}/{b}" for b in range(14)]
    with SprintInstancePool(child(f"--marker={tmp_path / 'died'}")) as pool:
        warm_up(pool, sizes)
        check(fake, names, [9] * 14, *ask(pool, names))
        assert (tmp_path / "died").exists()
        stats = pool.stats()
        assert (stats["failures"], stats["restarts"]) == (0, 1)
        assert 1 < stats["retries"] <= 14


def test_a_batch_that_is_late_is_not_asked_again(sizes) -> None:
    names = [f"a/{'hang' if b == 5 else 'fine'}/{b}" for b in range(14)]
    with SprintInstancePool(child()) as pool:
        warm_up(pool, sizes)
        with pytest.raises(SprintTimeoutError) as caught:
            pool.get_batch_loss_and_error_signal(posteriors(14), np.full(14, 9), names, timeout=0.7)
        assert caught.value.segment in names
        assert pool.stats()["retries"] == 0
        # Nobody knows who of its group it was.
        assert 1 < pool.stats()["failures"] <= 14


def test_the_one_that_was_asked_about_tells_more() -> None:
    # The longest is asked about first, and keeps the Sprint busy until the time is over.
    names = [f"a/{'hang' if b == 3 else 'fine'}/{b}" for b in range(4)]
    lengths = [5, 4, 3, 9]
    with SprintInstancePool(child()) as pool:
        pool.start()
        with pytest.raises(SprintTimeoutError, match=r"pid \d+, gave no complete") as caught:
            pool.get_batch_loss_and_error_signal(posteriors(4), lengths, names, timeout=0.7)
        assert caught.value.segment == names[3]


def test_cancelled(sizes) -> None:
    cancelled = SimpleNamespace(is_set=lambda: bool(sizes))
    names = [f"a/{'hang' if b == 0 else 'fine'}/{b}" for b in range(14)]
    with SprintInstancePool(child()) as pool:
        warm_up(pool, sizes)
        with pytest.raises(SprintClosedError, match="cancelled"):
            pool.get_automata(names, cancelled=cancelled)  # type: ignore[arg-type]
        assert len(pool.get_automata([f"a/fine/{b}" for b in range(14)])) == 14


# ------------------------------------------------------------------------- what makes a group


def question(place: int, cost: int, data_bytes: int = 100, name: str = "a/b/c") -> Question:
    return Question(place, name, cost, SimpleNamespace(data_bytes=data_bytes))  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.integers(0, 1 << 20), st.integers(1, 2000)),
        max_size=70,
    ),
    st.floats(1e-9, 1e-2),
    st.integers(1, 8),
)
def test_groups_hold_everything_once_and_are_short(asked, pace, num_instances) -> None:
    questions = [question(i, c, d, n * "x") for i, (c, d, n) in enumerate(asked)]
    groups = split(questions, pace, num_instances)
    assert sorted(each.place for group in groups for each in group) == list(range(len(asked)))
    for group in groups:
        if len(group) > 1:
            assert len(group) <= 16
            seconds = [pace * (each.cost + 1) for each in group]
            assert max(seconds) <= 0.5e-3
            assert sum(seconds) <= 2.0001e-3
            assert sum(each.request.data_bytes for each in group) <= 1 << 19
            assert len(group) <= math.ceil(len(asked) / (2 * num_instances))
    costs = [each.cost for group in groups for each in group]
    if any(len(group) > 1 for group in groups):
        assert costs == sorted(costs, reverse=True)


def test_nothing_is_grouped_before_the_pace_is_known() -> None:
    questions = [question(i, 1) for i in range(20)]
    assert split(questions, math.inf, 1) == [[each] for each in questions]
    assert [len(group) for group in split(questions, 1e-9, 1)] == [10, 10]
