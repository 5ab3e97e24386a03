"""A progress bar where somebody is watching: on a terminal, or in a notebook."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

__all__ = ["ProgressBar"]

# What is over sooner needs no bar, and a line need not change faster than the eye; seconds.
_DELAY = 0.5
_INTERVAL = 0.1
_WIDTH = 24


class ProgressBar:
    """One line on standard error that says how much of some long work is done.

    A context manager; `update` may be called as often as one likes.  It shows nothing before half a
    second has passed, and nothing at all into files and pipes.

    Args:
        total: how much there is to do.
        label: what is being done.
        show: True or False to decide; None looks whether somebody is watching.
        stream: where to write; None for the standard error of the moment.
    """

    def __init__(
        self, total: int, label: str, show: bool | None = None, stream: TextIO | None = None
    ) -> None:
        self._total = total
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._shown = _is_watched(self._stream) if show is None else show
        self._begin = time.monotonic()
        self._next = self._begin + _DELAY
        self._length = 0
        self._done = 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._length:
            self._draw()
            self._write("\n")

    def update(self, done: int) -> None:
        """Says how much is done by now."""
        self._done = done
        if self._shown and time.monotonic() >= self._next:
            self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        self._next = now + _INTERVAL
        filled = _WIDTH * self._done // max(1, self._total)
        line = (
            f"{self._label} [{'#' * filled:<{_WIDTH}}] {self._done}/{self._total}, "
            f"{now - self._begin:.1f} s"
        )
        # Blanks over what a longer line has left behind.
        self._write("\r" + line.ljust(self._length))
        self._length = len(line)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The terminal is gone: no reason for the work to fail.
            self._shown = False


def _is_watched(stream: Any) -> bool:
    """Whether a person sees what is written there."""
    try:
        if stream.isatty():
            return True
    except (AttributeError, ValueError):
        return False
    # IPython is not imported by asking: in a notebook it is there already.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel") and stream is sys.stderr
