"""The control module inside somebody else's Sprint: a stand-in that behaves like RASR."""

from __future__ import annotations

import ast
import contextlib
import glob
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.sprint_side.jax_sprint_control.wire import Channel, PeerClosedError

HERE = Path(__file__).resolve().parent
CONTROL = HERE.parent.parent / "jax_sprint" / "sprint_side"
MODULE = CONTROL / "jax_sprint_control"
DEADLINE = 60.0
LABELS = 5


def old_python() -> str | None:
    """A Python 3.8 that has numpy, if this machine has one."""
    candidates = [os.environ.get("JAX_SPRINT_OLD_PYTHON"), shutil.which("python3.8")]
    candidates += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.8.*/bin/python")))
    for candidate in candidates:
        if candidate and os.path.exists(candidate):
            probe = subprocess.run(
                [candidate, "-c", "import sys, numpy; assert sys.version_info[:2] == (3, 8)"],
                capture_output=True,
                timeout=DEADLINE,
                check=False,
            )
            if probe.returncode == 0:
                return candidate
    return None


@pytest.fixture(params=["this", "3.8"], scope="module")
def interpreter(request) -> str:
    if request.param == "this":
        return sys.executable
    python = old_python()
    if python is None:
        pytest.skip(
            "no Python 3.8 with numpy found; JAX_SPRINT_OLD_PYTHON may name one "
            "(the control module must run inside the Python that RASR was built with)"
        )
    return python


class Sprint:
    """The stand-in with our control module."""

    def __init__(self, python: str, *arguments: str, order: bool = True, minimum: int = 2):
        to_parent, to_child = os.pipe(), os.pipe()
        pairs = f"c2p_fd:{to_parent[1]},p2c_fd:{to_child[0]},minPythonControlVersion:{minimum}"
        config = f"{pairs},EnableAutoNumpySharedMemPickling:False,quiet:True"
        command = [
            python,
            "-s",
            str(HERE / "rasr_stand_in.py"),
            f"--*.pymod-path={CONTROL}",
            "--*.pymod-name=jax_sprint_control",
            f"--*.pymod-config={config}",
        ]
        if order:
            command += [
                "--*.python-segment-order=true",
                "--*.python-segment-order-pymod-name=jax_sprint_control",
                f"--*.python-segment-order-config={config}",
            ]
        self.process = subprocess.Popen(
            [*command, *arguments],
            pass_fds=(to_parent[1], to_child[0]),
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(to_parent[1])
        os.close(to_child[0])
        self.channel = Channel(to_parent[0], to_child[1])

    def ask(self, *message):
        self.channel.send(message, timeout=DEADLINE)
        return self.channel.receive(timeout=DEADLINE)

    def end(self) -> int:
        self.channel.send(("exit",))
        return self.process.wait(DEADLINE)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(DEADLINE / 6)
        self.process.kill()
        _, self.stderr = self.process.communicate(timeout=DEADLINE)


@pytest.fixture
def start(interpreter):
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, hello: bool = True, **keywords) -> Sprint:
            sprint = stack.enter_context(Sprint(interpreter, *arguments, **keywords))
            if hello:
                assert sprint.ask("init", "test", 1) == ("ok", "SprintControl", 1)
            return sprint

        yield start


def log_posteriors(frames: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(frames, LABELS)).astype(np.float32)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def check_criterion(answer, scores) -> None:
    """The stand-in's criterion, of posteriors."""
    status, loss, error = answer
    assert status == "ok"
    posteriors = np.exp(scores)
    assert loss == pytest.approx(float(posteriors.sum()), rel=1e-5)
    assert error.dtype == np.float32
    np.testing.assert_allclose(error, 2 * posteriors, rtol=1e-5)


