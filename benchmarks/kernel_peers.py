"""The peers' side in the benchmark's own process: children that answer one line per call."""

from __future__ import annotations

import json
import re
import selectors
import subprocess
import tempfile
from pathlib import Path

import kernel_workloads
import numpy as np

__all__ = ["Peer", "PeerFailed"]

_HERE = Path(__file__).resolve().parent


class PeerFailed(RuntimeError):
    """The peer is not there, died or did not answer; the text says which."""


class Peer:
    """A peer in an interpreter of its own.

    Attributes:
        versions: names and versions of what it runs.
        loss, gradient: sum of the losses, and Euclidean norm of the gradient.
    """

    def __init__(
        self,
        script: str,
        python: str,
        work: kernel_workloads.Workload,
        gibibytes: float,
        deadline: float,
        *more: str,
    ) -> None:
        """Starts `script` and waits for its first line, `deadline` seconds at most, as later.

        Raises:
            PeerFailed: as the class says.
        """
        self._deadline = deadline
        self._file = tempfile.NamedTemporaryFile(suffix=".npz")  # noqa: SIM115
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        arrays = {
            "logits": work.logits,
            "lengths": work.lengths,
            "edges": work.edges,
            "weights": work.weights,
            "ends": work.start_end_states,
        }
        if work.labels is not None:
            arrays["labels"] = work.labels
        np.savez(self._file, **arrays)
        self._file.flush()
        try:
            self._child = subprocess.Popen(
                [python, str(_HERE / script), self._file.name, str(gibibytes), *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            raise PeerFailed(f"the interpreter does not start: {error.strerror}") from error
        try:
            answer = self._answer()
        except PeerFailed:
            self.close()
            raise
        self.versions: dict[str, str] = answer["version"]
        self.loss: float = answer["loss"]
        self.gradient: float = answer["gradient"]

    def __call__(self) -> float:
        """Milliseconds of one call."""
        try:
            self._child.stdin.write("\n")
            self._child.stdin.flush()
        except OSError as error:
            raise PeerFailed(self._why()) from error
        return self._answer()[0]

    def _answer(self) -> dict | list:
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not selector.select(self._deadline):
                raise PeerFailed(f"no answer within {self._deadline:.0f} s")
        line = self._child.stdout.readline()
        if not line:
            raise PeerFailed(self._why())
        return json.loads(line)

    def _why(self) -> str:
        code = self._child.wait(timeout=30)
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        telling = [s for s in lines if "Error" in s or "bad_alloc" in s or "emory" in s] or lines
        text = re.sub(r"/\S*/", "", telling[-1])[:160] if telling else "no message"
        return f"ended with status {code}: {text}"

    def close(self) -> None:
        """Ends the child and removes its inputs."""
        self._child.kill()
        self._child.communicate()
        self._file.close()
        self._errors.close()
