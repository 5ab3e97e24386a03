"""Both forms of the recursions' sweep: one after the other (CPU), and as one batch (elsewhere)."""

from __future__ import annotations

import jax
import numpy as np
import oracles
import pytest

from jax_sprint import Automata
from jax_sprint.kernels import _inputs, _occupancy, _recursion, _scores
from jax_sprint.kernels._semirings import LOG, SCALED


@pytest.mark.slow
@pytest.mark.parametrize("form", ["band", "tables"])
@pytest.mark.parametrize("semiring", [SCALED, LOG], ids=["scaled", "log"])
def test_both_forms_agree(form: str, semiring, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    edges = oracles.hmm_like(rng, 5, 1, 6) if form == "band" else oracles.random_automata(rng, 5)
    automata = Automata.from_edges(*edges, pad_to={"band": 0} if form == "tables" else None)
    assert (automata.in_node is None) == (form == "band")
    lengths = np.array([21, 14, 0, 1, 2])
    x = rng.normal(size=(21, 5, 9)).astype(np.float32)

    def counts(at_once: bool) -> _occupancy.Occupancy:
        monkeypatch.setattr(_recursion, "at_once", lambda: at_once)

        @jax.jit
        def run(x, lengths, automata):
            one, none = np.float32(1), np.float32(0)
            problem = _inputs.prepare(21, 9, np.float32, lengths, automata, one, one, None, none)
            scores = _scores.node_scores(0, x, problem)
            links, _ = _scores.clean(problem.links)
            return _occupancy._counts(
                semiring, scores.node, scores.last, links, problem.graph, problem.real
            )

        return run(x, lengths, automata)

    found, wanted = counts(True), counts(False)
    assert np.isfinite(wanted.log_total).any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)
