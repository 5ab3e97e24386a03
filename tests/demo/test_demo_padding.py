"""An epoch of the demo corpora: few shapes, little padding, and Sprint is asked only once."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_sprint import SprintInstancePool, SprintOptions
from jax_sprint.demo.batches import batch_stream
from jax_sprint.demo.bliss import write_bliss
from jax_sprint.demo.corpus import Corpus
from jax_sprint.demo.dataset import Part, prepare
from jax_sprint.demo.features import FRAMES_PER_SECOND
from jax_sprint.demo.padding import Padding
from jax_sprint.demo.recordings import digit_corpus
from jax_sprint.demo.routes import CallbackRoute, FsaRoute
from jax_sprint.demo.synthetic import synthetic_corpus
from jax_sprint.demo.training import Recipe

BATCH_SIZE = 32


@pytest.fixture(autouse=True)
def quick_features(monkeypatch):
    """Only their number counts here."""

    def frames(audio, rate):
        return np.zeros((round(len(audio) * FRAMES_PER_SECOND / rate), 1), np.float32)

    monkeypatch.setattr("jax_sprint.demo.dataset.log_mel", frames)
    monkeypatch.setattr("jax_sprint.demo.dataset.resample", lambda audio, rate, new: audio)
    monkeypatch.setattr("jax_sprint.demo.dataset.common_rate", lambda rates: rates[0])


def epoch(part: Part, steps: int):
    """Buckets as for a training of so many steps, and the batches of its first epoch."""
    recipe = Recipe(steps=steps)
    buckets = part.buckets(recipe.num_buckets, BATCH_SIZE)
    stream = batch_stream(buckets, part.features, batch_size=BATCH_SIZE, seed=0)
    number = sum(max(len(bucket.members) // BATCH_SIZE, 1) for bucket in buckets)
    return buckets, list(itertools.islice(stream, number))


def open_pool(corpus: Corpus, folder: Path) -> SprintInstancePool:
    files = write_bliss(corpus, folder)
    return SprintInstancePool(SprintOptions(config=[f"--config={files.config}"], num_instances=2))


@pytest.mark.parametrize(("data", "steps"), [("speech", 600), ("recordings", 800)])
def test_few_shapes_and_little_padding(data, steps, tmp_path, request):
    if data == "speech":
        corpus = synthetic_corpus()
    else:
        corpus = digit_corpus(request.getfixturevalue("fsdd_dir"))
    part, _ = prepare(corpus)
    with open_pool(corpus, tmp_path) as pool:
        buckets, batches = epoch(part, steps)
        route = FsaRoute(pool, part, buckets)
        padding = Padding()
        seen = []
        for batch, automata in route.supervise(batches):
            padding.add(batch, automata)
            seen += batch.indices.tolist()
    assert len(seen) == len(set(seen)) > 0.9 * len(part.tags)
    assert padding.frames == part.lengths[seen].sum()
    assert len(padding.shapes) <= 8
    assert padding.frame_share <= 0.2
    assert padding.work_share <= 0.2
    assert padding.cell_share <= 0.45


@pytest.fixture
def small(digits_dir, tmp_path):
    corpus = digit_corpus(digits_dir, train_words=500, test_words=20)
    part, _ = prepare(corpus)
    with open_pool(corpus, tmp_path) as pool:
        yield part, pool


def settled(pool):
    """The pool's stats when no more answers come: to what was asked in advance, some come late."""
    before, now = None, pool.stats()
    while now != before:
        time.sleep(1.0)
        before, now = now, pool.stats()
    return now


