"""Whatever a file holds, it is read, or refused with an error that names it."""

# ruff: noqa: PT017

from __future__ import annotations

import gzip

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.corpus_reader import read_corpus
from jax_sprint.embedded.errors import ConfigurationError, CorpusError, LexiconError
from jax_sprint.embedded.lexicon import Lexicon
from jax_sprint.sprint_side.jax_sprint_control.settings import Settings

SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """A few cuts, swaps and strange bytes."""
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 40)))
        data = data[:begin] + draw(st.binary(max_size=6)) + data[end:]
    return data


@SETTINGS
@given(data=st.data())
def test_damaged_lexica(data, golden_dir, tmp_path):
    path = tmp_path / "lexicon.xml"
    path.write_bytes(data.draw(damaged((golden_dir / "lexicon.xml").read_bytes())))
    try:
        lexicon = Lexicon.load(str(path))
    except LexiconError as error:
        assert "lexicon.xml" in str(error)
    else:
        known = len(lexicon.phonemes)
        assert all(
            1 <= phoneme <= known
            for lemma in lexicon.lemmas
            for pronunciation in lemma.pronunciations
            for phoneme in pronunciation.phonemes
        )


@SETTINGS
@given(data=st.data())
def test_damaged_corpora(data, golden_dir, tmp_path):
    path = tmp_path / "corpus.xml.gz"
    content = data.draw(damaged((golden_dir / "corpus.xml").read_bytes()))
    if data.draw(st.booleans()):
        content = data.draw(damaged(gzip.compress(content, 1)))
    path.write_bytes(content)
    try:
        _, segments = read_corpus(str(path))
    except CorpusError as error:
        assert "corpus.xml" in str(error)
    else:
        names = [segment.full_name for segment in segments]
        assert len(set(names)) == len(names)


LINE = st.one_of(
    st.text(alphabet="[]*.ab=$( )#;%'\"\t", max_size=20),
    st.builds("{} = {}".format, st.text("ab.*", max_size=6), st.text("$([a])+1 *'", max_size=9)),
)


@SETTINGS
@given(lines=st.lists(LINE, max_size=6), name=st.sampled_from(["a", "b", "ab"]))
def test_any_configuration(lines, name, tmp_path):
    file = tmp_path / "any.config"
    file.write_text("\n".join(lines))
    try:
        config = Configuration.from_argv([f"--config={file}"], environment={}).select("a")
        config.get_str(name, "")
    except ConfigurationError as error:
        assert str(error)
        return
    for getter in (config.get_int, config.get_float, config.get_bool):
        try:
            getter(name, 1)
        except ConfigurationError as error:
            assert f"neural-network-trainer.a.{name}" in str(error)


@SETTINGS
@given(st.text(alphabet="c2p_fd:,0123 x", max_size=40))
def test_any_control_config(text):
    try:
        found = Settings.parse(text)
    except ValueError as error:
        assert "pymod-config" in str(error)
    else:
        assert found.c2p_fd >= 0


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(CorpusError, match="cannot read the corpus file"):
        read_corpus(str(tmp_path))
