"""Many Sprints that work for many callers."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from typing import Any, ClassVar

import numpy as np

from jax_sprint.bridge.automata_cache import AutomataCache
from jax_sprint.bridge.batches import Automaton, check_batch, join_automata
from jax_sprint.bridge.buffers import Buffers
from jax_sprint.bridge.crew import Crew
from jax_sprint.bridge.fetching import fetch_automata
from jax_sprint.bridge.groups import Question, ask
from jax_sprint.bridge.options import OptionsLike, SprintOptions
from jax_sprint.bridge.progress import ProgressBar
from jax_sprint.bridge.requests import LossRequest, StartRequest
from jax_sprint.bridge.stats import Statistics
from jax_sprint.bridge.tags import decode_tags
from jax_sprint.bridge.warm_up import fill_cache
from jax_sprint.bridge.work import Batch, Job
from jax_sprint.errors import SprintClosedError, SprintError, let_go

__all__ = ["SprintInstancePool"]

logger = logging.getLogger("jax_sprint")


class SprintInstancePool:
    """A number of Sprint processes that share the segments of each batch.

    Children are started when they are first needed, at the same time.  Requests go through one
    queue, the longest segment first, and each Sprint takes the next one as soon as it is free.  All
    methods may be called from several threads at once.  Without `close`, the children end with
    the pool's last reference or with the interpreter.

    A request that fails does not disturb the others.  A Sprint that died is replaced, for the same
    segment if `max_retries` permits, else with the next request.

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
        self._crew: Crew | None = None
        self._finalizer: weakref.finalize | None = None
        self._stats = Statistics()
        self._cache = AutomataCache(self.options, self._stats)
        self._buffers = Buffers()
        self._last_error: BaseException | None = None
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
                inspect = self._cache.inspect if self._cache.enabled else None
                self._crew = Crew(self.options, self._stats, inspect)
                self._finalizer = weakref.finalize(self, _close, self._crew, self._cache)

    def start(self, *, progress: bool | None = None) -> int:
        """Starts all children that are not running, at the same time, and waits for them.

        They would start by themselves when they are first needed; this is for programs that want
        to know before the training that they do, or whose steps must not take as long.

        Args:
            progress: whether to show a progress bar on standard error; None does so on a terminal
                and in a notebook, if it takes long enough.

        Returns:
            How many are running.  Fewer than `num_instances` is not an error: the others do the
            work, and the reasons are logged.

        Raises:
            SprintError: none could be started; also a `SprintClosedError`.
        """
        crew = self._open_crew()
        count = self.options.num_instances
        batch = Batch()
        jobs = [Job(batch, number, "", 0, StartRequest()) for number in range(count)]
        with ProgressBar(count, "starting Sprint", progress) as bar:
            crew.run(batch, jobs, one_each=True, watch=bar.update)
        for error in batch.errors.values():
            logger.warning("a Sprint did not start: %s", error)
        if len(batch.errors) == count:
            raise self._judged(batch)
        return count - len(batch.errors)

    def close(self) -> None:
        """Ends all children; requests under way fail with `SprintClosedError`.

        Harmless when repeated.  `init` opens the pool again.
        """
        self._check_process()
        with self._lock:
            crew, self._crew = self._crew, None
            finalizer, self._finalizer = self._finalizer, None
        self._buffers.clear()
        if crew is not None:
            _close(crew, self._cache)
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

    # ------------------------------------------------------------------------------- its history

    @property
    def last_error(self) -> BaseException | None:
        """The last failure of a batch, also a masked one; None once `check` has raised it.

        JAX passes on only the message of an exception in a callback: this is the exception itself.
        """
        return self._last_error

    def check(self) -> None:
        """Raises the last failure, if there was one since the last call."""
        error, self._last_error = self._last_error, None
        if error is not None:
            raise error

    def keep_error(self, error: BaseException) -> None:
        """Makes `error` the `last_error`: for a caller that must not raise it where it happened."""
        let_go(error)
        self._last_error = error

    def stats(self) -> dict[str, float]:
        """Sums over the whole life of the pool.

        Returns:
            `requests` answered, `failures`, `masked` segments, `retries` (also of segments that
            were asked for together, as nobody knows which of them failed); `starts` of Sprint,
            `restarts` among them; `bytes_sent` and `bytes_received`; and, summed over all threads,
            `queue_seconds` that requests waited, `child_seconds` that Sprint took for them, and
            `start_seconds`.  Of automata: `automata_from_memory`, `automata_from_disk` and
            `automata_from_sprint`; and `cache_faults`, what was damaged in the cache's file, or
            kept it from being used.
        """
        self._check_process()
        return self._stats.snapshot()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} of {self.options.num_instances}, {state}>"

    # ---------------------------------------------------------------------------------- requests

    def get_batch_loss_and_error_signal(
        self, log_posteriors: Any, seq_lengths: Any, tags: Any, *, timeout: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Has Sprint compute loss and error signal of a batch of segments.

        Args:
            log_posteriors: [T, B, L] floating point (sent as float32), natural-log probabilities.
                Frames from a sequence's length on are padding and may hold anything.
            seq_lengths: [B] integer, frames, each from 0 to T.
            tags: the B full segment names, in any form that `decode_tags` takes.  A name may
                occur more than once.
            timeout: seconds for the whole batch, instead of the options' `batch_timeout`; what is
                not there by then counts as failed.

        Returns:
            loss [B] float32, and error signal [T, B, L] float32, zero in the padding.  A sequence
            that Sprint skips or finds no path for has loss +inf, and so has one of length 0, which
            Sprint is not asked about.  A sequence with NaN in its frames has loss NaN, and is not
            sent either.  Wherever the loss is not finite, the error signal is zero.  The arrays are
            the caller's; once nobody holds a large one any more, the pool uses its memory again.

        Raises:
            ValueError: an argument is not as described; nothing was sent.
            SprintError: a request failed.  If several did, the first one's error is raised when all
                    others have come to their end, and says how many failed.  With
                `on_error="mask"` none is raised for single segments: such a sequence has loss NaN
                and error signal zero, and `last_error` keeps the first one's error.
        """
        crew = self._open_crew()
        log_posteriors, lengths, names = check_batch(log_posteriors, seq_lengths, tags)
        loss = np.full(lengths.shape, np.inf, np.float32)
        error_signal = self._buffers.empty(log_posteriors.shape)
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive, finite number of seconds, got {timeout}")
        timeout = self.options.batch_timeout if timeout is None else timeout
        batch = Batch(math.inf if timeout is None else time.monotonic() + timeout)
        questions = []
        for b, length in enumerate(lengths.tolist()):
            if length < len(error_signal):
                error_signal[length:, b] = 0
            if not length:
                continue
            frames = log_posteriors[:length, b]
            request = LossRequest(names[b], frames, b, loss, error_signal[:length, b])
            questions.append(Question(b, names[b], length, request))
        ask(crew, batch, questions, limit=f"batch_timeout = {timeout} s")
        if batch.errors:
            error = self._judged(batch)
            if self.options.on_error == "raise" or not batch.can_mask():
                raise error
            failed = list(batch.errors)
            loss[failed] = np.nan
            error_signal[:, failed] = 0
            self._stats.add(masked=len(failed))
            logger.warning("masked %d of %d segments: %s", len(failed), len(names), error)
        return loss, error_signal

    def get_automata_for_batch(
        self, tags: Any, *, cancelled: threading.Event | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Has Sprint export the automata of a batch of segments.

        Sprint is asked only about segments that are not in the cache, which
        `SprintOptions.automata_cache` and `automata_cache_bytes` describe.

        Args:
            tags: the B full segment names, in any form that `decode_tags` takes.
            cancelled: to be set from another thread, which ends this call soon.

        Returns:
            edges [4, E] uint32: from, to, emission index, sequence; weights [E] float32: costs,
            -log; start_end_states [2, B] uint32.  States are numbered across the batch: those of a
            sequence begin where those of the sequence before it end.

        Raises:
            ValueError: `tags` is not as described, or `automata_cache` names a file that is
                something else.
            SprintClosedError: the call was cancelled, or the pool is closed.
            SprintError: as `get_batch_loss_and_error_signal`; what others answered is kept.
        """
        return join_automata(self.get_automata(tags, cancelled=cancelled))

    def get_automata(
        self, tags: Any, *, cancelled: threading.Event | None = None
    ) -> list[Automaton]:
        """As `get_automata_for_batch`, but gives the automata one by one.

        Returns:
            Per segment its number of states, the first of which is the start, the last the end; its
            number of edges E; edges [3, E] uint32: from, to, emission index; weights [E] float32.
            As long as the cache keeps an automaton these are the same arrays, not writeable.
        """
        crew = self._open_crew()
        names = decode_tags(tags)
        for b, name in enumerate(names):
            if not name:
                raise ValueError(f"tags[{b}] is empty; every automaton needs a segment name")
        batch = Batch()
        known = fetch_automata(crew, self._cache, names, batch, cancelled)
        if batch.errors:
            raise self._judged(batch)
        return [known[name] for name in names]

    def fill_cache(self, tags: Any, *, progress: bool | None = None) -> None:
        """Has Sprint export the automata of many segments, to be kept in the cache.

        For example of a whole corpus before the first epoch, with `automata_cache` in the options.
        Those that are known already cost nothing; an interruption loses none that were fetched.

        Args:
            tags: full segment names, in any form that `decode_tags` takes.
            progress: as in `start`.

        Raises:
            ValueError: as `get_automata_for_batch`, or the options turn the cache off.
            SprintRequestError: Sprint has no automaton for some segments; all others were fetched.
            SprintError: as `get_automata_for_batch`.
        """
        if not self._cache.enabled:
            raise ValueError(
                "automata_cache_bytes = 0 in the options turns the cache off; leave it out"
            )
        names = list(dict.fromkeys(decode_tags(tags)))
        fill_cache(self.get_automata_for_batch, names, 16 * self.options.num_instances, progress)

    # ------------------------------------------------------------------------------------ inside

    def _judged(self, batch: Batch) -> BaseException:
        """The error to raise for a batch, kept as `last_error`."""
        self._last_error = batch.verdict()
        return self._last_error

    def _open_crew(self) -> Crew:
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


def _close(crew: Crew, cache: AutomataCache) -> None:
    crew.close()
    cache.close()


def _after_fork_in_child() -> None:
    # Another thread may have held the lock; and these pools are the parent's.
    SprintInstancePool._global_lock = threading.Lock()
    SprintInstancePool._global_pools = {}


os.register_at_fork(after_in_child=_after_fork_in_child)
