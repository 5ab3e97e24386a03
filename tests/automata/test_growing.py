"""Batches of one kind share a shape, which grows when one does not fit."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import Automata, prefetch, topologies
from jax_sprint.automata.growing import GrowingSizes

LABELS = 12


def shape(automata: Automata) -> object:
    leaves, structure = jax.tree.flatten(automata)
    return structure, [leaf.shape for leaf in leaves]


def chains(*lengths: int):
    """CTC graphs of sequences of different labels: in a band."""
    labels = [[1 + i % (LABELS - 1) for i in range(length)] for length in lengths]
    return topologies.ctc(labels, num_labels=LABELS).to_edges()


def star(width: int):
    """All of the states 1 to `width` lead to one another: in no band."""
    middle = [(i, j, j % LABELS, 0) for i in range(width + 1) for j in range(1, width + 1)]
    last = [(i, width + 1, 0, 0) for i in range(1, width + 1)]
    edges = np.array(middle + last, np.uint32).T
    ends = np.array([[0], [width + 1]], np.uint32)
    return edges, np.linspace(0, 1, edges.shape[1], dtype=np.float32), ends


def same(automata: Automata, graph) -> None:
    for array, other in zip(automata.to_edges(), graph, strict=True):
        np.testing.assert_array_equal(array, other)


def test_the_largest_first_gives_one_shape():
    sizes = GrowingSizes()
    shapes = []
    for lengths in ([9, 4], [1, 1], [3, 9], [9, 9]):
        graph = chains(*lengths)
        automata = sizes.pack(None, *graph, num_labels=LABELS)
        same(automata, graph)
        shapes.append(shape(automata))
    assert all(each == shapes[0] for each in shapes)
    assert sizes.shapes == 1


def test_hardly_anything_is_rounded():
    graph = chains(17)
    nodes = Automata.from_edges(*graph).sizes["nodes"]
    tight = GrowingSizes().pack(None, *graph).sizes["nodes"]
    needed = int(np.count_nonzero(Automata.from_edges(*graph).node_label >= 0)) + 1
    assert needed <= tight < min(nodes, needed + 4)


def test_it_grows_once_and_stays():
    sizes = GrowingSizes(kind=lambda batch: batch % 10)
    small = sizes.pack(sizes.kind(3), *chains(3))
    large = sizes.pack(sizes.kind(13), *chains(20))
    again = sizes.pack(sizes.kind(23), *chains(3))
    other = sizes.pack(sizes.kind(4), *chains(3))
    assert shape(again) == shape(large) != shape(small)
    assert shape(other) == shape(small)
    assert sizes.shapes == 3


def test_from_a_band_to_tables_and_back():
    sizes = GrowingSizes()
    batches = [chains(5), star(6), chains(7), star(3), chains(2)]
    packed = [sizes.pack(None, *graph, num_labels=LABELS) for graph in batches]
    for automata, graph in zip(packed, batches, strict=True):
        same(automata, graph)
    assert packed[0].sizes["band"] > 0
    assert all(automata.sizes["band"] == 0 for automata in packed[1:])
    late = [sizes.pack(None, *graph, num_labels=LABELS) for graph in batches]
    assert all(shape(automata) == shape(packed[-1]) for automata in late)


graphs = st.one_of(
    st.lists(st.integers(1, 12), min_size=1, max_size=1).map(lambda lengths: chains(*lengths)),
    st.integers(1, 9).map(star),
)


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(graphs, min_size=1, max_size=8))
def test_every_order_settles_on_one_shape(batches):
    sizes = GrowingSizes()
    # Twice: what was packed in a band says nothing about tables, if these are needed later.
    for graph in batches + batches:
        same(sizes.pack("kind", *graph, num_labels=LABELS), graph)
    settled = sizes.shapes
    assert settled <= 2 * len(batches)
    late = [shape(sizes.pack("kind", *graph, num_labels=LABELS)) for graph in batches]
    assert all(each == late[0] for each in late)
    assert sizes.shapes == settled


def test_what_is_wrong_is_refused_every_time():
    sizes = GrowingSizes()
    edges, weights, ends = chains(4)
    for _ in range(2):
        with pytest.raises(ValueError, match="emission"):
            sizes.pack(None, edges, weights, ends, num_labels=2)
    assert sizes.shapes == 0
    same(sizes.pack(None, edges, weights, ends, num_labels=LABELS), (edges, weights, ends))
    with pytest.raises(ValueError, match="emission"):
        sizes.pack(None, edges, weights, ends, num_labels=2)
    with pytest.raises(ValueError, match="kind must be a function of a batch or None, got 'T'"):
        GrowingSizes(kind="T")


def test_prefetch_takes_them():
    class Supplier:
        def get_automata_for_batch(self, tags):
            return chains(*tags)

    batches = [{"tags": [i, j], "long": i > 5} for i, j in ((9, 1), (2, 2), (7, 3), (5, 1), (3, 3))]
    sizes = GrowingSizes(kind=lambda batch: batch["long"])
    shapes: dict[bool, list] = {False: [], True: []}
    for batch, automata in prefetch(batches, Supplier(), pad_to=sizes, num_labels=LABELS):
        same(automata, chains(*batch["tags"]))
        shapes[batch["long"]].append(shape(automata))
    assert shapes[True][0] == shapes[True][1]
    assert shapes[False][1] == shapes[False][2] != shapes[False][0]
    assert sizes.shapes == 3
