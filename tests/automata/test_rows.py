"""What is kept of packed segments: batches put together from it are those that packing gives."""

from __future__ import annotations

import dataclasses
import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import Automata, full_sum_loss, prefetch
from jax_sprint.automata import growing as growing_module
from jax_sprint.automata._rows import join
from jax_sprint.automata.growing import GrowingSizes

LABELS = 9


def segment(seed: int, states: int, *, read_only: bool = True):
    """A random automaton: a chain with loops, and some more arcs forward."""
    rng = np.random.default_rng([seed, states])
    chain = np.arange(states - 1)
    more = rng.integers(0, states - 1, 2 * states)
    ends = np.minimum(more + 1 + rng.integers(0, 3, len(more)), states - 1)
    loops = rng.permutation(states - 1)[: states // 2]
    source = np.concatenate([chain, more, loops])
    target = np.concatenate([chain + 1, ends, loops])
    order = rng.permutation(len(source))
    emissions = rng.integers(0, LABELS, len(source))
    edges = np.stack([source, target, emissions])[:, order].astype(np.uint32)
    weights = rng.normal(size=edges.shape[1]).astype(np.float32)
    for array in (edges, weights):
        array.setflags(write=not read_only)
    return states, edges.shape[1], edges, weights


def chain(length: int, *, read_only: bool = True):
    """In a band."""
    states = np.arange(length)
    edges = np.stack([states, states + 1, states % LABELS]).astype(np.uint32)
    weights = np.zeros(length, np.float32)
    for array in (edges, weights):
        array.setflags(write=not read_only)
    return length + 1, length, edges, weights


def same(one: Automata, other: Automata) -> None:
    for field in dataclasses.fields(Automata):
        mine, yours = getattr(one, field.name), getattr(other, field.name)
        if isinstance(yours, np.ndarray):
            assert (mine.dtype, mine.shape) == (yours.dtype, yours.shape), field.name
            np.testing.assert_array_equal(mine, yours, err_msg=field.name)
            assert mine.flags.c_contiguous
        else:
            assert mine == yours, field.name


@pytest.fixture
def packed(monkeypatch) -> list[int]:
    """How many sequences `Automata.from_edges` was given each time."""
    numbers: list[int] = []
    make = Automata.from_edges

    def from_edges(edges, weights, ends, **more):
        numbers.append(ends.shape[1])
        return make(edges, weights, ends, **more)

    monkeypatch.setattr(
        growing_module.Automata, "from_edges", staticmethod(from_edges), raising=True
    )
    return numbers


@settings(max_examples=30, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(2, 12)), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    num_labels=st.sampled_from([None, LABELS]),
)
def test_batches_are_those_that_packing_gives(batches, num_labels) -> None:
    known = {each: segment(*each) for batch in batches for each in batch}
    sizes, packing = GrowingSizes(), GrowingSizes()
    for batch in [*batches, *reversed(batches)]:
        automata = [known[each] for each in batch]
        got = sizes.pack_each("kind", automata, num_labels=num_labels)
        want = packing.pack("kind", *join(automata), num_labels=num_labels)
        same(got, want)
        for array, other in zip(got.to_edges(), join(automata), strict=True):
            np.testing.assert_array_equal(array, other)
    assert sizes.shapes == packing.shapes


def test_what_is_known_is_not_packed_again(packed) -> None:
    sizes = GrowingSizes()
    automata = [segment(seed, 8) for seed in range(6)]
    sizes.pack_each(None, automata)
    packed.clear()
    # The first batch of a kind only tells the sizes; besides, an empty batch shows the leaves.
    sizes.pack_each(None, automata[:4])
    assert packed == [1, 4]
    packed.clear()
    sizes.pack_each(None, [automata[5], automata[0], automata[5], automata[3]])
    assert packed == [1]
    packed.clear()
    same(
        sizes.pack_each(None, automata[::-1]),
        Automata.from_edges(*join(automata[::-1]), pad_to=sizes._known[None]),
    )
    assert packed == [1, 6]  # the one not seen before; and our own


def test_a_changed_automaton_is_packed_anew() -> None:
    sizes = GrowingSizes()
    automata = [segment(seed, 8) for seed in range(4)]
    for _ in range(3):
        sizes.pack_each(None, automata)
    for seed in range(50):
        # The old ones are dropped, and the new ones may come to lie where they were.
        automata[seed % 4] = segment(100 + seed, 8)
        got = sizes.pack_each(None, automata)
        for array, other in zip(got.to_edges(), join(automata), strict=True):
            np.testing.assert_array_equal(array, other)


def test_what_may_still_change_is_not_kept() -> None:
    sizes = GrowingSizes()
    automata = [segment(seed, 8, read_only=False) for seed in range(4)]
    for weight in range(4):
        automata[1][3][:] = weight
        got = sizes.pack_each(None, automata)
        np.testing.assert_array_equal(got.to_edges()[1], join(automata)[1])
    assert sizes._rows.num_bytes == 0


