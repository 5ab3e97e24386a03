"""Writes what Sprint reads: Bliss corpus, Bliss lexicon and the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from jax_sprint.demo.corpus import BLANK, Corpus, Source, Utterance
from jax_sprint.demo.pronunciations import Pronunciation

__all__ = ["CorpusFiles", "write_bliss"]

TEST_LIST = "test.segments"
"""Names of the held-out segments, one a line, beside the corpus file."""

_CONFIG = """\
[*]
encoding = utf-8
action = python-control
python-control-loop-type = python-control-loop
extract-features = no

[*.corpus]
file = {corpus}
warn-about-unexpected-elements = no
capitalize-transcriptions = no
progress-indication = none

[*.model-combination.lexicon]
file = {lexicon}
normalize-pronunciation = no

# Context-independent phonemes in the CTC topology: one label for each, the blank is label 0.
[*.model-combination.acoustic-model]
state-tying.type = monophone
phonology.history-length = 0
phonology.future-length = 0
hmm.states-per-phone = 1
hmm.state-repetitions = 1
hmm.across-word-model = no
allophones.add-from-lexicon = yes
allophones.add-all = no
transducer-builder-filter-out-invalid-allophones = no
fix-allophone-context-at-word-boundaries = yes
tdp.applicator-type = corrected
tdp.*.loop = 0.0
tdp.*.forward = 0.0
tdp.*.skip = infinity
tdp.*.exit = 0.0
tdp.silence.loop = 0.0
tdp.silence.forward = 0.0
tdp.silence.skip = infinity
tdp.silence.exit = 0.0
tdp.entry-m1.loop = infinity
tdp.entry-m2.loop = infinity

[*.allophone-state-graph-builder]
topology = ctc
orthographic-parser.allow-for-silence-repetitions = no
orthographic-parser.normalize-lemma-sequence-scores = no
"""


@dataclass(frozen=True)
class CorpusFiles:
    """What `write_bliss` wrote.

    Attributes:
        corpus: the Bliss corpus.
        lexicon: the Bliss lexicon.
        config: the configuration, which names both by absolute paths.
    """

    corpus: Path
    lexicon: Path
    config: Path


def write_bliss(corpus: Corpus, folder: Path) -> CorpusFiles:
    """Writes a corpus as a Bliss folder, which `--data` reads again.

    Utterances that came from audio files keep referring to them; those of each other recording
    are written after one another into one FLAC file.

    Args:
        corpus: what to write.
        folder: where; made if need be, and files in it are overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = CorpusFiles(folder / "corpus.xml", folder / "lexicon.xml", folder / "sprint.config")
    _write_xml(_corpus_element(corpus, folder), files.corpus)
    _write_xml(_lexicon_element(corpus.labels(), corpus.lexicon), files.lexicon)
    held_out = "".join(f"{corpus.tag(utterance)}\n" for utterance in corpus.test)
    (folder / TEST_LIST).write_text(held_out, encoding="utf-8")
    files.config.write_text(
        _CONFIG.format(corpus=files.corpus.resolve(), lexicon=files.lexicon.resolve()),
        encoding="utf-8",
    )
    return files


def _corpus_element(corpus: Corpus, folder: Path) -> ElementTree.Element:
    root = ElementTree.Element("corpus", name=corpus.name)
    for speaker in sorted({utterance.speaker for utterance in corpus.train + corpus.test}):
        ElementTree.SubElement(root, "speaker-description", name=speaker)
    recordings: dict[str, list[Utterance]] = {}
    for utterance in corpus.train + corpus.test:
        recordings.setdefault(utterance.recording, []).append(utterance)
    for recording, utterances in recordings.items():
        located = _with_sources(recording, utterances, folder)
        path = located[0][1].path.resolve()
        inside = path.is_relative_to(folder.resolve())
        audio = path.relative_to(folder.resolve()) if inside else path
        element = ElementTree.SubElement(root, "recording", name=recording, audio=str(audio))
        for utterance, source in located:
            segment = ElementTree.SubElement(
                element,
                "segment",
                name=utterance.segment,
                start=f"{source.start:.6f}",
                end=f"{source.end:.6f}",
            )
            ElementTree.SubElement(segment, "speaker", name=utterance.speaker)
            ElementTree.SubElement(segment, "orth").text = " ".join(utterance.words)
    return root


def _with_sources(
    recording: str, utterances: list[Utterance], folder: Path
) -> list[tuple[Utterance, Source]]:
    """Gives each utterance of a recording its place in a file, written here if there is none."""
    known = [(each, each.source) for each in utterances if each.source is not None]
    if len(known) == len(utterances):
        return known
    import soundfile

    path = folder / "audio" / f"{recording}.flac"
    path.parent.mkdir(exist_ok=True)
    rate = utterances[0].rate
    joined = np.concatenate([utterance.audio for utterance in utterances])
    soundfile.write(path, np.clip(joined, -1.0, 1.0), rate, subtype="PCM_16")
    ends = np.cumsum([len(utterance.audio) for utterance in utterances]) / rate
    starts = [0.0, *ends[:-1].tolist()]
    return [
        (utterance, Source(path, start, end))
        for utterance, start, end in zip(utterances, starts, ends.tolist(), strict=True)
    ]


def _lexicon_element(
    labels: tuple[str, ...], lexicon: Mapping[str, tuple[Pronunciation, ...]]
) -> ElementTree.Element:
    root = ElementTree.Element("lexicon")
    inventory = ElementTree.SubElement(root, "phoneme-inventory")
    for label in labels:
        phoneme = ElementTree.SubElement(inventory, "phoneme")
        ElementTree.SubElement(phoneme, "symbol").text = label
        variation = "none" if label == BLANK else "context"
        ElementTree.SubElement(phoneme, "variation").text = variation
    blank = ElementTree.SubElement(root, "lemma", special="blank")
    ElementTree.SubElement(blank, "orth").text = BLANK
    ElementTree.SubElement(blank, "phon").text = BLANK
    ElementTree.SubElement(blank, "synt")
    ElementTree.SubElement(blank, "eval")
    for special, orth, token in (
        ("sentence-begin", "[SENTENCE-BEGIN]", "<s>"),
        ("sentence-end", "[SENTENCE-END]", "</s>"),
        ("unknown", "[UNKNOWN]", "<UNK>"),
    ):
        lemma = ElementTree.SubElement(root, "lemma", special=special)
        ElementTree.SubElement(lemma, "orth").text = orth
        ElementTree.SubElement(ElementTree.SubElement(lemma, "synt"), "tok").text = token
        ElementTree.SubElement(lemma, "eval")
    for word, variants in sorted(lexicon.items()):
        lemma = ElementTree.SubElement(root, "lemma")
        ElementTree.SubElement(lemma, "orth").text = word
        for variant in variants:
            phon = ElementTree.SubElement(lemma, "phon")
            phon.text = " ".join(variant.phones)
            if variant.score:
                phon.set("score", f"{variant.score:.6g}")
    return root


def _write_xml(root: ElementTree.Element, path: Path) -> None:
    ElementTree.indent(root, " ")
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
