"""The demo as a stranger starts it, on a small folder of spoken digits."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jax_sprint import SprintInstancePool, SprintOptions
from jax_sprint.demo.agreement import compare_routes
from jax_sprint.demo.bliss import write_bliss
from jax_sprint.demo.dataset import prepare
from jax_sprint.demo.experiment import load_corpus
from jax_sprint.demo.model import AcousticModel
from jax_sprint.demo.recordings import digit_corpus
from jax_sprint.demo.training import initial_parameters

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), environment.get("PYTHONPATH", "")])
    )
    return subprocess.run(
        [sys.executable, "-m", "jax_sprint.demo", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(digits_dir, tmp_path_factory):
    """A run of both routes: its working directory, what it printed, and its summary."""
    cwd = tmp_path_factory.mktemp("demo")
    done = _run(
        *("--data", str(digits_dir), "--steps", str(STEPS), "--seed", "5", "--out", "results"),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return cwd, done, json.loads((cwd / "results" / "summary.json").read_text())


def test_summary(demo):
    _, _, summary = demo
    assert set(summary["routes"]) == {"fsa", "callback"}
    for route in summary["routes"].values():
        assert len(route["loss"]) == STEPS
        assert all(math.isfinite(loss) and loss > 0 for loss in route["loss"])
        assert sum(route["loss"][-3:]) < sum(route["loss"][:3]), "it learns"
        assert 0 <= route["wer"] <= 300
        assert 0 <= route["ler"] <= 300
        assert route["step_ms"] > 0
        assert route["frames_per_second"] > 0
        assert route["words"] >= 1000
        assert set(route["wer_of_speaker"]) == {"anna", "ben_o"}
    assert summary["seed"] == 5
    assert summary["seconds_total"] > 0
    assert "ben_o" in summary["data"]
    assert summary["versions"]["jax"] == jax.__version__


def test_routes_agree(demo):
    _, _, summary = demo
    agreement = summary["agreement"]
    assert agreement["segments"] > 300
    assert agreement["without_path"] == 0
    assert agreement["loss_relative"] <= 1e-5
    assert agreement["gradient_absolute"] <= 1e-5
    assert agreement["first_steps_loss_relative"] <= 1e-4
    first, second = (route["loss"][:20] for route in summary["routes"].values())
    assert first == pytest.approx(second, rel=1e-4)


def test_files_and_text(demo):
    cwd, done, summary = demo
    assert set(summary["pictures"]) == {"losses", "automaton", "alignment"}
    for path in summary["pictures"].values():
        assert (cwd / path).read_bytes().startswith(b"\x89PNG")
        assert path in done.stdout
    for name in ("corpus.xml", "lexicon.xml", "sprint.config", "test.segments"):
        assert (cwd / "results" / "corpus" / name).stat().st_size > 0
    for text in (
        "segments to train on",
        "WER",
        "LER",
        "ms/step",
        "fsa",
        "callback",
        "in all",
        "seed 5",
    ):
        assert text in done.stdout
    assert "loss" in done.stderr
    assert "frames/s" in done.stderr


def test_the_corpus_it_wrote_is_read_again(demo):
    cwd, _, summary = demo
    corpus = load_corpus(cwd / "results" / "corpus", seed=0)
    train_part, test_part = prepare(corpus)
    assert len(train_part.tags) + len(test_part.tags) == summary["agreement"]["segments"]
    assert all(tag.startswith("digits/test-") for tag in test_part.tags)
    assert all(tag.startswith("digits/train-") for tag in train_part.tags)


@pytest.mark.parametrize("seed", [0, 1])
def test_agreement_with_sharp_and_flat_posteriors(digits_dir, tmp_path, seed):
    corpus = digit_corpus(digits_dir, seed=seed, train_words=100, test_words=30)
    files = write_bliss(corpus, tmp_path)
    train_part, test_part = prepare(corpus)
    model = AcousticModel(len(train_part.labels), width=16)
    parameters = initial_parameters(model, seed)
    sharp = jax.tree.map(lambda leaf: leaf * (30.0 if seed else 1.0), parameters)
    options = SprintOptions(config=[f"--config={files.config}"], num_instances=2)
    with SprintInstancePool(options) as pool:
        found = compare_routes(model, sharp, train_part.joined(test_part), pool)
    assert found.segments == len(train_part.tags) + len(test_part.tags)
    assert found.without_path == 0
    assert found.good, found
