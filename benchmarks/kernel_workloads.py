"""Inputs on which the kernels are measured; numpy only, so that peers elsewhere can load them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    """Time-major logits [T, B, V] float32, lengths [B], and the automata as an edge list."""

    logits: np.ndarray
    lengths: np.ndarray
    edges: np.ndarray
    weights: np.ndarray
    start_end_states: np.ndarray
    labels: np.ndarray | None = None  # [B, N], for the peers that only know CTC


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


def hmm(seed: int = 0, scale: float = 1.0) -> Workload:
    """3-state HMM, 40 phones, optional silence between words, B=16, T=400, V=4501."""
    rng = np.random.default_rng(seed)
    graphs = _batch([_hmm_graph(rng, 40, 4501) for _ in range(16)], rng, 3.0)
    logits = (scale * rng.normal(size=(400, 16, 4501))).astype(np.float32)
    return Workload(logits, rng.integers(200, 401, 16), *graphs)


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
