"""A fingerprint of everything that Sprint's automata depend on.

It covers

* the executable's content, and that of every word of the command that is a file; for the embedded
  Sprint the content of its modules, and the versions of Python and numpy;
* all arguments, `control_config`, the control module's Python files, the working directory,
  `options.env` and the environment variables that the configuration refers to;
* the content of the configuration files and of the files that arguments and configuration name:
  corpus, lexicon, state tying, segment lists and whatever else (see `source_files`); and of what
  an XML file among these names in ``<include file="...">``.

It does not cover libraries that the executable loads, files inside directories that are named, and
files that Sprint finds without being told or that only `control_config` names.  Files of more than
256 MiB that are not XML, such as a language model or a container's image, count by size, time of
modification and inode.

A file is read again when its size, times or inode are not the same as before, or when it was
changed so shortly before it was read that another change might have left the same times.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import platform
import re
import stat
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jax_sprint.bridge.command import evaluate_config, find_executable, look_up_environment
from jax_sprint.bridge.options import SprintOptions, default_control_module
from jax_sprint.bridge.source_files import Sources, UncertainSources, find_sources

__all__ = ["FileState", "Fingerprint", "Inspector"]

_CHUNK = 1 << 20
_OVERLAP = 4096
_MAX_HASHED = 256 << 20
_MAX_CONFIG = 64 << 20
# Two changes within this time may leave the same time of modification.
_RACY_NS = 2_000_000_000
_INCLUDE = re.compile(rb"<include\b[^>]*?\bfile\s*=\s*[\"']([^\"']+)[\"']")
_ARGUMENTS_OF_SPRINT = "NEURAL-NETWORK-TRAINER"


@dataclasses.dataclass(frozen=True)
class FileState:
    """One file as it was at some time; `includes` are the names in its ``<include file=...>``."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    digest: str
    includes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a Sprint would be made of if it were started now.

    Attributes:
        digest: the same for the same content, in hexadecimal.
        words: the arguments that `SprintOptions.config` came down to.
        files: all files that count, as they were.
    """

    digest: str
    words: tuple[str, ...]
    files: tuple[FileState, ...]

    def changed(self, other: Fingerprint) -> list[str]:
        """The names of the files in which `other` differs."""
        mine, theirs = ({file.path: file for file in each.files} for each in (self, other))
        return sorted(path for path in {**mine, **theirs} if mine.get(path) != theirs.get(path))


class Inspector:
    """Takes fingerprints of what these options would start; for several threads at once.

    Args:
        options: callables in them are called for every fingerprint.
    """

    def __init__(self, options: SprintOptions) -> None:
        self._options = options
        self._control_files: list[str] | None = None
        # The last search, and what it depended on.
        self._search: tuple[tuple, Sources] | None = None
        # The last fingerprint, likewise.
        self._last: tuple[tuple, Fingerprint] | None = None

    def __call__(self) -> Fingerprint:
        """Takes a fingerprint.

        Raises:
            UncertainSources: it cannot be said which files matter.
            SprintStartError: the executable does not exist.
            ValueError: the options do not come down to arguments.
        """
        options = self._options
        environment = look_up_environment(options)
        program = find_executable(options, environment)
        words = tuple(evaluate_config(options.config, options.config_mapping, environment))
        directory = os.path.abspath(os.fspath(options.cwd or "."))
        sources = self._find(words, program, directory, environment)
        files: dict[str, FileState] = {}
        if self._control_files is None:
            self._control_files = _control_files(options)
        own = [program[0], *self._control_files]
        if options.exec_path is None:
            own += _embedded_files()
        for path in [*own, *sources.configs, *sources.candidates]:
            _add_file(files, path)
        where = os.stat(directory) if os.path.isdir(directory) else None
        basis = (
            tuple(program),
            words,
            tuple(
                f"{key}:{value}" for key, value in sorted((options.control_config or {}).items())
            ),
            tuple(f"{key}={value}" for key, value in sorted((options.env or {}).items())),
            (directory, where and (where.st_dev, where.st_ino)),
            tuple((name, environment.get(name)) for name in sources.variables),
            environment.get(_ARGUMENTS_OF_SPRINT),
            tuple(files.values()),
        )
        last = self._last
        if last is None or last[0] != basis:
            last = self._last = basis, self._fingerprint(*basis)
        return last[1]

    def _fingerprint(
        self,
        program: tuple[str, ...],
        words: tuple[str, ...],
        control: tuple[str, ...],
        settings: tuple[str, ...],
        directory: tuple[str, object],
        variables: tuple[tuple[str, str | None], ...],
        arguments: str | None,
        files: tuple[FileState, ...],
    ) -> Fingerprint:
        options = self._options
        digest = hashlib.blake2b(digest_size=20)
        for part in (
            "1",
            *(f"word {word}" for word in (*program[1:], "", *words)),
            *(f"control {pair}" for pair in control),
            f"module {options.control_module and options.control_module[1]}",
            f"order {options.use_python_segment_order}",
            f"directory {os.path.realpath(directory[0])}",
            *(f"env {pair}" for pair in settings),
            *(f"env {name}={value}" for name, value in variables),
            f"env {arguments}",
            f"python {platform.python_version()} {np.__version__}"
            if options.exec_path is None
            else "",
            *(f"file {file.path} {file.digest}" for file in files),
        ):
            digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
        return Fingerprint(digest.hexdigest(), words, files)

    def _find(
        self,
        words: tuple[str, ...],
        program: list[str],
        directory: str,
        environment: Mapping[str, str],
    ) -> Sources:
        """The files that matter, searched again only if something about the search changed."""
        more = environment.get(_ARGUMENTS_OF_SPRINT, "").split()
        search, self_is = self._search, (words, tuple(program), tuple(more), directory)
        if search is not None:
            (known, states, variables), sources = search
            if (
                known == self_is
                and states == tuple(map(_look, sources.configs))
                and variables == tuple(map(environment.get, sources.variables))
            ):
                return sources
        sources = find_sources([*program[1:], *words, *more], directory, environment, _read_text)
        states = tuple(map(_look, sources.configs))
        variables = tuple(map(environment.get, sources.variables))
        self._search = ((self_is, states, variables), sources)
        return sources


_memo: dict[str, tuple[tuple, FileState]] = {}
_memo_lock = threading.Lock()


def _look(path: str) -> FileState | None:
    """The file as it is now; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    key = (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
    )
    with _memo_lock:
        known = _memo.get(path)
        if known is not None and known[0] == key:
            return known[1]
        now = time.time_ns()
        digest, includes = _read(path, status.st_size)
        if not digest:
            digest = "by its status " + " ".join(map(str, key))
        state = FileState(
            path, status.st_size, status.st_mtime_ns, status.st_ino, digest, tuple(includes)
        )
        if now - max(status.st_mtime_ns, status.st_ctime_ns) > _RACY_NS:
            _memo[path] = (key, state)
        else:
            _memo.pop(path, None)
        return state


