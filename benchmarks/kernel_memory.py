"""Measures memory beyond inputs and the returned gradient, each case in a process of its own.

    python benchmarks/kernel_memory.py WORK [NAME=VALUE ...]

prints one JSON object; the names and values are further arguments of `full_sum_loss`.  Two figures:
XLA's size of the temporary buffers, and by how much the resident set's high-water mark grew during
the first run, less what is returned.
"""

from __future__ import annotations

import ast
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kernel_workloads
import numpy as np

__all__ = ["measure"]


def measure(name: str, **options: Any) -> dict:
    """The figures for a workload, in bytes; `full_sum_loss` gets `options`.

    Raises:
        RuntimeError: the process failed; the text is its message.
    """
    more = [f"{key}={value!r}" for key, value in options.items()]
    result = subprocess.run(
        [sys.executable, __file__, name, *more], capture_output=True, text=True, timeout=900
    )
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1])
    return json.loads(result.stdout.splitlines()[-1])


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import jax
    from kernel_contenders import automata_of, full_sum_step

    name, *more = sys.argv[1:]
    options = {key: ast.literal_eval(value) for key, value in (m.split("=", 1) for m in more)}
    work = kernel_workloads.WORKLOADS[name]()

    def step(logits: Any, lengths: Any, automata: Any) -> Any:
        return full_sum_step(logits, lengths, automata, **options)

    arguments = (work.logits, work.lengths, automata_of(work))
    run = jax.jit(step).lower(*arguments).compile()
    arguments = jax.block_until_ready(jax.device_put(arguments))
    # Threads, code and allocator are there before the measurement starts.
    warm = jax.jit(lambda x: (jax.nn.log_softmax(x) @ x).sum()).lower(np.ones((64, 64), np.float32))
    jax.block_until_ready(warm.compile()(np.ones((64, 64), np.float32)))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    result = jax.block_until_ready(run(*arguments))
    grown = _status("VmHWM") - before
    returned = sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(result))
    analysis = run.memory_analysis()
    frames = work.logits.shape[0]
    figures = {
        "work": name,
        "options": options,
        "temp": analysis.temp_size_in_bytes if analysis else None,
        "measured": grown - returned,
        "log_posteriors": work.logits.nbytes,
        "frames_states": 4 * frames * work.states(),
        "frames_arcs": 4 * frames * work.arcs(),
        "frames": frames,
        "states": work.states(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    _main()
