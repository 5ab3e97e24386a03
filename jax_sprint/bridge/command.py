"""From options to the command line and the environment of a Sprint process."""

from __future__ import annotations

import collections
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from jax_sprint.bridge.options import SprintOptions, default_control_module
from jax_sprint.errors import SprintStartError

__all__ = [
    "build_command",
    "build_environment",
    "evaluate_config",
    "find_executable",
    "look_up_environment",
]

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_RESERVED = ("c2p_fd", "p2c_fd", "minPythonControlVersion", "protocol", "shm_fd")
_MAX_DEPTH = 16
_ROOT = str(Path(__file__).resolve().parent.parent.parent)


def build_environment(options: SprintOptions) -> dict[str, str]:
    """The child's environment: ours, changed by `options.env`, and for the embedded Sprint the way
    to this package, which need not be installed."""
    return dict(look_up_environment(options))


def look_up_environment(options: SprintOptions) -> Mapping[str, str]:
    """The same, to look single variables up in: that is much faster than to copy them all."""
    settings = (options.env or {}).items()
    changes = {str(key): str(value) for key, value in settings if value is not None}
    removed = [key for key, value in settings if value is None]
    ours: MutableMapping[str, str] = os.environ
    if removed:
        ours = {key: value for key, value in os.environ.items() if key not in removed}
    if options.exec_path is None:
        before = changes.get("PYTHONPATH", ours.get("PYTHONPATH", ""))
        others = [path for path in before.split(os.pathsep) if path]
        changes["PYTHONPATH"] = os.pathsep.join([_ROOT, *others])
    return collections.ChainMap(changes, ours)


def build_command(
    options: SprintOptions,
    environment: Mapping[str, str],
    *,
    child_to_parent_fd: int,
    parent_to_child_fd: int,
    extra: Mapping[str, object] | None = None,
) -> list[str]:
    """The child's whole command line.

    Args:
        options: what to start.
        environment: the child's environment, where ``$NAME`` items are looked up.
        child_to_parent_fd: descriptor that the child writes its answers to.
        parent_to_child_fd: descriptor that the child reads its requests from.
        extra: further pairs for the control module that the bridge itself needs.

    Raises:
        SprintStartError: the executable does not exist or may not be executed.
        ValueError: a part of the options cannot be expressed on the command line.
    """
    directory, module = options.control_module or default_control_module()
    directory = os.fspath(directory)
    pairs = {
        "c2p_fd": child_to_parent_fd,
        "p2c_fd": parent_to_child_fd,
        "minPythonControlVersion": options.min_python_control_version,
        **(extra or {}),
    }
    config = ",".join(
        [f"{key}:{value}" for key, value in pairs.items()]
        + _control_pairs(options.control_config or {}, pairs)
    )
    command = [
        *find_executable(options, environment),
        "--*.python-control-enabled=true",
        f"--*.pymod-path={directory}",
        f"--*.pymod-name={module}",
        f"--*.pymod-config={config}",
    ]
    if options.use_python_segment_order:
        command += [
            "--*.python-segment-order=true",
            f"--*.python-segment-order-pymod-path={directory}",
            f"--*.python-segment-order-pymod-name={module}",
            f"--*.python-segment-order-config={config}",
            "--*.python-segment-order-allow-copy=false",
        ]
    command += evaluate_config(options.config, options.config_mapping, environment)
    for word in command:
        if "\0" in word:
            raise ValueError(f"the argument {word!r} holds a zero character; no argument may")
    return command


