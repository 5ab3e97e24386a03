"""Reads a folder with a Bliss corpus, a Bliss lexicon and their audio."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

from jax_sprint.demo.bliss import TEST_LIST
from jax_sprint.demo.corpus import BLANK, Corpus, DemoError, Source, Utterance
from jax_sprint.demo.pronunciations import Pronunciation
from jax_sprint.embedded.corpus import Segment, load_name_list
from jax_sprint.embedded.corpus_reader import read_corpus
from jax_sprint.embedded.errors import InputFileError
from jax_sprint.embedded.lexicon import Lexicon

__all__ = ["bliss_corpus", "find_bliss"]

_ROOT = re.compile(rb"<(?![?!])\s*([A-Za-z-]+)")
_HELD_OUT_NAME = re.compile(r"test|dev|eval")
_ONE_IN = 10


def find_bliss(folder: Path) -> tuple[list[Path], list[Path]]:
    """Finds the Bliss corpora and lexica of a folder, `*.xml` or `*.xml.gz`, by their root."""
    found: dict[bytes, list[Path]] = {b"corpus": [], b"lexicon": []}
    for path in sorted([*folder.glob("*.xml"), *folder.glob("*.xml.gz")]):
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                match = _ROOT.search(file.read(1 << 16))
        except OSError as error:
            raise DemoError(f"cannot read {path}: {error}") from error
        if match and match[1] in found:
            found[match[1]].append(path)
    return found[b"corpus"], found[b"lexicon"]


def bliss_corpus(folder: Path) -> Corpus:
    """Reads a Bliss folder.

    Held out are the segments that `test.segments` names, one a line; without that file, those of
    corpora with "test", "dev" or "eval" in their file name; without such, every tenth segment.

    Args:
        folder: has one lexicon and one or several corpora of the same name; audio names are
            relative to it.

    Raises:
        DemoError: if files are missing, malformed or contradict each other.
    """
    corpora, lexica = find_bliss(folder)
    if not corpora or len(lexica) != 1:
        raise DemoError(
            f"{folder} needs a Bliss corpus and exactly one Bliss lexicon (*.xml or *.xml.gz),"
            f" and has {len(corpora)} and {len(lexica)}"
        )
    try:
        read = [(path, *read_corpus(str(path), lower=False)) for path in corpora]
        lexicon = Lexicon.load(str(lexica[0]), normalize=False)
        listed = (
            set(load_name_list(str(folder / TEST_LIST), "list of held-out segments"))
            if (folder / TEST_LIST).is_file()
            else set()
        )
    except InputFileError as error:
        raise DemoError(str(error)) from error
    names = sorted({name for _, name, _ in read})
    if len(names) > 1:
        raise DemoError(f"the corpora in {folder} must have one name, and have {', '.join(names)}")
    segments = [
        (path, segment) for path, _, part in read for segment in part if segment.orth.strip()
    ]
    held_out = listed or {
        segment.full_name for path, segment in segments if _HELD_OUT_NAME.search(path.name)
    }
    if not held_out:
        held_out = {segment.full_name for _, segment in segments[_ONE_IN - 1 :: _ONE_IN]}
    reader = _AudioReader()
    train: list[Utterance] = []
    test: list[Utterance] = []
    for _, segment in segments:
        utterance = _utterance(segment, names[0], reader)
        (test if segment.full_name in held_out else train).append(utterance)
    words = {word for utterance in train + test for word in utterance.words}
    corpus = Corpus(
        name=names[0],
        train=tuple(train),
        test=tuple(test),
        lexicon={word: found for word in words if (found := _pronunciations(lexicon, word))},
        description=f"the Bliss corpus {names[0]!r} in {folder}",
    )
    corpus.validate()
    return corpus


def _utterance(segment: Segment, corpus: str, reader: _AudioReader) -> Utterance:
    audio, rate = reader.read(segment)
    end = segment.start + len(audio) / rate
    recording = segment.recording.full_name.removeprefix(f"{corpus}/")
    return Utterance(
        recording=recording,
        segment=segment.name,
        words=tuple(segment.orth.split()),
        speaker=segment.speaker.name if segment.speaker else "unknown",
        audio=audio,
        rate=rate,
        source=Source(Path(segment.recording.audio), segment.start, end),
    )


class _AudioReader:
    """Keeps the file read last, since the segments of a recording come one after another."""

    def __init__(self) -> None:
        self._path = ""
        self._audio: np.ndarray = np.zeros((0, 1), np.float32)
        self._rate = 1

    def read(self, segment: Segment) -> tuple[np.ndarray, int]:
        import soundfile

        path = segment.recording.audio
        if path != self._path:
            try:
                audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, OSError) as error:
                raise DemoError(
                    f"cannot read the audio of segment {segment.full_name!r}: {error}"
                ) from error
            self._path, self._audio, self._rate = path, audio, int(rate)
        if segment.track >= self._audio.shape[1]:
            raise DemoError(
                f"segment {segment.full_name!r} wants track {segment.track} of {path}, which has"
                f" {self._audio.shape[1]}"
            )
        begin = round(segment.start * self._rate)
        # The end may be infinite: to the end of the file.
        end = round(min(segment.end * self._rate, len(self._audio)))
        if end <= begin:
            raise DemoError(
                f"segment {segment.full_name!r} from {segment.start} s to {segment.end} s lies"
                f" outside of {path}, which is {len(self._audio) / self._rate:.3f} s long"
            )
        return self._audio[begin:end, segment.track].copy(), self._rate


def _pronunciations(lexicon: Lexicon, word: str) -> tuple[Pronunciation, ...]:
    """Gives the pronunciations of a word, over all its lemmas; none if it has none."""
    symbols = {phoneme.id: phoneme.symbol for phoneme in lexicon.phonemes}
    found: dict[tuple[str, ...], float] = {}
    for lemma in lexicon.lemmas_by_orth(word):
        for variant in lemma.pronunciations:
            phones = tuple(symbols[each] for each in variant.phonemes)
            if not phones or BLANK in phones:
                raise DemoError(
                    f"{lexicon.path}: the pronunciation {' '.join(phones)!r} of {word!r} has no"
                    f" phonemes, or the blank {BLANK!r} among them"
                )
            found[phones] = min(variant.score, found.get(phones, np.inf))
    return tuple(Pronunciation(phones, score) for phones, score in found.items())
