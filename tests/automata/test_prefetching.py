"""Automata made in the background: in order, in bounds, and without anything left running."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jax_sprint import Automata, SprintInstancePool, SprintOptions
from jax_sprint.automata.prefetching import prefetch
from jax_sprint.errors import SprintRequestError

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "bridge" / "fake_sprint.py"


@pytest.fixture
def pool() -> Iterator[SprintInstancePool]:
    options = SprintOptions(
        exec_path=[sys.executable, "-S", str(FAKE)],
        env={"PYTHONPATH": str(Path(np.__file__).parent.parent)},
        request_timeout=60.0,
        num_instances=2,
    )
    with SprintInstancePool(options) as pool:
        yield pool


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if "prefetch" in t.name]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert running() == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Supplier:
    """Gives each segment, an integer n, a chain of n + 1 arcs; can be held up and made to fail."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def get_automata_for_batch(self, tags):
        self.asked.append(list(tags))
        assert self.go.wait(20)
        if 13 in tags:
            raise SprintRequestError("no such segment")
        edges, first = [], 0
        for b, n in enumerate(tags):
            edges += [(first + i, first + i + 1, i, b) for i in range(n + 1)]
            first += n + 2
        ends = np.cumsum([n + 2 for n in tags]) - 1
        starts = ends - np.array(tags) - 1
        table = np.array(edges, np.uint32).reshape(-1, 4).T
        return table, np.zeros(table.shape[1], np.float32), np.stack([starts, ends]).astype("u4")


def lengths(automata: Automata) -> list[int]:
    _, _, ends = automata.to_edges()
    return (ends[1] - ends[0] - 1).tolist()


def test_order_and_content(pool: SprintInstancePool) -> None:
    batches = [{"tags": [f"a/b/{i}", f"a/c/{i}"], "number": i} for i in range(9)]
    count = 0
    for batch, automata in prefetch(batches, pool, num_labels=50, pad_to={"edges": 64}):
        assert batch is batches[count]
        want = Automata.from_edges(
            *pool.get_automata_for_batch(batch["tags"]), num_labels=50, pad_to={"edges": 64}
        )
        assert automata.sizes == want.sizes
        for array, other in zip(automata.to_edges(), want.to_edges(), strict=True):
            np.testing.assert_array_equal(array, other)
        count += 1
    assert count == 9
    assert pool.stats()["automata_from_sprint"] == 18


def test_tags_may_be_anywhere_in_a_batch() -> None:
    found = [
        lengths(automata)
        for _, automata in prefetch([("x", [2]), ("y", [3, 4])], Supplier(), tags=lambda b: b[1])
    ]
    assert found == [[2], [3, 4]]
    assert list(prefetch([], Supplier())) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_it_is_bounded(depth: int) -> None:
    supplier = Supplier()
    taken = []

    def batches():
        for i in range(20):
            taken.append(i)
            yield [i % 5]

    iterator = prefetch(batches(), supplier, depth=depth)
    time.sleep(0.05)
    assert taken == []
    for i in range(6):
        batch, automata = next(iterator)
        assert batch == [i % 5]
        assert lengths(automata) == batch
        wait_for(lambda want=i + depth: len(supplier.asked) > want)
        time.sleep(0.02)
        assert len(taken) == i + 1 + depth
    iterator.close()
    assert running() == []
    assert next(iterator, "the end") == "the end"


def test_an_error_comes_at_its_batch() -> None:
    iterator = prefetch([[1], [2], [13], [4]], Supplier(), depth=4)
    assert next(iterator)[0] == [1]
    assert next(iterator)[0] == [2]
    with pytest.raises(SprintRequestError, match="no such segment"):
        next(iterator)
    assert running() == []
    assert next(iterator, "the end") == "the end"


def test_an_error_of_sprint(pool: SprintInstancePool) -> None:
    iterator = prefetch([["a/b/1"], ["a/unknown/1"], ["a/b/2"]], pool)
    assert next(iterator)[0] == ["a/b/1"]
    with pytest.raises(SprintRequestError, match="a/unknown/1"):
        next(iterator)
    assert pool.get_automata_for_batch(["a/b/3"])[0].shape[0] == 4


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, StopAsyncIteration])
def test_an_error_of_the_batches_themselves(kind: type[BaseException]) -> None:
    def batches():
        yield [1]
        raise kind("the disk is full")

    iterator = prefetch(batches(), Supplier())
    next(iterator)
    with pytest.raises(kind, match="disk is full"):
        next(iterator)


def test_an_error_of_packing() -> None:
    with pytest.raises(ValueError, match="emission"):
        list(prefetch([[9]], Supplier(), num_labels=3))
    with pytest.raises(ValueError, match="no item 'tags', only \\['names'\\]"):
        list(prefetch([{"names": [1]}], Supplier()))


def test_a_loop_that_is_left() -> None:
    for batch, _ in prefetch([[i] for i in range(9)], Supplier()):
        if batch == [3]:
            break
    gc.collect()
    assert running() == []


def test_a_loop_that_fails() -> None:
    with contextlib.suppress(ZeroDivisionError):
        for batch, _ in prefetch([[i] for i in range(9)], Supplier()):
            assert 1 / (3 - batch[0])
    gc.collect()
    assert running() == []


def test_an_iterator_that_nobody_uses() -> None:
    prefetch([[1]], Supplier())
    assert running() == []


def test_closing_does_not_wait_for_sprint(pool: SprintInstancePool) -> None:
    iterator = prefetch([["a/b/1"], ["a/hang/1"]], pool)
    next(iterator)
    wait_for(lambda: pool.stats()["requests"] == 1)
    before = time.monotonic()
    iterator.close()
    # The request would take 60 seconds.
    assert time.monotonic() - before < 30
    assert running() == []
    assert pool.get_automata_for_batch(["a/b/2"])[0].shape[0] == 4


def test_it_works_ahead() -> None:
    supplier = Supplier()
    iterator = prefetch([[1], [2], [3]], supplier)
    next(iterator)
    # While the consumer does nothing, the next two are made.
    wait_for(lambda: supplier.asked == [[1], [2], [3]])
    assert [batch for batch, _ in iterator] == [[2], [3]]


def test_the_end_of_the_interpreter() -> None:
    code = (
        "import itertools, test_prefetching as t\n"
        "it = t.prefetch(([i % 5] for i in itertools.count()), t.Supplier(), depth=50)\n"
        "print(next(it)[0], t.running())\n"
    )
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "[0] ['jax_sprint prefetch of automata']\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], Supplier(), 0), "depth must be"),
        (([], Supplier(), True), "depth must be"),
        ((Supplier(), [], 2), "the batches come first"),
        ((3, Supplier(), 2), "batches must be iterable"),
    ],
)
def test_arguments_that_are_refused(arguments, message: str) -> None:
    batches, supplier, depth = arguments
    with pytest.raises(ValueError, match=message):
        prefetch(batches, supplier, depth=depth)
    with pytest.raises(ValueError, match="tags must be a function"):
        prefetch([], Supplier(), tags="tags")
