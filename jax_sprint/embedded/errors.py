"""What can go wrong inside the embedded Sprint.

Every class is also a `ValueError` or a `KeyError`, because that is what RASR's `callback` raises
and what a control module written for RASR catches.  Only the standard library is imported.
"""

from __future__ import annotations

__all__ = [
    "AutomatonError",
    "ConfigurationError",
    "ControlModuleError",
    "CorpusError",
    "EmbeddedError",
    "InputFileError",
    "LexiconError",
    "NotOfferedError",
    "OutOfVocabularyError",
    "UnknownSegmentError",
]


class EmbeddedError(Exception):
    """Base class: the message says what, where, and what to do about it."""


class ConfigurationError(EmbeddedError, ValueError):
    """A configuration that cannot be read, or a parameter whose value makes no sense."""


class ControlModuleError(EmbeddedError):
    """The control module cannot be loaded, or did what would end RASR."""


class InputFileError(EmbeddedError, ValueError):
    """A file named by the configuration is missing, is no XML, or does not say what it must."""


class LexiconError(InputFileError):
    """The Bliss lexicon is wrong."""


class CorpusError(InputFileError):
    """The Bliss corpus, or a list of its segments, is wrong."""


class AutomatonError(EmbeddedError, ValueError):
    """No automaton can be built from this orthography with this configuration."""


class OutOfVocabularyError(AutomatonError):
    """A word of the orthography is not in the lexicon, and no unknown lemma can stand for it.

    Attributes:
        word: the word as the orthography has it.
    """

    def __init__(self, message: str, *, word: str = "") -> None:
        super().__init__(message)
        self.word = word


class UnknownSegmentError(EmbeddedError, KeyError):
    """The corpus has no segment of that full name."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class NotOfferedError(EmbeddedError, ValueError):
    """A command of RASR's callback that needs what only RASR has, such as its alignment caches."""
