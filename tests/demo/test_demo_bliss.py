"""What the demo writes is what the embedded Sprint, and the demo itself, reads."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from jax_sprint import SprintInstancePool, SprintOptions
from jax_sprint.demo.bliss import write_bliss
from jax_sprint.demo.bliss_folder import bliss_corpus, find_bliss
from jax_sprint.demo.corpus import BLANK, Corpus, DemoError, Utterance
from jax_sprint.demo.pronunciations import Pronunciation

LEXICON = {
    "ab": (Pronunciation(("A", "B")), Pronunciation(("A", "C"), score=0.5)),
    "b": (Pronunciation(("B",)),),
}


def _corpus(number: int = 12) -> Corpus:
    rng = np.random.default_rng(0)
    utterances = []
    for index in range(number):
        words = tuple(rng.choice(["ab", "b"], size=1 + index % 3).tolist())
        audio = rng.normal(0, 0.1, 2000 + 100 * index).clip(-0.9, 0.9).astype(np.float32)
        recording = f"rec{index % 2}-{'test' if index >= 9 else 'train'}"
        utterances.append(Utterance(recording, f"s{index}", words, "eve & adam", audio, 8000))
    return Corpus("tiny", tuple(utterances[:9]), tuple(utterances[9:]), LEXICON, "a tiny one")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bliss(_corpus(), tmp_path)
    return tmp_path


def test_embedded_sprint_reads_it(tmp_path):
    corpus = _corpus()
    files = write_bliss(corpus, tmp_path / "with blanks")
    tags = [corpus.tag(utterance) for utterance in corpus.train + corpus.test]
    with SprintInstancePool(SprintOptions(config=[f"--config={files.config}"])) as pool:
        edges, weights, ends = pool.get_automata_for_batch(tags)
    assert corpus.labels() == (BLANK, "A", "B", "C")
    assert ends.shape == (2, len(tags))
    assert set(edges[2].tolist()) == {0, 1, 2, 3}
    for number, utterance in enumerate(corpus.train + corpus.test):
        own = edges[:, edges[3] == number]
        scores = weights[edges[3] == number]
        # Which labels there are tells that the numbering of the labels is ours.
        assert set(own[2].tolist()) == ({0, 1, 2, 3} if "ab" in utterance.words else {0, 2})
        assert (scores > 0).any() == ("ab" in utterance.words)
        assert set(scores[own[2] == 0].tolist()) == {0.0}


def test_round_trip(folder):
    corpus, again = _corpus(), bliss_corpus(folder)
    assert again.name == corpus.name
    assert again.lexicon == LEXICON
    for part, other_part in ((corpus.train, again.train), (corpus.test, again.test)):
        other_by_tag = {again.tag(other): other for other in other_part}
        assert len(other_by_tag) == len(part)
        for utterance in part:
            other = other_by_tag[corpus.tag(utterance)]
            assert (utterance.words, utterance.speaker) == (other.words, other.speaker)
            assert utterance.rate == other.rate
            np.testing.assert_allclose(utterance.audio, other.audio, atol=1e-4)


def test_writing_again_keeps_referring_to_the_audio(folder, tmp_path):
    first = bliss_corpus(folder)
    files = write_bliss(first, tmp_path / "second")
    assert not (files.corpus.parent / "audio").exists()
    second = bliss_corpus(files.corpus.parent)
    for utterance, other in zip(first.train + first.test, second.train + second.test, strict=True):
        assert first.tag(utterance) == second.tag(other)
        np.testing.assert_array_equal(utterance.audio, other.audio)


def test_every_tenth_is_held_out_without_a_list(folder):
    everything = bliss_corpus(folder)
    (folder / "test.segments").unlink()
    corpus = bliss_corpus(folder)
    assert len(corpus.test) == 1
    assert len(corpus.train) == len(everything.train) + len(everything.test) - 1


def test_gzipped_corpora_named_after_their_part(folder):
    text = (folder / "corpus.xml").read_text()
    (folder / "test.segments").unlink()
    (folder / "train.xml.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "corpus.xml").write_text(
        '<corpus name="tiny"><recording name="late" audio="audio/rec0-train.flac">'
        '<segment name="1" start="0" end="0.1"><orth>b</orth></segment></recording></corpus>'
    )
    (folder / "corpus.xml").rename(folder / "my-test.xml")
    corpora, lexica = find_bliss(folder)
    assert [path.name for path in corpora] == ["my-test.xml", "train.xml.gz"]
    assert [path.name for path in lexica] == ["lexicon.xml"]
    corpus = bliss_corpus(folder)
    assert [corpus.tag(utterance) for utterance in corpus.test] == ["tiny/late/1"]
    assert corpus.test[0].speaker == "unknown"
    assert len(corpus.test[0].audio) == 800


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("lexicon.xml", "<orth>ab</orth>", "<orth>abba</orth>", "no pronunciation for 'ab'"),
        ("lexicon.xml", "<phon>B</phon>", "<phon>[blank]</phon>", "blank"),
        ("lexicon.xml", "<phon>B</phon>", "<phon>Q</phon>", "unknown phoneme 'Q'"),
        ("corpus.xml", "</recording>", "", "corpus.xml"),
        ("corpus.xml", "audio/rec0", "audio/gone", r"cannot read the audio of segment 'tiny/rec0"),
        ("corpus.xml", 'end="0.250000"', 'end="-1"', r"segment 's0'.*after its end"),
        (
            "corpus.xml",
            'start="0.000000" end="0.250000"',
            'start="90" end="91"',
            r"segment 'tiny/rec0-train/s0' from 90.0 s to 91.0 s lies outside of .*rec0-train",
        ),
    ],
)
def test_wrong_files(folder, file, old, new, message):
    _replace(folder / file, old, new)
    with pytest.raises(DemoError, match=message):
        bliss_corpus(folder)


def test_lexicon_is_missing(folder):
    (folder / "lexicon.xml").unlink()
    with pytest.raises(DemoError, match=r"exactly one Bliss lexicon.*has 1 and 0"):
        bliss_corpus(folder)
