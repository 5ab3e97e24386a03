"""The embedded Sprint as a process: started, driven over real pipes, ended, and started wrongly."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.sprint_side.jax_sprint_control.wire import Channel, PeerClosedError

ROOT = Path(__file__).resolve().parent.parent.parent
CONTROL = str(ROOT / "jax_sprint" / "sprint_side")
DEADLINE = 60.0
LABELS = 45


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(*arguments: str, cwd) -> subprocess.CompletedProcess:
    """Runs it to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "jax_sprint.embedded", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


class Sprint:
    """The embedded Sprint with our control module, driven as a parent would."""

    def __init__(self, cwd, *arguments: str, control: str = "", order=True):
        to_parent, to_child = os.pipe(), os.pipe()
        config = f"c2p_fd:{to_parent[1]},p2c_fd:{to_child[0]},minPythonControlVersion:2{control}"
        command = [
            *[sys.executable, "-P", "-m", "jax_sprint.embedded"],
            "--*.python-control-enabled=true",
            f"--*.pymod-path={CONTROL}",
            "--*.pymod-name=jax_sprint_control",
            f"--*.pymod-config={config}",
        ]
        if order:
            command += [
                "--*.python-segment-order=true",
                f"--*.python-segment-order-pymod-path={CONTROL}",
                "--*.python-segment-order-pymod-name=jax_sprint_control",
                f"--*.python-segment-order-config={config}",
                "--*.python-segment-order-allow-copy=false",
            ]
        self.process = subprocess.Popen(
            [*command, *arguments],
            pass_fds=(to_parent[1], to_child[0]),
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.close(to_parent[1])
        os.close(to_child[0])
        self.channel = Channel(to_parent[0], to_child[1])

    def ask(self, *message):
        self.channel.send(message, timeout=DEADLINE)
        return self.channel.receive(timeout=DEADLINE)

    def hello(self):
        assert self.ask("init", "test", 1) == ("ok", "SprintControl", 1)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.channel.close()
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(DEADLINE / 6)
        self.process.kill()
        self.stdout, self.stderr = self.process.communicate(timeout=DEADLINE)


@pytest.fixture
def sprint(golden_dir):
    """Starts Sprints on a golden configuration and sees to their end."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, name: str = "a_mono3_legacy", **keywords) -> Sprint:
            arguments = (f"--config=config/{name}.config", *arguments)
            return stack.enter_context(Sprint(golden_dir, *arguments, **keywords))

        yield start


def log_posteriors(seed: int, frames: int) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(frames, LABELS)).astype(np.float32)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


LOOPS = ["python-control-loop", "iterate-corpus"]


@pytest.mark.parametrize("loop", LOOPS)
def test_everything_over_real_pipes(sprint, golden_dir, loop):
    child = sprint(f"--*.python-control-loop-type={loop}").hello()
    golden = np.load(golden_dir / "a_mono3_legacy.npz")
    for b, tag in enumerate(golden["tags"]):
        status, states, arcs, edges, weights = child.ask(
            "export_allophone_state_fsa_by_segment_name", str(tag)
        )
        mask = golden["edges"][3] == b
        first, last = golden["start_end_states"][:, b]
        assert (status, states, arcs) == ("ok", int(last) - int(first) + 1, mask.sum())
        assert edges.dtype == np.uint32
        assert weights.dtype == np.float32
        assert len(edges) == 3 * arcs
    # In any order, again and again, with exports in between.
    for tag, frames in [("tiny/rec2/seg1", 70), ("tiny/rec1/seg2", 9), ("tiny/rec2/seg1", 70)]:
        scores = log_posteriors(frames, frames)
        status, loss, error = child.ask("get_loss_and_error_signal", tag, frames, scores)
        assert status == "ok"
        assert np.isfinite(loss)
        assert error.dtype == np.float32
        assert error.shape == scores.shape
        np.testing.assert_allclose(error.sum(axis=1), -1.0, atol=1e-5)
        assert child.ask("export_allophone_state_fsa_by_segment_name", tag)[0] == "ok"
    child.channel.send(("exit",))
    assert child.process.wait(DEADLINE) == 0
    with pytest.raises(PeerClosedError):
        child.channel.receive(timeout=DEADLINE)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_that_fails_leaves_the_child_alive(sprint, loop):
    child = sprint(
        f"--*.python-control-loop-type={loop}", "--*.corpus.file=corpus_oov.xml", name="e_nosil"
    ).hello()
    scores = log_posteriors(0, 60)
    export = "export_allophone_state_fsa_by_segment_name"
    loss = "get_loss_and_error_signal"
    for request, message in [
        ((export, "tiny/nothing/here"), "unknown segment name 'tiny/nothing/here'"),
        ((loss, "tiny/nothing/here", 60, scores), "unknown segment"),
        ((export, "tiny/rec4/oov"), "zzz"),
        ((loss, "tiny/rec4/oov", 60, scores), "zzz"),
        ((loss, "tiny/rec1/seg1", 59, scores), "length 59 disagrees with the 60 frames"),
        ((loss, "tiny/rec1/seg1", 60, scores[0]), "must be a float array"),
        ((loss, "tiny/rec1/seg1", 60, scores[:, :3]), "have only 3 labels"),
        ((loss, "tiny/rec1/seg1"), "missing"),
        ((loss, 7, 60, scores), "must be a string, not int"),
        (("fly", 1), "unknown command 'fly'"),
        (("init", "test", 2), "this control module speaks version 1"),
        ((1,), r"must be a tuple \(command, ...\)"),
    ]:
        status, text = child.ask(*request)
        assert status == "exception"
        assert message.replace("\\", "") in text
        good = child.ask(loss, "tiny/rec1/seg1", 60, scores)
        assert good[0] == "ok"
        assert np.isfinite(good[1])
    child.channel.send(["no", "tuple"])
    assert child.channel.receive(timeout=DEADLINE)[0] == "exception"


@pytest.mark.parametrize("loop", LOOPS)
def test_no_path_gives_infinity_and_zero(sprint, loop):
    child = sprint(f"--*.python-control-loop-type={loop}").hello()
    status, loss, error = child.ask(
        "get_loss_and_error_signal", "tiny/rec1/seg1", 2, log_posteriors(0, 2)
    )
    assert (status, loss) == ("ok", np.inf)
    assert not error.any()


TRAIN = [
    "--*.action=supervised-segmentwise-training",
    "--*.python-layer.dimension-input=3",
    f"--*.python-layer.dimension-output={LABELS}",
    "--*.trainer.frame-shift=0.02",
]


def test_training_with_a_python_layer(sprint):
    plain = sprint().hello()
    child = sprint(*TRAIN).hello()
    # tiny/rec1/seg1 lasts 1.2 s, tiny/rec1/seg2 0.4 s
    for tag, frames in [("tiny/rec1/seg2", 20), ("tiny/rec1/seg1", 60), ("tiny/rec1/seg2", 20)]:
        request = ("get_loss_and_error_signal", tag, frames, log_posteriors(frames, frames))
        found, expected = child.ask(*request), plain.ask(*request)
        assert found[:2] == ("ok", pytest.approx(expected[1], rel=1e-6))
        np.testing.assert_array_equal(found[2], expected[2])
        assert child.ask("export_allophone_state_fsa_by_segment_name", tag)[0] == "ok"
    nothing = np.full((60, LABELS), -np.inf, np.float32)
    status, loss, error = child.ask("get_loss_and_error_signal", "tiny/rec1/seg1", 60, nothing)
    assert (status, loss) == ("ok", np.inf)
    assert not error.any()
    request = ("get_loss_and_error_signal", "tiny/rec1/seg1", 50, log_posteriors(0, 50))
    status, text = child.ask(*request)
    assert status == "exception"
    assert "50 frames and 45 labels, but Sprint has 60 and 45" in text
    assert child.ask("get_loss_and_error_signal", "tiny/gone", 50, log_posteriors(0, 50)) == (
        "exception",
        "unknown segment 'tiny/gone': not among the 7 segments of Sprint's corpus",
    )
    child.channel.send(("exit",))
    assert child.process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", ""),
        (
            "def forward(self, input): return input",
            "forward() must give float32 (45, 60), not list",
        ),
        ("def forward(self, input): return np.zeros((45, 60))", "not float64 (45, 60)"),
        ("def backpropagate(self, errorSignalIn): return [0]", "must give a tuple of 1"),
        ("def isTrainable(self): return 1", "isTrainable() must give a bool"),
        ("def getNumberOfFreeParameters(self): return -1", "an int of at least 0"),
    ],
)
def test_layers_of_others_are_called_as_by_rasr(golden_dir, tmp_path, change, message):
    """A layer without PythonControl, in the order of the corpus."""
    (tmp_path / "layer.py").write_text(
        "import sys\nimport numpy as np\n"
        "class SprintNnPythonLayer:\n"
        "    def __init__(self, **k): self.say('new', k)\n"
        "    def say(self, *words): print(*words, file=sys.stderr)\n"
        "    def setInputDimension(self, **k): self.say('input', k)\n"
        "    def setOutputDimension(self, **k): self.say('output', k)\n"
        "    def initializeNetworkParameters(self): self.say('initialize')\n"
        "    def isTrainable(self): return True\n"
        "    def getNumberOfFreeParameters(self): return 0\n"
        "    def forward(self, input):\n"
        "        self.say('forward', len(input), input[0].shape, input[0].dtype)\n"
        "        return np.full((45, input[0].shape[1]), -np.log(45), np.float32)\n"
        "    def backpropagate(self, errorSignalIn):\n"
        "        self.say('backpropagate', errorSignalIn.shape, errorSignalIn.dtype)\n"
        "        return (np.zeros((3, errorSignalIn.shape[1]), np.float32),)\n"
        "    def finalize(self): self.say('finalize')\n"
        f"    {change}\n"
    )
    (tmp_path / "segments").write_text("tiny/rec1/seg1\n")
    result = run(
        "--config=config/a_mono3_legacy.config",
        *TRAIN,
        f"--*.pymod-path={tmp_path}",
        "--*.pymod-name=layer",
        "--*.pymod-config=a:b",
        f"--*.corpus.segments.file={tmp_path / 'segments'}",
        cwd=golden_dir,
    )
    if message:
        assert result.returncode == 1
        assert message in result.stderr
        return
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "new {'config': 'a:b'}",
        "output {'size': 45}",
        "input {'stream': 0, 'size': 3}",
        "initialize",
        "forward 1 (3, 60) float32",
        "backpropagate (45, 60) float32",
        "finalize",
    ]


def test_iterate_corpus_without_segment_order_takes_segments_as_they_come(sprint):
    child = sprint("--*.python-control-loop-type=iterate-corpus", order=False).hello()
    for tag in ("tiny/rec1/seg2", "tiny/rec2/seg1"):
        assert child.ask("get_loss_and_error_signal", tag, 30, log_posteriors(1, 30))[0] == "ok"
    # It has passed by already: said at the end of the corpus.
    status, text = child.ask(
        "get_loss_and_error_signal", "tiny/rec1/seg1", 30, log_posteriors(1, 30)
    )
    assert status == "exception"
    assert "came to the end of its corpus without meeting segment 'tiny/rec1/seg1'" in text
    assert child.process.wait(DEADLINE) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_ends_quietly_when_the_pipe_closes(sprint, loop):
    with sprint(f"--*.python-control-loop-type={loop}").hello() as child:
        child.channel.close()
        assert child.process.wait(DEADLINE) == 0
    assert child.stderr == b""


def test_ends_quietly_when_nobody_reads_the_answer(sprint):
    with sprint().hello() as child:
        big = log_posteriors(0, 20_000)
        child.channel.send(("get_loss_and_error_signal", "tiny/rec1/seg1", 20_000, big), DEADLINE)
        child.channel.close()
        assert child.process.wait(DEADLINE) == 0
    assert child.stderr == b""


def test_garbage_on_the_pipe_is_answered_and_ends_it(sprint):
    with sprint().hello() as child:
        os.write(child.channel.write_fd, b"\xff\xff\xff\xffnonsense")
        status, text = child.channel.receive(timeout=DEADLINE)
        assert status == "exception"
        assert "not a valid request" in text
        assert child.process.wait(DEADLINE) == 1


def test_a_pickle_that_would_act_is_refused(sprint, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    with sprint().hello() as child:
        data = pickle.dumps(("init", Evil(), 1))
        os.write(child.channel.write_fd, struct.pack("<i", len(data)) + data)
        assert child.channel.receive(timeout=DEADLINE)[0] == "exception"
        child.process.wait(DEADLINE)
    assert not (tmp_path / "made").exists()


def test_ends_when_its_parent_is_killed(golden_dir, tmp_path):
    """A grandparent starts a parent that starts Sprint; the parent is killed."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "a, b = os.pipe(), os.pipe()\n"
        "config = 'c2p_fd:%d,p2c_fd:%d,minPythonControlVersion:2' % (a[1], b[0])\n"
        "child = subprocess.Popen([sys.executable, '-P', '-m', 'jax_sprint.embedded',\n"
        "    '--*.pymod-path=' + sys.argv[1], '--*.pymod-name=jax_sprint_control',\n"
        "    '--*.pymod-config=' + config], pass_fds=(a[1], b[0]), stdin=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script), CONTROL],
        cwd=golden_dir,
        env=environment(),
        stdout=subprocess.PIPE,
    )
    # The child inherits our end of this pipe and holds it open exactly as long as it lives.
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait(DEADLINE)
    out, _ = parent.communicate(timeout=DEADLINE)
    assert out == b""


