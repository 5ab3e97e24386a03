"""Counts the kernels that a GPU would have to launch, on a machine without one.

    python benchmarks/launches.py --out benchmarks/results

XLA compiles for a GPU that is only described to it.  What comes out says nothing of time, but much
of what time goes to: a step of a recursion is small, so its loop costs what its launches cost, some
microseconds each, and a branch or a loop of unknown length makes the host wait for the device.

Needs jax's CUDA packages (`pip install "jax[cuda12]" optax`), no GPU and no driver.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import kernel_workloads
import numpy as np

__all__ = ["Launches", "launches"]

# What XLA wants to know of an NVIDIA H100 (SXM), from its data sheet and CUDA's table of
# compute capability 9.0.
_H100 = {
    "gpu_device_info": {
        "cuda_compute_capability": {"major": 9},
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_block_optin": 227 << 10,
        "shared_memory_per_core": 228 << 10,
        "registers_per_block_limit": 1 << 16,
        "registers_per_core_limit": 1 << 16,
        "core_count": 132,
        "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": 3_352_000_000_000,
        "device_memory_size": 80 << 30,
        "l2_cache_size": 50 << 20,
        "clock_rate_ghz": 1.98,
    },
    "platform_name": '"CUDA"',
    "dnn_version_info": {"major": 9, "minor": 7},
    "runtime_version": {"major": 12, "minor": 8},
    "device_description_str": '"NVIDIA H100 80GB HBM3"',
}


def _text(fields: dict) -> str:
    """As protocol buffers' text format."""
    lines = []
    for name, value in fields.items():
        lines.append(
            f"{name} {{ {_text(value)} }}" if isinstance(value, dict) else f"{name}: {value}"
        )
    return " ".join(lines)


class Launches(NamedTuple):
    """Of one run of a program."""

    kernels: int
    in_loops: int  # how many of these are in loops
    waits: int  # how often the host waits for a branch
    unknown: int  # loops whose length it waits for; their kernels count once

    def __add__(self, other: Any) -> Launches:
        return Launches(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, rounds: int) -> Launches:
        return Launches(
            self.kernels * rounds, self.kernels * rounds, self.waits * rounds, self.unknown
        )


_NOTHING = Launches(0, 0, 0, 0)
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast"}
_FREE |= {"fusion-done", "copy-done", "async-done", "after-all", "opt-barrier"}
_LINE = re.compile(r"(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(")


def launches(program: str) -> Launches:
    """What the text of an optimized HLO module launches."""
    computations: dict[str, list[str]] = {}
    entry, current = "", []
    for line in program.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            current = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif line.startswith("  "):
            current.append(line.strip())

    def of(name: str) -> Launches:
        total = _NOTHING
        for line in computations[name]:
            found = _LINE.match(line)
            if found is None or found[1] in _FREE:
                continue
            if found[1] == "while":
                body = of(re.search(r"body=%?([\w.\-]+)", line)[1])
                known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                total += body.times(int(known[1]) if known else 1)
                total += Launches(0, 0, 0, int(known is None))
            elif found[1] == "conditional":
                branches = re.search(r"branch_computations=\{(.*?)\}", line)
                names = re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
                names += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
                total += max(map(of, names)) + Launches(0, 0, 1, 0)
            elif found[1] in ("call", "async-start"):
                total += of(re.search(r"(?:to_apply|calls)=%?([\w.\-]+)", line)[1])
            else:
                total += Launches(1, 0, 0, 0)
        return total

    return of(entry)


def _device() -> Any:
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=_text(_H100)
    )
    return topology.devices[0]


