"""Slow and obvious implementations, in numpy float64, of what the kernels compute.

They walk over the edge list as given, [4, E] uint32 (from, to, emission, sequence), and share no
code and no idea with the package: path enumeration follows every path, and the dynamic programmes
are the textbook's recursions over states, in log space.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class EdgeList(NamedTuple):
    """The triple that `Automata.from_edges` takes."""

    edges: np.ndarray
    weights: np.ndarray
    start_end_states: np.ndarray


class Answer(NamedTuple):
    """Of one sequence: loss, label posteriors [T, L], and expected uses of its edges [E_b]."""

    loss: float
    posteriors: np.ndarray
    edge_uses: np.ndarray


def of_sequence(automata: EdgeList, b: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Edges [3, E_b], weights [E_b] in float64, start and end state of one sequence."""
    mine = automata.edges[3] == b
    start, end = automata.start_end_states[:, b].astype(int)
    return automata.edges[:3, mine].astype(int), automata.weights[mine].astype(float), start, end


def frame_scores(
    log_posteriors: np.ndarray,
    *,
    am_scale: float = 1.0,
    log_prior: np.ndarray | None = None,
    prior_scale: float = 0.0,
) -> np.ndarray:
    """[T, L] float64: what a label scores in a frame."""
    scores = am_scale * log_posteriors.astype(float)
    return scores if log_prior is None else scores - prior_scale * log_prior.astype(float)


def enumerate_paths(
    automata: EdgeList, b: int, num_frames: int
) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """All paths of exactly `num_frames` edges: labels, edges (of the sequence), weight."""
    edges, weights, start, end = of_sequence(automata, b)
    paths = [((), (), 0.0, start)]
    for _ in range(num_frames):
        paths = [
            ((*labels, int(edges[2, e])), (*used, e), weight + weights[e], int(edges[1, e]))
            for labels, used, weight, state in paths
            for e in np.flatnonzero(edges[0] == state)
        ]
    return [(labels, used, weight) for labels, used, weight, state in paths if state == end]


def log_sum(values: np.ndarray) -> float:
    """Log of the sum of exponentials, -inf for none."""
    values = np.asarray(values, float)
    top = values.max(initial=-np.inf)
    return top if top == -np.inf else float(top + np.log(np.exp(values - top).sum()))


def by_enumeration(
    automata: EdgeList, b: int, scores: np.ndarray, tdp_scale: float = 1.0
) -> Answer:
    """From all paths; `scores` is [T, L] for the valid frames of the sequence."""
    num_frames, num_labels = scores.shape
    paths = enumerate_paths(automata, b, num_frames)
    frames = np.arange(num_frames)
    totals = np.array(
        [scores[frames, list(labels)].sum() - tdp_scale * weight for labels, _, weight in paths]
    )
    posteriors = np.zeros((num_frames, num_labels))
    uses = np.zeros(int((automata.edges[3] == b).sum()))
    whole = log_sum(totals)
    if whole > -np.inf:
        for (labels, used, _), score in zip(paths, totals, strict=True):
            share = np.exp(score - whole)
            posteriors[frames, list(labels)] += share
            np.add.at(uses, list(used), share)
    return Answer(-whole, posteriors, uses)


