"""The thread that belongs to one Sprint of a pool."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable

from jax_sprint.bridge.fingerprint import Fingerprint
from jax_sprint.bridge.instance import SprintSubprocessInstance
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.stats import Statistics
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

__all__ = ["Inspect", "ReaderThread"]

Inspect = Callable[[], Fingerprint | None]

logger = logging.getLogger("jax_sprint")

# How long a thread whose Sprint does not start leaves the work to the others, in seconds.
_START_PAUSE = 5.0
# What may be over with another process; a refusal by Sprint itself is not among it.
_PASSING = (SprintCrashError, SprintProtocolError, SprintStartError, SprintTimeoutError)


class _CannotStart(Exception):
    """There is no Sprint in this thread to ask, for this `reason`."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _PoolInstance(SprintSubprocessInstance):
    """Knows what it was started from: `born` is the fingerprint, None if that is not certain."""

    _end_at_exit = False

    def __init__(self, options: SprintOptions, inspect: Inspect | None) -> None:
        self._inspect = inspect
        self.born: Fingerprint | None = None
        super().__init__(options, start=False)

    def limit(self, latest: float) -> None:
        """Sets until when requests may last, of the monotonic clock."""
        self._latest = latest

    def bury(self) -> None:
        """Lets go of a child that has ended by itself since its last answer."""
        child = self._child
        if child is not None and child.wait(0):
            self.exit_handler()
            reason = "a Sprint ended while it had nothing to do; another one takes its place"
            logger.warning("%s", child.error(SprintCrashError, reason, None))

    def init(self) -> None:
        self.born = None
        born = None if self._inspect is None else self._inspect()
        super().init()
        assert self._child is not None
        # A callable in the options may have said something else the second time.
        command = self._child.command
        if born and tuple(command[len(command) - len(born.words) :]) == born.words:
            self.born = born


