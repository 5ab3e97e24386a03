"""One Sprint, examined step by step."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jax_sprint.bridge.command import build_environment, find_executable
from jax_sprint.bridge.fingerprint import Fingerprint, Inspector
from jax_sprint.bridge.instance import SprintSubprocessInstance
from jax_sprint.bridge.options import SprintOptions, default_control_module
from jax_sprint.bridge.source_files import UncertainSources
from jax_sprint.doctor._corpus import first_segment
from jax_sprint.doctor._remedies import Advice, advise
from jax_sprint.errors import SprintError

__all__ = ["Finding", "examine"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of one step.

    Attributes:
        step: its name.
        status: "ok", "note" (works, but is worth a thought), "FAIL" or "skip".
        text: what was found.
        advice: likely reason and remedy, of a failure or a note.
    """

    step: str
    status: str
    text: str
    advice: Advice | None = None


def examine(
    options: SprintOptions,
    *,
    segment: str | None = None,
    frames: int | None = None,
    labels: int | None = None,
) -> Iterator[Finding]:
    """Starts one Sprint and tries everything once.

    Args:
        options: what to start.
        segment: full name of the segment to ask about; None takes the first of a corpus that the
            configuration names.
        frames: of the posteriors to send; None takes as many as the automaton needs, and some.
        labels: of the posteriors to send; None takes as many as the automaton names.

    Yields:
        The findings, each as soon as it is known.
    """
    yield Finding("versions", "ok", _versions())
    try:
        program = find_executable(options, build_environment(options))
        now = _inspect(options)
    except (SprintError, ValueError) as error:
        yield _failure("command", error)
        yield from _skipped("handshake", "automaton", "loss", "exit")
        return
    yield from _command(options, program, now)
    instance = SprintSubprocessInstance(options, start=False)
    try:
        yield from _conversation(instance, now, segment, frames, labels)
    finally:
        instance.exit_handler()


def _conversation(
    instance: SprintSubprocessInstance,
    now: Fingerprint | None,
    segment: str | None,
    frames: int | None,
    labels: int | None,
) -> Iterator[Finding]:
    _, seconds, error = _timed(instance.init)
    if error is not None:
        yield _failure("handshake", error)
        yield from _skipped("automaton", "loss", "exit")
        return
    yield Finding(
        "handshake",
        "ok",
        f"after {_text(seconds)}; protocol {instance.protocol}; pid {instance.pid}",
    )
    if segment is None:
        found = first_segment([file.path for file in now.files] if now is not None else [])
        if found is None:
            advice = Advice(
                "the configuration names no Bliss corpus that could be read from here",
                "name a segment with --segment corpus/recording/segment",
            )
            yield Finding("segment", "FAIL", "no segment to ask about", advice)
            yield from _skipped("automaton", "loss")
            yield _exit(instance)
            return
        segment, path = found
        yield Finding("segment", "ok", f"{segment}, the first one in {path}")
    automaton, seconds, error = _timed(_fetch, instance, segment)
    if error is not None:
        yield _failure("automaton", error)
    else:
        _, again, error = _timed(_fetch, instance, segment)
        yield _describe_automaton(automaton, seconds, again)
        if error is not None:
            yield _failure("automaton", error)
    yield from _loss(instance, segment, automaton, frames, labels)
    yield _exit(instance)


def _loss(
    instance: SprintSubprocessInstance,
    segment: str,
    automaton: Any,
    frames: int | None,
    labels: int | None,
) -> Iterator[Finding]:
    if automaton is not None:
        shortest = _shortest_path(automaton)
        loops = (automaton[2][0] == automaton[2][1]).any()
        frames = frames or (shortest or 1) + (5 if loops else 0)
        labels = labels or int(automaton[2][2].max(initial=0)) + 1
    frames, labels = frames or 10, labels or 1
    if not instance.is_alive:
        _, seconds, error = _timed(instance.init)
        if error is not None:
            yield _failure("loss", error)
            return
        yield Finding("restart", "ok", f"after {_text(seconds)}")
    # Uniform posteriors: nothing underflows, and every path counts the same.
    posteriors = np.full((frames, labels), -np.log(labels), np.float32)

    def ask() -> tuple[str, float, np.ndarray]:
        instance.get_loss_and_error_signal__send(segment, frames, posteriors)
        return instance.get_loss_and_error_signal__read()

    answer, seconds, error = _timed(ask)
    if error is not None:
        yield _failure("loss", error)
        return
    loss, error_signal = float(answer[1]), answer[2]
    text = (
        f"{loss:.6g} for {frames} frames of {labels} labels, all equally probable; {_text(seconds)}"
    )
    if np.isnan(loss):
        advice = Advice(
            "Sprint computed NaN from finite posteriors: a prior or a score that is NaN, or a "
            "wrong number of labels",
            "check --labels, the configuration's priors and scales",
        )
        yield Finding("loss", "FAIL", text, advice)
    elif np.isinf(loss):
        advice = Advice(
            f"Sprint skipped the segment, or found no path of {frames} frames for it",
            "try more --frames; check that the criterion can use this segment (lattices, "
            "alignments)",
        )
        yield Finding("loss", "note", text, advice)
    else:
        sums = error_signal.sum(axis=1)
        if np.allclose(sums, 0, atol=1e-3):
            kind = "sums to 0 per frame, like y - target: put log_softmax before the loss"
        else:
            kind = f"sums to {sums.mean():.4g} per frame"
        yield Finding("loss", "ok", f"{text}; its error signal {kind}")


