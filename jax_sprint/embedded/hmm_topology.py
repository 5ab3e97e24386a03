"""How many states a phone has.

Facts from RASR's sources: the phoneme of the special lemma "silence" has one state, once; every
other phoneme has ``states-per-phone`` of them (default 3), each repeated ``state-repetitions``
times (default 2).
"""

from __future__ import annotations

from dataclasses import dataclass

from jax_sprint.embedded.allophones import MAX_STATES
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import LexiconError
from jax_sprint.embedded.lexicon import Lemma, Lexicon

__all__ = ["HmmTopology", "special_phoneme"]


@dataclass(frozen=True)
class HmmTopology:
    """States of phones.

    Attributes:
        states: of every phoneme but silence.
        repetitions: of each such state.
        silence: id of the silence phoneme, or None.
        across_words: whether the context of a phone reaches into the neighbouring word.
    """

    states: int
    repetitions: int
    silence: int | None
    across_words: bool

    @classmethod
    def from_configuration(cls, config: Configuration, lexicon: Lexicon) -> HmmTopology:
        """Reads ``states-per-phone``, ``state-repetitions``, ``across-word-model``.

        Args:
            config: of the ``hmm``.
            lexicon: which may have a special lemma "silence".
        """
        silence = lexicon.special_lemma("silence")
        return cls(
            config.get_int("states-per-phone", 3, minimum=1, maximum=MAX_STATES),
            config.get_int("state-repetitions", 2, minimum=1, maximum=127),
            None if silence is None else special_phoneme(silence, lexicon),
            config.get_bool("across-word-model", False),
        )

    def states_of(self, phoneme: int) -> int:
        """The number of different states of a phoneme."""
        return 1 if phoneme == self.silence else self.states

    def repetitions_of(self, phoneme: int) -> int:
        """How often each state of a phoneme is repeated."""
        return 1 if phoneme == self.silence else self.repetitions


def special_phoneme(lemma: Lemma, lexicon: Lexicon) -> int:
    """The one phoneme of a special lemma's pronunciation.

    Raises:
        LexiconError: it has no pronunciation, or one of no or several phonemes.
    """
    # RASR keeps pronunciations in a list that grows at its front, and takes the first.
    pronunciation = lemma.pronunciations[-1].phonemes if lemma.pronunciations else ()
    if len(pronunciation) != 1:
        found = f"its last one has {len(pronunciation)}" if lemma.pronunciations else "it has none"
        raise LexiconError(
            f"{lexicon.path}: the special lemma {lemma.special!r} needs a pronunciation of exactly "
            f"one phoneme; {found}"
        )
    return pronunciation[0]
