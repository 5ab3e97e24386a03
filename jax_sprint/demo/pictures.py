"""Pictures of a training: its loss, one automaton, one alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, NullFormatter

from jax_sprint.demo.features import FRAMES_PER_SECOND
from jax_sprint.demo.model import SUBSAMPLING

__all__ = ["draw_alignment", "draw_automaton", "draw_losses", "new_figure", "save"]

_STYLES: dict[str, dict[str, Any]] = {
    "fsa": {"color": "#1f77b4", "linewidth": 4.0, "alpha": 0.4},
    "callback": {"color": "#c44e00", "linewidth": 1.2},
}
_PALE = "#9a9a9a"
_SMOOTHING = 15
_NAME_LEVELS = 4
_NAME_SHARE = 0.035
_RADIUS = 0.2
_TEXT_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}


def new_figure(width: float, height: float) -> Figure:
    """Makes a figure of that size in inches; it needs no display and no `pyplot`."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, dpi=130)


def draw_losses(figure: Figure, losses: Mapping[str, Sequence[float]], title: str) -> None:
    """Draws the loss of each route over the steps, and how far two routes are apart.

    Args:
        figure: an empty one.
        losses: of each step in nats, by the name of the route.
        title: of the figure.
    """
    both = len(losses) == 2
    axes = figure.subplots(
        2 if both else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1][: 1 + both]
    )
    upper = axes[0, 0]
    for name, values in losses.items():
        array = np.asarray(values)
        steps = np.arange(1, len(array) + 1)
        style = _STYLES.get(name, {})
        upper.plot(steps, array, color=_PALE, linewidth=0.5, alpha=0.5, zorder=1)
        upper.plot(steps, _smooth(array), label=name, zorder=2, **style)
    upper.set_yscale("log")
    upper.yaxis.set_major_formatter("{x:g}")
    lowest_loss, highest_loss = upper.get_ylim()
    if highest_loss < 5 * lowest_loss:
        upper.yaxis.set_minor_formatter("{x:g}")
    else:
        upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        upper.yaxis.set_minor_formatter(NullFormatter())
    upper.set_ylabel("loss per segment [nats]")
    upper.set_title(title)
    upper.grid(alpha=0.25, which="both")
    upper.legend(title=f"route (mean of {_SMOOTHING} steps)", frameon=False)
    lowest = axes[-1, 0]
    if both:
        first, second = (np.asarray(values) for values in losses.values())
        apart = np.abs(first - second) / np.maximum(np.abs(first), np.finfo(np.float32).tiny)
        steps = np.arange(1, len(apart) + 1)
        lowest.plot(steps, np.maximum(apart, 1e-9), color="black", linewidth=0.8)
        lowest.axhline(1e-4, color="#c44e00", linewidth=0.8, linestyle="--", zorder=1)
        lowest.axvspan(0.5, 20.5, color="#c44e00", alpha=0.15, linewidth=0)
        lowest.set_title(
            "wanted: below 1e-4 in the first 20 steps", fontsize=8, loc="right", color="#c44e00"
        )
        lowest.set_yscale("log")
        lowest.set_ylabel("relative\ndifference")
        lowest.grid(alpha=0.25)
    lowest.set_xlabel("training step")


def _smooth(values: np.ndarray) -> np.ndarray:
    width = min(_SMOOTHING, len(values))
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def draw_automaton(
    axes: Axes,
    edges: np.ndarray,
    weights: np.ndarray,
    end_state: int,
    labels: Sequence[str],
    title: str,
) -> None:
    """Draws an automaton without cycles other than loops, time from left to right.

    Args:
        axes: where.
        edges: [3 or more, E] from, to, emission; the start is state 0.
        weights: [E] costs in nats; written to the labels where one is not zero.
        end_state: the one end state, drawn with a double circle.
        labels: name of each emission; the first, the blank, is written as a dash.
        title: of the axes.
    """
    places = _layout(edges, end_state)
    names = ["–", *labels[1:]]
    between: dict[tuple[int, int], list[str]] = {}
    for begin, to, emission, weight in zip(*edges[:3].tolist(), weights.tolist(), strict=True):
        text = names[emission] + (f" / {weight:.2g}" if weight else "")
        texts = between.setdefault((begin, to), [])
        if text not in texts:
            texts.append(text)
    heights = [
        _draw_arc(axes, places[begin], places[to], ", ".join(texts), to == end_state)
        for (begin, to), texts in between.items()
    ]
    for state, (x, y) in places.items():
        for radius in (_RADIUS, 0.78 * _RADIUS)[: 2 if state == end_state else 1]:
            axes.add_patch(Circle((x, y), radius, facecolor="#eef3f8", edgecolor="black", zorder=3))
        axes.text(x, y, str(state), ha="center", va="center", fontsize=8, zorder=4)
    axes.set_title(title)
    axes.set_aspect("equal")
    depths, rows = zip(*places.values(), strict=True)
    axes.set_xlim(min(depths) - 0.4, max(depths) + 0.4)
    axes.set_ylim(min([*heights, *rows]) - 0.3, max([*heights, *rows]) + 0.35)
    axes.axis("off")


def _layout(edges: np.ndarray, end_state: int) -> dict[int, tuple[float, float]]:
    """Puts each state at the length of the longest path to it; states that share one, apart."""
    forward = sorted({(a, b) for a, b in zip(*edges[:2].tolist(), strict=True) if a != b})
    depth: dict[int, int] = dict.fromkeys({0, end_state, *edges[:2].ravel().tolist()}, 0)
    # Relaxing once per state is enough, and ends also where there is a cycle.
    for _ in depth:
        before = dict(depth)
        for begin, to in forward:
            depth[to] = max(depth[to], depth[begin] + 1)
        if depth == before:
            break
    layers: dict[int, list[int]] = {}
    for state in sorted(depth):
        layers.setdefault(depth[state], []).append(state)
    return {
        state: (float(level), 0.9 * ((len(layer) - 1) / 2 - row))
        for level, layer in layers.items()
        for row, state in enumerate(layer)
    }


