"""Inputs on which the kernels are measured; numpy only, so that peers elsewhere can load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["WORKLOADS", "Workload", "ctc", "denominator", "golden", "hmm", "long", "ragged"]

_GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


class Workload(NamedTuple):
    """Time-major logits [T, B, V] float32, lengths [B], and the automata as an edge list.

    `start_end_states` has one column per sequence, or one alone: then all share one automaton.
    """

    logits: np.ndarray
    lengths: np.ndarray
    edges: np.ndarray
    weights: np.ndarray
    start_end_states: np.ndarray
    labels: np.ndarray | None = None  # [B, N], for the peers that only know CTC

    @property
    def shared(self) -> bool:
        return self.start_end_states.shape[1] < self.logits.shape[1]

    def states(self) -> int:
        """Number of states, summed over the batch."""
        used = np.unique(np.concatenate([self.edges[:2].ravel(), self.start_end_states.ravel()]))
        return used.size * (self.logits.shape[1] if self.shared else 1)

    def arcs(self) -> int:
        """Number of arcs, summed over the batch."""
        return self.edges.shape[1] * (self.logits.shape[1] if self.shared else 1)


def _batch(parts: list[tuple[list, int]], rng: np.random.Generator, cost: float) -> tuple:
    edges, ends, offset = [], [], 0
    for b, (mine, end) in enumerate(parts):
        table = np.array(mine, np.int64)
        table[:, :2] += offset
        edges.append(np.column_stack([table, np.full(len(table), b)]))
        ends.append((offset, offset + end))
        offset += end + 1
    table = np.concatenate(edges).astype(np.uint32)
    weights = (cost * rng.random(len(table))).astype(np.float32)
    return np.ascontiguousarray(table.T), weights, np.array(ends, np.uint32).T.copy()


def _ctc_graph(labels: np.ndarray) -> tuple[list, int]:
    emit = [0]
    for label in labels:
        emit += [int(label), 0]
    end, mine = len(emit) + 1, []
    for i, label in enumerate(emit):
        before = {i, i + 1} if i else {0, 1}
        if i == 1:
            before = {0, 1, 2}
        elif i >= 2 and label and label != emit[i - 2]:
            before.add(i - 1)
        mine += [(s, i + 1, label) for s in sorted(before)]
        if i >= len(emit) - 2:
            mine += [(s, end, label) for s in sorted(before)]
    return mine, end


def _hmm_graph(rng: np.random.Generator, phones: int, num_labels: int) -> tuple[list, int]:
    mine: list[tuple[int, int, int]] = []
    count = 1

    def chain(before: list[int], labels: list[int]) -> list[int]:
        nonlocal count
        for label in labels:
            mine.extend((s, count, label) for s in [*before, count])
            before, count = [count], count + 1
        return before

    word_ends = [0]
    for _ in range(phones // 4):
        silence = chain(word_ends, [0])
        word_ends = chain(word_ends + silence, [int(v) for v in rng.integers(1, num_labels, 12)])
    word_ends += chain(word_ends, [0])
    mine += [(s, count, label) for s, t, label in mine if t in word_ends]
    return mine, count


def ctc(seed: int = 0) -> Workload:
    """B=16, T=400, V=512, 60 labels, lengths from T/2 to T."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 512, (16, 60))
    graphs = _batch([_ctc_graph(row) for row in labels], rng, 0.0)
    logits = rng.normal(size=(400, 16, 512)).astype(np.float32)
    return Workload(logits, rng.integers(200, 401, 16), *graphs, labels)


