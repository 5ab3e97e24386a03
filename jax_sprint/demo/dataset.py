"""A corpus made ready for the model: normalised features, segment names, batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jax_sprint.demo.batches import Batch, Bucket, make_batch, make_buckets
from jax_sprint.demo.corpus import Corpus, DemoError, Utterance
from jax_sprint.demo.features import Normaliser, common_rate, log_mel, resample
from jax_sprint.demo.model import SUBSAMPLING, output_lengths
from jax_sprint.demo.progress import shown

__all__ = ["Part", "prepare"]

_LENGTH_MULTIPLE = 2 * SUBSAMPLING
# Compiling for another shape takes as long as computing the padding of about so many segments.
_SEGMENTS_WORTH_A_SHAPE = 2000


@dataclass(frozen=True)
class Part:
    """The training or the held-out part of a corpus.

    Attributes:
        utterances: what is said in each segment, by whom.
        tags: full segment name of each.
        features: of each, [T_i, 40] float32, normalised.
        labels: the label set of the whole corpus; the blank is the first.
        sizes: of each, the labels in all pronunciations of its words, to which the size of its
            automaton is about proportional; known before Sprint is asked.
    """

    utterances: tuple[Utterance, ...]
    tags: tuple[str, ...]
    features: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def lengths(self) -> np.ndarray:
        """[M] int64, input frames of each segment."""
        return np.array([len(each) for each in self.features], np.int64)

    def joined(self, other: Part) -> Part:
        """Gives the segments of both parts; they must have the same labels."""
        return Part(
            self.utterances + other.utterances,
            self.tags + other.tags,
            self.features + other.features,
            self.labels,
            self.sizes + other.sizes,
        )

    def buckets(self, num_buckets: int, batch_size: int = 1) -> list[Bucket]:
        """Sorts the segments by size; see `jax_sprint.demo.batches.make_buckets`."""
        return make_buckets(
            self.lengths.tolist(),
            num_buckets=num_buckets,
            multiple=_LENGTH_MULTIPLE,
            batch_size=batch_size,
            sizes=self.sizes,
        )

    def evaluation_buckets(self) -> list[Bucket]:
        """Sorts the segments into as few shapes as pay, for computing all of them just once."""
        return self.buckets(1 + len(self.tags) // _SEGMENTS_WORTH_A_SHAPE)

    def batches(self, buckets: Sequence[Bucket], batch_size: int) -> list[tuple[Batch, int]]:
        """Puts every segment into a batch once, for evaluation.

        Returns:
            Pairs of a batch of exactly `batch_size` and how many of its rows count; the others
            repeat some of these.
        """
        result = []
        for index, bucket in enumerate(buckets):
            for begin in range(0, len(bucket.members), batch_size):
                members = bucket.members[begin : begin + batch_size]
                rows = np.resize(members, batch_size)
                batch = make_batch(index, bucket.num_frames, rows, self.features)
                result.append((batch, len(members)))
        return result


def prepare(corpus: Corpus, *, progress: bool = False) -> tuple[Part, Part]:
    """Computes features, all at the corpus's common sample rate.

    Args:
        corpus: a valid one.
        progress: whether to show it, on standard error.

    Returns:
        The training part and the held-out part.  Training segments too short for any
        pronunciation of their words are left out, held-out ones never are.

    Raises:
        DemoError: if no training segment is left.
    """
    rate = common_rate([utterance.rate for utterance in corpus.train + corpus.test])

    def features(utterance: Utterance) -> np.ndarray:
        return log_mel(resample(utterance.audio, utterance.rate, rate), rate)

    # The filter bank lets other threads run while it works.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        utterances = corpus.train + corpus.test
        every = list(
            shown(
                threads.map(features, utterances),
                "computing features",
                total=len(utterances),
                unit="segments",
                enabled=progress,
            )
        )
    number = len(corpus.train)
    raw, held_out = every[:number], every[number:]
    kept = [
        index
        for index, (utterance, frames) in enumerate(zip(corpus.train, raw, strict=True))
        if output_lengths(len(frames)) >= _fewest_frames(corpus, utterance)
    ]
    if not kept:
        raise DemoError(
            f"corpus {corpus.name!r}: every training segment is too short for its words at"
            f" {100 / SUBSAMPLING:.0f} frames per second"
        )
    train = [corpus.train[index] for index in kept]
    normalise = Normaliser.from_features([raw[index] for index in kept])
    labels = corpus.labels()
    return (
        Part(
            utterances=tuple(train),
            tags=tuple(map(corpus.tag, train)),
            features=tuple(normalise(raw[index]) for index in kept),
            labels=labels,
            sizes=tuple(_num_pronounced(corpus, utterance) for utterance in train),
        ),
        Part(
            utterances=corpus.test,
            tags=tuple(map(corpus.tag, corpus.test)),
            features=tuple(map(normalise, held_out)),
            labels=labels,
            sizes=tuple(_num_pronounced(corpus, utterance) for utterance in corpus.test),
        ),
    )


def _fewest_frames(corpus: Corpus, utterance: Utterance) -> int:
    """The number of labels in the shortest way to say it; equal neighbours are neglected."""
    return sum(
        min(len(variant.phones) for variant in corpus.lexicon[word]) for word in utterance.words
    )


def _num_pronounced(corpus: Corpus, utterance: Utterance) -> int:
    """The number of labels in all ways to say each of its words."""
    return sum(
        sum(len(variant.phones) for variant in corpus.lexicon[word]) for word in utterance.words
    )
