"""What lives while a pool is open: its queue and its threads."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from jax_sprint.bridge.copier import Copier, spare_cores
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
        self._copier = Copier(spare_cores(options.num_instances))
        self._readers: list[ReaderThread] = []
        self._lock = threading.Lock()
        self._closed = False

    def run(
        self,
        batch: Batch,
        jobs: list[Job],
        *,
        cancelled: threading.Event | None = None,
        limit: str = "",
        one_each: bool = False,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """Has jobs done, and waits until they are, or the batch's deadline passes.

        Args:
            batch: what the jobs belong to; it holds the errors afterwards.
            jobs: what is to be done.
            cancelled: to be set from another thread, which ends this call soon.
            limit: where the deadline comes from, for the message.
            one_each: there are as many jobs as Sprints, and each gets one.
            watch: is told now and then how many jobs are settled.

        Raises:
            SprintClosedError: the pool is closed, or the call was cancelled.
        """
        batch.expect(jobs)
        patience = 1.0 if cancelled is None and watch is None else 0.1
        try:
            if not self._submit(jobs, one_each):
                raise SprintClosedError("the pool was closed; init() opens it again")
            while not batch.wait(min(patience, max(0.01, batch.deadline - time.monotonic()))):
                self.check()
                if watch is not None:
                    watch(len(jobs) - batch.open)
                if time.monotonic() >= batch.deadline and not batch.given_up:
                    self._expire(batch, limit)
                if cancelled is not None and cancelled.is_set():
                    raise SprintClosedError("the call was cancelled")
        except BaseException:
            # Nobody may read the caller's arrays after we return: under jax they may be gone.
            self._abandon(batch)
            raise
        if watch is not None:
            watch(len(jobs))

    @property
    def num_instances(self) -> int:
        """How many Sprints there are, or will be."""
        return self._options.num_instances

    @property
    def most_segments(self) -> int:
        """About how many segments one request may be, by what the Sprints permit."""
        return self._queue.most_segments

    def pace(self, questions: Sequence[Any]) -> float:
        """Seconds that a Sprint took lately for requests like these, per cost, each plus one.

        inf if that is not known.
        """
        kind = questions[0].request.kind if questions else ""
        return self._queue.usual_of.get(kind, math.inf)

    def count(self, **amounts: float) -> None:
        """Adds to the pool's statistics."""
        self._stats.add(**amounts)

    def _submit(self, jobs: list[Job], one_each: bool) -> bool:
        if not jobs:
            return not self._closed
        with self._lock:
            put = self._queue.put_for_each if one_each else self._queue.put
            if self._closed or not put(jobs):
                return False
            self._grow(len(jobs) if one_each else self._queue.missing())
        return True

    def _grow(self, count: int) -> None:
        for _ in range(min(count, self._options.num_instances - len(self._readers))):
            reader = ReaderThread(
                self._options,
                self._queue,
                self._stats,
                len(self._readers),
                self._inspect,
                self._copier,
            )
            reader.start()
            self._readers.append(reader)

    def check(self) -> None:
        """Raises if nobody is left who could finish a batch."""
        with self._lock:
            if not any(reader.is_alive() for reader in self._readers):
                raise SprintClosedError("the pool's threads have ended; init() opens it again")

    def _abandon(self, batch: Batch) -> None:
        """Makes sure that nothing of this batch runs any more."""
        self._queue.withdraw(batch, give_up=True)
        batch.cancel(lambda job: SprintClosedError("the batch was given up", segment=job.segment))
        if not batch.wait(_ABANDON_PATIENCE):
            for reader in list(self._readers):
                reader.interrupt(batch)
            batch.wait(self._options.exit_timeout)

    def _expire(self, batch: Batch, limit: str) -> None:
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
        self._copier.close()
