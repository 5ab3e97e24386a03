"""Turns the figures of benchmarks/bridge.py into a table and a picture."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["processor", "say", "write"]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def ratio(times: list[float], other: list[float]) -> float:
    """The median of the ratios within the rounds."""
    return float(np.median(np.divide(times, other)))


def segments(shape: str) -> int:
    return int(shape.split("x")[1])


def say(shape: str, times: dict[str, list[float]]) -> None:
    floor = times["two copies"]
    for name, values in times.items():
        median = 1e3 * float(np.median(values))
        print(
            f"{shape:12} {name:32} {median:9.2f} ms, min {1e3 * min(values):9.2f}, "
            f"{1e3 * median / segments(shape):8.0f} us per segment, "
            f"{ratio(values, floor):6.2f} x two copies",
            flush=True,
        )


def write(stem: Path, figures: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    before, after = figures["load"]
    lines = [
        "# The bridge: what it takes besides what Sprint takes",
        "",
        f"{figures['date']}, {figures['machine']}, {versions}; "
        f"{figures['returnn'] or 'RETURNN absent'}. {figures['rounds']} paired rounds; load "
        f"{before:.1f} before, {after:.1f} after. Echoing children, see `bridge_children.py`.",
        "",
    ]
    lines += targets(figures)
    if figures.get("batches"):
        lines += batches(figures["batches"])
    if figures.get("queue"):
        lines += queue(figures["queue"])
    if figures.get("start"):
        lines += start(figures["start"])
    if figures.get("automata"):
        lines += automata(figures["automata"])
    if figures.get("memory"):
        lines += memory(figures["memory"])
    stem.with_suffix(".md").write_text("\n".join(lines))
    if figures.get("batches"):
        picture(stem.with_suffix(".png"), figures)


def children(entry: dict[str, Any]) -> str:
    return "1 child" if entry["children"] == 1 else f"{entry['children']} children"


def targets(figures: dict[str, Any]) -> list[str]:
    """What was wanted, and what was measured."""
    rows = []

    def row(what: str, wanted: str, value: float, reached: bool, digits: int = 2) -> None:
        rows.append([what, wanted, f"{value:.{digits}f}", "yes" if reached else "no"])

    for shape, times in figures.get("batches", {}).items():
        for count in ("1 child", "2 children"):
            if shape == "200x32x80":
                value = 1e6 * float(np.median(times[count])) / segments(shape)
                row(f"{shape}, {count}: us per segment", "<= 60", value, value <= 60, 0)
            else:
                value = ratio(times[count], times["two copies"])
                row(f"{shape}, {count}: of two copies", "<= 2", value, value <= 2)
            other = times.get(f"{count}, RETURNN's pool")
            if other:
                value = ratio(other, times[count])
                row(f"{shape}, {count}: faster than RETURNN's pool", ">= 5", value, value >= 5, 1)
    for entry in figures.get("queue", []):
        value = float(np.median(entry["times"])) / entry["ideal"]
        what = f"{entry['pace']}, {children(entry)}: of the ideal"
        row(what, "<= 1.10", value, value <= 1.1)
    for entry in figures.get("start", []):
        value = ratio(entry["8"], entry["1"])
        row(f"eight children to start ({entry['start']}), of one", "< 1.5", value, value < 1.5)
    for entry in figures.get("automata", []):
        if entry["protocol"] == "version 2":
            value = 1e6 * float(np.median(entry["times"]))
            what = f"automata, {children(entry)}: us per segment"
            row(what, "<= 150", value, value <= 150, 0)
    return ["## What was wanted", "", *table(["what", "wanted", "measured", "reached"], rows)]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def batches(figures: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = []
    for shape, times in figures.items():
        floor = times["two copies"]
        for name, values in times.items():
            median = 1e3 * float(np.median(values))
            row = [
                shape,
                name,
                f"{median:.2f}",
                f"{1e3 * min(values):.2f}",
                f"{1e3 * median / segments(shape):.0f}",
                f"{ratio(values, floor):.2f}",
            ]
            count = name.split(",")[0]
            other = times.get(f"{count}, RETURNN's pool")
            row.append(f"{ratio(other, values):.1f}" if other and values is not other else "")
            rows.append(row)
    head = ["T x B x L", "what", "median ms", "min ms", "us per segment"]
    head += ["of two copies", "faster than RETURNN's"]
    return ["## Loss and error signal of a batch", "", *table(head, rows)]


def queue(figures: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in figures:
        median = float(np.median(row["times"]))
        over = median / row["ideal"]
        rows.append(
            [
                row["pace"],
                str(row["children"]),
                f"{1e3 * row['ideal']:.1f}",
                f"{1e3 * median:.1f}",
                f"{over:.3f}",
            ]
        )
    head = ["Sprint takes", "children", "ideal ms", "median ms", "of the ideal"]
    return [
        "## 32 segments, lengths 1:10, children that take their time",
        "",
        "The ideal is the sum divided by the number of children, or the longest segment.",
        "",
        *table(head, rows),
    ]


def start(figures: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            row["start"],
            f"{1e3 * np.median(row['1']):.0f}",
            f"{1e3 * np.median(row['8']):.0f}",
            f"{ratio(row['8'], row['1']):.2f}",
        ]
        for row in figures
    ]
    return [
        "## Until all children are ready",
        "",
        *table(["a child's start", "one, ms", "eight, ms", "ratio"], rows),
    ]


def automata(figures: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            row["protocol"],
            str(row["children"]),
            f"{1e6 * np.median(row['times']):.0f}",
            f"{1e6 * min(row['times']):.0f}",
        ]
        for row in figures
    ]
    return [
        "## Automata (61 states, 120 edges) that Sprint has ready, without a cache",
        "",
        *table(["protocol", "children", "us per segment, median", "min"], rows),
    ]


def memory(figures: dict[str, Any]) -> list[str]:
    held = ", ".join(f"{value / 2**20:.0f}" for value in figures["held"])
    return [
        "## Memory",
        "",
        f"Resident MiB of the parent during {figures['requests']:,.0f} requests in batches of all "
        f"lengths, every 100 batches: {held}.",
        "",
    ]


def picture(path: Path, figures: dict[str, Any]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is absent")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = figures["batches"]
    panels, axes = pyplot.subplots(
        1, len(shapes), figsize=(4.5 * len(shapes), 3.6), layout="constrained", squeeze=False
    )
    for axis, (shape, times) in zip(axes[0], shapes.items(), strict=True):
        names = list(times)
        values = [1e3 * np.median(times[name]) for name in names]
        colours = ["0.3"] + [
            "0.7" if "RETURNN" in name else "C0" if "," not in name else "C9" for name in names[1:]
        ]
        axis.barh(names, values, color=colours)
        axis.axvline(2 * values[0], color="0.3", linestyle=":", linewidth=1)
        axis.invert_yaxis()
        axis.set_title(f"T x B x L = {shape}", fontsize=9)
        axis.set_xlabel("ms per batch; dotted: 2 x two copies", fontsize=8)
        axis.tick_params(labelsize=7)
        if axis is not axes[0][0]:
            axis.set_yticks(range(len(names)), [""] * len(names))
        for place, value in enumerate(values):
            over = ratio(times[names[place]], times[names[0]])
            axis.text(value, place, f" {over:.1f}x", va="center", fontsize=6)
        axis.set_xlim(0, 1.15 * max(values))
    panels.suptitle(f"Bridge, echoing children, {figures['date']}", fontsize=10)
    panels.savefig(path, dpi=120)
