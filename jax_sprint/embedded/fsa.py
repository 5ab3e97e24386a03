"""The few operations on weighted automata that turn a spelling into an automaton.

All weights are costs, that is -log; the tropical semiring takes the smaller of two, the log
semiring adds their probabilities.  States are small integers; an automaton's initial state has
number 0.  The *order* of states and arcs is part of what these functions promise: it decides which
parallel arcs an export merges, so it follows RASR's (depth first, the last arc of a state
explored first, new states numbered when an arc to them is first seen).

Facts from RASR's sources: composition with the "matching" epsilon filter (three filter states;
an epsilon of one side is not taken after one of the other), sorting that keeps the order of
equals, trimming that keeps the numbers of what remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["EPSILON", "Arc", "Fsa", "MatchSide", "coaccessible", "compose", "trim"]

EPSILON = -1
"""The label of arcs that consume nothing; it sorts before every other label."""

Arc = tuple[int, int, int, float]
"""Target state, input label, output label, cost."""

_Entry = tuple[int, int, float]


@dataclass
class Fsa:
    """A transducer, or an acceptor whose arcs have equal input and output labels.

    Attributes:
        arcs: `arcs[s]` leave state s; None where a state was trimmed away.
        finals: cost of ending in a final state, by state.
    """

    arcs: list[list[Arc] | None] = field(default_factory=list)
    finals: dict[int, float] = field(default_factory=dict)

    def add_state(self) -> int:
        """Adds a state without arcs and returns its number."""
        self.arcs.append([])
        return len(self.arcs) - 1

    def add_arc(self, source: int, target: int, label: int, output: int, cost: float = 0.0) -> None:
        """Appends an arc to those of `source`."""
        self.arcs[source].append((target, label, output, cost))  # type: ignore[union-attr]


class MatchSide:
    """One operand of a composition, its arcs grouped by the label that has to match.

    Attributes:
        epsilons: per state, the arcs whose matching label is epsilon.
        groups: per state, the other arcs by label, labels ascending.  An entry is
            (target, label of the other tape, cost).
        finals: as in `Fsa`.
    """

    __slots__ = ("epsilons", "finals", "groups")

    def __init__(
        self,
        epsilons: list[list[_Entry]],
        groups: list[dict[int, list[_Entry]]],
        finals: dict[int, float],
    ) -> None:
        self.epsilons = epsilons
        self.groups = groups
        self.finals = finals

    @classmethod
    def by_output(cls, fsa: Fsa) -> MatchSide:
        """The left operand of a composition: its outputs have to match."""
        return cls._group(fsa, 2, 1)

    @classmethod
    def by_input(cls, fsa: Fsa) -> MatchSide:
        """The right operand of a composition: its inputs have to match."""
        return cls._group(fsa, 1, 2)

    @classmethod
    def _group(cls, fsa: Fsa, matching: int, other: int) -> MatchSide:
        all_epsilons: list[list[_Entry]] = []
        all_groups: list[dict[int, list[_Entry]]] = []
        nothing: list[_Entry] = []
        for arcs in fsa.arcs:
            if arcs and len(arcs) == 1:
                arc = arcs[0]
                entries = [(arc[0], arc[other], arc[3])]
                if arc[matching] == EPSILON:
                    all_epsilons.append(entries)
                    all_groups.append({})
                else:
                    all_epsilons.append(nothing)
                    all_groups.append({arc[matching]: entries})
                continue
            groups: dict[int, list[_Entry]] = {}
            for arc in sorted(arcs or (), key=lambda arc: arc[matching]):
                groups.setdefault(arc[matching], []).append((arc[0], arc[other], arc[3]))
            all_epsilons.append(groups.pop(EPSILON, nothing))
            all_groups.append(groups)
        return cls(all_epsilons, all_groups, fsa.finals)


def compose(left: MatchSide, right: MatchSide) -> Fsa:
    """Composes two transducers and trims the result.

    Args:
        left: maps what the result reads.
        right: maps what `left` writes to what the result writes.

    Returns:
        The composition, its states numbered as found depth first from the pair of initial states;
        no arcs at all if no path leads to a final pair.
    """
    width = max(len(right.epsilons), 1)
    # A state is a pair of states and what the filter remembers: whether the arc before was an
    # epsilon of the left (1) or of the right operand (2), or neither (0).
    numbers: dict[int, int] = {0: 0}
    keys = [0]
    arcs: list[list[Arc] | None] = [None]
    finals: dict[int, float] = {}
    left_epsilons, left_groups, left_finals = left.epsilons, left.groups, left.finals
    right_epsilons, right_groups, right_finals = right.epsilons, right.groups, right.finals
    stack = [0]
    while stack:
        state = stack.pop()
        if arcs[state] is not None:
            continue
        left_and_filter, r = divmod(keys[state], width)
        s, filtered = divmod(left_and_filter, 3)
        from_left, from_right = left_epsilons[s], right_epsilons[r]
        mine, yours = left_groups[s], right_groups[r]
        found: list[tuple[int, int, int, float]] = []  # key of the target instead of its number
        if from_left and (filtered == 1 or (filtered == 0 and (yours or r in right_finals))):
            if len(from_left) == 1:  # as inside a phone
                t, label, cost = from_left[0]
                found = [((t * 3 + 1) * width + r, label, EPSILON, cost)]
            else:
                for t, label, cost in from_left:
                    found.append(((t * 3 + 1) * width + r, label, EPSILON, cost))
        if from_right:
            if filtered == 2 or (filtered == 0 and (mine or s in left_finals)):
                for t, output, cost in from_right:
                    found.append(((s * 3 + 2) * width + t, EPSILON, output, cost))
            if from_left and filtered == 0:
                found += _pairs(from_left, from_right, width)
        if mine and yours:
            if len(mine) <= len(yours):
                for label, entries in mine.items():
                    others = yours.get(label)
                    if others is not None:
                        found += _pairs(entries, others, width)
            else:
                for label, others in yours.items():
                    matching = mine.get(label)
                    if matching is not None:
                        found += _pairs(matching, others, width)
        result: list[Arc] = []
        for key, label, output, cost in found:
            target = numbers.get(key)
            if target is None:
                target = numbers[key] = len(keys)
                keys.append(key)
                arcs.append(None)
                stack.append(target)
            elif arcs[target] is None:
                stack.append(target)
            result.append((target, label, output, cost))
        arcs[state] = result
        if s in left_finals and r in right_finals:
            finals[state] = left_finals[s] + right_finals[r]
    return trim(Fsa(arcs, finals))


def _pairs(
    entries: list[_Entry], others: list[_Entry], width: int
) -> list[tuple[int, int, int, float]]:
    return [
        (t * 3 * width + u, label, output, cost + other_cost)
        for t, label, cost in entries
        for u, output, other_cost in others
    ]


def coaccessible(arcs: Sequence[Sequence[tuple] | None], target: int, finals: Iterable[int]):
    """Which states lead to a final one.

    Args:
        arcs: per state its arcs; None for a state that does not exist.
        target: the position of the target state in an arc.
        finals: the final states.

    Returns:
        A list of bool, one per state.
    """
    alive = [False] * len(arcs)
    for state in finals:
        alive[state] = True
    # States are numbered roughly in the order of paths, so a few sweeps from the back do it mostly.
    waiting = [state for state in range(len(arcs) - 1, -1, -1) if arcs[state] and not alive[state]]
    for _ in range(4):
        rest = []
        for state in waiting:
            for arc in arcs[state]:  # type: ignore[union-attr]
                if alive[arc[target]]:
                    alive[state] = True
                    break
            else:
                rest.append(state)
        if len(rest) in (0, len(waiting)):
            return alive
        waiting = rest
    # What is left leads only to itself, to the dead, or (then it lives) to the living.
    sources: dict[int, list[int]] = {state: [] for state in waiting}
    stack = []
    for state in waiting:
        for arc in arcs[state]:  # type: ignore[union-attr]
            if alive[arc[target]]:
                stack.append(state)
            elif arc[target] in sources:
                sources[arc[target]].append(state)
    while stack:
        state = stack.pop()
        if not alive[state]:
            alive[state] = True
            stack += sources[state]
    return alive


def trim(fsa: Fsa) -> Fsa:
    """Removes, in place, what leads to no final state; the other states keep their numbers.

    All states of `fsa` must be reachable.  If state 0 dies, nothing is left.
    """
    arcs = fsa.arcs
    alive = coaccessible(arcs, 0, fsa.finals)
    if all(alive):
        return fsa
    if not alive or not alive[0]:
        fsa.arcs, fsa.finals = [], {}
        return fsa
    for state, here in enumerate(arcs):
        if not alive[state]:
            arcs[state] = None
        elif here:
            arcs[state] = [arc for arc in here if alive[arc[0]]]
    return fsa
