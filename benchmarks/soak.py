"""Asks a pool for 100,000 losses and automata while its children are killed at random.

    python benchmarks/soak.py [--requests 100000] [--every 200] [--instances 4] [--out DIR]

About every 200th request some child gets SIGKILL, SIGSEGV or SIGTERM, at any moment: while it
starts, computes, answers or has nothing to do.  Every answer is compared with what it must be, none
may be missing, and file descriptors, threads, children and resident memory must stay flat.  The
child is the one of the tests, whose answers depend on the segment's name and on every posterior;
one batch in ten is of automata.  Exits 1 if anything is not as it should be; writes soak.md
and soak.png.  psutil is needed, and matplotlib for the picture.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import os
import platform
import queue
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "bridge"))

import fake_sprint  # noqa: E402

from jax_sprint.bridge import SprintInstancePool, SprintOptions  # noqa: E402
from jax_sprint.bridge.options import default_control_module  # noqa: E402

CHILD = ROOT / "tests" / "bridge" / "second_sprint.py"
STEPS, BATCH, LABELS = 60, 16, 40


@dataclasses.dataclass
class Sample:
    """What this process holds after some number of requests, with all children running."""

    requests: int
    seconds: float
    kills: int
    fds: int
    threads: int
    children: int
    rss: float


class Assassin(threading.Thread):
    """Kills a child when told to, a little later."""

    def __init__(self, seed: int) -> None:
        super().__init__(name="assassin", daemon=True)
        self._orders: queue.Queue[float | None] = queue.Queue()
        self._random = random.Random(seed)
        self.kills = 0

    def order(self, delay: float | None) -> None:
        """Kills one child after so many seconds; None sends the thread home."""
        self._orders.put(delay)

    def wait(self) -> None:
        """Returns when all orders are carried out."""
        self._orders.join()

    def run(self) -> None:
        while (delay := self._orders.get()) is not None:
            time.sleep(delay)
            with contextlib.suppress(psutil.Error):
                self._kill_one()
            self._orders.task_done()

    def _kill_one(self) -> None:
        # Of a zombie there is no command line any more.
        victims = [child for child in psutil.Process().children() if str(CHILD) in _command(child)]
        if victims:
            kind = self._random.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM))
            self._random.choice(victims).send_signal(kind)
            self.kills += 1


def soak(
    requests: int, every: int, instances: int, seed: int = 0, samples: int = 100
) -> tuple[list[Sample], dict[str, float], list[str]]:
    """Runs it.

    Args:
        requests: how many, at least.
        every: one child is killed per so many requests, on average.
        instances: children of the pool.
        seed: of everything random but the moments.
        samples: how many to take.

    Returns:
        The samples, the pool's statistics, and what was not as it should be.
    """
    options = SprintOptions(
        exec_path=[sys.executable, str(CHILD), default_control_module()[0]],
        num_instances=instances,
        max_retries=20,
        start_timeout=60.0,
        request_timeout=60.0,
        automata_cache_bytes=0,
    )
    rng = np.random.default_rng(seed)
    problems: list[str] = []
    me = psutil.Process()
    before = _held(me)
    taken: list[Sample] = []
    begin = time.monotonic()
    assassin = Assassin(seed)
    assassin.start()
    done = 0
    with SprintInstancePool(options) as pool:

        def sample() -> None:
            # While it looks for its victim it has files open.
            assassin.wait()
            pool.start()
            held = _held(me)
            rss = me.memory_info().rss / 2**20
            taken.append(Sample(done, time.monotonic() - begin, assassin.kills, *held, rss))

        sample()
        duration = 0.01
        while done < requests:
            if rng.random() < BATCH / every:
                assassin.order(rng.uniform(0, 2 * duration))
            started = time.monotonic()
            problems += _one_batch(pool, rng, done)
            # The usual time of a batch, so that the blow falls within one.
            duration += 0.05 * (min(time.monotonic() - started, 0.1) - duration)
            done += BATCH
            if done * samples // requests >= len(taken):
                sample()
        stats = pool.stats()
    assassin.order(None)
    assassin.join()
    after = _held(me)
    patience = time.monotonic() + 5.0
    while any(b > a for a, b in zip(before, after, strict=True)) and time.monotonic() < patience:
        # The system takes a moment to tell of the end of a thread or a process.
        gc.collect()
        time.sleep(0.05)
        after = _held(me)
    if stats["requests"] != done or stats["failures"]:
        problems.append(f"of {done} requests {stats['requests']:.0f} were answered")
    if any(b > a for a, b in zip(before, after, strict=True)):
        problems.append(f"left behind: (fds, threads, children) were {before}, are {after}")
    problems += _drift(taken)
    return taken, stats, problems


def _one_batch(pool: SprintInstancePool, rng: np.random.Generator, first: int) -> list[str]:
    """Asks for a batch of losses, or of automata, and compares."""
    names = [f"corpus/r{rng.integers(1 << 30)}/{first + b}" for b in range(BATCH)]
    if rng.random() < 0.1:
        edges, weights, _ = pool.get_automata_for_batch(names)
        want = [fake_sprint.expected_automaton(name) for name in names]
        right = np.array_equal(weights, np.concatenate([w[3] for w in want])) and np.array_equal(
            edges[2], np.concatenate([w[2].reshape(3, -1)[2] for w in want])
        )
        return [] if right else [f"wrong automata, requests {first} to {first + BATCH}"]
    lengths = rng.integers(1, STEPS + 1, BATCH)
    posteriors = rng.normal(size=(STEPS, BATCH, LABELS)).astype(np.float32)
    loss, error_signal = pool.get_batch_loss_and_error_signal(posteriors, lengths, names)
    wrong = []
    for b, (name, length) in enumerate(zip(names, lengths, strict=True)):
        want_loss, want_error = fake_sprint.expected(name, posteriors[:length, b])
        if loss[b] != want_loss or not np.array_equal(error_signal[:length, b], want_error):
            wrong.append(f"wrong answer to request {first + b}, {name!r}")
    return wrong


def _drift(taken: list[Sample]) -> list[str]:
    """What grew.  The first quarter is for warming up: caches, pools of memory."""
    settled = taken[len(taken) // 4 :]
    problems = []
    for name in ("fds", "threads", "children"):
        values = [getattr(sample, name) for sample in settled]
        # A child that was killed and not yet missed leaves one of each less, never more.
        if max(values) > getattr(taken[0], name):
            problems.append(f"{name} grew from {getattr(taken[0], name)} to {max(values)}")
    quarter = max(1, len(settled) // 3)
    early = float(np.median([sample.rss for sample in settled[:quarter]]))
    late = float(np.median([sample.rss for sample in settled[-quarter:]]))
    if late > 1.05 * early + 2.0:
        problems.append(f"resident memory grew from {early:.1f} to {late:.1f} MiB")
    return problems


def _held(process: psutil.Process) -> tuple[int, int, int]:
    return process.num_fds(), threading.active_count(), len(process.children(recursive=True))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# ------------------------------------------------------------------------------------- the report


def report(taken: list[Sample], stats: dict[str, float], problems: list[str], title: str) -> str:
    """The table, in Markdown."""
    lines = [f"# The bridge under fire: {title}", ""]
    lines.append(
        f"{datetime.date.today()}, {os.cpu_count()} x {platform.machine()}, Python "
        f"{platform.python_version()}, numpy {np.__version__}; {stats['requests']:.0f} requests "
        f"answered in {taken[-1].seconds:.0f} s, {taken[-1].kills} children killed, "
        f"{stats['retries']:.0f} requests asked again, {stats['restarts']:.0f} restarts, "
        f"{stats['failures']:.0f} failures; every answer compared.  Where descriptors and threads "
        "dip, a child had been killed a moment ago and was not missed yet."
    )
    lines += ["", "| requests | seconds | killed | fds | threads | children | RSS MiB |"]
    lines.append("|---|---|---|---|---|---|---|")
    step = max(1, (len(taken) - 1) // 10)
    for sample in [*taken[:-1:step], taken[-1]]:
        lines.append(
            f"| {sample.requests} | {sample.seconds:.1f} | {sample.kills} | {sample.fds} | "
            f"{sample.threads} | {sample.children} | {sample.rss:.1f} |"
        )
    lines += ["", "Nothing grew, nothing was lost." if not problems else "**Not as it should be:**"]
    lines += [f"- {problem}" for problem in problems]
    return "\n".join(lines) + "\n"


def picture(taken: list[Sample], path: Path) -> None:
    """Resident memory, descriptors, threads, children and kills over the requests."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x = [sample.requests for sample in taken]
    figure, axes = plt.subplots(3, 1, figsize=(8, 7), sharex=True, constrained_layout=True)
    axes[0].plot(x, [sample.rss for sample in taken])
    axes[0].set_ylabel("resident memory, MiB")
    axes[0].set_ylim(0, 1.25 * max(sample.rss for sample in taken))
    for name, label in (("fds", "file descriptors"), ("threads",) * 2, ("children",) * 2):
        axes[1].step(x, [getattr(sample, name) for sample in taken], where="post", label=label)
    axes[1].set_ylim(0, 1.25 * max(sample.fds for sample in taken))
    axes[1].legend(loc="upper right", ncols=3)
    axes[2].plot(x, [sample.kills for sample in taken])
    axes[2].set_ylabel("children killed")
    axes[2].set_xlabel("requests")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=200, help="requests per killed child")
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    given = parser.parse_args()
    taken, stats, problems = soak(given.requests, given.every, given.instances, given.seed)
    title = f"{given.requests} requests, {given.instances} children"
    text = report(taken, stats, problems, title)
    given.out.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.date.today()}-soak"
    picture(taken, given.out / f"{stem}.png")
    (given.out / f"{stem}.md").write_text(f"{text}\n![over time]({stem}.png)\n")
    print(text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