def _exit(instance: SprintSubprocessInstance) -> Finding:
    if not instance.is_alive:
        return Finding("exit", "skip", "it is not running any more")
    before = time.monotonic()
    instance.exit_handler()
    seconds = time.monotonic() - before
    if seconds < instance.options.exit_timeout:
        return Finding("exit", "ok", f"after {_text(seconds)}")
    advice = Advice(
        "Sprint does not end when it is told to, or takes long to clean up",
        "harmless, apart from the wait at the end of a run; exit_timeout shortens that",
    )
    return Finding("exit", "note", f"killed after {_text(seconds)}", advice)


# ------------------------------------------------------------------------------------------ pieces


def _versions() -> str:
    def version(package: str) -> str:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{package} not installed"

    return ", ".join(
        [
            version("jax_sprint"),
            f"Python {platform.python_version()}",
            f"numpy {np.__version__}",
            version("jax"),
            f"{platform.system()} {platform.release()}",
        ]
    )


def _inspect(options: SprintOptions) -> Fingerprint | None:
    try:
        return Inspector(options)()
    except UncertainSources:
        return None


def _command(
    options: SprintOptions, program: list[str], now: Fingerprint | None
) -> Iterator[Finding]:
    name = "the embedded Sprint" if options.exec_path is None else " ".join(program)
    words = now.words if now is not None else ()
    yield Finding("command", "ok", f"{name}, with {' '.join(words) or 'no arguments of its own'}")
    directory, module = options.control_module or default_control_module()
    place = os.path.join(os.fspath(directory), *module.split("."))
    if not os.path.isfile(place + ".py") and not os.path.isdir(place):
        advice = Advice("its directory or name is misspelt", "leave control_module out for ours")
        yield Finding("module", "FAIL", f"there is no control module at {place}", advice)
    base = os.fspath(options.cwd or ".")
    configs = [word[9:] for word in words if word.startswith("--config=")]
    for config in configs:
        if "$(" not in config and not os.path.isfile(os.path.join(base, config)):
            advice = Advice(
                "its name or the working directory is wrong",
                "names are relative to --cwd; give a full path to be sure",
            )
            yield Finding("files", "FAIL", f"there is no configuration file {config!r}", advice)
    if not configs:
        advice = Advice("no argument --config=FILE was given", "add --config FILE")
        yield Finding("files", "note", "no configuration file", advice)
    files = [os.path.abspath(program[0])] + [file.path for file in now.files] if now else []
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    named = [path for path in files[1:] if path != files[0] and not path.startswith(own + os.sep)]
    if named:
        yield Finding("files", "ok", ", ".join(os.path.relpath(path, base) for path in named[:20]))


def _fetch(instance: SprintSubprocessInstance, segment: str) -> Any:
    return instance.export_allophone_state_fsa_by_segment_name(segment)


def _describe_automaton(automaton: Any, seconds: float, again: float) -> Finding:
    states, count, edges, weights = automaton
    times = f"{_text(seconds)}, the second time {_text(again)}"
    shortest = _shortest_path(automaton)
    if shortest is None:
        advice = Advice(
            "no path leads from the first state to the last",
            "the transcription, the lexicon or the topology permits nothing; check the segment's "
            "transcription",
        )
        return Finding("automaton", "note", f"{states} states, {count} arcs; {times}", advice)
    labels = int(edges[2].max(initial=0)) + 1
    return Finding(
        "automaton",
        "ok",
        f"{states} states, {count} arcs, labels up to {labels - 1}, at least {shortest} frames, "
        f"costs {weights.min(initial=np.inf):.4g} to {weights.max(initial=-np.inf):.4g}; {times}",
    )


def _shortest_path(automaton: Any) -> int | None:
    """Number of arcs from the first to the last state; None if there is no way."""
    states, _, edges, _ = automaton
    reached = np.zeros(states, bool)
    reached[0] = True
    for steps in range(states):
        if reached[-1]:
            return steps
        after = reached.copy()
        after[edges[1][reached[edges[0]]]] = True
        if (after == reached).all():
            return None
        reached = after
    return None


def _timed(
    function: Callable[..., Any], *arguments: Any
) -> tuple[Any, float, SprintError | ValueError | None]:
    before = time.monotonic()
    try:
        return function(*arguments), time.monotonic() - before, None
    except (SprintError, ValueError) as error:
        return None, time.monotonic() - before, error


def _failure(step: str, error: SprintError | ValueError) -> Finding:
    return Finding(step, "FAIL", f"{type(error).__name__}: {error}", advise(error))


def _skipped(*steps: str) -> Iterator[Finding]:
    for step in steps:
        yield Finding(step, "skip", "not reached")


def _text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"
