"""Two automata are the same up to the numbers of their states: a comparison that says where not.

And, independently of any kernel: the full-sum score of an automaton by dynamic programming in
double precision, and all label sequences of a length.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np


class Fsa(NamedTuple):
    """An automaton: edges [3, E] (from, to, emission), weights [E]; start 0, end n - 1."""

    num_states: int
    edges: np.ndarray
    weights: np.ndarray


def first_difference(ours: Fsa, theirs: Fsa, *, tolerance: float = 1e-5) -> str | None:
    """Where two automata first differ, in words; None if they are equal but for numbering.

    States are matched by what can be seen from them: the colours of all paths into them and out of
    them, refined until nothing changes.  Then the arcs between equally coloured states must be the
    same, weight by weight.
    """
    if ours.num_states != theirs.num_states:
        return f"{ours.num_states} states, expected {theirs.num_states}"
    if ours.edges.shape != theirs.edges.shape:
        return f"{ours.edges.shape[1]} arcs, expected {theirs.edges.shape[1]}"
    our_colours, their_colours = _colours(ours), _colours(theirs)
    for state, (a, b) in enumerate(zip(sorted(our_colours), sorted(their_colours), strict=True)):
        if a != b:
            theirs_only = set(their_colours) - set(our_colours)
            example = next((s for s, c in enumerate(their_colours) if c in theirs_only), None)
            return (
                f"state {state} in canonical order differs; e.g. state {example} of the expected "
                f"one, with arcs {_arcs_of(theirs, example)}, has no counterpart"
            )
    a, b = _arcs_by_colour(ours, our_colours), _arcs_by_colour(theirs, their_colours)
    for key in sorted(a.keys() | b.keys()):
        mine, other = sorted(a.get(key, [])), sorted(b.get(key, []))
        if len(mine) != len(other):
            return f"arcs with emission {key[2]}: {len(mine)} like this, expected {len(other)}"
        worst = max(abs(x - y) for x, y in zip(mine, other, strict=True))
        if not worst <= tolerance:
            return f"an arc with emission {key[2]} weighs {mine}, expected {other}"
    return None


def _colours(fsa: Fsa) -> list[tuple[int, int]]:
    """For each state a hash of what leads to it and of what leads on, weights left out."""
    outgoing: list[list[tuple[int, int]]] = [[] for _ in range(fsa.num_states)]
    incoming: list[list[tuple[int, int]]] = [[] for _ in range(fsa.num_states)]
    for source, target, emission in fsa.edges.T.tolist():
        outgoing[source].append((target, emission))
        incoming[target].append((source, emission))
    into = [0] * fsa.num_states
    onto = [0] * fsa.num_states
    # Numbers ascend along arcs (checked elsewhere), so one pass each way reaches the fixed point.
    for state in range(fsa.num_states):
        into[state] = _colour(state, incoming[state], into, state == 0)
    for state in range(fsa.num_states - 1, -1, -1):
        onto[state] = _colour(state, outgoing[state], onto, state == fsa.num_states - 1)
    return list(zip(into, onto, strict=True))


def _colour(state: int, arcs, colours: list[int], special: bool) -> int:
    seen = Counter((-1 if s == state else colours[s], emission) for s, emission in arcs)
    return hash((special, tuple(sorted(seen.items()))))


def _arcs_by_colour(fsa: Fsa, colours) -> dict[tuple, list[float]]:
    result: dict[tuple, list[float]] = {}
    for (s, t, emission), weight in zip(fsa.edges.T.tolist(), fsa.weights.tolist(), strict=True):
        result.setdefault((colours[s], colours[t], emission), []).append(weight)
    return result


def _arcs_of(fsa: Fsa, state: int | None):
    return [
        (s, t, e, round(w, 4))
        for (s, t, e), w in zip(fsa.edges.T.tolist(), fsa.weights.tolist(), strict=True)
        if state in (s, t)
    ]


def full_sum(fsa: Fsa, log_posteriors: np.ndarray) -> float:
    """-log of the summed probability of all paths, natural logarithm.

    Args:
        fsa: the automaton.
        log_posteriors: [T, L] float64.
    """
    score = np.full(fsa.num_states, -np.inf)
    score[0] = 0.0
    source, target, emission = fsa.edges.astype(np.int64)
    weights = fsa.weights.astype(np.float64)
    for frame in log_posteriors:
        new = np.full(fsa.num_states, -np.inf)
        np.logaddexp.at(new, target, score[source] + frame[emission] - weights)
        score = new
    return -float(score[-1])


def label_sequences(fsa: Fsa, length: int) -> dict[tuple[int, ...], float]:
    """Every sequence of `length` emissions, and -log of the summed probability of its paths."""
    arcs: list[list[tuple[int, int, float]]] = [[] for _ in range(fsa.num_states)]
    for (s, t, e), weight in zip(fsa.edges.T.tolist(), fsa.weights.tolist(), strict=True):
        arcs[s].append((t, e, weight))
    # How many arcs it takes at least from each state to the end.
    needed = [math.inf] * fsa.num_states
    needed[-1] = 0
    for state in range(fsa.num_states - 2, -1, -1):
        needed[state] = min((1 + needed[t] for t, _, _ in arcs[state] if t != state), default=9e9)
    beams: dict[tuple[int, ...], dict[int, float]] = {(): {0: 0.0}}
    for position in range(length):
        new: dict[tuple[int, ...], dict[int, float]] = {}
        for sequence, states in beams.items():
            for state, cost in states.items():
                for target, emission, weight in arcs[state]:
                    if needed[target] > length - position - 1:
                        continue
                    here = new.setdefault((*sequence, emission), {})
                    before = here.get(target, math.inf)
                    here[target] = -float(np.logaddexp(-before, -(cost + weight)))
        beams = new
    last = fsa.num_states - 1
    return {sequence: states[last] for sequence, states in beams.items() if last in states}
