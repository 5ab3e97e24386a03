"""Automata that are kept in memory and in a file, and never outlive what they were made from."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.bridge import SprintInstancePool, SprintOptions
from jax_sprint.bridge.automata_store import AutomataStore
from jax_sprint.errors import SprintRequestError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

NAMES = ["a/b/1", "a/b/22", "a/b/1", "a/b/333"]


def counts(pool: SprintInstancePool) -> tuple[float, float, float]:
    stats = pool.stats()
    return (
        stats["automata_from_memory"],
        stats["automata_from_disk"],
        stats["automata_from_sprint"],
    )


def check(fake, answer, names: list[str]) -> None:
    edges, weights, start_end = answer
    first = 0
    for b, name in enumerate(names):
        states, count, want, costs = fake.expected_automaton(name)
        own = edges[3] == b
        assert own.sum() == count
        want = want.reshape(3, count) + np.array([[first], [first], [0]], np.uint32)
        np.testing.assert_array_equal(edges[:3, own], want)
        np.testing.assert_array_equal(weights[own], costs)
        assert start_end[:, b].tolist() == [first, first + states - 1]
        first += states


def test_memory(options, fake) -> None:
    with SprintInstancePool(options(num_instances=2)) as pool:
        check(fake, pool.get_automata_for_batch(NAMES), NAMES)
        assert counts(pool) == (0, 0, 3)
        check(fake, pool.get_automata_for_batch(NAMES[::-1]), NAMES[::-1])
        assert counts(pool) == (3, 0, 3)
        pool.close()
        pool.init()
        check(fake, pool.get_automata_for_batch([*NAMES, "a/b/4444"]), [*NAMES, "a/b/4444"])
        assert counts(pool) == (6, 0, 4)
        assert pool.stats()["requests"] == 4


def test_what_a_caller_does_to_the_answer_stays_with_the_caller(options, fake) -> None:
    with SprintInstancePool(options()) as pool:
        for array in pool.get_automata_for_batch(["a/b/1"]):
            array[...] = 77
        check(fake, pool.get_automata_for_batch(["a/b/1"]), ["a/b/1"])


def test_memory_is_bounded(options, fake) -> None:
    names = [f"a/b/{n}" for n in range(30)]
    with SprintInstancePool(options(automata_cache_bytes=6000)) as pool:
        check(fake, pool.get_automata_for_batch(names), names)
        check(fake, pool.get_automata_for_batch(names[-2:]), names[-2:])
        assert counts(pool) == (2, 0, 30)
        check(fake, pool.get_automata_for_batch(names[:20]), names[:20])
        assert counts(pool) == (2, 0, 50)
        assert 0 < pool._cache._bytes <= 6000


def test_no_cache(options, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with SprintInstancePool(options(automata_cache_bytes=0, automata_cache=path)) as pool:
        pool.get_automata_for_batch(NAMES)
        pool.get_automata_for_batch(NAMES)
        assert counts(pool) == (0, 0, 6)
    assert not path.exists()


def test_a_file_serves_another_pool_without_any_sprint(options, fake, tmp_path: Path) -> None:
    settings = options(automata_cache=tmp_path / "folder" / "automata.sqlite")
    with SprintInstancePool(settings) as pool:
        pool.get_automata_for_batch(NAMES)
    with SprintInstancePool(settings) as pool:
        check(fake, pool.get_automata_for_batch(NAMES), NAMES)
        check(fake, pool.get_automata_for_batch(NAMES), NAMES)
        assert counts(pool) == (3, 3, 0)
        assert pool.stats()["starts"] == pool.stats()["cache_faults"] == 0
    with SprintInstancePool(settings.replace(config=["--another=argument"])) as pool:
        pool.get_automata_for_batch(NAMES)
        assert counts(pool) == (0, 0, 3)


def test_what_others_answered_is_kept_when_one_fails(options) -> None:
    with SprintInstancePool(options()) as pool:
        for _ in range(2):
            with pytest.raises(SprintRequestError):
                pool.get_automata_for_batch(["a/b/1", "a/unknown/2", "a/b/3"])
        assert counts(pool) == (2, 0, 2)


@pytest.fixture
def corpus(golden_dir: Path, tmp_path: Path) -> Path:
    """A folder with what the embedded Sprint needs, to be changed at will."""
    for name in ("corpus.xml", "lexicon.xml", "config/a_mono3_default.config"):
        shutil.copy(golden_dir / name, tmp_path)
    return tmp_path


def embedded(folder: Path, **attributes) -> SprintOptions:
    return SprintOptions(
        config=["--config=a_mono3_default.config"], cwd=folder, start_timeout=60.0, **attributes
    )


def shorten_hello(folder: Path) -> None:
    lexicon = folder / "lexicon.xml"
    text = lexicon.read_text()
    orth = text.index("<orth>hello</orth>")
    phon = text.index(">", text.index("<phon", orth)) + 1
    lexicon.write_text(text[:phon] + "HH OW" + text[text.index("</phon>", phon) :])


TAG = "tiny/rec1/seg1"


def test_a_changed_lexicon_between_two_runs(corpus: Path) -> None:
    settings = embedded(corpus, automata_cache=corpus / "cache")
    with SprintInstancePool(settings) as pool:
        before = pool.get_automata_for_batch([TAG])
    shorten_hello(corpus)
    with SprintInstancePool(settings) as pool:
        after = pool.get_automata_for_batch([TAG])
        assert counts(pool) == (0, 0, 1)
    with SprintInstancePool(embedded(corpus)) as pool:
        fresh = pool.get_automata_for_batch([TAG])
    assert after[0].shape[1] < before[0].shape[1]
    for array, want in zip(after, fresh, strict=True):
        np.testing.assert_array_equal(array, want)
    with SprintInstancePool(settings) as pool:
        assert pool.get_automata_for_batch([TAG])[0].shape == after[0].shape
        assert counts(pool) == (0, 1, 0)


def test_a_changed_lexicon_under_a_running_sprint(corpus: Path, caplog) -> None:
    with SprintInstancePool(embedded(corpus, automata_cache=corpus / "cache")) as pool:
        before = pool.get_automata_for_batch([TAG])
        shorten_hello(corpus)
        with caplog.at_level(logging.WARNING, "jax_sprint"):
            after = pool.get_automata_for_batch([TAG])
        assert after[0].shape[1] < before[0].shape[1]
        assert "lexicon.xml" in caplog.text
        pool.get_automata_for_batch([TAG])
        assert counts(pool) == (1, 0, 2)
        assert pool.stats()["restarts"] == 1


def test_a_file_that_changes_while_sprint_reads_it(options, tmp_path: Path) -> None:
    # This one changes its own configuration with every start, so nothing is certain.
    source = tmp_path / "list.txt"
    with SprintInstancePool(
        options("", f"--list={source}", control_config={"starts": source})
    ) as pool:
        source.write_text("begun\n")
        for _ in range(2):
            pool.get_automata_for_batch(["a/b/1"])
        assert counts(pool) == (0, 0, 2)


def test_a_file_that_always_changes_does_not_restart_sprint_for_ever(
    options, tmp_path: Path, caplog
) -> None:
    source = tmp_path / "list.txt"
    with (
        caplog.at_level(logging.WARNING, "jax_sprint"),
        SprintInstancePool(
            options("", f"--list={source}", control_config={"starts": source})
        ) as pool,
    ):
        for _ in range(12):
            pool.get_automata_for_batch(["a/b/1"])
        assert pool.stats()["restarts"] == 8
    assert "again and again" in caplog.text


def test_a_callable_that_never_says_the_same_is_not_cached(options, fake) -> None:
    numbers = iter(range(100))
    settings = options()
    settings = settings.replace(config=lambda: [f"--number={next(numbers)}"])
    with SprintInstancePool(settings) as pool:
        for _ in range(2):
            check(fake, pool.get_automata_for_batch(["a/b/1"]), ["a/b/1"])
        assert counts(pool) == (0, 0, 2)
        assert pool.stats()["starts"] == 1


OTHER = textwrap.dedent(
    """
    import sys
    from jax_sprint.bridge import SprintInstancePool, SprintOptions
    site, fake, path, first = sys.argv[1:]
    options = SprintOptions(exec_path=[sys.executable, "-S", fake], env={"PYTHONPATH": site},
                            automata_cache=path)
    with SprintInstancePool(options) as pool:
        for n in range(40):
            pool.get_automata_for_batch([f"a/b/{first}/{n}", f"a/b/shared/{n}"])
        stats = pool.stats()
        assert stats["cache_faults"] == 0, stats
    """
)


def test_several_processes_share_a_file(options, fake, tmp_path: Path) -> None:
    settings = options(automata_cache=tmp_path / "cache")
    python, _, script = settings.exec_path
    site = settings.env["PYTHONPATH"]
    root = Path(__file__).resolve().parents[2]
    running = [
        subprocess.Popen(
            [python, "-c", OTHER, site, script, str(tmp_path / "cache"), first],
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for first in "xy"
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    names = [f"a/b/{first}/{n}" for first in ("x", "y", "shared") for n in range(40)]
    with SprintInstancePool(settings) as pool:
        check(fake, pool.get_automata_for_batch(names), names)
        assert counts(pool) == (0, 120, 0)


def damage_head(path: Path) -> None:
    path.write_bytes(b"not a database at all" + path.read_bytes()[21:])


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1024:] = bytes(len(data) - 1024)
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def other_bytes(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE automata SET edges = zeroblob(length(edges))")
    database.close()


def other_states(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE automata SET states = states + 1")
    database.close()


def another_segment(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE automata SET segment = segment || 'x'")
        database.execute("UPDATE automata SET segment = 'a/b/1' WHERE segment = 'a/b/22x'")
    database.close()


def text_instead(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE automata SET weights = 'text', states = 'many'")
    database.close()


def no_table(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE automata")
    database.close()


@pytest.mark.parametrize(
    ("damage", "whole_file", "faults"),
    [
        (damage_head, True, 1),
        (damage_pages, True, 1),
        (cut_off, True, 1),
        (other_bytes, False, 3),
        (other_states, False, 3),
        (another_segment, False, 1),
        (text_instead, False, 3),
        (no_table, False, 0),
    ],
)
def test_damage_costs_a_fetch(
    options, fake, tmp_path: Path, caplog, damage: Callable, whole_file: bool, faults: int
) -> None:
    path = tmp_path / "cache"
    settings = options(automata_cache=path)
    with SprintInstancePool(settings) as pool:
        pool.get_automata_for_batch(NAMES)
    damage(path)
    with caplog.at_level(logging.WARNING, "jax_sprint"), SprintInstancePool(settings) as pool:
        check(fake, pool.get_automata_for_batch(NAMES), NAMES)
        assert counts(pool) == (0, 0, 3)
        assert pool.stats()["cache_faults"] == faults
    assert ("damaged" in caplog.text) == bool(faults)
    assert path.with_name("cache.damaged").exists() == whole_file
    with SprintInstancePool(settings) as pool:
        check(fake, pool.get_automata_for_batch(NAMES), NAMES)
        assert counts(pool) == (0, 3, 0)
        assert pool.stats()["cache_faults"] == 0


def test_damage_while_another_has_the_file_open(options, fake, tmp_path: Path, caplog) -> None:
    path = tmp_path / "cache"
    settings = options(automata_cache=path)
    with SprintInstancePool(settings) as pool:
        pool.get_automata_for_batch(NAMES)
        with sqlite3.connect(path) as database:
            # Else the log that both have open would still tell the truth.
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
        damage_head(path)
        with (
            caplog.at_level(logging.WARNING, "jax_sprint"),
            SprintInstancePool(settings) as second,
        ):
            check(fake, second.get_automata_for_batch(NAMES), NAMES)
            check(fake, second.get_automata_for_batch(NAMES), NAMES)
            assert counts(second) == (3, 0, 3)
            assert second.stats()["cache_faults"] == 1
    assert "another process has it open" in caplog.text


def test_a_file_that_cannot_be_written(options, fake, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("not a directory")
    settings = options(automata_cache=tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "jax_sprint"), SprintInstancePool(settings) as pool:
        check(fake, pool.get_automata_for_batch(NAMES), NAMES)
        assert pool.stats()["cache_faults"] == 1
    assert "doing without it" in caplog.text


def test_files_of_others_are_left_alone(options, tmp_path: Path) -> None:
    text = tmp_path / "lexicon.xml"
    text.write_text("<lexicon>years of work</lexicon>")
    database = tmp_path / "other.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE automata (everything)")
    connection.close()
    for path, message in ((text, "no cache"), (database, "another program"), (tmp_path, "direct")):
        before = None if path.is_dir() else path.read_bytes()
        with (
            SprintInstancePool(options(automata_cache=path)) as pool,
            pytest.raises(ValueError, match=message),
        ):
            pool.get_automata_for_batch(NAMES)
        assert path.is_dir() or path.read_bytes() == before


def test_the_file_does_not_grow_with_every_change(fake, tmp_path: Path) -> None:
    store = AutomataStore(tmp_path / "cache")
    states, count, edges, weights = fake.expected_automaton("a/b/1")
    automaton = (states, count, edges.reshape(3, count), weights)
    for n in range(40):
        store.put(f"fingerprint {n}", [("a/b/1", automaton)])
    assert not store.get("fingerprint 0", ["a/b/1"])
    assert store.get("fingerprint 8", ["a/b/1"])
    store.close()
    assert store.get("fingerprint 8", ["a/b/1"]) == {}
    with sqlite3.connect(tmp_path / "cache") as database:
        assert database.execute("SELECT count(*) FROM automata").fetchone() == (32,)
    database.close()


def test_many_segments_at_once(fake, tmp_path: Path) -> None:
    store = AutomataStore(tmp_path / "cache")
    automata = {}
    for n in range(1100):
        states, count, edges, weights = fake.expected_automaton(f"a/b/{n}")
        automata[f"a/b/{n}"] = (states, count, edges.reshape(3, count), weights)
    store.put("f", automata.items())
    found = store.get("f", list(automata))
    store.close()
    assert found.keys() == automata.keys()
    for name, (states, count, edges, weights) in automata.items():
        assert found[name][:2] == (states, count)
        np.testing.assert_array_equal(found[name][2], edges)
        np.testing.assert_array_equal(found[name][3], weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"automata_cache": 3}, "automata_cache must be a path"),
        ({"automata_cache": ""}, "automata_cache is empty"),
        ({"automata_cache_bytes": -1}, "automata_cache_bytes must be"),
        ({"automata_cache_bytes": True}, "automata_cache_bytes must be"),
    ],
)
def test_options_that_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SprintOptions(**change)


def test_the_bridge_works_without_jax() -> None:
    code = "import sys, jax_sprint.bridge; assert 'jax' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
