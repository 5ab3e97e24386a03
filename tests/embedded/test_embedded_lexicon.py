"""Bliss lexica."""

from __future__ import annotations

import gc
import gzip
import math

import pytest

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import ConfigurationError, LexiconError
from jax_sprint.embedded.lexicon import Lexicon

INVENTORY = """<phoneme-inventory>
 <phoneme><symbol>si</symbol><variation>none</variation></phoneme>
 <phoneme><symbol> a </symbol></phoneme>
 <phoneme><symbol>b</symbol><variation> context </variation></phoneme>
</phoneme-inventory>
"""


def write(tmp_path, lemmas: str, inventory: str = INVENTORY):
    path = tmp_path / "lexicon.xml"
    path.write_text(f'<?xml version="1.0"?>\n<lexicon>\n{inventory}{lemmas}</lexicon>\n')
    return str(path)


def test_everything_that_a_lemma_has(tmp_path):
    path = write(
        tmp_path,
        '<lemma special="silence" name="sil"><orth>[S]</orth><orth/><phon>si</phon><synt/>'
        "<eval/></lemma>"
        "<lemma><orth> two \n words </orth><orth>2w</orth><phon> a b </phon>"
        '<phon score="1.5">b a</phon><phon weight="0.25">b</phon><phon/>'
        "<synt><tok>T1</tok><tok>T2</tok></synt><eval><tok>E</tok></eval><eval/></lemma>",
    )
    lexicon = Lexicon.load(path, normalize=False)
    assert [(p.id, p.symbol, p.context_dependent) for p in lexicon.phonemes] == [
        (1, "si", False),
        (2, "a", True),
        (3, "b", True),
    ]
    silence, word = lexicon.lemmas
    assert lexicon.special_lemma("silence") is silence
    assert lexicon.special_lemma("unknown") is None
    assert (silence.orths, silence.synt, silence.evals, silence.name) == (
        ("[S]", ""), (), ((),), "sil",
    )  # fmt: skip
    assert word.orths == ("two words", "2w")
    assert lexicon.lemmas_by_orth("2w") == lexicon.lemmas_by_orth("two words") == [word]
    assert lexicon.lemmas_by_orth("three") == []
    assert [p.phonemes for p in word.pronunciations] == [(2, 3), (3, 2), (3,), ()]
    scores = [p.score for p in word.pronunciations]
    assert scores == pytest.approx([0.0, 1.5, math.log(4), 0.0], abs=1e-7)
    assert word.synt == ("T1", "T2")
    assert word.evals == (("E",), ())


def test_weights_are_normalised_unless_told_otherwise(tmp_path):
    path = write(
        tmp_path, '<lemma><orth>x</orth><phon score="1">a</phon><phon score="2">b</phon></lemma>'
    )
    weights = [math.exp(-p.score) for p in Lexicon.load(path).lemmas[0].pronunciations]
    assert sum(weights) == pytest.approx(1.0, abs=1e-6)
    assert weights[0] / weights[1] == pytest.approx(math.e, rel=1e-5)


def test_a_huge_score_is_infinite_as_in_single_precision(tmp_path):
    path = write(tmp_path, '<lemma><orth>x</orth><phon score="200">a</phon></lemma>')
    assert Lexicon.load(path, normalize=False).lemmas[0].pronunciations[0].score == math.inf


def test_gzip_and_encodings(tmp_path):
    text = f'<?xml version="1.0" encoding="iso-8859-1"?><lexicon>{INVENTORY}'
    text += "<lemma><orth>Stra\u00dfe\u00a0x</orth><phon>a</phon></lemma></lexicon>"
    path = tmp_path / "lexicon.xml.gz"
    path.write_bytes(gzip.compress(text.encode("latin-1")))
    assert Lexicon.load(str(path)).lemmas[0].orths == ("Stra\u00dfe\u00a0x",)


def test_vocabulary_keeps_special_lemmas(tmp_path):
    path = write(
        tmp_path,
        '<lemma special="silence"><orth>[S]</orth><phon>si</phon></lemma>'
        "<lemma><orth>one</orth><orth>1</orth><phon>a</phon></lemma>"
        "<lemma><orth>two</orth><phon>b</phon></lemma>",
    )
    words = tmp_path / "words.txt"
    words.write_text("# list\none\n\n")
    config = Configuration.from_dict({"*.file": path, "*.vocab.file": str(words)})
    lexicon = Lexicon.from_configuration(config.select("lexicon"))
    assert [lemma.orths for lemma in lexicon.lemmas] == [("[S]",), ("one",)]


