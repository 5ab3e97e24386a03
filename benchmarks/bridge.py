"""Measures the bridge with real child processes, beside plain copies and RETURNN's pool, in pairs.

    python benchmarks/bridge.py [--parts batches,queue,start,automata,memory] [--rounds 15]
        [--only 200x32x80,500x32x1000,500x16x9000] [--returnn-path FOLDER]
        [--returnn-python PATH] [--out DIR]

The children (`bridge_children.py`) do the least that a Sprint must do: they load the control
module, read the posteriors and return them as the error signal.  Each round runs every contender
once, in turn, every other round in the opposite order; ratios are medians of the ratios within a
round.  The floor is two plain copies of the batch between arrays that are in memory already.
A turn is one batch, or the mean of twenty in a row where a batch is smaller than 8 MiB.

RETURNN's pool is driven in an interpreter of its own, with numpy < 2.3, if `--returnn-path` names
the folder that holds the package returnn; the table says when it was absent.

Writes `<date>-bridge.md` with a picture, and the figures in a `.json` file.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bridge_report
import numpy as np
from bridge_ancestor import Ancestor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jax_sprint.bridge import SprintInstancePool, SprintOptions

CHILD = Path(__file__).with_name("bridge_children.py")
SHAPES = {
    "200x32x80": (200, 32, 80),
    "500x32x1000": (500, 32, 1000),
    "500x16x9000": (500, 16, 9000),
}
PARTS = ("batches", "queue", "start", "automata", "memory")


def options(*arguments: str, **attributes: Any) -> SprintOptions:
    return SprintOptions(
        exec_path=[sys.executable, str(CHILD)],
        config=list(arguments),
        automata_cache_bytes=0,
        **attributes,
    )


def take_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, round by round; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        names = list(runs) if number % 2 else list(runs)[::-1]
        for name in names:
            seconds = runs[name]()
            if number >= 0:
                times[name].append(seconds)
    return times


def timed(function: Callable[[], Any], repeats: int = 1) -> Callable[[], float]:
    """Seconds that it takes, the mean of some in a row; what it returns is dropped in between."""

    def run() -> float:
        seconds = 0.0
        for _ in range(repeats):
            start = time.perf_counter()
            result = function()
            seconds += time.perf_counter() - start
            del result
        return seconds / repeats

    return run


def batches(given: argparse.Namespace, name: str) -> dict[str, list[float]]:
    """Seconds per batch of one shape, by contender."""
    steps, count, labels = SHAPES[name]
    rng = np.random.default_rng(0)
    posteriors = rng.standard_normal((steps, count, labels), np.float32)
    repeats = 20 if posteriors.nbytes < 8 << 20 else 1
    lengths = np.full(count, steps, np.int32)
    tags = [f"corpus/recording-{b}/segment" for b in range(count)]
    there, back = np.zeros_like(posteriors), np.zeros_like(posteriors)

    def two_copies() -> None:
        np.copyto(there, posteriors)
        np.copyto(back, there)

    runs = {"two copies": timed(two_copies, repeats)}
    pools, ancestors = [], []
    try:
        for children in (1, 2):
            for label, attributes in (
                ("", {}),
                (", through the pipe", {"shared_memory": False}),
                (", version 1", {"protocol_version": 1}),
            ):
                pool = SprintInstancePool(options(num_instances=children, **attributes))
                pools.append(pool)
                pool.start(progress=False)
                loss, error_signal = pool.get_batch_loss_and_error_signal(posteriors, lengths, tags)
                assert (loss == 1.5).all()
                assert np.array_equal(error_signal, posteriors)
                del error_signal
                runs[f"{children} child{'ren' * (children > 1)}{label}"] = timed(
                    lambda pool=pool: pool.get_batch_loss_and_error_signal(
                        posteriors, lengths, tags
                    ),
                    repeats,
                )
            if given.returnn_path:
                ancestor = Ancestor(given, CHILD, posteriors, children, repeats)
                ancestors.append(ancestor)
                runs[f"{children} child{'ren' * (children > 1)}, RETURNN's pool"] = ancestor.run
        return take_turns(runs, given.rounds)
    finally:
        for pool in pools:
            pool.close()
        for ancestor in ancestors:
            ancestor.close()


def queue(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Wall time of children that take their time, against the best that any order could give."""
    lengths = np.linspace(20, 200, 32).round().astype(np.int32)
    np.random.default_rng(0).shuffle(lengths)
    posteriors = np.zeros((200, 32, 40), np.float32)
    tags = [f"corpus/recording-{b}/segment" for b in range(32)]
    # 20 ms for each segment; or 20 ms on average, in proportion to its length.
    paces = {"20 ms each": "--ms=20", "20 ms per 110 frames": f"--frame-ms={20 / lengths.mean()}"}
    rows = []
    for pace, argument in paces.items():
        for children in (1, 2, 8):
            each = np.full(32, 0.02) if "each" in pace else 0.02 * lengths / lengths.mean()
            ideal = max(each.sum() / children, each.max())
            with SprintInstancePool(options(argument, num_instances=children)) as pool:
                pool.start(progress=False)
                run = timed(lambda: pool.get_batch_loss_and_error_signal(posteriors, lengths, tags))
                times = take_turns({"batch": run}, min(given.rounds, 7))["batch"]
            rows.append({"pace": pace, "children": children, "ideal": ideal, "times": times})
    return rows


