"""Converters: round trips, the formats' own rules, and OpenFst's opinion of the total score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import Automata
from jax_sprint.automata.converters import (
    from_k2,
    from_openfst,
    from_rasr,
    from_returnn,
    to_k2,
    to_openfst,
    to_rasr,
    to_returnn,
)
from jax_sprint.topologies._ctc import ctc_triple
from jax_sprint.topologies._hmm import hmm_triple
from jax_sprint.topologies._linear import linear_triple
from jax_sprint.topologies._ngram import ngram_triple
from jax_sprint.topologies._rna import rna_triple

MADE = {
    "ctc": lambda: ctc_triple([[1, 2, 2], [3], []]),
    "rna": lambda: rna_triple([[1, 1], [], [2]]),
    "linear": lambda: linear_triple([[1, 2], [], [4, 4, 1]]),
    "hmm": lambda: hmm_triple([[[1, 2], [3]], [[4]]], silence=0, loop=0.3, exit=1.1, skip=2.7)[0],
    "ngram": lambda: ngram_triple([[1, 2], [2, 1, 1]], order=2),
}


def same(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@st.composite
def any_automata(draw):
    """Arcs at random, states numbered at random between the start and the end."""
    edges, weights, ends, offset = [], [], [], 0
    for b in range(draw(st.integers(1, 3))):
        n = draw(st.integers(1, 4))
        state = st.integers(offset, offset + n - 1)
        arcs = draw(st.lists(st.tuples(state, state, st.integers(0, 5), st.just(b)), max_size=6))
        if n > 1:  # every state occurs
            arcs += [(s, s + 1, 0, b) for s in range(offset, offset + n - 1)]
        edges += arcs
        weights += draw(
            st.lists(
                st.floats(-50, 50, width=32) | st.just(float("inf")),
                min_size=len(arcs),
                max_size=len(arcs),
            )
        )
        ends.append((offset, offset + n - 1))
        offset += n
    return (
        np.asarray(edges, np.uint32).reshape(-1, 4).T.copy(),
        np.asarray(weights, np.float32),
        np.asarray(ends, np.uint32).T.copy(),
    )


def by_state(triple, lead=None):
    """Arcs in the stable order that a text format imposes."""
    edges, weights, ends = triple
    key = edges[0] if lead is None else edges[0] != ends[0][edges[3]]
    order = np.lexsort((key, edges[3]))
    return edges[:, order], weights[order], ends


@settings(max_examples=60, deadline=None)
@given(triple=any_automata())
def test_round_trips_of_anything(triple):
    automata = Automata.from_edges(*triple)
    same(to_returnn(from_returnn(*to_returnn(automata))), triple)
    same(from_rasr(to_rasr(automata)).to_edges(), triple)
    same(by_state(from_k2(to_k2(automata)).to_edges()), by_state(triple))
    same(
        by_state(from_openfst(to_openfst(automata)).to_edges(), lead=True),
        by_state(triple, lead=True),
    )


@pytest.mark.parametrize("name", MADE)
def test_round_trips_of_topologies(name):
    triple = MADE[name]()
    automata = Automata.from_edges(*triple)
    same(from_rasr(to_rasr(automata)).to_edges(), triple)
    same(by_state(from_k2(to_k2(automata)).to_edges()), by_state(triple))
    same(
        by_state(from_openfst(to_openfst(automata)).to_edges(), lead=True),
        by_state(triple, lead=True),
    )


def test_rasrs_own_arrays(golden_dir):
    data = np.load(golden_dir / "a_mono3_default.npz")
    triple = data["edges"], data["weights"], data["start_end_states"]
    exported = to_rasr(Automata.from_edges(*triple))
    for b, (num_states, num_edges, edges, weights) in enumerate(exported):
        first, last = triple[2][:, b]
        here = triple[0][3] == b
        assert num_states == last - first + 1
        assert num_edges == here.sum()
        assert edges.dtype == np.uint32
        np.testing.assert_array_equal(edges.reshape(3, -1)[:2], triple[0][:2, here] - first)
        np.testing.assert_array_equal(weights, triple[1][here])
    same(from_rasr(exported).to_edges(), triple)
    same(from_rasr(exported[0]).to_edges(), from_rasr(exported[:1]).to_edges())


def test_returnn_takes_any_integers():
    triple = MADE["ctc"]()
    as_int32 = from_returnn(triple[0].astype(np.int32), triple[1], triple[2].astype(np.int64))
    same(as_int32.to_edges(), triple)


def test_texts_read_as_their_formats_say():
    automata = Automata.from_edges(
        np.asarray([[0, 0, 1], [1, 0, 1], [3, 0, 2], [0, 0, 0]], np.uint32),
        np.asarray([0.5, 0.1, -2.0], np.float32),
        np.asarray([[0], [1]], np.uint32),
    )
    assert to_openfst(automata) == ["0\t1\t4\t0.5\n0\t0\t1\t0.1\n1\t1\t3\t-2.0\n1\t0.0\n"]
    assert to_k2(automata) == ["0 1 3 -0.5\n0 0 0 -0.1\n1 1 2 2.0\n1 2 -1 0.0\n2\n"]


def test_several_end_states_are_folded(paths):
    # Two ends with costs, one of them with a loop; a path of two arcs may use either.
    text = "0 1 2 0.5\n1 1 2 0.25\n0 2 3\n1 2 3 1.0\n1 4.0\n2 8.0\n"
    found = paths(from_openfst(text).to_edges(), 2)[0]
    assert found == {(1, 1): [4.75], (1, 2): [9.5]}
    assert paths(from_openfst(text).to_edges(), 1)[0] == {(1,): [4.5], (2,): [8.0]}
    k2 = "0 1 1 -0.5\n0 2 2 0\n1 1 1 -0.25\n1 2 2 -1.0\n1 3 -1 -4\n2 3 -1 -8\n3"
    for frames in (1, 2, 3):
        assert paths(from_k2(k2).to_edges(), frames) == paths(from_openfst(text).to_edges(), frames)


def test_the_start_of_a_text_may_have_any_number(paths):
    found = from_openfst("7 3 1\n3 7 2\n3\n")
    assert paths(found.to_edges(), 3)[0] == {(0, 1, 0): [0.0]}
    assert found.to_edges()[2][0, 0] < found.to_edges()[2][1, 0]


@pytest.mark.parametrize("name", MADE)
def test_openfst_finds_the_same_total(name, score):
    fst = pytest.importorskip("pywrapfst", reason="OpenFst's Python module (pip install pynini)")

    def compiled(text):
        compiler = fst.Compiler(arc_type="log64", acceptor=True)
        compiler.write(text)
        return compiler.compile().arcsort("ilabel")

    edges, weights, ends = MADE[name]()
    rng = np.random.default_rng(11)
    frames, labels = 7, 6
    log_probs = rng.normal(size=(frames, labels))
    lattice = [
        f"{t} {t + 1} {i + 1} {-float(log_probs[t, i])!r}"
        for t in range(frames)
        for i in range(labels)
    ]
    dense = compiled("\n".join([*lattice, str(frames)]) + "\n")
    for b, text in enumerate(to_openfst(Automata.from_edges(edges, weights, ends))):
        both = fst.intersect(compiled(text), dense)
        distance = fst.shortestdistance(both, reverse=True)
        theirs = float(str(distance[both.start()])) if both.num_states() else np.inf
        here = edges[3] == b
        mine = score((edges[:, here], weights[here], ends[:, b : b + 1]), log_probs)
        assert theirs == pytest.approx(mine, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_openfst("0 1 0 1.0\n1\n"), r"line 1.*label 0.*epsilon"),
        (lambda: from_openfst("0 1 1 2 0.5\n1\n"), r"line 1.*5 columns.*fstproject"),
        (lambda: from_openfst("0 1 a\n1\n"), r"line 1: '0 1 a' is neither"),
        (lambda: from_openfst("0 1 1\n"), r"texts\[0\] has no end state"),
        (lambda: from_openfst(["0\n", ""]), r"texts\[1\] has no line"),
        (lambda: from_k2("0 1 2 0.5\n"), r"texts\[0\] does not end with a line"),
        (lambda: from_k2("0 1 2 0.5\n1"), r"line 1.*label -1 on exactly"),
        (lambda: from_k2("0 0 -1 0.5\n0 1 -1 0\n1"), r"line 1.*label -1 on exactly"),
        (lambda: from_k2("0 1 -1\n1"), "line 1"),
        (lambda: from_k2("x"), "line 1: 'x'"),
        (
            lambda: from_rasr((2, 2, np.zeros(3, np.uint32), np.zeros(1, np.float32))),
            r"says 2 edges, but edges has shape \(3,\)",
        ),
        (
            lambda: from_rasr((1, 1, np.asarray([0, 1, 0], np.uint32), np.zeros(1, np.float32))),
            "says 1 states, but its edges name state 1",
        ),
        (lambda: from_returnn(np.full((4, 1), -1), [0.0], [[0], [1]]), "edges must hold integers"),
        (
            lambda: to_rasr(
                Automata.from_edges(
                    np.asarray([[0, 1], [1, 0], [0, 0], [0, 0]], np.uint32),
                    np.zeros(2, np.float32),
                    np.zeros((2, 1), np.uint32),
                )
            ),
            "automaton 0 starts and ends in one state",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