def _programs() -> dict[str, tuple[Callable, Callable[[], tuple]]]:
    """What is compiled, and of what arguments."""
    import jax
    import jax.numpy as jnp
    import optax
    from kernel_contenders import automata_of

    from jax_sprint import ctc_loss, full_sum_loss, viterbi

    def of(name: str) -> Callable[[], tuple]:
        def arguments() -> tuple:
            work = kernel_workloads.WORKLOADS[name]()
            return work.logits, work.lengths, automata_of(work)

        return arguments

    def ctc() -> tuple:
        work = kernel_workloads.ctc()
        logits = np.swapaxes(work.logits, 0, 1)
        padding = np.arange(logits.shape[1]) >= work.lengths[:, None]
        return logits, padding.astype(np.float32), work.labels

    def by_labels(loss: Callable) -> Callable:
        def total(logits: Any, padding: Any, labels: Any) -> Any:
            return loss(logits, padding, labels, jnp.zeros(labels.shape)).sum()

        return jax.value_and_grad(total)

    def gradient(**options: Any) -> Callable:
        def total(logits: Any, lengths: Any, automata: Any) -> Any:
            return full_sum_loss(logits, lengths, automata, from_logits=True, **options).sum()

        return jax.value_and_grad(total)

    def alone(logits: Any, lengths: Any, automata: Any) -> Any:
        return full_sum_loss(logits, lengths, automata, from_logits=True)

    found = {
        "ctc: optax.ctc_loss": (by_labels(optax.ctc_loss), ctc),
        "ctc: ctc_loss": (by_labels(ctc_loss), ctc),
    }
    for name in ("hmm", "ragged", "variants", "long3000", "denominator"):
        found[f"{name}: full_sum_loss"] = gradient(), of(name)
    found["long3000: full_sum_loss, checkpoint"] = gradient(checkpoint=True), of("long3000")
    for name in ("hmm", "denominator"):
        found[f"{name}: full_sum_loss, no gradient"] = alone, of(name)
        found[f"{name}: viterbi"] = viterbi, of(name)
    return found


def _rows(only: str) -> list[str]:
    import jax
    from jax.sharding import SingleDeviceSharding

    there = SingleDeviceSharding(_device())

    def described(array: Any) -> Any:
        array = np.asarray(array)
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct(array.shape, dtype, sharding=there)

    rows = []
    for name, (function, make) in _programs().items():
        if not re.search(only, name):
            continue
        arguments = make()
        frames = arguments[0].shape[1 if name.startswith("ctc:") else 0]
        begin = time.perf_counter()
        compiled = jax.jit(function).lower(*jax.tree.map(described, arguments)).compile()
        seconds = time.perf_counter() - begin
        count = launches(compiled.as_text())
        temporary = compiled.memory_analysis().temp_size_in_bytes / 1e6
        waits = str(count.waits) + (f", and {count.unknown} loops" if count.unknown else "")
        rows.append(
            f"| {name} | {frames} | {count.kernels} | {count.in_loops / frames:.1f} | {waits} "
            f"| {temporary:.0f} | {seconds:.1f} |"
        )
        print(rows[-1], flush=True)
    return rows


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="a regular expression for the programs")
    parser.add_argument("--out", type=Path, help="folder for the table")
    options = parser.parse_args()
    # There is no driver to check the packages against.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu,cuda"
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import jax

    from jax_sprint.kernels import _platform

    # The platform of this process is a CPU: programs for another one are asked for here.
    _platform.launches = lambda: True
    rows = _rows(options.only)
    if options.out is None:
        return
    today = datetime.date.today().isoformat()
    table = f"""# Kernel launches on an H100, from its compiler

{today}, jax {jax.__version__}, on a machine without a GPU. `python benchmarks/launches.py`

Compiled, not run: no time was measured. Launches of one run, and how many of them in loops over \
the frames, per frame; *waits*: how often the host waits for the device to know a branch to take, \
or the length of a loop; XLA's figure for temporary memory; seconds to trace and compile here.

| program | frames | launches | per frame | waits | temporary MB | compile s |
|---|---|---|---|---|---|---|
"""
    path = options.out / f"{today}-launches-h100.md"
    path.write_text(table + "\n".join(rows) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    _main()
