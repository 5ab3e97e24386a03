"""The Bliss corpus: which segments there are, what is said in them, and where their audio lies.

The file is read by `jax_sprint.embedded.corpus_reader`; here are the data and the selection of
segments that the configuration asks for.  Parameters of a ``corpus`` component, as in RASR:

==============================  ============================================================
``file``                        Bliss corpus, plain or gzipped
``audio-dir``                   prefix of relative audio names; the corpus file's folder
``capitalize-transcriptions``   to upper case
``gemenize-transcriptions``     to lower case
``remove-corpus-name-prefix``   cut from the front of full names
``segments.file``               list of full or short segment names to keep, maybe gzipped
``segments.allow-empty-whitelist``  an empty list keeps all instead of being an error
``segments-to-skip``            full names
``partition``                   number of parts the corpus is dealt out to
``select-partition``            which of them, from 0 (the number of parts stands for 0)
``recording-based-partition``   deal out recordings instead of segments
``skip-first-segments``         of the part
``segment-order``               list of names that gives the order, maybe gzipped
``segment-order-look-up-short-name``  the names in that list lack corpus and recording
``segment-order-shuffle``, ``segment-order-shuffle-seed``   random order (not RASR's own)
``segment-order-sort-by-time-length``, ``...-chunk-size``   shortest first
==============================  ============================================================
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import CorpusError, UnknownSegmentError
from jax_sprint.embedded.xml_stream import open_maybe_gzip

__all__ = ["Corpus", "Recording", "Segment", "Speaker", "load_name_list"]


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks.

    Attributes:
        name: ``"ANONYMOUS"`` where the corpus gives none.
        gender: ``"male"``, ``"female"`` or ``"unknown"``.
    """

    name: str
    gender: str = "unknown"


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file.

    Attributes:
        full_name: ``corpus/.../recording``.
        audio: its path, relative names resolved; "" where only a video is named.
        index: its number, from 1 in the order of the file, counting those without segments.
    """

    full_name: str
    audio: str
    index: int


@dataclass(slots=True, eq=False)
class Segment:
    """A stretch of a recording.

    Attributes:
        name: short name.
        full_name: ``corpus/.../recording/segment``.
        orth: words joined by single blanks, with a trailing blank unless empty, as RASR keeps it.
        start: in seconds from the beginning of the recording.
        end: in seconds; `math.inf` for "to its end".
        recording: which one.
        speaker: its own, or the default of the sections around it, or None.
        condition: name of the acoustic condition, likewise.
        track: of the audio file, from 0.
    """

    name: str
    full_name: str
    orth: str
    start: float
    end: float
    recording: Recording
    speaker: Speaker | None = None
    condition: str | None = None
    track: int = 0


class Corpus:
    """The segments of a corpus, in the order of the file, with look-up by full name."""

    def __init__(self, name: str, segments: list[Segment], path: str = "<memory>") -> None:
        self.name = name
        self.segments = segments
        self.path = path
        self._by_name: dict[str, Segment] | None = None

    @classmethod
    def from_configuration(cls, config: Configuration) -> Corpus:
        """Reads and selects what a ``corpus`` component asks for.

        Raises:
            ConfigurationError: no file named, or parameters that contradict each other.
            CorpusError: missing file, malformed XML, or contents that make no sense.
        """
        from jax_sprint.embedded.corpus_reader import read_corpus

        path = config.get_path("file")
        if not path:
            raise config.error("file", "no corpus is named; set it to a Bliss corpus")
        name, segments = read_corpus(
            path,
            audio_dir=config.get_path("audio-dir") if config.has("audio-dir") else None,
            upper=config.get_bool("capitalize-transcriptions", False),
            lower=config.get_bool("gemenize-transcriptions", False),
            remove_prefix=config.get_str("remove-corpus-name-prefix", ""),
            resolve=config.resolve,
        )
        return cls(name, _order(config, _select(config, segments)), path)

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __contains__(self, full_name: str) -> bool:
        return full_name in self._index()

    def segment(self, full_name: str) -> Segment:
        """The segment of that full name.

        Raises:
            UnknownSegmentError: (a `KeyError`) if there is none.
        """
        try:
            return self._index()[full_name]
        except KeyError:
            example = f"; the first one is {self.segments[0].full_name!r}" if self.segments else ""
            raise UnknownSegmentError(
                f"unknown segment name {full_name!r}: not among the {len(self.segments)} segments "
                f"of {self.path!r}{example}"
            ) from None

    def _index(self) -> dict[str, Segment]:
        if self._by_name is None:
            self._by_name = {segment.full_name: segment for segment in self.segments}
        return self._by_name


def load_name_list(path: str, what: str) -> list[str]:
    """Reads one name a line; empty lines and those that begin with ``#`` are left out.

    Args:
        path: plain or gzipped.
        what: for messages, e.g. ``"segment list"``.
    """
    with open_maybe_gzip(path, CorpusError, what) as file:
        try:
            text = file.read().decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError) as problem:
            raise CorpusError(f"cannot read the {what} file {path!r}: {problem}") from None
    return [line.strip() for line in text.split("\n") if line.strip() and line[0] != "#"]


def _select(config: Configuration, segments: list[Segment]) -> list[Segment]:
    parts = config.get_int("partition", 0, minimum=0)
    chosen = config.get_int("select-partition", 0, minimum=0)
    skip_first = config.get_int("skip-first-segments", 0, minimum=0)
    by_recording = config.get_bool("recording-based-partition", False)
    skipped = set(config.get_list("segments-to-skip"))
    listed: set[str] = set()
    lists = config.select("segments")
    list_file = lists.get_path("file")
    if list_file:
        listed = set(load_name_list(list_file, "segment list"))
        if not listed and not lists.get_bool("allow-empty-whitelist", False):
            raise lists.error("file", f"the segment list {list_file!r} is empty")
    if parts and chosen > parts:
        raise config.error("select-partition", f"{chosen} is no partition; use 0 to {parts - 1}")
    chosen = 0 if not parts or chosen == parts else chosen
    parts = parts or 1
    if parts == 1 and not skip_first and not skipped and not listed:
        return segments
    result = []
    for index, segment in enumerate(segments):
        # Segments count from 0, recordings from 1, and `skip_first` counts before the list is
        # applied: as RASR does.
        if (segment.recording.index if by_recording else index) % parts != chosen:
            continue
        if index // parts < skip_first or segment.full_name in skipped:
            continue
        if listed and segment.full_name not in listed and segment.name not in listed:
            continue
        result.append(segment)
    return result


def _order(config: Configuration, segments: list[Segment]) -> list[Segment]:
    order_file = config.get_path("segment-order")
    if order_file:
        short = config.get_bool("segment-order-look-up-short-name", False)
        index = {(s.name if short else s.full_name): s for s in segments}
        names = load_name_list(order_file, "segment order")
        missing = next((name for name in names if name not in index), None)
        if missing is not None:
            raise CorpusError(
                f"the segment order {order_file!r} names {missing!r}, which the corpus lacks"
            )
        segments = [index[name] for name in names]
    if config.get_bool("segment-order-shuffle", False):
        seed = config.get_int("segment-order-shuffle-seed", -1)
        segments = list(segments)
        random.Random(max(seed, 0)).shuffle(segments)
    if config.get_bool("segment-order-sort-by-time-length", False):
        chunk = config.get_int("segment-order-sort-by-time-length-chunk-size", -1)
        chunk = chunk if chunk > 0 else max(len(segments), 1)
        pieces = [segments[i : i + chunk] for i in range(0, len(segments), chunk)]
        segments = [s for p in pieces for s in sorted(p, key=lambda s: s.end - s.start)]
    return segments