def test_standard_output_carries_no_protocol(sprint):
    with sprint().hello() as child:
        child.ask("export_allophone_state_fsa_by_segment_name", "tiny/rec1/seg1")
        child.channel.send(("exit",))
        child.process.wait(DEADLINE)
    assert child.stdout == b""


def test_verbose_talks_on_standard_error(sprint):
    with sprint(control=",verbose:True").hello() as child:
        child.ask("fly")
        child.channel.send(("exit",))
        child.process.wait(DEADLINE)
    assert b"unknown command 'fly'" in child.stderr


def test_a_control_module_that_cannot_start_ends_the_process(golden_dir):
    with Sprint(golden_dir, "--*.pymod-config=c2p_fd:1") as child, pytest.raises(PeerClosedError):
        child.ask("init", "test", 1)
    assert b"p2c_fd must be a number" in child.stderr
    assert child.process.returncode == 1


# -- starting it wrongly -----------------------------------------------------------------------


def test_help(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "embedded Sprint" in result.stdout
    assert "training-criterion" in result.stdout


CONTROL_ARGUMENTS = [f"--*.pymod-path={CONTROL}", "--*.pymod-name=jax_sprint_control"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no options given"),
        (["--config=gone.config"], "cannot read the configuration file 'gone.config'"),
        (["--*.foo=1"], "pymod-name: no control module is named"),
        (["--*.pymod-name=gone"], "cannot import the control module 'gone'"),
        (["--*.pymod-path=here", "--*.pymod-name=a.b"], "module 'a.b' from 'here'"),
        (["--*.pymod-name=json"], "has no function 'init'"),
        (["--*.pymod-name=json", "--*.action=show"], "action.*'show'.*python-control"),
        (["--*.action=supervised-segmentwise-training"], "number of labels is not given"),
        (["--*.python-control-loop-type=fast"], "'fast'; it must be one of python-control-loop"),
        (["--*.python-control-loop-type=iterate-corpus"], "extract-features"),
        (
            [*CONTROL_ARGUMENTS, "--*.corpus.file=gone.xml"],
            "cannot read the corpus file 'gone.xml'",
        ),
        ([*CONTROL_ARGUMENTS, "--*.lexicon.file=gone"], "cannot read the lexicon file 'gone'"),
        ([*CONTROL_ARGUMENTS, "--*.lexicon.file=bad.xml"], "bad.xml line 2: malformed XML"),
        ([*CONTROL_ARGUMENTS, "--*.corpus.file=bad.xml"], "bad.xml line 1: the root element is"),
        ([*CONTROL_ARGUMENTS, "--*.input-in-log-space=maybe"], "input-in-log-space.*'maybe'"),
        ([*CONTROL_ARGUMENTS, "--*.criterion.am-scale=x"], "criterion.am-scale.*'x'"),
        ([*CONTROL_ARGUMENTS, "--*.load-at-start=perhaps"], "yes, no, auto"),
    ],
)
def test_mistakes_end_with_status_1_and_one_line(tmp_path, arguments, message):
    (tmp_path / "bad.xml").write_text("<lexicon>\n</corpus>\n")
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("jax-sprint-embedded: error: ")
    assert re.search(message, line), line


