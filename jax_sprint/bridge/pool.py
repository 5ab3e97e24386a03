"""Many Sprints that work for many callers."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from jax_sprint.bridge.batches import check_batch, join_automata
from jax_sprint.bridge.options import OptionsLike, SprintOptions
from jax_sprint.bridge.reader import ReaderThread
from jax_sprint.bridge.replies import holds_nan
from jax_sprint.bridge.tags import decode_tags
from jax_sprint.bridge.work import Batch, Job, WorkQueue
from jax_sprint.errors import SprintClosedError, SprintError

__all__ = ["SprintInstancePool"]

logger = logging.getLogger("jax_sprint")

# How long to wait, after an interruption, for the requests that are under way.
_ABANDON_PATIENCE = 1.0


class SprintInstancePool:
    """A number of Sprint processes that share the segments of each batch.

    Children are started when they are first needed, at the same time.  Requests go through one
    queue, the longest segment first, and each Sprint takes the next one as soon as it is free.  All
    methods may be called from several threads at once.  Without `close`, the children end with
    the pool's last reference or with the interpreter.

    A request that fails does not disturb the others, and a Sprint that died is replaced with the
    next request.

    Args:
        options: what to start and how many; also the ancestor's dict.

    Raises:
        ValueError: the options are not usable.
    """

    _global_lock: ClassVar[threading.Lock] = threading.Lock()
    _global_pools: ClassVar[dict[SprintOptions, SprintInstancePool]] = {}

    def __init__(self, options: OptionsLike) -> None:
        self.options = SprintOptions.coerce(options)
        self._lock = threading.Lock()
        self._crew: _Crew | None = None
        self._finalizer: weakref.finalize | None = None
        self.init()

    @classmethod
    def get_global_instance(cls, options: OptionsLike) -> SprintInstancePool:
        """The one pool for these options in this process; made when first asked for.

        Options are the same when they mean the same; they need not be hashable.  A pool that was
        closed is returned closed: its `init` opens it again.
        """
        options = SprintOptions.coerce(options)
        with cls._global_lock:
            pool = cls._global_pools.get(options)
            if pool is None:
                pool = cls._global_pools[options] = cls(options)
            return pool

    # --------------------------------------------------------------------------------- life time

    def init(self) -> None:
        """Opens the pool; if it is open, nothing happens.  No child is started by this."""
        self._check_process()
        with self._lock:
            if self._crew is None:
                self._crew = _Crew(self.options)
                self._finalizer = weakref.finalize(self, self._crew.close)

    def close(self) -> None:
        """Ends all children; requests under way fail with `SprintClosedError`.

        Harmless when repeated.  `init` opens the pool again.
        """
        self._check_process()
        with self._lock:
            crew, self._crew = self._crew, None
            finalizer, self._finalizer = self._finalizer, None
        if crew is not None:
            crew.close()
        if finalizer is not None:
            finalizer.detach()

    @property
    def closed(self) -> bool:
        """Whether the pool was closed and not opened again."""
        return self._crew is None

    def __enter__(self) -> SprintInstancePool:
        self.init()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} of {self.options.num_instances}, {state}>"

    # ---------------------------------------------------------------------------------- requests

    def get_batch_loss_and_error_signal(
        self, log_posteriors: Any, seq_lengths: Any, tags: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Has Sprint compute loss and error signal of a batch of segments.

        Args:
            log_posteriors: [T, B, L] floating point (sent as float32), natural-log probabilities.
                Frames from a sequence's length on are padding and may hold anything.
            seq_lengths: [B] integer, frames, each from 0 to T.
            tags: the B full segment names, in any form that `decode_tags` takes.  A name may
                occur more than once.

        Returns:
            loss [B] float32, and error signal [T, B, L] float32, zero in the padding.  A sequence
            that Sprint skips or finds no path for has loss +inf, and so has one of length 0, which
            Sprint is not asked about.  A sequence with NaN in its frames has loss NaN, and is not
            sent either.  Wherever the loss is not finite, the error signal is zero.

        Raises:
            ValueError: an argument is not as described; nothing was sent.
            SprintError: a request failed.  If several did, the first one's error is raised when all
                others have come to their end, and says how many failed.
        """
        crew = self._open_crew()
        log_posteriors, lengths, names = check_batch(log_posteriors, seq_lengths, tags)
        loss = np.full(lengths.shape, np.inf, np.float32)
        error_signal = np.zeros(log_posteriors.shape, np.float32)
        batch = Batch()
        jobs = []
        for b, length in enumerate(lengths.tolist()):
            if not length:
                continue
            frames = log_posteriors[:length, b]
            ask = _loss_request(names[b], frames, b, loss, error_signal[:length, b])
            jobs.append(Job(batch, b, names[b], length, ask))
        self._run(crew, batch, jobs)
        return loss, error_signal

    def get_automata_for_batch(self, tags: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Has Sprint export the automata of a batch of segments.

        Args:
            tags: the B full segment names, in any form that `decode_tags` takes.

        Returns:
            edges [4, E] uint32: from, to, emission index, sequence; weights [E] float32: costs,
            -log; start_end_states [2, B] uint32.  States are numbered across the batch: those of a
            sequence begin where those of the sequence before it end.

        Raises:
            ValueError: `tags` is not as described.
            SprintError: as `get_batch_loss_and_error_signal`.
        """
        crew = self._open_crew()
        names = decode_tags(tags)
        for b, name in enumerate(names):
            if not name:
                raise ValueError(f"tags[{b}] is empty; every automaton needs a segment name")
        batch = Batch()
        found: list[Any] = [None] * len(names)
        jobs = [
            Job(batch, b, name, 0, _automaton_request(name, b, found))
            for b, name in enumerate(names)
        ]
        self._run(crew, batch, jobs)
        return join_automata(found)

    # ------------------------------------------------------------------------------------ inside

    def _run(self, crew: _Crew, batch: Batch, jobs: list[Job]) -> None:
        batch.expect(len(jobs))
        try:
            if not crew.submit(jobs):
                batch.expect(0)
                raise SprintClosedError("the pool was closed; init() opens it again")
            while not batch.wait(1.0):
                crew.check()
        except BaseException:
            # Nobody may read the caller's arrays after we return: under jax they may be gone.
            crew.abandon(batch)
            raise
        if batch.errors:
            first = batch.errors[min(batch.errors)]
            others = len(batch.errors) - 1
            if isinstance(first, SprintError):
                text = f"({others} more of the {len(jobs)} requests failed)" if others else ""
                raise first.extended(text) if text else first
            raise first

    def _open_crew(self) -> _Crew:
        self._check_process()
        crew = self._crew
        if crew is None:
            raise SprintClosedError("the pool is closed; init() opens it again")
        return crew

    def _check_process(self) -> None:
        crew = getattr(self, "_crew", None)
        if crew is not None and crew.owner_pid != os.getpid():
            raise SprintError(
                f"this pool belongs to process {crew.owner_pid}, but this is process "
                f"{os.getpid()}, made by os.fork; make a pool of its own here, or start processes "
                "with multiprocessing's spawn or forkserver"
            )


class _Crew:
    """What lives while a pool is open: the queue and the threads.  Knows nothing of the pool, so
    that the pool can be collected while they wait."""

    def __init__(self, options: SprintOptions) -> None:
        self.owner_pid = os.getpid()
        self._options = options
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
                reader = ReaderThread(self._options, self._queue, len(self._readers))
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
        for job in self._queue.withdraw(batch):
            job.done(SprintClosedError("the batch was given up", segment=job.segment))
        if not batch.wait(_ABANDON_PATIENCE):
            for reader in list(self._readers):
                reader.interrupt(batch)
            batch.wait(self._options.exit_timeout)

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


def _loss_request(
    name: str, frames: np.ndarray, index: int, loss: np.ndarray, error_signal: np.ndarray
) -> Callable[[Any], None]:
    def ask(instance: Any) -> None:
        if holds_nan(frames):
            loss[index] = np.nan
            return
        instance.get_loss_and_error_signal__send(name, len(frames), frames)
        _, loss[index], _ = instance.get_loss_and_error_signal__read(error_signal)

    return ask


def _automaton_request(name: str, index: int, found: list[Any]) -> Callable[[Any], None]:
    def ask(instance: Any) -> None:
        found[index] = instance.export_allophone_state_fsa_by_segment_name(name)

    return ask


def _after_fork_in_child() -> None:
    # Another thread may have held the lock; and these pools are the parent's.
    SprintInstancePool._global_lock = threading.Lock()
    SprintInstancePool._global_pools = {}


os.register_at_fork(after_in_child=_after_fork_in_child)
