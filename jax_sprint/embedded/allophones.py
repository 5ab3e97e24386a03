"""Phonemes in their context: allophones, their alphabet, and how their names are written.

Facts from RASR's sources (`Am::AllophoneAlphabet`, `Bliss::ContextPhonology`): the alphabet holds
the allophones of every pronunciation in the order of the lexicon, those across word boundaries
behind them; phonemes without context variation neither have a context nor give one; a name reads
``L{EH+OW}@i@f`` with ``#`` for no context.  The index of an allophone state is
``allophone + (state << 26)``; it decides the order of arcs, and is itself the emission where states
are not tied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import ConfigurationError, InputFileError
from jax_sprint.embedded.lexicon import Lexicon
from jax_sprint.embedded.xml_stream import open_maybe_gzip

__all__ = [
    "FINAL",
    "INITIAL",
    "MAX_STATES",
    "WORD_END",
    "Allophone",
    "AllophoneAlphabet",
    "state_label",
]

INITIAL = 1
FINAL = 2
"""Flags of an allophone at the beginning and at the end of a word."""

_STATE_SHIFT = 26
_ALLOPHONE_MASK = (1 << _STATE_SHIFT) - 1

MAX_STATES = 16
"""States per phone for which the labels of allophone states stay apart from `WORD_END`."""

WORD_END = 1 << 30
"""The label of a word boundary among the labels of allophone states."""


def state_label(allophone: int, state: int) -> int:
    """The label of a state of an allophone, both counted from 0."""
    return allophone | state << _STATE_SHIFT


class Allophone(NamedTuple):
    """A phoneme in context.

    Attributes:
        central: the phoneme's id.
        history: the phonemes before it, the nearest first.
        future: the phonemes behind it, the nearest first.
        boundary: `INITIAL` and `FINAL`, added.
    """

    central: int
    history: tuple[int, ...] = ()
    future: tuple[int, ...] = ()
    boundary: int = 0

    def phoneme(self, position: int) -> int:
        """The phoneme at a distance from the central one, negative to the left; 0 if none."""
        if position == 0:
            return self.central
        context = self.future if position > 0 else self.history
        return context[abs(position) - 1] if abs(position) <= len(context) else 0


class AllophoneAlphabet:
    """Numbers for allophones.

    Args:
        config: of the ``acoustic-model``; read are ``phonology.history-length`` and
            ``.future-length`` (default 1), ``allophones.add-from-file``, ``.add-from-lexicon``
            (default yes), ``.add-all`` (default no).
        lexicon: phonemes and pronunciations.
        across_words: whether the context reaches into the neighbouring word.

    Raises:
        ConfigurationError: a phoneme's name has one of the characters that names of allophones
            need.
    """

    def __init__(self, config: Configuration, lexicon: Lexicon, *, across_words: bool) -> None:
        phonology = config.select("phonology")
        self.history_length = phonology.get_int("history-length", 1, minimum=0)
        self.future_length = phonology.get_int("future-length", 1, minimum=0)
        self.across_words = across_words
        self.lexicon = lexicon
        self.allophones: list[Allophone] = []
        self._numbers: dict[Allophone, int] = {}
        self._has_lexicon = False
        for phoneme in lexicon.phonemes:
            if any(character in phoneme.symbol for character in "{}.+"):
                raise ConfigurationError(
                    f"the phoneme {phoneme.symbol!r} of {lexicon.path} has one of the characters "
                    "'{', '}', '.', '+', which separate the parts of an allophone's name; rename it"
                )
        self.varies = [False] + [phoneme.context_dependent for phoneme in lexicon.phonemes]
        silence = lexicon.special_lemma("silence")
        self.silence_phonemes = {
            phoneme
            for pronunciation in (silence.pronunciations if silence is not None else ())
            for phoneme in pronunciation.phonemes
        }
        settings = config.select("allophones")
        file = settings.get_path("add-from-file")
        if file:
            self.add_from_file(file)
        if settings.get_bool("add-from-lexicon", True):
            self.add_from_lexicon()
        if settings.get_bool("add-all", False):
            self.add_all()

    def index(self, allophone: Allophone) -> int:
        """The number of an allophone, a new one if it has none."""
        number = self._numbers.get(allophone)
        if number is None:
            number = self._numbers[allophone] = len(self.allophones)
            self.allophones.append(allophone)
        return number

    def split(self, label: int) -> tuple[Allophone, int]:
        """The allophone and its state that a label stands for."""
        return self.allophones[label & _ALLOPHONE_MASK], (label >> _STATE_SHIFT) & 0xF

    # -- filling --------------------------------------------------------------------------------

    def add_from_lexicon(self) -> None:
        """Adds the allophones of all pronunciations, and those that neighbouring words make.

        A second call adds nothing.
        """
        if self._has_lexicon:
            return
        self._has_lexicon = True
        initial, final = _PhonemeSet(), _PhonemeSet()
        left: list[Allophone] = []
        right: list[Allophone] = []
        both: list[Allophone] = []
        seen: set[tuple[int, ...]] = set()
        for lemma in self.lexicon.lemmas:
            for pronunciation in lemma.pronunciations:
                phonemes = pronunciation.phonemes
                if not phonemes or phonemes in seen:
                    continue
                seen.add(phonemes)
                if self.varies[phonemes[0]]:
                    initial.add(phonemes[0])
                if self.varies[phonemes[-1]]:
                    final.add(phonemes[-1])
                for begin, end in self._runs(phonemes):
                    self._add_run(phonemes, begin, end, left, right, both)
        if not self.across_words:
            return
        before, after = final.in_order(), initial.in_order()
        for allophone in left:
            for phoneme in before:
                self.index(self._extended(allophone, phoneme, None))
        for allophone in right:
            for phoneme in after:
                self.index(self._extended(allophone, None, phoneme))
        for allophone in both:
            for phoneme, other in itertools.product(before, after):
                self.index(self._extended(allophone, phoneme, other))

    def _runs(self, phonemes: tuple[int, ...]) -> Iterable[tuple[int, int]]:
        """Stretches (first, last) of phonemes that all vary with their context, or all do not."""
        begin = 0
        for i in range(1, len(phonemes)):
            if self.varies[phonemes[i - 1]] != self.varies[phonemes[i]]:
                yield begin, i - 1
                begin = i
        yield begin, len(phonemes) - 1

    def _add_run(self, phonemes, first: int, last: int, left, right, both) -> None:
        varies = self.varies[phonemes[first]]
        history = self.history_length if varies else 0
        future = self.future_length if varies else 0
        across_left = self.across_words and varies and first == 0
        across_right = self.across_words and varies and last == len(phonemes) - 1
        numbers = self._numbers
        end = len(phonemes) - 1
        for i in range(first, last + 1):
            boundary = 0 if 0 < i < end else (INITIAL if i == 0 else 0) | (FINAL if i == end else 0)
            before = phonemes[i - history if i - history > first else first : i]
            if history > 1:
                before = before[::-1]
            elif not history:
                before = ()
            after = phonemes[i + 1 : (i + future if i + future < last else last) + 1]
            # Most are known: a plain tuple is faster to make, and equal to the named one.
            if (phonemes[i], before, after, boundary) in numbers:
                continue
            allophone = Allophone(phonemes[i], before, after, boundary)
            self.index(allophone)
            reaches_left = across_left and len(before) < history
            if future == 0 and first < i == last:
                reaches_left = False  # as in RASR; matters for histories of two and more
            reaches_right = across_right and len(after) < future
            if reaches_left:
                left.append(allophone)
            if reaches_right:
                right.append(allophone)
            if reaches_left and reaches_right:
                both.append(allophone)

    def _extended(self, allophone: Allophone, before: int | None, after: int | None) -> Allophone:
        history, future = allophone.history, allophone.future
        if before is not None and len(history) < self.history_length:
            history = (*history, before)
        if after is not None and len(future) < self.future_length:
            future = (*future, after)
        return allophone._replace(history=history, future=future)

    def add_all(self) -> None:
        """Adds every allophone that the phonemes can make."""
        varying = [p.id for p in self.lexicon.phonemes if p.context_dependent]
        others = [p.id for p in self.lexicon.phonemes if not p.context_dependent]
        across = 1 if self.across_words else 0
        for future_length in range(self.future_length + 1):
            for history_length in range(self.history_length + 1):
                kinds = [0]
                if history_length <= across:
                    kinds.append(INITIAL)
                if future_length <= across:
                    kinds.append(FINAL)
                if history_length <= across and future_length <= across:
                    kinds.append(INITIAL | FINAL)
                # The first phoneme of the history changes fastest.
                for backwards in itertools.product(varying, repeat=history_length + future_length):
                    context = backwards[::-1]
                    history, future = context[:history_length], context[history_length:]
                    for boundary in kinds:
                        for phoneme in varying:
                            self.index(Allophone(phoneme, history, future, boundary))
        for phoneme in others:
            for boundary in (0, INITIAL, FINAL, INITIAL | FINAL):
                self.index(Allophone(phoneme, (), (), boundary))

    def add_from_file(self, path: str) -> None:
        """Adds the allophones whose names a file lists, one a line; ``#`` begins a comment."""
        with open_maybe_gzip(path, InputFileError, "list of allophones") as file:
            for line in file.read().decode("utf-8").splitlines():
                name = line.strip()
                if name and not name.startswith("#"):
                    self.index(self.parse(name))

    # -- names ----------------------------------------------------------------------------------

    def format(self, allophone: Allophone) -> str:
        """The name of an allophone, e.g. ``HH{#+EH}@i``."""
        symbol = {phoneme.id: phoneme.symbol for phoneme in self.lexicon.phonemes}
        history = "-".join(symbol[p] for p in reversed(allophone.history)) or "#"
        future = "-".join(symbol[p] for p in allophone.future) or "#"
        text = f"{symbol[allophone.central]}{{{history}+{future}}}"
        return text + "@i" * bool(allophone.boundary & INITIAL) + "@f" * (allophone.boundary >> 1)

    def format_state(self, label: int) -> str:
        """The name of an allophone state, e.g. ``HH{#+EH}@i.0``."""
        allophone, state = self.split(label)
        return f"{self.format(allophone)}.{state}"

    def parse(self, name: str) -> Allophone:
        """The allophone of a name.

        Raises:
            InputFileError: no such name, or a phoneme that the lexicon does not have.
        """
        central, opening, rest = name.partition("{")
        context, closing, marks = rest.partition("}")
        history, plus, future = context.partition("+")
        boundary = {"": 0, "@i": INITIAL, "@f": FINAL, "@i@f": INITIAL | FINAL}.get(marks)
        if not (opening and closing and plus) or boundary is None:
            raise InputFileError(
                f"{name!r} is no allophone; it must look like 'EH{{HH+L}}' or 'HH{{#+EH}}@i'"
            )
        before = self._parse_context(history, name)[::-1][: self.history_length]
        after = self._parse_context(future, name)[: self.future_length]
        return Allophone(self._parse_phoneme(central, name), before, after, boundary)

    def _parse_context(self, text: str, name: str) -> tuple[int, ...]:
        if text == "#":
            return ()
        if self.lexicon.phoneme(text) is not None:
            return (self._parse_phoneme(text, name),)
        return tuple(self._parse_phoneme(symbol, name) for symbol in text.split("-"))

    def _parse_phoneme(self, symbol: str, name: str) -> int:
        phoneme = self.lexicon.phoneme(symbol)
        if phoneme is None:
            raise InputFileError(
                f"the phoneme {symbol!r} of the allophone {name!r} is not in the lexicon "
                f"{self.lexicon.path}"
            )
        return phoneme.id


class _PhonemeSet:
    """A set that lists its members as the hash set of RASR's C++ library does.

    That order numbers the allophones across word boundaries.  Facts about libstdc++: numbers hash
    to themselves; 13 buckets at first, then 29, 59, ...; a new member goes to the front of its
    bucket, and to the front of all if the bucket was empty; growing inserts all members anew.
    """

    _SIZES = (13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229)

    def __init__(self) -> None:
        self._members: set[int] = set()
        self._arrivals: list[int] = []

    def add(self, phoneme: int) -> None:
        if phoneme not in self._members:
            self._members.add(phoneme)
            self._arrivals.append(phoneme)

    def in_order(self) -> Sequence[int]:
        size_step = 0
        order: list[int] = []
        for phoneme in self._arrivals:
            if len(order) + 1 > self._SIZES[size_step]:
                size_step += 1
                members, order = order, []
                for member in members:
                    self._insert(order, member, self._SIZES[size_step])
            self._insert(order, phoneme, self._SIZES[size_step])
        return order

    @staticmethod
    def _insert(order: list[int], phoneme: int, buckets: int) -> None:
        same = (i for i, other in enumerate(order) if (other - phoneme) % buckets == 0)
        order.insert(next(same, 0), phoneme)
