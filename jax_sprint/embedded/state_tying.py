"""Which emission (output of the acoustic model) a state of an allophone has.

Facts from RASR's sources (`Am::ClassicStateTying`), by the name of the type:

===================  =============================================================================
``monophone``        one class per phoneme and state, counted phoneme by phoneme
``monophone-eow``    the same, and behind them one per phoneme and state for the phonemes that end
                     a word, in the order in which the alphabet has them; silence and phonemes in
                     brackets such as ``[noise]`` have none of their own
``monophone-dense``  phoneme x states + state, then the boundary class
``diphone-dense``    the same, then the phoneme before
``no-tying-dense``   the same, then all phonemes of the context: -1, +1, -2, +2, ...
``no-tying``         the index of the allophone state
``lookup``, ``lut``  a file of lines ``NAME EMISSION``
===================  =============================================================================

In the dense ones the phoneme number 0 stands for no context.  Decision trees (``cart``, RASR's
default) are not offered.
"""

from __future__ import annotations

from collections.abc import Callable

from jax_sprint.embedded.allophones import FINAL, Allophone, AllophoneAlphabet, state_label
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import AutomatonError, ConfigurationError, InputFileError
from jax_sprint.embedded.hmm_topology import HmmTopology
from jax_sprint.embedded.xml_stream import open_maybe_gzip

__all__ = ["StateTying"]

_TYPES = {
    "monophone": "monophone",
    "monophone-eow": "monophone-eow",
    "monophone-dense": "monophone-dense",
    "diphone-dense": "diphone-dense",
    "no-tying-dense": "no-tying-dense",
    "no-tying": "no-tying",
    "none": "no-tying",
    "lookup": "lookup",
    "lut": "lookup",
    "cart": "cart",
    "decision-tree": "cart",
}
_U32 = 2**32


