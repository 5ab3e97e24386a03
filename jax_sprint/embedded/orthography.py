"""From a spelling to the graph of phonemes that may be spoken.

Two steps.  The *lemma acceptor* has one node per word boundary (and one more behind each optional
silence); an arc carries a lemma.  The *phoneme graph* spells out each lemma's pronunciations:
pronunciations that end alike share their tail, as they do in RASR, where a state stands for "these
phonemes are still to come, then that node".  Behind the last phoneme of a word comes an arc with
the word boundary mark.

Facts from RASR's sources (`Bliss::OrthographicParser`, the lexicon's transducers): spellings of
several words match wherever they occur, beside their parts; the special lemma "silence" may have
an empty spelling, which makes it optional at every boundary; a word that matches nothing becomes
the special lemma "unknown", and no silence is offered right before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import AutomatonError, ConfigurationError, OutOfVocabularyError
from jax_sprint.embedded.fsa import EPSILON, MatchSide, coaccessible
from jax_sprint.embedded.lexicon import Lemma, Lexicon, normalize_blanks

__all__ = ["OrthographicParser", "PhonemeGraph", "WordGraph"]

_WORD_START = 0


@dataclass
class WordGraph:
    """A lemma acceptor; node 0 is the start.

    Attributes:
        arcs: per node (target node, lemma id, cost) in the order of RASR's composition: by lemma.
        finals: cost of ending, by node.
        log_semiring: whether costs of alternatives are to be added as probabilities.
    """

    arcs: list[list[tuple[int, int, float]]]
    finals: dict[int, float]
    log_semiring: bool = False


class PhonemeGraph(MatchSide):
    """All phoneme sequences of a spelling, ready to be composed with the allophone states.

    A label is a phoneme id or the mark of a word's end; the other tape says whether a word begins
    here (its lemma id) or not (`EPSILON`).
    """

    __slots__ = ()


class OrthographicParser:
    """Builds word graphs and phoneme graphs.

    Args:
        config: of the ``orthographic-parser``: ``allow-for-silence-repetitions`` (default yes:
            any number of silences between words, instead of at most one) and
            ``normalize-lemma-sequence-scores`` (default no: the costs of all lemma sequences sum
            to probability one; works with silence repetitions off only).
        lexicon: the words.

    Raises:
        ConfigurationError: the two parameters contradict each other.
    """

    def __init__(self, config: Configuration, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.repeat_silence = config.get_bool("allow-for-silence-repetitions", True)
        self.normalize = config.get_bool("normalize-lemma-sequence-scores", False)
        if self.normalize and self.repeat_silence:
            raise config.error(
                "normalize-lemma-sequence-scores",
                "cannot be 'yes' while silence may be repeated, because endless sequences have no "
                "finite sum; set allow-for-silence-repetitions = no (tdp.silence.loop still lets "
                "silence last)",
            )
        self._silence = lexicon.special_lemma("silence")
        self._unknown = lexicon.special_lemma("unknown")
        self._longest = 1 + max(
            (orth.count(" ") for lemma in lexicon.lemmas for orth in lemma.orths), default=0
        )
        # Tails of pronunciations: (next phoneme, number of the tail behind it).  Number 1 is the
        # empty tail, behind which the word-end mark leads back to 0, the start of a word.
        self._word_end = len(lexicon.phonemes) + 1
        self._tails: list[tuple[int, int]] = [(0, 0), (self._word_end, _WORD_START)]
        self._tail_numbers: dict[tuple[int, ...], int] = {(): 1}
        self._spoken: dict[int, list[tuple[int, int, float]]] = {}

    @property
    def word_end(self) -> int:
        """The label of the arc behind a word's last phoneme."""
        return self._word_end

    def parse(self, orthography: str) -> WordGraph:
        """The word graph of a spelling.

        Args:
            orthography: words, separated by any white space.

        Raises:
            OutOfVocabularyError: a word that the lexicon does not have, and no unknown lemma with
                a pronunciation to stand for it.
            AutomatonError: no sequence of lemmas with pronunciations covers the spelling.
        """
        text = normalize_blanks(orthography)
        words = text.split(" ") if text else []
        count = len(words)
        arcs: list[list[tuple[int, int, float]]] = [[]]
        finals: dict[int, float] = {}
        nodes: list[int | None] = [None] * (count + 1)
        nodes[0] = right_most = 0
        silences = self.lexicon.lemmas_by_orth("")
        for begin in range(count + 1):
            node = nodes[begin]
            if node is None:
                continue
            for end in range(min(begin + self._longest, count), begin, -1):
                lemmas = self.lexicon.lemmas_by_orth(" ".join(words[begin:end]))
                if not lemmas:
                    continue
                if nodes[end] is None:
                    nodes[end] = len(arcs)
                    arcs.append([])
                right_most = max(right_most, end)
                arcs[node].extend((nodes[end], lemma.id, 0.0) for lemma in lemmas)  # type: ignore[misc]
            for lemma in silences:
                self._add_empty_word(lemma, node, arcs, finals, begin == count)
            if begin == right_most and begin < count:
                lemma = self._replacement(words[begin], text)
                nodes[begin + 1] = len(arcs)
                arcs.append([])
                right_most = begin + 1
                arcs[node].append((len(arcs) - 1, lemma.id, 0.0))
        finals[nodes[count]] = 0.0  # type: ignore[index]
        for here in arcs:
            here.sort(key=lambda arc: arc[1])
        graph = WordGraph(arcs, finals)
        if self.normalize:
            _normalize(_trimmed(graph))
        self._keep_spoken(graph)
        if not graph.arcs[0] and 0 not in graph.finals:
            raise AutomatonError(self._why_nothing(words, text))
        return graph

    def _add_empty_word(self, lemma: Lemma, node: int, arcs, finals, last: bool) -> None:
        if lemma is not self._silence or self.repeat_silence:
            arcs[node].append((node, lemma.id, 0.0))
            return
        # Optional, once: a copy of the node, with the arcs that it has so far.
        arcs.append(list(arcs[node]))
        if last:
            finals[len(arcs) - 1] = 0.0
        arcs[node].append((len(arcs) - 1, lemma.id, 0.0))

    def _replacement(self, word: str, text: str) -> Lemma:
        if self._unknown is not None and self._unknown.pronunciations:
            return self._unknown
        have = (
            "its special lemma 'unknown' has no pronunciation"
            if self._unknown is not None
            else "it has no special lemma 'unknown'"
        )
        raise OutOfVocabularyError(
            f"the word {word!r} of the orthography {text!r} is not in the lexicon "
            f"{self.lexicon.path}, and {have} that could stand for it; add the word, or a lemma "
            'special="unknown" with a <phon>',
            word=word,
        )

    def _keep_spoken(self, graph: WordGraph) -> None:
        lemmas = self.lexicon.lemmas
        for here in graph.arcs:
            if any(not lemmas[arc[1]].pronunciations for arc in here):
                here[:] = [arc for arc in here if lemmas[arc[1]].pronunciations]
        _trimmed(graph)

    def _why_nothing(self, words: list[str], text: str) -> str:
        mute = [
            word
            for word in words
            if not any(lemma.pronunciations for lemma in self.lexicon.lemmas_by_orth(word))
        ]
        if mute:
            return (
                f"the word {mute[0]!r} of the orthography {text!r} has no pronunciation in the "
                f"lexicon {self.lexicon.path}; give its lemma a <phon>"
            )
        return f"no sequence of lemmas with pronunciations covers the orthography {text!r}"

    # -- pronunciations -------------------------------------------------------------------------

    def _pronunciations(self, lemma: int) -> list[tuple[int, int, float]]:
        """(first phoneme, number of the tail, score) of each pronunciation of a lemma."""
        found = self._spoken.get(lemma)
        if found is None:
            found = []
            for pronunciation in self.lexicon.lemmas[lemma].pronunciations:
                phonemes = pronunciation.phonemes
                if phonemes:
                    tail = self._tail(phonemes[1:])
                    found.append((phonemes[0], tail, pronunciation.score))
                else:
                    found.append((self._word_end, _WORD_START, pronunciation.score))
            self._spoken[lemma] = found
        return found

    def _tail(self, phonemes: tuple[int, ...]) -> int:
        numbers = self._tail_numbers
        begin = 0
        while phonemes[begin:] not in numbers:
            begin += 1
        number = numbers[phonemes[begin:]]
        while begin > 0:
            begin -= 1
            self._tails.append((phonemes[begin], number))
            number = numbers[phonemes[begin:]] = len(self._tails) - 1
        return number

    def phoneme_graph(self, words: WordGraph) -> PhonemeGraph:
        """Spells out the pronunciations of every lemma of a word graph."""
        tails, word_arcs, word_finals = self._tails, words.arcs, words.finals
        width = len(word_arcs)
        # A state: (tail still to come, whether an arc without output led here, node).
        numbers: dict[int, int] = {0: 0}
        keys = [0]
        groups: list[dict[int, list[tuple[int, int, float]]] | None] = [None]
        finals: dict[int, float] = {}
        stack = [0]
        while stack:
            state = stack.pop()
            if groups[state] is not None:
                continue
            tail_and_filter, node = divmod(keys[state], width)
            tail = tail_and_filter >> 1
            found: list[tuple[int, int, int, float]] = []
            if tail != _WORD_START:
                phoneme, rest = tails[tail]
                found.append(((rest * 2 + 1) * width + node, phoneme, EPSILON, 0.0))
            else:
                if node in word_finals:
                    finals[state] = word_finals[node]
                for lemma, arcs in _by_lemma(word_arcs[node]):
                    for phoneme, rest, score in self._pronunciations(lemma):
                        for target, _, cost in arcs:
                            found.append((rest * 2 * width + target, phoneme, lemma, cost + score))
            group: dict[int, list[tuple[int, int, float]]] = {}
            for key, phoneme, output, cost in found:
                number = numbers.get(key)
                if number is None:
                    number = numbers[key] = len(keys)
                    keys.append(key)
                    groups.append(None)
                if phoneme in group:
                    group[phoneme].append((number, output, cost))
                else:
                    group[phoneme] = [(number, output, cost)]
                if groups[number] is None:
                    stack.append(number)
            groups[state] = dict(sorted(group.items())) if len(group) > 1 else group
        nothing: list[tuple[int, int, float]] = []
        return PhonemeGraph([nothing] * len(groups), groups, finals)  # type: ignore[arg-type]


