"""Real recordings: a folder of spoken digits, joined to strings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_sprint.demo.corpus import Corpus, DemoError, Utterance
from jax_sprint.demo.mixing import join
from jax_sprint.demo.pronunciations import look_up

__all__ = ["DIGITS", "HELD_OUT_TAKES", "Take", "digit_corpus", "find_takes"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT_TAKES = frozenset(range(5))
"""Takes that never train: the official test part of the Free Spoken Digit Dataset."""

MAX_DIGITS = 5
_USES = 5
_MOST_TRAIN_WORDS = 14000
_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>.+)_(?P<take>[0-9]+)\.wav")


@dataclass(frozen=True)
class Take:
    """One recording of one digit.

    Attributes:
        word: the digit as a word.
        speaker: who says it.
        number: number of the take; those in `HELD_OUT_TAKES` never train.
        path: the recording.
    """

    word: str
    speaker: str
    number: int
    path: Path

    @property
    def held_out(self) -> bool:
        """Whether the take is for testing only."""
        return self.number in HELD_OUT_TAKES


def find_takes(folder: Path) -> list[Take]:
    """Lists the recordings `{digit}_{speaker}_{take}.wav` of a folder, in a fixed order."""
    takes = []
    for path in folder.glob("*.wav"):
        match = _NAME.fullmatch(path.name)
        if match:
            word = DIGITS[int(match["digit"])]
            takes.append(Take(word, match["speaker"], int(match["take"]), path))
    return sorted(takes, key=lambda take: (take.speaker, take.number, take.word))


def digit_corpus(
    folder: Path, *, seed: int = 0, train_words: int | None = None, test_words: int = 1200
) -> Corpus:
    """Joins the takes of each speaker to strings of one to five digits.

    Every take is used about equally often.  Training strings vary in speed (by up to a tenth),
    level and background noise; test strings are the recordings as they are, over a noise floor
    40 dB below, which fills the pauses between the digits in both.

    Args:
        folder: where the recordings are; the speakers are those that it has.
        seed: of the random combinations.
        train_words: about how many digits the training strings have, over all speakers; None:
            each take occurs five times, or less often if that makes more than 14,000 digits.
        test_words: at least how many digits the test strings have, over all speakers.

    Returns:
        The corpus; its training strings hold no take of `HELD_OUT_TAKES`, its test strings no
        other.

    Raises:
        DemoError: if there is nothing to train or to test on, or a file is no mono recording.
    """
    takes = find_takes(folder)
    parts = {
        "train": [take for take in takes if not take.held_out],
        "test": [take for take in takes if take.held_out],
    }
    for part, chosen in parts.items():
        if not chosen:
            wanted = "0 to 4" if part == "test" else "5 and above"
            raise DemoError(
                f"{folder} has no recordings for the {part} part: takes {wanted} of"
                " {digit}_{speaker}_{take}.wav"
            )
    if train_words is None:
        train_words = min(_USES * len(parts["train"]), _MOST_TRAIN_WORDS)
    recordings = {take: _read(take.path) for take in takes}
    strings: dict[str, list[Utterance]] = {"train": [], "test": []}
    wanted_words = {"train": train_words, "test": test_words}
    for part, chosen in parts.items():
        speakers = sorted({take.speaker for take in chosen})
        share = -(-wanted_words[part] // len(speakers))
        for speaker in speakers:
            # One stream of random numbers per speaker: another speaker in the folder changes
            # nothing but the number of strings.
            rng = np.random.default_rng([seed, part == "test", *speaker.encode()])
            own = [take for take in chosen if take.speaker == speaker]
            for index, string in enumerate(_draw(own, share, rng)):
                audio, rate = join([recordings[take] for take in string], rng, vary=part == "train")
                words = tuple(take.word for take in string)
                strings[part].append(
                    Utterance(f"{part}-{speaker}", f"{index:05d}", words, speaker, audio, rate)
                )
    speakers = sorted({take.speaker for take in takes})
    corpus = Corpus(
        name="digits",
        train=tuple(strings["train"]),
        test=tuple(strings["test"]),
        lexicon=look_up(take.word for take in takes),
        description=(
            f"strings of 1 to {MAX_DIGITS} digits joined from {len(takes)} recordings of"
            f" {', '.join(speakers)}"
        ),
    )
    corpus.validate()
    return corpus


def _draw(takes: Sequence[Take], words: int, rng: np.random.Generator) -> Iterator[list[Take]]:
    """Cuts permutations of the takes into strings until there are enough words."""
    pool: list[Take] = []
    drawn = 0
    while drawn < words:
        length = int(rng.integers(1, MAX_DIGITS + 1))
        while len(pool) < length:
            pool += [takes[index] for index in rng.permutation(len(takes))]
        yield pool[:length]
        del pool[:length]
        drawn += length


def _read(path: Path) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        audio, rate = soundfile.read(path, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise DemoError(f"cannot read the recording {path}: {error}") from error
    if audio.ndim != 1 or not len(audio):
        raise DemoError(f"the recording {path} is empty or not mono (shape {audio.shape})")
    return audio, int(rate)
