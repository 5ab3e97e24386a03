"""The demo from data to summary."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from jax_sprint import SprintInstancePool, SprintOptions
from jax_sprint.demo.agreement import compare_losses, compare_routes
from jax_sprint.demo.bliss import CorpusFiles, write_bliss
from jax_sprint.demo.bliss_folder import bliss_corpus, find_bliss
from jax_sprint.demo.corpus import Corpus, DemoError
from jax_sprint.demo.dataset import Part, prepare
from jax_sprint.demo.evaluation import Evaluator
from jax_sprint.demo.gallery import draw_all
from jax_sprint.demo.model import AcousticModel
from jax_sprint.demo.recordings import digit_corpus, find_takes
from jax_sprint.demo.report import Outcome, print_summary, write_summary
from jax_sprint.demo.routes import ROUTES
from jax_sprint.demo.synthetic import synthetic_corpus
from jax_sprint.demo.training import Recipe, initial_parameters, train
from jax_sprint.errors import SprintError

__all__ = ["Settings", "load_corpus", "run"]

_STEPS_REAL = 800
_STEPS_SYNTHETIC = 600
_NUM_INSTANCES = 2


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        routes: names of the routes to train by, in order.
        data: folder of recordings; None for synthetic speech.
        exec_path: of the real RASR; None for the embedded Sprint.
        steps: updates on each route; None for what the data needs.
        seed: of everything random.
        out: where results go; it exists.
        began: `time.perf_counter` when the program began.
    """

    routes: tuple[str, ...]
    data: Path | None
    exec_path: Any
    steps: int | None
    seed: int
    out: Path
    began: float = field(default_factory=time.perf_counter)


def load_corpus(data: Path | None, seed: int, *, progress: bool = False) -> Corpus:
    """Reads a folder of either layout, or makes the default corpus.

    Raises:
        DemoError: if the folder has neither layout.
    """
    if data is None:
        return synthetic_corpus(seed=seed, progress=progress)
    if find_takes(data):
        return digit_corpus(data, seed=seed)
    if any(find_bliss(data)):
        return bliss_corpus(data)
    raise DemoError(
        f"--data {str(data)!r} holds neither recordings named {{digit}}_{{speaker}}_{{take}}.wav"
        " nor a Bliss corpus and lexicon (*.xml, *.xml.gz)"
    )


def run(settings: Settings) -> dict[str, Any]:
    """Runs the demo and writes its results.

    Args:
        settings: what to do.

    Returns:
        What `summary.json` holds.

    Raises:
        DemoError: data that cannot be used.
        SprintError: Sprint failed.
    """
    corpus = load_corpus(settings.data, settings.seed, progress=True)
    train_part, test_part = prepare(corpus, progress=True)
    files = write_bliss(corpus, settings.out / "corpus")
    _describe(corpus, train_part)
    steps = settings.steps or (_STEPS_SYNTHETIC if settings.data is None else _STEPS_REAL)
    recipe = Recipe(steps=steps, seed=settings.seed)
    model = AcousticModel(len(train_part.labels))
    outcome = Outcome(description=corpus.description, seed=settings.seed, out=settings.out)
    with _sprint(settings, files, test_part) as pool:
        if len(settings.routes) > 1:
            start = initial_parameters(model, recipe.seed)
            with _explained("callback", settings):
                outcome.agreement = compare_routes(
                    model, start, train_part.joined(test_part), pool, progress=True
                )
        buckets = train_part.buckets(recipe.num_buckets, recipe.batch_size)
        evaluator = Evaluator(model, corpus, test_part, pool)
        for name in settings.routes:
            route = ROUTES[name](pool, train_part, buckets)
            with _explained(name, settings):
                trained = train(model, train_part, buckets, route, recipe)
            scores = evaluator(trained.parameters, progress=True)
            outcome.routes[name] = (trained, scores)
        if len(settings.routes) > 1:
            losses = [outcome.routes[name][0].loss for name in settings.routes]
            outcome.first_losses = compare_losses(*losses)
        draw_all(outcome, evaluator, test_part, pool)
    outcome.seconds = time.perf_counter() - settings.began
    print_summary(outcome)
    return write_summary(outcome)


def _describe(corpus: Corpus, kept: Part) -> None:
    minutes = {
        part: sum(utterance.seconds for utterance in utterances) / 60
        for part, utterances in (("train", corpus.train), ("test", corpus.test))
    }
    left_out = len(corpus.train) - len(kept.utterances)
    print(f"corpus: {corpus.description}")
    print(
        f"        {len(corpus.train)} segments to train on ({minutes['train']:.1f} min),"
        f" {len(corpus.test)} held out ({minutes['test']:.1f} min), {len(kept.labels)} labels"
        + (f"; {left_out} left out as too short for their words" if left_out else "")
    )


@contextmanager
def _sprint(settings: Settings, files: CorpusFiles, part: Part) -> Iterator[SprintInstancePool]:
    options = SprintOptions(
        exec_path=settings.exec_path,
        config=[f"--config={files.config.resolve()}"],
        num_instances=_NUM_INSTANCES,
        log_dir=settings.out / "sprint-logs",
    )
    with SprintInstancePool(options) as pool:
        began = time.perf_counter()
        pool.get_automata_for_batch(list(part.tags[:1]))
        name = "the embedded Sprint" if settings.exec_path is None else str(settings.exec_path)
        print(
            f"Sprint: {name}, {_NUM_INSTANCES} instances,"
            f" first automaton after {time.perf_counter() - began:.2f} s"
        )
        yield pool


@contextmanager
def _explained(route: str, settings: Settings) -> Iterator[None]:
    """Turns what a callback raises inside a compiled program into an error of the demo."""
    try:
        yield
    except (DemoError, SprintError, jax.errors.JaxRuntimeError) as error:
        if settings.exec_path is not None and route == "callback":
            raise DemoError(
                f"{settings.exec_path} does not answer the callback route, which needs a criterion"
                " over all paths as the embedded Sprint has it; RASR's own criteria need lattices."
                f"  Use --loss fsa with it.\n{error}"
            ) from error
        if isinstance(error, DemoError | SprintError):
            raise
        raise DemoError(f"training by route {route} failed: {error}") from error
