"""How to start Sprint, and how long to wait for it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["OptionsLike", "SprintOptions"]

ConfigItem = Any  # str, a callable that gives ConfigItem, or a list of ConfigItem

_ANCESTOR_NAMES = {
    "sprintExecPath": "exec_path",
    "sprintConfigStr": "config",
    "sprintControlConfig": "control_config",
    "minPythonControlVersion": "min_python_control_version",
    "usePythonSegmentOrder": "use_python_segment_order",
    "numInstances": "num_instances",
}


@dataclasses.dataclass(frozen=True, eq=False)
class SprintOptions:
    """Which Sprint to start, with which arguments, how many of them, and every deadline.

    Options that mean the same compare and hash equal, whatever they are made of; callables count
    by identity.

    Attributes:
        exec_path: the executable: None for the embedded Sprint of this package; a path (a bare
            name is looked up in PATH); or a command list, such as a container's wrapper followed by
            the executable.  No shell is involved.
        config: the arguments behind those that the bridge itself needs, usually
            ``--config=FILE`` and ``--*.name=value``.  A str is split like a shell line; a list is
            taken item by item; a callable is called when the child is started, and may return any
            of these again.  An item ``$NAME`` is replaced by that environment variable, split like
            a shell line; an item ``config:KEY`` by `config_mapping[KEY]`.
        config_mapping: where ``config:KEY`` is looked up.
        control_config: further ``key:value`` pairs for the control module inside Sprint.  Their
            wire format knows no quoting: no commas in keys and values, no colon in keys.
        control_module: (directory, module name) of the control module; None for ours.
            RETURNN's works too: ``(returnn_root, "returnn.sprint.control")``.
        env: environment variables to set for the child (None as value: to remove), on top of our
            own.
        cwd: the child's working directory.
        log_dir: directory for each child's whole standard output and error, made when missing.
        min_python_control_version: least version of Sprint's Python interface to accept.
        use_python_segment_order: also let the control module choose the order of segments, which
            Sprint's trainers need.
        num_instances: number of Sprint processes in a pool.
        start_timeout: seconds from starting the executable to its answer to the handshake.
        request_timeout: seconds for one segment, from the request to the complete answer; also for
            several that are so short that they are asked for together.
        batch_timeout: seconds for the losses of one batch, from the call to its end, with waiting
            for a free Sprint, starting it and asking again; None for no limit, but 25 s in programs
            on several devices: there the others wait in the next collective, and XLA ends the
            program when that takes too long (see `docs/devices.md`).  What is not there by then has
            failed with a `SprintTimeoutError`.  A retry has a chance only where `request_timeout`
            leaves time for it.
        exit_timeout: seconds for Sprint to end by itself after being told to.
        max_retries: how often a pool asks again for a segment after its Sprint failed to start,
            died, did not answer in time or answered nonsense, each time on a fresh Sprint.  A
            request that Sprint itself refuses is not repeated.  That short segments were asked for
            together, and are then asked for one by one, does not count.
        on_error: what a pool does about the loss of a segment for which it cannot be had:
            "raise", or "mask": NaN as its loss and zero as its error signal.  That Sprint cannot be
            started at all is always raised.
        max_message_bytes: largest message accepted from Sprint.
        protocol_version: newest version of the protocol to offer: 2 (numbered messages, arrays in
            shared memory) or 1.  A control module that knows only version 1 works with both.
        shared_memory: False sends arrays through the pipe also in version 2.
        automata_cache: file in which a pool keeps exported automata, for later runs and for other
            processes of this host (see `automata_store`); None keeps them in memory only.
        automata_cache_bytes: how much memory a pool may use to keep automata, those used last; 0
            keeps none, neither in memory nor in a file.  The automata of a changed lexicon, corpus,
            configuration or executable are always fetched anew; what counts as such is told in
            `fingerprint`.
    """

    exec_path: str | os.PathLike[str] | Sequence[str] | None = None
    config: ConfigItem = ()
    config_mapping: Mapping[str, Any] | None = None
    control_config: Mapping[str, Any] | None = None
    control_module: tuple[str | os.PathLike[str], str] | None = None
    env: Mapping[str, str | None] | None = None
    cwd: str | os.PathLike[str] | None = None
    log_dir: str | os.PathLike[str] | None = None
    min_python_control_version: int = 2
    use_python_segment_order: bool = True
    num_instances: int = 1
    start_timeout: float = 120.0
    request_timeout: float = 300.0
    batch_timeout: float | None = None
    exit_timeout: float = 10.0
    max_retries: int = 0
    on_error: str = "raise"
    max_message_bytes: int = 1 << 30
    protocol_version: int = 2
    shared_memory: bool = True
    automata_cache: str | os.PathLike[str] | None = None
    automata_cache_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        _check_exec_path(self.exec_path)
        _check_config(self.config)
        for name in ("config_mapping", "control_config", "env"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"{name} must be a dict or None, got {type(value).__name__}")
        if self.control_module is not None and (
            isinstance(self.control_module, str) or len(self.control_module) != 2
        ):
            raise ValueError(
                f"control_module must be (directory, module name), got {self.control_module!r}"
            )
        for name in ("cwd", "log_dir", "automata_cache"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | os.PathLike):
                raise ValueError(f"{name} must be a path or None, got {value!r}")
        for name in ("num_instances", "min_python_control_version", "max_message_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        for name in ("start_timeout", "request_timeout", "batch_timeout", "exit_timeout"):
            value = getattr(self, name)
            if name == "batch_timeout" and value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
                or value <= 0
            ):
                raise ValueError(
                    f"{name} must be a positive, finite number of seconds, got {value!r}"
                )
        if (
            isinstance(self.max_retries, bool)
            or not isinstance(self.max_retries, int)
            or self.max_retries < 0
        ):
            raise ValueError(f"max_retries must be an int of at least 0, got {self.max_retries!r}")
        if (
            isinstance(self.automata_cache_bytes, bool)
            or not isinstance(self.automata_cache_bytes, int)
            or self.automata_cache_bytes < 0
        ):
            raise ValueError(
                "automata_cache_bytes must be an int of at least 0, got "
                f"{self.automata_cache_bytes!r}"
            )
        if self.automata_cache is not None and not os.fspath(self.automata_cache):
            raise ValueError("automata_cache is empty; None keeps automata in memory only")
        if self.on_error not in ("raise", "mask"):
            raise ValueError(f'on_error must be "raise" or "mask", got {self.on_error!r}')
        if self.protocol_version not in (1, 2):
            raise ValueError(f"protocol_version must be 1 or 2, got {self.protocol_version!r}")
        for name in ("use_python_segment_order", "shared_memory"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be a bool, got {value!r}")

    @classmethod
    def from_dict(
        cls, options: Mapping[str, Any], *, config_mapping: Mapping[str, Any] | None = None
    ) -> SprintOptions:
        """Makes options from a dict with RETURNN's keys, ours, or both.

        Args:
            options: `sprintExecPath`, `sprintConfigStr`, `sprintControlConfig`,
                `minPythonControlVersion`, `usePythonSegmentOrder`, `numInstances`, and the names
                of the attributes above.
            config_mapping: as the attribute, unless the dict has it.

        Raises:
            ValueError: a key is unknown, or given under both names.
        """
        if not isinstance(options, Mapping):
            raise ValueError(f"options must be a dict, got {type(options).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for key, value in options.items():
            name = _ANCESTOR_NAMES.get(key, key)
            if name not in known:
                raise ValueError(
                    f"unknown key {key!r} in the options; known are "
                    f"{', '.join(_ANCESTOR_NAMES)} and {', '.join(known)}"
                )
            if name in values:
                raise ValueError(f"{name} is given twice, once as {key!r}; keep one of them")
            values[name] = value
        values.setdefault("config_mapping", config_mapping)
        for name in ("num_instances", "min_python_control_version"):
            # RETURNN's dicts come from configuration files, where numbers may be strings.
            if isinstance(values.get(name), str):
                try:
                    values[name] = int(values[name])
                except ValueError:
                    raise ValueError(f"{name} must be a number, got {values[name]!r}") from None
        return cls(**values)

    @classmethod
    def coerce(cls, options: OptionsLike) -> SprintOptions:
        """Returns `options` as they are, or made from a dict by `from_dict`."""
        if isinstance(options, SprintOptions):
            return options
        if isinstance(options, Mapping):
            return cls.from_dict(options)
        raise ValueError(f"options must be a SprintOptions or a dict, got {type(options).__name__}")

    def replace(self, **changes: Any) -> SprintOptions:
        """Returns a copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def identity(self) -> tuple:
        """A hashable value that is equal for options that mean the same."""
        return tuple(_freeze(getattr(self, field.name)) for field in dataclasses.fields(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SprintOptions):
            return NotImplemented
        return self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(self.identity())


OptionsLike = SprintOptions | Mapping[str, Any]


class _ById:
    """Stands for an object that cannot be hashed, and keeps it alive so that its id stays its."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = [(str(key), _freeze(item)) for key, item in value.items()]
        return ("mapping", *sorted(items, key=lambda item: item[0]))
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool | int | float | str | bytes | None):
        # Otherwise True, 1 and 1.0 would be the same option.
        return (type(value).__name__, value) if isinstance(value, bool | int | float) else value
    try:
        hash(value)
    except TypeError:
        return _ById(value)
    return value


def _check_exec_path(value: Any) -> None:
    if value is None or isinstance(value, str | os.PathLike):
        if value is not None and not os.fspath(value):
            raise ValueError("exec_path is empty; None selects the embedded Sprint")
        return
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f"exec_path must be None, a path or a command list of at least one word, got {value!r}"
        )
    for word in value:
        if not isinstance(word, str | os.PathLike):
            raise ValueError(f"exec_path holds {word!r}; every word of a command must be a str")


def _check_config(value: Any, depth: int = 0) -> None:
    if isinstance(value, list | tuple) and depth < 16:
        for item in value:
            _check_config(item, depth + 1)
    elif not isinstance(value, str) and not callable(value):
        raise ValueError(
            f"config must be a str, a list of str, or a callable that gives one, got {value!r}"
        )


def default_control_module() -> tuple[str, str]:
    """(directory, module name) of the control module that this package brings for Sprint."""
    return str(Path(__file__).resolve().parent.parent / "sprint_side"), "jax_sprint_control"
