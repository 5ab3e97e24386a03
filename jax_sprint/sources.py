"""Where automata come from: what every source offers, and two sources besides the pool.

Whatever trains with `full_sum_loss` needs one thing of a source: the automata of a batch of
segments.  `AutomataSource` says it in one place, and these have it:

* `jax_sprint.SprintInstancePool`: Sprint processes, the real RASR or the embedded one;
* `LibrasrSource`: RASR inside this process, by way of its Python extension `librasr`;
* `TopologySource`: a function of `jax_sprint.topologies`, no Sprint at all.

Numpy and the standard library only; `librasr` is imported when a `LibrasrSource` is made.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jax_sprint.bridge.batches import join_automata
from jax_sprint.bridge.replies import parse_automaton
from jax_sprint.bridge.tags import decode_tags
from jax_sprint.errors import SprintProtocolError, SprintRequestError, SprintStartError
from jax_sprint.sprint_side.jax_sprint_control.wire import FormatError

__all__ = ["AutomataSource", "LibrasrSource", "TopologySource"]

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


@runtime_checkable
class AutomataSource(Protocol):
    """What a source of automata must offer.

    A class need not inherit from it; `isinstance` looks for the method only.

    Example:
        >>> def load(source: AutomataSource, tags: list[str]) -> Automata:
        ...     return Automata.from_edges(*source.get_automata_for_batch(tags))
    """

    def get_automata_for_batch(self, tags: Any, /) -> Edges:
        """Gives the automata of a batch of segments.

        Args:
            tags: the B full segment names, in any form that `decode_tags` takes.  A name may occur
                more than once.

        Returns:
            edges [4, E] uint32: from state, to state, emission index, sequence; weights [E]
            float32: costs, that is negative natural logarithms; start_end_states [2, B] uint32.
            States are numbered across the batch, and no two sequences share one.  This is what
            `Automata.from_edges` takes; nothing is padded.

        Raises:
            ValueError: `tags` is not as described, or a name in it is empty.
            SprintRequestError: there is no automaton for a segment; the error names it.
            SprintError: the source failed otherwise.
        """
        ...


class LibrasrSource:
    """RASR inside this process: its `librasr.AllophoneStateFsaBuilder`.

    It reads the same configuration as RASR's `nn-trainer` and gives the same automata, without a
    child process in between.  That has a price: where RASR ends its process or crashes (an empty
    automaton, a word that is not in the lexicon, a file that is missing), it ends this one.  The
    pool survives such a Sprint; prefer it for data that is not known to be clean.

    Relative file names in the configuration count from this process's working directory.  The
    application is called ``lib-rasr`` here, so parameters that are spelled out from
    ``neural-network-trainer`` on are not found; those that begin with ``*`` are.

    Methods may be called from any thread; one at a time is served, as RASR builds its models at
    first use and is not made for several.

    Args:
        config: RASR's configuration file, or a `librasr.Configuration` that is complete already.
        settings: further parameters by name, such as ``{"*.corpus.file": "dev.xml"}``; they
            replace those of the same name.  None: none.

    Raises:
        ImportError: `librasr` cannot be imported.
        SprintStartError: RASR could not read the configuration file, or refused what is in it.
    """

    def __init__(self, config: Any, settings: Mapping[str, object] | None = None) -> None:
        librasr = _import_librasr()
        if isinstance(config, str | os.PathLike):
            path = os.fspath(config)
            config = librasr.Configuration()
            if not config.set_from_file(path):
                raise SprintStartError(
                    f"librasr could not read the configuration file {path!r}; relative names count "
                    f"from {os.getcwd()}"
                )
        for name, value in (settings or {}).items():
            config.set(name, _as_text(value))
        try:
            self._builder = librasr.AllophoneStateFsaBuilder(config)
        except (ValueError, RuntimeError) as error:
            raise SprintStartError(f"librasr refused its configuration: {error}") from error
        self._lock = threading.Lock()

    def get_automata_for_batch(self, tags: Any, /) -> Edges:
        """As `AutomataSource.get_automata_for_batch`.

        The states of a sequence begin where those of the sequence before it end, and edges are in
        RASR's order.

        Raises:
            ValueError: `tags` is not as described.
            SprintRequestError: RASR knows no such segment, or cannot build its automaton.
            SprintProtocolError: what RASR gave is no automaton.
        """
        names = _names(tags)
        with self._lock:
            return join_automata([self._build(name) for name in names])

    def _build(self, name: str) -> tuple[int, int, np.ndarray, np.ndarray]:
        try:
            answer = self._builder.build_by_segment_name(name)
        except (ValueError, RuntimeError) as error:
            raise SprintRequestError(f"librasr: {error}", segment=name) from error
        try:
            return parse_automaton(tuple(answer))
        except (FormatError, TypeError) as error:
            raise SprintProtocolError(f"librasr: {error}", segment=name) from error


class TopologySource:
    """Automata from label sequences: one of `jax_sprint.topologies`, behind the same interface.

    Args:
        labels: gives the label sequence of a segment: a function of its full name, or a mapping
            from names.  It raises KeyError for a segment that it does not know.
        build: makes automata of a list of label sequences, for example ``topologies.ctc`` or
            ``functools.partial(topologies.hmm, loop=0.7)``; anything with `to_edges` will do.

    Example:
        >>> from functools import partial
        >>> from jax_sprint import topologies
        >>> from jax_sprint.sources import TopologySource
        >>> source = TopologySource({"c/r/1": [3, 1, 4]}, partial(topologies.ctc, num_labels=6))
        >>> edges, weights, start_end_states = source.get_automata_for_batch(["c/r/1"])
    """

    def __init__(
        self,
        labels: Callable[[str], Sequence[int]] | Mapping[str, Sequence[int]],
        build: Callable[[list[Sequence[int]]], Any],
    ) -> None:
        for name, value in (("labels", labels), ("build", build)):
            if not callable(value) and not (name == "labels" and isinstance(value, Mapping)):
                kinds = "a function or a mapping" if name == "labels" else "a function"
                raise ValueError(f"{name} must be {kinds}, got {type(value).__name__}")
        self._labels = labels.__getitem__ if isinstance(labels, Mapping) else labels
        self._build = build

    def get_automata_for_batch(self, tags: Any, /) -> Edges:
        """As `AutomataSource.get_automata_for_batch`; states and edges are in the builder's order.

        Raises:
            ValueError: `tags` is not as described, or the builder refuses a label sequence.
            SprintRequestError: there is no label sequence for a segment.
        """
        sequences = [self._sequence(name) for name in _names(tags)]
        return self._build(sequences).to_edges()

    def _sequence(self, name: str) -> Sequence[int]:
        try:
            return self._labels(name)
        except KeyError as error:
            raise SprintRequestError(
                f"there is no label sequence for the segment {name!r}", segment=name
            ) from error


def _names(tags: Any) -> list[str]:
    names = decode_tags(tags)
    for b, name in enumerate(names):
        if not name:
            raise ValueError(f"tags[{b}] is empty; every automaton needs a segment name")
    return names


def _as_text(value: object) -> str:
    """A value as RASR's configuration spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _import_librasr() -> Any:
    try:
        return importlib.import_module("librasr")
    except ImportError as error:
        raise ImportError(
            f"librasr cannot be imported: {error}. It is RASR's Python extension: build RASR with "
            "-DLibRASR=1 for this Python, and put the folder of librasr*.so on PYTHONPATH (or run "
            "'pip install .' in RASR's checkout). Without it, take a SprintInstancePool, which "
            "gives the same automata",
            name=error.name,
            path=error.path,
        ) from error