def by_dynamic_programming(
    automata: EdgeList, b: int, scores: np.ndarray, tdp_scale: float = 1.0
) -> Answer:
    """From the forward-backward recursions over states, in log space."""
    edges, weights, start, end = of_sequence(automata, b)
    num_frames, num_labels = scores.shape
    offset = min(edges[:2].min(initial=start), start)
    num_states = max(edges[:2].max(initial=end), end) - offset + 1
    source, target, label = edges[0] - offset, edges[1] - offset, edges[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(weights == np.inf, -np.inf, -tdp_scale * weights)
        alphas = np.full((num_frames + 1, num_states), -np.inf)
        alphas[0, start - offset] = 0.0
        for t in range(num_frames):
            np.logaddexp.at(alphas[t + 1], target, alphas[t, source] + cost + scores[t, label])
        loss = -alphas[num_frames, end - offset]
        betas = np.full((num_frames + 1, num_states), -np.inf)
        betas[num_frames, end - offset] = 0.0
        posteriors = np.zeros((num_frames, num_labels))
        uses = np.zeros(edges.shape[1])
        for t in reversed(range(num_frames)):
            after = betas[t + 1, target] + cost + scores[t, label]
            np.logaddexp.at(betas[t], source, after)
            if loss < np.inf:
                share = np.exp(alphas[t, source] + after + loss)
                np.add.at(posteriors[t], label, share)
                uses += share
    return Answer(float(loss), posteriors, uses)


def best_score(automata: EdgeList, b: int, scores: np.ndarray, tdp_scale: float = 1.0) -> float:
    """Score of the best path, by dynamic programming."""
    edges, weights, start, end = of_sequence(automata, b)
    offset = min(edges[:2].min(initial=start), start)
    best = np.full(max(edges[:2].max(initial=end), end) - offset + 1, -np.inf)
    best[start - offset] = 0.0
    for frame in scores:
        step = best[edges[0] - offset] - tdp_scale * weights + frame[edges[2]]
        best = np.full_like(best, -np.inf)
        np.maximum.at(best, edges[1] - offset, step)
    return float(best[end - offset])


def alignment_score(
    automata: EdgeList, b: int, scores: np.ndarray, labels: np.ndarray, tdp_scale: float = 1.0
) -> float:
    """Score of the best path that emits exactly `labels`, -inf if none does."""
    kept = np.full(scores.shape, -np.inf)
    frames = np.arange(len(labels))
    kept[frames, labels] = scores[frames, labels]
    return best_score(automata, b, kept, tdp_scale)


def random_automata(
    rng: np.random.Generator,
    batch: int,
    *,
    max_states: int = 5,
    num_labels: int = 4,
    cyclic: bool = True,
    gaps: bool = False,
    interleave: bool = False,
    density: float = 0.5,
) -> EdgeList:
    """Small automata of every shape: loops, cycles, parallel edges, dead ends, no path at all.

    The end state is the last one, the start state the first, as Sprint numbers them.
    """
    edges, ends, offset = [], [], 0
    for b in range(batch):
        count = int(rng.integers(1, max_states + 1))
        step = int(rng.integers(1, 4)) if gaps else 1
        offset += int(rng.integers(0, 5)) if gaps else 0
        for source in range(count):
            for target in range(0 if cyclic else source, count):
                for _ in range(2):
                    if rng.random() < density:
                        label = int(rng.integers(num_labels))
                        edges.append((offset + source * step, offset + target * step, label, b))
        ends.append((offset, offset + (count - 1) * step))
        offset += (count - 1) * step + 1
    table = np.array(edges, np.uint32).reshape(-1, 4)
    if interleave:
        table = table[rng.permutation(len(table))]
    weights = rng.exponential(size=len(table)).astype(np.float32)
    return EdgeList(
        np.ascontiguousarray(table.T), weights, np.array(ends, np.uint32).reshape(batch, 2).T.copy()
    )


def hmm_like(
    rng: np.random.Generator, batch: int, phones: int, num_labels: int, silence: int = 0
) -> EdgeList:
    """Left-to-right HMMs of 3 states per phone, words of 4 phones, optional silence between."""
    edges, ends, offset = [], [], 0
    for b in range(batch):
        mine: list[tuple[int, int, int]] = []
        count = 1

        def chain(before: list[int], labels: list[int], mine: list = mine) -> list[int]:
            nonlocal count
            for label in labels:
                state, count = count, count + 1
                mine.extend((s, state, label) for s in before)
                mine.append((state, state, label))
                before = [state]
            return before

        ends_of_word = [0]
        for _ in range(max(phones // 4, 1)):
            quiet = chain(ends_of_word, [silence])
            ends_of_word = chain(
                ends_of_word + quiet, [int(v) for v in rng.integers(1, num_labels, 12)]
            )
        ends_of_word += chain(ends_of_word, [silence])
        mine += [(s, count, label) for s, t, label in mine if t in ends_of_word]
        edges += [(s + offset, t + offset, label, b) for s, t, label in mine]
        ends.append((offset, offset + count))
        offset += count + 1
    table = np.array(edges, np.uint32)
    weights = (3.0 * rng.random(len(table))).astype(np.float32)
    return EdgeList(np.ascontiguousarray(table.T), weights, np.array(ends, np.uint32).T.copy())


def chain() -> EdgeList:
    """0 -a-> 1 -b-> 2 with a loop on 1."""
    return EdgeList(
        np.array([[0, 1, 1], [1, 1, 2], [0, 1, 2], [0, 0, 0]], np.uint32),
        np.zeros(3, np.float32),
        np.array([[0], [2]], np.uint32),
    )


def ctc_like(labels: np.ndarray, label_lengths: np.ndarray, blank: int = 0) -> EdgeList:
    """The CTC topology (Graves et al. 2006) with weight 0 everywhere, one end state added."""
    edges, ends, offset = [], [], 0
    for b, (row, length) in enumerate(zip(labels, label_lengths, strict=True)):
        emit = [blank]
        for label in row[:length]:
            emit += [int(label), blank]
        end = len(emit) + 1
        for i, label in enumerate(emit):  # state i + 1 emits emit[i]
            before = [i, i + 1]
            if i >= 2 and label != blank and label != emit[i - 2]:
                before.append(i - 1)
            if i == 1:
                before.append(0)
            before = sorted({s for s in before if s > 0 or i <= 1})
            edges += [(offset + s, offset + i + 1, label, b) for s in before]
            if i >= len(emit) - 2:
                edges += [(offset + s, offset + end, label, b) for s in before]
        ends.append((offset, offset + end))
        offset += end + 1
    table = np.array(edges, np.uint32)
    return EdgeList(
        np.ascontiguousarray(table.T),
        np.zeros(len(table), np.float32),
        np.array(ends, np.uint32).T.copy(),
    )
