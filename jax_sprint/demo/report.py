"""What the demo tells at its end, and leaves in `summary.json`."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_sprint.demo.agreement import (
    FIRST_STEPS,
    FIRST_STEPS_TOLERANCE,
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    Agreement,
)
from jax_sprint.demo.evaluation import Scores
from jax_sprint.demo.training import Trained

__all__ = ["Outcome", "print_summary", "summary", "write_summary"]

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "jax-sprint")


@dataclass
class Outcome:
    """What came out of a demo.

    Attributes:
        description: of the data.
        seed: of everything random.
        out: folder of the results.
        routes: training and scores by the name of the route, in the order of training.
        agreement: of both routes on every segment, if both were asked for.
        first_losses: largest relative difference of the first losses, likewise.
        pictures: files drawn, by name.
        seconds: wall time of the whole program.
    """

    description: str
    seed: int
    out: Path
    routes: dict[str, tuple[Trained, Scores]] = field(default_factory=dict)
    agreement: Agreement | None = None
    first_losses: float | None = None
    pictures: dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0

    def picture(self, name: str) -> Path:
        """Gives the file for a picture, and notes it."""
        return self.pictures.setdefault(name, self.out / f"{name}.png")


def summary(outcome: Outcome) -> dict[str, Any]:
    """Puts an outcome into the layout of `summary.json`: error rates in percent, times as named."""
    result: dict[str, Any] = {
        "routes": {
            name: {
                "wer": scores.wer,
                "ler": scores.ler,
                "step_ms": trained.step_ms,
                "frames_per_second": trained.frames_per_second,
                "loss": [_number(loss) for loss in trained.loss],
                "train_seconds": trained.seconds,
                "train_cpu_seconds": trained.cpu_seconds,
                "words": scores.num_words,
                "labels": scores.num_labels,
                "wer_of_speaker": scores.wer_of_speaker,
                "padding": {
                    "shapes": len(trained.padding.shapes),
                    "frames": trained.padding.frame_share,
                    "cells": trained.padding.cell_share,
                    "work": trained.padding.work_share,
                },
            }
            for name, (trained, scores) in outcome.routes.items()
        },
        "seconds_total": outcome.seconds,
        "data": outcome.description,
        "seed": outcome.seed,
        "versions": _versions(),
        "pictures": {name: str(path) for name, path in outcome.pictures.items()},
    }
    if outcome.agreement is not None:
        result["agreement"] = {
            "segments": outcome.agreement.segments,
            "without_path": outcome.agreement.without_path,
            "loss_relative": _number(outcome.agreement.loss),
            "gradient_absolute": _number(outcome.agreement.gradient),
            "first_steps": FIRST_STEPS,
            "first_steps_loss_relative": outcome.first_losses,
        }
    return result


def write_summary(outcome: Outcome) -> dict[str, Any]:
    """Writes `summary.json` into the folder of the results and gives its contents back."""
    contents = summary(outcome)
    text = json.dumps(contents, indent=1, allow_nan=False)
    (outcome.out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return contents


def print_summary(outcome: Outcome) -> None:
    """Prints what was trained, how well, how fast, and where the pictures are."""
    print(f"\nTrained on {outcome.description}, seed {outcome.seed}.\n")
    print("route      steps   WER     LER     ms/step   frames/s   training")
    for name, (trained, scores) in outcome.routes.items():
        print(
            f"{name:<9}{len(trained.loss):>7}{scores.wer:>6.2f} %{scores.ler:>6.2f} %"
            f"{trained.step_ms:>10.1f}{trained.frames_per_second:>11,.0f}{trained.seconds:>9.1f} s"
        )
    for scores in [scores for _, scores in outcome.routes.values()][:1]:
        print(
            f"\nWER over {scores.num_words:,} held-out words, decoded by Viterbi over the lexicon;"
            f" LER over {scores.num_labels:,} labels, greedy."
        )
    for name, (trained, _) in outcome.routes.items():
        padding = trained.padding
        if padding.cells:
            print(
                f"Padding of route {name}: {padding.work_share:.0%} of the work (of the frames"
                f" {padding.frame_share:.0%}, of frames times the automata's nodes"
                f" {padding.cell_share:.0%}), in {len(padding.shapes)} shape"
                f"{'s' if len(padding.shapes) > 1 else ''}."
            )
    if outcome.agreement is not None and outcome.first_losses is not None:
        found = outcome.agreement
        print(
            f"Both routes on all {found.segments:,} segments: losses within {found.loss:.1e}"
            f" relative ({_verdict(found.loss, LOSS_TOLERANCE)}), gradients within"
            f" {found.gradient:.1e} ({_verdict(found.gradient, GRADIENT_TOLERANCE)})."
        )
        print(
            f"Their first {FIRST_STEPS} training losses: within {outcome.first_losses:.1e} relative"
            f" ({_verdict(outcome.first_losses, FIRST_STEPS_TOLERANCE)})."
        )
    print(f"Pictures: {', '.join(str(path) for path in outcome.pictures.values())}")
    print(f"Summary:  {outcome.out / 'summary.json'}; {outcome.seconds:.0f} s in all.")


def _verdict(value: float, limit: float) -> str:
    return f"wanted {limit:.0e}" if value <= limit else f"MORE than the {limit:.0e} wanted"


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
