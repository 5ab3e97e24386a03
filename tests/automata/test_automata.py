"""`Automata`: packing, the way back, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import Automata


def assert_same(left: tuple, right: tuple) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def two() -> oracles.EdgeList:
    """Two small sequences: 0-1-2 with a loop, and 3-4."""
    edges = np.array([[0, 1, 1, 3], [1, 1, 2, 4], [1, 1, 0, 2], [0, 0, 0, 1]], np.uint32)
    weights = np.array([0.5, 1.5, 2.5, 3.5], np.float32)
    return oracles.EdgeList(edges, weights, np.array([[0, 3], [2, 4]], np.uint32))


@given(st.integers(0, 10**6), st.integers(0, 4), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_edges_come_back_bit_for_bit(seed: int, batch: int, gaps: bool, interleave: bool) -> None:
    rng = np.random.default_rng(seed)
    given_ = oracles.random_automata(rng, batch, gaps=gaps, interleave=interleave)
    assert_same(given_, Automata.from_edges(*given_, num_labels=4).to_edges())


@pytest.mark.parametrize(
    "name", ["a_mono3_default", "b_ctc_blank", "b_rna_blank", "c_tri_dense_awm"]
)
def test_golden_automata_come_back_bit_for_bit(golden_dir, name: str) -> None:
    data = np.load(golden_dir / f"{name}.npz")
    given_ = (data["edges"], data["weights"], data["start_end_states"])
    automata = Automata.from_edges(*given_)
    assert_same(given_, automata.to_edges())
    # One by one, and joined again, they are numbered as the pool numbers them.
    assert_same(given_, Automata.concat([automata[b] for b in range(len(automata))]).to_edges())


def test_state_numbers_may_be_huge() -> None:
    edges, weights, ends = two()
    shift = np.array([[1 << 31], [1 << 31], [0], [0]], np.uint32)
    given_ = (edges + shift, weights, ends + np.uint32(1 << 31))
    assert_same(given_, Automata.from_edges(*given_).to_edges())


def test_sequences_without_edges() -> None:
    edges, weights, ends = two()
    for at in range(3):
        more = np.insert(ends, at, 3, axis=1)
        moved = edges.copy()
        moved[3] += moved[3] >= at
        given_ = (moved, weights, more)
        automata = Automata.from_edges(*given_)
        assert_same(given_, automata.to_edges())
        assert automata.num_states.tolist() == np.insert([3, 2], at, 1).tolist()
    nothing = (np.zeros((4, 0), np.uint32), np.zeros(0, np.float32), np.zeros((2, 0), np.uint32))
    assert_same(nothing, Automata.from_edges(*nothing).to_edges())


def test_leaves_are_numpy_lead_with_the_batch_and_share_buckets() -> None:
    rng = np.random.default_rng(0)
    shapes = set()
    for phones in (20, 24, 28):
        automata = Automata.from_edges(*oracles.hmm_like(rng, 6, phones, 40), num_labels=40)
        leaves, treedef = jax.tree_util.tree_flatten(automata)
        assert all(isinstance(leaf, np.ndarray) and leaf.shape[0] == 6 for leaf in leaves)
        # The weights of edges, of starts and of ends.
        assert sum(leaf.dtype == np.float32 for leaf in leaves) == 3
        shapes.add((treedef, *(leaf.shape for leaf in leaves)))
    assert len(shapes) <= 2
    hash(treedef)


def test_weights_are_in_edge_order_and_can_be_replaced() -> None:
    edges, weights, ends = two()
    automata = Automata.from_edges(edges[:, ::-1].copy(), weights[::-1].copy(), ends)
    assert automata.weights[0, :3].tolist() == [2.5, 1.5, 0.5]
    assert automata.weights[1, :1].tolist() == [3.5]
    other = automata.with_weights(2 * automata.weights)
    assert other.to_edges()[1].tolist() == [7.0, 5.0, 3.0, 1.0]
    flat = automata.with_weights(jnp.arange(4.0))
    assert flat.to_edges()[1].tolist() == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="weights has 3 entries, but there are 4 edges"):
        automata.with_weights(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="weights has shape"):
        automata.with_weights(np.zeros((2, 3), np.float32))


def test_index_and_concat() -> None:
    rng = np.random.default_rng(1)
    given_ = oracles.random_automata(rng, 5)
    automata = Automata.from_edges(*given_, num_labels=4)
    assert_same(given_, automata[:].to_edges())
    first, rest = automata[:2], automata[2:]
    assert (len(first), len(rest)) == (2, 3)
    assert_same(given_, Automata.concat([first, rest]).to_edges())
    swapped = automata[[4, 0, 4]]
    assert_same(
        swapped.to_edges(), Automata.concat([automata[4], automata[0], automata[-1]]).to_edges()
    )
    mask = np.array([True, False, True, False, False])
    assert_same(automata[mask].to_edges(), automata[[0, 2]].to_edges())
    learnt = first.with_weights(jnp.asarray(first.weights) + 1.0)
    joined = Automata.concat([learnt, rest])
    count = int((first.edge_position >= 0).sum())
    expected = given_.weights + (np.arange(len(given_.weights)) < count).astype(np.float32)
    np.testing.assert_array_equal(joined.to_edges()[1], expected)
    with pytest.raises(IndexError, match="sequence 5"):
        automata[5]
    with pytest.raises(ValueError, match="at least one"):
        Automata.concat([])
    with pytest.raises(ValueError, match="different num_labels"):
        Automata.concat([automata, dataclasses.replace(automata, num_labels=9)])


def test_index_under_jit() -> None:
    automata = Automata.from_edges(*two())
    picked = jax.jit(lambda a, i: a[i])(automata, jnp.array([1]))
    edges, weights, _ = picked.to_edges()
    assert (edges[2].tolist(), weights.tolist()) == ([2], [3.5])
    with pytest.raises(ValueError, match="concrete leaves"):
        jax.jit(lambda a: a.to_edges())(automata)


def test_pad_to_fixes_the_sizes() -> None:
    small, large = (
        Automata.from_edges(*oracles.hmm_like(np.random.default_rng(2), 2, phones, 9))
        for phones in (4, 16)
    )
    padded = Automata.from_edges(*small.to_edges(), pad_to=large)
    assert padded.sizes == large.sizes
    assert Automata.from_edges(*small.to_edges(), pad_to=large.sizes).sizes == large.sizes
    assert_same(small.to_edges(), padded.to_edges())
    with pytest.raises(ValueError, match=r"pad_to\['nodes'\] is 24, but this batch needs"):
        Automata.from_edges(*large.to_edges(), pad_to={"nodes": 24})
    with pytest.raises(ValueError, match="unknown sizes"):
        Automata.from_edges(*small.to_edges(), pad_to={"node": 24})
    tables = Automata.from_edges(*small.to_edges(), pad_to={"band": 0, "in_arcs": 7})
    assert tables.sizes["in_arcs"] == 7
    with pytest.raises(ValueError, match="do not fit into such a band"):
        Automata.from_edges(*large.to_edges(), pad_to={"band": 2})


def test_a_shared_automaton_has_no_batch_axis() -> None:
    automata = Automata.from_edges(*two())
    one = automata[1]
    shared = one.shared()
    assert shared.weights.ndim == 1
    assert (shared.batch_size, shared.sizes) == (1, one.sizes)
    for got, want in zip(shared.to_edges(), one.to_edges(), strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="no batch axis"):
        shared[0]
    with pytest.raises(ValueError, match="no batch axis"):
        Automata.concat([automata, shared])
    with pytest.raises(ValueError, match="batch of one automaton, got 2"):
        automata.shared()


def broken(**changes) -> tuple:
    parts = two()._asdict()
    for name, change in changes.items():
        parts[name] = change(parts[name].copy())
    return tuple(parts.values())


def put(index: tuple, value) -> object:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            broken(edges=put((2, 3), 5)),
            r"edges\[2, 3\] is the emission index 5, but num_labels is 3",
        ),
        (broken(edges=put((3, 1), 2)), r"edges\[3, 1\] names sequence 2.* only 2 sequences"),
        (broken(edges=put((3, 1), 1)), r"does not belong to its sequence: state 1 is used by"),
        (broken(edges=put((0, 1), 4)), r"does not belong to its sequence: state 4 is used by"),
        (broken(edges=put((1, 1), 9)), r"does not belong to its sequence: state 9 lies outside"),
        (
            broken(start_end_states=put((slice(None), 0), [2, 0])),
            r"start_end_states\[:, 0\] has the end state 0 before the start state 2",
        ),
        (
            broken(start_end_states=put((slice(None), 1), [2, 4])),
            r"start_end_states\[:, 1\] = \[2, 4\] is also used by sequence|used by sequence",
        ),
        (broken(weights=put((1,), np.nan)), r"weights\[1\] is nan"),
        (broken(weights=put((1,), -np.inf)), r"weights\[1\] is -inf"),
        (broken(weights=lambda w: w[:-1]), r"weights has 3 entries but edges has 4 columns"),
        (broken(weights=lambda w: w.astype(np.float64)), r"weights must be float32.*got float64"),
        (broken(weights=lambda w: w[None]), r"weights must be float32 of shape \[4\]"),
        (broken(edges=lambda e: e.astype(np.int32)), r"edges must be uint32.*got int32"),
        (broken(edges=lambda e: e.astype(np.float32)), r"edges must be uint32.*got float32"),
        (broken(edges=lambda e: e[:3]), r"edges must be uint32 of shape \[4, E\].*\(3, 4\)"),
        (broken(edges=lambda e: e.ravel()), r"edges must be uint32 of shape \[4, E\]"),
        (broken(start_end_states=lambda s: s.T[:1]), r"start_end_states must be uint32 of shape"),
    ],
)
def test_bad_input_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Automata.from_edges(*arguments, num_labels=3)


def test_traced_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="(?s)edges must be a concrete array.*fast_baum_welch"):
        jax.jit(lambda e: Automata.from_edges(e, *two()[1:]).weights)(two().edges)
    with pytest.raises(ValueError, match="num_labels must be positive"):
        Automata.from_edges(*two(), num_labels=0)


def test_infinite_weights_and_inner_states_beyond_the_end_are_fine() -> None:
    edges, weights, ends = two()
    weights[0] = np.inf
    assert_same((edges, weights, ends), Automata.from_edges(edges, weights, ends).to_edges())
    around = (
        np.array([[0, 2], [2, 1], [0, 1], [0, 0]], np.uint32),
        np.zeros(2, np.float32),
        np.array([[0], [1]], np.uint32),
    )
    assert_same(around, Automata.from_edges(*around).to_edges())
