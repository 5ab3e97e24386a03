"""Arrays of a batch: checked before anything is sent, joined when everything is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_sprint.bridge.replies import is_float
from jax_sprint.bridge.tags import decode_tags

__all__ = ["check_batch", "join_automata"]

Automaton = tuple[int, int, np.ndarray, np.ndarray]


def check_batch(
    log_posteriors: Any, seq_lengths: Any, tags: Any
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Checks a batch of posteriors.

    Args:
        log_posteriors: [T, B, L] floating point.
        seq_lengths: [B] integer, each from 0 to T.
        tags: B segment names; empty ones only where the length is 0.

    Returns:
        log_posteriors [T, B, L] as a numpy array of any floating point type, seq_lengths [B] int64,
        and the names.

    Raises:
        ValueError: naming the argument, what it is, and what it should be.
    """
    log_posteriors = np.asarray(log_posteriors)
    if log_posteriors.ndim != 3:
        raise ValueError(
            f"log_posteriors must be [T, B, L], got shape {log_posteriors.shape}; a single segment "
            "needs a batch axis of one"
        )
    if not is_float(log_posteriors.dtype):
        raise ValueError(
            f"log_posteriors must be floating point, got {log_posteriors.dtype}; pass natural-log "
            "probabilities as float32"
        )
    steps, batch, labels = log_posteriors.shape
    lengths = np.asarray(seq_lengths)
    if lengths.ndim != 1 or (lengths.dtype.kind not in "iu" and lengths.size):
        raise ValueError(f"seq_lengths must be [B] integer, got {lengths.dtype} {lengths.shape}")
    if len(lengths) != batch:
        raise ValueError(
            f"seq_lengths has {len(lengths)} entries, but log_posteriors [T, B, L] = "
            f"{log_posteriors.shape} has a batch of {batch}; is the batch axis the second?"
        )
    wrong = np.flatnonzero((lengths < 0) | (lengths > steps))
    if wrong.size:
        b = int(wrong[0])
        raise ValueError(
            f"seq_lengths[{b}] = {lengths[b]} is not within 0 to T = {steps} of log_posteriors "
            f"{log_posteriors.shape}; it must count the frames that are not padding"
        )
    names = decode_tags(tags)
    if len(names) != batch:
        raise ValueError(
            f"tags names {len(names)} segments, but log_posteriors [T, B, L] = "
            f"{log_posteriors.shape} has a batch of {batch}"
        )
    for b, name in enumerate(names):
        if not name and lengths[b] > 0:
            raise ValueError(
                f"tags[{b}] is empty, but seq_lengths[{b}] = {lengths[b]}; give the segment's full "
                "name, or length 0 to fill up a batch"
            )
    if not labels and lengths.size and lengths.max() > 0:
        raise ValueError(f"log_posteriors {log_posteriors.shape} has no labels")
    return log_posteriors, lengths.astype(np.int64), names


def join_automata(
    automata: Sequence[Automaton],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers the states of several automata through, as RETURNN's pool does.

    Args:
        automata: per sequence (num_states, num_edges, edges [3, E_b] uint32, weights [E_b]).

    Returns:
        edges [4, E] uint32: from, to, emission index, sequence; weights [E] float32;
        start_end_states [2, B] uint32.  E is the sum of all E_b; edges keep their order.
    """
    num_states = np.array([automaton[0] for automaton in automata], np.int64)
    num_edges = np.array([automaton[1] for automaton in automata], np.int64)
    starts = np.cumsum(num_states) - num_states
    edges = np.empty((4, int(num_edges.sum())), np.uint32)
    weights = np.empty(edges.shape[1], np.float32)
    first = 0
    for b, (_, count, own_edges, own_weights) in enumerate(automata):
        part = slice(first, first + count)
        edges[:2, part] = own_edges[:2] + np.uint32(starts[b])
        edges[2, part] = own_edges[2]
        edges[3, part] = b
        weights[part] = own_weights
        first += count
    ends = starts + num_states - 1
    return edges, weights, np.stack([starts, ends]).astype(np.uint32)