def start(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds until all children of a pool are ready."""
    rows = []
    for label, arguments in (
        ("Python and numpy only", ()),
        ("and 1 s of waiting", ("--start-ms=1000",)),
    ):

        def ready(count: int, arguments: tuple = arguments) -> float:
            with SprintInstancePool(options(*arguments, num_instances=count)) as pool:
                return timed(lambda: pool.start(progress=False))()

        runs = {str(count): lambda count=count: ready(count) for count in (1, 8)}
        rows.append({"start": label, **take_turns(runs, min(given.rounds, 5))})
    return rows


def automata(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds per segment for automata that Sprint has ready."""
    tags = [f"corpus/recording-{b}/segment" for b in range(32)]
    rows = []
    for children in (1, 2):
        for label, attributes in (("version 2", {}), ("version 1", {"protocol_version": 1})):
            with SprintInstancePool(options(num_instances=children, **attributes)) as pool:
                pool.start(progress=False)
                run = timed(lambda pool=pool: pool.get_automata_for_batch(tags))
                times = take_turns({"batch": run}, 4 * given.rounds)["batch"]
            rows.append({"protocol": label, "children": children, "times": [t / 32 for t in times]})
    return rows


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of this process, in bytes, while it asks again and again."""
    rng = np.random.default_rng(0)
    posteriors = rng.standard_normal((200, 32, 300), np.float32)
    tags = [f"corpus/recording-{b}/segment" for b in range(32)]
    page = resource.getpagesize()
    held = []
    rounds = 1000
    with SprintInstancePool(options(num_instances=2)) as pool:
        for number in range(rounds + 1):
            lengths = rng.integers(0, 201, 32)
            pool.get_batch_loss_and_error_signal(posteriors, lengths, tags)
            pool.get_automata_for_batch(tags[:2])
            if number % 100 == 0:
                gc.collect()
                held.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
        requests = pool.stats()["requests"]
    return {"requests": requests, "held": held}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="(default: %(default)s)")
    parser.add_argument("--only", default=",".join(SHAPES), help="shapes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--returnn-path", type=Path, help="folder that holds the package returnn")
    parser.add_argument("--returnn-python", default=sys.executable, help="(default: this one)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    given = parser.parse_args()
    parts, only = given.parts.split(","), given.only.split(",")
    if set(parts) - set(PARTS) or set(only) - set(SHAPES):
        parser.error(f"parts are {', '.join(PARTS)}; shapes are {', '.join(SHAPES)}")
    figures: dict[str, Any] = {
        "date": str(datetime.date.today()),
        "machine": f"{os.cpu_count()} x {bridge_report.processor()}, {platform.system()} "
        f"{platform.release()}",
        "versions": {"Python": platform.python_version(), "numpy": np.__version__},
        "returnn": Ancestor.versions(given) if given.returnn_path else None,
        "rounds": given.rounds,
        "load": [os.getloadavg()[0]],
    }
    if "batches" in parts:
        figures["batches"] = {}
        for name in only:
            figures["batches"][name] = batches(given, name)
            bridge_report.say(name, figures["batches"][name])
    for part in ("queue", "start", "automata", "memory"):
        if part in parts:
            figures[part] = globals()[part](given)
            print(part, "done", flush=True)
    # Our own children are part of it.
    figures["load"].append(os.getloadavg()[0])
    given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out / f"{figures['date']}-bridge"
    stem.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    bridge_report.write(stem, figures)


if __name__ == "__main__":
    main()
