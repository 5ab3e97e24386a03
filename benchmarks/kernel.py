"""Measures the kernels: loss and gradient with respect to logits, beside peers, in paired runs.

    python benchmarks/kernel.py [--only ctc,hmm] [--parts times,memory,scaling] [--rounds 21]
        [--torch-python PATH] [--k2-python PATH] [--returnn-path FOLDER] [--out DIR]

Needs `jax-sprint[test]` (optax, matplotlib).  Every round runs each contender once, in turn, and
every other round in the opposite order; ratios are of medians.  The peers are optional, each in the
interpreter named: PyTorch, k2 (1.23.2 with torch 1.12.1, Python 3.9), and RETURNN's source with a
C++ compiler.  The table says which were absent.

Writes `<date>-kernel-<platform>.md` with pictures, and the figures in a `.json` file; `--resume`
takes up such a file and measures only what is named.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kernel_memory
import kernel_report
import kernel_scaling
import kernel_workloads
from kernel_contenders import Contender, contenders, packing
from kernel_peers import PeerFailed

_SHORT, _IN_A_ROW = 100.0, 5  # milliseconds; calls in a turn
_PAUSE = 0.02  # seconds: other runtimes' threads spin for a while after their work


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join(kernel_workloads.WORKLOADS)
    parser.add_argument("--only", default=names, help="workloads (default: %(default)s)")
    parser.add_argument("--parts", default="times,memory,scaling", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=21, help="(default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="who has used this much on a workload takes no further turn (default: %(default)s)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=300.0,
        help="seconds for one answer of a peer, its start included (default: %(default)s)",
    )
    parser.add_argument("--torch-python", help="interpreter that has PyTorch")
    parser.add_argument("--k2-python", help="interpreter that has k2")
    parser.add_argument("--returnn-path", type=Path, help="folder that holds the package returnn")
    parser.add_argument("--returnn-python", default=sys.executable, help="(default: this one)")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parser.add_argument(
        "--peer-memory",
        type=float,
        default=round(0.7 * memory, 1),
        help="gibibytes of address space of a peer (default: %(default)s, 70 %% of the memory)",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--resume", type=Path, help="figures of an earlier run to add to")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]
    options.parts = [name for name in options.parts.split(",") if name]
    unknown = set(options.only) - set(kernel_workloads.WORKLOADS)
    unknown |= set(options.parts) - {"times", "memory", "scaling"}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; workloads are {names}")
    return options


def take_turns(
    found: dict[str, Contender], absent: dict[str, str], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds of each; who fails moves to `absent`.

    A turn of a short one is several calls in a row, as in a training, and counts by their median.
    """
    times: dict[str, list[float]] = {label: [] for label in found}
    for turn in range(rounds):
        for label in list(found)[:: -1 if turn % 2 else 1]:
            if sum(times[label]) > 1e3 * seconds:
                continue
            time.sleep(_PAUSE)
            try:
                calls = [found[label].call()]
                if calls[0] < _SHORT:
                    calls += [found[label].call() for _ in range(_IN_A_ROW - 1)]
                times[label].append(round(statistics.median(calls), 4))
            except PeerFailed as error:
                absent[label] = str(error)
                found.pop(label).close()
                del times[label]
    return times


def measure_times(name: str, options: argparse.Namespace, versions: dict[str, str]) -> dict:
    work = kernel_workloads.WORKLOADS[name]()
    packs = packing(work, min(options.rounds, 15))
    found, absent = contenders(name, work, options, versions)
    try:
        times = take_turns(found, absent, options.rounds, options.seconds)
    finally:
        for contender in found.values():
            contender.close()
    entries = {
        label: {
            "ms": times[label],
            "loss": contender.loss,
            "gradient": contender.gradient,
            "compile_s": contender.compile_s,
            "temp_bytes": contender.temp_bytes,
        }
        for label, contender in found.items()
    }
    return {"contenders": entries, "absent": absent, "pack_ms": packs}


def measure_memory(only: list[str]) -> list[dict]:
    cases: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in only]
    cases += [(name, {"from_logits": False}) for name in only]
    cases += [(name, {"checkpoint": True}) for name in only if name == "denominator"]
    cases += [(name, {"checkpoint": False}) for name in only if name.startswith("long")]
    rows = []
    for name, more in cases:
        try:
            row = kernel_memory.measure(name, **more)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"memory {name:16} {error}", flush=True)
            continue
        rows.append(row)
        print(f"memory {name:16} {row['measured'] / 1e6:9.1f} MB", flush=True)
    return rows


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def main() -> None:
    options = arguments()
    import jax
    import jaxlib
    import optax

    figures: dict[str, Any] = {"times": {}, "memory": [], "scaling": {}}
    if options.resume:
        figures |= json.loads(options.resume.read_text())
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "optax": optax.__version__}
    load = os.getloadavg()[0]
    jax.jit(lambda x: x + 1)(0.0)  # the compiler's own start does not count as a shape's
    options.out.mkdir(parents=True, exist_ok=True)
    figures |= {
        "date": str(datetime.date.today()),
        "platform": jax.default_backend(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "command": _command(options),
        "versions": figures.get("versions", {}) | versions,
    }
    path = options.out / f"{figures['date']}-kernel-{figures['platform']}.json"

    def keep() -> None:
        figures["load"] = [load, os.getloadavg()[0]]
        path.write_text(json.dumps(figures) + "\n")

    if "times" in options.parts:
        for name in options.only:
            figures["times"][name] = measure_times(name, options, figures["versions"])
            for label, entry in figures["times"][name]["contenders"].items():
                middle = sorted(entry["ms"])[len(entry["ms"]) // 2]
                print(f"{name:16} {label:14} {middle:10.2f} ms", flush=True)
            for label, why in figures["times"][name]["absent"].items():
                print(f"{name:16} {label:14} {why}", flush=True)
            keep()
            gc.collect()
            jax.clear_caches()
    if "memory" in options.parts:
        others = [row for row in figures["memory"] if row["work"] not in options.only]
        figures["memory"] = others + measure_memory(options.only)
        keep()
    if "scaling" in options.parts:
        scaling: dict[str, list] = {}
        for name, size, times in kernel_scaling.measure(options.rounds):
            scaling.setdefault(name, []).append((size, times))
            print(f"{name:24} {size:6} {sorted(times)[len(times) // 2]:9.2f} ms", flush=True)
        figures["scaling"] = scaling
    keep()
    kernel_report.write(figures, options.out)


def _command(options: argparse.Namespace) -> str:
    """The command without what belongs to this machine."""
    words = ["python", "benchmarks/kernel.py"]
    given = sys.argv[1:]
    hidden = ("--torch-python", "--k2-python", "--returnn-path", "--returnn-python", "--resume")
    hidden += ("--out",)
    for i, word in enumerate(given):
        if word.startswith(hidden):
            words += [] if word.startswith(("--out", "--resume")) else [word.split("=")[0], "..."]
        elif i == 0 or given[i - 1] not in hidden:
            words.append(word)
    return shlex.join(words).replace("'...'", "...")


if __name__ == "__main__":
    main()