def hmm(
    seed: int = 0,
    scale: float = 1.0,
    frames: int = 400,
    batch: int = 16,
    num_labels: int = 4501,
    full: bool = False,
) -> Workload:
    """3-state HMM, 40 phones, optional silence between words, B=16, T=400, V=4501."""
    rng = np.random.default_rng(seed)
    graphs = _batch([_hmm_graph(rng, 40, num_labels) for _ in range(batch)], rng, 3.0)
    logits = (scale * rng.normal(size=(frames, batch, num_labels))).astype(np.float32)
    lengths = np.full(batch, frames) if full else rng.integers(frames // 2, frames + 1, batch)
    return Workload(logits, lengths, *graphs)


def long(num_frames: int, batch: int, seed: int = 0) -> Workload:
    """About 1,500 states, V=80."""
    rng = np.random.default_rng(seed)
    graphs = _batch([_hmm_graph(rng, 480, 80) for _ in range(batch)], rng, 3.0)
    logits = rng.normal(size=(num_frames, batch, 80)).astype(np.float32)
    return Workload(logits, np.full(batch, num_frames), *graphs)


def ragged(seed: int = 0) -> Workload:
    """Lengths 10 % to 100 % of T, automata sizes 1:10; V=200."""
    rng = np.random.default_rng(seed)
    share = np.linspace(0.1, 1.0, 16)
    graphs = _batch([_hmm_graph(rng, int(40 * s), 200) for s in share], rng, 3.0)
    logits = rng.normal(size=(400, 16, 200)).astype(np.float32)
    return Workload(logits, np.ceil(400 * share).astype(int), *graphs)


def golden(name: str, num_labels: int | None = None, seed: int = 0) -> Workload:
    """RASR's own automata, one after the other until they are as long as utterances are.

    16 sequences, each of two to five of the short segments; about three frames per state, so that
    T is about 600.  Dense triphone labels are tied to `num_labels` by their remainder: nobody
    trains on 48,000 of them.
    """
    rng = np.random.default_rng(seed)
    with np.load(_GOLDEN / f"{name}.npz") as data:
        edges, weights = data["edges"].astype(np.int64), data["weights"]
        ends = data["start_end_states"].astype(np.int64)
    short = [b for b in range(ends.shape[1]) if 20 < ends[1, b] - ends[0, b] < 100]
    tables, costs, limits, offset, lengths = [], [], [], 0, []
    for sequence in range(16):
        start = offset
        for b in rng.choice(short, rng.integers(2, 6)):
            mine = edges[3] == b
            shift = np.array([offset - ends[0, b]] * 2 + [0, 0])[:, None]
            tables.append(edges[:, mine] + shift)
            tables[-1][3] = sequence
            costs.append(weights[mine])
            offset += int(ends[1, b] - ends[0, b])
        limits.append((start, offset))
        lengths.append(int((offset - start) * rng.uniform(2.5, 3.5)))
        offset += 1
    table = np.concatenate(tables, axis=1)
    num_labels = num_labels or int(table[2].max()) + 1
    table[2] %= num_labels
    logits = rng.normal(size=(max(lengths), 16, num_labels)).astype(np.float32)
    return Workload(
        logits,
        np.array(lengths),
        table.astype(np.uint32),
        np.concatenate(costs).astype(np.float32),
        np.array(limits, np.uint32).T.copy(),
    )


def _in_degrees(rng: np.random.Generator, states: int, arcs: int, most: int) -> np.ndarray:
    """Of each state: 0 for the start, `most` for the end, from 1 to `most` with a heavy tail.

    A quarter of the states have one arc; the others fall off as a power of their rank, with the
    power that gives the wanted sum.
    """
    single = states // 4
    rank = np.arange(1, states - single - 1)
    low, high = 0.0, 4.0
    for _ in range(60):
        power = (low + high) / 2
        degrees = np.maximum(1, np.round(most * rank**-power)).astype(int)
        low, high = (power, high) if degrees.sum() > arcs - most - single else (low, power)
    missing = arcs - most - single - degrees.sum()
    place = rng.integers(len(rank) // 2, len(rank), abs(missing))
    np.add.at(degrees, place, np.sign(missing))
    degrees = rng.permutation(np.concatenate([np.maximum(degrees, 1), np.ones(single, int)]))
    return np.concatenate([[0], degrees, [most]])


def denominator(
    labels: str = "states",
    states: int = 5000,
    arcs: int = 40000,
    most: int = 500,
    batch: int = 32,
    frames: int = 150,
    num_labels: int = 3000,
    seed: int = 0,
) -> Workload:
    """One graph for all sequences: 5,000 states, 40,000 arcs, in-degree from 1 to 500.

    With `labels="states"` it is what a phone language model with HMM states comes to: a state with
    two arcs or more has a loop, the arcs into it carry one label, and those into the end state any.
    With `labels="arcs"` each arc has a random label of its own.  Weights are minus the log of the
    number of arcs that leave the state, with noise.
    """
    rng = np.random.default_rng(seed)
    degree = _in_degrees(rng, states, arcs, most)
    target = np.repeat(np.arange(states), degree)
    begin = np.cumsum(degree) - degree
    looped = np.flatnonzero(degree[:-1] >= 2)
    # The first arc into each state comes from an earlier one, and the free arcs leave all states:
    # so every state is on a path.
    source = np.full(len(target), -1)
    source[begin[1:]] = rng.integers(0, np.arange(1, states))
    source[begin[looped] + 1] = looped
    free = np.flatnonzero(source < 0)
    more = rng.integers(0, states - 1, len(free) - states + 1)
    source[free] = rng.permutation(np.concatenate([np.arange(states - 1), more]))
    label = rng.integers(0, num_labels, states)[target]
    anything = (target == states - 1) | (labels == "arcs")
    label = np.where(anything, rng.integers(0, num_labels, len(target)), label)
    weights = np.log(np.bincount(source)[source]) + 0.5 * rng.random(len(source))
    logits = rng.normal(size=(frames, batch, num_labels)).astype(np.float32)
    return Workload(
        logits,
        np.full(batch, frames),
        np.stack([source, target, label, 0 * label]).astype(np.uint32),
        weights.astype(np.float32),
        np.array([[0], [states - 1]], np.uint32),
    )


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "ctc": ctc,
    "hmm": hmm,
    "peaked": lambda: hmm(scale=20.0),
    "long3000": lambda: long(3000, 4),
    "long20000": lambda: long(20000, 1),
    "variants": lambda: golden("e_pron_score"),
    "across-word": lambda: golden("c_tri_dense_awm", 4501),
    "ragged": ragged,
    "denominator": denominator,
    "denominator-arcs": lambda: denominator("arcs"),
}
