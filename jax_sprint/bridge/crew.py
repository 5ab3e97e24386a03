"""What lives while a pool is open: its queue and its threads."""

from __future__ import annotations

import logging
import os
import threading
import time

from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.reader import Inspect, ReaderThread
from jax_sprint.bridge.stats import Statistics
from jax_sprint.bridge.work import Batch, Job, WorkQueue
from jax_sprint.errors import SprintClosedError, SprintTimeoutError

__all__ = ["Crew"]

logger = logging.getLogger("jax_sprint")

# How long to wait, after an interruption, for the requests that are under way.
_ABANDON_PATIENCE = 1.0


class Crew:
    """Knows nothing of the pool, so that the pool can be collected while its threads wait.

    Args:
        options: what to start and how many.
        stats: where to count.
        inspect: takes the fingerprint of a Sprint that is about to be started.
    """

    def __init__(
        self, options: SprintOptions, stats: Statistics, inspect: Inspect | None = None
    ) -> None:
        self.owner_pid = os.getpid()
        self._options = options
        self._stats = stats
        self._inspect = inspect
        self._queue = WorkQueue()
        self._readers: list[ReaderThread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, jobs: list[Job]) -> bool:
        if not jobs:
            return not self._closed
        with self._lock:
            if self._closed or not self._queue.put(jobs):
                return False
            for _ in range(self._queue.missing()):
                if len(self._readers) == self._options.num_instances:
                    break
                reader = ReaderThread(
                    self._options, self._queue, self._stats, len(self._readers), self._inspect
                )
                reader.start()
                self._readers.append(reader)
        return True

    def check(self) -> None:
        """Raises if nobody is left who could finish a batch."""
        with self._lock:
            if not any(reader.is_alive() for reader in self._readers):
                raise SprintClosedError("the pool's threads have ended; init() opens it again")

    def abandon(self, batch: Batch) -> None:
        """Makes sure that nothing of this batch runs any more."""
        self._queue.withdraw(batch, give_up=True)
        batch.cancel(lambda job: SprintClosedError("the batch was given up", segment=job.segment))
        if not batch.wait(_ABANDON_PATIENCE):
            for reader in list(self._readers):
                reader.interrupt(batch)
            batch.wait(self._options.exit_timeout)

    def expire(self, batch: Batch, limit: str) -> None:
        """Ends a batch whose deadline has passed; a request under way ends by itself, at once.

        A Sprint that is starting goes on, for the batches to come.
        """
        waiting = set(self._queue.withdraw(batch, give_up=True))

        def reason(job: Job) -> SprintTimeoutError:
            what = (
                "no Sprint was free for it"
                if job in waiting
                else "its Sprint was still starting (the pool's start() does so beforehand)"
            )
            return SprintTimeoutError(f"no answer within {limit}: {what}", segment=job.segment)

        self._stats.add(failures=batch.cancel(reason))

    def close(self) -> None:
        if os.getpid() != self.owner_pid:
            return
        with self._lock:
            self._closed = True
            readers = list(self._readers)
        for job in self._queue.close():
            job.done(SprintClosedError("the pool was closed", segment=job.segment))
        deadline = time.monotonic() + 2 * self._options.exit_timeout + 10.0
        for reader in readers:
            reader.close()
        for reader in readers:
            while reader.is_alive() and reader is not threading.current_thread():
                reader.join(0.5)
                # Again, in case it was just about to start its child.
                reader.interrupt()
                if time.monotonic() > deadline:
                    logger.warning("%s does not end", reader.name)
                    break
