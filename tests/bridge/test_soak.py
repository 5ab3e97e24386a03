"""The soak of `benchmarks/soak.py`, shortened: children killed at random, everything else flat."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SOAK = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    sys.modules["soak"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules["soak"]


def test_soak(soak) -> None:
    taken, stats, problems = soak.soak(requests=2000, every=80, instances=2, samples=20)
    assert problems == []
    assert stats["requests"] >= 2000
    assert stats["failures"] == 0
    assert taken[-1].kills >= 10
    assert stats["restarts"] >= 10
    text = soak.report(taken, stats, problems, "shortened")
    assert "Nothing grew, nothing was lost." in text


def test_the_picture(soak, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra demo")
    taken = [soak.Sample(100 * i, float(i), i, 30, 8, 5, 50.0) for i in range(9)]
    soak.picture(taken, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes()[:4] == b"\x89PNG"


def test_what_grows_is_noticed(soak) -> None:
    def samples(**growth: float) -> list:
        return [
            soak.Sample(
                *(100 * i, float(i), i),
                fds=30 + int(growth.get("fds", 0) * i),
                threads=8,
                children=5 + int(growth.get("children", 0) * i),
                rss=50 + growth.get("rss", 0) * i,
            )
            for i in range(40)
        ]

    assert soak._drift(samples()) == []
    assert "fds grew from 30 to 31" in soak._drift(samples(fds=1 / 39))[0]
    assert "children grew" in soak._drift(samples(children=0.5))[0]
    assert "resident memory grew" in soak._drift(samples(rss=0.5))[0]
