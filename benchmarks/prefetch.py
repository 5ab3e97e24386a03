"""Measures what fetching automata in the background costs the demo's training, in paired runs.

    python benchmarks/prefetch.py [--data DIR] [--rounds 5] [--demo-rounds 3] [--out DIR]

Two things, each in rounds in which the contenders take turns on the same batches:

* the demo's training as it is, compilation of its shapes included, with automata that were fetched
  and packed before, and with prefetched ones.  A step counts for the first epoch as long as it has
  segments that Sprint was not asked for yet; steps that compile are left out.
* the worst case: everything is compiled, and every core is busy with the steps.  An epoch with
  automata of before, with prefetched ones from Sprints that were not asked yet, and from such that
  were.

Where other programs use the machine, waits and processor times say more than times of steps.  The
tables hold medians over the rounds.  Needs psutil.  Writes prefetch.md and prefetch.png.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LANES = ("precomputed", "first epoch", "later epoch")
_STEPS = 300


def timed(supervised: Iterable[Any], waits: list[float]) -> Iterator[Any]:
    """Yields the items; appends how long each kept the training waiting, in milliseconds."""
    iterator = iter(supervised)
    while True:
        begin = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        waits.append(1e3 * (time.perf_counter() - begin))
        yield item


class Timed:
    """A route that is watched: `waits` has what `timed` appends."""

    def __init__(self, route: Any) -> None:
        self.name, self.loss, self._route = route.name, route.loss, route
        self.waits: list[float] = []

    def supervise(self, batches: Iterable[Any]) -> Iterator[Any]:
        return timed(self._route.supervise(batches), self.waits)


class Training:
    """The demo's training by automata, up to the first step.

    Args:
        data: folder of recordings, or None for synthetic speech.
        folder: for the corpus.
    """

    def __init__(self, data: Path | None, folder: Path) -> None:
        import jax

        from jax_sprint import SprintOptions
        from jax_sprint.demo.batches import batch_stream
        from jax_sprint.demo.bliss import write_bliss
        from jax_sprint.demo.dataset import prepare
        from jax_sprint.demo.experiment import load_corpus
        from jax_sprint.demo.model import AcousticModel
        from jax_sprint.demo.routes import FsaRoute
        from jax_sprint.demo.training import Recipe, initial_parameters, make_step

        corpus = load_corpus(data, seed=0, progress=True)
        self.description = corpus.description
        self.part, test_part = prepare(corpus, progress=True)
        files = write_bliss(corpus, folder)
        self.options = SprintOptions(config=[f"--config={files.config}"], num_instances=2)
        self.elsewhere = test_part.tags[0]
        recipe = Recipe(steps=600)
        self.buckets = buckets = self.part.buckets(recipe.num_buckets, recipe.batch_size)
        stream = batch_stream(buckets, self.part.features, batch_size=recipe.batch_size, seed=0)
        number = sum(max(len(bucket.members) // recipe.batch_size, 1) for bucket in buckets)
        self.batches = list(itertools.islice(stream, number))
        self.model = model = AcousticModel(len(self.part.labels))
        optimizer = recipe.optimizer()
        parameters = initial_parameters(model, recipe.seed)
        self._state = (parameters, optimizer.init(parameters))
        self._key = jax.random.key(1)
        self._augmentation = np.random.default_rng(1)
        with self.open_pool() as pool:
            route = FsaRoute(pool, self.part, buckets)
            self._padding = route.padding
            self.precomputed = [automata for _, automata in route.supervise(self.batches)]
        self._step = make_step(model, optimizer, route)
        self.shapes = self._padding.shapes
        self.epoch(zip(self.batches, self.precomputed, strict=True))

    @contextlib.contextmanager
    def open_pool(self) -> Any:
        """Sprints that have started, and have not been asked for any segment of the training."""
        from jax_sprint import SprintInstancePool

        with SprintInstancePool(self.options) as pool:
            pool.get_automata_for_batch([self.elsewhere])
            yield pool

    def prefetched(self, pool: Any) -> Iterable[tuple[Any, Any]]:
        from jax_sprint import prefetch

        return prefetch(
            self.batches,
            pool,
            tags=lambda batch: [self.part.tags[index] for index in batch.indices],
            num_labels=len(self.part.labels),
            pad_to=self._padding,
        )

    def epoch(self, supervised: Iterable[tuple[Any, Any]]) -> tuple[list[float], list[float]]:
        """Wall time of each step, and what of it was waiting for a batch, in milliseconds."""
        from jax_sprint.demo.batches import spec_augment

        times: list[float] = []
        waits: list[float] = []
        last = time.perf_counter()
        for batch, automata in timed(supervised, waits):
            masked = spec_augment(self._augmentation, batch.features, batch.lengths)
            self._state, loss, _ = self._step(
                self._state, masked, batch.lengths, automata, self._key
            )
            float(loss)
            now = time.perf_counter()
            times.append(1e3 * (now - last))
            last = now
        return times, waits


class Precomputed:
    """A route whose automata were fetched and packed before.

    Args:
        route: gives the loss, and the automata.
        batches: those that will come.
    """

    name = "precomputed"

    def __init__(self, route: Any, batches: list[Any]) -> None:
        self.loss = route.loss
        self._automata = [automata for _, automata in route.supervise(batches)]

    def supervise(self, batches: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        yield from zip(batches, self._automata, strict=True)


def measure_demo(training: Training, rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """Step times and waits [2, rounds, steps] in ms of the demo's training, by epoch and lane."""
    from jax_sprint.demo.batches import batch_stream
    from jax_sprint.demo.routes import FsaRoute
    from jax_sprint.demo.training import Recipe, train

    recipe = Recipe(steps=_STEPS)
    stream = batch_stream(
        training.buckets,
        training.part.features,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        warm_up=round(recipe.warm_up * recipe.steps),
    )
    batches = list(itertools.islice(stream, recipe.steps))
    seen: set[int] = set()
    new = np.zeros(recipe.steps, bool)
    for step, batch in enumerate(batches):
        new[step] = not seen.issuperset(batch.indices.tolist())
        seen.update(batch.indices.tolist())
    results: dict[str, list[np.ndarray]] = {"precomputed": [], "prefetched": []}
    compiled = np.zeros(recipe.steps, bool)
    with training.open_pool() as known:
        precomputed = Precomputed(FsaRoute(known, training.part, training.buckets), batches)
    for number in range(rounds):
        with training.open_pool() as fresh:
            routes = {
                "precomputed": precomputed,
                "prefetched": FsaRoute(fresh, training.part, training.buckets),
            }
            names = list(results)
            for name in names if number % 2 else reversed(names):
                route = Timed(routes[name])
                done = train(
                    training.model, training.part, training.buckets, route, recipe, progress=False
                )
                results[name].append(np.array([done.milliseconds, route.waits]))
                compiled |= done.compiled
        print(
            f"demo, round {number + 1} of {rounds}: "
            + ", ".join(f"{name} {np.median(results[name][-1][0]):.1f}" for name in results)
            + " ms/step",
            flush=True,
        )
    return {
        epoch: {
            name: np.array(values)[:, :, steps].swapaxes(0, 1) for name, values in results.items()
        }
        for epoch, steps in (("first", new & ~compiled), ("later", ~new & ~compiled))
    }