@pytest.mark.parametrize("order", [True, False])
def test_control_loop(start, order):
    sprint = start(order=order)
    status, states, arcs, edges, weights = sprint.ask(
        "export_allophone_state_fsa_by_segment_name", "c/r/one"
    )
    assert (status, states, arcs) == ("ok", 3, 2)
    np.testing.assert_array_equal(edges, np.array([0, 1, 1, 2, 0, 1], np.uint32))
    np.testing.assert_array_equal(weights, np.array([0.5, 0.5], np.float32))
    for tag, frames in [("c/r/two", 7), (b"c/r/one", 4)]:
        scores = log_posteriors(frames)
        check_criterion(sprint.ask("get_loss_and_error_signal", tag, frames, scores), scores)
    scores = log_posteriors(3)
    # The parent of RETURNN sends whatever integer type numpy gave it.
    answer = sprint.ask("get_loss_and_error_signal", "c/r/two", np.int32(3), scores)
    check_criterion(answer, scores)
    status, loss, error = sprint.ask("get_loss_and_error_signal", "c/r/lost", 3, scores)
    assert (status, loss) == ("ok", np.inf)
    assert not error.any()
    status, text = sprint.ask("export_allophone_state_fsa_by_segment_name", "c/r/gone")
    assert status == "exception"
    assert text == "KeyError: PythonControl: unknown segment name 'c/r/gone'"
    assert sprint.end() == 0


@pytest.mark.parametrize("alignments", ["true", "false"])
def test_iterate_corpus(start, alignments):
    sprint = start(
        "--*.python-control-loop-type=iterate-corpus", f"--*.extract-alignments={alignments}"
    )
    for tag in ("c/r/three", "c/r/one", "c/r/three"):
        scores = log_posteriors(4)
        check_criterion(sprint.ask("get_loss_and_error_signal", tag, 4, scores), scores)
        assert (
            sprint.ask("export_allophone_state_fsa_by_segment_name", "c/r/gone")[0] == "exception"
        )
    status, text = sprint.ask("get_loss_and_error_signal", "c/r/gone", 4, log_posteriors(4))
    assert (status, text) == (
        "exception",
        "unknown segment 'c/r/gone': not among the 4 segments of Sprint's corpus",
    )
    status, loss, _ = sprint.ask("get_loss_and_error_signal", "c/r/lost", 4, log_posteriors(4))
    assert (status, loss) == ("ok", np.inf)
    assert sprint.end() == 0


def test_iterate_corpus_in_its_own_order(start):
    sprint = start("--*.python-control-loop-type=iterate-corpus", order=False)
    scores = log_posteriors(4)
    check_criterion(sprint.ask("get_loss_and_error_signal", "c/r/two", 4, scores), scores)
    # Sprint is past it, and says so when it comes to the end.
    status, text = sprint.ask("get_loss_and_error_signal", "c/r/one", 4, scores)
    assert status == "exception"
    assert "without meeting segment 'c/r/one'" in text
    assert sprint.process.wait(DEADLINE) == 0


def test_trainer_with_a_python_layer(start):
    sprint = start("--*.action=train", "--*.frames=6")
    for tag in ("c/r/two", "c/r/one", "c/r/three", "c/r/two"):
        scores = log_posteriors(6)
        status, loss, error = sprint.ask("get_loss_and_error_signal", tag, 6, scores)
        assert status == "ok"
        assert loss == pytest.approx(float(scores.sum()), rel=1e-5)
        np.testing.assert_array_equal(error, 2 * scores)
    status, loss, error = sprint.ask("get_loss_and_error_signal", "c/r/lost", 6, log_posteriors(6))
    assert (status, loss) == ("ok", np.inf)
    assert not error.any()
    # RASR would end its process if the number of frames or labels were not its own.
    for scores, message in [
        (log_posteriors(5), "5 frames and 5 labels, but Sprint has 6 and 5"),
        (np.zeros((6, 4), np.float32), "6 frames and 4 labels, but Sprint has 6 and 5"),
    ]:
        status, text = sprint.ask("get_loss_and_error_signal", "c/r/one", len(scores), scores)
        assert status == "exception"
        assert message in text
    scores = log_posteriors(6, seed=1)
    assert sprint.ask("get_loss_and_error_signal", "c/r/one", 6, scores)[0] == "ok"
    assert sprint.end() == 0


def test_python_layer_needs_the_segment_order(start):
    sprint = start("--*.action=train", "--*.frames=6", order=False, hello=False)
    with pytest.raises(PeerClosedError):
        sprint.ask("init", "test", 1)
    sprint.__exit__()
    assert b"set python-segment-order = true" in sprint.stderr


def test_handshake_refuses_other_versions(start):
    sprint = start("--*.version=5", minimum=6, hello=False)
    status, text = sprint.ask("init", "test", 1)
    assert status == "exception"
    assert "version 5, but at least 6 is needed" in text
    sprint = start(hello=False)
    status, text = sprint.ask("init", "test", 2)
    assert status == "exception"
    assert "test speaks version 2 of the protocol, this control module speaks version 1" in text
    assert sprint.ask("init", "test", 1)[0] == "ok"