def evaluate_config(
    config: Any, mapping: Mapping[str, Any] | None, environment: Mapping[str, str]
) -> list[str]:
    """Turns `SprintOptions.config` into a list of arguments; callables are called now.

    Raises:
        ValueError: a variable is not set, a key is not in the mapping, quotes are not closed, or a
            callable returned something else than str, list or callable.
    """

    def source(value: Any, depth: int) -> list[str]:
        if depth > _MAX_DEPTH:
            raise ValueError(
                f"config is nested deeper than {_MAX_DEPTH} levels; does it refer to itself?"
            )
        if callable(value):
            return source(value(), depth + 1)
        if isinstance(value, list | tuple):
            return [word for item in value for word in one(item, depth + 1)]
        if not isinstance(value, str):
            raise ValueError(
                "config must come down to str and lists of str, but a callable or a mapping gave "
                f"{value!r}"
            )
        if value.startswith("config:"):
            return source(looked_up(value), depth + 1)
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"config {value!r} cannot be split into arguments: {error}") from None
        return [word for item in words for word in one(item, depth + 1)]

    def one(item: Any, depth: int) -> list[str]:
        if not isinstance(item, str):
            return source(item, depth)
        if item.startswith("config:"):
            return source(item, depth)
        variable = _VARIABLE.match(item)
        if variable is None:
            return [item]
        name = variable.group(1) or variable.group(2)
        if name not in environment:
            raise ValueError(
                f"config refers to ${name}, but the environment variable {name} is not set; set "
                "it, or give it in env="
            )
        rest = item[variable.end() :]
        return [environment[name] + rest] if rest else source(environment[name], depth + 1)

    def looked_up(text: str) -> Any:
        key = text[len("config:") :]
        if mapping is None or key not in mapping:
            known = ", ".join(sorted(map(str, mapping or ()))) or "nothing"
            raise ValueError(
                f"config refers to {text!r}, but config_mapping holds {known}; pass "
                f"config_mapping={{{key!r}: ...}}"
            )
        return mapping[key]

    return source(config, 0)


def _control_pairs(config: Mapping[str, Any], taken: Mapping[str, object]) -> list[str]:
    pairs = []
    for key in sorted(config, key=str):
        text, value = str(key), str(config[key])
        if not text or any(mark in text for mark in ",:\n\0"):
            raise ValueError(
                f"control_config has the key {key!r}; keys must not be empty nor hold a comma, "
                "a colon or a line break"
            )
        if text in taken or text in _RESERVED:
            raise ValueError(f"control_config sets {key!r}, which the bridge itself sets; drop it")
        if any(mark in value for mark in ",\n\0"):
            raise ValueError(
                f"control_config[{key!r}] = {value!r} holds a comma or a line break, which "
                "Sprint's pymod-config cannot express; put it into a file and pass the file's name"
            )
        pairs.append(f"{text}:{value}")
    return pairs


def find_executable(options: SprintOptions, environment: Mapping[str, str]) -> list[str]:
    """The words of the command in front of all arguments: the executable's path comes first.

    Raises:
        SprintStartError: the executable does not exist or may not be executed.
    """
    if options.exec_path is None:
        if not sys.executable:
            raise SprintStartError(
                "this Python does not know its own executable, so the embedded Sprint cannot be "
                "started; pass exec_path="
            )
        # -P: a numpy.py in the working directory must not get in the way.
        return [sys.executable, "-P", "-m", "jax_sprint.embedded"]
    if isinstance(options.exec_path, str | os.PathLike):
        words = [os.fspath(options.exec_path)]
    else:
        words = [os.fspath(word) for word in options.exec_path]
    return [_find(words[0], options, environment), *words[1:]]


def _find(program: str, options: SprintOptions, environment: Mapping[str, str]) -> str:
    if os.sep not in program:
        found = shutil.which(program, path=environment.get("PATH"))
        if found is None and not os.path.exists(program):
            raise SprintStartError(
                f"exec_path {program!r} was not found in PATH; give its full path, or None for "
                "the embedded Sprint"
            )
        program = found or program
    path = os.path.abspath(os.path.expanduser(program))
    if not os.path.exists(path):
        raise SprintStartError(
            f"exec_path {program!r} does not exist (looked at {path}); give the full path of "
            "Sprint's executable, or None for the embedded Sprint"
        )
    if not os.path.isfile(path):
        raise SprintStartError(f"exec_path {program!r} is not a file; give the executable itself")
    if not os.access(path, os.X_OK):
        raise SprintStartError(
            f"exec_path {program!r} is not executable; make it so with: chmod +x {path}"
        )
    return path
