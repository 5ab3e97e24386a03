"""Sees to it that no child outlives us, not even after ``kill -9``.

One small process watches a pipe whose other end is ours.  When we die, for whatever reason, the
pipe ends, and it kills the process groups of all children, with wrappers and grandchildren, stopped
ones included.  (A parent-death signal is no way: it fires when the *thread* that started the child
ends, and reaches no grandchildren.)  It runs only while there are children.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

__all__ = ["release", "watch"]

logger = logging.getLogger("jax_sprint")

_SCRIPT = Path(__file__).with_name("_guardian_main.py")


class _Guardian:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.groups: set[int] = set()

    def watch(self, group: int) -> None:
        with self.lock:
            self.groups.add(group)
            if self.process is None:
                self._start()
            self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        with self.lock:
            if group not in self.groups:
                return
            self.groups.discard(group)
            self._tell(f"-{group}\n")
            if not self.groups:
                self._stop()

    def _start(self) -> None:
        if not sys.executable:
            logger.warning("no Python executable known: children may survive a kill -9 of this one")
            return
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                bufsize=0,
            )
        except OSError as error:
            logger.warning("cannot start the guardian of Sprint's processes: %s", error)
            return
        for known in self.groups:
            self._tell(f"+{known}\n")

    def _tell(self, line: str) -> None:
        if self.process is None or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(line.encode())
        except OSError as error:
            # Somebody killed it.  The next child gets a new one, which is told about all of them.
            logger.warning("the guardian of Sprint's processes is gone: %s", error)
            self._stop()

    def _stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5.0)


_guardian = _Guardian()


def watch(group: int) -> None:
    """Has the process group killed when this process ends without having called `release`."""
    _guardian.watch(group)


def release(group: int) -> None:
    """Undoes `watch`; to be called before the group's leader is reaped, as its number is free
    for somebody else then."""
    _guardian.release(group)


def _after_fork_in_child() -> None:
    # The copy of the pipe would keep the guardian waiting after our parent's death.
    global _guardian
    process = _guardian.process
    if process is not None and process.stdin is not None:
        process.stdin.close()
        process.returncode = 0  # not ours to wait for
    _guardian = _Guardian()


os.register_at_fork(after_in_child=_after_fork_in_child)
