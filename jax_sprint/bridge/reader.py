"""The thread that belongs to one Sprint of a pool.

Requests overlap where that pays (see `ahead`).  This never changes what comes out: Sprint answers
in the order of the requests, each has its own deadline, which begins when Sprint can begin, and if
Sprint dies, only the one that it was working on counts as failed; those behind it go back to the
queue.
"""

from __future__ import annotations

import contextlib
import time

from jax_sprint.bridge.pool_instance import Inspect, PoolInstance
from jax_sprint.bridge.work import Job
from jax_sprint.bridge.worker import Worker
from jax_sprint.errors import SprintClosedError, let_go

__all__ = ["Inspect", "ReaderThread"]

# How long to wait for an answer before others are called to help, in seconds.
_PATIENCE = 0.001
# Requests are written together until the Sprint has so much new to do, in bytes.
_KEPT_BACK_BYTES = 1 << 18
# What a request counts for besides its data.
_MESSAGE_BYTES = 1 << 12


class ReaderThread(Worker):
    """Takes requests from a pool's queue, has its own Sprint serve them, and ends with the queue.

    The Sprint is started with the first request, and again when it is needed after it failed.  It
    is a daemon thread that a pool keeps; no thread is made per batch.
    """

    # What was given to the instance since it was last flushed, in bytes.
    _kept_back = 0

    def run(self) -> None:
        try:
            while True:
                job = self._queue.get(self._number)
                if job is None:
                    return
                self._take_on(job)
                # Not kept while waiting for the next one: it holds the caller's arrays.
                del job
                while self._jobs:
                    self._serve()
        finally:
            self._queue.serving.discard(self._number)
            instance, self._instance = self._instance, None
            if instance is not None:
                instance.exit_handler()

    # ------------------------------------------------------------------------- one step at a time

    def _serve(self) -> None:
        """Sends what may be sent, and reads one answer."""
        job = self._jobs[0]
        started = bool(self._sent)
        if not started and (self._closing.is_set() or job.batch.given_up):
            gone = "the pool was closed, or nobody waits for this any more"
            self._settle(job, SprintClosedError(gone, segment=job.segment))
            return
        try:
            instance = self._ready() if not started else self._instance
            assert instance is not None
            started = True
            if not self._sent:
                with self._turn(job, instance):
                    self._send(job, instance)
            with self._turn(job, instance):
                while self._sent and (ahead := self._next(instance)) is not None:
                    job = ahead
                    self._send(job, instance)
                self._flush(instance)
            half = self._sent // 2
            if self._sent:
                job = self._jobs[0]
                if not self._await(instance, half):
                    return
                if not instance.has_answer():
                    self._read(job, instance)
            answered: list[Job] = []
            try:
                with self._turn(job, instance):
                    for job in list(self._jobs)[: self._sent - self._sent // 4]:
                        if not instance.has_answer():
                            break
                        job.request.read(instance)
                        self._sent -= 1
                        answered.append(job)
            finally:
                self._answered(answered)
        except BaseException as failure:
            # Also a SystemExit, for example of a callable in the options: it must not end this
            # thread, or somebody waits in vain.
            let_go(failure)
            if job not in self._jobs and self._jobs:
                # It was settled before, for example as it held NaN; the first one met this as well.
                job = self._jobs[0]
            self._failed(job, failure, started)
        if not self._interrupted:
            return
        with self._lock:
            self._interrupted = False
        if self._instance is not None and self._instance.is_alive:
            # It was killed, perhaps just after its answer: the next job must not find it.
            self._instance.exit_handler()
            self._hand_back()

    def _turn(self, job: Job, instance: PoolInstance) -> contextlib.AbstractContextManager:
        """To be held while requests like this one are sent, or answers read that are there."""
        if self._ahead.is_short(job, instance):
            return self._queue.turn
        return contextlib.nullcontext()

    def _next(self, instance: PoolInstance) -> Job | None:
        """A job to be sent while the Sprint works on others, if there is a good one."""
        if self._closing.is_set():
            return None
        job = self._queue.take(self._ahead.fits, instance)
        if job is not None:
            self._take_on(job)
        return job

    def _send(self, job: Job, instance: PoolInstance) -> None:
        if self._closing.is_set():
            raise SprintClosedError("the pool was closed", segment=job.segment)
        if not job.begin():
            error = SprintClosedError("nobody waits for this any more", segment=job.segment)
            self._settle(job, error)
            return
        instance.limit(job.batch.deadline)
        if not self._sent:
            self._ahead.since = time.monotonic()
        if not job.request.send(instance):
            self._settle(job, None)
            return
        self._sent += 1
        self._kept_back += job.data_bytes + _MESSAGE_BYTES
        if self._sent == 1 or self._kept_back >= _KEPT_BACK_BYTES:
            self._flush(instance)

    def _flush(self, instance: PoolInstance) -> None:
        self._kept_back = 0
        instance.flush()

    def _await(self, instance: PoolInstance, count: int) -> bool:
        """Waits until at least one answer is there, and preferably so many.

        Returns False if it is time to look for the next request before that.
        """
        if instance.has_answer():
            return True
        before = time.monotonic()
        self._ahead.nap(count)
        there = instance.has_answer() or instance.await_answer(_PATIENCE)
        if not there:
            self._queue.call()
            there = instance.await_answer(self._ahead.due_in())
        if there:
            self._ahead.woke(instance.count_answers() >= count)
        self._waited += time.monotonic() - before
        return there or instance.is_late

    def _read(self, job: Job, instance: PoolInstance) -> None:
        job.request.read(instance)
        self._sent -= 1
        self._answered([job])
