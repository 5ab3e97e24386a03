"""The Bliss lexicon: phonemes, words, and how they are pronounced.

Facts about the format, as RASR reads it: phonemes are numbered from 1 in the order of the file;
a phoneme depends on its context unless its ``<variation>`` says ``none``; a pronunciation has a
``score`` (-log of a weight) or a ``weight``, 0 and 1 by default; the first ``<orth>`` of a lemma
is the preferred one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import LexiconError
from jax_sprint.embedded.xml_stream import XmlHandler, open_maybe_gzip, parse_xml

__all__ = ["Lemma", "Lexicon", "Phoneme", "Pronunciation", "normalize_blanks"]

_SPACE = " \t\n\r\f\v"


@dataclass(frozen=True, slots=True)
class Phoneme:
    """A sound.

    Attributes:
        id: its number, from 1 in the order of the file (RASR keeps 0 for "none").
        symbol: its name.
        context_dependent: whether its neighbours change it.
    """

    id: int
    symbol: str
    context_dependent: bool = True


@dataclass(frozen=True, slots=True)
class Pronunciation:
    """One way to pronounce a lemma.

    Attributes:
        phonemes: their ids; may be empty.
        score: -log of the weight, natural logarithm; `math.inf` for weight 0.
    """

    phonemes: tuple[int, ...]
    score: float = 0.0


@dataclass(slots=True, eq=False)
class Lemma:
    """A word with all its spellings and pronunciations.

    Attributes:
        id: its number, from 0 in the order of the file.
        orths: spellings, blanks normalised; the first is the preferred one.
        pronunciations: in the order of the file.  (RASR walks through them backwards.)
        special: ``"silence"``, ``"blank"``, ``"unknown"``, ... or None for a plain word.
        synt: syntactic tokens; None stands for the preferred spelling.
        evals: sequences of evaluation tokens; empty stands for the preferred spelling.
        name: as given by the attribute, or None.
    """

    id: int
    orths: tuple[str, ...]
    pronunciations: tuple[Pronunciation, ...] = ()
    special: str | None = None
    synt: tuple[str, ...] | None = None
    evals: tuple[tuple[str, ...], ...] = ()
    name: str | None = None


class Lexicon:
    """Phonemes and lemmas, with look-up by spelling and by special name.

    Attributes:
        phonemes: in the order of the file; ``phonemes[i].id == i + 1``.
        lemmas: in the order of the file.
        path: of the file, or ``"<memory>"``.
    """

    def __init__(
        self, phonemes: Iterable[Phoneme], lemmas: Iterable[Lemma], path: str = "<memory>"
    ) -> None:
        self.phonemes = list(phonemes)
        self.lemmas = list(lemmas)
        self.path = path
        self._phoneme_by_symbol = {phoneme.symbol: phoneme for phoneme in self.phonemes}
        self._by_orth: dict[str, list[Lemma]] = {}
        self._special: dict[str, Lemma] = {}
        for lemma in self.lemmas:
            for orth in lemma.orths:
                self._by_orth.setdefault(orth, []).append(lemma)
            if lemma.special is not None:
                self._special.setdefault(lemma.special, lemma)

    @classmethod
    def load(cls, path: str, *, normalize: bool = True, vocabulary: set[str] | None = None):
        """Reads a Bliss lexicon, plain or gzipped.

        Args:
            path: relative to the working directory.
            normalize: divide the weights of each lemma by their sum, as RASR does by default.
            vocabulary: if not None and not empty, only these spellings of plain words are kept.

        Raises:
            LexiconError: missing file, malformed XML, or contents that make no sense, with file
                and line.
        """
        reader = _LexiconReader(normalize, vocabulary or set())
        parse_xml(path, reader, "lexicon")
        return cls(reader.phonemes, reader.lemmas, path)

    @classmethod
    def from_configuration(cls, config: Configuration) -> Lexicon:
        """Reads what a ``lexicon`` component asks for: ``file``, ``normalize-pronunciation``,
        ``vocab.file``.

        Args:
            config: of the component, e.g. ``root.select("alignment-fsa-exporter.
                model-combination.lexicon")``.
        """
        path = config.get_path("file")
        if not path:
            raise config.error("file", "no lexicon is named; set it to a Bliss lexicon")
        words = config.select("vocab").get_path("file")
        vocabulary = _load_vocabulary(words) if words else None
        normalize = config.get_bool("normalize-pronunciation", True)
        return cls.load(path, normalize=normalize, vocabulary=vocabulary)

    def phoneme(self, symbol: str) -> Phoneme | None:
        """The phoneme of that name, or None."""
        return self._phoneme_by_symbol.get(symbol)

    def lemmas_by_orth(self, orth: str) -> list[Lemma]:
        """All lemmas that have this spelling, in the order of the file; maybe none."""
        return self._by_orth.get(orth, [])

    def special_lemma(self, name: str) -> Lemma | None:
        """The first lemma with ``special="name"``, or None."""
        return self._special.get(name)


def normalize_blanks(text: str) -> str:
    """Strips a text and makes every run of ASCII white space one blank."""
    if text.isascii():
        return " ".join(text.split())
    # str.split() would also break at no-break spaces, which belong to the word.
    return b" ".join(text.encode("utf-8", "surrogatepass").split()).decode("utf-8", "surrogatepass")


def _to_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


class _LexiconReader(XmlHandler):
    error = LexiconError

    def __init__(self, normalize: bool, vocabulary: set[str]) -> None:
        self.phonemes: list[Phoneme] = []
        self.lemmas: list[Lemma] = []
        self._normalize = normalize
        self._vocabulary = vocabulary
        self._ids: dict[str, int] = {}
        self._shared: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._no_score: dict[tuple[int, ...], Pronunciation] = {}
        self._names: set[str] = set()
        self._specials: set[str] = set()
        self._stack: list[str] = []
        self._pieces: list[str] = []
        self._ignored = 0
        self._symbols: list[str] = []
        self._context = True
        self._weight = 1.0
        self._reset_lemma({})

    def _reset_lemma(self, attributes: dict[str, str]) -> None:
        self._special = attributes.get("special") or None
        self._name = attributes.get("name")
        self._orths: list[str] = []
        self._prons: list[tuple[tuple[int, ...], float]] = []
        self._synt: tuple[str, ...] | None = None
        self._evals: list[tuple[str, ...]] = []
        self._tokens: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        stack = self._stack
        if not stack and tag != "lexicon":
            raise self.fail(f"the root element is <{tag}>, not <lexicon>; is this a Bliss lexicon?")
        stack.append(tag)
        self._pieces.clear()
        if tag == "lemma":
            self._reset_lemma(attributes)
        elif tag == "phon":
            self._weight = self._read_weight(attributes)
        elif tag == "phoneme":
            self._symbols, self._context = [], True
        elif tag in ("synt", "eval"):
            self._tokens = []

    def text(self, data: str) -> None:
        self._pieces.append(data)

    def end(self, tag: str) -> None:
        stack = self._stack
        stack.pop()
        parent = stack[-1] if stack else ""
        if parent == "lemma":
            if tag == "orth":
                self._orths.append(normalize_blanks("".join(self._pieces)))
            elif tag == "phon":
                self._add_pronunciation("".join(self._pieces))
            elif tag == "synt":
                self._synt = tuple(self._tokens)
            elif tag == "eval":
                self._evals.append(tuple(self._tokens))
        elif tag == "tok" and parent in ("synt", "eval"):
            self._tokens.append(normalize_blanks("".join(self._pieces)))
        elif tag == "lemma" and parent == "lexicon":
            self._end_lemma()
        elif parent == "phoneme":
            if tag == "symbol":
                self._symbols.append("".join(self._pieces).strip(_SPACE))
            elif tag == "variation":
                self._read_variation("".join(self._pieces).strip(_SPACE))
        elif tag == "phoneme":
            self._end_phoneme()
        self._pieces.clear()

    def _read_variation(self, text: str) -> None:
        if text not in ("none", "context"):
            raise self.fail(f"variation must be 'none' or 'context', not {text!r}")
        self._context = text == "context"

    def _end_phoneme(self) -> None:
        if not self._symbols:
            raise self.fail("a phoneme without a <symbol>")
        number = len(self.phonemes) + 1
        for symbol in self._symbols:
            if self._ids.get(symbol, number) != number:
                raise self.fail(f"the phonetic symbol {symbol!r} is already another phoneme's")
            self._ids[symbol] = number
        self.phonemes.append(Phoneme(number, self._symbols[0], self._context))

    def _read_weight(self, attributes: dict[str, str]) -> float:
        if not attributes:
            return 1.0
        score, weight = attributes.get("score"), attributes.get("weight")
        if score is not None and weight is not None:
            raise self.fail("a pronunciation has a score or a weight, not both")
        try:
            value = math.exp(-float(score)) if score is not None else float(weight or 1.0)
        except (ValueError, OverflowError):
            raise self.fail(
                f"the pronunciation's {'score' if score is not None else 'weight'} "
                f"{score if score is not None else weight!r} is no usable number"
            ) from None
        if not 0.0 <= value < math.inf:
            raise self.fail(
                f"a pronunciation's weight must be finite and not negative, not {value}"
            )
        return value

    def _add_pronunciation(self, text: str) -> None:
        try:
            phonemes = tuple([self._ids[symbol] for symbol in text.split()])
        except KeyError as problem:
            raise self.fail(
                f"unknown phoneme {problem.args[0]!r} in the pronunciation {text.strip()!r} of "
                f"{self._orths[0] if self._orths else ''!r}; "
                "add it to the phoneme inventory, which must come first"
            ) from None
        if any(phonemes == other for other, _ in self._prons):
            raise self.fail(
                f"duplicate pronunciation {text.strip()!r} of "
                f"{self._orths[0] if self._orths else ''!r}; remove one"
            )
        self._prons.append((self._shared.setdefault(phonemes, phonemes), self._weight))

    def _end_lemma(self) -> None:
        orths = self._orths
        if self._vocabulary and self._special is None:
            orths = [orth for orth in orths if orth in self._vocabulary]
            if not orths:
                return
        if not orths:
            raise self.fail("a lemma without <orth>; an empty one is written <orth/>")
        if self._special is not None:
            if self._special in self._specials:
                raise self.fail(f"the special lemma {self._special!r} is already defined")
            self._specials.add(self._special)
        if self._name is not None:
            if self._name in self._names:
                raise self.fail(f"the lemma name {self._name!r} is already taken")
            self._names.add(self._name)
        self.lemmas.append(
            Lemma(
                len(self.lemmas),
                tuple(orths),
                self._pronunciations(),
                self._special,
                self._synt,
                tuple(self._evals),
                self._name,
            )
        )

    def _pronunciations(self) -> tuple[Pronunciation, ...]:
        total = 1.0
        if self._normalize and self._prons:
            total = sum(_to_float32(weight) for _, weight in self._prons)
            if total <= 0.0:
                raise self.fail(f"the pronunciation weights of {self._orths[0]!r} sum to zero")
        result = []
        for phonemes, weight in self._prons:
            weight = weight / total
            if weight == 1.0:
                shared = self._no_score.get(phonemes)
                if shared is None:
                    shared = self._no_score[phonemes] = Pronunciation(phonemes)
                result.append(shared)
                continue
            # RASR keeps weights in single precision: beyond a score of about 103 none is left.
            weight = _to_float32(weight)
            score = -math.log(weight) if weight > 0.0 else math.inf
            result.append(Pronunciation(phonemes, _to_float32(score)))
        return tuple(result)


def _load_vocabulary(path: str) -> set[str]:
    with open_maybe_gzip(path, LexiconError, "vocabulary") as file:
        lines = file.read().decode("utf-8", "replace").split("\n")
    return {normalize_blanks(line) for line in lines if line and not line.startswith("#")}