def test_memory_is_bounded() -> None:
    automata = [segment(seed, 8) for seed in range(60)]
    one = GrowingSizes()
    for _ in range(2):
        one.pack_each(None, automata[:1])
    each = one._rows.num_bytes
    assert 500 < each < 20_000
    sizes = GrowingSizes(keep_bytes=10 * each + 5000)
    for _ in range(2):
        for first in range(0, 60, 6):
            some = automata[first : first + 6]
            got = sizes.pack_each(None, some)
            assert sizes._rows.num_bytes <= 10 * each + 5000
            for array, other in zip(got.to_edges(), join(some), strict=True):
                np.testing.assert_array_equal(array, other)
    assert sizes._rows.num_bytes > 4 * each
    none = GrowingSizes(keep_bytes=0)
    for _ in range(3):
        none.pack_each(None, automata[:6])
    assert none._rows.num_bytes == 0


def test_sizes_that_grow_let_the_old_rows_go() -> None:
    sizes = GrowingSizes()
    small = [segment(seed, 5) for seed in range(4)]
    large = [segment(seed, 40) for seed in range(4)]
    for _ in range(3):
        sizes.pack_each(None, small)
    before = sizes._rows.num_bytes
    got = sizes.pack_each(None, large)
    again = sizes.pack_each(None, small)
    assert again.sizes == got.sizes
    np.testing.assert_array_equal(again.to_edges()[0], join(small)[0])
    # The rows of the small shape are gone, those of the large one have taken their place.
    layouts = {id(key[0]) for key in sizes._rows._kept}
    assert len(layouts) == 1
    assert len(sizes._rows._kept) == 4
    assert sizes._rows.num_bytes > before


def test_bands_and_tables() -> None:
    sizes = GrowingSizes()
    chains = [chain(length) for length in (4, 9, 9)]
    for _ in range(3):
        got = sizes.pack_each("band", chains)
        assert got.band > 0
        assert got.in_node is None
        same(got, Automata.from_edges(*join(chains), pad_to=sizes._known["band"]))
    wide = [segment(3, 12), chains[0]]
    for _ in range(3):
        got = sizes.pack_each("band", wide)
        np.testing.assert_array_equal(got.to_edges()[0], join(wide)[0])
        got = sizes.pack_each("band", chains)
        np.testing.assert_array_equal(got.to_edges()[0], join(chains)[0])


def test_kinds_and_labels_have_rows_of_their_own() -> None:
    sizes = GrowingSizes()
    automata = [segment(seed, 8) for seed in range(3)]
    for _ in range(3):
        for kind, labels in (("a", None), ("a", LABELS), ("b", LABELS)):
            got = sizes.pack_each(kind, automata, num_labels=labels)
            assert got.num_labels == labels
    with pytest.raises(ValueError, match="emission"):
        sizes.pack_each("a", automata, num_labels=2)
    same(
        sizes.pack_each("a", automata, num_labels=LABELS),
        Automata.from_edges(*join(automata), num_labels=LABELS, pad_to=sizes._known["a"]),
    )


def test_the_loss_is_the_same() -> None:
    sizes = GrowingSizes()
    automata = [segment(seed, 8) for seed in range(4)]
    scores = jax.nn.log_softmax(
        np.random.default_rng(0).normal(size=(12, 4, LABELS)).astype(np.float32)
    )
    lengths = np.array([12, 10, 11, 12], np.int32)
    want = full_sum_loss(scores, lengths, Automata.from_edges(*join(automata)))
    for _ in range(3):
        got = full_sum_loss(scores, lengths, sizes.pack_each(None, automata))
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_an_empty_batch_and_wrong_arguments() -> None:
    sizes = GrowingSizes()
    empty = sizes.pack_each(None, [])
    assert empty.batch_size == 0
    sizes.pack_each(None, [segment(0, 4)])
    assert sizes.pack_each(None, []).to_edges()[0].shape == (4, 0)
    with pytest.raises(ValueError, match="keep_bytes must be an int of at least 0, got -1"):
        GrowingSizes(keep_bytes=-1)
    states, count, edges, weights = segment(0, 4)
    wrong = np.full_like(weights, np.nan)
    for _ in range(2):
        with pytest.raises(ValueError, match="NaN|nan"):
            sizes.pack_each(None, [(states, count, edges, wrong)])


def test_from_several_threads() -> None:
    sizes = GrowingSizes(keep_bytes=30_000)
    automata = [segment(seed, 8) for seed in range(20)]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(40):
                some = [automata[at] for at in rng.integers(0, 20, 4)]
                got = sizes.pack_each(int(rng.integers(2)), some)
                np.testing.assert_array_equal(got.to_edges()[0], join(some)[0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_prefetch_asks_for_them_one_by_one(packed) -> None:
    known = {seed: segment(seed, 8) for seed in range(8)}

    class Supplier:
        def get_automata_for_batch(self, tags):
            raise AssertionError("nobody needs this one")

        def get_automata(self, tags, *, cancelled):
            assert not cancelled.is_set()
            return [known[tag] for tag in tags]

    batches = [[0, 1, 2], [3, 4, 5], [6, 7, 0], [5, 3, 1], [2, 6, 4], [7, 7, 7]]
    sizes = GrowingSizes()
    for batch, automata in prefetch(batches, Supplier(), pad_to=sizes, num_labels=LABELS):
        for array, other in zip(
            automata.to_edges(), join([known[tag] for tag in batch]), strict=True
        ):
            np.testing.assert_array_equal(array, other)
    packed.clear()
    for _ in prefetch(batches[1:], Supplier(), pad_to=sizes, num_labels=LABELS):
        pass
    assert packed == []