def processor_seconds() -> np.ndarray:
    """Processor time of this process and of its children, [2]."""
    import psutil

    own = psutil.Process()
    children = 0.0
    for child in own.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            children += sum(child.cpu_times()[:2])
    return np.array([time.process_time(), children])


def measure(
    training: Training, rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, np.ndarray]]:
    """What an epoch costs, by lane.

    Returns:
        Step times and waits [2, rounds, steps] in ms; what Sprint was asked; processor time of the
        trainer and of the Sprints [rounds, 2] in ms per step.
    """
    work_done: dict[str, list[np.ndarray]] = {lane: [] for lane in LANES}
    times: dict[str, list[tuple[list[float], list[float]]]] = {lane: [] for lane in LANES}
    asked: dict[str, int] = {}
    for number in range(rounds):
        with training.open_pool() as fresh, training.open_pool() as known:
            for _ in training.prefetched(known):
                pass
            work = {
                "precomputed": (zip(training.batches, training.precomputed, strict=True), known),
                "first epoch": (training.prefetched(fresh), fresh),
                "later epoch": (training.prefetched(known), known),
            }
            turn = number % len(LANES)
            for lane in LANES[turn:] + LANES[:turn]:
                supervised, pool = work[lane]
                before = pool.stats()["requests"]
                spent = processor_seconds()
                times[lane].append(training.epoch(supervised))
                spent = processor_seconds() - spent
                work_done[lane].append(1e3 * spent / len(training.batches))
                asked[lane] = int(pool.stats()["requests"] - before)
        print(
            f"round {number + 1} of {rounds}: "
            + ", ".join(f"{lane} {np.mean(times[lane][-1][0]):.1f}" for lane in LANES)
            + " ms/step",
            flush=True,
        )
    return (
        {lane: np.array(values).swapaxes(0, 1) for lane, values in times.items()},
        asked,
        {lane: np.array(values) for lane, values in work_done.items()},
    )