def _by_lemma(arcs: list[tuple[int, int, float]]):
    """Groups of arcs, sorted by lemma, that carry the same lemma."""
    if len(arcs) == 1:
        return [(arcs[0][1], arcs)]
    return [(lemma, list(group)) for lemma, group in groupby(arcs, key=itemgetter(1))]


def _trimmed(graph: WordGraph) -> WordGraph:
    """Drops what cannot be part of a whole sequence; nodes keep their numbers."""
    alive = coaccessible(graph.arcs, 0, graph.finals)
    for node, here in enumerate(graph.arcs):
        if not alive[node]:
            here.clear()
        elif not all(alive[arc[0]] for arc in here):
            here[:] = [arc for arc in here if alive[arc[0]]]
    return graph


def _normalize(graph: WordGraph) -> None:
    graph.log_semiring = True
    for node, here in enumerate(graph.arcs):
        if any(arc[0] == node for arc in here):
            raise ConfigurationError(
                "normalize-lemma-sequence-scores = yes, but a lemma other than the special lemma "
                "'silence' has an empty orthography and may be repeated for ever; remove its "
                "empty <orth>"
            )
        costs = [arc[2] for arc in here]
        if node in graph.finals:
            costs.append(graph.finals[node])
        if not costs:
            continue
        best = min(costs)
        total = best - math.log(sum(math.exp(best - cost) for cost in costs))
        here[:] = [(target, lemma, cost - total) for target, lemma, cost in here]
        if node in graph.finals:
            graph.finals[node] -= total
