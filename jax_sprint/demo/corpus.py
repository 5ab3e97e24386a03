"""What the demo trains on: utterances, their lexicon, and the split into training and held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_sprint.demo.pronunciations import Pronunciation

__all__ = ["BLANK", "Corpus", "DemoError", "Source", "Utterance"]

BLANK = "[blank]"
"""Symbol of the blank, the first label of every demo."""


class DemoError(ValueError):
    """The demo was asked for something that it cannot do; the message says what to change."""


@dataclass(frozen=True)
class Source:
    """Where in an audio file an utterance lies.

    Attributes:
        path: the audio file.
        start: in seconds.
        end: in seconds.
    """

    path: Path
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """One segment of speech.

    Attributes:
        recording: name of its recording, which one or more segments make up.
        segment: name of the segment, unique within its recording.
        words: what is said.
        speaker: who says it.
        audio: [N] float32 samples, full scale is 1.
        rate: samples per second.
        source: the stretch of a file that it was read from; None if it is in memory only.
    """

    recording: str
    segment: str
    words: tuple[str, ...]
    speaker: str
    audio: np.ndarray
    rate: int
    source: Source | None = None

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.audio) / self.rate


@dataclass(frozen=True)
class Corpus:
    """Utterances to train on, utterances to test on, and how their words are pronounced.

    Attributes:
        name: first part of every segment name.
        train: utterances that the model learns from.
        test: held-out utterances.
        lexicon: pronunciations of every word that occurs.
        description: one line for people.
    """

    name: str
    train: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    lexicon: Mapping[str, tuple[Pronunciation, ...]]
    description: str

    def tag(self, utterance: Utterance) -> str:
        """Gives the full segment name, `corpus/recording/segment`, that Sprint knows it by."""
        return f"{self.name}/{utterance.recording}/{utterance.segment}"

    def labels(self) -> tuple[str, ...]:
        """Gives the label set: the blank, then every phoneme of the lexicon, sorted."""
        phones = {
            phone
            for variants in self.lexicon.values()
            for each in variants
            for phone in each.phones
        }
        return (BLANK, *sorted(phones))

    def validate(self) -> None:
        """Checks that there is something to train and to test on and that every word is known.

        Raises:
            DemoError: if a part is empty, a segment name occurs twice, or a word has no
                pronunciation.
        """
        if not self.train or not self.test:
            missing = "training" if not self.train else "held-out"
            raise DemoError(f"corpus {self.name!r} has no {missing} utterances")
        unknown = sorted(_words(self.train + self.test) - set(self.lexicon))
        if unknown:
            raise DemoError(
                f"corpus {self.name!r}: no pronunciation for {', '.join(map(repr, unknown[:10]))};"
                " add them to the lexicon"
            )
        seen: set[str] = set()
        for utterance in self.train + self.test:
            tag = self.tag(utterance)
            if tag in seen:
                raise DemoError(f"corpus {self.name!r}: two segments are called {tag!r}")
            seen.add(tag)


def _words(utterances: Iterable[Utterance]) -> set[str]:
    return {word for utterance in utterances for word in utterance.words}
