"""RETURNN's child with our parent, and RETURNN's parent with a child that uses our wire."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.bridge import SprintInstancePool, SprintOptions, SprintSubprocessInstance
from jax_sprint.bridge.options import default_control_module
from jax_sprint.errors import SprintRequestError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


MODEL = Path(__file__).with_name("ancestor_model.py")


@pytest.fixture(params=["this", "old"])
def child_python(request: pytest.FixtureRequest) -> str:
    return sys.executable if request.param == "this" else request.getfixturevalue("old_python")


@pytest.fixture(params=["this", "old"])
def parent_python(request: pytest.FixtureRequest) -> str:
    return sys.executable if request.param == "this" else request.getfixturevalue("old_python")


# A child made of our wire and nothing else.
CHILD = """
import sys, types
import numpy as np
package = types.ModuleType("control")
package.__path__ = [sys.argv[1] + "/jax_sprint_control"]
sys.modules["control"] = package
from control.wire import Channel
config = dict(pair.split(":") for pair in sys.argv[2].split(","))
channel = Channel(int(config["p2c_fd"]), int(config["c2p_fd"]))
while True:
    command, *args = channel.receive()
    if command == "exit":
        break
    if command == "init":
        channel.send(("ok", "SprintControl", 1))
    elif command == "get_loss_and_error_signal":
        assert type(args[1]) is int
        assert args[2].flags.aligned and args[2].flags.writeable
        channel.send(("ok", args[2].sum(), (-args[2]).T.copy().T))
    elif "nowhere" in args[0]:
        channel.send(("exception", "no such segment"))
    else:
        edges = np.array([0, 0, 0, 1, 3, 4], dtype="uint32")
        channel.send(("ok", 2, 2, edges, np.array([0.5, 1.5], dtype="float32")))
"""


def test_our_parent_with_the_ancestors_child(child_python: str) -> None:
    options = SprintOptions(
        exec_path=[child_python, str(MODEL), "child"], start_timeout=20.0, request_timeout=20.0
    )
    rng = np.random.default_rng(0)
    log_posteriors = rng.normal(size=(300, 3, 40)).astype(np.float32)
    lengths = np.array([300, 1, 20], np.int64)
    with SprintInstancePool(options) as pool:
        loss, error_signal = pool.get_batch_loss_and_error_signal(
            log_posteriors, lengths, ["a/b/1", "a/numpy/2", "a/b/3"]
        )
        for b, length in enumerate(lengths):
            np.testing.assert_allclose(loss[b], log_posteriors[:length, b].sum(), rtol=1e-4)
            np.testing.assert_array_equal(error_signal[:length, b], -log_posteriors[:length, b])
            assert (error_signal[length:, b] == 0).all()
        edges, weights, states = pool.get_automata_for_batch(["a/b/1", "a/b/2"])
        np.testing.assert_array_equal(
            edges, [[0, 0, 2, 2], [0, 1, 2, 3], [3, 4, 3, 4], [0, 0, 1, 1]]
        )
        np.testing.assert_array_equal(weights, [0.5, 1.5, 0.5, 1.5])
        np.testing.assert_array_equal(states, [[0, 2], [1, 3]])


def test_the_ancestors_parent_with_our_wire(parent_python: str, child_python: str) -> None:
    directory, _ = default_control_module()
    command = [
        parent_python,
        str(MODEL),
        "parent",
        child_python,
        "-c",
        CHILD,
        directory,
        "{config}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    log_posteriors = np.linspace(-3, 0, 5000 * 7, dtype="float32")
    lines = result.stdout.splitlines()
    assert float(lines[0].split()[1]) == pytest.approx(log_posteriors.sum(), rel=1e-4)
    assert float(lines[0].split()[2]) == pytest.approx(-log_posteriors.sum(), rel=1e-4)
    assert lines[1:] == [
        "automaton 2 2 9 2.0",
        "refused ('exception', 'no such segment')",
        "exit 0",
    ]


def test_an_exception_without_a_text() -> None:
    options = SprintOptions(exec_path=[sys.executable, str(MODEL), "child"], start_timeout=20.0)
    with SprintSubprocessInstance(options) as instance:
        # This is how it refuses a version that it does not know; it lives on.
        def ask(child, timeout: float) -> bool:
            child.channel.send(("init", "SprintSubprocessInstance", 2), timeout)
            return True

        instance._send("a/b/1", ask)
        with pytest.raises(SprintRequestError, match="gave no reason"):
            instance._read(None)
        assert instance.export_allophone_state_fsa_by_segment_name("a/b/1")[0] == 2
