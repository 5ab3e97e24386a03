"""Large copies, shared among threads: numpy lets the others run while it copies."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Copier", "spare_cores"]

# Helpers beyond this add little: memory is the limit.
_MOST_HELPERS = 3


def spare_cores(num_instances: int) -> int:
    """How many threads may help that many Sprints' threads, on this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(0, min(_MOST_HELPERS, cores - num_instances))


class Copier:
    """Threads that help with work that comes in pieces; they start when they are first needed.

    Args:
        helpers: how many.
    """

    def __init__(self, helpers: int) -> None:
        self._helpers = helpers
        self._threads: list[threading.Thread] = []
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False

    def run(self, work: Callable[[Any], bool], pieces: Iterator[Any]) -> bool:
        """Does `work` for each piece, in any order; ends early where it returns False.

        Returns:
            Whether it was True for all.  Nobody works on a piece any more by then.

        Raises:
            Exception: what `work` raised.
        """
        task = _Task(work, pieces)
        for _ in range(self._ready()):
            self._tasks.put(task)
        task.help()
        return task.finish()

    def close(self) -> None:
        """Ends the threads; `run` still works then, without them."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
        for _ in threads:
            self._tasks.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _ready(self) -> int:
        if len(self._threads) < self._helpers:
            with self._lock:
                while len(self._threads) < self._helpers and not self._closed:
                    name = f"jax_sprint copier {len(self._threads)}"
                    thread = threading.Thread(
                        target=_serve, args=(self._tasks,), name=name, daemon=True
                    )
                    thread.start()
                    self._threads.append(thread)
        return len(self._threads)


class _Task:
    """Pieces of work, and who is busy with them."""

    def __init__(self, work: Callable[[Any], bool], pieces: Iterator[Any]) -> None:
        self._work = work
        self._pieces = pieces
        self._changed = threading.Condition()
        self._busy = 0
        self._good = True
        self._error: BaseException | None = None

    def help(self) -> None:
        """Works until there is no piece left to begin with."""
        while True:
            with self._changed:
                piece = next(self._pieces, None)
                if piece is None:
                    return
                self._busy += 1
            good, error = False, None
            try:
                good = self._work(piece)
            except BaseException as failure:
                error = failure
            del piece
            with self._changed:
                self._busy -= 1
                if not good:
                    self._good, self._error, self._pieces = False, error, iter(())
                if not self._busy:
                    self._changed.notify_all()

    def finish(self) -> bool:
        """Waits for the others; to be called after `help`."""
        with self._changed:
            # Some helper may look at this task only much later.
            self._pieces = iter(())
            while self._busy:
                self._changed.wait()
        if self._error is not None:
            raise self._error
        return self._good


def _serve(tasks: queue.SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        task.help()
        # Not kept while waiting: it holds somebody's arrays.
        del task
