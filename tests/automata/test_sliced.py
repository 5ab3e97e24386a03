"""The sliced tables of a shared automaton: their size, and where they stand in for padded ones."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

from jax_sprint import Automata, forward_backward
from jax_sprint.automata._sliced import Sliced


def entries(sliced: Sliced) -> dict[str, int]:
    """Number of table entries per recursion, padding included."""

    def count(table) -> int:
        if table is None:
            return 0
        own = sum(part.source.size for part in (*table.slices, *table.pieces))
        return own + count(table.deep)

    return {name: count(getattr(sliced, name)) for name in ("single", "multi", "leaving")}


def test_tables_are_linear_in_the_edges_and_edges_come_back() -> None:
    """In-degrees from 1 to 500: the padded tables of a batch would hold 250 entries per edge."""
    rng = np.random.default_rng(9)
    degree = np.minimum(1 + rng.pareto(1.0, 2000).astype(int), 500)
    target = np.repeat(np.arange(1, 2001), degree)
    source = rng.integers(0, 2001, len(target))
    edges = np.stack([source, target, target % 300, 0 * target]).astype(np.uint32)
    weights = rng.random(len(target)).astype(np.float32)
    ends = np.array([[0], [2000]], np.uint32)
    automata = Automata.from_edges(edges, weights, ends, shared=True)
    assert automata.in_arc is None
    count = entries(automata.sliced)
    assert count["multi"] == 0
    assert count["single"] < 1.5 * len(target) + 500
    assert count["leaving"] < 1.5 * len(target) + 500
    for one, other in zip(automata.to_edges(), (edges, weights, ends), strict=True):
        np.testing.assert_array_equal(one, other)
    assert automata.shared() is automata
    assert automata.batch_size == 1


def test_shared_tables_of_a_batch_stay_where_they_are_small() -> None:
    small = Automata.from_edges(*oracles.chain()).shared()
    assert small.in_arc is not None
    assert small.sliced is not None
    graph = oracles.hmm_like(np.random.default_rng(0), 2, 1, 4)
    with pytest.raises(ValueError, match="shared=True needs one automaton, got 2"):
        Automata.from_edges(*graph, shared=True)
    lean = Automata.from_edges(*oracles.chain(), shared=True)
    with pytest.raises(ValueError, match="padded tables of a batch"):
        forward_backward(
            np.zeros((4, 1, 3), np.float32), np.array([4]), lean, return_occupancies=True
        )