@pytest.mark.parametrize("arguments", [[], ["--*.python-control-loop-type=iterate-corpus"]])
@pytest.mark.parametrize("last", ["exit", "close"])
def test_ends_with_its_parent(start, arguments, last):
    sprint = start(*arguments)
    if last == "exit":
        sprint.channel.send(("exit",))
    else:
        sprint.channel.close()
    assert sprint.process.wait(DEADLINE) == 0


class ReturnnPickler(pickle._Pickler):
    """Pickles arrays as RETURNN's own pickler does: as calls of one of its functions."""

    def reducer_override(self, obj):
        if type(obj) is np.ndarray:
            function = sys.modules["returnn.util.task_system"].make_numpy_ndarray_fromstring
            return function, (obj.tobytes(), str(obj.dtype), obj.shape)
        return NotImplemented


def test_speaks_with_the_parent_of_returnn(start, monkeypatch):
    def make_numpy_ndarray_fromstring(data, dtype, shape):
        return np.frombuffer(data, dtype).reshape(shape)

    make_numpy_ndarray_fromstring.__module__ = "returnn.util.task_system"
    make_numpy_ndarray_fromstring.__qualname__ = "make_numpy_ndarray_fromstring"
    for name in ("returnn", "returnn.util", "returnn.util.task_system"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    task_system = sys.modules["returnn.util.task_system"]
    task_system.make_numpy_ndarray_fromstring = make_numpy_ndarray_fromstring

    sprint = start(hello=False)
    # Its pipes block.
    os.set_blocking(sprint.channel.write_fd, True)
    os.set_blocking(sprint.channel.read_fd, True)

    def talk(*message):
        stream = io.BytesIO()
        ReturnnPickler(stream, protocol=4).dump(message)
        data = stream.getvalue()
        os.write(sprint.channel.write_fd, struct.pack("<i", len(data)) + data)
        with os.fdopen(os.dup(sprint.channel.read_fd), "rb", 0) as file:
            (size,) = struct.unpack("<i", file.read(4))
            data = b""
            while len(data) < size:
                data += file.read(size - len(data))
        return pickle.loads(data)

    assert talk("init", "SprintSubprocessInstance", 1) == ("ok", "SprintControl", 1)
    scores = log_posteriors(8)
    check_criterion(talk("get_loss_and_error_signal", "c/r/one", 8, scores), scores)
    answer = talk("export_allophone_state_fsa_by_segment_name", "c/r/one")
    assert [type(part) for part in answer] == [str, int, int, np.ndarray, np.ndarray]


# -- what it is made of ------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(MODULE.glob("*.py")), ids=lambda path: path.name)
def test_is_python_38_and_imports_only_numpy_and_the_standard_library(file):
    tree = ast.parse(file.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level == 1, "an import from above the folder that Sprint loads"
                continue
            names = [node.module]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            assert top == "numpy" or top in sys.stdlib_module_names, f"{file.name} imports {name}"


def test_compiles_and_imports_in_its_interpreter(interpreter, tmp_path):
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(CONTROL)!r})\n"
        "import jax_sprint_control\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'jax', 'jaxlib', 'jax_sprint'}, loaded\n"
    )
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    subprocess.run([interpreter, "-s", "-c", code], check=True, timeout=DEADLINE, env=environment)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c2p_fd must be a number, not None"),
        ("c2p_fd:x,p2c_fd:1", "c2p_fd must be a number, not 'x'"),
        ("c2p_fd:1,p2c_fd:1,verbose", "'verbose' is no KEY:VALUE pair"),
    ],
)
def test_bad_config_strings(text, message):
    from jax_sprint.sprint_side.jax_sprint_control.settings import Settings

    with pytest.raises(ValueError, match=message):
        Settings.parse(text)


def test_config_strings():
    from jax_sprint.sprint_side.jax_sprint_control.settings import Settings

    settings = Settings.parse("c2p_fd:3,p2c_fd:4,minPythonControlVersion:2,path:/a:b,verbose:True")
    assert (settings.c2p_fd, settings.p2c_fd, settings.min_version) == (3, 4, 2)
    assert settings.verbose
    assert settings.values["path"] == "/a:b"
