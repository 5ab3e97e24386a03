"""Both forms of the recursions' sweep: one after the other (CPU), and as one batch (elsewhere)."""

from __future__ import annotations

import re

import jax
import numpy as np
import oracles
import pytest

from jax_sprint import Automata, full_sum_loss
from jax_sprint.kernels import _inputs, _occupancy, _platform, _scores, _steps
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
        monkeypatch.setattr(_platform, "launches", lambda: at_once)

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


def packed(form: str, edges: oracles.EdgeList, labels: int) -> Automata:
    sizes = {"band": 0} if form == "tables" else None
    automata = Automata.from_edges(*edges, num_labels=labels, pad_to=sizes)
    assert (automata.in_node is None) == (form == "band")
    return automata


def losses(x, lengths, automata):
    def total(x):
        loss = full_sum_loss(x, lengths, automata)
        return loss.sum(), loss

    return jax.value_and_grad(total, has_aux=True)(x)


@pytest.mark.optimized
@pytest.mark.parametrize("form", ["band", "tables"])
def test_the_loops_copy_nothing_of_all_frames(form: str) -> None:
    """XLA copies what a loop carries and cannot overwrite: all frames of it, in each frame."""
    frames, batch, labels = 53, 3, 9
    automata = packed(form, oracles.hmm_like(np.random.default_rng(0), batch, 2, labels), labels)
    nodes = automata.sizes["nodes"]
    x = jax.ShapeDtypeStruct((frames, batch, labels), np.float32)
    lengths = jax.ShapeDtypeStruct((batch,), np.int32)
    text = jax.jit(losses).lower(x, lengths, automata).compile().as_text()
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    kept = rf"\[{frames},{batch},{nodes}\]"
    found = [c for c in re.split(r"\n(?=%|ENTRY )", text) if re.match(r"%?([\w.\-]+)", c)]
    loops = [c for c in found if re.match(r"%?([\w.\-]+)", c).group(1) in bodies]
    assert any(re.search(kept, loop) for loop in loops)  # what the test is about is there
    copies = [line for line in text.splitlines() if re.search(kept + r"\S* copy\(", line)]
    assert copies == []  # nor does it before them, for both to overwrite the emissions


def test_sequences_do_not_see_each_other_across_the_ends_of_a_band() -> None:
    """All sequences of a band are one row in the backward recursion."""
    frames, labels = 200, 9
    edges = oracles.hmm_like(np.random.default_rng(1), 3, 2, labels)
    used = int(
        (np.asarray(packed("band", edges, labels).node_label) >= 0).any(axis=0).nonzero()[0][-1]
    )
    automata = Automata.from_edges(*edges, num_labels=labels, pad_to={"nodes": used + 1})
    assert automata.band > 1
    assert automata.node_label[0, -1] >= 0  # its neighbours behind are the next sequence's nodes
    x = np.random.default_rng(2).normal(size=(frames, 3, labels)).astype(np.float32)
    lengths = np.array([200, 197, 200])
    step = jax.jit(losses)
    (_, wanted), expected = step(x, lengths, automata)
    x[:, 1] += 2.5e6  # 1.8e8 in powers of two: more than makes any other score vanish
    (_, loss), gradient = step(x, lengths, automata)
    assert np.isfinite(loss).all()
    assert loss[1] < -1e8
    for other in (0, 2):
        assert loss[other] == wanted[other]
        np.testing.assert_array_equal(gradient[:, other], expected[:, other])


def test_the_loops_end_with_the_longest_sequence() -> None:
    counts = np.zeros((9, 3), bool)
    counts[[0, 4, 6], 1] = True
    assert int(jax.jit(_steps.longest)(counts)) == 7
    assert int(_steps.longest(counts & False)) == 0
    several = jax.vmap(_steps.longest)(np.stack([counts, counts & False]))
    assert several.tolist() == [7, 7]


def test_under_vmap_the_loops_select_nothing_of_all_frames() -> None:
    """They would, in each frame, if each mapped element had its own number of frames."""
    frames, labels = 23, 9
    automata = packed("band", oracles.hmm_like(np.random.default_rng(0), 2, 2, labels), labels)
    x = np.zeros((4, frames, 2, labels), np.float32)
    lengths = np.array([[23, 20], [5, 4], [7, 0], [9, 3]])
    step = jax.jit(jax.vmap(lambda x, n: losses(x, n, automata)))
    kept = f"4x{frames}x2x{automata.sizes['nodes']}x"
    lines = [line for line in step.lower(x, lengths).as_text().splitlines() if kept in line]
    assert any("stablehlo.while" in line or "iterArg" in line for line in lines)
    assert not [line for line in lines if "stablehlo.select" in line and "iterArg" in line]
