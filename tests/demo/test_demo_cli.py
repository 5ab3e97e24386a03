"""The command line: what it refuses, and how it says so."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import pytest

from jax_sprint.demo import _cli, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--loss", "ctc"], "invalid choice: 'ctc'"),
        (["--steps", "0"], "'0' is not a whole number from 1"),
        (["--steps", "many"], "'many' is not a whole number"),
        (["--seed", "-1"], "'-1' is not a whole number from 0"),
        (["--seed", str(2**40)], "is not a whole number from 0 to 2147483647"),
        (["--data", "no/such/folder"], "'no/such/folder' does not exist"),
        (["--data", __file__], "is not a folder"),
        (["--exec-path", "no/such/rasr"], "'no/such/rasr' is no executable"),
        (["--exec-path", ""], "is no executable"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_invalid_arguments(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "usage: jax-sprint demo" in error


def test_help_mentions_everything(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--loss",
        "--data",
        "--exec-path",
        "--steps",
        "--seed",
        "--out",
        "test.segments",
    ):
        assert option in text


@pytest.fixture
def standard_promotion():
    """Optax's Adam mixes integers and floats, which the strict promotion of our tests forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_missing_extras_are_named(monkeypatch, tmp_path, capsys):
    found = _cli.importlib.util.find_spec
    missing = {"soxr", "kaldi_native_fbank"}
    monkeypatch.setattr(
        _cli.importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    assert main(["--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "kaldi-native-fbank, soxr" in error
    assert "pip install 'jax-sprint[demo]'" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_of_neither_layout(tmp_path, capsys):
    (tmp_path / "hello.wav").write_bytes(b"")
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "{digit}_{speaker}_{take}.wav" in error
    assert "Bliss" in error


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("taken")
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "cannot be made a folder" in capsys.readouterr().err


def test_a_command_line_as_executable():
    assert _cli._command(f"{sys.executable} -m jax_sprint.embedded") == [
        sys.executable,
        "-m",
        "jax_sprint.embedded",
    ]
    assert _cli._command(sys.executable) == sys.executable


def test_an_executable_that_is_no_sprint(digits_dir, tmp_path, capsys):
    arguments = ["--data", str(digits_dir), "--exec-path", "true", "--out", str(tmp_path)]
    assert main([*arguments, "--steps", "1"]) == 1
    error = capsys.readouterr().err
    message = error[error.index("jax-sprint demo: error:") :]
    assert "true" in message


def test_a_sprint_without_the_criterion(digits_dir, tmp_path, capsys, standard_promotion):
    """As the real RASR: it exports automata, but computes no sum over all paths."""
    program = tmp_path / "rasr"
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' -m jax_sprint.embedded"
        " \"$@\" '--*.training-criterion=none'\n"
    )
    program.chmod(0o755)
    arguments = ["--data", str(digits_dir), "--exec-path", str(program), "--steps", "1"]
    assert main([*arguments, "--loss", "callback", "--out", str(tmp_path / "out")]) == 1
    output = capsys.readouterr()
    assert "does not answer the callback route" in output.err
    assert "--loss fsa" in output.err
    assert f"Sprint: {program}, 2 instances, first automaton after" in output.out
