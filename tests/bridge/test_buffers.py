"""Memory that is used again: only when nobody can see it any more."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np

from jax_sprint.bridge import SprintInstancePool
from jax_sprint.bridge.buffers import Buffers

SHAPE = (64, 32, 300)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    buffers = Buffers()
    first = buffers.empty(SHAPE)
    assert first.shape == SHAPE
    assert first.dtype == np.float32
    assert first.flags.writeable
    assert first.flags.c_contiguous
    where = address(first)
    view = first[3:, 5].T
    del first
    gc.collect()
    second = buffers.empty(SHAPE)
    assert address(second) != where
    view[...] = 1
    del view, second
    assert where in [address(array) for array in [buffers.empty(SHAPE), buffers.empty(SHAPE)]]


def test_a_view_through_the_buffer_protocol_counts() -> None:
    buffers = Buffers()
    first = buffers.empty(SHAPE)
    where = address(first)
    other = np.asarray(memoryview(first))
    del first
    assert address(buffers.empty(SHAPE)) != where
    assert address(other) == where


def test_a_smaller_array_fits_a_much_smaller_or_a_larger_one_does_not() -> None:
    buffers = Buffers()
    where = address(buffers.empty(SHAPE))
    smaller = buffers.empty((60, 32, 300))
    assert address(smaller) == where
    del smaller
    large = buffers.empty((100, 32, 300))
    assert large.size == 100 * 32 * 300
    del large
    small = buffers.empty((600, 500))
    assert small.base is not None
    assert not buffers._free  # what did not fit was let go


def test_what_is_kept_is_bounded() -> None:
    tracemalloc.start()
    try:
        buffers = Buffers()
        many = [buffers.empty(SHAPE) for _ in range(50)]
        del many
        assert tracemalloc.get_traced_memory()[0] < 9 * 4 * np.prod(SHAPE)
        last = buffers.empty(SHAPE)
        buffers.clear()
        del last
        assert tracemalloc.get_traced_memory()[0] < 4 * np.prod(SHAPE)
    finally:
        tracemalloc.stop()


def test_arrays_outlive_the_buffers() -> None:
    buffers = Buffers()
    array = buffers.empty(SHAPE)
    array.fill(7)
    del buffers
    gc.collect()
    assert (array == 7).all()


def test_a_batch_does_not_see_what_the_one_before_it_left(options, fake) -> None:
    # The second batch gets the first one's memory, and has shorter, empty, refused, and infinite
    # ones among its segments.
    rng = np.random.default_rng(0)
    log_posteriors = rng.normal(size=(100, 8, 600)).astype(np.float32)
    names = [f"a/b/{b}" for b in range(8)]
    with SprintInstancePool(options(num_instances=2, on_error="mask")) as pool:
        _, error_signal = pool.get_batch_loss_and_error_signal(
            log_posteriors, np.full(8, 100), names
        )
        assert (error_signal != 0).all()
        where = address(error_signal)
        del error_signal
        log_posteriors[3, 2, 5] = np.nan
        lengths = np.array([100, 50, 40, 0, 60, 70, 99, 100])
        names[4], names[5] = "a/unknown/4", "a/inf/5"
        loss, error_signal = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        assert address(error_signal) == where
        np.testing.assert_array_equal(np.isnan(loss), [0, 0, 1, 0, 1, 0, 0, 0])
        np.testing.assert_array_equal(np.isposinf(loss), [0, 0, 0, 1, 0, 1, 0, 0])
        for b, length in enumerate(lengths):
            assert (error_signal[length:, b] == 0).all()
            if b in (2, 4, 5):
                assert (error_signal[:, b] == 0).all()
            else:
                want = fake.expected(names[b], log_posteriors[:length, b])[1]
                np.testing.assert_array_equal(error_signal[:length, b], want)
