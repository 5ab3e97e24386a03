"""Tables and pictures from the measured figures; no number is written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from kernel_scaling import line

__all__ = ["write"]

_OURS = ("full_sum_loss", "full_sum_loss after log_softmax", "ctc_loss")
_NO_LOSS = ("floor", "softmax")
_AGREE = {"loss": 1e-4, "gradient": 1e-3}  # relative difference of sums, and of norms
_FLOATS = 4  # what "O(T * S)" may mean: values per frame and state
_MEGA = 1e6


def write(figures: dict, out: Path) -> None:
    """Writes `<date>-kernel-<platform>.md` and pictures into `out`."""
    stem = f"{figures['date']}-kernel-{figures['platform']}"
    text = ["# Kernels: loss and gradient with respect to logits", "", _machine(figures), ""]
    text += _targets(figures) + _times(figures)
    if figures.get("memory"):
        text += _memory(figures)
        _plot_memory(figures, out / f"{stem}-memory.png")
    if figures.get("scaling"):
        text += _scaling(figures)
        _plot_scaling(figures, out / f"{stem}-scaling.png")
    if figures.get("times"):
        _plot_times(figures, out / f"{stem}.png")
    (out / f"{stem}.md").write_text("\n".join(text).rstrip() + "\n")


def _machine(figures: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    return (
        f"{figures['date']}, {figures['cores']} cores of {figures['processor']}, load "
        f"{figures['load'][0]:.1f} before and {figures['load'][1]:.1f} after, Python "
        f"{figures['python']}, {versions}. `{figures['command']}`"
    )


def _median(entry: dict | None) -> float | None:
    return float(np.median(entry["ms"])) if entry else None


def _targets(figures: dict) -> list[str]:
    rows: list[tuple[str, str, str, bool | None]] = []
    times = figures.get("times", {})

    def ratio(what: str, work: str, peer: str, ours: str, least: float) -> None:
        entries = times.get(work, {}).get("contenders", {})
        over, under = _median(entries.get(peer)), _median(entries.get(ours))
        if over is None or under is None:
            rows.append((f"{what}, {work}, over `{ours}`", f">= {least:g} x", "not measured", None))
            return
        got = over / under
        rows.append(
            (f"{what}, {work}, over `{ours}`", f">= {least:g} x", f"{got:.1f} x", got >= least)
        )

    def at_most(what: str, limit: float, got: float | None, unit: str) -> None:
        shown = "not measured" if got is None else f"{got:.2f} {unit}"
        met = None if got is None else got <= limit
        rows.append((what, f"<= {limit:g} {unit}", shown, met))

    ratio("PyTorch", "ctc", "torch", "ctc_loss", 3)
    ratio("PyTorch", "ctc", "torch", "full_sum_loss", 3)
    ratio("optax", "ctc", "optax", "ctc_loss", 3)
    ratio("optax", "ctc", "optax", "full_sum_loss", 3)
    ratio("k2", "ctc", "k2", "ctc_loss", 20)
    ratio("k2", "ctc", "k2", "full_sum_loss", 20)
    ratio("k2", "hmm", "k2", "full_sum_loss", 20)
    ratio("RETURNN", "ctc", "RETURNN", "ctc_loss", 50)
    ratio("RETURNN", "ctc", "RETURNN", "full_sum_loss", 50)
    ratio("RETURNN", "hmm", "RETURNN", "full_sum_loss", 50)

    def ours_in(work: str, name: str = "full_sum_loss") -> float | None:
        return _median(times.get(work, {}).get("contenders", {}).get(name))

    def quotient(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a / b

    at_most("hmm, over the floor", 2, quotient(ours_in("hmm"), ours_in("hmm", "floor")), "x")
    at_most("peaked, over hmm", 2, quotient(ours_in("peaked"), ours_in("hmm")), "x")
    compilations = {
        f"{work}, {name}": entry["compile_s"]
        for work, result in times.items()
        for name, entry in result["contenders"].items()
        if name in _OURS
    }
    slowest = max(compilations, key=compilations.__getitem__, default=None)
    at_most(
        f"compilation, slowest shape ({slowest})" if slowest else "compilation",
        3,
        compilations.get(slowest),
        "s",
    )
    for work, limit in (("hmm", 2), ("denominator", 20)):
        pack = times.get(work, {}).get("pack_ms")
        at_most(f"packing, {work}", limit, float(np.median(pack)) if pack else None, "ms")
    for row in figures.get("memory", []):
        if not row["options"]:
            extra, allowed = _extra(row), _allowed(row)
            rows.append(
                (
                    f"extra memory, {row['work']}",
                    f"<= {allowed / _MEGA:.0f} MB",
                    f"{extra / _MEGA:.0f} MB",
                    extra <= allowed,
                )
            )
    for name, points in figures.get("scaling", {}).items():
        _, _, off = _fit(points)
        rows.append((f"linear in {name}", "within 20 % of a line", f"{100 * off:.0f} %", off < 0.2))
    text = ["| target | wanted | reached | met |", "|---|---|---|---|"]
    for what, wanted, reached, met in rows:
        text.append(f"| {what} | {wanted} | {reached} | {_yes(met)} |")
    return ["## Targets", "", *text, ""]


def _yes(met: bool | None) -> str:
    return "" if met is None else ("yes" if met else "**no**")


def _agreement(entry: dict, ours: dict) -> str:
    if entry["loss"] is None:
        return ""
    off = {key: abs(entry[key] - ours[key]) / abs(ours[key]) for key in _AGREE}
    shown = f"{off['loss']:.0e}, {off['gradient']:.0e}"
    agrees = all(off[key] <= limit for key, limit in _AGREE.items())
    return shown if agrees else f"**no**: {shown}"


def _times(figures: dict) -> list[str]:
    text = [
        "## Time",
        "",
        "Milliseconds for losses and gradient with respect to the logits, `log_softmax` included "
        "(by `from_logits=True` in `full_sum_loss`, where not said to be before it); "
        "rounds in which everyone takes a turn. `floor` is `log_softmax` and `exp` over the same "
        "array, both returned; `softmax` returns one array only. *agrees*: relative difference of "
        "the sum of the losses, and of the Euclidean norm of the gradient, from `full_sum_loss`; "
        f"up to {_AGREE['loss']:g} and {_AGREE['gradient']:g} they count as equal.",
        "",
        "| work | what | median | quartiles | rounds | x `full_sum_loss` | agrees | compile s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for work, result in figures.get("times", {}).items():
        ours = result["contenders"]["full_sum_loss"]
        base = _median(ours)
        for name, entry in result["contenders"].items():
            low, middle, high = np.percentile(entry["ms"], [25, 50, 75])
            seconds = "" if entry["compile_s"] is None else f"{entry['compile_s']:.2f}"
            text.append(
                f"| {work} | {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {len(entry['ms'])} "
                f"| {middle / base:.2f} | {_agreement(entry, ours)} | {seconds} |"
            )
    text += [""]
    lost = [
        f"- {work}, {name}: {why}"
        for work, result in figures.get("times", {}).items()
        for name, why in result["absent"].items()
    ]
    if lost:
        text += ["Not measured:", "", *lost, ""]
    packs = [
        f"{work} {np.median(result['pack_ms']):.2f}"
        for work, result in figures.get("times", {}).items()
    ]
    if packs:
        text += [f"`Automata.from_edges`, milliseconds (median): {', '.join(packs)}.", ""]
    return text


def _extra(row: dict) -> int:
    return max(row["measured"], row["temp"] or 0)


def _allowed(row: dict) -> float:
    return 1.5 * row["log_posteriors"] + _FLOATS * row["frames_states"]


def _memory(figures: dict) -> list[str]:
    text = [
        "## Memory beyond inputs and the returned gradient, MB",
        "",
        "*XLA*: its temporary buffers; *measured*: growth of the process's peak resident set in "
        "the first run, less what is returned. Allowed are 1.5 x the log-posteriors plus O(T * S): "
        f"here {_FLOATS} values of 4 bytes per frame and state. *per frame and state*: what is "
        "left of the larger figure after 1.5 x the log-posteriors, in such values. T * E is one "
        "value per frame and arc, for comparison.",
        "",
        "| work | options | XLA | measured | 1.5 x log-posteriors | T * S | allowed | kept "
        "| per frame and state | T * E |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["memory"]:
        extra, allowed = _extra(row), _allowed(row)
        left = max(0.0, extra - 1.5 * row["log_posteriors"]) / row["frames_states"]
        options = ", ".join(f"{k}={v!r}" for k, v in row["options"].items())
        cells = [
            row["work"],
            options,
            "" if row["temp"] is None else f"{row['temp'] / _MEGA:.1f}",
            f"{row['measured'] / _MEGA:.1f}",
            f"{1.5 * row['log_posteriors'] / _MEGA:.1f}",
            f"{row['frames_states'] / _MEGA:.1f}",
            f"{allowed / _MEGA:.1f}",
            _yes(extra <= allowed),
            f"{left:.1f}",
            f"{row['frames_arcs'] / _MEGA:.1f}",
        ]
        text.append("| " + " | ".join(cells) + " |")
    return [*text, ""]


def _fit(points: list) -> tuple[float, float, float]:
    sizes = [size for size, _ in points]
    return line(sizes, [float(np.median(times)) for _, times in points])


def _scaling(figures: dict) -> list[str]:
    text = [
        "## Cost against size",
        "",
        "| size | milliseconds (median) | line | largest deviation from it |",
        "|---|---|---|---|",
    ]
    for name, points in figures["scaling"].items():
        offset, slope, off = _fit(points)
        shown = ", ".join(f"{size}: {np.median(times):.1f}" for size, times in points)
        text.append(f"| {name} | {shown} | {offset:.1f} + {slope:.3g} n | {100 * off:.0f} % |")
    return [*text, ""]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plot_times(figures: dict, path: Path) -> None:
    pyplot = _pyplot()
    works = figures["times"]
    heights = [len(result["contenders"]) for result in works.values()]
    figure, axes = pyplot.subplots(
        len(works),
        figsize=(8, 0.28 * sum(heights) + 0.35 * len(works) + 0.8),
        layout="constrained",
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    for axis, (work, result) in zip(axes[:, 0], works.items(), strict=True):
        names = sorted(result["contenders"], key=lambda n: _median(result["contenders"][n]))
        values = [_median(result["contenders"][n]) for n in names]
        bars = axis.barh(names, values, color=[_colour(n) for n in names])
        axis.bar_label(bars, [f"{v:.3g}" for v in values], padding=3, fontsize=7)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.tick_params(labelsize=8)
        axis.set_ylabel(work, rotation=0, ha="right", va="center", labelpad=52, weight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    axes[-1, 0].set_xlabel("milliseconds (median), loss and gradient")
    figure.suptitle(f"Kernels on {figures['platform']}, {figures['date']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _colour(name: str) -> str:
    if name in _OURS:
        return "C0"
    return "0.8" if name in _NO_LOSS else "0.55"


def _plot_memory(figures: dict, path: Path) -> None:
    pyplot = _pyplot()
    rows = figures["memory"]
    names = [
        row["work"] + "".join(f"\n{k}={v!r}" for k, v in row["options"].items()) for row in rows
    ]
    place = np.arange(len(rows))
    figure, axis = pyplot.subplots(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    allowed = np.array([_allowed(row) for row in rows]) / _MEGA
    posteriors = np.array([1.5 * row["log_posteriors"] for row in rows]) / _MEGA
    axis.barh(place, allowed, 0.8, color="0.88", label=f"allowed: + {_FLOATS} values x T x S")
    axis.barh(place, posteriors, 0.8, color="0.75", label="1.5 x log-posteriors")
    measured = [row["measured"] / _MEGA for row in rows]
    axis.barh(place, measured, 0.35, color="C0", label="measured")
    axis.set_yticks(place, names)
    axis.invert_yaxis()
    axis.set_xlabel("MB beyond inputs and the returned gradient")
    axis.set_xscale("symlog", linthresh=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axis.set_title(f"Extra memory, {figures['date']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _plot_scaling(figures: dict, path: Path) -> None:
    pyplot = _pyplot()
    series = figures["scaling"]
    figure, axes = pyplot.subplots(
        1, len(series), figsize=(4 * len(series), 3.2), layout="constrained", squeeze=False
    )
    for axis, (name, points) in zip(axes[0], series.items(), strict=True):
        sizes = np.array([size for size, _ in points])
        low, middle, high = np.percentile(
            np.array([times for _, times in points]), [25, 50, 75], axis=1
        )
        offset, slope, off = _fit(points)
        ends = np.array([0, sizes[-1]])
        axis.plot(ends, offset + slope * ends, color="0.6", label=f"line, within {100 * off:.0f} %")
        axis.errorbar(sizes, middle, [middle - low, high - middle], fmt="o", capsize=3)
        axis.set_xlabel(name)
        axis.set_ylim(0)
        axis.set_xlim(0)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("milliseconds, loss and gradient")
    figure.suptitle(f"Cost against size, {figures['date']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
