"""Messages about several segments: what may be in them, on either side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from jax_sprint.bridge.answers import Asked, result_of
from jax_sprint.bridge.replies import parse_automata
from jax_sprint.sprint_side.jax_sprint_control import wire_v2
from jax_sprint.sprint_side.jax_sprint_control.child_codec import ChildCodec
from jax_sprint.sprint_side.jax_sprint_control.wire import Channel, FormatError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


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