class ReaderThread(threading.Thread):
    """Takes requests from a pool's queue, has its own Sprint serve them, and ends with the queue.

    The Sprint is started with the first request, and again when it is needed after it failed.  It
    is a daemon thread that a pool keeps; no thread is made per batch.

    Args:
        options: what to start.
        queue: where the requests come from.
        stats: where to count.
        number: for the thread's name.
        inspect: takes the fingerprint of a Sprint that is about to be started.
    """

    def __init__(
        self,
        options: SprintOptions,
        queue: WorkQueue,
        stats: Statistics,
        number: int,
        inspect: Inspect | None = None,
    ) -> None:
        super().__init__(name=f"jax_sprint reader {number}", daemon=True)
        self._options = options
        self._queue = queue
        self._stats = stats
        self._number = number
        self._inspect = inspect
        self._instance: _PoolInstance | None = None
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._closing = threading.Event()
        self._interrupted = False
        self._started_before = False
        self._account: dict[str, float] = {}

    @property
    def instance(self) -> SprintSubprocessInstance | None:
        """The Sprint of this thread; None before the first request and after the end."""
        return self._instance

    def run(self) -> None:
        try:
            while (job := self._queue.get(self._number)) is not None:
                with self._lock:
                    self._job = job
                error = self._serve(job)
                back = isinstance(error, _CannotStart) and self._queue.put_back(job)
                with self._lock:
                    self._job = None
                    interrupted, self._interrupted = self._interrupted, False
                if interrupted and self._instance is not None:
                    # It was killed, perhaps just after its answer: the next job must not find it.
                    self._instance.exit_handler()
                if not back:
                    self._settle(job, error)
                # Not kept while waiting for the next one: it holds the caller's arrays.
                del job, error
                if back:
                    self._pause()
        finally:
            self._queue.serving.discard(self._number)
            instance, self._instance = self._instance, None
            if instance is not None:
                instance.exit_handler()

    def interrupt(self, batch: object = None) -> None:
        """Kills this thread's Sprint if it is busy (with that batch); from any thread."""
        with self._lock:
            job, instance = self._job, self._instance
            if job is not None and (batch is None or job.batch is batch) and instance is not None:
                self._interrupted = True
                instance.kill()

    def close(self) -> None:
        """Announces the end: a failure from now on is no failure of Sprint."""
        self._closing.set()
        self.interrupt()

    def _serve(self, job: Job) -> BaseException | None:
        """Does one job, again if need be; returns what it failed with."""
        self._account = {"queue_seconds": time.monotonic() - job.created}
        error: BaseException
        for attempt in itertools.count():
            if attempt and self._interrupted:
                break
            started = False
            try:
                instance = self._ready()
                started = True
                if not job.begin():
                    return SprintClosedError("nobody waits for this any more", segment=job.segment)
                self._ask(job, instance)
                return None
            except BaseException as failure:
                # Also a SystemExit, for example of a callable in the options: it must not end
                # this thread, or somebody waits in vain.
                error = failure
            if not isinstance(error, SprintRequestError):
                self._queue.serving.discard(self._number)
            if self._closing.is_set() and isinstance(error, SprintError):
                return SprintClosedError(
                    "the pool was closed while this request was under way", segment=job.segment
                )
            if isinstance(error, SprintError) and error.segment is None:
                error = error.extended(segment=job.segment)
            if (
                attempt >= self._options.max_retries
                or not isinstance(error, _PASSING)
                or self._interrupted
                or time.monotonic() >= job.batch.deadline
            ):
                break
            job.rest()
            logger.warning("asking again for %r: %s", job.segment, error)
            self._stats.add(retries=1)
            if not started:
                self._closing.wait(min(0.1 * 2**attempt, 5.0))
        if attempt and isinstance(error, SprintError):
            error = error.extended(f"(tried {attempt + 1} times)")
        elif (
            started
            and isinstance(error, _PASSING)
            and not self._options.max_retries
            and time.monotonic() < job.batch.deadline
        ):
            error = error.extended(
                "(not asked again: max_retries = 0; 1 would have asked a fresh Sprint)"
            )
        return error if started else _CannotStart(error)

    def _settle(self, job: Job, error: BaseException | None) -> None:
        if job.settled:
            # Counted by whom gave it up.
            if isinstance(error, _CannotStart):
                logger.warning("a Sprint did not start: %s", error.reason)
            return
        if isinstance(error, _CannotStart):
            error = error.reason
            # The others of this batch would run into the same, each after a time-out of its own,
            # and nobody else is there to serve them.
            for other in self._queue.withdraw(job.batch) if job.movable else ():
                self._stats.add(failures=1)
                other.done(error)
        # Once per request: with many short ones even this counts.
        if job.movable:
            self._stats.add(**{"requests" if error is None else "failures": 1}, **self._account)
        job.done(error)

    def _pause(self) -> None:
        """Leaves the requests to those that have a Sprint, for a while or until none has."""
        until = time.monotonic() + _START_PAUSE
        while self._queue.serving and time.monotonic() < until:
            if self._closing.wait(0.1):
                return

    def _ask(self, job: Job, instance: _PoolInstance) -> None:
        if self._closing.is_set():
            raise SprintClosedError("the pool was closed", segment=job.segment)
        before = time.monotonic()
        sent, received = instance.traffic
        instance.limit(job.batch.deadline)
        try:
            job.ask(instance)
        finally:
            now_sent, now_received = instance.traffic
            for name, amount in (
                ("child_seconds", time.monotonic() - before),
                ("bytes_sent", max(0, now_sent - sent)),
                ("bytes_received", max(0, now_received - received)),
            ):
                self._account[name] = self._account.get(name, 0) + amount

    def _ready(self) -> _PoolInstance:
        """The Sprint of this thread, started if there is none."""
        instance = self._instance
        if instance is None:
            instance = self._instance = _PoolInstance(self._options, self._inspect)
        instance.bury()
        if not instance.is_alive:
            before = time.monotonic()
            try:
                instance.init()
            finally:
                self._stats.add(
                    starts=1,
                    restarts=int(self._started_before),
                    start_seconds=time.monotonic() - before,
                )
                self._started_before = True
        self._queue.serving.add(self._number)
        return instance
