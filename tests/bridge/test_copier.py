"""Large copies that several threads share: the same result as without them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from jax_sprint.bridge import SprintInstancePool, crew, replies
from jax_sprint.bridge.copier import Copier, spare_cores
from jax_sprint.sprint_side.jax_sprint_control.wire import FormatError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
def copier():
    copier = Copier(2)
    yield copier
    copier.close()


def test_every_piece_is_done_once_and_by_several(copier) -> None:
    done = []
    together = threading.Barrier(3)

    def work(piece: int) -> bool:
        if piece < 3:
            together.wait(20)  # all three are at work at the same time
        done.append(piece)
        return True

    for _ in range(20):
        done.clear()
        assert copier.run(work, iter(range(50)))
        assert sorted(done) == list(range(50))


def test_it_ends_early_and_waits_for_the_others(copier) -> None:
    begun, ended = [], []
    released = threading.Event()

    def work(piece: int) -> bool:
        begun.append(piece)
        if piece == 1:
            released.set()
            ended.append(piece)
            return False
        released.wait(20)
        time.sleep(0.01)
        ended.append(piece)
        return True

    assert not copier.run(work, iter(range(10_000)))
    assert len(begun) < 1000
    assert sorted(begun) == sorted(ended)


def test_an_error_is_raised_where_it_was_asked_for(copier) -> None:
    def work(piece: int) -> bool:
        return 1 / (piece - 30) > -2

    with pytest.raises(ZeroDivisionError):
        copier.run(work, iter(range(50)))
    assert copier.run(lambda piece: True, iter(range(50)))


def test_after_close_it_works_alone(copier) -> None:
    assert copier.run(lambda piece: True, iter(range(5)))
    before = threading.active_count()
    copier.close()
    assert threading.active_count() == before - 2
    where = set()
    assert copier.run(lambda piece: not where.add(threading.current_thread()), iter(range(9)))
    assert where == {threading.current_thread()}
    copier.close()


def test_no_thread_without_work() -> None:
    before = threading.active_count()
    Copier(3).close()
    assert threading.active_count() == before
    assert spare_cores(10_000) == 0
    assert 0 <= spare_cores(1) <= 3


@pytest.mark.parametrize("labels", [3, 70_000])
@pytest.mark.parametrize("bad", [None, 0, 1, -1])
def test_copies(copier, labels: int, bad: int | None) -> None:
    rows = 3_000_000 // labels
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(rows, 2, labels)).astype(np.float32)
    if bad is not None:
        whole[bad, 1, bad] = np.nan
    target = np.zeros((rows, labels), np.float32)
    assert replies.copy_unless_nan(target, whole[:, 1], copier) is (bad is None)
    if bad is None:
        np.testing.assert_array_equal(target, whole[:, 1])
    out = np.zeros_like(whole)
    if bad is None:
        loss, error_signal = replies.parse_loss((1.5, target), target.shape, out[:, 1], copier)
        assert loss == 1.5
        assert error_signal.base is not None
        np.testing.assert_array_equal(out[:, 1], target)
    else:
        wrong = np.where(np.isnan(whole[:, 1]), np.float32(np.inf), whole[:, 1])
        with pytest.raises(FormatError, match="NaN or infinity"):
            replies.parse_loss((1.5, wrong), wrong.shape, out[:, 1], copier)
    assert not out[:, 0].any()


def test_a_sum_that_overflows_is_finite_still(copier) -> None:
    large = np.full((2000, 1000), 3e38, np.float32)
    _, out = replies.parse_loss((1.5, large), large.shape, None, copier)
    np.testing.assert_array_equal(out, large)
    # Numbers that are too large for float32 become infinite without a warning, in any thread.
    with pytest.raises(FormatError, match="NaN or infinity"):
        replies.parse_loss((1.5, large.astype(np.float64) * 10), large.shape, None, copier)


def test_in_a_pool(options, fake, monkeypatch) -> None:
    # As on a machine with more cores.
    monkeypatch.setattr(crew, "spare_cores", lambda num_instances: 2)
    rng = np.random.default_rng(0)
    log_posteriors = rng.normal(size=(500, 3, 4000)).astype(np.float32)
    lengths = np.array([500, 499, 3])
    names = ["a/b/0", "a/b/1", "a/b/2"]
    with SprintInstancePool(options()) as pool:
        before = threading.active_count()
        loss, error_signal = pool.get_batch_loss_and_error_signal(log_posteriors, lengths, names)
        assert "jax_sprint copier 1" in [thread.name for thread in threading.enumerate()]
        assert threading.active_count() > before
    for b, length in enumerate(lengths):
        want = fake.expected(names[b], log_posteriors[:length, b])
        np.testing.assert_allclose(loss[b], want[0], rtol=1e-4)
        np.testing.assert_array_equal(error_signal[:length, b], want[1])
        assert not error_signal[length:, b].any()
