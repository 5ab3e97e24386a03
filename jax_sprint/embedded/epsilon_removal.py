"""Removal of epsilon arcs from an acceptor, the way RASR does it.

For every state, what its epsilons lead to is pulled in front of them: first its own arcs, sorted by
label and target, then those of every state in its epsilon closure, by number.  An arc that is
already there (same label, same target) is *mostly* merged: RASR searches its place by label and
cost, and merges only with what it finds there.  Parallel arcs that stay are merged on export, by
adding probabilities, where the tropical semiring would have taken the better one.  So the search
is repeated here step by step.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from operator import itemgetter

from jax_sprint.embedded.errors import AutomatonError
from jax_sprint.embedded.fsa import EPSILON
from jax_sprint.embedded.time_distortion import LabelArc, LabelGraph

__all__ = ["EpsilonFree", "log_add", "remove_epsilons"]

_LABEL_AND_TARGET = itemgetter(0, 1)


def log_add(a: float, b: float) -> float:
    """-log of the sum of two probabilities, given as -log; natural logarithm."""
    if a > b:
        a, b = b, a
    return a - math.log1p(math.exp(a - b)) if a < math.inf else a


class EpsilonFree:
    """A graph as it would be without its epsilons, worked out state by state.

    Args:
        graph: trimmed; states keep their numbers.
        log_semiring: whether alternatives add (else the better one counts).
    """

    def __init__(self, graph: LabelGraph, *, log_semiring: bool) -> None:
        self._arcs = graph.arcs
        self._finals = graph.finals
        self._collect = log_add if log_semiring else min
        self._sorted: list[list[LabelArc] | None] = [None] * len(graph.arcs)

    def _sorted_arcs(self, state: int) -> list[LabelArc]:
        arcs = self._sorted[state]
        if arcs is None:
            arcs = self._arcs[state]
            if len(arcs) > 1:  # type: ignore[arg-type]
                arcs = sorted(arcs, key=_LABEL_AND_TARGET)  # type: ignore[arg-type]
            self._sorted[state] = arcs
        return arcs  # type: ignore[return-value]

    @property
    def num_states(self) -> int:
        """States have numbers below this."""
        return len(self._arcs)

    def state(self, state: int) -> tuple[list[LabelArc], float | None]:
        """The arcs of a state without epsilons, and its final cost."""
        arcs = self._sorted_arcs(state)
        final = self._finals.get(state)
        if not arcs or arcs[0][0] != EPSILON:
            return arcs, final
        result = [arc for arc in arcs if arc[0] != EPSILON]
        labels = [arc[0] for arc in result]
        for other, distance in sorted(self._closure(state).items()):
            for label, target, cost in self._sorted_arcs(other):
                if label != EPSILON:
                    self._insert(result, labels, label, target, distance + cost)
            end = self._finals.get(other)
            if end is not None:
                final = distance + end if final is None else self._collect(final, distance + end)
        return result, final

    def _insert(self, arcs, labels: list[int], label: int, target: int, cost: float) -> None:
        place = bisect_left(labels, label)
        if place < len(labels) and labels[place] == label:
            place = _lower_bound(arcs, label, cost)
            if place < len(arcs) and labels[place] == label and arcs[place][1] == target:
                arcs[place] = (label, target, self._collect(arcs[place][2], cost))
                return
        arcs.insert(place, (label, target, cost))
        labels.insert(place, label)

    def _closure(self, start: int) -> dict[int, float]:
        """Cost of reaching each other state by epsilons alone."""
        distances: dict[int, float] = {start: 0.0}
        pending: dict[int, float] = {start: 0.0}
        queue = [start]
        collect = self._collect
        turns = 0
        for state in queue:
            turns += 1
            if turns > 1000 * (len(distances) + 1):
                raise AutomatonError(
                    "states that hear nothing form a cycle, which has no finite sum; is there a "
                    "lemma, other than silence, with an empty orthography?"
                )
            gained = pending.pop(state, None)
            if gained is None:
                continue
            for label, target, cost in self._sorted_arcs(state):
                if label != EPSILON:
                    break
                extended = gained + cost
                old = distances.get(target)
                new = extended if old is None else collect(old, extended)
                if old is None or abs(new - old) > 1e-7 * max(abs(old), 1e-30):
                    distances[target] = new
                    waiting = pending.get(target)
                    pending[target] = extended if waiting is None else collect(waiting, extended)
                    queue.append(target)
        del distances[start]
        return distances


def _lower_bound(arcs: list[LabelArc], label: int, cost: float) -> int:
    """The first place at which an arc of this label and cost could be inserted in order."""
    low, high = 0, len(arcs)
    while low < high:
        middle = (low + high) // 2
        other_label, _, other_cost = arcs[middle]
        # Costs that differ by rounding only are the same to RASR.
        if other_label < label or (
            other_label == label and other_cost < cost - 2e-7 * max(abs(cost), abs(other_cost))
        ):
            low = middle + 1
        else:
            high = middle
    return low


def remove_epsilons(graph: LabelGraph, *, log_semiring: bool) -> LabelGraph:
    """An equivalent graph without epsilons.

    Args:
        graph: trimmed; states keep their numbers.
        log_semiring: whether alternatives add (else the better one counts).

    Returns:
        The part that can be reached, arcs not sorted anew; other states have None for arcs.

    Raises:
        AutomatonError: an epsilon cycle that gains by every turn.
    """
    free = EpsilonFree(graph, log_semiring=log_semiring)
    arcs: list[list[LabelArc] | None] = [None] * len(graph.arcs)
    finals: dict[int, float] = {}
    stack = [0]
    while stack:
        state = stack.pop()
        if arcs[state] is not None:
            continue
        here, final = free.state(state)
        arcs[state] = here
        if final is not None:
            finals[state] = final
        stack += [arc[1] for arc in here if arcs[arc[1]] is None]
    return LabelGraph(arcs, finals)
