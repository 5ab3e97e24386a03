"""Trains a small model with the lattice-free MMI loss (Povey et al., Interspeech 2016).

    python examples/lf_mmi.py

The data are synthetic: phone strings are drawn from a bigram, each phone lasts a few frames, and a
frame is a noisy vector with a bump at its phone.  The model, one layer over a window of frames,
gives a score per label and frame.

The denominator is a phone bigram that was estimated on the training transcripts, composed with the
CTC topology: one automaton, which all sequences of all batches share.  The numerators are the
transcripts in the same topology.  No softmax is needed, as the loss normalises over whole
sequences: it is minus the log of the probability of the transcript among all phone strings, but for
the bigram's cost of the transcript, which no parameter changes.

Decoding takes the best path through the same denominator, by `viterbi`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint import Automata, lf_mmi_loss, topologies, viterbi

PHONES = 8
LABELS = PHONES + 1  # 0 is the blank
FRAMES = 48
WINDOW = 5
BATCH = 16
MOST = 8  # phones of a sequence


class Corpus(NamedTuple):
    """Frames [T, B, PHONES] float32, lengths [B], phones [B, MOST] and their number [B]."""

    frames: np.ndarray
    lengths: np.ndarray
    phones: np.ndarray
    counts: np.ndarray


def draw(rng: np.random.Generator, size: int, noise: float = 0.9) -> Corpus:
    """Draws sequences of 4 to 8 phones."""
    frames = noise * rng.normal(size=(FRAMES, size, PHONES))
    lengths = np.zeros(size, np.int32)
    phones, counts = np.zeros((size, MOST), np.int32), rng.integers(4, MOST + 1, size)
    for b in range(size):
        for i in range(counts[b]):
            # Two of three times the next phone, in a circle, else any.
            onward = phones[b, i - 1] % PHONES + 1
            phones[b, i] = onward if i and rng.random() < 0.67 else rng.integers(1, LABELS)
            duration = rng.integers(3, 7)
            frames[lengths[b] : lengths[b] + duration, b, phones[b, i] - 1] += 2.0
            lengths[b] += duration
    return Corpus(frames.astype(np.float32), lengths, phones, counts)


def scores_of(parameters: dict[str, jax.Array], frames: jax.Array) -> jax.Array:
    """Scores [T, B, LABELS] of the labels, not normalised."""
    reach = WINDOW // 2
    padded = jnp.pad(frames, ((reach, reach), (0, 0), (0, 0)))
    window = jnp.concatenate([padded[i : i + FRAMES] for i in range(WINDOW)], axis=2)
    return window @ parameters["weights"] + parameters["bias"][None, None]


def label_errors(
    parameters: dict[str, jax.Array], corpus: Corpus, denominator: Automata
) -> tuple[int, int]:
    """Edit operations between best paths and transcripts, and the number of phones."""
    alignment, _ = viterbi(scores_of(parameters, corpus.frames), corpus.lengths, denominator)
    errors = 0
    for b, frames in enumerate(np.asarray(alignment).T):
        frames = frames[: corpus.lengths[b]]
        new = np.flatnonzero(np.diff(frames, prepend=-1) != 0)
        found = [int(label) for label in frames[new] if label]
        errors += distance(found, corpus.phones[b, : corpus.counts[b]].tolist())
    return errors, int(corpus.counts.sum())


def distance(one: list[int], other: list[int]) -> int:
    """Levenshtein distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one):
        before, row = row, [i + 1]
        for j, b in enumerate(other):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (a != b)))
    return row[-1]


def train(steps: int, seed: int) -> tuple[float, float]:
    """Trains; returns the label error rates on held-out data before and after."""
    rng = np.random.default_rng(seed)
    batches, held_out = [draw(rng, BATCH) for _ in range(8)], draw(rng, 50)
    text = [row[:n] for batch in batches for row, n in zip(batch.phones, batch.counts, strict=True)]
    denominator = topologies.ngram(text, order=2, num_labels=LABELS, shared=True)
    numerators = [topologies.ctc(b.phones, b.counts, num_labels=LABELS) for b in batches]
    parameters = {
        "weights": jnp.zeros((WINDOW * PHONES, LABELS)),
        "bias": jnp.zeros(LABELS),
    }

    @jax.jit
    def step(parameters, momentum, frames, lengths, numerator, denominator):
        def objective(parameters):
            scores = scores_of(parameters, frames)
            loss, valid = lf_mmi_loss(scores, lengths, numerator, denominator, return_valid=True)
            return jnp.sum(jnp.where(valid, loss, 0.0)) / jnp.sum(lengths).astype(loss.dtype)

        loss, gradient = jax.value_and_grad(objective)(parameters)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        parameters = jax.tree.map(lambda p, m: p - 0.3 * m, parameters, momentum)
        return parameters, momentum, loss

    before = label_errors(parameters, held_out, denominator)
    momentum = jax.tree.map(jnp.zeros_like, parameters)
    for number in range(steps):
        batch, numerator = batches[number % len(batches)], numerators[number % len(batches)]
        parameters, momentum, loss = step(
            parameters, momentum, batch.frames, batch.lengths, numerator, denominator
        )
        if number % 20 == 0 or number == steps - 1:
            print(f"step {number:3d}: loss per frame {float(loss):7.4f}")
    after = label_errors(parameters, held_out, denominator)
    rates = [errors / phones for errors, phones in (before, after)]
    print(f"label errors on held-out data: {rates[0]:.1%} before, {rates[1]:.1%} after")
    return rates[0], rates[1]


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Command line; returns what `train` does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    return train(chosen.steps, chosen.seed)


if __name__ == "__main__":
    main()
