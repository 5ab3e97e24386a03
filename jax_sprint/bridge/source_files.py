"""Which files Sprint's automata may depend on, found in its arguments and configuration files.

Rather one file too many than one too few: a file that does not matter costs nothing until it
changes, one that was overlooked would let an outdated automaton pass for a current one.  Therefore
no attempt is made to find out which component reads which parameter:

* every configuration file is read that ``--config=FILE`` or an ``include FILE`` line names;
* every value in them and on the command line, and every word of it, counts as a file if there is
  a file of that name, relative to Sprint's working directory;
* ``$(name)`` in a value stands for each value that any parameter of that name has anywhere, and
  for the environment variable.

Left out are values of parameters whose names say that Sprint writes there (a component with the
word ``log``, ``channel`` or ``statistics``), files called ``*.log``, and directories.  Files that
an executable knows without being told are not found.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Sources", "UncertainSources", "find_sources"]

_REFERENCE = re.compile(r"\$\(([^()]*)\)")
_SETTING = re.compile(r"\s*([^=\s#;%]+)\s*=\s*(.*)")
_COMMENT = re.compile(r'[#;%"]')
_WRITTEN = re.compile(r"(^|[.*_-])(log|channel|statistics)([._-]|$)")
_BREAK = re.compile(r"[\s,;|\"']+")
_NUMBER = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?\Z")
_PLAIN = {"true", "false", "yes", "no", "on", "off", "infinity", "none", "utf-8", ""}
_MAX_DEPTH = 8
_MAX_VARIANTS = 256
_MAX_CONFIGS = 1000


class UncertainSources(Exception):
    """It cannot be said which files matter."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """What was found.

    Attributes:
        configs: configuration files, in the order in which they were found.
        candidates: absolute paths of everything that would matter if it were a file.
        variables: environment variables that the configuration refers to.
    """

    configs: tuple[str, ...]
    candidates: tuple[str, ...]
    variables: tuple[str, ...]


def find_sources(
    words: Sequence[str],
    directory: str,
    environment: Mapping[str, str],
    read: Callable[[str], str | None],
) -> Sources:
    """Finds the files that a Sprint with these arguments may read.

    Args:
        words: the arguments, executable excluded.
        directory: Sprint's working directory, absolute.
        environment: Sprint's environment.
        read: gives the text of a file, or None if there is none of that name.

    Raises:
        UncertainSources: references make too many variants, or there are too many files.
    """
    finder = _Finder(directory, environment, read)
    finder.add_words(words)
    finder.read_configs()
    return Sources(
        tuple(finder.configs), tuple(finder.candidates()), tuple(sorted(finder.variables))
    )


class _Finder:
    def __init__(
        self,
        directory: str,
        environment: Mapping[str, str],
        read: Callable[[str], str | None],
    ) -> None:
        self._directory = directory
        self._environment = environment
        self._read = read
        self._values: dict[str, set[str]] = {}
        self._texts: list[str] = []
        # (file name as written, directory of the file that says so)
        self._includes: list[tuple[str, str]] = []
        self.configs: dict[str, None] = {}
        self.variables: set[str] = set()

    def add_words(self, words: Sequence[str]) -> None:
        for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
            if not word.startswith("--"):
                self._texts.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            self._add(name, value if equals else following)

    def read_configs(self) -> None:
        while True:
            # Again and again: what a file defines may complete the name of another.
            found = [
                path
                for text, beside in self._includes
                for variant in self._variants(text)
                for path in self._paths(variant, beside)
                if path not in self.configs
            ]
            before = len(self.configs)
            for path in found:
                text = self._read(path) if path not in self.configs else None
                if text is not None:
                    self.configs[path] = None
                    self._parse(text, os.path.dirname(path))
            if len(self.configs) > _MAX_CONFIGS:
                raise UncertainSources(f"more than {_MAX_CONFIGS} configuration files")
            if len(self.configs) == before:
                return

    def candidates(self) -> Iterable[str]:
        seen: dict[str, None] = {}
        for text in dict.fromkeys(self._texts):
            for variant in self._variants(text):
                for piece in _pieces(variant):
                    seen[os.path.normpath(os.path.join(self._directory, piece))] = None
        return seen

    def _parse(self, text: str, directory: str) -> None:
        section = ""
        for line in text.split("\n"):
            words = line.split(maxsplit=2)
            if len(words) >= 2 and words[0] == "include" and not words[1].startswith("="):
                self._includes.append((words[1], directory))
            elif line.startswith("[") and "]" in line:
                section = line[1 : line.index("]")]
            elif (setting := _SETTING.match(line)) is not None:
                value = _COMMENT.split(setting.group(2), maxsplit=1)[0].rstrip()
                self._add(f"{section}.{setting.group(1)}", value)

    def _add(self, name: str, value: str) -> None:
        last = name.rpartition(".")[2]
        self._values.setdefault(last, set()).add(value)
        if last == "config":
            self._includes.append((value, self._directory))
        if not _WRITTEN.search(name):
            self._texts.append(value)

    def _variants(self, text: str, depth: int = 0) -> list[str]:
        """The text with its references replaced, in all ways there are."""
        names = dict.fromkeys(_REFERENCE.findall(text))
        if not names:
            return [text]
        if depth == _MAX_DEPTH:
            return []  # Sprint itself would find no end
        variants = [text]
        for name in names:
            choices = set(self._values.get(name.rpartition(".")[2], ()))
            for variable in (name, name.upper()):
                # Also those that are not set: they may be, the next time.
                self.variables.add(variable)
                if variable in self._environment:
                    choices.add(self._environment[variable])
            if not choices:
                return []
            variants = [v.replace(f"$({name})", c) for v in variants for c in sorted(choices)]
            if len(variants) > _MAX_VARIANTS:
                raise UncertainSources(f"{text!r} may mean more than {_MAX_VARIANTS} things")
        return list(dict.fromkeys(w for v in variants for w in self._variants(v, depth + 1)))

    def _paths(self, name: str, beside: str) -> Iterable[str]:
        name = name.strip("\"' \t")
        if name:
            for directory in dict.fromkeys((self._directory, beside)):
                yield os.path.normpath(os.path.join(directory, name))


def _pieces(text: str) -> Iterable[str]:
    """The text and its parts, as far as they may be file names."""
    for piece in dict.fromkeys([text.strip(), *_BREAK.split(text)]):
        # RASR writes formats before file names, as in ``bin:FILE``.
        parts = piece.split(":")
        for first in range(len(parts)):
            name = ":".join(parts[first:])
            if (
                name.lower() not in _PLAIN
                and not _NUMBER.match(name)
                and not name.endswith(".log")
                and "\0" not in name
                and len(name) < 4096
            ):
                yield name
