"""Batches of utterances of similar length, in a handful of shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Batch",
    "Bucket",
    "batch_stream",
    "make_batch",
    "make_buckets",
    "padding_share",
    "spec_augment",
]


@dataclass(frozen=True)
class Bucket:
    """Utterances that are padded to the same length.

    Attributes:
        num_frames: padded length in input frames.
        members: [M] int64, indices of the utterances.
    """

    num_frames: int
    members: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        bucket: index of its bucket, and so of its shape.
        indices: [B] int64, the utterances.
        features: [B, T, D] float32, zero in the padding.
        lengths: [B] int32, valid input frames.
    """

    bucket: int
    indices: np.ndarray
    features: np.ndarray
    lengths: np.ndarray


def make_buckets(
    lengths: Sequence[int], *, num_buckets: int, multiple: int, batch_size: int = 1
) -> list[Bucket]:
    """Sorts utterances into buckets so that little is padded.

    The bounds minimise the padded frames exactly, by dynamic programming over the distinct
    lengths (rounded up to `multiple`).

    Args:
        lengths: frames of each utterance, all positive.
        num_buckets: at most how many buckets.
        multiple: padded lengths are multiples of it.
        batch_size: no bucket gets fewer members than that, if there are as many at all.

    Returns:
        The buckets, shortest first, each with at least one member.
    """
    frames = np.asarray(lengths, np.int64)
    if not len(frames):
        return []
    rounded = -(-frames // multiple) * multiple
    bounds, counts = np.unique(rounded, return_counts=True)
    seen = np.concatenate([[0], np.cumsum(counts)])
    number = len(bounds)
    cost = np.full((num_buckets + 1, number + 1), np.inf)
    cost[0, 0] = 0
    split = np.zeros((num_buckets + 1, number + 1), np.int64)
    for used in range(1, num_buckets + 1):
        for stop in range(1, number + 1):
            members = seen[stop] - seen[:stop]
            padded = cost[used - 1, :stop] + members * bounds[stop - 1]
            padded = np.where(members >= batch_size, padded, np.inf)
            split[used, stop] = int(np.argmin(padded))
            cost[used, stop] = padded[split[used, stop]]
    best = int(np.argmin(cost[:, number]))
    if not np.isfinite(cost[best, number]):
        return [Bucket(int(bounds[-1]), np.arange(len(frames)))]
    stops = []
    stop = number
    for used in range(best, 0, -1):
        stops.append(stop)
        stop = int(split[used, stop])
    limits = [int(bounds[stop - 1]) for stop in reversed(stops)]
    which = np.searchsorted(limits, rounded)
    return [Bucket(limit, np.flatnonzero(which == index)) for index, limit in enumerate(limits)]


def padding_share(buckets: Sequence[Bucket], lengths: Sequence[int]) -> float:
    """Gives the share of frames that are padding, between 0 and 1."""
    padded = sum(bucket.num_frames * len(bucket.members) for bucket in buckets)
    return 1.0 - sum(lengths) / padded


def make_batch(
    bucket: int, num_frames: int, indices: np.ndarray, features: Sequence[np.ndarray]
) -> Batch:
    """Puts features, each [T_i, D] float32 with T_i <= `num_frames`, into one padded batch."""
    chosen = [features[index] for index in indices]
    padded = np.zeros((len(chosen), num_frames, chosen[0].shape[1]), np.float32)
    for row, each in zip(padded, chosen, strict=True):
        row[: len(each)] = each
    return Batch(bucket, indices, padded, np.array([len(each) for each in chosen], np.int32))


def batch_stream(
    buckets: Sequence[Bucket],
    features: Sequence[np.ndarray],
    *,
    batch_size: int,
    seed: int,
    warm_up: int = 0,
) -> Iterator[Batch]:
    """Yields batches for ever, each epoch in another order and with other neighbours.

    Args:
        buckets: from `make_buckets`.
        features: of each utterance, [T_i, D] float32.
        batch_size: members of each batch; the rest of a bucket waits for the next epoch.
        seed: of the order; the same seed gives the same batches.
        warm_up: so many batches come from the shortest buckets first, and a bucket more joins
            them after every equal part of the warm-up.  Short strings are far easier to align.
    """
    rng = np.random.default_rng([seed, 7])
    made = 0
    while True:
        epoch = []
        for index, bucket in enumerate(buckets):
            order = rng.permutation(bucket.members)
            if len(order) < batch_size:
                order = np.resize(order, batch_size)
            full = len(order) // batch_size
            epoch += [(index, part) for part in order[: full * batch_size].reshape(full, -1)]
        for position in rng.permutation(len(epoch)):
            index, members = epoch[position]
            if made < warm_up and index > made * len(buckets) // warm_up:
                continue
            made += 1
            yield make_batch(index, buckets[index].num_frames, members, features)


def spec_augment(
    rng: np.random.Generator,
    features: np.ndarray,
    lengths: np.ndarray,
    *,
    masks: int = 2,
    max_bins: int = 9,
    max_frames: int = 7,
) -> np.ndarray:
    """Sets random bands of bins and stretches of frames to zero, the mean of the features.

    After Park et al., "SpecAugment", Interspeech 2019, without the time warping.

    Args:
        rng: of the random choice.
        features: [B, T, D] float32, each sequence with mean zero.
        lengths: [B] int32, valid frames.
        masks: bands, and stretches, per sequence.
        max_bins: most bins in a band.
        max_frames: most frames in a stretch.

    Returns:
        [B, T, D] float32, a copy.
    """
    batch, length, bins = features.shape
    result = features.copy()
    for _ in range(masks):
        for axis, size, widest in ((2, bins, max_bins), (1, length, max_frames)):
            extent = np.full(batch, bins) if axis == 2 else lengths
            begin = (rng.uniform(size=batch) * extent).astype(np.int64)[:, None]
            end = begin + rng.integers(0, widest + 1, (batch, 1))
            place = np.arange(size)[None, :]
            masked = (place >= begin) & (place < end)
            result[masked[:, None, :].repeat(length, 1) if axis == 2 else masked] = 0.0
    return result
