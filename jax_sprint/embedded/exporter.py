"""From an orthography to its automaton, remembering those of before.

Lexicon, acoustic model and graph builder are made at first use, as in RASR: a host that is never
asked for an automaton needs none of them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.lexicon import Lexicon
from jax_sprint.embedded.xml_stream import collector_paused

if TYPE_CHECKING:
    from jax_sprint.embedded.graph_builder import AllophoneStateGraphBuilder, Automaton

__all__ = ["AutomatonExporter"]


class AutomatonExporter:
    """Builds automata as RASR's ``alignment-fsa-exporter`` does.

    Args:
        config: of the component: its scopes ``model-combination`` and
            ``allophone-state-graph-builder`` are RASR's; ``cache-arcs`` is ours: automata are
            remembered until they have that many arcs together (default 4,000,000, about 64 MB;
            0 remembers none).
    """

    def __init__(self, config: Configuration) -> None:
        self._config = config
        self._capacity = config.get_int("cache-arcs", 4_000_000, minimum=0)
        self._cache: OrderedDict[str, Automaton] = OrderedDict()
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
        automaton = self._cache.get(orthography)
        if automaton is not None:
            self._cache.move_to_end(orthography)
            return automaton
        automaton = self.builder.build(orthography)
        self._cache[orthography] = automaton
        self._arcs += len(automaton.weights)
        while self._arcs > self._capacity:
            _, oldest = self._cache.popitem(last=False)
            self._arcs -= len(oldest.weights)
        return automaton
