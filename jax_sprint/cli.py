"""The command `jax-sprint`.

Each subcommand parses its own arguments; this module only finds it, so that `jax-sprint --help`
answers without importing jax, flax or matplotlib.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

__all__ = ["main"]

_COMMANDS = {
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
    parser.add_argument(
        "--version", action="version", version=importlib.metadata.version(__package__)
    )
    parser.add_argument("command", choices=sorted(_COMMANDS), metavar="COMMAND")
    # Only what stands before the command is ours: its own options belong to it.
    split = next((i + 1 for i, a in enumerate(arguments) if not a.startswith("-")), len(arguments))
    parser.parse_args(arguments[:split])

    from jax_sprint.demo import main as demo

    return demo(arguments[split:])


if __name__ == "__main__":
    sys.exit(main())
