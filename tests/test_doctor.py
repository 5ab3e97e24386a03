"""`jax-sprint doctor` with a Sprint that is well, and with all that can be wrong with one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.bridge import SprintOptions
from jax_sprint.bridge.options import default_control_module
from jax_sprint.cli import main
from jax_sprint.doctor._corpus import first_segment
from jax_sprint.doctor._examination import Finding, examine
from jax_sprint.doctor._remedies import advise
from jax_sprint.errors import SprintCrashError, SprintStartError

ROOT = Path(__file__).resolve().parent.parent
FAKE = ROOT / "tests" / "bridge" / "fake_sprint.py"
SITE = str(Path(np.__file__).parent.parent)


def fake(fault: str = "", **attributes) -> SprintOptions:
    settings = {
        "exec_path": [sys.executable, "-S", str(FAKE)],
        "env": {"PYTHONPATH": SITE},
        "config": [f"--fault={fault}"] if fault else [],
        "start_timeout": 20.0,
        "request_timeout": 20.0,
        "exit_timeout": 2.0,
        "automata_cache_bytes": 0,
        **attributes,
    }
    return SprintOptions(**settings)


def by_step(findings) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    for finding in findings:
        # The first failure of a step, if there is any.
        if finding.step not in found or found[finding.step].status != "FAIL":
            found[finding.step] = finding
        assert (finding.advice is not None) == (finding.status in ("FAIL", "note"))
    return found


def test_the_embedded_sprint(golden_dir: Path, capsys) -> None:
    arguments = ["doctor", "--config", "config/a_mono3_default.config", "--cwd", str(golden_dir)]
    status = main(arguments)
    out = capsys.readouterr().out
    assert status == 0, out
    want = np.load(golden_dir / "a_mono3_default.npz")
    first = str(want["tags"][0])
    own = want["edges"][3] == 0
    for text in (
        f"{own.sum()} arcs",
        first,
        "protocol version 2, arrays in shared memory",
        "lexicon.xml",
        f"numpy {np.__version__}",
        "sums to -1 per frame",
        "All is well.",
    ):
        assert text in out
    assert "FAIL" not in out


def test_arguments_behind_two_dashes(golden_dir: Path, capsys) -> None:
    more = [
        "--protocol",
        "1",
        "--segment",
        "no/such/segment",
        "--",
        "--*.model-combination.lexicon.file=other.xml",
    ]
    config = ["--config", "config/a_mono3_default.config", "--cwd", str(golden_dir)]
    assert main(["doctor", *config, *more]) == 1
    out = capsys.readouterr().out
    assert "other.xml" in out
    assert "correct the name, or the directory with --cwd" in out
    assert main(["doctor", *config, *more[:4]]) == 1
    out = capsys.readouterr().out
    assert "protocol version 1, arrays through the pipe" in out
    assert out.count("names are corpus/recording/segment") == 2
    assert "2 steps failed." in out


def test_it_needs_no_jax(golden_dir: Path) -> None:
    code = (
        "import sys; sys.modules['jax'] = None; from jax_sprint.cli import main; "
        "sys.exit(main(['doctor', '--config', 'config/b_ctc_blank.config']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=golden_dir,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr


START_FAULTS = {
    "dies": ("SprintStartError", "cannot open my licence file", "file", "correct the name"),
    "nonsense": ("SprintStartError", "Usage: something", "without ever calling", "python-control"),
    "silent": ("SprintTimeoutError", "handshake", "hand control", "raise --timeout"),
    "garbage": ("SprintProtocolError", "HTTP", "into the pipe", "control module of this package"),
    "closes pipes": ("SprintStartError", "closed its pipe", "descriptors", "docker and sudo"),
    "version": ("SprintProtocolError", "version 7", "of another time", "of this package"),
    "refuses": ("SprintProtocolError", "need new Sprint", "of another time", "version 2 or later"),
    "wrong answer": ("SprintProtocolError", "handshake", "into the pipe", "of this package"),
    "hostile": ("SprintProtocolError", "print", "into the pipe", "of this package"),
    "exits in handshake": ("SprintStartError", "status 4", "error", "--log-dir"),
}


@pytest.mark.parametrize("fault", START_FAULTS)
def test_it_does_not_start(fault: str) -> None:
    kind, text, reason, remedy = START_FAULTS[fault]
    patience = 0.7 if fault == "silent" else 20.0
    found = by_step(examine(fake(fault, start_timeout=patience), segment="a/b/1"))
    failed = found["handshake"]
    assert failed.status == "FAIL"
    assert failed.text.startswith(kind + ":")
    assert text in failed.text
    assert reason in failed.advice.reason
    assert remedy in failed.advice.remedy
    assert [found[step].status for step in ("automaton", "loss", "exit")] == ["skip"] * 3


def test_killed_at_the_start(tmp_path: Path) -> None:
    options = fake("once", control_config={"marker": tmp_path / "mark"})
    failed = by_step(examine(options, segment="a/b/1"))["handshake"]
    assert "memory" in failed.advice.reason
    # The second time it lives.
    assert by_step(examine(options, segment="a/b/1"))["loss"].status == "ok"


@pytest.mark.parametrize("fault", ["noisy start", "slow start", ""])
def test_it_starts_all_the_same(fault: str) -> None:
    found = by_step(examine(fake(fault), segment="a/b/1", frames=7, labels=3))
    assert {finding.status for finding in found.values()} <= {"ok", "note"}
    assert "version 1, arrays through the pipe" in found["handshake"].text
    assert "for 7 frames of 3 labels" in found["loss"].text


def test_it_will_not_exit() -> None:
    found = by_step(examine(fake("will not exit", exit_timeout=0.3), segment="a/b/1"))
    assert found["loss"].status == "ok"
    assert found["exit"].status == "note"
    assert "killed after" in found["exit"].text


# For the automaton and for the loss: part of the message, or of the reason; None where it works.
REQUEST_FAULTS = {
    "unknown": ("no segment of that full name",) * 2,
    "no reason": ("refused this request",) * 2,
    "exit": ("lattice not found",) * 2,
    "kill": ("want of memory",) * 2,
    "segv": ("about to touch null",) * 2,
    "half": ("status 6",) * 2,
    "garbage": ("SprintProtocolError",) * 2,
    "huge": ("max_message_bytes",) * 2,
    "negative": ("SprintProtocolError",) * 2,
    "hostile": ("SprintProtocolError",) * 2,
    "hang": ("raise --timeout",) * 2,
    "stop": ("raise --timeout",) * 2,
    "slow": (None, None),
    "shape": ("not what was asked for",) * 2,
    "transposed": ("ended itself because of an error", "not what was asked for"),
    "dtype": ("ended itself because of an error", "not what was asked for"),
    "text": ("not what was asked for",) * 2,
    "short": ("SprintProtocolError",) * 2,
    "status": ("neither ok nor exception",) * 2,
    "nan": ("not what was asked for", "computed NaN"),
    "inf": ("not what was asked for", "found no path of"),
    "flood": (None, None),
    "close": ("closed",) * 2,
    "states": ("not what was asked for", None),
    "edges": ("not what was asked for", None),
    "float64": ("ended itself because of an error", None),
    "grandchild": (None, None),
    "nan error": ("not what was asked for",) * 2,
    "gigabyte on stdout": (None, None),
    "gigabyte on stderr": (None, None),
    # The first answer comes, the second request finds nobody; then it is started again.
    "close input": ("closed its end of the pipe", None),
}


@pytest.mark.parametrize("fault", REQUEST_FAULTS)
def test_a_request_fails(fault: str) -> None:
    patience = 0.5 if fault in ("hang", "stop") else 20.0
    options = fake(request_timeout=patience, protocol_version=1)
    found = by_step(examine(options, segment=f"a/{fault}/1", frames=6, labels=4))
    assert found["handshake"].status == "ok"
    for step, want in zip(("automaton", "loss"), REQUEST_FAULTS[fault], strict=True):
        finding = found[step]
        if want is None:
            assert finding.status == "ok", finding
            continue
        assert finding.status in ("FAIL", "note"), finding
        assert want in f"{finding.text} {finding.advice.reason} {finding.advice.remedy}", finding


def test_no_second_sprint(tmp_path: Path) -> None:
    """A licence for one process: the one that is started after the first one's end has none."""
    options = fake("only first", control_config={"marker": tmp_path / "first"})
    found = by_step(examine(options, segment="a/exit/1", frames=6, labels=4))
    assert found["handshake"].status == "ok"
    assert "lattice not found" in found["automaton"].text
    assert found["loss"].status == "FAIL"
    assert "no licence left" in found["loss"].text
    assert "ended itself because of an error" in found["loss"].advice.reason


