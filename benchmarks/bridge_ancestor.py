"""RETURNN's pool in an interpreter of its own, for benchmarks/bridge.py: one batch per line."""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import numpy as np

__all__ = ["Ancestor"]

# It wants one executable, so the child is started by a script of two lines.
DRIVER = """
import json, os, sys, time
import numpy as np
sys.path.insert(0, sys.argv[1])
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever it prints is in the way
from returnn.sprint.error_signals import SprintInstancePool
posteriors = np.load(sys.argv[3])
steps, count, _ = posteriors.shape
pool = SprintInstancePool(dict(
    sprintExecPath=sys.argv[2], sprintConfigStr="--none", sprintControlConfig={"quiet": True},
    usePythonSegmentOrder=False, numInstances=int(sys.argv[4])))
lengths = np.full(count, steps, dtype="int32")
tags = ["corpus/recording-%d/segment" % b for b in range(count)]
def once():
    start = time.perf_counter()
    loss, error_signal = pool.get_batch_loss_and_error_signal(posteriors, lengths, tags)
    seconds = time.perf_counter() - start
    assert (loss == 1.5).all() and error_signal[-1, -1, -1] == posteriors[-1, -1, -1]
    return seconds
once()
print(json.dumps(0.0), file=replies, flush=True)
repeats = int(sys.argv[5])
for line in sys.stdin:
    print(json.dumps(sum(once() for _ in range(repeats)) / repeats), file=replies, flush=True)
"""


class Ancestor:
    """A pool of RETURNN's with some children, on one batch.

    Args:
        given: with `returnn_path` and `returnn_python`.
        child: the script that plays Sprint.
        posteriors: [T, B, L] float32.
        children: how many.
        repeats: batches in a row per turn.
    """

    def __init__(
        self,
        given: argparse.Namespace,
        child: Path,
        posteriors: np.ndarray,
        children: int,
        repeats: int,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        executable = folder / "sprint"
        executable.write_text(f'#!/bin/sh\nexec "{given.returnn_python}" "{child}" "$@"\n')
        executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
        np.save(folder / "posteriors.npy", posteriors)
        self._log = (folder / "log").open("w+")
        self._driver = subprocess.Popen(
            [
                given.returnn_python,
                "-c",
                DRIVER,
                str(given.returnn_path),
                str(executable),
                str(folder / "posteriors.npy"),
                str(children),
                str(repeats),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        self._answer()

    def run(self) -> float:
        """Seconds of one batch, the mean of some in a row."""
        assert self._driver.stdin is not None
        self._driver.stdin.write("\n")
        self._driver.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        assert self._driver.stdout is not None
        line = self._driver.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"RETURNN's pool failed:\n{self._log.read()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        try:
            self._driver.wait(30)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        self._log.close()
        self._folder.cleanup()

    @staticmethod
    def versions(given: argparse.Namespace) -> str:
        code = (
            "import sys, platform, numpy; sys.path.insert(0, sys.argv[1]); import returnn; "
            "print(f'RETURNN in Python {platform.python_version()}, numpy {numpy.__version__}')"
        )
        return subprocess.run(
            [given.returnn_python, "-c", code, str(given.returnn_path)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
