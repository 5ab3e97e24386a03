"""Several short segments in one request: the answers are those of single ones, and so are failures.

Whoever fails in a group is found by asking one by one.  A pool forms groups once it knows that its
Sprint is quick, so each test asks for something else first.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint.bridge import SprintInstancePool, SprintOptions
from jax_sprint.bridge.answers import Asked, result_of
from jax_sprint.bridge.groups import Question, split
from jax_sprint.bridge.replies import parse_automata
from jax_sprint.bridge.version_two import VersionTwo
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintProtocolError,
    SprintRequestError,
    SprintTimeoutError,
)
from jax_sprint.sprint_side.jax_sprint_control import wire_v2
from jax_sprint.sprint_side.jax_sprint_control.child_codec import ChildCodec
from jax_sprint.sprint_side.jax_sprint_control.wire import Channel, FormatError

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


# ------------------------------------------------------------------------------------ the wire


def reply(kind=wire_v2.LOSSES_REPLY, segments=2, rows=3, columns=5, payload=None, size=None):
    payload = np.zeros(16, np.uint8) if payload is None else payload
    size = len(payload) if size is None else size
    return wire_v2.Message(
        kind, 0, 1, b"x", segments, rows, columns, size, 0, 0, 0.0, payload if size else None
    )


def asked(kind=wire_v2.LOSSES_REPLY) -> Asked:
    return Asked(1, kind, b"x", 2, (3, 5), 0, 8192, 100)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": wire_v2.LOSS_REPLY}, "of kind 4, not 9"),
        ({"kind": wire_v2.AUTOMATA_REPLY}, "of kind 10, not 9"),
        ({"segments": 3}, "for 3 segments, not 2"),
        ({"segments": 0}, "for 0 segments, not 2"),
        ({"rows": 5, "columns": 3}, r"must be \(3, 5\), got \(5, 3\)"),
        ({"payload": np.zeros(24, np.uint8)}, "2 losses in 24 bytes"),
        ({"size": 0}, "2 losses in 0 bytes"),
    ],
)
def test_wrong_answers_about_losses(wrong, message) -> None:
    memory = SimpleNamespace(array=lambda shape, offset: np.zeros(shape, np.float32))
    status, losses, signals = result_of(reply(), asked(), memory)  # type: ignore[arg-type]
    assert (status, losses.tolist(), signals.shape) == ("ok", [0, 0], (3, 5))
    with pytest.raises(FormatError, match=message):
        result_of(reply(**wrong), asked(), memory)  # type: ignore[arg-type]


def automata_payload(sizes, edges, weights) -> np.ndarray:
    parts = np.asarray(sizes, "u4"), np.asarray(edges, "u4"), np.asarray(weights, "f4")
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])


EDGES = [[0, 0, 0], [1, 1, 1], [7, 8, 9]]


@pytest.mark.parametrize(
    ("sizes", "edges", "weights", "message"),
    [
        ([[2, 1], [2, 1]], EDGES, [0, 0, 0], r"of \[1, 1\] edges have 3 together"),
        ([[2, 1], [2, (1 << 32) - 1]], EDGES, [0, 0, 0], "have 3 together"),
        ([[1, 1], [2, 2]], EDGES, [0, 0, 0], "beyond those that there are"),
        ([[2, 1], [0, 2]], EDGES, [0, 0, 0], r"automata of \[2, 0\] states"),
        ([[2, 1], [1 << 31, 2]], EDGES, [0, 0, 0], "automata of"),
        ([[2, 1], [2, 2]], EDGES, [0, np.nan, 0], "hold NaN"),
    ],
)
def test_wrong_answers_about_automata(sizes, edges, weights, message) -> None:
    def parse(sizes, edges, weights):
        payload = automata_payload(sizes, edges, weights)
        answer = reply(wire_v2.AUTOMATA_REPLY, 2, 0, 3, payload)
        return parse_automata(*result_of(answer, asked(wire_v2.AUTOMATA_REPLY), None)[1:])

    first, second = parse([[2, 1], [2, 2]], EDGES, [1, 2, 3])
    assert (first[0], first[1], first[3].tolist()) == (2, 1, [1])
    np.testing.assert_array_equal(second[2], [[0, 0], [1, 1], [8, 9]])
    with pytest.raises(FormatError, match=message):
        parse(sizes, edges, weights)


def test_automata_in_the_wrong_number_of_bytes() -> None:
    answer = reply(wire_v2.AUTOMATA_REPLY, 2, 0, 3, np.zeros(63, np.uint8))
    with pytest.raises(FormatError, match="3 edges in 47 bytes"):
        result_of(answer, asked(wire_v2.AUTOMATA_REPLY), None)
    answer = reply(wire_v2.AUTOMATA_REPLY, 2, 0, 0, size=0)
    with pytest.raises(FormatError):
        result_of(answer, asked(wire_v2.AUTOMATA_REPLY), None)


@pytest.fixture
def pipe() -> Iterator[Channel]:
    """A channel whose two ends are the same pipe."""
    channel = Channel(*os.pipe())
    yield channel
    channel.close()


@pytest.mark.parametrize(
    ("kind", "name", "segments", "rows", "message"),
    [
        (wire_v2.AUTOMATA_REQUEST, b"\0" * 8 + b"one\0two", 3, 0, "2 names|3 segments"),
        (wire_v2.AUTOMATA_REQUEST, b"\0" * 8 + b"one\0", 2, 0, "2 names for 2"),
        (wire_v2.AUTOMATA_REQUEST, b"\0" * 8, 2, 0, "2 segments in 8 bytes"),
        (wire_v2.AUTOMATA_REQUEST, b"abc", 0, 0, "0 segments in 3 bytes"),
        (wire_v2.AUTOMATA_REQUEST, b"abc", (1 << 32) - 1, 0, "segments in 3 bytes"),
        (wire_v2.LOSSES_REQUEST, wire_v2.make_table(["a", "b"], [1, 2]), 2, 3, "outside of the"),
        (wire_v2.LOSSES_REPLY, wire_v2.make_table(["a", "b"], [1, 2]), 2, 3, "is no request"),
    ],
)
def test_wrong_requests(pipe, kind, name, segments, rows, message) -> None:
    payload = [np.zeros(4 * rows, np.uint8)] if rows else ()
    wire_v2.write_message(pipe, None, kind, 1, name, rows, 1, payload=payload, segments=segments)
    with pytest.raises(FormatError, match=message):
        ChildCodec(None).receive(pipe, None, 1 << 20)


@pytest.mark.parametrize("lengths", [[1, 3], [3, 0], [1, 1]])
def test_lengths_that_do_not_fit(pipe, lengths) -> None:
    memory = SimpleNamespace(
        size=1 << 20,
        require=lambda size: None,
        array=lambda shape, offset: np.zeros(shape, np.float32),
    )
    table = wire_v2.make_table(["a", "b"], lengths)
    wire_v2.write_message(
        pipe, None, wire_v2.LOSSES_REQUEST, 1, table, 3, 1, memory=(0, 12, 1 << 20), segments=2
    )
    with pytest.raises(FormatError, match="3 frames in segments of"):
        ChildCodec(memory).receive(pipe, None, 1 << 20)


def test_the_rest_of_a_group_is_forgotten_after_an_exception(pipe) -> None:
    codec = ChildCodec(None)
    for number, names in ((1, ["a", "b", "c"]), (2, ["d", "e"])):
        wire_v2.write_message(
            *(pipe, None, wire_v2.AUTOMATA_REQUEST, number, wire_v2.make_table(names)),
            segments=len(names),
        )
    command = "export_allophone_state_fsa_by_segment_name"
    automaton = ("ok", 2, 1, np.array([[0], [1], [5]]), np.zeros(1))
    assert codec.receive(pipe, None, 1 << 20) == (command, "a")
    assert codec.waiting
    codec.send(pipe, automaton, None)
    assert codec.receive(pipe, None, 1 << 20) == (command, "b")
    # The one pipe holds the second request too, so the answers are written to another one.
    read, write = os.pipe()
    answers = Channel(read, write)
    try:
        codec.send(answers, ("exception", "no"), None)
        assert wire_v2.read_message(answers, None, 100).kind == wire_v2.EXCEPTION_REPLY
        assert not codec.waiting
        assert codec.receive(pipe, None, 1 << 20) == (command, "d")
        codec.send(answers, automaton, None)
        assert codec.receive(pipe, None, 1 << 20) == (command, "e")
        codec.send(answers, automaton, None)
        answer = wire_v2.read_message(answers, None, 1000)
        assert (answer.kind, answer.number, answer.segments) == (wire_v2.AUTOMATA_REPLY, 2, 2)
        with pytest.raises(FormatError, match="an answer to nothing"):
            codec.send(answers, automaton, None)
    finally:
        answers.close()