DEATHS = {"exit": "ended itself", "SIGKILL": "want of memory", "SIGSEGV": "a bug in the executable"}


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("stage", ["before", "inside", "after", "reply"])
def test_it_dies(stage: str, how: str) -> None:
    options = fake(config=[f"--death={stage} {how}"], protocol_version=1)
    found = by_step(examine(options, segment="a/b/1", frames=6, labels=4))
    for step in ("automaton", "loss"):
        assert found[step].status == "FAIL"
        assert "dying as told" in found[step].text
        assert DEATHS[how] in found[step].advice.reason


def test_all_faults_of_the_scripted_sprint_are_here() -> None:
    code = FAKE.read_text()
    faults = set(re.findall(r'fault == "([^"]+)"', code))
    for group in re.findall(r"fault in \(([^)]+)\)", code):
        faults |= set(re.findall(r'"([^"]+)"', group))
    faults |= set(re.findall(r'^            "(\w[^"]+)": ', code, re.MULTILINE))
    assert len(faults) > 40
    others = {"once", "noisy start", "slow start", "will not exit", "only first", "meet", "twice"}
    assert faults - set(START_FAULTS) - set(REQUEST_FAULTS) - others == set()


# What a child of version 2 can do wrong, and part of the advice.
SECOND_FAULTS = {
    **dict.fromkeys(
        ["number", "name", "kind", "request", "offset", "elsewhere"], "of this package"
    ),
    **dict.fromkeys(["shape", "bytes"], "--labels"),
    "huge": "max_message_bytes",
    "long name": "of this package",
    "magic": "of this package",
    "half": "--log-dir",
    "close": "--log-dir",
    "stop": "raise --timeout",
    "unknown": "corpus/recording/segment",
}