def _add_file(files: dict[str, FileState], path: str) -> None:
    if path in files:
        return
    state = _look(path)
    if state is None:
        return
    files[path] = state
    for name in state.includes:
        if "$(" in name:
            raise UncertainSources(f"{path} includes {name!r}, which only Sprint can resolve")
        _add_file(files, os.path.normpath(os.path.join(os.path.dirname(path), name)))


def _read(path: str, size: int) -> tuple[str, list[str]]:
    """Digest and included names; an empty digest for what is too large or cannot be read."""
    digest = hashlib.blake2b(digest_size=20)
    includes: dict[str, None] = {}
    try:
        with open(path, "rb") as file:
            chunk = file.read(_CHUNK)
            texts = _Texts(chunk)
            if size > _MAX_HASHED and not texts.is_xml:
                return "", []
            rest = b""
            while chunk:
                digest.update(chunk)
                if texts.is_xml:
                    for text in texts.decode(chunk):
                        window = rest + text
                        for name in _INCLUDE.findall(window):
                            includes[name.decode("utf-8", "surrogateescape")] = None
                        rest = window[-_OVERLAP:]
                chunk = file.read(_CHUNK)
    except OSError:
        return "", []
    return digest.hexdigest(), list(includes)


class _Texts:
    """Unpacks what may be gzipped, to look for includes."""

    def __init__(self, head: bytes) -> None:
        self._zip = zlib.decompressobj(31) if head[:2] == b"\x1f\x8b" else None
        start = head
        if self._zip is not None:
            try:
                start = zlib.decompressobj(31).decompress(head, _OVERLAP)
            except zlib.error:
                start = b""
        self.is_xml = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        if self._zip is None:
            yield chunk
            return
        while chunk and self.is_xml:
            try:
                text = self._zip.decompress(chunk, 16 * _CHUNK)
            except zlib.error:
                return  # Sprint will say so
            yield text
            chunk = self._zip.unconsumed_tail
            if self._zip.eof:
                chunk = self._zip.unused_data
                self._zip = zlib.decompressobj(31)


def _read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_MAX_CONFIG)
    except (OSError, ValueError):
        return None


@functools.cache
def _embedded_files() -> tuple[str, ...]:
    package = Path(__file__).resolve().parent.parent / "embedded"
    return tuple(str(path) for path in sorted(package.rglob("*.py")))


def _control_files(options: SprintOptions) -> list[str]:
    directory, module = options.control_module or default_control_module()
    base = Path(os.fspath(directory)).absolute().joinpath(*module.split("."))
    if base.is_dir():
        return [str(path) for path in sorted(base.rglob("*.py"))]
    return [str(base) + ".py"]


def _after_fork_in_child() -> None:
    # Another thread may have held it.
    global _memo_lock
    _memo_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
