"""What a thread of a pool has taken on, and what becomes of it."""

from __future__ import annotations

import logging
import threading
import time

from jax_sprint.bridge.ahead import Ahead
from jax_sprint.bridge.copier import Copier
from jax_sprint.bridge.instance import SprintSubprocessInstance
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.pool_instance import Inspect, PoolInstance
from jax_sprint.bridge.stats import Account, Statistics
from jax_sprint.bridge.work import Job, WorkQueue
from jax_sprint.errors import (
    SprintClosedError,
    SprintCrashError,
    SprintError,
    SprintProtocolError,
    SprintRequestError,
    SprintStartError,
    SprintTimeoutError,
)

__all__ = ["Worker"]

logger = logging.getLogger("jax_sprint")

# How long a thread whose Sprint does not start leaves the work to the others, in seconds.
_START_PAUSE = 5.0
# What may be over with another process; a refusal by Sprint itself is not among it.
_PASSING = (SprintCrashError, SprintProtocolError, SprintStartError, SprintTimeoutError)


class Worker(threading.Thread):
    """A thread with a Sprint of its own: jobs are answered, asked again, handed back, or fail.

    Args:
        options: what to start.
        queue: where the requests come from.
        stats: where to count.
        number: for the thread's name.
        inspect: takes the fingerprint of a Sprint that is about to be started.
        copier: helps with large copies.
    """

    def __init__(
        self,
        options: SprintOptions,
        queue: WorkQueue,
        stats: Statistics,
        number: int,
        inspect: Inspect | None = None,
        copier: Copier | None = None,
    ) -> None:
        super().__init__(name=f"jax_sprint reader {number}", daemon=True)
        self._options = options
        self._queue = queue
        self._stats = stats
        self._number = number
        self._inspect = inspect
        self._copier = copier
        self._instance: PoolInstance | None = None
        self._lock = threading.Lock()
        # What this thread has taken on; changed under the lock.
        self._ahead = Ahead(options.num_instances - 1)
        self._jobs = self._ahead.jobs
        # How many of them, from the first on, the Sprint has been sent.
        self._sent = 0
        self._closing = threading.Event()
        self._interrupted = False
        self._started_before = False
        self._account = Account()
        self._traffic = (0, 0)
        # Seconds of waiting for Sprint with nothing to be done here, since the last answer.
        self._waited = 0.0

    @property
    def instance(self) -> SprintSubprocessInstance | None:
        """The Sprint of this thread; None before the first request and after the end."""
        return self._instance

    def interrupt(self, batch: object = None) -> None:
        """Kills this thread's Sprint if it is busy (with that batch); from any thread."""
        with self._lock:
            instance = self._instance
            busy = any(batch is None or job.batch is batch for job in self._jobs)
            if busy and instance is not None:
                self._interrupted = True
                instance.kill()

    def close(self) -> None:
        """Announces the end: a failure from now on is no failure of Sprint."""
        self._closing.set()
        self.interrupt()

    def _answered(self, jobs: list[Job]) -> None:
        """Tells of the first ones that they were answered."""
        if not jobs:
            return
        count = len(jobs)
        now = time.monotonic()
        took, self._ahead.since = now - self._ahead.since, now
        cost = sum([job.cost for job in jobs]) / count
        self._ahead.answered(cost, took, count)
        instance = self._instance
        waited = took
        if instance is not None and self._ahead.is_short(jobs[0], instance):
            # What took our own time another thread could not do any faster beside us.
            waited = self._waited
        self._queue.answered(cost, waited, count, took, jobs[0].request.kind)
        self._waited = 0.0
        self._account.child_seconds += took
        self._account.requests += sum(
            [job.segments for job in jobs if job.movable and not job.settled]
        )
        with self._lock:
            for job in jobs:
                self._ahead.remove(job)
        # The batch's caller, when it has all answers, shall find them counted.
        last = self._jobs[-1].batch if self._jobs else None
        batches = {job.batch for job in jobs}
        if batches != {last}:
            self._count()
        for batch in batches:
            batch.settle_all(jobs)

    def _take_on(self, job: Job) -> None:
        self._account.queue_seconds += time.monotonic() - job.created
        with self._lock:
            self._ahead.add(job)

    def _let_go(self, job: Job) -> None:
        with self._lock:
            self._ahead.remove(job)

    def _failed(self, job: Job, error: BaseException, started: bool) -> None:
        """Has a job asked again, or settles it; the others are not to blame."""
        instance = self._instance
        under_way = self._sent > 0 and job is self._jobs[0]
        if under_way and isinstance(error, SprintRequestError):
            self._sent -= 1
            now = time.monotonic()
            self._account.child_seconds += now - self._ahead.since
            self._ahead.since = now
        elif (under_way or not isinstance(error, SprintError)) and instance is not None:
            # Whatever it was, nobody knows any more which answer would come next.
            instance.exit_handler()
        if instance is None or not instance.is_alive:
            self._hand_back(but=job)
        if instance is None or not instance.is_alive:
            self._queue.serving.discard(self._number)
        if self._closing.is_set() and isinstance(error, SprintError):
            self._settle(
                job,
                SprintClosedError(
                    "the pool was closed while this request was under way", segment=job.segment
                ),
            )
            return
        if self._interrupted and not job.batch.given_up:
            # It was meant for another one.
            self._hand_back()
            return
        if isinstance(error, SprintError):
            # It may be kept for long, and its frames hold the caller's arrays and the memory that
            # is shared with the child.  What it says is enough.
            error.__traceback__ = error.__context__ = None
            if error.segment is None:
                error = error.extended(segment=job.segment)
        job.attempts += 1
        if (
            job.attempts <= self._options.max_retries
            and job.segments == 1
            and isinstance(error, _PASSING)
            and not self._interrupted
            and time.monotonic() < job.batch.deadline
        ):
            job.rest()
            logger.warning("asking again for %r: %s", job.segment, error)
            self._stats.add(retries=1)
            if not started:
                self._closing.wait(min(0.1 * 2 ** (job.attempts - 1), 5.0))
            return
        if job.attempts > 1 and isinstance(error, SprintError):
            error = error.extended(f"(tried {job.attempts} times)")
        elif (
            started
            and isinstance(error, _PASSING)
            and not self._options.max_retries
            and time.monotonic() < job.batch.deadline
        ):
            error = error.extended(
                "(not asked again: max_retries = 0; 1 would have asked a fresh Sprint)"
            )
        if started:
            self._settle(job, error)
        else:
            self._cannot_start(job, error)

    def _hand_back(self, but: Job | None = None) -> None:
        """Returns what the Sprint has not answered and never will."""
        self._sent = 0
        for job in [job for job in self._jobs if job is not but]:
            job.rest()
            if self._queue.put_back(job, served=False):
                self._let_go(job)
            elif time.monotonic() >= job.batch.deadline:
                late = "its batch's time was over before its Sprint, busy with others, answered"
                job.batch.unasked.add(job.index)
                self._settle(job, SprintTimeoutError(late, segment=job.segment))
            else:
                gone = "the pool was closed, or the batch given up"
                self._settle(job, SprintClosedError(gone, segment=job.segment))

    def _cannot_start(self, job: Job, error: BaseException) -> None:
        """There is no Sprint in this thread to ask."""
        if job.settled:
            # Counted by whom gave it up.
            logger.warning("a Sprint did not start: %s", error)
        elif self._queue.put_back(job):
            self._let_go(job)
            self._pause()
            return
        else:
            job.batch.unserved = True
        if job.movable:
            # The others of this batch would run into the same, each after a time-out of its own,
            # and nobody else is there to serve them.
            for other in self._queue.withdraw(job.batch):
                self._stats.add(failures=other.failures)
                other.done(error)
        self._settle(job, error)

    def _settle(self, job: Job, error: BaseException | None) -> None:
        self._let_go(job)
        if job.movable and not job.settled:
            if error is None:
                self._account.requests += job.segments
            else:
                self._account.failures += job.failures
        # The batch's caller, when it has all answers, shall find them counted.
        if not self._jobs or self._jobs[-1].batch is not job.batch:
            self._count()
        job.done(error)

    def _count(self) -> None:
        account, self._account = self._account, Account()
        if self._instance is not None:
            (sent, received), before = self._instance.traffic, self._traffic
            self._traffic = sent, received
            account.bytes_sent = max(0, sent - before[0])
            account.bytes_received = max(0, received - before[1])
        self._stats.add(**vars(account))

    def _pause(self) -> None:
        """Leaves the requests to those that have a Sprint, for a while or until none has."""
        until = time.monotonic() + _START_PAUSE
        while self._queue.serving and time.monotonic() < until:
            if self._closing.wait(0.1):
                return

    def _ready(self) -> PoolInstance:
        """The Sprint of this thread, started if there is none."""
        instance = self._instance
        if instance is None:
            instance = self._instance = PoolInstance(self._options, self._inspect, self._copier)
        instance.bury()
        if not instance.is_alive:
            before = time.monotonic()
            self._queue.call()
            try:
                instance.init()
            finally:
                self._stats.add(
                    starts=1,
                    restarts=int(self._started_before),
                    start_seconds=time.monotonic() - before,
                )
                self._started_before = True
            self._traffic = instance.traffic
            self._queue.most_segments = instance.segments
        self._queue.serving.add(self._number)
        return instance
