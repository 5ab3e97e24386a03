"""From a graph of labels to the arrays that RASR exports.

Facts from RASR's sources (`Nn::AllophoneStateFsaExporter`): states are sorted topologically, the
smallest of those that have no way in left first; arcs by the distance of their states, then target,
then source; neighbouring arcs with the same states and emission are merged by adding their
probabilities; arcs of infinite cost are left out.  There is one final state, the last one: unless
the only final state came last before the sorting and ends for free, a new state is made, and every
arc into a final state is repeated into the new one, with the cost of ending added.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol

import numpy as np

from jax_sprint.embedded.errors import AutomatonError
from jax_sprint.embedded.std_sort import unstable_order
from jax_sprint.embedded.time_distortion import LabelArc
from jax_sprint.embedded.transition_model import FORBIDDEN

__all__ = ["Automaton", "export"]

_LABEL_AND_TARGET = itemgetter(0, 1)
_LIMIT = FORBIDDEN * (1 - 1e-9)


@dataclass(frozen=True)
class Automaton:
    """What the callback's ``export_allophone_state_fsa_by_...`` returns.

    Attributes:
        num_states: the start is state 0, the only final state is ``num_states - 1``.
        edges: [3, E] uint32: from, to, emission.
        weights: [E] float32, -log, natural logarithm.
    """

    num_states: int
    edges: np.ndarray
    weights: np.ndarray

    @property
    def num_edges(self) -> int:
        """Number of arcs."""
        return self.edges.shape[1]


class _Graph(Protocol):
    """A graph without epsilons; state 0 is the start."""

    @property
    def num_states(self) -> int:
        """States have numbers below this."""

    def state(self, state: int) -> tuple[list[LabelArc], float | None]:
        """Arcs and final cost of a state."""


def export(graph: _Graph, emission: Callable[[int], int]) -> Automaton:
    """Exports a graph without epsilons.

    Args:
        graph: only what can be reached from its start is exported.
        emission: the emission of a label.

    Raises:
        AutomatonError: no path, or a cycle of more than one state.
    """
    source, target, emissions, weights, finals, states = _numbered(graph, emission)
    if not len(source) or not finals:
        raise AutomatonError(
            "the automaton is empty: no sequence of allophone states is possible for this "
            "orthography with these penalties"
        )
    rank = _topological(source, target, states)
    source, target = rank[source], rank[target]
    source, target, emissions, weights = _sorted(source, target, emissions, weights)
    final_costs = {int(rank[state]): cost for state, cost in finals.items()}
    if final_costs != {int(rank[-1]): 0.0}:
        ends = np.full(states, np.nan)
        ends[list(final_costs)] = list(final_costs.values())
        more = ends[target]
        picked = np.nonzero(~np.isnan(more))[0]
        more = more[picked]
        source = np.concatenate([source, source[picked]])
        target = np.concatenate([target, np.full(len(picked), states)])
        emissions = np.concatenate([emissions, emissions[picked]])
        weights = np.concatenate([weights, weights[picked] + more])
        states += 1
    edges = np.stack([source, target, emissions]).astype(np.uint32)
    return Automaton(states, edges, weights.astype(np.float32))


def _numbered(graph: _Graph, emission: Callable[[int], int]):
    """Numbers the states as they are found depth first, the last arc of a state explored first.

    Returns:
        source, target, emission, cost of the arcs, by source; final costs; number of states.
    """
    count = graph.num_states
    numbers = [-1] * count
    numbers[0] = 0
    order = [0]
    visited: list[list[LabelArc] | None] = [None] * count
    finals: dict[int, float] = {}
    stack = [0]
    while stack:
        state = stack.pop()
        if visited[state] is not None:
            continue
        arcs, final = graph.state(state)
        if final is not None:
            finals[numbers[state]] = final
        if len(arcs) > 1 and (len(arcs) > 2 or arcs[0][:2] > arcs[1][:2]):
            arcs = sorted(arcs, key=_LABEL_AND_TARGET)
        visited[state] = arcs
        for arc in arcs:
            target = arc[1]
            if numbers[target] < 0:
                numbers[target] = len(order)
                order.append(target)
                stack.append(target)
            elif visited[target] is None:
                stack.append(target)
    by_number = [visited[state] or [] for state in order]
    flat = [arc for arcs in by_number for arc in arcs if arc[2] < _LIMIT]
    if len(flat) == sum(map(len, by_number)):
        kept = [len(arcs) for arcs in by_number]
    else:
        kept = [sum(arc[2] < _LIMIT for arc in arcs) for arcs in by_number]
    emission_of = {label: emission(label) for label in {arc[0] for arc in flat}}
    return (
        np.repeat(np.arange(len(kept)), kept),
        np.array([numbers[arc[1]] for arc in flat], dtype=np.int64),
        np.array([emission_of[arc[0]] for arc in flat], dtype=np.int64),
        np.array([arc[2] for arc in flat], dtype=np.float64),
        finals,
        len(order),
    )


def _topological(source: np.ndarray, target: np.ndarray, states: int) -> np.ndarray:
    """New numbers of the states, such that no arc leads backwards."""
    if (source <= target).all():
        return np.arange(states)
    real = source != target
    followers: list[list[int]] = [[] for _ in range(states)]
    incoming = [0] * states
    for a, b in zip(source[real].tolist(), target[real].tolist(), strict=True):
        followers[a].append(b)
        incoming[b] += 1
    ready = [state for state in range(states) if incoming[state] == 0]
    rank = np.full(states, -1)
    count = 0
    while ready:
        state = heapq.heappop(ready)
        rank[state] = count
        count += 1
        for follower in followers[state]:
            incoming[follower] -= 1
            if incoming[follower] == 0:
                heapq.heappush(ready, follower)
    if count < states:
        raise AutomatonError(
            "the automaton has a cycle of several states, so it cannot be exported; a lemma other "
            "than the special lemma 'silence' with an empty orthography makes one: remove its "
            "empty <orth>, or set allow-for-silence-repetitions = no if silence has several states"
        )
    return rank


def _sorted(source, target, emissions, weights):
    """Sorts arcs as RASR does, and merges the equal ones that are neighbours then."""
    order = np.lexsort((source, target, target - source))
    s, t = source[order], target[order]
    differs = (s[1:] != s[:-1]) | (t[1:] != t[:-1])
    if not differs.all():
        # The order of arcs between the same two states decides what is merged below.
        keys = np.zeros(len(order), dtype=np.int64)
        keys[order[1:]] = np.cumsum(differs)
        order = np.array(unstable_order(keys.tolist()))
        s, t = source[order], target[order]
    e, w = emissions[order], weights[order]
    new = np.concatenate([[True], (s[1:] != s[:-1]) | (t[1:] != t[:-1]) | (e[1:] != e[:-1])])
    if not new.all():
        w = -np.logaddexp.reduceat(-w, np.nonzero(new)[0])
    return s[new], t[new], e[new], w
