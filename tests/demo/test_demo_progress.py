"""A bar where somebody looks on, a few lines elsewhere."""

from __future__ import annotations

import itertools
import sys
import types

import pytest

from jax_sprint.demo import progress
from jax_sprint.demo.progress import shown


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, "_in_terminal", lambda: True)


@pytest.fixture
def clock(monkeypatch):
    """Moves on by a second whenever somebody looks."""
    seconds = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))


def test_a_few_lines_in_a_file(capsys, clock):
    items = shown(range(1000), "making tea", total=1000, unit="cups", details=lambda: "hot")
    assert list(items) == list(range(1000))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "making tea: 250 of 1,000 cups, hot",
        "making tea: 500 of 1,000 cups, hot",
        "making tea: 750 of 1,000 cups, hot",
        "making tea: 1,000 of 1,000 cups, hot",
    ]


def test_short_work_is_one_line(capsys):
    assert len(list(shown(range(100), "making tea", total=100, unit="cups"))) == 100
    assert capsys.readouterr().err == "making tea: 100 of 100 cups\n"


def test_little_work_and_work_that_ends_early(capsys, clock):
    assert list(shown([7], "a", total=1, unit="steps")) == [7]
    assert list(shown([], "b", total=0, unit="steps")) == []
    assert list(shown(range(5), "c", total=8, unit="steps")) == list(range(5))
    assert capsys.readouterr().err.splitlines() == ["a: 1 of 1 steps", "c: 3 of 8 steps"]


def test_a_bar_in_a_terminal(capsys, terminal):
    items = shown(range(20), "making tea", total=20, unit="cups", details=lambda: "hot")
    assert list(items) == list(range(20))
    last = capsys.readouterr().err.split("\r")[-1]
    assert "making tea: 100%" in last
    assert "20/20" in last
    assert "hot" in last


def test_a_bar_is_closed_when_the_work_fails(capsys, terminal):
    def work():
        yield 1
        raise RuntimeError("out of milk")

    with pytest.raises(RuntimeError, match="out of milk"):
        list(shown(work(), "making tea", total=2, unit="cups"))
    assert capsys.readouterr().err.endswith("\n")


def test_nothing_at_all(capsys, terminal):
    assert list(shown("abc", "spelling", total=3, unit="letters", enabled=False)) == list("abc")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("widgets", [True, False])
def test_a_bar_in_a_notebook(monkeypatch, capsys, widgets):
    shell = types.SimpleNamespace(kernel=object())
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)
    found = object() if widgets else None
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: found)
    if widgets:
        # Not imported: without a kernel the widget has nowhere to go.
        bars = types.SimpleNamespace(tqdm=lambda **_: pytest.fail("made"))
        monkeypatch.setitem(sys.modules, "tqdm.notebook", bars)
        assert progress._kind_of_bar() is bars.tqdm
    else:
        assert list(shown("abc", "spelling", total=3, unit="letters")) == list("abc")
        assert "spelling: 100%" in capsys.readouterr().err