def _draw_arc(
    axes: Axes, begin: tuple[float, float], end: tuple[float, float], text: str, final: bool
) -> float:
    """Draws one arc from circle to circle, and says how high or low its text is."""
    start, stop = np.array(begin), np.array(end)
    if begin == end:
        # A loop, as a cubic curve that leaves and comes back at the top of the circle.
        corners = start + np.array([[-0.5, 1], [-2.2, 3.6], [2.2, 3.6], [0.5, 1]]) * 0.87 * _RADIUS
        axes.add_patch(_arrow(Path([*corners], [Path.MOVETO, *[Path.CURVE4] * 3])))
        axes.text(begin[0], begin[1] + 2.85 * _RADIUS, text, ha="center", va="bottom", fontsize=8)
        return begin[1] + 2.85 * _RADIUS
    across = stop - start
    span = float(np.hypot(*across))
    normal = np.array([across[1], -across[0]]) / span
    middle = (start + stop) / 2 + normal * (0.0 if span < 1.5 else 0.42 * span)
    first = start + _RADIUS * (middle - start) / np.hypot(*(middle - start))
    last = stop + _RADIUS * (middle - stop) / np.hypot(*(middle - stop))
    axes.add_patch(_arrow(Path([first, middle, last], [Path.MOVETO, Path.CURVE3, Path.CURVE3])))
    # Arcs into the end state come close to each other: their text stands nearer to the start.
    place = 0.4 if final else 0.5
    point = (1 - place) ** 2 * first + 2 * place * (1 - place) * middle + place**2 * last
    apex = point + normal * (0.09 if span >= 1.5 else -0.09)
    axes.text(
        float(apex[0]),
        float(apex[1]),
        text,
        ha="center",
        va="center",
        fontsize=8,
        zorder=5,
        bbox=_TEXT_BOX,
    )
    return float(apex[1])


def _arrow(path: Path) -> FancyArrowPatch:
    return FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=9, linewidth=0.9, zorder=2)


def draw_alignment(
    figure: Figure,
    features: np.ndarray,
    posteriors: np.ndarray,
    alignment: np.ndarray,
    labels: Sequence[str],
    title: str,
) -> None:
    """Draws the best path of a segment over its spectrogram, and the posteriors below.

    Args:
        figure: an empty one.
        features: [T', D], log-mel features, `FRAMES_PER_SECOND` of them a second.
        posteriors: [T, L] probabilities, one frame for every `SUBSAMPLING` of the features.
        alignment: [T] label of each frame on the best path.
        labels: name of each label; the first is the blank.
        title: of the figure.
    """
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    frame = SUBSAMPLING / FRAMES_PER_SECOND
    seconds = len(features) / FRAMES_PER_SECOND
    image = upper.imshow(
        features.T,
        origin="lower",
        aspect="auto",
        extent=(0.0, seconds, 0.5, features.shape[1] + 0.5),
        cmap="magma",
        vmin=float(np.percentile(features, 2)),
        vmax=float(np.percentile(features, 99.5)),
    )
    figure.colorbar(image, ax=upper, label="normalised\nlog energy", pad=0.01)
    top = features.shape[1] + 0.5
    runs = _runs(alignment)
    spoken = [run for run in runs if run[0] != 0]
    level, free_from = 0, 0.0
    for label, begin, end in spoken:
        # Names that would touch the one before go one step lower.
        level = (level + 1) % _NAME_LEVELS if begin * frame < free_from else 0
        free_from = begin * frame + _NAME_SHARE * seconds
        upper.axvspan(begin * frame, end * frame, color="white", alpha=0.25, linewidth=0)
        upper.axvline(begin * frame, color="white", linewidth=0.8)
        upper.text(
            begin * frame + 0.003 * seconds,
            top - 1.0 - 3.2 * level,
            labels[label],
            ha="left",
            va="top",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9},
        )
    upper.set_ylabel("mel band")
    upper.set_ylim(0.5, top)
    upper.set_title(title)
    shown = [0, *dict.fromkeys(label for label, *_ in runs if label != 0)]
    edges = np.arange(len(posteriors) + 1) * frame
    mesh = lower.pcolormesh(
        edges, np.arange(len(shown) + 1) - 0.5, posteriors[:, shown].T, cmap="Blues", vmin=0, vmax=1
    )
    rows = {label: row for row, label in enumerate(shown)}
    lower.plot(
        edges[:-1] + frame / 2,
        [rows[label] for label in alignment.tolist()],
        color="#c44e00",
        linewidth=1,
        marker="o",
        markersize=3,
        label="best path",
    )
    lower.legend(loc="lower left", frameon=True, fontsize=8)
    figure.colorbar(mesh, ax=lower, label="posterior", pad=0.01)
    lower.set_yticks(range(len(shown)), [labels[label] for label in shown])
    lower.set_ylim(len(shown) - 0.5, -0.5)
    lower.set_xlim(0, seconds)
    lower.set_xlabel("time [s]")
    lower.set_ylabel("label")


def _runs(alignment: np.ndarray) -> list[tuple[int, int, int]]:
    """Gives label, first frame and frame after the last of each run of equal labels."""
    bounds = [0, *(np.flatnonzero(np.diff(alignment)) + 1).tolist(), len(alignment)]
    return [(int(alignment[begin]), begin, end) for begin, end in pairwise(bounds) if end > begin]
