"""RASR's configuration as its components see it: a scope, and typed parameters.

The scopes that the embedded Sprint asks, below the application's name:

=====================================================  ==========================================
``corpus``                                             Bliss corpus, segment lists, segment order
``alignment-fsa-exporter.model-combination``           ``lexicon``, ``acoustic-model``
``alignment-fsa-exporter.allophone-state-graph-builder``  topology, orthographic parser
``criterion``                                          see `jax_sprint.embedded.criterion`
(the application itself)                               ``pymod-path`` and so on
=====================================================  ==========================================

Differences to RASR on purpose: where RASR prints a message and goes on with a default (a value
that cannot be parsed, a reference to nothing, a configuration file that is missing), this raises.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from jax_sprint.embedded.arithmetic import evaluate
from jax_sprint.embedded.config_store import Resource, ResourceStore, is_well_formed
from jax_sprint.embedded.errors import ConfigurationError

__all__ = ["APPLICATION", "Configuration"]

APPLICATION = "neural-network-trainer"
"""Name of the RASR executable whose place we take: the first component of every parameter."""

_BOOLS = {"1": True, "yes": True, "true": True, "on": True}
_BOOLS |= {"0": False, "no": False, "false": False, "off": False}
_INFINITE = {"infinite", "infinity", "inf"}
_SPACE = " \t\n\r\f\v"
_Value = TypeVar("_Value")


class Configuration:
    """A view of all resources from one component.

    Attributes:
        path: full dotted name of the component, e.g. ``neural-network-trainer.corpus``.
    """

    def __init__(self, store: ResourceStore, path: str = APPLICATION) -> None:
        self._store = store
        self.path = path

    @classmethod
    def from_argv(
        cls, arguments: list[str], *, environment: Mapping[str, str] | None = None
    ) -> Configuration:
        """Reads the command line and the files that ``--config=FILE`` and ``include`` name.

        Args:
            arguments: as in ``sys.argv[1:]``.
            environment: for ``$(HOME)`` and the like; the process's own by default.  The variable
                ``NEURAL-NETWORK-TRAINER`` may hold further arguments, as in RASR.

        Raises:
            ConfigurationError: a file is missing, a name is malformed.
        """
        environment = dict(os.environ if environment is None else environment)
        store = ResourceStore(environment)
        root = cls(store)
        store.read_command_line(arguments, APPLICATION)
        file = root.get_str("config", "")
        if file:
            store.read_file(file, root.resolve)
        extra = environment.get(APPLICATION.upper(), "")
        if extra:
            store.read_command_line(_split_quoted(extra), APPLICATION)
        rest = store.read_command_line(arguments, APPLICATION)
        if rest:
            store.messages.append(f"configuration warning: arguments ignored: {' '.join(rest)}")
        return root

    @classmethod
    def from_dict(cls, resources: Mapping[str, object], path: str = APPLICATION) -> Configuration:
        """A configuration made in Python, e.g. ``{"*.lexicon.file": "lexicon.xml"}``."""
        store = ResourceStore()
        for name, value in resources.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            store.set(name, text, "from_dict")
        return cls(store, path)

    def select(self, path: str) -> Configuration:
        """The view of a component below this one; `path` may have several components."""
        if not is_well_formed(path, wildcards=False):
            raise ConfigurationError(f"{path!r} is no component name")
        return Configuration(self._store, f"{self.path}.{path}")

    child = select

    # -- values ---------------------------------------------------------------------------------

    def get_raw(self, name: str) -> str | None:
        """The resolved text of a parameter, or None if it is not configured.

        Args:
            name: one component; no dots.
        """
        full = f"{self.path}.{name}"
        resource = self._store.find(full)
        if resource is None:
            return None
        resource.used_as.add(full)
        return self._resolve_resource(resource, ())

    def has(self, name: str) -> bool:
        """Whether the parameter is configured."""
        return self._store.find(f"{self.path}.{name}") is not None

    def get_str(self, name: str, default: str = "") -> str:
        """A string, as written."""
        text = self.get_raw(name)
        return default if text is None else text

    def get_bool(self, name: str, default: bool) -> bool:
        """One of 1, yes, true, on, 0, no, false, off."""
        return self._parse(name, default, _parse_bool, "one of " + ", ".join(_BOOLS))

    def get_int(
        self, name: str, default: int, *, minimum: int | None = None, maximum: int | None = None
    ) -> int:
        """A decimal integer."""
        accepted = "an integer" + _range_text(minimum, maximum)
        return self._parse(name, default, _in_range(_parse_int, minimum, maximum), accepted)

    def get_float(
        self,
        name: str,
        default: float,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> float:
        """A number; ``infinity``, ``inf``, ``infinite`` and ``unlimited`` give `math.inf`."""
        accepted = "a number or 'infinity'" + _range_text(minimum, maximum)
        return self._parse(name, default, _in_range(_parse_float, minimum, maximum), accepted)

    def get_choice(self, name: str, choices: Iterable[str], default: str) -> str:
        """One word out of several."""
        choices = list(choices)

        def parse(text: str) -> str:
            text = text.strip(_SPACE)
            if text not in choices:
                raise ValueError
            return text

        return self._parse(name, default, parse, "one of " + ", ".join(choices))

    def get_list(
        self, name: str, default: Iterable[str] = (), *, delimiter: str = " "
    ) -> list[str]:
        """Strings separated by `delimiter`, each stripped of blanks.

        RASR's own lists are separated by blanks unless a parameter says otherwise.
        """
        text = self.get_raw(name)
        if text is None:
            return list(default)
        if delimiter == " ":
            return text.split()
        return [part.strip(_SPACE) for part in text.strip(_SPACE).split(delimiter)] if text else []

    def get_path(self, name: str, default: str = "") -> str:
        """A file name; RASR leaves relative ones to the working directory, and so do we."""
        return self.get_str(name, default).strip(_SPACE)

    def full_name(self, name: str) -> str:
        """The parameter's full name, for messages."""
        return f"{self.path}.{name}"

    def error(self, name: str, problem: str) -> ConfigurationError:
        """An error about a parameter, to be raised by who asked for it.

        Args:
            name: of the parameter.
            problem: what is wrong and what is accepted.
        """
        resource = self._store.find(self.full_name(name))
        where = f" (set by {resource.name!r}, {resource.source})" if resource is not None else ""
        return ConfigurationError(f"parameter {self.full_name(name)}{where}: {problem}")

    def _parse(
        self, name: str, default: _Value, parse: Callable[[str], _Value], accepted: str
    ) -> _Value:
        text = self.get_raw(name)
        if text is None:
            return default
        try:
            return parse(text)
        except ValueError:
            raise self.error(name, f"cannot use {text!r}; it must be {accepted}") from None

    # -- references -----------------------------------------------------------------------------

    def resolve(self, text: str) -> str:
        """Substitutes ``$(name)`` by the value of that parameter and ``$[1 + 2, int]`` by its sum.

        A name is looked up in this scope first, then in each enclosing one, then alone (which
        finds environment variables).

        Raises:
            ConfigurationError: a reference to nothing, to itself, or one that is not closed.
        """
        return self._resolve(text, ())

    def _resolve_resource(self, resource: Resource, active: tuple[str, ...]) -> str:
        if "$" not in resource.value:
            return resource.value
        if resource.name in active:
            raise ConfigurationError(
                f"{resource.source}: {resource.name!r} refers to itself: "
                + " -> ".join([*active, resource.name])
            )
        try:
            return self._resolve(resource.value, (*active, resource.name))
        except ConfigurationError as error:
            if active or resource.source in str(error):
                raise
            raise ConfigurationError(f"{resource.source}: {error}") from None

    def _resolve(self, text: str, active: tuple[str, ...]) -> str:
        if re.search(r"\$\((?![^()]*\))", text) or re.search(r"\$\[(?![^\[\]]*\])", text):
            raise ConfigurationError(f"unclosed bracket in {text!r}")
        text = re.sub(r"\$\(([^)]*)\)", lambda m: self._reference(m.group(1), active), text)
        return re.sub(r"\$\[([^\]]*)\]", lambda m: _arithmetic(m.group(1)), text)

    def _reference(self, name: str, active: tuple[str, ...]) -> str:
        if not is_well_formed(name, wildcards=False):
            raise ConfigurationError(f"malformed reference $({name})")
        scope = self.path
        while True:
            full = f"{scope}.{name}" if scope else name
            resource = self._store.find(full)
            if resource is not None:
                resource.used_as.add(full)
                return self._resolve_resource(resource, active)
            if not scope:
                raise ConfigurationError(
                    f"the reference $({name}) matches nothing, neither in {self.path} nor in an "
                    "enclosing scope nor in the environment"
                )
            scope = scope.rpartition(".")[0]

    # -- reports --------------------------------------------------------------------------------

    @property
    def messages(self) -> list[str]:
        """Warnings so far, of all components."""
        return self._store.messages

    def unused(self) -> list[Resource]:
        """The resources that no parameter was answered from so far, environment left out."""
        return [
            resource
            for resource in self._store.resources()
            if not resource.used_as and not resource.source.startswith("environment variable")
        ]


