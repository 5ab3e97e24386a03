"""Swallows what a child prints, however much, and keeps the end of it for error messages."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Mapping
from typing import BinaryIO

__all__ = ["OutputDrain"]

logger = logging.getLogger("jax_sprint")

_CHUNK = 1 << 16
_TAIL_BYTES = 1 << 14


class OutputDrain(threading.Thread):
    """Reads a child's standard output and error until both end.

    A child that nobody reads from would block in the middle of a word once the pipe is full.

    Args:
        streams: readable descriptor by stream name.
        files: binary file by stream name for everything that comes.
        wake: both ends of a pipe, for `stop`.
        name: thread name.

    Everything is owned by the thread, and closed, from its start on.
    """

    def __init__(
        self,
        streams: Mapping[str, int],
        files: Mapping[str, BinaryIO],
        wake: tuple[int, int],
        name: str,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._streams = dict(streams)
        self._files = dict(files)
        self._tails = dict.fromkeys(streams, b"")
        self._counts = dict.fromkeys(streams, 0)
        self._wake_read, self._wake_write = wake
        self._stop_lock = threading.Lock()
        self._stopped = False

    def tail(self, stream: str, lines: int = 20) -> str:
        """The last lines of a stream, "" if there were none."""
        text = self._tails.get(stream, b"").decode("utf-8", "replace")
        return "\n".join(line[:500] for line in text.splitlines()[-lines:])

    def count(self, stream: str) -> int:
        """How many bytes a stream has brought so far."""
        return self._counts.get(stream, 0)

    def stop(self, patience: float) -> None:
        """Waits for the streams to end, at most `patience` seconds, and ends the thread then.

        A grandchild that left the process group may hold a stream open for ever.
        """
        self.join(patience)
        with self._stop_lock:
            if not self._stopped:
                os.write(self._wake_write, b"x")
        self.join(5.0)

    def run(self) -> None:
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        by_fd = {fd: stream for stream, fd in self._streams.items()}
        for fd in by_fd:
            os.set_blocking(fd, False)
            poller.register(fd, select.POLLIN)
        try:
            while by_fd:
                ready = [fd for fd, _ in poller.poll()]
                if self._wake_read in ready:
                    break
                for fd in ready:
                    if not self._take(fd, by_fd[fd]):
                        poller.unregister(fd)
                        del by_fd[fd]
        finally:
            with self._stop_lock:
                self._stopped = True
                os.close(self._wake_read)
                os.close(self._wake_write)
            for fd in self._streams.values():
                os.close(fd)
            for file in self._files.values():
                with contextlib.suppress(OSError):
                    file.close()

    def _take(self, fd: int, stream: str) -> bool:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._counts[stream] += len(data)
        if len(data) >= _TAIL_BYTES:
            self._tails[stream] = data[-_TAIL_BYTES:]
        else:
            self._tails[stream] = (self._tails[stream] + data)[-_TAIL_BYTES:]
        file = self._files.get(stream)
        if file is not None:
            try:
                file.write(data)
                file.flush()
            except OSError as error:
                # A full disk must not stop the training; the child must still be read from.
                logger.warning("cannot write Sprint's output to %s any more: %s", file.name, error)
                with contextlib.suppress(OSError):
                    file.close()
                del self._files[stream]
        return True
