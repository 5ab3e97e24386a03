"""How the cost grows with T, with B and with the arcs of a denominator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import kernel_workloads
import numpy as np
from kernel_contenders import automata_of, compiled, full_sum_step

__all__ = ["measure", "series"]


def series() -> dict[str, tuple[list[int], Callable[[int], kernel_workloads.Workload]]]:
    """By name: the sizes, and what makes the workload of a size."""
    return {
        "frames T": (
            [250, 500, 1000, 2000, 4000],
            lambda n: kernel_workloads.hmm(frames=n, batch=8, num_labels=512, full=True),
        ),
        "sequences B": (
            [4, 8, 16, 32, 64],
            lambda n: kernel_workloads.hmm(frames=400, batch=n, num_labels=512, full=True),
        ),
        "arcs of the denominator": (
            [5000, 10000, 20000, 30000, 40000, 50000],
            lambda n: kernel_workloads.denominator(
                states=n // 8, arcs=n, most=n // 80, batch=8, num_labels=1000
            ),
        ),
    }


def measure(rounds: int) -> Iterator[tuple[str, int, list[float]]]:
    """Series, size and milliseconds; the sizes of a series take turns."""
    for name, (sizes, make) in series().items():
        runs: dict[int, Any] = {}
        for size in sizes:
            work = make(size)
            runs[size] = compiled(full_sum_step, work.logits, work.lengths, automata_of(work))
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(rounds):
            for size, run in runs.items():
                times[size].append(run.call())
        for size in sizes:
            yield name, size, times[size]


def line(sizes: list[int], medians: list[float]) -> tuple[float, float, float]:
    """Milliseconds at 0, milliseconds per unit, and the largest deviation from the line.

    The line is fitted with relative errors; the deviation is relative to it.
    """
    x, y = np.array(sizes, float), np.array(medians)
    matrix = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    (offset, slope), *_ = np.linalg.lstsq(matrix, np.ones_like(y), rcond=None)
    fitted = offset + slope * x
    return float(offset), float(slope), float(np.max(np.abs(y - fitted) / fitted))
