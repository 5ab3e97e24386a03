"""The queue between those who ask a pool and the threads that talk to Sprint."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jax_sprint.bridge.jobs import Batch, Job

__all__ = ["SHORT", "WORTH_TWO", "Batch", "Job", "WorkQueue"]

# Of such short requests, in seconds, one thread is enough for a batch that takes it no longer.
SHORT, WORTH_TWO = 150e-6, 4e-3
# And if it has to wait no longer than that: while it has not, others could not help it.
_WORTH_WAITING = 2e-3


class WorkQueue:
    """Jobs in the order of their cost, the largest first; for equal costs, first come first served.

    Long segments first, short ones to fill the gaps: so no Sprint is left with a long one at the
    end while the others have nothing to do.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Job]] = []
        # The sum of their costs, each plus one, as even nothing takes some time.
        self._backlog = 0
        # Jobs for one certain thread, by its number.
        self._own: dict[int, list[Job]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # A closed gate for each thread that waits; that of the last to come is opened first, as
        # its Sprint's memory is likely to be in the processor's cache.
        self._gates: list[threading.Lock] = []
        self._closed = False
        self._idle = 0
        # Held by a thread while it handles short requests: several at the same time would spend
        # more on handing the interpreter's lock to and fro.  Nobody waits for a Sprint with it.
        self.turn = threading.Lock()
        # Seconds for which threads waited for a Sprint lately per cost, each plus one.
        self.pace = math.inf
        # Seconds that they took, likewise; and those of one kind of requests.
        self.usual = math.inf
        self.usual_of: dict[str, float] = {}
        # About how many segments one request may be, by the Sprint that started last.
        self.most_segments = 1
        # The threads that have a Sprint that works, as far as they know.
        self.serving: set[int] = set()

    def put(self, jobs: Sequence[Job]) -> bool:
        """Adds jobs; False (and nothing was added) if the queue is closed."""
        with self._lock:
            if self._closed:
                return False
            for job in jobs:
                self._push(job)
            # Two threads with very short requests are slower than one: they fight for the
            # interpreter.  Should it take longer than thought, the one calls the others.
            seconds = self._backlog * self.pace
            many = seconds > min(_WORTH_WAITING, SHORT * len(self._heap))
            self._wake(len(jobs) if many else 1)
            return True

    def answered(
        self,
        cost: float,
        waited: float,
        count: int = 1,
        took: float | None = None,
        kind: str = "",
    ) -> None:
        """A Sprint answered so many requests, each of that cost on average.

        Args:
            cost: of a request.
            waited: seconds for which its thread had nothing to do meanwhile.
            count: how many they were.
            took: seconds since the Sprint could begin with the first of them; None: as `waited`.
            kind: what kind of request they were.
        """
        took = waited if took is None else took
        cost = count * (cost + 1)
        self.pace = _follow(self.pace, waited / cost, count / 32)
        self.usual = _follow(self.usual, took / cost, count / 8)
        before = self.usual_of.get(kind, math.inf)
        self.usual_of[kind] = _follow(before, took / cost, count / 8)

    def call(self) -> None:
        """Wakes all threads that wait: somebody who has work cannot go on with it at once."""
        with self._lock:
            if self._heap:
                self._wake(len(self._gates))

    def put_for_each(self, jobs: Sequence[Job]) -> bool:
        """Adds one job for each of the threads 0, 1, ...; False if the queue is closed."""
        with self._lock:
            if self._closed:
                return False
            for number, job in enumerate(jobs):
                job.movable = False
                self._own.setdefault(number, []).append(job)
            self._wake(len(self._gates))
            return True

    def put_back(self, job: Job, served: bool = True) -> bool:
        """Returns a job that was not done; False if nobody wants it any more.

        With `served`, also False if no other thread has a Sprint that could do it.
        """
        with self._lock:
            if self._closed or job.batch.given_up or not job.movable:
                return False
            if served and not self.serving:
                return False
            self._push(job)
            self._wake(1)
            return True

    def get(self, number: int = -1) -> Job | None:
        """Waits for a job for the thread of that number; None once the queue is closed."""
        with self._lock:
            self._idle += 1
            try:
                while not self._heap and not self._own.get(number) and not self._closed:
                    self._wait()
                if self._own.get(number):
                    return self._own[number].pop()
                return self._pop() if not self._closed else None
            finally:
                self._idle -= 1

    def take(self, fits: Callable[..., bool], *more: Any) -> Job | None:
        """The next job, if there is one that `fits(job, backlog, usual, *more)`; does not wait.

        The backlog is the cost of all that are waiting behind it, each plus one; `usual` is how
        long a Sprint took lately per cost, in seconds.
        """
        with self._lock:
            if not self._heap or self._closed:
                return None
            job = self._heap[0][2]
            backlog = self._backlog - job.cost - 1
            return self._pop() if fits(job, backlog, self.usual, *more) else None

    def _wait(self) -> None:
        """Lets go of the lock until somebody opens our gate; there may be nothing to do then."""
        gate = threading.Lock()
        gate.acquire()
        self._gates.append(gate)
        self._lock.release()
        try:
            gate.acquire()
        finally:
            self._lock.acquire()

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._gates))):
            self._gates.pop().release()

    def _push(self, job: Job) -> None:
        self._backlog += job.cost + 1
        heapq.heappush(self._heap, (-job.cost, next(self._numbers), job))

    def _pop(self) -> Job:
        job = heapq.heappop(self._heap)[2]
        self._backlog -= job.cost + 1
        return job

    def missing(self) -> int:
        """How many jobs are waiting for which no thread is."""
        with self._lock:
            return max(0, len(self._heap) - self._idle)

    def withdraw(self, batch: Batch, give_up: bool = False) -> list[Job]:
        """Takes a batch's waiting jobs out again; to `give_up` means for good."""
        with self._lock:
            batch.given_up = batch.given_up or give_up
            gone = [entry[2] for entry in self._heap if entry[2].batch is batch]
            for number, jobs in self._own.items():
                gone += [job for job in jobs if job.batch is batch]
                self._own[number] = [job for job in jobs if job.batch is not batch]
            if gone:
                self._heap = [entry for entry in self._heap if entry[2].batch is not batch]
                heapq.heapify(self._heap)
                self._backlog = sum(entry[2].cost + 1 for entry in self._heap)
            return gone

    def close(self) -> list[Job]:
        """Sends all threads home; returns the jobs that nobody will do."""
        with self._lock:
            self._closed = True
            gone = [*(entry[2] for entry in self._heap), *itertools.chain(*self._own.values())]
            self._heap.clear()
            self._backlog = 0
            self._own.clear()
            self._wake(len(self._gates))
            return gone


def _follow(mean: float, value: float, weight: float) -> float:
    return value if mean == math.inf else mean + (value - mean) * min(1.0, weight)