@pytest.mark.parametrize("fault", SECOND_FAULTS)
def test_version_2(fault: str) -> None:
    child = [sys.executable, str(FAKE.with_name("second_sprint.py")), default_control_module()[0]]
    patience = 0.5 if fault == "stop" else 20.0
    options = fake(exec_path=child, request_timeout=patience)
    found = by_step(examine(options, segment=f"a/{fault}/1", frames=6, labels=4))
    assert "version 2, arrays in shared memory" in found["handshake"].text
    assert found["loss"].status == "FAIL", found
    advice = found["loss"].advice
    assert SECOND_FAULTS[fault] in f"{advice.reason} {advice.remedy}", found["loss"]


def test_one_answer_too_many() -> None:
    # When the second answer is noticed depends on when it arrives.
    found = by_step(examine(fake(), segment="a/twice/1"))
    failed = [finding for finding in found.values() if finding.status == "FAIL"]
    assert failed
    assert failed[0].text.startswith("SprintProtocolError")
    assert "control module of this package" in failed[0].advice.remedy


def test_what_never_gets_as_far_as_a_process(tmp_path: Path) -> None:
    plain = tmp_path / "sprint"
    plain.write_text("no program")
    broken = tmp_path / "broken"
    broken.write_text("no program either")
    broken.chmod(0o755)
    for changes, step, remedy in (
        ({"exec_path": tmp_path / "missing"}, "command", "--exec-path"),
        ({"exec_path": "no-such-sprint"}, "command", "--exec-path"),
        ({"exec_path": plain}, "command", "chmod"),
        ({"exec_path": broken}, "handshake", "executable built for this machine"),
        ({"cwd": tmp_path / "nowhere"}, "handshake", "--cwd"),
        ({"config": ["$NOT_SET_ANYWHERE"]}, "command", "what the message names"),
        ({"config": ["--config=missing.config"]}, "files", "--cwd"),
        ({"control_module": (tmp_path, "missing")}, "module", "for ours"),
    ):
        found = by_step(examine(fake(**changes), segment="a/b/1"))
        assert found[step].status == "FAIL", changes
        assert remedy in found[step].advice.remedy, changes


def test_no_segment_to_ask_about() -> None:
    found = by_step(examine(fake()))
    assert found["segment"].status == "FAIL"
    assert "--segment" in found["segment"].advice.remedy
    assert found["exit"].status == "ok"


def test_advice_about_exits() -> None:
    killed = SprintCrashError("Sprint died", exit_status=-4)
    assert "another kind of processor" in advise(killed).reason
    assert "signal" in advise(SprintCrashError("Sprint died", exit_status=-10)).reason
    library = SprintStartError("ended", exit_status=127, stderr_tail="error: shared libraries: x")
    assert "LD_LIBRARY_PATH" in advise(library).remedy
    numpy = SprintStartError("ended", exit_status=1, stderr_tail="No module named 'numpy'")
    assert "numpy" in advise(numpy).remedy


def test_the_first_segment_of_a_corpus(tmp_path: Path, golden_dir: Path) -> None:
    assert first_segment([str(golden_dir / "lexicon.xml"), __file__]) is None
    found = first_segment([str(golden_dir / "lexicon.xml"), str(golden_dir / "corpus.xml")])
    assert found == ("tiny/rec1/seg1", str(golden_dir / "corpus.xml"))
    (tmp_path / "outer.xml").write_text(
        "<corpus name='c'><subcorpus name='s'><recording name='empty' audio='x'/>"
        "<include file='inner.xml'/></subcorpus></corpus>"
    )
    (tmp_path / "inner.xml").write_text(
        "<corpus name='s'><recording name='r' audio='x'><segment/></recording></corpus>"
    )
    assert first_segment([str(tmp_path / "outer.xml")])[0] == "c/s/r/1"
    (tmp_path / "inner.xml").write_text("<corpus name='s'><recording")
    assert first_segment([str(tmp_path / "outer.xml")]) is None


@pytest.mark.parametrize(
    "wrong",
    [
        ["--timeout", "0"],
        ["--env", "NAME"],
        ["--exec-path", ""],
        ["--frames", "0"],
        ["--protocol", "3"],
        ["--unheard-of"],
    ],
)
def test_wrong_arguments(wrong: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *wrong])
    assert ended.value.code == 2
    assert "usage: jax-sprint doctor" in capsys.readouterr().err


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--help"])
    assert ended.value.code == 0
    assert "exec-path" in capsys.readouterr().out
