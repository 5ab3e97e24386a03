"""Batches of utterances of similar length, in a handful of shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "FRAME_WORTH",
    "Batch",
    "Bucket",
    "batch_stream",
    "make_batch",
    "make_buckets",
    "spec_augment",
]

FRAME_WORTH = 50
"""How many nodes of an automaton cost as much, in a frame, as the model does.

About 700 on two cores of a CPU.  On an accelerator the recursions over the automata weigh more than
the model; this keeps the padding of both small.
"""


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
    lengths: Sequence[int],
    *,
    num_buckets: int,
    multiple: int,
    batch_size: int = 1,
    sizes: Sequence[int] | None = None,
) -> list[Bucket]:
    """Sorts utterances into buckets so that little work is done on padding.

    A frame costs as much as `FRAME_WORTH` plus the size of the automaton, both as padded.  Each
    bucket holds longer utterances and larger automata than the one before.  Among those, the bounds
    minimise the cost of all utterances exactly, by dynamic programming over the distinct lengths
    (rounded up to `multiple`) and sizes, or over quantiles where these are many.

    Args:
        lengths: frames of each utterance, all positive.
        num_buckets: at most how many buckets.
        multiple: padded lengths are multiples of it.
        batch_size: no bucket gets fewer members than that, if there are as many at all.
        sizes: of each utterance's automaton, not negative, or anything about proportional to it;
            None: all the same.

    Returns:
        The buckets, smallest first, each with at least one member.
    """
    frames = np.asarray(lengths, np.int64)
    if not len(frames):
        return []
    rounded = -(-frames // multiple) * multiple
    extents = np.zeros_like(frames) if sizes is None else np.asarray(sizes, np.int64)
    frame_levels, extent_levels = _levels(rounded, 64), _levels(extents, 64)
    steps = np.searchsorted(frame_levels, rounded)
    widths = np.searchsorted(extent_levels, extents)
    table = np.zeros((len(frame_levels), len(extent_levels)), np.int64)
    np.add.at(table, (steps, widths), 1)
    # Of every corner (bound of the lengths, bound of the sizes): how many lie within it.
    inside = table.cumsum(axis=0).cumsum(axis=1).ravel()
    work = (frame_levels[:, None] * (FRAME_WORTH + extent_levels[None, :])).ravel()
    corners = _best_corners(inside, work, table.shape, num_buckets, batch_size)
    which = np.full(len(frames), len(corners))
    for index in reversed(range(len(corners))):
        row, column = divmod(corners[index], len(extent_levels))
        which[(steps <= row) & (widths <= column)] = index
    return [
        Bucket(int(frame_levels[corner // len(extent_levels)]), np.flatnonzero(which == index))
        for index, corner in enumerate(corners)
    ]


def _levels(values: np.ndarray, most: int) -> np.ndarray:
    """The distinct values, or so many quantiles of all, the largest among them."""
    levels = np.unique(values)
    if len(levels) <= most:
        return levels
    return np.unique(np.quantile(values, np.linspace(0, 1, most), method="higher"))


def _best_corners(
    inside: np.ndarray, work: np.ndarray, shape: tuple[int, int], most: int, fewest_members: int
) -> list[int]:
    """Chooses bounds of buckets.

    Args:
        inside: [S] int64, members within each corner of a grid, row by row.
        work: [S] int64, cost of a member that is padded to that corner.
        shape: of the grid.
        most: number of corners at most.
        fewest_members: of each bucket, unless there is only one.

    Returns:
        Corners, each beyond the one before in both directions, up to the last one of the grid.
    """
    rows, columns = np.divmod(np.arange(len(inside)), shape[1])
    # Every corner with any members as the first one; then chains of one corner more at a time.
    cost = np.where(inside >= fewest_members, inside * work, np.inf)
    costs, origins = [cost], [np.full(len(inside), -1)]
    for _ in range(most - 1):
        longer, origin = np.full(len(inside), np.inf), np.full(len(inside), -1)
        for corner in range(len(inside)):
            before = np.flatnonzero(
                (rows <= rows[corner])
                & (columns <= columns[corner])
                & (inside + fewest_members <= inside[corner])
            )
            if len(before):
                chained = cost[before] + (inside[corner] - inside[before]) * work[corner]
                best = int(np.argmin(chained))
                longer[corner], origin[corner] = chained[best], before[best]
        cost = longer
        costs.append(cost)
        origins.append(origin)
    corner = len(inside) - 1
    used = int(np.argmin([each[corner] for each in costs]))
    chosen = [corner]
    for origin in reversed(origins[1 : used + 1]):
        chosen.append(int(origin[chosen[-1]]))
    return chosen[::-1]


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
