"""Version 2 of the protocol: numbered messages, shared memory, and a child that abuses both."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.bridge import SprintInstancePool, SprintOptions, SprintSubprocessInstance
from jax_sprint.bridge.options import default_control_module
from jax_sprint.errors import (
    SprintCrashError,
    SprintProtocolError,
    SprintRequestError,
    SprintTimeoutError,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

CHILD = Path(__file__).with_name("second_sprint.py")


def second(**attributes: object) -> SprintOptions:
    settings: dict = {
        "exec_path": [sys.executable, str(CHILD), default_control_module()[0]],
        "start_timeout": 20.0,
        "request_timeout": 20.0,
    }
    return SprintOptions(**{**settings, **attributes})


def ask(instance: SprintSubprocessInstance, name: str, shape: tuple[int, int] = (4, 3)) -> tuple:
    posteriors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    instance.get_loss_and_error_signal__send(name, shape[0], posteriors)
    return (posteriors, *instance.get_loss_and_error_signal__read())


@pytest.mark.parametrize("memory", [True, False])
def test_answers(fake, memory: bool) -> None:
    # Small, larger than the pipe, larger than the first memory, and small again.
    lengths = np.array([7, 100, 3000, 1, 0, 3000, 20])
    rng = np.random.default_rng(0)
    log_posteriors = rng.normal(size=(3000, 7, 100)).astype(np.float32)
    names = [f"a/bä{b}/1" for b in range(7)]
    with SprintInstancePool(second(shared_memory=memory, num_instances=2)) as pool:
        for posteriors in (log_posteriors, log_posteriors.astype(np.float64)):
            loss, error_signal = pool.get_batch_loss_and_error_signal(posteriors, lengths, names)
            for b, length in enumerate(lengths):
                want = fake.expected(names[b], log_posteriors[:length, b])
                assert loss[b] == (want[0] if length else np.inf)
                np.testing.assert_array_equal(error_signal[:length, b], want[1])
                assert (error_signal[length:, b] == 0).all()
        edges, weights, states = pool.get_automata_for_batch(names)
        want = [fake.expected_automaton(name) for name in names]
        np.testing.assert_array_equal(weights, np.concatenate([w[3] for w in want]))
        np.testing.assert_array_equal(
            edges[2], np.concatenate([w[2].reshape(3, -1)[2] for w in want])
        )
        assert states[1, -1] + 1 == sum(w[0] for w in want)


@pytest.mark.parametrize(
    ("attributes", "version", "memory"),
    [
        ({}, 2, True),
        ({"shared_memory": False}, 2, False),
        ({"protocol_version": 1}, 1, None),
    ],
)
def test_what_is_agreed_upon(attributes: dict, version: int, memory: bool | None) -> None:
    with SprintSubprocessInstance(second(**attributes)) as instance:
        assert instance._child is not None
        protocol = instance._child.protocol
        assert protocol.version == version
        if version == 2:
            assert (protocol._memory is not None) is memory


def test_a_child_of_version_1_is_left_at_it(options) -> None:
    with SprintSubprocessInstance(options()) as instance:
        assert instance._child is not None
        assert instance._child.protocol.version == 1


def test_a_wrapper_that_does_not_pass_the_memory_on(fake) -> None:
    # The pipes arrive, the memory does not: the pipe takes its place.
    code = (
        "import os, re, subprocess, sys; text = ' '.join(sys.argv); "
        "fds = [int(re.search(k + r':(\\d+)', text).group(1)) for k in ('c2p_fd', 'p2c_fd')]; "
        "sys.exit(subprocess.call(sys.argv[1:], pass_fds=fds))"
    )
    wrapped = second(exec_path=[sys.executable, "-c", code, *second().exec_path])
    with SprintSubprocessInstance(wrapped) as instance:
        assert instance._child is not None
        assert instance._child.protocol._memory is None
        posteriors, _, loss, _ = ask(instance, "a/b/1")
        assert loss == fake.expected("a/b/1", posteriors)[0]


def test_results_outlive_the_next_request(fake) -> None:
    with SprintSubprocessInstance(second()) as instance:
        posteriors, name, _, first = ask(instance, "a/b/1")
        kept = first.copy()
        ask(instance, "a/c/22")
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(first, fake.expected(name, posteriors)[1])


LOSS_FAULTS = {
    "number": "is number 2, for b'a/number/1', but number 1",
    "name": "for b'a/other/1', but number 1, for b'a/name/1'",
    "kind": "of kind 5, not 4",
    "request": "of kind 1, not 4",
    "shape": r"must be \(4, 3\), got \(3, 4\)",
    "bytes": r"error signal \(5, 3\) in 48 bytes",
    "offset": "nothing was agreed upon",
    "elsewhere": "nothing was agreed upon",
    "huge": "claims a payload of 1099511627776 bytes",
    "long name": "claims a name of 2147483648 bytes",
    "magic": "no message of version 2: b'xxxx",
}


@pytest.mark.parametrize("fault", LOSS_FAULTS)
def test_a_wrong_answer(fault: str) -> None:
    with SprintSubprocessInstance(second()) as instance:
        with pytest.raises(SprintProtocolError) as caught:
            ask(instance, f"a/{fault}/1")
        assert re.search(LOSS_FAULTS[fault], str(caught.value)), str(caught.value)
        assert caught.value.segment == f"a/{fault}/1"
        assert not instance.is_alive


def test_a_wrong_automaton() -> None:
    with (
        SprintSubprocessInstance(second()) as instance,
        pytest.raises(SprintProtocolError, match="3 edges in 40 bytes"),
    ):
        instance.export_allophone_state_fsa_by_segment_name("a/edges/1")


def test_one_answer_too_many() -> None:
    with SprintSubprocessInstance(second()) as instance:

        def twice() -> None:
            # Whether the second one is there already when the first is read is open.
            ask(instance, "a/twice/1")
            assert instance._child is not None
            assert instance._child.channel.poll(5.0)
            ask(instance, "a/b/2")

        with pytest.raises(SprintProtocolError, match="too many|nobody asked for|unasked"):
            twice()


def test_death_in_the_middle_of_an_answer() -> None:
    with SprintSubprocessInstance(second()) as instance:
        with pytest.raises(SprintCrashError, match="ended after") as caught:
            ask(instance, "a/half/1")
        assert caught.value.exit_status == 6


@pytest.mark.parametrize("end", ["close", "close input"])
def test_only_one_of_its_pipes_is_closed(end: str) -> None:
    with SprintSubprocessInstance(second()) as instance:

        def twice() -> None:
            # An answer that was sent before is taken; the next request finds nobody.
            ask(instance, f"a/{end}/1")
            ask(instance, "a/b/2", (600_000, 3))

        with pytest.raises(SprintCrashError, match="closed its pipe, though it was running"):
            twice()
        instance.init()
        assert ask(instance, "a/b/2")[1] == "a/b/2"


@pytest.mark.parametrize("fault", ["stop", "hang"])
def test_no_answer(fault: str) -> None:
    with (
        SprintSubprocessInstance(second(request_timeout=1.0)) as instance,
        pytest.raises(SprintTimeoutError, match="request_timeout = 1.0 s"),
    ):
        ask(instance, f"a/{fault}/1")


def test_the_memory_cannot_be_taken_away(fake) -> None:
    with SprintSubprocessInstance(second()) as instance:
        posteriors, _, loss, _ = ask(instance, "a/truncate/1")
        assert loss == fake.expected("a/truncate/1", posteriors)[0]
        # It can still grow.
        posteriors, _, _, error_signal = ask(instance, "a/b/1", (5000, 100))
        np.testing.assert_array_equal(error_signal, fake.expected("a/b/1", posteriors)[1])


def test_a_refused_request_leaves_the_child_alive(fake) -> None:
    with SprintSubprocessInstance(second()) as instance:
        with pytest.raises(SprintRequestError, match="segment ü not in the corpus"):
            ask(instance, "a/unknown/1")
        posteriors, _, loss, _ = ask(instance, "a/b/1")
        assert loss == fake.expected("a/b/1", posteriors)[0]


def test_answers_of_an_old_python(fake, old_python: str) -> None:
    other = second(exec_path=[old_python, *second().exec_path[1:]])
    with SprintSubprocessInstance(other) as instance:
        assert instance._child is not None
        assert instance._child.protocol._memory is not None
        posteriors, name, loss, error_signal = ask(instance, "a/b/1", (500, 300))
        want = fake.expected(name, posteriors)
        np.testing.assert_allclose(loss, want[0], rtol=1e-5)
        np.testing.assert_array_equal(error_signal, want[1])