def _parse_bool(text: str) -> bool:
    text = text.strip(_SPACE)
    if text not in _BOOLS:
        raise ValueError
    return _BOOLS[text]


def _parse_int(text: str) -> int:
    if not re.fullmatch(rf"[{_SPACE}]*[+-]?[0-9]+[{_SPACE}]*", text):
        raise ValueError
    return int(text)


def _parse_float(text: str) -> float:
    text = text.strip(_SPACE)
    if text.lstrip("+-") in _INFINITE or text == "unlimited":
        return -math.inf if text.startswith("-") else math.inf
    if "_" in text:
        raise ValueError
    value = float(text)
    if math.isnan(value):
        raise ValueError
    return value


def _in_range(parse, minimum, maximum):
    def checked(text: str):
        value = parse(text)
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            raise ValueError
        return value

    return checked


def _range_text(minimum, maximum) -> str:
    if minimum is None and maximum is None:
        return ""
    if maximum is None:
        return f", at least {minimum}"
    if minimum is None:
        return f", at most {maximum}"
    return f" from {minimum} to {maximum}"


def _arithmetic(text: str) -> str:
    expression, _, kind = text.partition(",")
    kind = kind.strip() or "float"
    if kind not in ("int", "i", "float", "f"):
        raise ConfigurationError(f"$[{text}]: unknown format {kind!r}; it must be int or float")
    try:
        value = evaluate(expression)
        return str(int(value)) if kind in ("int", "i") else f"{value:f}"
    except (ValueError, ArithmeticError) as error:
        raise ConfigurationError(f"$[{text}]: {error}") from None


def _split_quoted(text: str) -> list[str]:
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', text)]
