"""Shared automata of one shape, whatever their edges are: tests compile once for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import oracles

from jax_sprint import Automata
from jax_sprint.automata._sliced import slice_automaton


def shared(graph: oracles.EdgeList, sizes: Mapping[str, int]) -> Automata:
    """The automaton of one sequence, padded to `sizes`, with slices of all degrees.

    Rows of more than 8 entries get tables of their own, and with these another shape.
    """
    one = Automata.from_edges(*graph, pad_to=sizes).shared()
    sliced = slice_automaton(
        np.asarray(one.edge_from),
        np.asarray(one.edge_to),
        np.asarray(one.edge_emission),
        len(graph.weights),
        np.asarray(one.start_states),
        np.asarray(one.end_states),
        int(one.num_states),
        every=True,
    )
    return dataclasses.replace(one, sliced=sliced, slot_label=sliced.slot_label)
