"""The transducer from allophone states to phonemes.

Its states are the boundaries between phones: which phonemes lie on both sides as far as the context
reaches, and whether a word begins or ends there.  So a path through it is a sequence of phones that
fit to each other.  Between two boundaries lie the states of one phone.

Facts from RASR's sources (`Am::ClassicTransducerBuilder`).  Its peculiarities are kept, because the
automata depend on them: without any context all word ends lead back to one start, but only those
that were met after the start (so a silence that comes first in the lexicon may have no way on); a
phone without context on one side may be followed by any phone that has none, which
``fix-allophone-context-at-word-boundaries`` confines to silence and its like.

One difference: where, for the same reason, not a single word has a way on (without context and
without that fix, and a pronunciation of one phoneme first in the lexicon), RASR crashes whatever
is asked.  Here the words get their way on.
"""

from __future__ import annotations

from jax_sprint.embedded.allophones import (
    FINAL,
    INITIAL,
    WORD_END,
    Allophone,
    AllophoneAlphabet,
    state_label,
)
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.fsa import EPSILON, Arc, Fsa, MatchSide, need_behind
from jax_sprint.embedded.hmm_topology import HmmTopology

__all__ = ["build_context_transducer"]

_WORD_STARTS = 1
_WORD_ENDS = 2
_NO_CONTEXT = 4

_Boundary = tuple[tuple[int, ...], tuple[int, ...], int]


def build_context_transducer(
    config: Configuration, alphabet: AllophoneAlphabet, topology: HmmTopology, word_end: int
) -> MatchSide:
    """Builds the transducer, grouped by what it writes.

    Args:
        config: of the ``acoustic-model``: ``fix-allophone-context-at-word-boundaries`` and
            ``transducer-builder-filter-out-invalid-allophones``, both no by default.
        alphabet: all of its allophones become part of it.
        topology: states per phone.
        word_end: the mark behind a word's last phoneme.

    Returns:
        What reads labels of allophone states (and `WORD_END`) and writes phonemes (and
        `word_end`).  State 0 is the start.
    """
    alphabet.add_from_lexicon()
    return _Builder(config, alphabet, topology, word_end).build()


class _Builder:
    def __init__(
        self,
        config: Configuration,
        alphabet: AllophoneAlphabet,
        topology: HmmTopology,
        word_end: int,
    ) -> None:
        self._alphabet = alphabet
        self._topology = topology
        self._word_end = word_end
        self._fix = config.get_bool("fix-allophone-context-at-word-boundaries", False)
        self._filter = config.get_bool("transducer-builder-filter-out-invalid-allophones", False)
        self._one_start = alphabet.history_length == 0 and alphabet.future_length == 0
        self._fsa = Fsa()
        self._start: int | None = None
        self._boundaries: dict[_Boundary, int] = {}
        self._suffixes: dict[tuple[int, int, int], int] = {}
        # Boundaries behind words that have no way on, and those where words (not silence) end.
        self._unlinked: list[int] = []
        self._word_ends: set[int] = set()
        # What must come behind a state: the phoneme (or word end) that its context foresees.
        self._needs: dict[int, int] = {}

    def build(self) -> MatchSide:
        for number, allophone in enumerate(self._alphabet.allophones):
            self._add(number, allophone)
        if self._start is None:
            return MatchSide.by_output(Fsa([[]], {}))
        if self._word_ends and self._word_ends <= set(self._unlinked):
            for state in self._unlinked:
                self._fsa.add_arc(state, self._start, WORD_END, self._word_end)
        side = MatchSide.by_output(_with_first(self._fsa, self._start))
        needs = [self._needs.get(state, 0) for state in range(len(self._fsa.arcs))]
        needs[0], needs[self._start] = needs[self._start], needs[0]
        side.prepare_lookahead(needs)
        return side

    def _add(self, number: int, allophone: Allophone) -> None:
        varies = self._alphabet.varies[allophone.central]
        boundary = allophone.boundary
        if self._filter and varies:
            if self._alphabet.history_length and not allophone.history and not boundary & INITIAL:
                return
            if self._alphabet.future_length and not allophone.future and not boundary & FINAL:
                return
        # RASR's compiler looks at the end before the start.
        end = self._end(allophone)
        if boundary & FINAL and allophone.central not in self._alphabet.silence_phonemes:
            self._word_ends.add(end)
        self._add_states(number, allophone, self._begin(allophone, False), end)
        if self._fix and boundary & INITIAL and not varies:
            self._add_states(number, allophone, self._begin(allophone, True), end)

    def _begin(self, allophone: Allophone, no_context: bool) -> int:
        future = (allophone.central, *allophone.future)[: self._alphabet.future_length]
        flags = 0
        if allophone.boundary & INITIAL:
            flags = _WORD_STARTS | (_NO_CONTEXT if no_context else 0)
        if not allophone.history:
            future = ()
        return self._boundary((allophone.history, future, flags))

    def _end(self, allophone: Allophone) -> int:
        history = (allophone.central, *allophone.history)[: self._alphabet.history_length]
        flags = 0
        if allophone.boundary & FINAL:
            flags = _WORD_ENDS
            if self._fix and not allophone.future and self._alphabet.varies[allophone.central]:
                flags |= _NO_CONTEXT
        if not allophone.future:
            history = ()
        return self._boundary((history, allophone.future, flags))

    def _boundary(self, boundary: _Boundary) -> int:
        state = self._boundaries.get(boundary)
        if state is not None:
            return state
        state = self._boundaries[boundary] = self._fsa.add_state()
        history, future, flags = boundary
        if flags & _WORD_STARTS:
            if not history and not future and flags == _WORD_STARTS:
                self._start = state
            if not future:
                self._fsa.finals[state] = 0.0
        if not flags and future:
            self._needs[state] = future[0]
        if flags & _WORD_ENDS:
            if self._one_start:
                target = self._start
            else:
                target = self._boundary((history, future, flags - _WORD_ENDS + _WORD_STARTS))
            self._needs[state] = self._word_end
            if future and not self._one_start:
                self._needs[state] = need_behind(self._word_end, future[0])
            if target is not None:
                self._fsa.add_arc(state, target, WORD_END, self._word_end)
            else:
                self._unlinked.append(state)
        return state

    def _add_states(self, number: int, allophone: Allophone, begin: int, end: int) -> None:
        fsa = self._fsa
        states = self._topology.states_of(allophone.central)
        repetitions = self._topology.repetitions_of(allophone.central)
        output = allophone.central
        source = begin
        last = states * repetitions - 1
        for i in range(last + 1):
            label = state_label(number, i // repetitions)
            if i == last:
                fsa.add_arc(source, end, label, output)
                return
            # What comes next is shared by all who lead to the same end.
            key = (number, i + 1, end)
            target = self._suffixes.get(key)
            shared = target is not None
            if target is None:
                target = self._suffixes[key] = fsa.add_state()
                self._needs[target] = self._needs.get(end, 0)
            fsa.add_arc(source, target, label, output)
            if shared:
                return
            output = EPSILON
            source = target


def _with_first(fsa: Fsa, start: int) -> Fsa:
    """Exchanges the numbers of state 0 and of `start`."""
    if start == 0:
        return fsa
    swap = {0: start, start: 0}
    arcs: list[list[Arc] | None] = [
        [(swap.get(t, t), label, output, cost) for t, label, output, cost in here or ()]
        for here in fsa.arcs
    ]
    arcs[0], arcs[start] = arcs[start], arcs[0]
    return Fsa(arcs, {swap.get(state, state): cost for state, cost in fsa.finals.items()})
