"""Learns time distortion penalties (TDPs) from data, by the class of each arc.

    python examples/learn_tdps.py

Usually loop, forward, skip and exit penalties are set by hand.  Here they are the parameters: each
arc of the HMM has a class (speech or silence; loop, forward, skip or exit), the vector `penalties`
has one entry per class, and

    automata.with_weights(penalties[arc_classes])

makes the arc weights of every automaton, through which `full_sum_loss` is differentiable.

The data are synthetic: utterances of known words are drawn from an HMM with known transition
probabilities, and a frame is a vector with a bump at its state's label under Gaussian noise.  By
gradient descent on the likelihood alone, without any alignment, the penalties come to those that
the data were drawn with.

As a model of durations the penalties must not shrink at will, or the loss would fall for ever.  So
they are made from probabilities: in speech loop, forward and skip sum to 1 and a word is left
whenever its last state is not repeated; the same for silence.  A skip cannot start in the last but
one state of a word, so that the paths through a word have a little less than probability 1
together; `log_mass` is the log of that sum, and adding it to the loss corrects for it exactly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_sprint import full_sum_loss, topologies
from jax_sprint.topologies import ArcClass

SILENCE = 0
STATES_PER_WORD = 4
NUM_WORDS = 6
NUM_LABELS = 1 + NUM_WORDS * STATES_PER_WORD
SPEECH = np.array([0.55, 0.3, 0.15])  # loop, forward, skip
SILENCE_LOOP = 0.8
SHARPNESS = 2.5  # of the frames: distance of the bump from 0, in standard deviations of the noise
LEARNT = (
    ArcClass.SPEECH_LOOP,
    ArcClass.SPEECH_FORWARD,
    ArcClass.SPEECH_SKIP,
    ArcClass.SPEECH_EXIT,
    ArcClass.SILENCE_LOOP,
    ArcClass.SILENCE_EXIT,
)


def penalties_of(speech_logits: jax.Array, silence_logit: jax.Array) -> jax.Array:
    """The penalties that belong to the parameters.

    Args:
        speech_logits: [3] float32, of loop, forward, skip.
        silence_logit: [] float32, of repeating silence.

    Returns:
        [8] float32, costs in nats, in the order of `ArcClass`; silence has one state here, so that
        its forward and skip belong to no arc.
    """
    loop, forward, skip = -jax.nn.log_softmax(speech_logits)
    leave = -jnp.logaddexp(-forward, -skip)
    unused = jnp.zeros_like(loop)
    silence_loop = -jax.nn.log_sigmoid(silence_logit)
    silence_leave = -jax.nn.log_sigmoid(-silence_logit)
    return jnp.stack([loop, forward, skip, leave, silence_loop, unused, unused, silence_leave])


def log_mass(penalties: jax.Array) -> jax.Array:
    """Log of the total probability of all paths of all lengths through one word."""
    probability = jnp.exp(-penalties)
    go_on = 1.0 - probability[ArcClass.SPEECH_LOOP]
    ahead = [probability[ArcClass.SPEECH_EXIT] / go_on]  # from the last state, the one before, ...
    ahead.append(ahead[0] * probability[ArcClass.SPEECH_FORWARD] / go_on)
    for _ in range(STATES_PER_WORD - 2):
        step = probability[ArcClass.SPEECH_FORWARD] * ahead[-1]
        jump = probability[ArcClass.SPEECH_SKIP] * ahead[-2]
        ahead.append((step + jump) / go_on)
    return jnp.log(ahead[-1])


def draw_word(rng: np.random.Generator, word: int) -> list[int]:
    """One walk through a word's states, given that it does not get lost in a skip past the end."""
    loop, forward, skip = SPEECH
    ahead = [1.0, forward / (1 - loop)]
    for _ in range(STATES_PER_WORD - 2):
        ahead.append((forward * ahead[-1] + skip * ahead[-2]) / (1 - loop))
    frames, left = [], STATES_PER_WORD - 1
    while left >= 0:
        frames.append(1 + word * STATES_PER_WORD + STATES_PER_WORD - 1 - left)
        if left == 0:
            choices = np.array([loop, 1 - loop, 0.0])
        else:
            jump = skip * ahead[left - 2] if left >= 2 else 0.0
            choices = np.array([loop * ahead[left], forward * ahead[left - 1], jump])
        left -= int(rng.choice(3, p=choices / choices.sum()))
    return frames


