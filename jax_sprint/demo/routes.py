"""The two ways from Sprint's knowledge of a segment to a loss inside the training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jax_sprint import Automata, SprintInstancePool, encode_tags, full_sum_loss, sprint_loss
from jax_sprint.demo.batches import Bucket

__all__ = ["ROUTES", "CallbackRoute", "FsaRoute", "Route"]


class Route(Protocol):
    """What the training step needs to know.

    Attributes:
        name: as on the command line and in the summary.
    """

    name: str

    def targets(self, bucket: int, indices: np.ndarray) -> Any:
        """Gives what the step needs to be told about some segments of a bucket, a pytree."""

    def loss(
        self, log_posteriors: jax.Array, seq_lengths: jax.Array, targets: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Gives loss [B] and valid [B] for [T, B, L] log-posteriors; called under `jax.jit`."""


class FsaRoute:
    """Sprint exports each segment's automaton once; XLA sums over its paths.

    Args:
        pool: the Sprint processes.
        tags: full segment name of each utterance.
        buckets: the utterances of each shape; their automata share one padded size.
        num_labels: number of labels, the blank included.
    """

    name = "fsa"

    def __init__(
        self,
        pool: SprintInstancePool,
        tags: Sequence[str],
        buckets: Sequence[Bucket],
        num_labels: int,
    ) -> None:
        self._buckets = buckets
        self._automata = [
            Automata.from_edges(
                *pool.get_automata_for_batch([tags[index] for index in bucket.members]),
                num_labels=num_labels,
            )
            for bucket in buckets
        ]

    def targets(self, bucket: int, indices: np.ndarray) -> Automata:
        """Gives the automata of those segments, with the padding of their bucket."""
        places = np.searchsorted(self._buckets[bucket].members, indices)
        return self._automata[bucket][places]

    def loss(
        self, log_posteriors: jax.Array, seq_lengths: jax.Array, targets: Automata
    ) -> tuple[jax.Array, jax.Array]:
        """See `Route`."""
        return full_sum_loss(log_posteriors, seq_lengths, targets, return_valid=True)


class CallbackRoute:
    """Sprint computes loss and error signal itself, in every step.

    Args:
        pool: the Sprint processes.
        tags: full segment name of each utterance.
        buckets: not needed; both routes are made alike.
        num_labels: likewise.
    """

    name = "callback"

    def __init__(
        self,
        pool: SprintInstancePool,
        tags: Sequence[str],
        buckets: Sequence[Bucket],
        num_labels: int,
    ) -> None:
        self._pool = pool
        self._tags = encode_tags(list(tags))

    def targets(self, bucket: int, indices: np.ndarray) -> np.ndarray:
        """Gives the encoded names of those segments, [B, W] uint8."""
        return self._tags[indices]

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
