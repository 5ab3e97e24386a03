"""The command `jax-sprint`.

Each subcommand is a package with a `main`, and parses its own arguments; this module only finds it,
so that `jax-sprint --help` answers without importing jax, flax or matplotlib.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

__all__ = ["main"]

_COMMANDS = {
    "doctor": "start Sprint, ask it for an automaton and a loss, and explain what fails",
    "demo": "train a small acoustic model with Sprint's supervision, by both routes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jax-sprint COMMAND ...`.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        The exit status: 0 when all went well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, _COMMANDS))
    parser = argparse.ArgumentParser(
        prog="jax-sprint",
        description="Sprint's (RASR's) supervision for acoustic models in JAX.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in _COMMANDS.items())
        + "\n\n`jax-sprint COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("command", choices=sorted(_COMMANDS), metavar="COMMAND")
    # Only what stands before the command is ours: its own options belong to it.
    split = next((i + 1 for i, a in enumerate(arguments) if not a.startswith("-")), len(arguments))
    command = parser.parse_args(arguments[:split]).command
    return importlib.import_module(f"jax_sprint.{command}").main(arguments[split:])


def _version() -> str:
    try:
        return importlib.metadata.version("jax_sprint")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


if __name__ == "__main__":
    sys.exit(main())
