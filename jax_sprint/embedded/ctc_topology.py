"""Blank labels between the labels of a graph: the CTC and RNA topologies.

``ctc``: every label may last, and any number of blanks may stand before each label and behind the
last; between two labels of the same emission at least one must.  ``rna``: a label lasts exactly one
frame, and blanks may stand anywhere.

Facts from RASR's sources (`Speech::CTCTopologyGraphBuilder`, `RNATopologyGraphBuilder`).  New
states are numbered behind the old ones, and new arcs come behind the old ones of their state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from jax_sprint.embedded.errors import AutomatonError
from jax_sprint.embedded.time_distortion import LabelGraph
from jax_sprint.embedded.transition_model import is_forbidden

__all__ = ["add_ctc_blanks", "add_rna_blanks"]


def add_ctc_blanks(graph: LabelGraph, blank: int, emission: Callable[[int], int]) -> LabelGraph:
    """Adds blanks to a graph whose labels have loops.

    Args:
        graph: without epsilons; changed in place.
        blank: label of the blank's allophone state.
        emission: the emission of a label.

    Raises:
        AutomatonError: a state that repeats two different labels.
    """
    arcs, finals = graph.arcs, graph.finals
    arcs[:] = [None if here is None else list(here) for here in arcs]
    end: int | None = None
    new_finals: dict[int, float] = {}
    done: set[int] = set()
    queue = deque([0])
    while queue:
        state = queue.popleft()
        if state in done:
            continue
        done.add(state)
        here = arcs[state]
        assert here is not None  # only living states are reached
        loops = [label for label, target, _ in here if target == state and label != blank]
        if len(loops) > 1:
            raise AutomatonError(
                "two labels repeat in the same state, so the CTC topology cannot tell which of "
                "them a blank must follow; is there a lemma, other than silence, with an empty "
                "orthography?"
            )
        for position in range(len(here)):
            label, target, cost = here[position]
            queue.append(target)
            if target == state or label == blank or is_forbidden(cost):
                continue
            number = len(arcs)
            arcs.append([(blank, number, 0.0), (label, target, cost)])
            if loops and emission(label) == emission(loops[0]):
                here[position] = (blank, number, 0.0)
            else:
                here.append((blank, number, 0.0))
        if state in finals:
            if end is None:
                end = len(arcs)
                arcs.append([(blank, end, 0.0)])
                new_finals[end] = 0.0
            here.append((blank, end, 0.0))
    finals.update(new_finals)
    return graph


def add_rna_blanks(graph: LabelGraph, blank: int) -> LabelGraph:
    """Adds a loop of blanks to every state of a graph without loops, in place.

    Args:
        graph: without epsilons.
        blank: label of the blank's allophone state.

    Raises:
        AutomatonError: the graph has a loop.
    """
    for state, here in enumerate(graph.arcs):
        if here is None:
            continue
        if any(target == state for _, target, _ in here):
            raise AutomatonError(
                "the RNA topology needs a graph without loops, but silence may be repeated; set "
                "allow-for-silence-repetitions = no"
            )
        graph.arcs[state] = [*here, (blank, state, 0.0)]
    return graph
