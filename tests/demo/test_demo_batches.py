"""Buckets waste little, batches hold what they should, masks stay where they belong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint.demo.batches import FRAME_WORTH, batch_stream, make_buckets, spec_augment

lengths_lists = st.lists(st.integers(1, 400), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_lists, num_buckets=st.integers(1, 5), multiple=st.sampled_from([1, 3, 12]))
def test_every_utterance_is_in_the_shortest_bucket_that_holds_it(lengths, num_buckets, multiple):
    buckets = make_buckets(lengths, num_buckets=num_buckets, multiple=multiple)
    assert 1 <= len(buckets) <= num_buckets
    sizes = [bucket.num_frames for bucket in buckets]
    assert sizes == sorted(set(sizes))
    assert all(size % multiple == 0 for size in sizes)
    members = np.concatenate([bucket.members for bucket in buckets])
    assert sorted(members.tolist()) == list(range(len(lengths)))
    for bucket in buckets:
        for member in bucket.members:
            fitting = [size for size in sizes if size >= lengths[member]]
            assert bucket.num_frames == fitting[0]


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), num_buckets=st.integers(1, 3))
def test_no_other_bounds_pad_less(lengths, num_buckets):
    buckets = make_buckets(lengths, num_buckets=num_buckets, multiple=1)
    padded = sum(bucket.num_frames * len(bucket.members) for bucket in buckets)
    candidates = sorted(set(lengths))
    best = min(
        sum(min(bound for bound in bounds if bound >= length) for length in lengths)
        for number in range(num_buckets)
        for chosen in itertools.combinations(candidates[:-1], min(number, len(candidates) - 1))
        for bounds in [(*chosen, candidates[-1])]
    )
    assert padded == best


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 300)), min_size=1, max_size=7, unique=True
    ),
    num_buckets=st.integers(1, 3),
)
def test_no_other_bounds_of_lengths_and_sizes_cost_less(sizes, num_buckets):
    """All chains of corners (longest, largest), each beyond the one before, by brute force."""
    lengths, extents = (np.array(each) for each in zip(*sizes, strict=True))
    buckets = make_buckets(
        lengths.tolist(), num_buckets=num_buckets, multiple=1, sizes=extents.tolist()
    )
    cost = 0
    for bucket in buckets:
        assert lengths[bucket.members].max() <= bucket.num_frames
        largest = extents[bucket.members].max()
        cost += len(bucket.members) * bucket.num_frames * (FRAME_WORTH + largest)
    members = np.concatenate([bucket.members for bucket in buckets])
    assert sorted(members.tolist()) == list(range(len(lengths)))

    corners = list(itertools.product(sorted(set(lengths)), sorted(set(extents))))
    top = (lengths.max(), extents.max())
    best = np.inf
    for number in range(num_buckets):
        for chosen in itertools.combinations(corners, number):
            chain = [*chosen, top]
            if any(a[0] > b[0] or a[1] > b[1] for a, b in itertools.pairwise(chain)):
                continue
            price = [
                min(t * (FRAME_WORTH + n) for t, n in chain if length <= t and extent <= n)
                for length, extent in sizes
            ]
            best = min(best, sum(price))
    assert cost <= best


def test_many_lengths_and_sizes_are_sorted_nearly_as_well():
    """Where there are too many to try all, quantiles stand for them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 3000, 5000)
    sizes = (lengths / 3 * rng.uniform(0.8, 1.2, 5000)).astype(int)
    buckets = make_buckets(
        lengths.tolist(), num_buckets=8, multiple=6, batch_size=32, sizes=sizes.tolist()
    )
    assert len(buckets) == 8
    assert sum(len(bucket.members) for bucket in buckets) == 5000
    padded = sum(bucket.num_frames * len(bucket.members) for bucket in buckets)
    assert 1 - lengths.sum() / padded < 0.16


def test_buckets_have_room_for_a_batch():
    lengths = [10] * 50 + [300] * 3
    buckets = make_buckets(lengths, num_buckets=4, multiple=1, batch_size=8)
    assert all(len(bucket.members) >= 8 for bucket in buckets)
    few = make_buckets([5, 9], num_buckets=4, multiple=1, batch_size=8)
    assert [bucket.members.tolist() for bucket in few] == [[0, 1]]


@pytest.fixture
def features() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(length, 4)).astype(np.float32) for length in rng.integers(5, 60, 40)]


def test_stream_is_the_same_for_the_same_seed(features):
    buckets = make_buckets([len(f) for f in features], num_buckets=3, multiple=3, batch_size=4)

    def take(seed):
        stream = batch_stream(buckets, features, batch_size=4, seed=seed)
        return [batch.indices.tolist() for batch in itertools.islice(stream, 12)]

    assert take(0) == take(0) != take(1)


def test_stream_covers_an_epoch_and_pads_with_zeros(features):
    buckets = make_buckets([len(f) for f in features], num_buckets=2, multiple=3, batch_size=4)
    per_epoch = sum(len(bucket.members) // 4 for bucket in buckets)
    stream = batch_stream(buckets, features, batch_size=4, seed=0)
    seen = []
    for batch in itertools.islice(stream, per_epoch):
        assert batch.features.shape == (4, buckets[batch.bucket].num_frames, 4)
        seen += batch.indices.tolist()
        for row, index, length in zip(batch.features, batch.indices, batch.lengths, strict=True):
            assert length == len(features[index])
            np.testing.assert_array_equal(row[:length], features[index])
            assert not row[length:].any()
    assert len(seen) == len(set(seen))


def test_short_ones_come_first(features):
    buckets = make_buckets([len(f) for f in features], num_buckets=3, multiple=3, batch_size=4)
    stream = batch_stream(buckets, features, batch_size=4, seed=0, warm_up=30)
    order = [batch.bucket for batch in itertools.islice(stream, 60)]
    assert set(order[:10]) == {0}
    assert set(order[:20]) <= {0, 1}
    assert set(order[30:]) == {0, 1, 2}


def test_masks():
    rng = np.random.default_rng(0)
    features = np.ones((8, 50, 40), np.float32)
    lengths = np.array([50, 40, 30, 20, 10, 5, 2, 1], np.int32)
    masked = spec_augment(rng, features, lengths)
    assert features.all(), "the argument is left alone"
    assert masked.shape == features.shape
    hidden = masked == 0
    bands = hidden.all(axis=1)
    stretches = hidden.all(axis=2)
    np.testing.assert_array_equal(hidden, bands[:, None, :] | stretches[:, :, None])
    assert (bands.sum(axis=1) <= 18).all()
    assert (stretches.sum(axis=1) <= 14).all()
    assert bands.any()
    assert stretches.any()
