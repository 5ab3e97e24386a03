"""A bar where somebody is watching, silence elsewhere; and the long work that shows it."""

from __future__ import annotations

import io
import sys
import types

import pytest

from jax_sprint.bridge import SprintInstancePool
from jax_sprint.bridge import progress as progress_module
from jax_sprint.bridge.progress import ProgressBar
from jax_sprint.errors import SprintCrashError, SprintRequestError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch):
    """Without the half second that nothing is shown."""
    monkeypatch.setattr(progress_module, "_DELAY", 0.0)
    monkeypatch.setattr(progress_module, "_INTERVAL", 0.0)


def test_on_a_terminal(at_once) -> None:
    terminal = Terminal()
    with ProgressBar(4, "baking", stream=terminal) as bar:
        for done in range(5):
            bar.update(done)
    lines = terminal.getvalue().split("\r")
    assert lines[1].startswith("baking [                        ] 0/4, 0.")
    assert lines[3].startswith("baking [############            ] 2/4, 0.")
    assert lines[-1].startswith("baking [########################] 4/4, 0.")
    assert lines[-1].endswith("s\n")


def test_what_is_over_soon_shows_nothing() -> None:
    terminal = Terminal()
    with ProgressBar(4, "baking", stream=terminal) as bar:
        bar.update(4)
    assert terminal.getvalue() == ""


def test_files_and_pipes_get_nothing(at_once) -> None:
    for stream in (io.StringIO(), None):
        with ProgressBar(4, "baking", stream=stream) as bar:
            bar.update(2)
        assert stream is None or stream.getvalue() == ""
    wanted = io.StringIO()
    with ProgressBar(4, "baking", show=True, stream=wanted) as bar:
        bar.update(2)
    assert "2/4" in wanted.getvalue()
    unwanted = Terminal()
    with ProgressBar(4, "baking", show=False, stream=unwanted) as bar:
        bar.update(2)
    assert unwanted.getvalue() == ""


def test_in_a_notebook(at_once, monkeypatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    shell = types.SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    with ProgressBar(4, "baking") as bar:
        bar.update(1)
    assert "1/4" in stream.getvalue()
    # IPython on a terminal that is redirected into a file.
    del shell.kernel
    assert not progress_module._is_watched(stream)


def test_a_terminal_that_goes_away(at_once) -> None:
    terminal = Terminal()
    with ProgressBar(4, "baking", stream=terminal) as bar:
        bar.update(1)
        terminal.close()
        bar.update(2)


def test_starting_and_filling_show_it(at_once, options, capsys) -> None:
    with SprintInstancePool(options(num_instances=2)) as pool:
        pool.start(progress=True)
        shown = capsys.readouterr().err
        assert "starting Sprint [" in shown
        assert shown.endswith("\n")
        pool.fill_cache([f"a/b/{i}" for i in range(70)], progress=True)
        shown = capsys.readouterr().err
        for done in (32, 64, 70):
            assert f"{done}/70" in shown
        pool.fill_cache([f"a/c/{i}" for i in range(70)])
        assert capsys.readouterr().err == ""


def test_filling_the_cache(options, tmp_path) -> None:
    kept = options(num_instances=2, automata_cache=tmp_path / "automata.sqlite")
    tags = [f"a/b/{i}" for i in range(50)]
    with SprintInstancePool(kept) as pool:
        pool.fill_cache([*tags, *tags])
        assert pool.stats()["automata_from_sprint"] == 50
        pool.fill_cache(tags)
        pool.get_automata_for_batch(tags[:10])
        assert pool.stats()["automata_from_sprint"] == 50
    with SprintInstancePool(kept) as pool:
        pool.fill_cache(tags)
        assert pool.stats()["automata_from_disk"] == 50
        assert pool.stats()["starts"] == 0


def test_segments_that_have_no_automaton(options, caplog) -> None:
    """All others are fetched; what cannot be is named."""
    tags = [f"a/b/{i}" for i in range(40)]
    tags[3], tags[35] = "a/unknown/3", "a/unknown/35"
    with SprintInstancePool(options()) as pool:
        with pytest.raises(SprintRequestError, match="1 more of the 40 segments") as caught:
            pool.fill_cache(tags)
        assert caught.value.segment == "a/unknown/3"
        assert "a/unknown/35" in caplog.text
        before = pool.stats()["automata_from_sprint"]
        pool.get_automata_for_batch([tag for tag in tags if "unknown" not in tag])
        assert pool.stats()["automata_from_sprint"] == before
        with pytest.raises(SprintCrashError):
            pool.fill_cache(["a/exit/1", "a/b/1"])


def test_filling_no_cache(options) -> None:
    with (
        SprintInstancePool(options(automata_cache_bytes=0)) as pool,
        pytest.raises(ValueError, match="automata_cache_bytes = 0"),
    ):
        pool.fill_cache(["a/b/1"])
