"""`full_sum_loss` against OpenFst: composition with a linear acceptor of the scores, in log64.

The automata are built arc by arc through OpenFst's own interface, so that neither the converters
nor `oracles` take part in the answer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import Automata, full_sum_loss

fst = pytest.importorskip(
    "pywrapfst", reason="OpenFst's Python module: pip install 'jax-sprint[oracles]'"
)

T, B, L = 6, 3, 4
SIZES = {
    "edges": 64, "states": 8, "nodes": 24, "slots": 4, "band": 0, "in_arcs": 48, "out_arcs": 48
}  # fmt: skip


def machine(num_states: int, start: int, end: int, arcs: list[tuple[int, int, int, float]]):
    """Acceptor over log64 from (source, target, label, cost); labels are one more than ours."""
    made = fst.VectorFst("log64")
    made.add_states(num_states)
    made.set_start(start)
    made.set_final(end, fst.Weight.one("log64"))
    for source, target, label, cost in arcs:
        if cost < np.inf:
            weight = fst.Weight("log64", cost)
            made.add_arc(source, fst.Arc(label + 1, label + 1, weight, target))
    return made.arcsort("ilabel")


def graph_of(automata: oracles.EdgeList, b: int):
    mine = automata.edges[3] == b
    states = np.unique(
        np.concatenate([automata.edges[:2, mine].ravel(), *automata.start_end_states[:, [b]]])
    )
    source, target = np.searchsorted(states, automata.edges[:2, mine]).tolist()
    start, end = np.searchsorted(states, automata.start_end_states[:, b]).tolist()
    labels, costs = automata.edges[2, mine].tolist(), automata.weights[mine].astype(float).tolist()
    arcs = list(zip(source, target, labels, costs, strict=True))
    return machine(len(states), start, end, arcs)


def scores_of(scores: np.ndarray, only: tuple[int, int] | None = None):
    """Linear acceptor of [T, L] scores; `only` (t, label) leaves that frame one label."""
    arcs = [
        (t, t + 1, label, -float(score))
        for t, row in enumerate(scores)
        for label, score in enumerate(row)
        if only is None or only[0] != t or only[1] == label
    ]
    return machine(len(scores) + 1, 0, len(scores), arcs)


def total(graph, scores) -> float:
    """-log of the sum over the paths of the composition."""
    both = fst.compose(scores, graph)
    if both.start() < 0:
        return np.inf
    return float(fst.shortestdistance(both, reverse=True)[both.start()])


@jax.jit
def run(x, lengths, automata):
    def objective(x):
        loss = full_sum_loss(x, lengths, automata)
        return jnp.sum(jnp.where(jnp.isfinite(loss), loss, 0.0)), loss

    (_, loss), gradient = jax.value_and_grad(objective, has_aux=True)(x)
    return loss, gradient


@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([1.0, 30.0, 300.0]),
    density=st.sampled_from([0.3, 0.8]),
    gaps=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_losses_of_random_automata(seed: int, spread: float, density: float, gaps: bool) -> None:
    rng = np.random.default_rng(seed)
    automata = oracles.random_automata(rng, B, density=density, gaps=gaps, interleave=gaps)
    automata.weights[rng.random(automata.weights.shape) < 0.1] = np.inf
    x = (spread * rng.normal(size=(T, B, L))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = -np.inf
    lengths = rng.integers(0, T + 1, B)
    loss, _ = run(x, lengths, Automata.from_edges(*automata, num_labels=L, pad_to=SIZES))
    for b in range(B):
        theirs = total(graph_of(automata, b), scores_of(x[: lengths[b], b]))
        np.testing.assert_allclose(loss[b], theirs, rtol=2e-6, atol=2e-6 * spread)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_posteriors_are_shares_of_the_total(seed: int) -> None:
    """What remains of the mass where a frame may have one label only."""
    rng = np.random.default_rng(seed)
    automata = oracles.random_automata(rng, B, density=0.7)
    x = (3 * rng.normal(size=(T, B, L))).astype(np.float32)
    packed = Automata.from_edges(*automata, num_labels=L, pad_to=SIZES)
    loss, gradient = run(x, np.full(B, T), packed)
    for b in range(B):
        if loss[b] == np.inf:
            assert not np.asarray(gradient[:, b]).any()
            continue
        graph = graph_of(automata, b)
        whole = total(graph, scores_of(x[:, b]))
        shares = [
            [np.exp(whole - total(graph, scores_of(x[:, b], (t, label)))) for label in range(L)]
            for t in range(T)
        ]
        np.testing.assert_allclose(-gradient[:, b], shares, atol=1e-5)


@pytest.mark.parametrize("kind", ["hmm", "ctc"])
def test_losses_of_topologies_at_forty_frames(kind: str) -> None:
    rng = np.random.default_rng(4)
    if kind == "hmm":
        automata, lengths = oracles.hmm_like(rng, B, 8, 12), np.array([40, 33, 29])
    else:
        labels = rng.integers(1, 12, (B, 9))
        automata, lengths = oracles.ctc_like(labels, np.array([9, 4, 0])), np.array([40, 21, 35])
    x = np.asarray(jax.nn.log_softmax(4 * rng.normal(size=(40, B, 12)).astype(np.float32)))
    loss, _ = run(x, lengths, Automata.from_edges(*automata, num_labels=12))
    for b in range(B):
        theirs = total(graph_of(automata, b), scores_of(x[: lengths[b], b]))
        np.testing.assert_allclose(loss[b], theirs, rtol=1e-6)
