"""RASR's database of configuration resources: its file syntax, its wildcards, its precedence.

A *resource* is a pair of a dotted name, in which any component may be ``*``, and a value.  A
*parameter* is a dotted name without wildcards, such as
``neural-network-trainer.corpus.file``; the resource that matches the most of its components wins.
The rules are those of RASR's `Core::Configuration`, facts read from its sources:

* ``*`` stands for any number of components, also none, and counts nothing; every other component
  that matches counts one.  Among equally specific resources the one whose name sorts first wins
  (with a warning), whatever the order they were read in.  A later resource *of the same name*
  replaces the earlier one.
* ``[*.corpus]`` prefixes the names that follow; ``include FILE`` reads another file, with the
  current section in force until it opens its own, relative to the working directory or else to
  the including file.
* ``#``, ``;`` and ``%`` begin a comment anywhere in a line.  A name alone means ``true``.
* In a file a value also ends at a double quote; elsewhere what stands between the first and the
  last quotation mark, single or double, is the value.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from jax_sprint.embedded.errors import ConfigurationError

__all__ = ["Resource", "ResourceStore", "is_well_formed"]

_COMMENT = "#;%"
_NAME = re.compile(r"[^.*][^.*]*(?:\.[^.*]+)*\Z")
_PATTERN = re.compile(r"(?:\*|[^.*]+)(?:\.(?:\*|[^.*]+))*\Z")
_MAX_INCLUDE_DEPTH = 32


def is_well_formed(name: str, *, wildcards: bool) -> bool:
    """Whether `name` is a dotted name; with `wildcards` a component may be ``*``."""
    return bool((_PATTERN if wildcards else _NAME).match(name))


def join_selection(selection: str, parameter: str) -> str:
    """Prefixes a parameter with a section; ``*`` followed by ``*`` becomes one ``*``."""
    if not selection:
        return parameter
    if selection.endswith("*") and parameter.startswith("*"):
        return selection + parameter[1:]
    return f"{selection}.{parameter}"


@dataclass
class Resource:
    """One line of configuration.

    Attributes:
        name: dotted, may hold wildcards.
        value: as written, references not yet resolved.
        source: where it was read, for messages, e.g. ``train.config line 3``.
        used_as: full names of the parameters that were answered from it.
    """

    name: str
    value: str
    source: str
    used_as: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.parts = self.name.split(".")

    def match(self, components: list[str]) -> int:
        """How many of the parameter's components this resource matches.

        Args:
            components: of the full parameter name.

        Returns:
            The number of components matched other than by a wildcard, or -1 without a match.
        """
        scores = [0] + [-1] * len(components)
        for part in self.parts:
            if part == "*":
                for i in range(1, len(scores)):
                    scores[i] = max(scores[i], scores[i - 1])
            else:
                for i in range(len(components), 0, -1):
                    fits = scores[i - 1] >= 0 and components[i - 1] == part
                    scores[i] = scores[i - 1] + 1 if fits else -1
                scores[0] = -1
        return scores[-1]


class ResourceStore:
    """All resources of one run, whatever their source.

    Attributes:
        messages: warnings and errors that RASR would have printed and survived; the host shows
            them on its standard error.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._resources: dict[str, Resource] = {}
        self._cache: dict[str, Resource | None] = {}
        self.messages: list[str] = []
        for name, value in (environment or {}).items():
            if is_well_formed(name, wildcards=True):
                self.set(name, value, f"environment variable {name}")
        if environment is not None:
            self.set("*.home", environment.get("HOME", ""), "environment variable HOME")

    def set(self, name: str, value: str, source: str) -> None:
        """Adds a resource, or replaces the one of the same name.

        Raises:
            ConfigurationError: if the name is malformed.
        """
        if not is_well_formed(name, wildcards=True):
            raise ConfigurationError(
                f"{source}: malformed resource name {name!r}; names are components joined by "
                "single dots, each of them a word or a lone '*'"
            )
        first = re.search("[\"']", value)
        if first is not None:
            last = max(value.rfind('"'), value.rfind("'"))
            value = value[first.end() : last] if last > first.start() else value[first.end() :]
        known = self._resources.get(name)
        if known is not None and known.value == value:
            # The command line is read twice, before and after the files.
            known.source = source
            return
        self._resources[name] = Resource(name, value, source)
        self._cache.clear()

    def find(self, parameter: str) -> Resource | None:
        """The most specific resource for a full parameter name, or None."""
        if parameter in self._cache:
            return self._cache[parameter]
        components = parameter.split(".")
        last = components[-1]
        best, winners = 0, []
        for name in sorted(self._resources):
            resource = self._resources[name]
            if resource.parts[-1] not in (last, "*"):
                continue
            score = resource.match(components)
            if score > best:
                best, winners = score, [resource]
            elif score == best and winners:
                winners.append(resource)
        if len(winners) > 1:
            names = ", ".join(repr(r.name) for r in winners)
            self.messages.append(
                f"configuration warning: {parameter!r} is matched by equally specific resources "
                f"{names}; using {winners[0].name!r} ({winners[0].source})"
            )
        result = winners[0] if winners else None
        self._cache[parameter] = result
        return result

    def resources(self) -> list[Resource]:
        """All resources, sorted by name."""
        return [self._resources[name] for name in sorted(self._resources)]

    def read_command_line(self, arguments: list[str], application: str) -> list[str]:
        """Reads ``--name=value``, ``--name value`` and ``--flag``.

        Names are relative to the application, so that ``--*.x=1`` becomes
        ``neural-network-trainer.*.x`` and beats ``*.x`` from a file; a leading dot
        (``--.*.x=1``) prevents that.

        Returns:
            What is no option.
        """
        rest: list[str] = []
        pending: str | None = None
        for argument in arguments:
            if argument.startswith("--"):
                if pending is not None:
                    self.set(pending, "true", "command line")
                    pending = None
                name, equals, value = argument[2:].partition("=")
                name = name[1:] if name.startswith(".") else f"{application}.{name}"
                if equals:
                    self.set(name, value, "command line")
                else:
                    pending = name
            elif pending is not None:
                self.set(pending, argument, "command line")
                pending = None
            else:
                rest.append(argument)
        if pending is not None:
            self.set(pending, "true", "command line")
        return rest

    def read_file(self, path: str, resolve, selection: str = "*", depth: int = 0) -> None:
        """Reads a configuration file and what it includes.

        Args:
            path: relative to the working directory.
            resolve: function that substitutes ``$(...)`` in section names and file names.
            selection: section in force at the first line.

        Raises:
            ConfigurationError: if a file cannot be read or includes itself.
        """
        if depth > _MAX_INCLUDE_DEPTH:
            raise ConfigurationError(f"{path}: include nested deeper than {_MAX_INCLUDE_DEPTH}")
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().split("\n")
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the configuration file {path!r}: {error.strerror}; "
                f"paths are relative to the working directory {os.getcwd()!r}"
            ) from None
        for number, line in enumerate(lines, 1):
            where = f"{path} line {number}"
            line = line.rstrip("\r")
            words = line.split(maxsplit=2)
            if len(words) >= 2 and words[0] == "include" and not words[1].startswith("="):
                target = resolve(words[1])
                if not os.path.isfile(target):
                    target = os.path.join(os.path.dirname(path), target)
                if not os.path.isfile(target):
                    raise ConfigurationError(f"{where}: include file {words[1]!r} does not exist")
                self.read_file(target, resolve, selection, depth + 1)
            elif line.startswith("[") and "]" in line:
                section = resolve(line[1 : line.index("]")])
                if section and not is_well_formed(section, wildcards=True):
                    raise ConfigurationError(f"{where}: malformed section name [{section}]")
                selection = section
            else:
                self._read_resource(line, selection, where, resolve)

    def _read_resource(self, line: str, selection: str, where: str, resolve) -> None:
        line = line.lstrip()
        if not line or line[0] in _COMMENT:
            return
        match = re.match(rf"([^=\s{_COMMENT}]+)\s*(.?)(.*)\Z", line, re.DOTALL)
        if match is None:
            self.messages.append(f"configuration error in {where}: syntax error, line ignored")
            return
        name, separator, rest = match.groups()
        if separator == "" or separator in _COMMENT:
            value = "true"
        elif separator == "=" and rest.strip():
            value = re.split(rf'["{_COMMENT}]', rest.lstrip(), maxsplit=1)[0].rstrip(" \t")
            if '"' in rest and not value:
                self.messages.append(
                    f"configuration warning in {where}: a value ends at a double quote, so "
                    f"{name!r} is empty; write it without quotes"
                )
        else:
            self.messages.append(f"configuration error in {where}: syntax error, line ignored")
            return
        self.set(join_selection(selection, resolve(name)), value, where)