def test_large_files_or_load_at_start_no_are_read_at_first_use(golden_dir):
    arguments = ("--*.lexicon.file=gone.xml", "--*.load-at-start=no")
    with Sprint(golden_dir, "--*.corpus.file=corpus.xml", *arguments) as child:
        child.hello()
        for _ in range(2):
            status, text = child.ask("export_allophone_state_fsa_by_segment_name", "tiny/rec1/seg1")
            assert status == "exception"
            assert "cannot read the lexicon file 'gone.xml'" in text


def test_unused_options_are_reported_on_request(golden_dir, tmp_path):
    module = tmp_path / "idle.py"
    module.write_text(
        "class Control:\n"
        "    def run_control_loop(self, callback): pass\n"
        "    def exit(self): pass\n"
        "def init(**keywords):\n    return Control()\n"
    )
    arguments = [f"--*.pymod-path={tmp_path}", "--*.pymod-name=idle", "--*.report-unused=yes"]
    result = run(*arguments, "--*.corpsu.file=typo.xml", cwd=golden_dir)
    assert result.returncode == 0
    assert "nothing asked for neural-network-trainer.*.corpsu.file = typo.xml" in result.stderr


def test_control_modules_of_others_are_called_as_by_rasr(golden_dir, tmp_path):
    """Keyword names, types and order of all calls, in both loops."""
    (tmp_path / "spy.py").write_text(
        "import sys\n"
        "def say(*words): print(*words, file=sys.stderr)\n"
        "class Control:\n"
        "    def run_control_loop(self, callback):\n"
        "        say('loop', callback('version_number'))\n"
        "    def init_processing(self, **k): say('init_processing', sorted(k.items()))\n"
        "    def process_segment(self, **k): say('segment', sorted(k.items()))\n"
        "    def exit(self): say('exit')\n"
        "def init(**k):\n"
        "    assert callable(k.pop('callback')) and k.pop('reference') is not None\n"
        "    say('init', sorted(k.items()))\n"
        "    return Control()\n"
        "def getSegmentList(**k):\n"
        "    say('order', sorted(k.items()))\n"
        "    yield k['segmentList'][1]\n"
        "    yield k['segmentList'][0]\n"
    )
    arguments = [f"--*.pymod-path={tmp_path}", "--*.pymod-name=spy", "--*.pymod-config=a:b"]
    loop = run(*arguments, cwd=golden_dir)
    init = (
        "init [('config', 'a:b'), ('name', 'Sprint.PythonControl'), "
        "('sprint_unit', 'NnTrainer.pythonControl'), ('version_number', 5)]"
    )
    assert loop.stderr.splitlines() == [init, "loop 5", "exit"]
    (tmp_path / "segments").write_text("tiny/rec1/seg1\ntiny/rec2/seg3\n")
    corpus = run(
        *arguments,
        "--config=config/a_mono3_legacy.config",
        "--*.python-control-loop-type=iterate-corpus",
        f"--*.corpus.segments.file={tmp_path / 'segments'}",
        "--*.python-segment-order=true",
        f"--*.python-segment-order-pymod-path={tmp_path}",
        "--*.python-segment-order-pymod-name=spy",
        "--*.python-segment-order-config=c:d",
        "--*.python-segment-order-with-segment-info=true",
        cwd=golden_dir,
    )
    rest = "('soft_alignment', None), ('speaker_name', 'spk1')]"
    *found, last = corpus.stderr.splitlines()
    assert found == [
        init,
        "order [('config', 'c:d'), ('corpusName', 'tiny'), ('segmentList', "
        "['tiny/rec1/seg1', 'tiny/rec2/seg3']), ('segmentsInfo', "
        "{'tiny/rec1/seg1': {'time': 1.2}, 'tiny/rec2/seg3': {'time': 0.5}})]",
        "init_processing [('input_dim', -1), ('output_dim', -1)]",
        "segment [('alignment', None), ('features', None), ('name', 'tiny/rec2/seg3'), "
        f"('orthography', b''), {rest}",
        "segment [('alignment', None), ('features', None), ('name', 'tiny/rec1/seg1'), "
        f"('orthography', b'hello world '), {rest}",
    ]
    assert last == "exit"
    assert (loop.returncode, corpus.returncode) == (0, 0)


