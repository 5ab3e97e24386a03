"""Sources of automata: the pool, `librasr` (a stand-in of its calling convention), topologies."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
import time
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jax_sprint import topologies
from jax_sprint.automata import Automata
from jax_sprint.bridge import SprintInstancePool, SprintOptions, encode_tags
from jax_sprint.embedded.callback import SprintCallback
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import UnknownSegmentError
from jax_sprint.errors import SprintProtocolError, SprintRequestError, SprintStartError
from jax_sprint.sources import AutomataSource, LibrasrSource, TopologySource

NAME = "a_mono3_default"


def make_librasr() -> types.ModuleType:
    """A module that is called as librasr is: positional arguments, `str` values, its return types.

    Facts of its binding: `Configuration()`, `.set(name, value="true")` of two strings,
    `.set_from_file(path)` giving False for a file that is not there; the builder takes such a
    configuration and nothing else, and gives a tuple of two ints and two flat arrays; an unknown
    segment is a ValueError.  The automata are the embedded Sprint's.
    """
    module = types.ModuleType("librasr")

    class Builder:
        def __init__(self, config: FakeConfiguration, /) -> None:
            if not isinstance(config, FakeConfiguration):
                raise TypeError("__init__(): incompatible constructor arguments")
            module.built.append(config)
            self._callback = SprintCallback(Configuration.from_argv(config.arguments))
            self.threads: set[int] = set()
            self.running = 0

        def build_by_segment_name(self, name: str, /) -> tuple:
            if not isinstance(name, str):
                raise TypeError("build_by_segment_name(): incompatible function arguments")
            self.running += 1
            assert self.running == 1, "called from two threads at once"
            self.threads.add(threading.get_ident())
            time.sleep(0.001)  # a chance for other threads to come in between
            try:
                answer = self._callback("export_allophone_state_fsa_by_segment_name", name)
            except UnknownSegmentError:
                raise ValueError(f"Could not find segment with name {name}") from None
            finally:
                self.running -= 1
            return module.change(answer)

    module.Configuration = FakeConfiguration
    module.AllophoneStateFsaBuilder = Builder
    module.change = lambda answer: answer
    module.built = []
    return module


class FakeConfiguration:
    def __init__(self) -> None:
        self.arguments: list[str] = []

    def set_from_file(self, path: str, /) -> bool:
        if not isinstance(path, str):
            raise TypeError("set_from_file(): incompatible function arguments")
        if not Path(path).is_file():
            return False
        self.arguments.append(f"--config={path}")
        return True

    def set(self, name: str, value: str = "true", /) -> None:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("set(): incompatible function arguments")
        # As written: only on a command line is the application put in front.
        self.arguments.append(f"--.{name}={value}")


@pytest.fixture
def librasr(monkeypatch, golden_dir) -> types.ModuleType:
    module = make_librasr()
    monkeypatch.setitem(sys.modules, "librasr", module)
    monkeypatch.chdir(golden_dir)
    return module


def equal(got, want) -> None:
    for array, name in zip(got, ("edges", "weights", "start_end_states"), strict=True):
        assert array.dtype == want[name].dtype
        np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-6, err_msg=name)


# -- the interface -----------------------------------------------------------------------------


def test_every_source_satisfies_the_protocol(librasr):
    with SprintInstancePool(SprintOptions(config=f"--config=config/{NAME}.config")) as pool:
        assert isinstance(pool, AutomataSource)
    assert isinstance(LibrasrSource(f"config/{NAME}.config"), AutomataSource)
    assert isinstance(TopologySource({}, topologies.ctc), AutomataSource)
    assert not isinstance(topologies, AutomataSource)
    assert not isinstance(SprintOptions(), AutomataSource)


def test_pool_and_librasr_give_what_rasr_exported(librasr, golden_dir):
    want = np.load(golden_dir / f"{NAME}.npz")
    options = SprintOptions(config=f"--config=config/{NAME}.config", cwd=golden_dir)
    with SprintInstancePool(options) as pool:
        sources: list[AutomataSource] = [pool, LibrasrSource(f"config/{NAME}.config")]
        for source in sources:
            equal(source.get_automata_for_batch(want["tags"]), want)


# -- librasr -----------------------------------------------------------------------------------


def test_librasr_takes_tags_in_every_form_and_repeated(librasr, golden_dir):
    want = np.load(golden_dir / f"{NAME}.npz")
    tags = [str(tag) for tag in want["tags"]]
    source = LibrasrSource(Path("config") / f"{NAME}.config")
    equal(source.get_automata_for_batch(encode_tags(tags)), want)
    edges, weights, ends = source.get_automata_for_batch([tags[1], tags[1].encode()])
    assert ends[0, 1] == ends[1, 0] + 1
    first, second = edges[:, edges[3] == 0], edges[:, edges[3] == 1]
    np.testing.assert_array_equal(second[:2], first[:2] + ends[0, 1])
    np.testing.assert_array_equal(weights[: weights.size // 2], weights[weights.size // 2 :])
    assert len(Automata.from_edges(edges, weights, ends)) == 2
    assert [a.shape for a in source.get_automata_for_batch([])] == [(4, 0), (0,), (2, 0)]


def test_librasr_configurations(librasr):
    file = f"config/{NAME}.config"
    LibrasrSource(file, {"*.corpus.file": Path("corpus.xml"), "*.flag": True, "*.tdp.scale": 2})
    assert librasr.built[-1].arguments == [
        f"--config={file}",
        "--.*.corpus.file=corpus.xml",
        "--.*.flag=true",
        "--.*.tdp.scale=2",
    ]
    ready = FakeConfiguration()
    ready.set_from_file(file)
    LibrasrSource(ready)
    assert librasr.built[-1] is ready
    with pytest.raises(
        SprintStartError, match=r"could not read .*'config/gone.config'.*count from"
    ):
        LibrasrSource("config/gone.config")


def test_librasr_refusing_its_configuration(librasr):
    class Refusing:
        def __init__(self, config, /):
            raise RuntimeError("invalid state-tying.type")

    librasr.AllophoneStateFsaBuilder = Refusing
    with pytest.raises(SprintStartError, match="refused its configuration: invalid state-tying"):
        LibrasrSource(f"config/{NAME}.config")


def test_librasr_errors_name_the_segment_and_leave_it_usable(librasr, golden_dir):
    source = LibrasrSource(f"config/{NAME}.config")
    with pytest.raises(SprintRequestError, match="Could not find segment") as caught:
        source.get_automata_for_batch(["tiny/rec1/seg1", "tiny/rec9/seg1"])
    assert caught.value.segment == "tiny/rec9/seg1"
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match=r"tags\[1\] is empty"):
        source.get_automata_for_batch(["tiny/rec1/seg1", ""])
    assert source.get_automata_for_batch(["tiny/rec1/seg1"])[0].shape[0] == 4


def test_librasr_failing_to_build(librasr):
    def refuse(answer):
        raise RuntimeError("some C++ exception")

    source = LibrasrSource(f"config/{NAME}.config")
    librasr.change = refuse
    with pytest.raises(SprintRequestError, match=r"librasr: some C\+\+ exception") as caught:
        source.get_automata_for_batch(["tiny/rec1/seg1"])
    assert caught.value.segment == "tiny/rec1/seg1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:3], "has 3 parts"),
        (lambda a: None, "not iterable"),
        (lambda a: (a[0], a[1] + 1, *a[2:]), "edges must hold"),
        (lambda a: (*a[:3], np.full_like(a[3], np.nan)), "weights hold NaN"),
        (lambda a: (1, *a[1:]), "beyond the 1 there are"),
    ],
)
def test_librasr_answering_nonsense(librasr, change, message):
    librasr.change = change
    source = LibrasrSource(f"config/{NAME}.config")
    with pytest.raises(SprintProtocolError, match=message) as caught:
        source.get_automata_for_batch(["tiny/rec1/seg1"])
    assert caught.value.segment == "tiny/rec1/seg1"


def test_librasr_serves_one_thread_at_a_time(librasr, golden_dir):
    with np.load(golden_dir / f"{NAME}.npz") as file:
        want = dict(file)  # an open archive cannot be read by several threads
    source = LibrasrSource(f"config/{NAME}.config")
    failures = []
    together = threading.Barrier(4)

    def ask() -> None:
        try:
            together.wait(60)
            equal(source.get_automata_for_batch(want["tags"]), want)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(source._builder.threads) == 4


def test_librasr_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "librasr", None)
    with pytest.raises(ImportError, match=r"librasr cannot be imported: .*SprintInstancePool") as e:
        LibrasrSource("any.config")
    assert isinstance(e.value.__cause__, ImportError)


def test_librasr_that_lacks_a_library(monkeypatch, tmp_path):
    (tmp_path / "librasr.py").write_text("raise ImportError('libopenblas.so.0: cannot open')\n")
    monkeypatch.delitem(sys.modules, "librasr", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"libopenblas.so.0: cannot open. .*PYTHONPATH"):
        LibrasrSource("any.config")


@pytest.mark.skipif(
    importlib.util.find_spec("librasr") is None,
    reason="needs RASR's own librasr, which no package registry has; build RASR to run this",
)
def test_the_real_librasr(golden_dir, tmp_path, monkeypatch):
    for name in ("corpus.xml", "lexicon.xml", f"config/{NAME}.config"):
        shutil.copy(golden_dir / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    want = np.load(golden_dir / f"{NAME}.npz")
    source = LibrasrSource(f"{NAME}.config")
    equal(source.get_automata_for_batch(want["tags"]), want)
    with pytest.raises(SprintRequestError):
        source.get_automata_for_batch(["tiny/rec9/seg1"])


# -- topologies --------------------------------------------------------------------------------

LABELS = {"c/r/1": [3, 1, 4], "c/r/2": [1, 5], "c/r/3": []}


@pytest.mark.parametrize("labels", [LABELS, LABELS.__getitem__], ids=["mapping", "function"])
def test_topologies(labels):
    source = TopologySource(labels, partial(topologies.ctc, num_labels=6))
    tags = ["c/r/2", "c/r/1", "c/r/2"]
    got = source.get_automata_for_batch(encode_tags(tags))
    want = topologies.ctc([[1, 5], [3, 1, 4], [1, 5]], num_labels=6).to_edges()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [a.dtype for a in got] == [np.uint32, np.float32, np.uint32]
    assert [a.shape for a in source.get_automata_for_batch([])] == [(4, 0), (0,), (2, 0)]


def test_topologies_refuse():
    source = TopologySource(LABELS, topologies.ctc)
    with pytest.raises(SprintRequestError, match="no label sequence for the segment 'c/r/9'") as e:
        source.get_automata_for_batch(["c/r/1", "c/r/9"])
    assert e.value.segment == "c/r/9"
    with pytest.raises(ValueError, match=r"tags\[0\] is empty"):
        source.get_automata_for_batch([""])
    with pytest.raises(ValueError, match="single name"):
        source.get_automata_for_batch("c/r/1")
    with pytest.raises(ValueError, match="labels must be a function or a mapping, got list"):
        TopologySource([[1]], topologies.ctc)
    with pytest.raises(ValueError, match="build must be a function, got dict"):
        TopologySource(LABELS, {})