def draw_corpus(
    rng: np.random.Generator, num_utterances: int
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Frames and transcriptions.

    Returns:
        log-posteriors [T, B, L] float32, lengths [B] int32, and the words of each utterance.
    """
    transcriptions, paths = [], []
    for _ in range(num_utterances):
        words = rng.integers(0, NUM_WORDS, size=int(rng.integers(2, 6))).tolist()
        path: list[int] = []
        for unit in [None, *(x for word in words for x in (word, None))]:
            if unit is not None:
                path += draw_word(rng, unit)
            elif rng.random() < 0.5:
                path += [SILENCE] * int(rng.geometric(1 - SILENCE_LOOP))
        transcriptions.append(words)
        paths.append(path)
    lengths = np.array([len(path) for path in paths], np.int32)
    frames = rng.normal(size=(int(lengths.max()), num_utterances, NUM_LABELS))
    for b, path in enumerate(paths):
        frames[np.arange(len(path)), b, path] += SHARPNESS
    # Of equal priors and unit variances these are the scores, up to what all labels share.
    log_posteriors = jax.nn.log_softmax(jnp.asarray(SHARPNESS * frames, jnp.float32), axis=-1)
    return np.asarray(log_posteriors), lengths, transcriptions


def learn(*, num_utterances: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, list]:
    """Learns the penalties.

    Args:
        num_utterances: size of the corpus; each step sees all of it.
        steps: number of gradient steps.
        seed: of the data.

    Returns:
        The learned penalties [8], those that the data were drawn with [8] (nats), and the mean
        loss per frame before each step.
    """
    log_posteriors, lengths, transcriptions = draw_corpus(
        np.random.default_rng(seed), num_utterances
    )
    automata, arc_classes = topologies.hmm(
        [
            [[1 + word * STATES_PER_WORD + s for s in range(STATES_PER_WORD)] for word in words]
            for words in transcriptions
        ],
        skip=0.0,  # any finite cost: the arcs must exist, their weights are set below
        silence=SILENCE,
        num_labels=NUM_LABELS,
        return_arc_classes=True,
    )
    num_words = sum(len(words) for words in transcriptions)

    def loss_fn(parameters, log_posteriors, lengths, automata, arc_classes):
        penalties = penalties_of(*parameters)
        losses = full_sum_loss(
            log_posteriors, lengths, automata.with_weights(penalties[arc_classes])
        )
        mass = jnp.float32(num_words) * log_mass(penalties)
        return (jnp.sum(losses) + mass) / jnp.sum(lengths).astype(jnp.float32)

    parameters = (jnp.zeros(3), jnp.zeros(()))
    optimizer = optax.adam(0.1)
    state = optimizer.init(parameters)

    @jax.jit
    def step(parameters, state, *data):
        loss, gradient = jax.value_and_grad(loss_fn)(parameters, *data)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, loss

    data = jax.device_put((log_posteriors, lengths, automata, arc_classes))
    history = []
    for _ in range(steps):
        parameters, state, loss = step(parameters, state, *data)
        history.append(float(loss))
    truth = penalties_of(
        jnp.log(jnp.asarray(SPEECH, jnp.float32)),
        jnp.log(jnp.float32(SILENCE_LOOP) / jnp.float32(1 - SILENCE_LOOP)),
    )
    return np.asarray(penalties_of(*parameters)), np.asarray(truth), history


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    learned, truth, history = learn(
        num_utterances=options.utterances, steps=options.steps, seed=options.seed
    )
    start = np.asarray(penalties_of(jnp.zeros(3), jnp.zeros(())))
    print(f"loss per frame: {history[0]:.4f} -> {history[-1]:.4f} in {options.steps} steps")
    print(f"{'penalty':<16}{'at first':>10}{'learned':>10}{'drawn with':>12}")
    for kind in LEARNT:
        name = kind.name.lower().replace("_", " ")
        print(f"{name:<16}{start[kind]:>10.3f}{learned[kind]:>10.3f}{truth[kind]:>12.3f}")


if __name__ == "__main__":
    main()
