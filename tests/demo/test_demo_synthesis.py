"""Synthetic speech is the same in every run, and says something."""

from __future__ import annotations

import numpy as np
import pytest

from jax_sprint.demo.espeak import Synthesiser, Voice
from jax_sprint.demo.pronunciations import look_up
from jax_sprint.demo.synthetic import TEST_VOICES, TRAIN_VOICES, synthetic_corpus

REQUESTS = [
    ("seven three left", Voice("en-us+f2")),
    ("backward", Voice("en-gb-scotland+m1", rate=200, pitch=30)),
    ("seven three left", Voice("en-us+f2")),
]


def test_same_requests_give_same_samples():
    first, second = Synthesiser(), Synthesiser()
    spoken = [first.speak(*request) for request in REQUESTS]
    # What another synthesiser said in between must not matter.
    again = [second.speak(*request) for request in REQUESTS]
    for samples, others in zip(spoken, again, strict=True):
        np.testing.assert_array_equal(samples, others)
        assert samples.dtype == np.float32
        assert 0.2 < len(samples) / first.rate < 3.0
        assert 0.01 < np.sqrt(np.mean(samples**2)) < 1.0


def test_voices_rates_and_pitches_differ():
    synthesiser = Synthesiser()
    slow, fast = (synthesiser.speak("window", Voice("en-us", rate=rate)) for rate in (120, 240))
    assert len(slow) > 1.3 * len(fast)
    low, high = (synthesiser.speak("all", Voice("en-us+m3", pitch=pitch)) for pitch in (10, 80))
    assert _pitch(high, synthesiser.rate) > 1.3 * _pitch(low, synthesiser.rate)


def _pitch(samples: np.ndarray, rate: int) -> float:
    """Frequency of the highest autocorrelation of the middle, between 60 and 240 Hz."""
    middle = len(samples) // 2
    window = samples[middle - rate // 15 : middle + rate // 15]
    correlation = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * len(window))) ** 2)
    shortest, longest = rate // 240, rate // 60
    return rate / (shortest + int(np.argmax(correlation[shortest:longest])))


def test_unknown_voice_is_named():
    with pytest.raises(ValueError, match=r"no voice 'nobody'.*en-us"):
        Synthesiser().speak("hello", Voice("nobody"))


def test_nothing_to_say_is_an_error():
    with pytest.raises(ValueError, match="''"):
        Synthesiser().speak("", Voice("en-us"))


def test_corpus_is_deterministic_and_split():
    corpus, again = (synthetic_corpus(seed=3, train_strings=20, test_strings=6) for _ in range(2))
    for utterance, other in zip(corpus.train + corpus.test, again.train + again.test, strict=True):
        assert utterance.words == other.words
        np.testing.assert_array_equal(utterance.audio, other.audio)
    assert not set(TRAIN_VOICES) & set(TEST_VOICES)
    speakers = {utterance.speaker for utterance in corpus.train}
    assert not speakers & {utterance.speaker for utterance in corpus.test}
    assert len(speakers) == len(TRAIN_VOICES)
    other_seed = synthetic_corpus(seed=4, train_strings=20, test_strings=6)
    assert [u.words for u in other_seed.train] != [u.words for u in corpus.train]


def test_pronunciations():
    found = look_up(["zero", "eight", "eight"])
    assert [" ".join(each.phones) for each in found["zero"]] == ["Z IH R OW", "Z IY R OW"]
    assert [" ".join(each.phones) for each in found["eight"]] == ["EY T"]


def test_words_without_pronunciation_are_named():
    with pytest.raises(ValueError, match=r"\['qwrtz', 'xyzzy'\].*Bliss lexicon"):
        look_up(["xyzzy", "one", "qwrtz"])
