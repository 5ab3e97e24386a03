"""Command line of the embedded Sprint: `jax-sprint-embedded`, `python -m jax_sprint.embedded`."""

from __future__ import annotations

import sys

__all__ = ["main"]

_USAGE = """\
usage: jax-sprint-embedded --config=FILE [--*.path.to.parameter=value ...]

The embedded Sprint of jax_sprint: a stand-in for RASR's nn-trainer as a host of Python control
modules.  It reads RASR's configuration language, Bliss corpora and Bliss lexica, builds allophone
state automata, computes the full-sum criterion, and offers all that to the control module that
  --*.pymod-path=DIR --*.pymod-name=MODULE --*.pymod-config=STRING
name.  It is started by jax_sprint (SprintOptions(exec_path=None)) or by RETURNN; there is little
use in starting it by hand.

Parameters of its own, beyond RASR's:
  --*.training-criterion=full-sum|cross-entropy|none    what calculate_criterion computes
  --*.criterion.am-scale=1 --*.criterion.tdp-scale=1    scales of the full sum
  --*.criterion.prior-scale=0 --*.criterion.prior-file=FILE
  --*.load-at-start=auto|yes|no                         read corpus and lexicon at once
  --*.report-unused=yes                                 list options that nothing asked for

Exit status: 0 when the control module is done, 1 for every error (one line on standard error).
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the embedded Sprint.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        Exit status.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument in ("--help", "-h") for argument in arguments):
        print(_USAGE, end="")
        return 0

    from jax_sprint.embedded.config import Configuration
    from jax_sprint.embedded.errors import EmbeddedError
    from jax_sprint.embedded.host import Host, check_arguments

    config = None
    try:
        check_arguments(arguments)
        config = Configuration.from_argv(arguments)
        host = Host(config)
        host.run()
        if config.get_bool("report-unused", False):
            for line in host.report_unused():
                print(line, file=sys.stderr)
        return 0
    except EmbeddedError as error:
        print(f"jax-sprint-embedded: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        for message in config.messages if config is not None else ():
            print(f"jax-sprint-embedded: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