def test_in_the_second_epoch_sprint_is_not_asked(small):
    part, pool = small
    buckets, batches = epoch(part, 300)
    route = FsaRoute(pool, part, buckets)
    first = [automata for _, automata in route.supervise(batches)]
    members = {index for batch in batches for index in batch.indices.tolist()}
    pool.get_automata(list(part.tags))  # also those that no batch has, and that none came to
    before = settled(pool)
    # What is exported in advance may be asked for twice, before either answer has come.
    assert len(members) <= before["automata_from_sprint"] <= 2 * len(part.tags)
    second = [automata for _, automata in route.supervise(batches)]
    after = pool.stats()
    for name in ("automata_from_sprint", "requests", "bytes_sent", "starts"):
        assert after[name] == before[name], name
    asked = sum(len(batch.indices) for batch in batches)
    found = after["automata_from_memory"] - before["automata_from_memory"]
    assert asked <= found <= asked + len(part.tags)
    for one, other in zip(first, second, strict=True):
        for array, same in zip(one.to_edges(), other.to_edges(), strict=True):
            np.testing.assert_array_equal(array, same)


def test_while_the_first_step_compiles_sprint_exports_everything(small):
    part, pool = small
    buckets, batches = epoch(part, 300)
    supervised = FsaRoute(pool, part, buckets).supervise(itertools.cycle(batches))

    def exporting():
        return any("in advance" in thread.name for thread in threading.enumerate())

    next(supervised)
    deadline = time.monotonic() + 60
    while exporting() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not exporting()
    asked = pool.stats()["automata_from_sprint"]
    assert asked >= len(part.tags)
    next(supervised)
    supervised.close()
    assert pool.stats()["automata_from_sprint"] == asked


@pytest.mark.parametrize("how", ["next", "close"])
def test_it_ends_with_the_first_step(small, monkeypatch, how):
    part, pool = small
    buckets, batches = epoch(part, 300)
    supervised = FsaRoute(pool, part, buckets).supervise(batches)
    ended = threading.Event()
    real = pool.get_automata

    def slow(tags, *, cancelled=None):
        if "in advance" in threading.current_thread().name:
            cancelled.wait(60)
            ended.set()
        return real(tags, cancelled=cancelled)

    monkeypatch.setattr(pool, "get_automata", slow)
    next(supervised)
    assert not ended.is_set()
    if how == "next":
        next(supervised)
        assert ended.is_set()
    supervised.close()
    assert ended.is_set()
    assert not any("in advance" in thread.name for thread in threading.enumerate())


def test_both_routes_pass_the_same_batches(small):
    part, pool = small
    buckets, batches = epoch(part, 300)
    supervised = (
        route(pool, part, buckets).supervise(iter(batches)) for route in (FsaRoute, CallbackRoute)
    )
    for batch, (one, automata), (other, tags) in zip(batches, *supervised, strict=True):
        assert one is batch
        assert other is batch
        assert len(automata) == len(tags) == BATCH_SIZE
        names = [bytes(row).rstrip(b"\0").decode() for row in tags]
        assert names == [part.tags[index] for index in batch.indices]


def test_padding_is_counted(small):
    part, pool = small
    buckets, batches = epoch(part, 300)
    padding, without = Padding(), Padding()
    cells = padded = 0
    shapes = set()
    for batch, automata in FsaRoute(pool, part, buckets).supervise(batches):
        shape = (batch.features.shape, *(leaf.shape for leaf in jax.tree.leaves(automata)))
        assert padding.add(batch, automata) == (shape not in shapes)
        without.add(batch, None)
        shapes.add(shape)
        edges, _, _ = automata.to_edges()
        for row, length in enumerate(batch.lengths.tolist()):
            own = edges[:, edges[3] == row]
            entered = {(int(to), int(label)) for _, to, label, _ in own.T}
            cells += length * (1 + len(entered))
            padded += int(batch.lengths.max()) * automata.sizes["nodes"]
    # Edges into a dead end may be kept apart, which saves their nodes.
    assert 0.6 * cells < padding.cells <= cells
    assert padding.padded_cells == padded
    assert len(padding.shapes) == len(shapes)
    assert padding.frame_share == 1 - padding.frames / padding.padded_frames
    assert padding.frame_share < padding.work_share < padding.cell_share < 1
    assert without.cell_share == 0
    assert without.work_share == without.frame_share == padding.frame_share
    assert Padding().work_share == 0
