"""The queue between those who ask a pool and the threads that talk to Sprint."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence

from jax_sprint.bridge.requests import Request, StartRequest
from jax_sprint.errors import SprintClosedError, SprintError, SprintStartError

__all__ = ["SHORT", "WORTH_TWO", "Batch", "Job", "WorkQueue"]

_NOTHING = StartRequest()
# Of such short requests, in seconds, one thread is enough for a batch that takes it no longer.
SHORT, WORTH_TWO = 150e-6, 4e-3


class Job:
    """One request about one segment.

    Args:
        batch: whom to tell about the outcome.
        index: position in the batch.
        segment: the segment's name.
        cost: what to do first: the larger the earlier.
        request: what a Sprint is asked, and where the result goes.

    Attributes:
        attempts: how often it has failed.
    """

    __slots__ = (
        "attempts",
        "batch",
        "being_asked",
        "cost",
        "created",
        "data_bytes",
        "index",
        "movable",
        "request",
        "segment",
        "settled",
    )

    def __init__(
        self,
        batch: Batch,
        index: int,
        segment: str,
        cost: int,
        request: Request,
    ) -> None:
        self.batch = batch
        self.index = index
        self.segment = segment
        self.cost = cost
        self.request = request
        self.data_bytes = request.data_bytes
        self.attempts = 0
        self.created = time.monotonic()
        # Whether any thread may do it.
        self.movable = True
        # Both under the batch's lock.
        self.being_asked = False
        self.settled = False

    def begin(self) -> bool:
        """To be called before it is sent; False if nobody wants the answer any more."""
        return self.batch.begin(self)

    def rest(self) -> None:
        """To be called when it was not answered and will be sent again."""
        self.being_asked = False

    def done(self, error: BaseException | None = None) -> None:
        """Tells the outcome; the first one counts."""
        self.batch.settle(self, error)


class Batch:
    """Counts the outcomes of the jobs that were put in together.

    Args:
        deadline: of the monotonic clock, until when the outcomes are of use.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._open = 0
        self._jobs: Sequence[Job] = ()
        # Set, under the queue's lock, when nobody waits for it any more.
        self.given_up = False
        # Set when there was no Sprint that could be started.
        self.unserved = False
        self.errors: dict[int, BaseException] = {}

    def expect(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._open = len(jobs)
        if not jobs:
            self._finished.set()

    def verdict(self) -> BaseException:
        """The error to raise for all of them: the first one's, which tells of the others."""
        error = self.errors[min(self.errors)]
        others = len(self.errors) - 1
        if isinstance(error, SprintError) and others:
            error = error.extended(f"({others} more of the {len(self._jobs)} requests failed)")
        return error

    def can_mask(self) -> bool:
        """Whether what failed is a matter of single segments.

        A closed pool, a Sprint that cannot be started and a mistake in the program are not.
        """
        return not self.unserved and all(
            isinstance(error, SprintError)
            and not isinstance(error, SprintClosedError | SprintStartError)
            for error in self.errors.values()
        )

    def begin(self, job: Job) -> bool:
        with self._lock:
            job.being_asked = not job.settled
            return job.being_asked

    def settle(self, job: Job, error: BaseException | None) -> None:
        with self._lock:
            self._settle(job, error)

    def cancel(self, reason: Callable[[Job], BaseException]) -> int:
        """Settles all jobs that no Sprint is being asked about; says how many.

        The others may be reading the caller's arrays at this moment.
        """
        with self._lock:
            waiting = [job for job in self._jobs if not (job.settled or job.being_asked)]
            for job in waiting:
                self._settle(job, reason(job))
        return len(waiting)

    def _settle(self, job: Job, error: BaseException | None) -> None:
        if job.settled:
            return
        job.settled = True
        # It holds the caller's arrays, and we are held by those who still know us.
        job.request = _NOTHING
        if error is not None:
            self.errors[job.index] = error
        self._open -= 1
        if not self._open:
            self._finished.set()

    @property
    def open(self) -> int:
        """How many jobs are not settled yet."""
        return self._open

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
        # The sum of their costs, each plus one, as even nothing takes some time.
        self._backlog = 0
        # Jobs for one certain thread, by its number.
        self._own: dict[int, list[Job]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._idle = 0
        # Held by a thread while it handles short requests: several at the same time would spend
        # more on handing the interpreter's lock to and fro.  Nobody waits for a Sprint with it.
        self.turn = threading.Lock()
        # Seconds that a Sprint took lately per cost, each plus one, as the threads tell.
        self.pace = math.inf
        # The threads that have a Sprint that works, as far as they know.
        self.serving: set[int] = set()

    def put(self, jobs: Sequence[Job]) -> bool:
        """Adds jobs; False (and nothing was added) if the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            for job in jobs:
                self._push(job)
            # Two threads with very short requests are slower than one: they fight for the
            # interpreter.  Should it take longer than thought, the one calls the others.
            seconds = self._backlog * self.pace
            many = seconds > min(WORTH_TWO, SHORT * len(self._heap))
            self._changed.notify(len(jobs) if many else 1)
            return True

    def answered(self, cost: int, seconds: float) -> None:
        """A Sprint took that long for one of that cost."""
        pace = seconds / (cost + 1)
        self.pace = pace if self.pace == math.inf else self.pace + (pace - self.pace) / 32

    def call(self) -> None:
        """Wakes all threads that wait: somebody who has work cannot go on with it at once."""
        with self._lock:
            if self._heap:
                self._changed.notify_all()

    def put_for_each(self, jobs: Sequence[Job]) -> bool:
        """Adds one job for each of the threads 0, 1, ...; False if the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            for number, job in enumerate(jobs):
                job.movable = False
                self._own.setdefault(number, []).append(job)
            self._changed.notify_all()
            return True

    def put_back(self, job: Job, served: bool = True) -> bool:
        """Returns a job that was not done; False if nobody wants it any more.

        With `served`, also False if no other thread has a Sprint that could do it.
        """
        with self._changed:
            if self._closed or job.batch.given_up or not job.movable:
                return False
            if served and not self.serving:
                return False
            self._push(job)
            self._changed.notify()
            return True

    def get(self, number: int = -1) -> Job | None:
        """Waits for a job for the thread of that number; None once the queue is closed."""
        with self._changed:
            self._idle += 1
            try:
                while not self._heap and not self._own.get(number) and not self._closed:
                    self._changed.wait()
                if self._own.get(number):
                    return self._own[number].pop()
                return self._pop() if not self._closed else None
            finally:
                self._idle -= 1

    def take(self, fits: Callable[[Job, int], bool]) -> Job | None:
        """The next job, if there is one that `fits(job, backlog)`; does not wait.

        The backlog is the cost of all that are waiting behind it, each plus one.
        """
        with self._lock:
            if not self._heap or self._closed:
                return None
            job = self._heap[0][2]
            return self._pop() if fits(job, self._backlog - job.cost - 1) else None

    def _push(self, job: Job) -> None:
        self._backlog += job.cost + 1
        heapq.heappush(self._heap, (-job.cost, next(self._numbers), job))

    def _pop(self) -> Job:
        job = heapq.heappop(self._heap)[2]
        self._backlog -= job.cost + 1
        return job

    def missing(self) -> int:
        """How many jobs are waiting for which no thread is."""
        with self._changed:
            return max(0, len(self._heap) - self._idle)

    def withdraw(self, batch: Batch, give_up: bool = False) -> list[Job]:
        """Takes a batch's waiting jobs out again; to `give_up` means for good."""
        with self._changed:
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
        with self._changed:
            self._closed = True
            gone = [*(entry[2] for entry in self._heap), *itertools.chain(*self._own.values())]
            self._heap.clear()
            self._backlog = 0
            self._own.clear()
            self._changed.notify_all()
            return gone
