"""Truths for automata that share no code with the builders: enumeration and a plain recursion."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest


def _paths(triple, frames):
    edges, weights, ends = (np.asarray(x) for x in triple)
    assert edges.dtype == np.uint32
    assert weights.dtype == np.float32
    assert ends.dtype == np.uint32
    result = []
    for b in range(ends.shape[1]):
        leaving = defaultdict(list)
        for (source, target, label, sequence), weight in zip(
            edges.T.tolist(), weights.tolist(), strict=True
        ):
            if sequence == b:
                leaving[source].append((target, label, weight))
        current = [(int(ends[0, b]), (), 0.0)]
        for _ in range(frames):
            current = [
                (target, (*string, label), total + weight)
                for state, string, total in current
                for target, label, weight in leaving[state]
            ]
        strings = defaultdict(list)
        for state, string, total in current:
            if state == int(ends[1, b]):
                strings[string].append(total)
        result.append({string: sorted(totals) for string, totals in strings.items()})
    return result


def _score(triple, log_probs):
    """-log of the sum over paths, one sequence, float64, `log_probs` [T, L]."""
    edges, weights, ends = triple
    assert ends.shape[1] == 1
    n_states = 1 + max(int(edges[:2].max(initial=0)), int(ends.max()))
    alpha = np.full(n_states, -np.inf)
    alpha[ends[0, 0]] = 0.0
    for frame in np.asarray(log_probs, np.float64):
        following = np.full(n_states, -np.inf)
        arcs = alpha[edges[0]] + frame[edges[2]] - weights.astype(np.float64)
        np.logaddexp.at(following, edges[1], arcs)
        alpha = following
    return -alpha[ends[1, 0]]


@pytest.fixture(scope="session")
def paths():
    """`paths(triple, T)`: of each sequence, every label string of T arcs with its paths' costs."""
    return _paths


@pytest.fixture(scope="session")
def score():
    """`score(triple, log_probs [T, L])`: the full sum over one automaton, by plain recursion."""
    return _score


@pytest.fixture(scope="session")
def one_golden(golden_dir):
    """`one_golden(name, tag)`: one automaton that the real RASR exported, its states from 0."""

    def load(name, tag):
        data = np.load(golden_dir / f"{name}.npz")
        b = data["tags"].tolist().index(tag)
        of_tag = data["edges"][3] == b
        ends = data["start_end_states"][:, b : b + 1]
        edges = data["edges"][:, of_tag].copy()
        edges[:2] -= ends[0, 0]
        edges[3] = 0
        return edges, data["weights"][of_tag], ends - ends[0, 0]

    return load
