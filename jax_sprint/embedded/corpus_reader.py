"""Reading a Bliss corpus file and the files that it includes.

Facts about the format: sections nest (``corpus``, ``subcorpus``, ``recording``), names are joined
by ``/``, and a ``<speaker>`` or ``<condition>`` directly in a section is the default of all below
it.  An ``<include file="..."/>`` names a corpus file, relative to the including one, whose
``<corpus>`` stands for the including section.  A segment without a name is called by its number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from jax_sprint.embedded.corpus import Recording, Segment, Speaker
from jax_sprint.embedded.errors import CorpusError
from jax_sprint.embedded.transcription import Transcription
from jax_sprint.embedded.xml_stream import XmlHandler, parse_xml

__all__ = ["read_corpus"]

_SECTIONS = ("corpus", "subcorpus", "recording")
_MAX_INCLUDE_DEPTH = 32


@dataclass
class _Run:
    """What a file shares with those that it includes: the options, and a count."""

    audio_dir: str | None
    upper: bool
    lower: bool
    remove_prefix: str
    resolve: Callable[[str], str]
    recordings: int = 0


@dataclass
class _Section:
    """One open section; speakers and conditions are looked up from the innermost outwards."""

    name: str
    full_name: str
    parent: _Section | None
    speakers: dict[str, Speaker] = field(default_factory=dict)
    conditions: set[str] = field(default_factory=set)
    speaker: Speaker | None = None
    condition: str | None = None
    names: set[str] = field(default_factory=set)
    recording: Recording | None = None
    segments: int = 0


def read_corpus(
    path: str,
    *,
    audio_dir: str | None = None,
    upper: bool = False,
    lower: bool = False,
    remove_prefix: str = "",
    resolve: Callable[[str], str] = str,
) -> tuple[str, list[Segment]]:
    """Reads a Bliss corpus, plain or gzipped.

    Args:
        path: relative to the working directory.
        audio_dir: prefix of audio names that are not absolute; None for the corpus's folder.
        upper: make the transcriptions upper case.
        lower: make them lower case.
        remove_prefix: cut from the front of full names.
        resolve: substitutes ``$(...)`` in audio and include file names.

    Returns:
        The name of the corpus and its segments, in the order of the file.

    Raises:
        CorpusError: missing file, malformed XML, or contents that make no sense, with file and
            line.
    """
    reader = _CorpusReader(_Run(audio_dir, upper, lower, remove_prefix, resolve))
    parse_xml(path, reader, "corpus")
    return reader.name, reader.segments


class _CorpusReader(XmlHandler):
    error = CorpusError

    def __init__(
        self,
        run: _Run,
        section: _Section | None = None,
        segments: list[Segment] | None = None,
        depth: int = 0,
    ) -> None:
        self.name = ""
        self.segments: list[Segment] = [] if segments is None else segments
        self._run = run
        self._outer = section
        self._section = section
        self._depth = depth
        self._stack: list[str] = []
        self._transcription: Transcription | None = None
        self._segment: Segment | None = None
        self._description: tuple[str, str | None] | None = None
        self._gender: list[str] | None = None
        self._speakers: dict[tuple[str, str], Speaker] = {}

    # -- expat ----------------------------------------------------------------------------------

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        stack = self._stack
        if not stack and tag != "corpus":
            raise self.fail(f"the root element is <{tag}>, not <corpus>; is this a Bliss corpus?")
        stack.append(tag)
        if self._transcription is not None:
            self._transcription.start(tag)
        elif tag == "segment":
            self._start_segment(attributes)
        elif tag == "orth":
            if self._segment is not None:
                self._transcription = Transcription()
        elif tag in _SECTIONS:
            self._start_section(tag, attributes)
        elif tag == "speaker":
            self._select_speaker(attributes)
        elif tag == "condition":
            self._select_condition(attributes)
        elif tag in ("speaker-description", "condition-description"):
            self._description = (tag, attributes.get("name"))
            self._gender = []
        elif tag == "include":
            self._include(attributes)

    def text(self, data: str) -> None:
        if self._transcription is not None:
            self._transcription.text(data)
        elif self._gender is not None and self._stack[-1] == "gender":
            self._gender.append(data)

    def end(self, tag: str) -> None:
        self._stack.pop()
        if self._transcription is not None:
            try:
                text = self._transcription.end(tag)
            except ValueError as problem:
                raise self.fail(str(problem)) from None
            if text is not None:
                self._end_orth(text)
        elif tag == "segment":
            self._end_segment()
        elif tag in _SECTIONS:
            self._end_section()
        elif tag in ("speaker-description", "condition-description"):
            self._define(tag)

    # -- sections -------------------------------------------------------------------------------

    def _start_section(self, tag: str, attributes: dict[str, str]) -> None:
        name = attributes.get("name")
        if name is None:
            raise self.fail(f"attribute 'name' is missing in <{tag}>")
        parent = self._section
        if len(self._stack) == 1:
            self.name = name
            if self._outer is not None:
                # An included file continues the section that includes it.
                if name != self._outer.name:
                    raise self.fail(
                        f"the included corpus is called {name!r}, but it is included in "
                        f"{self._outer.name!r}; the names must agree"
                    )
                return
        if parent is not None:
            if name in parent.names:
                raise self.fail(f"the name {name!r} is already taken in {parent.full_name!r}")
            parent.names.add(name)
        section = _Section(name, self._full_name(parent, name), parent)
        if parent is not None:
            section.speaker, section.condition = parent.speaker, parent.condition
        if tag == "recording":
            self._run.recordings += 1
            section.recording = Recording(
                section.full_name, self._audio(attributes, name), self._run.recordings
            )
        self._section = section

    def _end_section(self) -> None:
        if self._section is not self._outer and self._section is not None:
            self._section = self._section.parent

    def _full_name(self, parent: _Section | None, name: str) -> str:
        full = name if parent is None else f"{parent.full_name}/{name}"
        return full.removeprefix(self._run.remove_prefix)

    def _audio(self, attributes: dict[str, str], name: str) -> str:
        audio = attributes.get("audio")
        if audio is None:
            if "video" not in attributes:
                raise self.fail(f"the recording {name!r} has neither 'audio' nor 'video'")
            return ""
        folder = self._run.audio_dir
        if folder is None:
            folder = os.path.dirname(self.path)
        if "$" in audio:
            audio = self._run.resolve(audio)
        return os.path.join(folder, audio)

    def _include(self, attributes: dict[str, str]) -> None:
        file = attributes.get("file")
        if file is None:
            raise self.fail("attribute 'file' is missing in <include>")
        if self._depth >= _MAX_INCLUDE_DEPTH:
            raise self.fail(f"<include> nested deeper than {_MAX_INCLUDE_DEPTH}")
        path = os.path.join(os.path.dirname(self.path), self._run.resolve(file))
        reader = _CorpusReader(self._run, self._section, self.segments, self._depth + 1)
        try:
            parse_xml(path, reader, "included corpus")
        except CorpusError as error:
            raise CorpusError(f"{error} (included from {self.where()})") from None

    # -- segments -------------------------------------------------------------------------------

    def _start_segment(self, attributes: dict[str, str]) -> None:
        section = self._section
        if section is None or section.recording is None:
            raise self.fail("a <segment> outside of a <recording>")
        section.segments += 1
        name = attributes.get("name")
        if name is None:
            name = str(section.segments)
            while name in section.names:
                name += "+"
        elif name in section.names:
            raise self.fail(f"segment {name!r} is already defined in {section.full_name!r}")
        section.names.add(name)
        start = self._number(attributes, "start", 0.0)
        end = self._number(attributes, "end", math.inf)
        if start > end:
            raise self.fail(f"segment {name!r} starts at {start} s, after its end at {end} s")
        track = attributes.get("track", "0")
        if not track.strip().isdecimal():
            raise self.fail(f"track {track!r} of segment {name!r} is no number")
        self._segment = Segment(
            name,
            self._full_name(section, name),
            "",
            start,
            end,
            section.recording,
            section.speaker,
            section.condition,
            int(track),
        )

    def _number(self, attributes: dict[str, str], key: str, default: float) -> float:
        text = attributes.get(key)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise self.fail(f"attribute {key}={text!r} is no number of seconds")
        return value

    def _end_segment(self) -> None:
        if self._segment is not None:
            self.segments.append(self._segment)
            self._segment = None

    # -- transcriptions -------------------------------------------------------------------------

    def _end_orth(self, text: str) -> None:
        self._transcription = None
        if self._run.upper:
            text = _change_case(text, str.upper)
        if self._run.lower:
            text = _change_case(text, str.lower)
        if self._segment is not None:
            self._segment.orth = text + " " if text else ""

    # -- speakers and conditions ----------------------------------------------------------------

    def _select_speaker(self, attributes: dict[str, str]) -> None:
        name = self._needed_name("speaker", attributes)
        section = self._section
        while section is not None and name not in section.speakers:
            section = section.parent
        if section is None:
            raise self.fail(f"speaker {name!r} is not defined here or in a section around it")
        self._set_speaker(section.speakers[name])

    def _select_condition(self, attributes: dict[str, str]) -> None:
        name = self._needed_name("condition", attributes)
        section = self._section
        while section is not None and name not in section.conditions:
            section = section.parent
        if section is None:
            raise self.fail(f"condition {name!r} is not defined here or in a section around it")
        self._set_condition(name)

    def _needed_name(self, tag: str, attributes: dict[str, str]) -> str:
        if self._section is None:
            raise self.fail(f"<{tag}> outside of the corpus")
        name = attributes.get("name")
        if name is None:
            raise self.fail(f"attribute 'name' is missing in <{tag}>")
        return name

    def _set_speaker(self, speaker: Speaker) -> None:
        if self._segment is not None:
            self._segment.speaker = speaker
        elif self._section is not None:
            self._section.speaker = speaker

    def _set_condition(self, name: str) -> None:
        if self._segment is not None:
            self._segment.condition = name
        elif self._section is not None:
            self._section.condition = name

    def _define(self, tag: str) -> None:
        assert self._description is not None
        name = self._description[1]
        gender = "".join(self._gender or ()).strip() or "unknown"
        self._description = self._gender = None
        if self._section is None:
            raise self.fail(f"<{tag}> outside of the corpus")
        if tag == "speaker-description":
            if gender not in ("male", "female", "unknown"):
                gender = "unknown"
            speaker = Speaker("ANONYMOUS" if name is None else name, gender)
            if name is None or self._segment is not None:
                self._set_speaker(speaker)
            elif name in self._section.speakers:
                raise self.fail(f"speaker {name!r} is already defined in this section")
            else:
                self._section.speakers[name] = speaker
        elif name is None or self._segment is not None:
            self._set_condition("ANONYMOUS" if name is None else name)
        elif name in self._section.conditions:
            raise self.fail(f"condition {name!r} is already defined in this section")
        else:
            self._section.conditions.add(name)


def _change_case(text: str, change: Callable[[str], str]) -> str:
    if text.isascii():
        return change(text)
    # One letter becomes one letter, as in C: German sharp s stays itself.
    return "".join(c if len(change(c)) != 1 else change(c) for c in text)
