"""Strings of digits: which takes they are made of, and which folders are refused."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jax_sprint.demo import recordings
from jax_sprint.demo.corpus import DemoError
from jax_sprint.demo.recordings import digit_corpus, find_takes


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[int]]]:
    """Notes which recordings each string was joined from, by part."""
    notes: dict[str, list[list[int]]] = {"train": [], "test": []}
    original = recordings.join

    def join(pieces, rng, *, vary):
        notes["train" if vary else "test"].append([_mark(audio) for audio, _ in pieces])
        return original(pieces, rng, vary=vary)

    monkeypatch.setattr(recordings, "join", join)
    return notes


def _mark(audio: np.ndarray) -> int:
    return hash(audio.tobytes())


def _check_held_out(folder: Path, notes: dict[str, list[list[int]]]) -> None:
    takes = {_mark(soundfile.read(t.path, dtype="float32")[0]): t for t in find_takes(folder)}
    for part, strings in notes.items():
        assert strings
        for string in strings:
            used = [takes[mark] for mark in string]
            assert 1 <= len(used) <= 5
            assert len({take.speaker for take in used}) == 1
            assert all((take.number < 5) == (part == "test") for take in used)


def test_held_out_takes_never_train(digits_dir, joined):
    corpus = digit_corpus(digits_dir, train_words=300, test_words=200)
    _check_held_out(digits_dir, joined)
    assert {utterance.speaker for utterance in corpus.train} == {"anna", "ben_o"}
    assert sum(len(utterance.words) for utterance in corpus.test) >= 200
    assert {len(utterance.words) for utterance in corpus.test} == {1, 2, 3, 4, 5}
    uses = collections.Counter(mark for string in joined["train"] for mark in string)
    assert len(uses) == 60, "every training take is used"
    assert max(uses.values()) - min(uses.values()) <= 2, "about equally often"


def test_held_out_takes_never_train_on_real_recordings(fsdd_dir, joined):
    corpus = digit_corpus(fsdd_dir, train_words=2500)
    _check_held_out(fsdd_dir, joined)
    assert sum(len(utterance.words) for utterance in corpus.test) >= 1000


def test_same_seed_same_strings(digits_dir):
    first, second, third = (
        digit_corpus(digits_dir, seed=seed, train_words=50, test_words=50) for seed in (1, 1, 2)
    )
    for utterance, other in zip(first.train + first.test, second.train + second.test, strict=True):
        assert utterance.words == other.words
        np.testing.assert_array_equal(utterance.audio, other.audio)
    assert [u.words for u in first.test] != [u.words for u in third.test]


def test_another_speaker_does_not_change_the_strings_of_one(digits_dir, tmp_path):
    for path in digits_dir.glob("*_anna_*.wav"):
        (tmp_path / path.name).symlink_to(path)
    alone = digit_corpus(tmp_path, train_words=30, test_words=30)
    together = digit_corpus(digits_dir, train_words=60, test_words=60)
    own = [utterance for utterance in together.train if utterance.speaker == "anna"]
    assert [u.words for u in alone.train] == [u.words for u in own]
    np.testing.assert_array_equal(alone.train[0].audio, own[0].audio)


def test_folder_without_training_takes(digits_dir, tmp_path):
    (tmp_path / "3_anna_4.wav").symlink_to(digits_dir / "3_anna_4.wav")
    with pytest.raises(DemoError, match=r"train part: takes 5 and above"):
        digit_corpus(tmp_path)


def test_folder_without_held_out_takes(digits_dir, tmp_path):
    (tmp_path / "3_anna_7.wav").symlink_to(digits_dir / "3_anna_7.wav")
    with pytest.raises(DemoError, match=r"test part: takes 0 to 4"):
        digit_corpus(tmp_path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"no recording at all", "cannot read the recording"),
        (np.zeros((100, 2), np.float32), "not mono"),
        (np.zeros((0,), np.float32), "empty"),
    ],
)
def test_broken_recordings(digits_dir, tmp_path, contents, message):
    (tmp_path / "3_anna_0.wav").symlink_to(digits_dir / "3_anna_0.wav")
    path = tmp_path / "1_anna_6.wav"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        soundfile.write(path, contents, 8000)
    with pytest.raises(DemoError, match=rf"1_anna_6\.wav.*{message}|{message}.*1_anna_6\.wav"):
        digit_corpus(tmp_path)
