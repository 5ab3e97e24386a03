"""From a spelling to the automaton that RASR would export for it.

The way there, one module each: words and their pronunciations (`orthography`), allophone states
that fit to each other (`context_transducer`, on `allophones` and `hmm_topology`), loops and
penalties (`time_distortion`, on `transition_model`), no epsilons (`epsilon_removal`), blanks
(`ctc_topology`), emissions (`state_tying`) and arrays (`automaton_export`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from jax_sprint.embedded.allophones import (
    FINAL,
    INITIAL,
    Allophone,
    AllophoneAlphabet,
    state_label,
)
from jax_sprint.embedded.automaton_export import Automaton, export
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.context_transducer import build_context_transducer
from jax_sprint.embedded.ctc_topology import add_ctc_blanks, add_rna_blanks
from jax_sprint.embedded.epsilon_removal import EpsilonFree, remove_epsilons
from jax_sprint.embedded.errors import AutomatonError, LexiconError
from jax_sprint.embedded.fsa import Fsa, compose
from jax_sprint.embedded.hmm_topology import HmmTopology, special_phoneme
from jax_sprint.embedded.lexicon import Lexicon
from jax_sprint.embedded.orthography import OrthographicParser
from jax_sprint.embedded.state_tying import StateTying
from jax_sprint.embedded.time_distortion import LabelGraph, apply_time_distortion
from jax_sprint.embedded.transition_model import TransitionModel

__all__ = ["AllophoneStateGraphBuilder", "Automaton"]

_TOPOLOGIES = ("hmm", "ctc", "rna")


class AllophoneStateGraphBuilder:
    """Builds automata.

    Args:
        config: of the component that holds ``model-combination`` and
            ``allophone-state-graph-builder``; in a full configuration this is
            ``root.select("alignment-fsa-exporter")``.
        lexicon: phonemes and words.

    Raises:
        ConfigurationError: a parameter that makes no sense.
        LexiconError: the special lemmas "silence" or "blank" are not as they must be.
        InputFileError: a look-up table cannot be read.
    """

    def __init__(self, config: Configuration, lexicon: Lexicon) -> None:
        combination = config.select("model-combination")
        acoustic_model = combination.select("acoustic-model")
        builder = config.select("allophone-state-graph-builder")
        if builder.get_int("label-min-duration", 1) > 1:
            raise builder.error("label-min-duration", "more than 1 is no longer offered by RASR")
        self.topology = builder.get_choice("topology", _TOPOLOGIES, "hmm")
        self._parser = OrthographicParser(builder.select("orthographic-parser"), lexicon)
        hmm = HmmTopology.from_configuration(acoustic_model.select("hmm"), lexicon)
        alphabet = AllophoneAlphabet(acoustic_model, lexicon, across_words=hmm.across_words)
        silence = None
        if hmm.silence is not None:
            silence = _only_state(alphabet, hmm.silence)
        self._blank = None
        if self.topology != "hmm":
            blank = lexicon.special_lemma("blank")
            if blank is None:
                raise LexiconError(
                    f"{lexicon.path}: topology = {self.topology} needs a lemma with "
                    'special="blank" and a pronunciation of one phoneme'
                )
            self._blank = _only_state(alphabet, special_phoneme(blank, lexicon))
        self._tying = StateTying(acoustic_model.select("state-tying"), alphabet, hmm)
        self._transitions = TransitionModel(
            acoustic_model, combination.get_float("scale", 1.0), alphabet, hmm, silence
        )
        if self.topology == "ctc":
            self._transitions.check_plain_loops()
        self._context = build_context_transducer(
            acoustic_model, alphabet, hmm, self._parser.word_end
        )

    @property
    def num_emissions(self) -> int:
        """How many emissions the state tying has, that is outputs of the acoustic model."""
        return self._tying.num_classes

    def build(self, orthography: str) -> Automaton:
        """The automaton of a spelling.

        Args:
            orthography: words separated by white space.

        Returns:
            The automaton, in RASR's conventions.  With the CTC topology an empty orthography gives
            blanks only, where RASR crashes.

        Raises:
            OutOfVocabularyError: a word that is not in the lexicon, nor can be replaced.
            AutomatonError: there is no automaton; says why, where that can be known.
        """
        with _without_collector():
            return self._build(orthography)

    def _build(self, orthography: str) -> Automaton:
        words = self._parser.parse(orthography)
        model = compose(self._context, self._parser.phoneme_graph(words))
        if not any(model.arcs) and (not model.arcs or self._blank is None):
            raise AutomatonError(
                f"no sequence of allophones is possible for the orthography {orthography!r}. "
                "Causes are an empty orthography without optional silence, words that cannot "
                "follow each other without a silence between them, or contexts of different "
                "lengths (set phonology.history-length and .future-length)"
            )
        try:
            return self._finish(model, words.log_semiring)
        except AutomatonError as error:
            raise type(error)(f"orthography {orthography!r}: {error}") from None

    def _finish(self, model: Fsa, log_semiring: bool) -> Automaton:
        if self.topology == "rna":
            graph = LabelGraph.from_fsa(model)
        else:
            graph = apply_time_distortion(model, self._transitions)
        if not graph.arcs:
            raise AutomatonError("the penalties forbid every path; set fewer of them to infinity")
        emission = self._tying.emission
        if self._blank is None:
            return export(EpsilonFree(graph, log_semiring=log_semiring), emission)
        graph = remove_epsilons(graph, log_semiring=log_semiring)
        if self.topology == "ctc":
            graph = add_ctc_blanks(graph, self._blank, emission)
        else:
            graph = add_rna_blanks(graph, self._blank)
        return export(graph, emission)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pauses the search for cyclic garbage: a build makes many small objects and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _only_state(alphabet: AllophoneAlphabet, phoneme: int) -> int:
    """The label of the first state of a phoneme that is a word by itself."""
    return state_label(alphabet.index(Allophone(phoneme, (), (), INITIAL | FINAL)), 0)
