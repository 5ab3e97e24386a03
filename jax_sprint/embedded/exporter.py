"""From an orthography to its automaton, remembering those of before.

Lexicon, acoustic model and graph builder are made at first use, as in RASR: a host that is never
asked for an automaton needs none of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.full_sum import NodeGraph
from jax_sprint.embedded.lexicon import Lexicon
from jax_sprint.embedded.xml_stream import collector_paused

if TYPE_CHECKING:
    from jax_sprint.embedded.graph_builder import AllophoneStateGraphBuilder, Automaton

__all__ = ["AutomatonExporter"]


@dataclass(slots=True)
class _Entry:
    automaton: Automaton
    graph: NodeGraph | None = None


class AutomatonExporter:
    """Builds automata as RASR's ``alignment-fsa-exporter`` does.

    Args:
        config: of the component: its scopes ``model-combination`` and
            ``allophone-state-graph-builder`` are RASR's; ``cache-arcs`` is ours: automata are
            remembered until they have that many arcs together (default 2,000,000, about 110 MB;
            0 remembers none).
        tdp_scale: of the weights in what `graph` gives.
    """

    def __init__(self, config: Configuration, tdp_scale: Callable[[], float]) -> None:
        self._config = config
        self._tdp_scale = tdp_scale
        self._capacity = config.get_int("cache-arcs", 2_000_000, minimum=0)
        self._cache: OrderedDict[str, _Entry] = OrderedDict()
        self._arcs = 0
        self._builder: AllophoneStateGraphBuilder | None = None

    @property
    def lexicon_config(self) -> Configuration:
        """The component that names the lexicon."""
        return self._config.select("model-combination.lexicon")

    @property
    def builder(self) -> AllophoneStateGraphBuilder:
        """The graph builder; the first call reads the lexicon."""
        if self._builder is None:
            from jax_sprint.embedded.graph_builder import AllophoneStateGraphBuilder

            with collector_paused():
                lexicon = Lexicon.from_configuration(self.lexicon_config)
                self._builder = AllophoneStateGraphBuilder(self._config, lexicon)
        return self._builder

    def export(self, orthography: str) -> Automaton:
        """The automaton of an orthography.

        Raises:
            AutomatonError: there is none, for instance because of an out-of-vocabulary word.
        """
        return self._entry(orthography).automaton

    def graph(self, orthography: str) -> NodeGraph:
        """The same, compiled for the full sum.

        Raises:
            AutomatonError: there is none.
        """
        entry = self._entry(orthography)
        if entry.graph is None:
            fsa = entry.automaton
            entry.graph = NodeGraph.from_automaton(
                fsa.num_states, fsa.edges, fsa.weights, self._tdp_scale()
            )
        return entry.graph

    def _entry(self, orthography: str) -> _Entry:
        entry = self._cache.get(orthography)
        if entry is not None:
            self._cache.move_to_end(orthography)
            return entry
        entry = _Entry(self.builder.build(orthography))
        self._cache[orthography] = entry
        self._arcs += len(entry.automaton.weights)
        while self._arcs > self._capacity:
            _, oldest = self._cache.popitem(last=False)
            self._arcs -= len(oldest.automaton.weights)
        return entry
