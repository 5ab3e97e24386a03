"""The two ways from Sprint's knowledge of a segment to a loss inside the training step."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jax_sprint import (
    Automata,
    SprintError,
    SprintInstancePool,
    encode_tags,
    full_sum_loss,
    prefetch,
    sprint_loss,
)
from jax_sprint.automata.growing import GrowingSizes
from jax_sprint.demo.batches import Batch, Bucket
from jax_sprint.demo.dataset import Part

__all__ = ["ROUTES", "CallbackRoute", "FsaRoute", "Route"]

logger = logging.getLogger("jax_sprint")

_ASKED_BEFORE = 64
# So many segments at a time, of those that nobody waits for yet.
_IN_ADVANCE = 64
# While a step compiles Sprint gets so many batches ahead, at about 1 MB each.
_DEPTH = 32


class Route(Protocol):
    """What the training step needs to know.

    Attributes:
        name: as on the command line and in the summary.
    """

    name: str

    def supervise(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Any], None, None]:
        """Yields each batch with what the step needs to be told about its segments, a pytree."""

    def loss(
        self, log_posteriors: jax.Array, seq_lengths: jax.Array, targets: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Gives loss [B] and valid [B] for [T, B, L] log-posteriors; called under `jax.jit`."""


class FsaRoute:
    """Sprint exports each segment's automaton; XLA sums over its paths.

    Automata are fetched and packed while the step before is computed, and while the first one
    compiles Sprint exports those of later batches too.  The pool keeps them, so from the second
    epoch on Sprint is not asked.  All batches of a bucket have one shape, if none has larger
    automata than those segments that seem to have the largest.

    Args:
        pool: the Sprint processes.
        part: whose segments the batches hold.
        buckets: the segments of each shape.

    Attributes:
        padding: the shapes of the automata.
    """

    name = "fsa"

    def __init__(self, pool: SprintInstancePool, part: Part, buckets: Sequence[Bucket]) -> None:
        self._pool = pool
        self._tags = part.tags
        self._num_labels = len(part.labels)
        self._order = [part.tags[member] for bucket in buckets for member in bucket.members]
        self.padding = GrowingSizes(lambda batch: batch.bucket)
        for index, bucket in enumerate(buckets):
            by_size = sorted(bucket.members.tolist(), key=lambda member: -part.sizes[member])
            names = [part.tags[member] for member in by_size[:_ASKED_BEFORE]]
            fetched = pool.get_automata_for_batch(names)
            self.padding.pack(index, *fetched, num_labels=self._num_labels)

    def supervise(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Automata], None, None]:
        """See `Route`."""
        prefetched = prefetch(
            batches,
            self._pool,
            depth=_DEPTH,
            tags=lambda batch: [self._tags[index] for index in batch.indices],
            num_labels=self._num_labels,
            pad_to=self.padding,
        )
        with contextlib.closing(prefetched):
            for first in itertools.islice(prefetched, 1):
                with self._exporting_in_advance():
                    yield first
            yield from prefetched

    @contextlib.contextmanager
    def _exporting_in_advance(self) -> Iterator[None]:
        """Has Sprint export automata, those of the shortest segments first, as long as it lasts."""
        done = threading.Event()

        def export() -> None:
            for begin in range(0, len(self._order), _IN_ADVANCE):
                names = self._order[begin : begin + _IN_ADVANCE]
                try:
                    self._pool.get_automata(names, cancelled=done)
                except SprintError as error:
                    # Whoever needs that segment meets it again.
                    logger.debug("no automata in advance: %s", error)
                if done.is_set():
                    return

        thread = threading.Thread(target=export, name="jax_sprint automata in advance", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def loss(
        self, log_posteriors: jax.Array, seq_lengths: jax.Array, targets: Automata
    ) -> tuple[jax.Array, jax.Array]:
        """See `Route`."""
        return full_sum_loss(log_posteriors, seq_lengths, targets, return_valid=True)


class CallbackRoute:
    """Sprint computes loss and error signal itself, in every step.

    Args:
        pool: the Sprint processes.
        part: whose segments the batches hold.
        buckets: not needed; both routes are made alike.
    """

    name = "callback"

    def __init__(self, pool: SprintInstancePool, part: Part, buckets: Sequence[Bucket]) -> None:
        self._pool = pool
        self._tags = encode_tags(list(part.tags))

    def supervise(
        self, batches: Iterable[Batch]
    ) -> Generator[tuple[Batch, np.ndarray], None, None]:
        """Yields each batch with the encoded names of its segments, [B, W] uint8."""
        for batch in batches:
            yield batch, self._tags[batch.indices]

    def loss(
        self, log_posteriors: jax.Array, seq_lengths: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `Route`."""
        return sprint_loss(
            log_posteriors, seq_lengths, targets, sprint=self._pool, return_valid=True
        )


ROUTES: dict[str, type[FsaRoute] | type[CallbackRoute]] = {
    route.name: route for route in (FsaRoute, CallbackRoute)
}
