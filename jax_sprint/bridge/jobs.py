"""What is asked of a pool: single requests, and the batches that they belong to."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from jax_sprint.bridge.requests import Request, StartRequest
from jax_sprint.errors import SprintClosedError, SprintError, SprintStartError

__all__ = ["Batch", "Job"]

_NOTHING = StartRequest()


class Job:
    """One request about one segment.

    Args:
        batch: whom to tell about the outcome.
        index: position in the batch.
        segment: the segment's name.
        cost: what to do first: the larger the earlier.
        request: what a Sprint is asked, and where the result goes.
        segments: how many segments it is about, the one that is named the first of them.  If there
            are several, a failure is nobody's: it is not asked again here, and not counted.

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
        "segments",
        "settled",
    )

    def __init__(
        self,
        batch: Batch,
        index: int,
        segment: str,
        cost: int,
        request: Request,
        segments: int = 1,
    ) -> None:
        self.batch = batch
        self.index = index
        self.segment = segment
        self.cost = cost
        self.request = request
        self.segments = segments
        self.data_bytes = request.data_bytes
        self.attempts = 0
        self.created = time.monotonic()
        # Whether any thread may do it.
        self.movable = True
        # Both under the batch's lock.
        self.being_asked = False
        self.settled = False

    @property
    def failures(self) -> int:
        """How many segments have failed if it fails, as far as is known then."""
        return int(self.segments == 1)

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
        # How many segments it is about.
        self.size = 0
        # Set, under the queue's lock, when nobody waits for it any more.
        self.given_up = False
        # Set when there was no Sprint that could be started.
        self.unserved = False
        self.errors: dict[int, BaseException] = {}
        # Those of them that no Sprint was asked about: others kept all of them busy.
        self.unasked: set[int] = set()

    def expect(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._open = len(jobs)
        self.size = self.size or len(jobs)
        if not jobs:
            self._finished.set()

    def verdict(self) -> BaseException:
        """The error to raise for all of them, which tells of the others.

        The first one's that a Sprint was asked about: it tells why there was none for the others.
        """
        error = self.errors[min(self.errors, key=lambda index: (index in self.unasked, index))]
        others = len(self.errors) - 1
        if isinstance(error, SprintError) and others:
            error = error.extended(f"({others} more of the {self.size} requests failed)")
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

    def settle_all(self, jobs: Iterable[Job]) -> None:
        """Those of these jobs that belong here have been done."""
        with self._lock:
            for job in jobs:
                if job.batch is self:
                    self._settle(job, None)

    def cancel(self, reason: Callable[[Job], BaseException]) -> int:
        """Settles all jobs that no Sprint is being asked about; says how many failures that is.

        The others may be reading the caller's arrays at this moment.
        """
        with self._lock:
            waiting = [job for job in self._jobs if not (job.settled or job.being_asked)]
            self.unasked.update(job.index for job in waiting)
            for job in waiting:
                self._settle(job, reason(job))
        return sum([job.failures for job in waiting])

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
