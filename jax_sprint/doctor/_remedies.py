"""From an error to its likely reason and what to do about it."""

from __future__ import annotations

import dataclasses
import re
import signal

from jax_sprint.errors import (
    SprintCrashError,
    SprintError,
    SprintProtocolError,
    SprintRequestError,
    SprintStartError,
    SprintTimeoutError,
)

__all__ = ["Advice", "advise"]


@dataclasses.dataclass(frozen=True)
class Advice:
    """What probably happened, and what helps."""

    reason: str
    remedy: str


_FOREIGN_BYTES = Advice(
    "something else than the control module writes into the pipe of the answers, or another "
    "control module does",
    "use the control module of this package (leave control_module out); look in the log "
    "(--log-dir) for what else runs in that process",
)
# (kind, pattern in the whole text, reason, remedy): the first that fits counts.
_RULES: list[tuple[type[SprintError], str, Advice]] = [
    (
        SprintStartError,
        r"was not found in PATH|does not exist|is not a file",
        Advice(
            "the executable's name is misspelt, or it is on another machine or in a container",
            "give its full path with --exec-path, or leave --exec-path out for the embedded Sprint",
        ),
    ),
    (
        SprintStartError,
        r"is not executable",
        Advice("the file lacks the permission to be executed", "chmod +x it"),
    ),
    (
        SprintStartError,
        r"^cwd ",
        Advice("the working directory is misspelt", "give an existing directory with --cwd"),
    ),
    (
        SprintStartError,
        r"Exec format error|cannot be executed",
        Advice(
            "the file is no program for this machine, or a script without its first line #!...",
            "use an executable built for this machine; start scripts with #!/bin/sh or the like",
        ),
    ),
    (
        SprintStartError,
        r"[Tt]oo many open files|file descriptors",
        Advice("this process has too many files open", "raise the limit: ulimit -n 4096"),
    ),
    (
        SprintError,
        r"shared librar|shared object|GLIBC",
        Advice(
            "a library that the executable was built with is not found here",
            "set LD_LIBRARY_PATH (--env), or start it in its container: "
            '--exec-path "apptainer exec IMAGE nn-trainer"',
        ),
    ),
    (
        SprintError,
        r"ModuleNotFoundError|No module named|ImportError",
        Advice(
            "the Python inside Sprint lacks a module; our control module needs numpy there",
            "install numpy for the Python that Sprint was linked with, or name its place with "
            "--env PYTHONPATH=...",
        ),
    ),
    (
        SprintError,
        r"(cannot|could not|failed to) (read|open)|No such file",
        Advice(
            "a file that the configuration names is not there, as Sprint sees it",
            "correct the name, or the directory with --cwd; in a container, mount it",
        ),
    ),
    (
        SprintError,
        r"not in the lexicon|unknown phoneme|unknown (word|orth)|lexicon\S* line",
        Advice(
            "lexicon and transcription do not fit together",
            "add the missing word or phoneme to the lexicon, or an unknown word to stand for it",
        ),
    ),
    (
        SprintProtocolError,
        r"refused the handshake|speaks protocol version",
        Advice(
            "the control module or the Sprint that loads it is of another time than this package",
            "use the control module of this package (leave control_module out) and a Sprint with "
            "Python control version 2 or later",
        ),
    ),
    (SprintProtocolError, r"answer to the handshake", _FOREIGN_BYTES),
    (
        SprintStartError,
        r"closed its pipe before",
        Advice(
            "the process runs, but the descriptors of the pipes did not reach it, or it closed "
            "them",
            "a wrapper must pass inherited descriptors on: apptainer does, docker and sudo do not",
        ),
    ),
    (
        SprintTimeoutError,
        r"handshake",
        Advice(
            "Sprint runs, but does not hand control to the control module; or it takes longer to "
            "load its models",
            "set action = python-control and python-control-loop-type = python-control-loop in "
            "the configuration; if it only needs time, raise --timeout",
        ),
    ),
    (
        SprintTimeoutError,
        r"",
        Advice(
            "the computation takes longer than --timeout, waits for something such as a file "
            "system or a licence, or the process was stopped",
            "raise --timeout (request_timeout in the options); if that does not help, look in the "
            "log (--log-dir) for the last thing it did",
        ),
    ),
    (
        SprintRequestError,
        r"segment.*not (in|among)|unknown segment|no such segment",
        Advice(
            "the corpus has no segment of that full name",
            "names are corpus/recording/segment, as in the corpus file; check --segment, and that "
            "the configuration's corpus.file and its segment lists contain it",
        ),
    ),
    (
        SprintRequestError,
        r"label|dimension|columns|criterion",
        Advice(
            "the posteriors' number of labels, or the criterion, is not what Sprint is configured "
            "for",
            "give the number of the acoustic model's labels with --labels; check the "
            "configuration's criterion",
        ),
    ),
    (
        SprintRequestError,
        r"",
        Advice(
            "Sprint itself refused this request; the process is well",
            "read its words above, and its log (--log-dir); try another --segment",
        ),
    ),
    (
        SprintProtocolError,
        r"the loss must|error signal|shape|num_states|num_edges|weights|edge|state",
        Advice(
            "the answer is complete, but not what was asked for: a control module of another "
            "kind, or a number of labels that is not Sprint's",
            "use the control module of this package; give the number of labels with --labels",
        ),
    ),
    (
        SprintProtocolError,
        r"max_message_bytes|larger|too (large|long)|bytes",
        Advice(
            "the answer announces more than max_message_bytes: it is huge, or no answer at all",
            "if such sizes are real, raise max_message_bytes in the options; else use the control "
            "module of this package",
        ),
    ),
    (SprintProtocolError, r"", _FOREIGN_BYTES),
    (
        SprintCrashError,
        r"though it was running",
        Advice(
            "the control module closed its end of the pipe, or another thread of Sprint did",
            "look in the log (--log-dir) for what happened in its Python",
        ),
    ),
]
_SIGNALS = {
    signal.SIGKILL: Advice(
        "the system killed it, most often for want of memory (also a container's or a batch "
        "system's limit), or somebody did",
        "look at dmesg and the limits; give it more memory, or start fewer instances",
    ),
    signal.SIGSEGV: Advice(
        "a bug in the executable, a library that does not fit it, or a broken model file",
        "run it under gdb, or with a core file (ulimit -c unlimited); check its libraries (ldd)",
    ),
    signal.SIGABRT: Advice(
        "the executable ended itself: a failed assertion, or no memory",
        "read its last lines above; they usually name the assertion",
    ),
    signal.SIGILL: Advice(
        "the executable was built for another kind of processor",
        "rebuild it for this machine, without -march=native",
    ),
    signal.SIGXCPU: Advice("a limit of computing time was reached", "raise it: ulimit -t"),
}


def advise(error: BaseException) -> Advice:
    """Finds the likely reason of a failure.

    Args:
        error: what the bridge raised.
    """
    if not isinstance(error, SprintError):
        return Advice("the options do not make a command line", "correct what the message names")
    text = str(error)
    for kind, pattern, advice in _RULES:
        if isinstance(error, kind) and re.search(pattern, text):
            return advice
    status = error.exit_status
    if status is not None and status < 0:
        return _SIGNALS.get(
            signal.Signals(-status) if -status in set(signal.Signals) else signal.SIGABRT,
            Advice("it was ended by a signal", "find out who sent it; batch systems do"),
        )
    if isinstance(error, SprintStartError) and status == 0:
        return Advice(
            "the program ran and ended by itself, without ever calling the control module: it is "
            "not Sprint's nn-trainer, or its configuration does something else",
            "set action = python-control and python-control-loop-type = python-control-loop in "
            "the configuration, and name that with --config",
        )
    return Advice(
        "Sprint ended itself because of an error",
        "read its last lines above; --log-dir keeps all of them"
        + ("" if error.stderr_tail else "; it said nothing on its standard error"),
    )