@pytest.mark.parametrize(
    ("lemmas", "message"),
    [
        ("<lemma><orth>x</orth><phon>a q</phon></lemma>", r"line 8: unknown phoneme 'q'.*'x'"),
        ("<lemma><orth>x</orth><phon>a</phon><phon>a</phon></lemma>", "duplicate pronunciation"),
        ('<lemma><orth>x</orth><phon score="a">a</phon></lemma>', "no usable number"),
        ('<lemma><orth>x</orth><phon weight="-1">a</phon></lemma>', "not negative"),
        ('<lemma><orth>x</orth><phon score="1" weight="1">a</phon></lemma>', "not both"),
        ('<lemma><orth>x</orth><phon weight="0">a</phon></lemma>', "sum to zero"),
        ("<lemma><phon>a</phon></lemma>", "without <orth>"),
        (
            '<lemma special="s"><orth>x</orth></lemma><lemma special="s"><orth>y</orth></lemma>',
            "'s'",
        ),
        ('<lemma name="n"><orth>x</orth></lemma><lemma name="n"><orth>y</orth></lemma>', "taken"),
        ("<lemma><orth>x</lemma>", r"line 8: malformed XML in the lexicon file"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, lemmas, message):
    with pytest.raises(LexiconError, match=message) as caught:
        Lexicon.load(write(tmp_path, lemmas))
    assert "lexicon.xml" in str(caught.value)


@pytest.mark.parametrize(
    ("inventory", "message"),
    [
        ("<phoneme-inventory><phoneme/></phoneme-inventory>", "without a <symbol>"),
        (INVENTORY.replace("none", "some"), "'none' or 'context', not 'some'"),
        (INVENTORY.replace("<symbol>b<", "<symbol>si<"), "already another phoneme's"),
    ],
)
def test_mistakes_in_the_inventory(tmp_path, inventory, message):
    with pytest.raises(LexiconError, match=message):
        Lexicon.load(write(tmp_path, "", inventory))


def test_files_that_are_no_lexicon(tmp_path):
    with pytest.raises(LexiconError, match=r"cannot read the lexicon file '.*gone.xml': No such"):
        Lexicon.load(str(tmp_path / "gone.xml"))
    with pytest.raises(LexiconError, match="cannot read the lexicon file"):
        Lexicon.load(str(tmp_path))
    other = tmp_path / "other.xml"
    other.write_text("<corpus/>")
    with pytest.raises(LexiconError, match="root element is <corpus>"):
        Lexicon.load(str(other))
    other.write_text("")
    with pytest.raises(LexiconError, match="malformed XML"):
        Lexicon.load(str(other))
    other.write_bytes(gzip.compress(b"<lexicon>" + b" " * 9999)[:20])
    with pytest.raises(LexiconError, match="broken gzip"):
        Lexicon.load(str(other))
    with pytest.raises(ConfigurationError, match=r"lexicon\.file: no lexicon is named"):
        Lexicon.from_configuration(Configuration.from_dict({}).select("lexicon"))


def test_entity_bombs_are_refused(tmp_path):
    path = tmp_path / "bomb.xml"
    path.write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE lexicon [\n<!ENTITY a "aaaaaaaaaa">\n'
        '<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n<lexicon>&b;</lexicon>'
    )
    with pytest.raises(LexiconError, match="line 3: the declaration of entity 'a' is refused"):
        Lexicon.load(str(path))


def test_the_garbage_collector_is_left_as_it_was(tmp_path):
    path = write(tmp_path, "<lemma><orth>x</orth><phon>a</phon></lemma>")
    assert gc.isenabled()
    Lexicon.load(path)
    assert gc.isenabled()
    with pytest.raises(LexiconError):
        Lexicon.load(write(tmp_path, "<lemma>"))
    assert gc.isenabled()
    gc.disable()
    try:
        Lexicon.load(write(tmp_path, ""))
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("encoding", ["tf-8", "utf-7", "shift_jis"])
def test_an_encoding_that_cannot_be_read(tmp_path, encoding):
    path = tmp_path / "lexicon.xml"
    path.write_text(f'<?xml version="1.0" encoding="{encoding}"?>\n<lexicon></lexicon>\n')
    with pytest.raises(LexiconError, match=r"lexicon.xml line 1: .* cannot be decoded .*UTF-8"):
        Lexicon.load(str(path))
