"""The command line of `jax-sprint doctor`."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from collections.abc import Sequence

from jax_sprint.bridge.options import SprintOptions
from jax_sprint.doctor._examination import Finding, examine

__all__ = ["main"]

_EXAMPLES = """\
examples:
  jax-sprint doctor --config sprint.config --cwd experiment
  jax-sprint doctor --exec-path nn-trainer --config sprint.config --segment corpus/rec1/seg1
  jax-sprint doctor --config sprint.config -- '--*.corpus.file=other.xml'

Exit status: 0 if all is well, 1 if something failed, 2 for wrong arguments.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `jax-sprint doctor`.

    Args:
        arguments: after the subcommand's name; None takes those of the process.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    parser = _parser()
    given = parser.parse_args(words[:split])
    try:
        options = _options(given, words[split + 1 :])
    except ValueError as error:
        parser.error(str(error))
    failures = notes = 0
    for finding in examine(
        options, segment=given.segment, frames=given.frames, labels=given.labels
    ):
        print(_format(finding), flush=True)
        failures += finding.status == "FAIL"
        notes += finding.status == "note"
    print()
    if failures:
        print(f"{failures} {'step' if failures == 1 else 'steps'} failed.")
        return 1
    print("All is well." if not notes else "It works; see the notes.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jax-sprint doctor",
        description="Starts Sprint, shakes hands, exports one automaton, asks for one loss, and "
        "says for each failure the likely reason and the remedy.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--exec-path",
        metavar="COMMAND",
        help="Sprint's executable, or a wrapper followed by it, quoted; the embedded Sprint if "
        "left out",
    )
    add(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="configuration file, or (--config=--NAME=VALUE) any argument; further arguments may "
        "follow a lone --",
    )
    add("--cwd", metavar="DIR", help="Sprint's working directory")
    add("--segment", metavar="NAME", help="full segment name; the corpus's first if left out")
    add("--frames", type=_positive, metavar="T", help="frames of the posteriors to send")
    add("--labels", type=_positive, metavar="L", help="labels of the posteriors to send")
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for the start, and for each request (default: 60)",
    )
    add("--exit-timeout", type=float, default=10.0, metavar="SECONDS", help="(default: 10)")
    add("--protocol", type=int, default=2, choices=(1, 2), help="newest version to offer")
    add("--log-dir", metavar="DIR", help="keep Sprint's whole output there")
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable for Sprint",
    )
    return parser


def _options(given: argparse.Namespace, rest: list[str]) -> SprintOptions:
    exec_path = None if given.exec_path is None else shlex.split(given.exec_path)
    if exec_path == []:
        raise ValueError("--exec-path is empty; leave it out for the embedded Sprint")
    pairs = [pair.partition("=") for pair in given.env]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise ValueError(f"--env takes NAME=VALUE, got {name!r}")
    return SprintOptions(
        exec_path=exec_path,
        config=[
            word if word.startswith(("-", "$")) else f"--config={word}"
            for word in [*given.config, *rest]
        ],
        cwd=given.cwd,
        env={name: value for name, _, value in pairs},
        log_dir=given.log_dir,
        start_timeout=given.timeout,
        request_timeout=given.timeout,
        exit_timeout=given.exit_timeout,
        protocol_version=given.protocol,
        automata_cache_bytes=0,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _format(finding: Finding) -> str:
    head = f"[{finding.status:^4}] {finding.step:<9} "
    margin = " " * len(head)
    lines = finding.text.split("\n")
    text = "\n".join([head + lines[0], *(margin + line for line in lines[1:])])
    if finding.advice is not None:
        for title, advice in (
            ("likely: ", finding.advice.reason),
            ("remedy: ", finding.advice.remedy),
        ):
            text += "\n" + textwrap.fill(
                advice,
                100,
                initial_indent=margin + title,
                subsequent_indent=margin + " " * len(title),
                break_on_hyphens=False,
                break_long_words=False,
            )
    return text
