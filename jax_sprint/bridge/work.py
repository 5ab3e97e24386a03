"""The queue between those who ask a pool and the threads that talk to Sprint."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence

from jax_sprint.bridge.instance import SprintSubprocessInstance

__all__ = ["Batch", "Job", "WorkQueue"]


class Job:
    """One request about one segment.

    Args:
        batch: whom to tell about the outcome.
        index: position in the batch.
        segment: the segment's name.
        cost: what to do first: the larger the earlier.
        ask: does the whole request and stores its result.
    """

    __slots__ = ("ask", "batch", "cost", "created", "index", "segment")

    def __init__(
        self,
        batch: Batch,
        index: int,
        segment: str,
        cost: int,
        ask: Callable[[SprintSubprocessInstance], None],
    ) -> None:
        self.batch = batch
        self.index = index
        self.segment = segment
        self.cost = cost
        self.ask = ask
        self.created = time.monotonic()

    def done(self, error: BaseException | None = None) -> None:
        self.batch.settle(self, error)


class Batch:
    """Counts the outcomes of the jobs that were put in together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._open = 0
        # Set, under the queue's lock, when nobody waits for it any more.
        self.given_up = False
        self.errors: dict[int, BaseException] = {}

    def expect(self, count: int) -> None:
        self._open = count
        if not count:
            self._finished.set()

    def settle(self, job: Job, error: BaseException | None) -> None:
        with self._lock:
            if error is not None:
                self.errors[job.index] = error
            self._open -= 1
            if not self._open:
                self._finished.set()

    def wait(self, timeout: float) -> bool:
        """Whether all jobs are settled, at most `timeout` seconds from now."""
        return self._finished.wait(timeout)


class WorkQueue:
    """Jobs in the order of their cost, the largest first; for equal costs, first come first served.

    Long segments first, short ones to fill the gaps: so no Sprint is left with a long one at the
    end while the others have nothing to do.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._idle = 0
        # The threads that have a Sprint that works, as far as they know.
        self.serving: set[int] = set()

    def put(self, jobs: Sequence[Job]) -> bool:
        """Adds jobs; False (and nothing was added) if the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            for job in jobs:
                heapq.heappush(self._heap, (-job.cost, next(self._numbers), job))
            self._changed.notify(len(jobs))
            return True

    def put_back(self, job: Job) -> bool:
        """Returns a job that was not done; False if nobody would do it or wants it any more."""
        with self._changed:
            if self._closed or job.batch.given_up or not self.serving:
                return False
            heapq.heappush(self._heap, (-job.cost, next(self._numbers), job))
            self._changed.notify()
            return True

    def get(self) -> Job | None:
        """Waits for a job; None once the queue is closed."""
        with self._changed:
            self._idle += 1
            try:
                while not self._heap and not self._closed:
                    self._changed.wait()
                return heapq.heappop(self._heap)[2] if not self._closed else None
            finally:
                self._idle -= 1

    def missing(self) -> int:
        """How many jobs are waiting for which no thread is."""
        with self._changed:
            return max(0, len(self._heap) - self._idle)

    def withdraw(self, batch: Batch, give_up: bool = False) -> list[Job]:
        """Takes a batch's waiting jobs out again; to `give_up` means for good."""
        with self._changed:
            batch.given_up = batch.given_up or give_up
            gone = [entry[2] for entry in self._heap if entry[2].batch is batch]
            if gone:
                self._heap = [entry for entry in self._heap if entry[2].batch is not batch]
                heapq.heapify(self._heap)
            return gone

    def close(self) -> list[Job]:
        """Sends all threads home; returns the jobs that nobody will do."""
        with self._changed:
            self._closed = True
            gone = [entry[2] for entry in self._heap]
            self._heap.clear()
            self._changed.notify_all()
            return gone
