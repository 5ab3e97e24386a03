"""The thread that belongs to one Sprint of a pool."""

from __future__ import annotations

import logging
import threading

from jax_sprint.bridge.instance import SprintSubprocessInstance
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.work import Job, WorkQueue
from jax_sprint.errors import SprintClosedError, SprintError

__all__ = ["ReaderThread"]

logger = logging.getLogger("jax_sprint")


class _PoolInstance(SprintSubprocessInstance):
    _end_at_exit = False


class ReaderThread(threading.Thread):
    """Takes requests from a pool's queue, has its own Sprint serve them, and ends with the queue.

    The Sprint is started with the first request, and again with the next one after it failed.  It
    is a daemon thread that a pool keeps; no thread is made per batch.

    Args:
        options: what to start.
        queue: where the requests come from.
        number: for the thread's name.
    """

    def __init__(self, options: SprintOptions, queue: WorkQueue, number: int) -> None:
        super().__init__(name=f"jax_sprint reader {number}", daemon=True)
        self._options = options
        self._queue = queue
        self._instance: SprintSubprocessInstance | None = None
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._closing = False
        self._interrupted = False

    @property
    def instance(self) -> SprintSubprocessInstance | None:
        """The Sprint of this thread; None before the first request and after the end."""
        return self._instance

    def run(self) -> None:
        try:
            while (job := self._queue.get()) is not None:
                with self._lock:
                    self._job = job
                error = self._serve(job)
                with self._lock:
                    self._job = None
                    interrupted, self._interrupted = self._interrupted, False
                if interrupted and self._instance is not None:
                    # It was killed, perhaps just after its answer: the next job must not find it.
                    self._instance.exit_handler()
                job.done(error)
                # Not kept while waiting for the next one: it holds the caller's arrays.
                del job, error
        finally:
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
        self._closing = True
        self.interrupt()

    def _serve(self, job: Job) -> BaseException | None:
        try:
            self._ready()
        except Exception as error:
            if isinstance(error, SprintError) and error.segment is None:
                error = error.extended(segment=job.segment)
            if not self._closing:
                # The others of this batch would run into the same, each after a time-out of its
                # own: they share this failure unless somebody is serving them already.
                for other in self._queue.withdraw(job.batch):
                    other.done(error)
            return self._translated(error, job)
        assert self._instance is not None
        if self._closing:
            return self._translated(SprintError("closing"), job)
        try:
            job.ask(self._instance)
        except Exception as error:
            return self._translated(error, job)
        return None

    def _ready(self) -> None:
        if self._instance is None:
            self._instance = _PoolInstance(self._options, start=False)
        if not self._instance.is_alive:
            self._instance.init()

    def _translated(self, error: Exception, job: Job) -> Exception:
        if self._closing and isinstance(error, SprintError):
            return SprintClosedError(
                "the pool was closed while this request was under way", segment=job.segment
            )
        return error