def test_exit_status_of_the_control_module(golden_dir, tmp_path):
    for body, status in [("raise SystemExit(0)", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)]:
        (tmp_path / "ends.py").write_text(
            f"class Control:\n    def run_control_loop(self, callback):\n        {body}\n"
            "def init(**k):\n    return Control()\n"
        )
        result = run(f"--*.pymod-path={tmp_path}", "--*.pymod-name=ends", cwd=golden_dir)
        assert result.returncode == status
    assert "ZeroDivisionError" in result.stderr
    (tmp_path / "ends.py").write_text("def init(**k):\n    return None\n")
    result = run(f"--*.pymod-path={tmp_path}", "--*.pymod-name=ends", cwd=golden_dir)
    assert result.returncode == 1
    assert "init() of control module 'ends' gave None" in result.stderr


def test_nothing_on_the_way_up_imports_jax(golden_dir, tmp_path):
    (tmp_path / "look.py").write_text(
        "import sys\n"
        "class Control:\n"
        "    def run_control_loop(self, callback):\n"
        "        callback('export_allophone_state_fsa_by_segment_name', 'tiny/rec1/seg1')\n"
        "        names = {name.partition('.')[0] for name in sys.modules}\n"
        "        print(sorted(names & {'jax', 'jaxlib', 'flax', 'optax', 'scipy'}))\n"
        "    def exit(self): pass\n"
        "def init(**k):\n    return Control()\n"
    )
    result = run(
        "--config=config/a_mono3_legacy.config",
        f"--*.pymod-path={tmp_path}",
        "--*.pymod-name=look",
        cwd=golden_dir,
    )
    assert (result.returncode, result.stdout) == (0, "[]\n")
