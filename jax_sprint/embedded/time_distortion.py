"""Adds loops, skips and their penalties to a graph of allophone states.

The result's states remember the allophone state that was heard last, because that is what a loop
repeats.  A state that forgot it is called discharged.

Facts from RASR's sources (`Am::TransitionModel::apply`), all of which can be seen in its automata:

* in front of a word the set ``entry-m1`` is in force: the legacy applicator charges its forward
  penalty on entering and its skip penalty on skipping; the corrected one charges nothing at the
  very start, and later the forward penalty of what was heard before the boundary;
* leaving a word costs exit, on the arc with the boundary mark; a boundary cannot be skipped, nor
  can what stands right in front of it;
* where several ways come together and part again, the state is discharged first: forward is
  charged there, and by the corrected applicator once more on the next arc;
* a skip goes through an intermediate state, or straight on where only one arc follows that begins
  no word;
* states are found last in, first out, and the corrected applicator keeps for each the context of
  the arc that found it first.
"""

from __future__ import annotations

from operator import itemgetter

from jax_sprint.embedded.allophones import WORD_END
from jax_sprint.embedded.fsa import EPSILON, Arc, Fsa, coaccessible
from jax_sprint.embedded.transition_model import (
    ENTRY,
    FORBIDDEN,
    NO_PENALTIES,
    TransitionModel,
)

__all__ = ["LabelArc", "LabelGraph", "apply_time_distortion"]

LabelArc = tuple[int, int, float]
"""Label (`EPSILON` where nothing is heard), target state, cost."""


class LabelGraph:
    """An acceptor of labels of allophone states; state 0 is the start.

    Attributes:
        arcs: per state; None where a state was trimmed away.
        finals: cost of ending, by state.
    """

    __slots__ = ("arcs", "finals")

    def __init__(self, arcs: list[list[LabelArc] | None], finals: dict[int, float]) -> None:
        self.arcs = arcs
        self.finals = finals

    @property
    def num_states(self) -> int:
        """States have numbers below this."""
        return len(self.arcs)

    def state(self, state: int) -> tuple[list[LabelArc], float | None]:
        """The arcs of a state, and the cost of ending there (None if it is not final)."""
        return self.arcs[state] or [], self.finals.get(state)

    @classmethod
    def from_fsa(cls, fsa: Fsa) -> LabelGraph:
        """What a transducer reads, word boundaries left out."""
        arcs: list[list[LabelArc] | None] = []
        for here in fsa.arcs:
            if here is None:
                arcs.append(None)
                continue
            arcs.append([(EPSILON if a[1] == WORD_END else a[1], a[0], a[3]) for a in here])
        return cls(arcs, fsa.finals)


_LOOP, _FORWARD, _SKIP, _EXIT, _FINAL = 1, 2, 4, 8, 16
_WORD_START = _FORWARD | _SKIP | _EXIT | _FINAL
_HEARD = _WORD_START | _LOOP


_COST = itemgetter(2)

# In single precision nothing that one would add to the largest number changes it; twice that number
# is infinity, which RASR lets pass at first.
_LIMIT = FORBIDDEN * (1 - 1e-9)
_TWICE = FORBIDDEN * 1.5


class _Degrees:
    """How many arcs of which kind a state has, as far as it matters: none, one, many."""

    __slots__ = ("can_jump", "dead_end", "discharges")

    def __init__(self, arcs: list[list[Arc] | None]) -> None:
        incoming = [0] * len(arcs)
        for here in arcs:
            for target, label, _, _ in here or ():
                if label != EPSILON and label != WORD_END:
                    incoming[target] += 1
        self.dead_end: list[bool] = []
        self.can_jump: list[bool] = []
        self.discharges: list[bool] = []
        for state, here in enumerate(arcs):
            if here is not None and len(here) == 1:
                label = here[0][1]
                self.dead_end.append(label == WORD_END)
                self.can_jump.append(label >= 0 and label != WORD_END)
                self.discharges.append(False)
                continue
            ends = epsilons = emitting = 0
            for _, label, _, _ in here or ():
                if label == EPSILON:
                    epsilons += 1
                elif label == WORD_END:
                    ends += 1
                else:
                    emitting += 1
            self.dead_end.append(emitting + epsilons == 0)
            self.can_jump.append(False)
            self.discharges.append(incoming[state] > 1 and (emitting > 1 or ends > 1))


def apply_time_distortion(model: Fsa, transitions: TransitionModel) -> LabelGraph:
    """Adds loops, skips and penalties.

    Args:
        model: a graph of allophone states without loops, word boundaries marked `WORD_END`.
        transitions: the penalties, and which applicator is to be followed.

    Returns:
        A trimmed graph with epsilons.
    """
    return _Applicator(model, transitions).apply()


