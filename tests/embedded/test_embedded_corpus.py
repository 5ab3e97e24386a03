"""Bliss corpora and the selection of segments."""

from __future__ import annotations

import gzip
import math

import pytest

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.corpus import Corpus
from jax_sprint.embedded.errors import ConfigurationError, CorpusError, UnknownSegmentError


def load(path, **parameters) -> Corpus:
    resources = {f"*.corpus.{name}": value for name, value in parameters.items()}
    config = Configuration.from_dict({"*.corpus.file": str(path), **resources})
    return Corpus.from_configuration(config.select("corpus"))


def write(tmp_path, body: str, name: str = "corpus.xml", corpus: str = "c"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<?xml version="1.0"?>\n<corpus name="{corpus}">\n{body}\n</corpus>\n')
    return path


def recording(name: str, *segments: str) -> str:
    return f'<recording name="{name}" audio="{name}.wav">{"".join(segments)}</recording>'


def segment(name: str, orth: str = "x", end: float = 1.0) -> str:
    return f'<segment name="{name}" start="0" end="{end}"><orth>{orth}</orth></segment>'


def names(corpus: Corpus) -> list[str]:
    return [s.full_name for s in corpus]


def test_nesting_defaults_speakers_and_conditions(tmp_path):
    path = write(
        tmp_path,
        """<speaker-description name="ann"><gender> female </gender></speaker-description>
        <speaker-description name="bob"><gender>male</gender></speaker-description>
        <condition-description name="noisy"/>
        <speaker name="ann"/>
        <recording name="r0" audio="/abs/r0.wav">
          <segment start="1.5" end="2" track="1"><orth> hello
             wide   world </orth></segment>
          <segment><speaker name="bob"/><condition name="noisy"/><orth></orth></segment>
        </recording>
        <subcorpus name="sub">
          <speaker-description><gender>male</gender></speaker-description>
          <subcorpus name="deep">
            <condition name="noisy"/>
            <recording name="r1" audio="x/r1.wav">
              <segment name="s"><orth>a <noise>b</noise>c</orth></segment>
            </recording>
          </subcorpus>
        </subcorpus>
        <recording name="r2" audio="r2.wav"><segment name="s"/></recording>""",
    )
    corpus = load(path)
    assert corpus.name == "c"
    assert names(corpus) == ["c/r0/1", "c/r0/2", "c/sub/deep/r1/s", "c/r2/s"]
    first, second, deep, last = corpus.segments
    assert (first.orth, first.start, first.end, first.track) == ("hello wide world ", 1.5, 2.0, 1)
    assert (first.speaker.name, first.speaker.gender, first.condition) == ("ann", "female", None)
    assert first.recording.audio == "/abs/r0.wav"
    assert (second.orth, second.speaker.name, second.condition) == ("", "bob", "noisy")
    assert second.end == math.inf
    assert (deep.orth, deep.speaker.name, deep.speaker.gender) == ("a bc ", "ANONYMOUS", "male")
    assert deep.condition == "noisy"
    assert deep.recording.audio == str(tmp_path / "x" / "r1.wav")
    assert (last.orth, last.speaker.name, last.condition) == ("", "ann", None)
    assert corpus.segment("c/r2/s") is last
    assert "c/r2/s" in corpus
    assert "c/r2/t" not in corpus


def test_alternatives_and_optional_words(tmp_path):
    orth = (
        "one <alternatives><orth>two</orth><orth>zwei <alternatives><orth>q</orth></alternatives>"
        "</orth></alternatives> three <optional>four</optional>"
    )
    corpus = load(write(tmp_path, recording("r", segment("s", orth))))
    assert corpus.segments[0].orth == "one two three four "


def test_includes_are_relative_to_the_including_file_and_share_its_section(tmp_path):
    write(tmp_path, recording("r2", segment("s")), "parts/inner.xml", corpus="sub")
    body = '<include file="inner.xml"/>'
    write(tmp_path, body + recording("r3", segment("s")), "parts/middle.xml", corpus="sub")
    path = write(
        tmp_path,
        recording("r1", segment("s"))
        + '<subcorpus name="sub"><include file="parts/middle.xml"/></subcorpus>'
        + recording("r4", segment("s")),
    )
    corpus = load(path)
    assert names(corpus) == ["c/r1/s", "c/sub/r2/s", "c/sub/r3/s", "c/r4/s"]
    assert corpus.segments[1].recording.audio == str(tmp_path / "parts" / "r2.wav")
    assert [s.recording.index for s in corpus] == [1, 2, 3, 4]


def test_gzip_audio_dir_case_and_prefix(tmp_path):
    path = tmp_path / "corpus.xml.gz"
    body = f'<corpus name="c">{recording("r", segment("s", "Ab &#228;&#223;"))}</corpus>'
    path.write_bytes(gzip.compress(body.encode()))
    corpus = load(
        path,
        **{
            "audio-dir": "audio",
            "capitalize-transcriptions": True,
            "remove-corpus-name-prefix": "c/",
        },
    )
    (only,) = corpus
    assert (only.full_name, only.orth) == ("r/s", "AB \u00c4\u00df ")
    assert only.recording.audio == "audio/r.wav"
    assert load(path, **{"gemenize-transcriptions": True}).segments[0].orth == "ab \u00e4\u00df "


@pytest.fixture
def six(tmp_path):
    return write(
        tmp_path,
        recording("a", segment("1", end=3), segment("2", end=1))
        + recording("empty")
        + recording("b", segment("3", end=2), segment("4", end=6))
        + recording("d", segment("5", end=5), segment("6", end=4)),
    )


def short(corpus: Corpus) -> str:
    return "".join(s.name for s in corpus)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, "123456"),
        ({"partition": 2, "select-partition": 0}, "135"),
        ({"partition": 2, "select-partition": 1}, "246"),
        ({"partition": 2, "select-partition": 2}, "135"),
        ({"partition": 4, "select-partition": 3}, "4"),
        ({"partition": 3, "select-partition": 1, "recording-based-partition": True}, "1256"),
        ({"skip-first-segments": 4}, "56"),
        ({"partition": 2, "select-partition": 1, "skip-first-segments": 1}, "46"),
        ({"segments-to-skip": "c/a/2 c/b/3"}, "1456"),
        ({"segment-order-sort-by-time-length": True}, "231654"),
        (
            {
                "segment-order-sort-by-time-length": True,
                "segment-order-sort-by-time-length-chunk-size": 2,
            },
            "213465",
        ),
    ],
)
def test_selection(six, parameters, expected):
    assert short(load(six, **parameters)) == expected


