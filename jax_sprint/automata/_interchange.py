"""Single automata with states from 0 on, in between `Automata` and the formats of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_sprint.automata._automata import Automata

__all__ = ["Part", "assemble", "join", "ordered", "split"]


@dataclass(frozen=True)
class Part:
    """One automaton, its states numbered from 0.

    Attributes:
        table: `[3, E] int64`, from, to, emission.
        weights: `[E] float32`.
        start: start state.
        end: end state.
        num_states: one more than the highest state.
    """

    table: np.ndarray
    weights: np.ndarray
    start: int
    end: int
    num_states: int


def join(parts: list[Part], num_labels: int | None, pad_to: Any) -> Automata:
    """A batch of the given automata, in their order."""
    parts = [part if part.start <= part.end else ordered(part) for part in parts]
    sizes = np.asarray([part.num_states for part in parts], np.int64)
    offset = np.cumsum(sizes) - sizes
    edges = [np.zeros((4, 0), np.int64)]
    for b, part in enumerate(parts):
        sequence = np.full((1, part.weights.size), b)
        states = part.table[:2] + offset[b]
        edges.append(np.concatenate([states, part.table[2:], sequence]))
    ends = [(part.start + o, part.end + o) for part, o in zip(parts, offset.tolist(), strict=True)]
    return Automata.from_edges(
        np.concatenate(edges, axis=1).astype(np.uint32),
        np.concatenate([np.zeros(0, np.float32), *(part.weights for part in parts)]),
        np.asarray(ends, np.uint32).reshape(-1, 2).T.copy(),
        num_labels=num_labels,
        pad_to=pad_to,
    )


def split(automata: Automata) -> list[Part]:
    """The automata of a batch one by one, edges and states in their order."""
    edges, weights, ends = automata.to_edges()
    result = []
    for b in range(ends.shape[1]):
        here = edges[3] == b
        table = edges[:3, here].astype(np.int64)
        states, numbers = np.unique(
            np.concatenate([table[0], table[1], ends[:, b].astype(np.int64)]), return_inverse=True
        )
        numbers = numbers.reshape(-1)
        table[:2] = numbers[:-2].reshape(2, -1)
        start, end = int(numbers[-2]), int(numbers[-1])
        result.append(Part(table, weights[here], start, end, states.size))
    return result


def ordered(part: Part) -> Part:
    """The same automaton with the start state first and the end state last."""
    key = np.ones(part.num_states, np.int64)
    key[part.end] = 2
    key[part.start] = 0
    number = np.empty(part.num_states, np.int64)
    number[np.argsort(key, kind="stable")] = np.arange(part.num_states)
    table = np.concatenate([number[part.table[:2]], part.table[2:]])
    start, end = int(number[part.start]), int(number[part.end])
    return Part(table, part.weights, start, end, part.num_states)


def assemble(arcs: list[tuple[int, int, int, float]], start: int, finals: dict[int, float]) -> Part:
    """One automaton from arcs, a start state, and end states with costs."""
    table = np.asarray([arc[:3] for arc in arcs], np.int64).reshape(-1, 3).T
    weights = np.asarray([arc[3] for arc in arcs], np.float32)
    top = 1 + max(start, int(table[:2].max(initial=0)), *finals, 0)
    if list(finals.values()) == [0.0]:
        return Part(table, weights, start, next(iter(finals)), top)
    cost = np.full(top, np.inf, np.float64)
    cost[list(finals)] = list(finals.values())
    closing = np.flatnonzero(cost[table[1]] < np.inf)
    copies = table[:, closing].copy()
    added = (weights[closing] + cost[copies[1]]).astype(np.float32)
    copies[1] = top
    return Part(
        np.concatenate([table, copies], axis=1),
        np.concatenate([weights, added]),
        start,
        top,
        top + 1,
    )
