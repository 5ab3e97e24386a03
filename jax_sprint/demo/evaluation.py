"""Error rates on held-out recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint import Automata, SprintInstancePool, viterbi
from jax_sprint.demo.batches import make_batch
from jax_sprint.demo.corpus import Corpus
from jax_sprint.demo.dataset import Part
from jax_sprint.demo.decoding import WordLoop, collapse, greedy_labels
from jax_sprint.demo.model import AcousticModel, frame_log_posteriors, output_lengths
from jax_sprint.demo.progress import shown
from jax_sprint.demo.routes import FsaRoute

__all__ = ["Evaluator", "Scores", "error_rate"]

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Scores:
    """How well a model does.

    Attributes:
        wer: word error rate in percent, of Viterbi decoding over the lexicon.
        ler: label error rate in percent, of greedy decoding, against the pronunciations that fit
            the recordings best.
        num_words: number of reference words.
        num_labels: number of reference labels.
        wer_of_speaker: word error rate of each speaker in percent.
    """

    wer: float
    ler: float
    num_words: int
    num_labels: int
    wer_of_speaker: dict[str, float]


def error_rate(references: Sequence[Sequence[Any]], hypotheses: Sequence[Sequence[Any]]) -> float:
    """Gives substitutions, deletions and insertions in percent of the reference.

    Args:
        references: token sequences, none of them empty.
        hypotheses: as many, maybe empty.
    """
    import jiwer

    def lines(sequences):
        return [" ".join(map(str, sequence)) for sequence in sequences]

    return 100.0 * float(jiwer.wer(lines(references), lines(hypotheses)))


class Evaluator:
    """Scores models on one held-out part.

    Args:
        model: whose parameters will be given.
        corpus: for the lexicon.
        part: the held-out part.
        pool: Sprint, which knows the pronunciations of each segment.
    """

    def __init__(
        self, model: AcousticModel, corpus: Corpus, part: Part, pool: SprintInstancePool
    ) -> None:
        self._part = part
        self._buckets = part.evaluation_buckets()
        self._automata = FsaRoute(pool, part, self._buckets)
        self._loop = WordLoop(corpus.lexicon, part.labels)

        self.log_posteriors = jax.jit(partial(frame_log_posteriors, model, train=False))

    def __call__(self, parameters: Any, *, progress: bool = False) -> Scores:
        """Decodes the whole part.

        Args:
            parameters: of the model.
            progress: whether to show it, on standard error.
        """
        number = len(self._part.utterances)
        words: list[list[str]] = [[] for _ in range(number)]
        labels: list[list[int]] = [[] for _ in range(number)]
        reference_labels: list[list[int]] = [[] for _ in range(number)]
        batches = self._part.batches(self._buckets, _BATCH_SIZE)
        supervised = self._automata.supervise(batch for batch, _ in batches)
        pairs = shown(
            zip(batches, supervised, strict=True),
            "decoding",
            total=len(batches),
            unit="batches",
            enabled=progress,
        )
        for (batch, rows), (_, automata) in pairs:
            posteriors = self.log_posteriors(parameters, batch.features, batch.lengths)
            lengths = output_lengths(batch.lengths)
            members = batch.indices[:rows].tolist()
            steps = jnp.asarray(lengths)
            alignment = np.asarray(_align(posteriors, steps, automata)[0])
            said = self._loop.decode(posteriors, steps)
            greedy = greedy_labels(posteriors, steps)
            for row, member in enumerate(members):
                words[member] = said[row]
                labels[member] = greedy[row]
                reference_labels[member] = collapse(alignment[: lengths[row], row])
        references = [list(utterance.words) for utterance in self._part.utterances]
        speakers = np.array([utterance.speaker for utterance in self._part.utterances])
        of_speaker = {}
        for speaker in sorted(set(speakers.tolist())):
            own = np.flatnonzero(speakers == speaker).tolist()
            of_speaker[speaker] = error_rate(
                [references[index] for index in own], [words[index] for index in own]
            )
        # A segment too short for its words has no alignment, and so no reference labels.
        aligned = [index for index in range(number) if reference_labels[index]]
        return Scores(
            wer=error_rate(references, words),
            ler=error_rate(
                [reference_labels[index] for index in aligned],
                [labels[index] for index in aligned],
            ),
            num_words=sum(map(len, references)),
            num_labels=sum(map(len, reference_labels)),
            wer_of_speaker=of_speaker,
        )

    def align(self, parameters: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Aligns one segment with its words.

        Args:
            parameters: of the model.
            index: of the segment in the part.

        Returns:
            Posteriors [T, L] and the label of each frame [T] on the best path.
        """
        bucket = next(i for i, each in enumerate(self._buckets) if index in each.members)
        single = make_batch(
            bucket, self._buckets[bucket].num_frames, np.array([index]), self._part.features
        )
        ((batch, automata),) = self._automata.supervise([single])
        posteriors = self.log_posteriors(parameters, batch.features, batch.lengths)
        steps = output_lengths(batch.lengths)
        alignment = _align(posteriors, jnp.asarray(steps), automata)[0]
        frames = int(steps[0])
        return np.exp(np.asarray(posteriors)[:frames, 0]), np.asarray(alignment)[:frames, 0]


@jax.jit
def _align(log_posteriors: jax.Array, seq_lengths: jax.Array, automata: Automata) -> Any:
    return viterbi(log_posteriors, seq_lengths, automata)