class StateTying:
    """Maps labels of allophone states to emissions.

    Args:
        config: of the ``state-tying``: ``type``, ``file``, ``use-boundary-classes`` (default
            yes), ``use-word-end-classes`` (default no).
        alphabet: the allophones; a look-up table may add some.
        topology: states per phoneme.

    Raises:
        ConfigurationError: no or an unknown type, or one that does not go with the context.
        InputFileError: the look-up table cannot be read.
    """

    def __init__(
        self, config: Configuration, alphabet: AllophoneAlphabet, topology: HmmTopology
    ) -> None:
        self._config = config
        self._alphabet = alphabet
        self._topology = topology
        self.type = _TYPES[config.get_choice("type", _TYPES, "cart")]
        self._cache: dict[int, int] = {}
        builders: dict[str, Callable[[], Callable[[Allophone, int], int]]] = {
            "monophone": self._monophone,
            "monophone-eow": self._monophone_end_of_word,
            "monophone-dense": self._dense,
            "diphone-dense": self._dense,
            "no-tying-dense": self._dense,
            "no-tying": self._untied,
            "lookup": self._look_up,
        }
        if self.type == "cart":
            raise config.error(
                "type",
                "decision trees (cart) are not offered; choose one of "
                + ", ".join(name for name, kind in _TYPES.items() if kind != "cart")
                + ", or let RASR write the tree's classes to a look-up table",
            )
        self.num_classes = 0
        self._classify = builders[self.type]()

    def emission(self, label: int) -> int:
        """The emission of an allophone state.

        Raises:
            AutomatonError: the look-up table has no line for it.
        """
        found = self._cache.get(label)
        if found is None:
            found = self._cache[label] = self._classify(*self._alphabet.split(label))
        return found

    def _monophone(self) -> Callable[[Allophone, int], int]:
        classes: dict[tuple[int, int], int] = {}
        for phoneme in self._alphabet.lexicon.phonemes:
            for state in range(self._topology.states_of(phoneme.id)):
                classes[phoneme.id, state] = len(classes)
        self.num_classes = len(classes)
        return lambda allophone, state: classes[allophone.central, state]

    def _monophone_end_of_word(self) -> Callable[[Allophone, int], int]:
        alphabet, topology = self._alphabet, self._topology
        inner: dict[tuple[int, int], int] = {}
        for phoneme in alphabet.lexicon.phonemes:
            for state in range(topology.states_of(phoneme.id)):
                inner[phoneme.id, state] = len(inner)
        self.num_classes = len(inner)
        final: dict[tuple[int, int], int] = {}
        symbols = {phoneme.id: phoneme.symbol for phoneme in alphabet.lexicon.phonemes}
        silence = alphabet.silence_phonemes
        for allophone in alphabet.allophones:
            phoneme_id = allophone.central
            if not allophone.boundary & FINAL or phoneme_id in silence:
                continue
            if (phoneme_id, 0) in final:
                continue
            symbol = symbols[phoneme_id]
            bracketed = symbol.startswith("[") and symbol.endswith("]")
            for state in range(topology.states_of(phoneme_id)):
                if bracketed:
                    final[phoneme_id, state] = inner[phoneme_id, state]
                else:
                    final[phoneme_id, state] = self.num_classes
                    self.num_classes += 1

        def classify(allophone: Allophone, state: int) -> int:
            ends = allophone.boundary & FINAL and allophone.central not in silence
            found = (final if ends else inner).get((allophone.central, state))
            if found is None:  # RASR answers class 0, or whatever lies there in memory
                raise AutomatonError(
                    f"monophone-eow has no class for {alphabet.format(allophone)}, which was no "
                    "allophone yet when the classes were made; set "
                    "allophones.add-from-lexicon = yes"
                )
            return found

        return classify

    def _dense(self) -> Callable[[Allophone, int], int]:
        config, alphabet = self._config, self._alphabet
        boundaries = config.get_bool("use-boundary-classes", True)
        word_ends = config.get_bool("use-word-end-classes", False)
        if boundaries and word_ends:
            raise config.error(
                "use-word-end-classes",
                "excludes use-boundary-classes, which is on by default; set one to 'no'",
            )
        phonemes = len(alphabet.lexicon.phonemes) + 1
        states = self._topology.states
        context = max(alphabet.history_length, alphabet.future_length)
        positions: list[int] = []
        if self.type == "no-tying-dense":
            for distance in range(1, context + 1):
                positions += [-distance, distance]
        elif context != 1:
            raise config.error(
                "type",
                f"{self.type} needs a context of length 1, but the longer of "
                f"phonology.history-length and .future-length is {context}",
            )
        elif self.type == "diphone-dense":
            positions = [-1]
        self.num_classes = states * (4 if boundaries else 2 if word_ends else 1)
        self.num_classes *= phonemes ** (1 + len(positions))
        if self.num_classes >= _U32:
            raise ConfigurationError(
                f"{config.full_name('type')} = {self.type} with {phonemes - 1} phonemes makes "
                f"{self.num_classes} classes, more than 32 bits can number; shorten the context"
            )

        def classify(allophone: Allophone, state: int) -> int:
            result = allophone.central * states + state
            if boundaries:
                result = result * 4 + allophone.boundary
            elif word_ends:
                result = result * 2 + allophone.boundary // FINAL
            for position in positions:
                result = result * phonemes + allophone.phoneme(position)
            return result

        return classify

    def _untied(self) -> Callable[[Allophone, int], int]:
        alphabet = self._alphabet
        self.num_classes = sum(self._topology.states_of(a.central) for a in alphabet.allophones)
        return lambda allophone, state: state_label(alphabet.index(allophone), state)

    def _look_up(self) -> Callable[[Allophone, int], int]:
        alphabet = self._alphabet
        path = self._config.get_path("file")
        if not path:
            raise self._config.error("file", "no look-up table is named")
        table: dict[tuple[Allophone, int], int] = {}
        with open_maybe_gzip(path, InputFileError, "look-up table of the state tying") as file:
            lines = file.read().decode("utf-8", "replace").splitlines()
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            fields = line.split(" ")
            try:
                name, emission = fields
                name, _, state = name.rpartition(".")
                allophone = alphabet.parse(name)
                table[allophone, int(state)] = int(emission)
                if int(state) < 0 or not 0 <= int(emission) < _U32:
                    raise ValueError("the state and the class must not be negative")
            except ValueError as error:
                raise InputFileError(
                    f"{path}, line {number}: cannot use {line!r}; it must be an allophone state, "
                    f"one blank, and a number, such as 'EH{{HH+L}}.0 4' ({error})"
                ) from None
            alphabet.index(allophone)
        self.num_classes = max(table.values(), default=-1) + 1

        def classify(allophone: Allophone, state: int) -> int:
            found = table.get((allophone, state))
            if found is None:
                name = f"{alphabet.format(allophone)}.{state}"
                raise AutomatonError(
                    f"the look-up table {path} of the state tying has no line for {name}; add one"
                )
            return found

        return classify
