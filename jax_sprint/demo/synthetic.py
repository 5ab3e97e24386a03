"""The default corpus: spoken commands and digits, synthesised at run time."""

from __future__ import annotations

import numpy as np

from jax_sprint.demo.corpus import Corpus, Utterance
from jax_sprint.demo.espeak import Synthesiser, Voice
from jax_sprint.demo.features import resample
from jax_sprint.demo.mixing import join
from jax_sprint.demo.progress import shown
from jax_sprint.demo.pronunciations import look_up
from jax_sprint.demo.recordings import DIGITS

__all__ = ["COMMANDS", "TEST_VOICES", "TRAIN_VOICES", "synthetic_corpus"]

COMMANDS = (
    *("yes", "no", "on", "off", "up", "down", "left", "right", "go", "stop", "start"),
    *("forward", "backward", "follow", "open", "close", "light", "music", "louder", "quiet"),
    *("play", "pause", "next", "back", "help", "house", "window", "kitchen", "morning", "evening"),
)
TRAIN_VOICES = (
    *("en-us", "en-us+m1", "en-us+m3", "en-us+f1", "en-us+f3", "en-us+Michael", "en+m2"),
    *("en+f2", "en+m7", "en-gb-x-rp+f4", "en-gb-x-rp+m4", "en-us-nyc", "en-us-nyc+f2"),
    *("en-gb-scotland+m1", "en-gb-scotland+f3", "en+Alex"),
)
TEST_VOICES = ("en-us+f2", "en-us+m2", "en+f4", "en-gb-x-rp+m1", "en-us-nyc+m7")
"""These never train."""

MAX_WORDS = 4
RATE = 16000


def synthetic_corpus(
    *,
    seed: int = 0,
    train_strings: int = 2400,
    test_strings: int = 400,
    progress: bool = False,
) -> Corpus:
    """Lets several voices speak strings of one to four words of a small vocabulary.

    Args:
        seed: of words, voices, rates, pitches and noise.
        train_strings: strings to train on, spoken by `TRAIN_VOICES`.
        test_strings: strings to test on, spoken by `TEST_VOICES`.
        progress: whether to show it, on standard error.

    Returns:
        The corpus, the same samples for the same arguments.
    """
    synthesiser = Synthesiser()
    vocabulary = sorted({*DIGITS, *COMMANDS})
    parts: dict[str, list[Utterance]] = {}
    for part, voices, number in (
        ("train", TRAIN_VOICES, train_strings),
        ("test", TEST_VOICES, test_strings),
    ):
        rng = np.random.default_rng([seed, part == "test"])
        parts[part] = []
        numbers = shown(
            range(number),
            f"synthesising speech to {part} on",
            total=number,
            unit="strings",
            enabled=progress,
        )
        for index in numbers:
            name = voices[index % len(voices)]
            length = int(rng.integers(1, MAX_WORDS + 1))
            words = tuple(
                vocabulary[choice] for choice in rng.integers(len(vocabulary), size=length)
            )
            voice = Voice(
                name,
                rate=int(rng.integers(140, 211)),
                pitch=int(rng.integers(30, 71)),
                pitch_range=int(rng.integers(30, 71)),
            )
            audio = resample(synthesiser.speak(" ".join(words), voice), synthesiser.rate, RATE)
            audio, rate = join([(audio, RATE)], rng, vary=part == "train")
            speaker = name.replace("+", "-")
            parts[part].append(
                Utterance(f"{part}-{speaker}", f"{index:05d}", words, speaker, audio, rate)
            )
    corpus = Corpus(
        name="commands",
        train=tuple(parts["train"]),
        test=tuple(parts["test"]),
        lexicon=look_up(vocabulary),
        description=(
            f"strings of 1 to {MAX_WORDS} out of {len(vocabulary)} words, synthesised by"
            f" {len(TRAIN_VOICES)} voices to train on and {len(TEST_VOICES)} others to test on"
        ),
    )
    corpus.validate()
    return corpus
