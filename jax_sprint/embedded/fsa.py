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
from operator import itemgetter

__all__ = ["EPSILON", "Arc", "Fsa", "MatchSide", "coaccessible", "compose", "need_behind", "trim"]

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
        by_need: None, or per state and label the entries by what must come next (see
            `prepare_lookahead`), each with its position among the group's entries.
    """

    __slots__ = ("by_need", "epsilons", "far_looking", "finals", "groups")

    def __init__(
        self,
        epsilons: list[list[_Entry]],
        groups: list[dict[int, list[_Entry]]],
        finals: dict[int, float],
    ) -> None:
        self.epsilons = epsilons
        self.groups = groups
        self.finals = finals
        self.by_need: list[dict[int, dict[int, list[tuple[int, _Entry]]]]] | None = None
        self.far_looking: set[int] = set()

    def prepare_lookahead(self, needs: Sequence[int]) -> None:
        """Lets compositions leave out arcs behind which nothing fits.

        Args:
            needs: per state, what the other operand must offer next if the state is not to be a
                dead end: 0 for no condition, a label, or `need_behind(a, b)` for two labels.
        """
        self.far_looking = {need >> 32 for need in needs if need >> 32}
        self.by_need = []
        for groups in self.groups:
            sorted_out = {}
            for label, entries in groups.items():
                if len(entries) > 1:
                    by_need: dict[int, list[tuple[int, _Entry]]] = {}
                    for position, entry in enumerate(entries):
                        by_need.setdefault(needs[entry[0]], []).append((position, entry))
                    sorted_out[label] = by_need
            self.by_need.append(sorted_out)

    @classmethod
    def by_output(cls, fsa: Fsa) -> MatchSide:
        """The left operand of a composition: its outputs have to match."""
        return cls._group(
            [[(arc[2], (arc[0], arc[1], arc[3])) for arc in here or ()] for here in fsa.arcs],
            fsa.finals,
        )

    @classmethod
    def by_input(cls, fsa: Fsa) -> MatchSide:
        """The right operand of a composition: its inputs have to match."""
        return cls._group(
            [[(arc[1], (arc[0], arc[2], arc[3])) for arc in here or ()] for here in fsa.arcs],
            fsa.finals,
        )

    @classmethod
    def _group(cls, arcs: list[list[tuple[int, _Entry]]], finals: dict[int, float]) -> MatchSide:
        all_epsilons: list[list[_Entry]] = []
        all_groups: list[dict[int, list[_Entry]]] = []
        nothing: list[_Entry] = []
        for here in arcs:
            groups: dict[int, list[_Entry]] = {}
            for label, entry in sorted(here, key=itemgetter(0)) if len(here) > 1 else here:
                groups.setdefault(label, []).append(entry)
            all_epsilons.append(groups.pop(EPSILON, nothing))
            all_groups.append(groups)
        return cls(all_epsilons, all_groups, finals)


def need_behind(first: int, second: int) -> int:
    """The need for a label and then another one."""
    return first << 32 | second


class _Offers:
    """What comes next in the right operand of a composition, as needs that it meets."""

    def __init__(self, side: MatchSide, far_looking: set[int]) -> None:
        self._side = side
        self._far_looking = far_looking
        self._known: list[list[int] | None] = [None] * len(side.groups)

    def of(self, state: int) -> list[int]:
        offers = self._known[state]
        if offers is None:
            groups = self._side.groups
            offers = [0, *groups[state]]
            for label in self._far_looking & groups[state].keys():
                for entry in groups[state][label]:
                    offers += [need_behind(label, second) for second in groups[entry[0]]]
                offers = list(dict.fromkeys(offers))
            self._known[state] = offers
        return offers

    def pairs(
        self, by_need: dict[int, list[tuple[int, _Entry]]], others: list[_Entry], width: int
    ) -> list[tuple[int, int, int, float]]:
        """As `_pairs`, in the same order, without what leads nowhere."""
        found = []
        for place, (u, output, other_cost) in enumerate(others):
            for need in self.of(u):
                if need in by_need:
                    for position, (t, label, cost) in by_need[need]:
                        key = t * 3 * width + u
                        found.append((position, place, (key, label, output, cost + other_cost)))
        if len(found) > 1:
            found.sort(key=_POSITIONS)
        return [item[2] for item in found]


_POSITIONS = itemgetter(0, 1)


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
    by_need = left.by_need
    offers = _Offers(right, left.far_looking)
    stack = [0]
    while stack:
        state = stack.pop()
        if arcs[state] is not None:
            continue
        left_and_filter, r = divmod(keys[state], width)
        s, filtered = divmod(left_and_filter, 3)
        from_left, from_right = left_epsilons[s], right_epsilons[r]
        mine, yours = left_groups[s], right_groups[r]
        if filtered == 1 and not mine and len(from_left) == 1:  # inside a phone
            t, label, cost = from_left[0]
            key = (t * 3 + 1) * width + r
            target = numbers.get(key)
            if target is None:
                target = numbers[key] = len(keys)
                keys.append(key)
                arcs.append(None)
            if arcs[target] is None:
                stack.append(target)
            arcs[state] = [(target, label, EPSILON, cost)]
            if s in left_finals and r in right_finals:
                finals[state] = left_finals[s] + right_finals[r]
            continue
        found: list[tuple[int, int, int, float]] = []  # key of the target instead of its number
        if from_left and (filtered == 1 or (filtered == 0 and (yours or r in right_finals))):
            for t, label, cost in from_left:
                found.append(((t * 3 + 1) * width + r, label, EPSILON, cost))
        if from_right:
            if filtered == 2 or (filtered == 0 and (mine or s in left_finals)):
                for t, output, cost in from_right:
                    found.append(((s * 3 + 2) * width + t, EPSILON, output, cost))
            if from_left and filtered == 0:
                found += _pairs(from_left, from_right, width)
        if mine and yours:
            if by_need is None and len(mine) <= len(yours):
                for label, entries in mine.items():
                    others = yours.get(label)
                    if others is not None:
                        found += _pairs(entries, others, width)
            else:
                for label, others in yours.items():
                    matching = mine.get(label)
                    if matching is None:
                        continue
                    if by_need is not None and label in by_need[s]:
                        found += offers.pairs(by_need[s][label], others, width)
                    else:
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