def _ratios(measured: np.ndarray, base: np.ndarray) -> str:
    (values, waits), base = measured, base[0]
    by_median = np.median(np.median(values, axis=1) / np.median(base, axis=1))
    by_mean = np.median(values.mean(axis=1) / base.mean(axis=1))
    mean = np.median(values.mean(axis=1))
    return (
        f"{np.median(values):.2f} | {mean:.2f} | {by_median:.3f} | {by_mean:.3f} | "
        f"{np.median(waits.mean(axis=1)):.2f}"
    )


def report(
    out: Path,
    training: Training,
    demo: dict[str, dict[str, np.ndarray]],
    times: dict[str, np.ndarray],
    asked: dict[str, int],
    spent: dict[str, np.ndarray],
    load: float,
) -> str:
    import jax
    import jaxlib

    lines = [
        "# Automata prefetched in the demo's training",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} x {platform.processor() or platform.machine()}"
        f", load {load:.1f} before and {os.getloadavg()[0]:.1f} after, "
        f"Python {platform.python_version()}, jax {jax.__version__}, jaxlib {jaxlib.__version__}, "
        f"numpy {np.__version__}.",
        "",
        f"{training.description}; steps of 32 segments in {training.shapes} shapes, 2 Sprints. "
        "Times of a step in ms, from the end of the one before, and what of it was waiting for the "
        "batch; ratios to precomputed automata are medians over the rounds.",
        "",
        "## The demo's training",
        "",
        f"{_STEPS} steps in each of {demo['first']['precomputed'].shape[1]} rounds; steps that "
        "compile left out.",
        "",
        "| steps | automata | number | median | mean | median ratio | mean ratio | waited, mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for epoch, lanes in demo.items():
        for name, values in lanes.items():
            lines.append(
                f"| {epoch} epoch | {name} | {values.shape[2]} | "
                f"{_ratios(values, lanes['precomputed'])} |"
            )
    _, rounds, steps = times["precomputed"].shape
    lines += [
        "",
        "## Every core busy",
        "",
        f"Epochs of {steps} steps without compilation, {rounds} rounds.",
        "",
        "| automata | median | mean | median ratio | mean ratio | waited, mean | "
        "requests to Sprint per epoch | processor time per step: trainer | Sprints |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for lane in LANES:
        ratios = _ratios(times[lane], times["precomputed"])
        own, sprints = np.median(spent[lane], axis=0)
        lines.append(f"| {lane} | {ratios} | {asked[lane]} | {own:.1f} | {sprints:.1f} |")
    text = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "prefetch.md").write_text(text)
    draw(out / "prefetch.png", times)
    return text


def draw(path: Path, times: dict[str, np.ndarray]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for lane, colour in zip(LANES, ("0.4", "C1", "C0"), strict=True):
        elapsed = np.median(np.cumsum(times[lane][0], axis=1), axis=0) / 1e3
        axes.plot(np.arange(1, len(elapsed) + 1), elapsed, color=colour, label=lane)
    axes.set_xlabel("steps of the epoch")
    axes.set_ylabel("seconds (median over the rounds)")
    axes.set_ylim(bottom=0)
    axes.set_title(f"Prefetched automata, every core busy, {datetime.date.today()}")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="recordings; default: synthetic speech")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--demo-rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        training = Training(options.data, Path(folder))
        demo = measure_demo(training, options.demo_rounds)
        times, asked, spent = measure(training, options.rounds)
    print(report(options.out, training, demo, times, asked, spent, load))


if __name__ == "__main__":
    main()
