"""Messages of version 2 on a real pipe: in whatever pieces they arrive, they are the same."""

from __future__ import annotations

import os
import random
import threading
import time

import numpy as np
import pytest

from jax_sprint.sprint_side.jax_sprint_control import wire_v2
from jax_sprint.sprint_side.jax_sprint_control.wire import (
    Channel,
    FormatError,
    PeerClosedError,
    WireTimeoutError,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
def ends():
    """A channel that reads what is written to a descriptor, and that descriptor."""
    read, write = os.pipe()
    other_read, other_write = os.pipe()
    channel = Channel(read, other_write)
    yield channel, write
    channel.close()
    for fd in (write, other_read):
        try:
            os.close(fd)
        except OSError:
            assert fd == write  # the test has closed it


class Recorder:
    """Takes what a channel would write."""

    def __init__(self) -> None:
        self.data = b""

    def write_raw(self, pieces, deadline) -> None:
        self.data += b"".join(bytes(piece) for piece in pieces)


def message(number: int, name: bytes, payload: bytes, memory=None) -> bytes:
    recorder = Recorder()
    wire_v2.write_message(
        recorder,
        None,
        wire_v2.LOSS_REPLY,
        number,
        name,
        number + 1,
        3,
        loss=0.5 * number,
        payload=[np.frombuffer(payload, np.uint8)],
        memory=memory,
    )
    return recorder.data


@pytest.mark.parametrize("seed", range(6))
def test_messages_in_pieces(ends, seed: int) -> None:
    channel, write = ends
    rng = random.Random(seed)
    messages = []
    for _ in range(120):
        name = rng.randbytes(rng.choice([0, 3, 40, 700, 60_000]))
        payload = rng.randbytes(rng.choice([0, 1, 500, 17_000, 200_000]))
        memory = (4096, 36, 8192) if rng.random() < 0.5 else None
        messages.append((name, payload, memory))
    data = b"".join(
        message(number, name, b"" if memory else payload, memory)
        for number, (name, payload, memory) in enumerate(messages)
    )

    def writer() -> None:
        place = 0
        while place < len(data):
            piece = rng.choice([1, 71, 72, 73, 1000, 16_384, 300_000])
            place += os.write(write, data[place : place + piece])
            if rng.random() < 0.05:
                time.sleep(0.001)

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        seen_whole = 0
        whole = []
        for number, (name, payload, memory) in enumerate(messages):
            whole += [] if whole else wire_v2.read_complete(channel)
            if whole:
                # What is complete is read without waiting.
                seen_whole += 1
                got = whole.pop(0)
            else:
                got = wire_v2.read_message(channel, time.monotonic() + 20, 1 << 20)
            assert (got.number, got.name, got.rows, got.columns) == (number, name, number + 1, 3)
            assert got.loss == 0.5 * number
            if memory:
                assert (got.offset, got.payload_bytes, got.memory_bytes) == memory
                assert got.payload is None
            else:
                assert (b"" if got.payload is None else got.payload.tobytes()) == payload
        assert channel.ahead == 0
        assert seen_whole > 0
    finally:
        thread.join()
    assert not channel.poll(0)
    assert channel.bytes_received == len(data)


def test_what_was_read_ahead_can_be_polled(ends) -> None:
    channel, write = ends
    os.write(write, message(1, b"a", b"xyz") + message(2, b"b", b""))
    assert wire_v2.read_message(channel, time.monotonic() + 5, 100).name == b"a"
    assert channel.ahead == 73
    assert channel.poll(0)
    assert [each.name for each in wire_v2.read_complete(channel)] == [b"b"]
    assert not channel.poll(0)
    assert wire_v2.read_complete(channel) == []


def test_the_end_between_messages_and_inside_one(ends) -> None:
    channel, write = ends
    os.write(write, message(1, b"a", b"xyz") + message(2, b"b", b"xyz")[:-1])
    assert wire_v2.read_message(channel, time.monotonic() + 5, 100).name == b"a"
    with pytest.raises(WireTimeoutError):
        wire_v2.read_message(channel, time.monotonic() + 0.05, 100)
    os.close(write)
    channel.fetch()  # finds the end, and leaves it to who reads
    with pytest.raises(PeerClosedError):
        wire_v2.read_message(channel, time.monotonic() + 5, 100)


def test_a_claim_is_refused_before_it_is_waited_for(ends) -> None:
    channel, write = ends
    os.write(write, message(1, b"a", b"x" * 101))
    with pytest.raises(FormatError, match="claims a payload of 101 bytes; up to 100"):
        wire_v2.read_message(channel, time.monotonic() + 5, 100)
