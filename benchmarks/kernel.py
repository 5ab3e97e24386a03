"""Measures the kernels: loss and gradient with respect to logits, beside peers, in paired runs.

    python benchmarks/kernel.py [--only ctc,hmm] [--rounds 21] [--torch-python PATH] [--out DIR]

Each round runs every contender once, in turn; the table holds medians and the ratios of medians.
optax is needed; PyTorch is run by another interpreter if one is named.  The floor is log_softmax
and exp over the same array.  Writes kernel.md and kernel.png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernel_workloads
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TORCH = """
import json, sys, time
import numpy as np, torch
torch.set_num_threads(2)
data = np.load(sys.argv[1])
logits = torch.tensor(data["logits"], requires_grad=True)
labels, lengths = torch.tensor(data["labels"]), torch.tensor(data["lengths"])
sizes = torch.full((labels.shape[0],), labels.shape[1])
def once():
    logits.grad = None
    start = time.perf_counter()
    loss = torch.nn.functional.ctc_loss(logits.log_softmax(2), labels, lengths, sizes,
                                        reduction="sum")
    loss.backward()
    return 1e3 * (time.perf_counter() - start), float(loss.detach())
once()
print(json.dumps({"version": torch.__version__}), flush=True)
for line in sys.stdin:
    print(json.dumps(once()), flush=True)
"""


class Torch:
    """PyTorch's CTC in an interpreter of its own, one call per line."""

    def __init__(self, python: str, work: kernel_workloads.Workload) -> None:
        self._file = tempfile.NamedTemporaryFile(suffix=".npz")  # noqa: SIM115
        np.savez(self._file, logits=work.logits, labels=work.labels, lengths=work.lengths)
        self._file.flush()
        self._child = subprocess.Popen(
            [python, "-c", TORCH, self._file.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = json.loads(self._child.stdout.readline())["version"]

    def __call__(self) -> tuple[float, float]:
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        milliseconds, loss = json.loads(self._child.stdout.readline())
        return milliseconds, loss

    def close(self) -> None:
        self._child.stdin.close()
        self._child.wait(timeout=30)
        self._file.close()


def compiled(
    function: Callable, *arguments: Any
) -> tuple[Callable[[], tuple[float, float]], float]:
    """A contender that returns (milliseconds, sum of losses), and its compile time in seconds."""
    import jax

    start = time.perf_counter()
    run = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    arguments = jax.block_until_ready(jax.device_put(arguments))

    def once() -> tuple[float, float]:
        begin = time.perf_counter()
        value, _ = jax.block_until_ready(run(*arguments))
        return 1e3 * (time.perf_counter() - begin), float(np.sum(value))

    once()
    return once, seconds


def contenders(name: str, torch_python: str | None) -> tuple[dict[str, Callable], dict[str, float]]:
    import jax
    import jax.numpy as jnp
    import optax

    from jax_sprint import Automata, ctc_loss, full_sum_loss

    make = {
        "ctc": kernel_workloads.ctc,
        "hmm": kernel_workloads.hmm,
        "peaked": lambda: kernel_workloads.hmm(scale=20.0),
        "long3000": lambda: kernel_workloads.long(3000, 4),
        "long20000": lambda: kernel_workloads.long(20000, 1),
        "ragged": kernel_workloads.ragged,
    }
    work = make[name]()
    begin = time.perf_counter()
    automata = Automata.from_edges(*work[2:5], num_labels=work.logits.shape[2])
    runs: dict[str, Callable] = {}
    extra = {"pack ms": 1e3 * (time.perf_counter() - begin)}

    def ours(logits: Any, automata: Any) -> Any:
        def total(logits: Any) -> Any:
            log_posteriors = jax.nn.log_softmax(logits)
            return full_sum_loss(log_posteriors, work.lengths, automata).sum()

        return jax.value_and_grad(total)(logits)

    def floor(logits: Any) -> Any:
        log_posteriors = jax.nn.log_softmax(logits)
        return log_posteriors[0, 0, 0], (log_posteriors, jnp.exp(log_posteriors))

    runs["full_sum_loss"], extra["compile s"] = compiled(ours, work.logits, automata)
    runs["floor"], _ = compiled(floor, work.logits)
    if work.labels is not None:
        frames = np.arange(work.logits.shape[0])
        rest = (
            (frames >= work.lengths[:, None]).astype(np.float32),
            work.labels,
            np.zeros(work.labels.shape, np.float32),
        )
        major = np.ascontiguousarray(np.swapaxes(work.logits, 0, 1))
        for label, function in (("ctc_loss", ctc_loss), ("optax", optax.ctc_loss)):
            runs[label], _ = compiled(
                lambda x, function=function: jax.value_and_grad(lambda x: function(x, *rest).sum())(
                    x
                ),
                major,
            )
        if torch_python:
            runs["torch"] = Torch(torch_python, work)
    return runs, extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="ctc,hmm,peaked,ragged,long3000,long20000")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--torch-python", help="interpreter that has PyTorch")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args()
    import jax
    import jaxlib
    import optax

    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "optax": optax.__version__}
    rows = []
    for name in options.only.split(","):
        runs, extra = contenders(name, options.torch_python)
        times: dict[str, list[float]] = {label: [] for label in runs}
        losses = {}
        for _ in range(options.rounds):
            for label, run in runs.items():
                milliseconds, losses[label] = run()
                times[label].append(milliseconds)
        for run in runs.values():
            if isinstance(run, Torch):
                versions["torch"] = run.version
                run.close()
        ours = float(np.median(times["full_sum_loss"]))
        for label, values in times.items():
            median = float(np.median(values))
            rows.append((name, label, median, min(values), median / ours, extra, losses[label]))
            print(f"{name:10} {label:14} {median:9.2f} ms  min {min(values):9.2f}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    report(options.out, rows, versions)


def report(out: Path, rows: list[tuple], versions: dict[str, str]) -> None:
    processor = platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    lines = [
        "# Kernels: loss and gradient with respect to logits",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} x {processor}, load {load:.1f} at the end, "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        "| work | what | median ms | min ms | of full_sum_loss | sum of losses | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label, median, least, ratio, extra, loss in rows:
        note = ", ".join(f"{k} {v:.2f}" for k, v in extra.items()) if "sum" in label else ""
        shown = "" if label == "floor" else f"{loss:.3f}"
        lines.append(
            f"| {name} | {label} | {median:.2f} | {least:.2f} | {ratio:.2f} | {shown} | {note} |"
        )
    (out / "kernel.md").write_text("\n".join(lines) + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(rows) + 1.2), layout="constrained")
    names = [f"{row[0]}: {row[1]}" for row in rows]
    colours = ["C0" if row[1] in ("full_sum_loss", "ctc_loss") else "0.6" for row in rows]
    axes.barh(names, [row[2] for row in rows], color=colours)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds (median), loss and gradient")
    axes.set_title(f"Kernels, {datetime.date.today()}")
    figure.savefig(out / "kernel.png", dpi=120)


if __name__ == "__main__":
    main()