def test_segment_lists_and_orders_plain_and_gzipped(six, tmp_path):
    text = "# comment\n c/d/6 \n\n2\n"
    plain, packed = tmp_path / "list", tmp_path / "list.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for file in (plain, packed):
        assert short(load(six, **{"segments.file": str(file)})) == "26"
    order = tmp_path / "order"
    order.write_text("c/d/6\nc/a/2\nc/a/1\n")
    assert short(load(six, **{"segment-order": str(order)})) == "621"
    order.write_text("4\n4\n3\n")
    parameters = {"segment-order": str(order), "segment-order-look-up-short-name": True}
    assert short(load(six, **parameters)) == "443"
    shuffled = {"segment-order-shuffle": True, "segment-order-shuffle-seed": 7}
    assert short(load(six, **shuffled)) == short(load(six, **shuffled))
    assert sorted(short(load(six, **shuffled))) == list("123456")


def test_mistakes_in_the_selection(six, tmp_path):
    with pytest.raises(ConfigurationError, match="3 is no partition"):
        load(six, **{"partition": 2, "select-partition": 3})
    with pytest.raises(CorpusError, match=r"cannot read the segment list file '.*gone'"):
        load(six, **{"segments.file": str(tmp_path / "gone")})
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match=r"segment list .* is empty"):
        load(six, **{"segments.file": str(empty)})
    allowed = {"segments.file": str(empty), "segments.allow-empty-whitelist": True}
    assert short(load(six, **allowed)) == "123456"
    order = tmp_path / "order"
    order.write_text("c/a/9\n")
    with pytest.raises(CorpusError, match="names 'c/a/9', which the corpus lacks"):
        load(six, **{"segment-order": str(order)})


def test_unknown_segment_is_a_key_error_that_reads_well(six):
    with pytest.raises(UnknownSegmentError) as caught:
        load(six).segment("c/a/7")
    assert isinstance(caught.value, KeyError)
    assert str(caught.value).startswith("unknown segment name 'c/a/7': not among the 6 segments")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<recording audio='a'/>", "line 3: attribute 'name' is missing in <recording>"),
        ("<recording name='r'/>", "neither 'audio' nor 'video'"),
        (recording("r") * 2, "'r' is already taken in 'c'"),
        (recording("r", segment("s") * 2), "segment 's' is already defined in 'c/r'"),
        (recording("r", "<segment start='2' end='1'/>"), "after its end"),
        (recording("r", "<segment start='soon'/>"), "start='soon' is no number of seconds"),
        (recording("r", "<segment track='x'/>"), "track 'x'"),
        ("<segment/>", "outside of a <recording>"),
        ("<speaker name='nobody'/>", "speaker 'nobody' is not defined"),
        ("<condition name='quiet'/>", "condition 'quiet' is not defined"),
        ("<speaker/>", "attribute 'name' is missing in <speaker>"),
        ("<speaker-description name='a'/>" * 2, "speaker 'a' is already defined"),
        ("<condition-description name='a'/>" * 2, "condition 'a' is already defined"),
        ("<include/>", "attribute 'file' is missing"),
        (
            "<include file='gone.xml'/>",
            r"cannot read the included corpus file '.*gone.xml'.*line 3",
        ),
        ("<include file='corpus.xml'/>", "nested deeper"),
        (recording("r", segment("s", "<alternatives/>")), "at least one <orth>"),
        ("<description>", "malformed XML in the corpus file"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, body, message):
    with pytest.raises(CorpusError, match=message) as caught:
        load(write(tmp_path, body))
    assert "corpus.xml" in str(caught.value)


def test_included_corpus_must_have_the_name_of_its_section(tmp_path):
    write(tmp_path, "", "inner.xml", corpus="other")
    with pytest.raises(CorpusError, match="is called 'other', but it is included in 'c'"):
        load(write(tmp_path, '<include file="inner.xml"/>'))


def test_no_corpus_named():
    with pytest.raises(ConfigurationError, match=r"corpus\.file: no corpus is named"):
        Corpus.from_configuration(Configuration.from_dict({}).select("corpus"))