class _Applicator:
    def __init__(self, model: Fsa, transitions: TransitionModel) -> None:
        self._model = model
        self._transitions = transitions
        self._arcs: list[list[LabelArc] | None] = []
        self._finals: dict[int, float] = {}
        # Per state: what is allowed, what was heard, set of penalties, state of the model, and
        # (corrected applicator) what was heard before.
        self._records: list[tuple[int, int, int, int, int]] = []
        self._numbers: dict[tuple[int, int, int, int], int] = {}
        self._heard_numbers: dict[int, int] = {}
        self._stack: list[int] = []

    def _new(self, allowed: int, heard: int, penalties: int, right: int, context: int) -> int:
        number = len(self._arcs)
        self._arcs.append([])
        self._records.append((allowed, heard, penalties, right, context))
        self._stack.append(number)
        if allowed & _FINAL and right in self._model.finals:
            self._finals[number] = self._model.finals[right]
        return number

    def _silent(self, allowed: int, penalties: int, right: int, context: int) -> int:
        """The number of a state that remembers no label."""
        key = (allowed, EPSILON, penalties, right)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._new(*key, context)
        return number

    def _heard(self, label: int, right: int, context: int) -> int:
        """The number of a state that has just heard a label."""
        key = right << 31 | label
        number = self._heard_numbers.get(key)
        if number is None:
            penalties = self._transitions.type_of(label)
            number = self._new(_HEARD, label, penalties, right, context)
            self._heard_numbers[key] = number
        return number

    def _entering_costs(self, record: tuple[int, int, int, int, int]) -> tuple[float, float]:
        """Costs of forward and of skip from a state that remembers no label."""
        allowed, _, penalties, _, context = record
        transitions = self._transitions
        if not transitions.corrected:
            chosen = transitions.penalties(penalties)
            return chosen.forward, chosen.skip
        skip = 0.0
        if allowed & _SKIP:
            skip = transitions.penalties(transitions.type_of(context)).skip
        if context == EPSILON:
            return 0.0, skip
        return transitions.penalties(transitions.type_of(context)).forward, skip

    def apply(self) -> LabelGraph:
        model = self._model.arcs
        degrees = _Degrees(model)
        transitions = self._transitions
        all_arcs, records, stack = self._arcs, self._records, self._stack
        heard_numbers, heard_number = self._heard_numbers, self._heard
        self._silent(_WORD_START, ENTRY, 0, EPSILON)
        while stack:
            state = stack.pop()
            record = records[state]
            allowed, heard, penalties, right, _ = record
            result: list[LabelArc] = all_arcs[state]  # type: ignore[assignment]
            if heard != EPSILON:
                loop, forward, skip, leave = transitions.penalties(penalties)
                result.append((heard, state, loop))
                if degrees.discharges[right]:
                    self._discharge(record, result, forward)
                    continue
            else:
                forward, skip = self._entering_costs(record)
                leave = transitions.penalties(penalties).exit
            may_skip = allowed & _SKIP and skip < _LIMIT
            for target, label, _, cost in model[right]:  # type: ignore[union-attr]
                if label == WORD_END:
                    if allowed & _EXIT:
                        new = self._silent(_WORD_START, ENTRY, target, heard)
                        result.append((EPSILON, new, cost + leave))
                elif label == EPSILON:
                    new = self._silent(allowed & ~_LOOP, penalties, target, heard)
                    result.append((EPSILON, new, cost))
                else:
                    if allowed & _FORWARD:
                        found = heard_numbers.get(target << 31 | label)
                        if found is None:
                            found = heard_number(label, target, heard)
                        result.append((label, found, cost + forward))
                    if may_skip and not degrees.dead_end[target]:
                        self._skip(heard, target, cost + skip, degrees, result)
        return self._finished()

    def _discharge(self, record, result: list[LabelArc], forward: float) -> None:
        _, heard, penalties, right, _ = record
        result.append((EPSILON, self._silent(_FORWARD, NO_PENALTIES, right, heard), forward))
        result.append((EPSILON, self._silent(_SKIP | _EXIT, penalties, right, heard), 0.0))

    def _skip(self, heard: int, target: int, cost: float, degrees, result: list[LabelArc]) -> None:
        if degrees.can_jump[target]:
            beyond, label, output, more = self._model.arcs[target][0]  # type: ignore[index]
            if output == EPSILON:
                result.append((label, self._heard(label, beyond, heard), cost + more))
                return
        result.append((EPSILON, self._silent(_FORWARD, NO_PENALTIES, target, heard), cost))

    def _finished(self) -> LabelGraph:
        arcs = self._arcs
        # RASR overlooks the state that was made last.
        for state in range(len(arcs) - 1):
            here = arcs[state]
            if here and max(here, key=_COST)[2] >= _LIMIT:
                arcs[state] = [arc for arc in here if not _LIMIT <= arc[2] < _TWICE]
        alive = coaccessible(arcs, 1, self._finals)
        if not alive[0]:
            return LabelGraph([], {})
        if not all(alive):
            for state, here in enumerate(arcs):
                arcs[state] = [arc for arc in here or () if alive[arc[1]]] if alive[state] else None
        return LabelGraph(arcs, self._finals)
