"""`viterbi`: the best path.

Scores are kept as unevaluated sums of two floats (Knuth's TwoSum), so that two paths which differ
in the last digit of a frame are told apart after any number of frames, and a tie is a tie.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.automata import Automata
from jax_sprint.kernels._inputs import Problem, at_least_one_frame, check, prepare
from jax_sprint.kernels._partition import clean_arcs, node_scores
from jax_sprint.kernels._recursion import arc_scores, predecessors, zero_like

__all__ = ["viterbi"]

Array = Any


def _add(high: Array, low: Array, score: Array) -> tuple[Array, Array]:
    """(high + low) + score; `high` may be -inf."""
    whole = high + score
    part = whole - high
    error = (high - (whole - part)) + (score - part)
    error = jnp.where(whole == -jnp.inf, 0.0, error) + low
    top = whole + error
    return top, jnp.where(top == -jnp.inf, 0.0, error - (top - whole))


def _best_first(high: Array, low: Array, key: Array) -> tuple[Array, Array, Array]:
    """The largest of the scores [B, K, N] over K; of equal ones that with the smallest key.

    Reductions, not a chain of comparisons: some versions of XLA fuse such a chain into one kernel
    in which the work doubles with every link.
    """
    top = jnp.max(high, axis=1, keepdims=True)
    low = jnp.where(high == top, low, -jnp.inf)
    top_low = jnp.max(low, axis=1, keepdims=True)
    # Where `high` is smaller `low` is -inf by now, and `top_low` is not: the top's is finite.
    key = jnp.where(low == top_low, key, jnp.iinfo(key.dtype).max)
    return top[:, 0], top_low[:, 0], jnp.min(key, axis=1)


def _solve(time_axis: int, log_posteriors: Array, problem: Problem) -> tuple[Array, Array]:
    graph, layout, real = problem.graph, problem.layout, problem.real
    scores, _, bad = node_scores(
        log_posteriors, problem.am_scale, problem.bias, None, layout, real, time_axis
    )
    arcs, bad_arcs = clean_arcs(problem.arcs)
    bad = bad | bad_arcs | problem.broken
    slots, nodes = graph.in_arc.shape[1:]
    weights = arc_scores(arcs, graph.in_arc)
    zero = zero_like(scores, arcs, real)
    node = lax.broadcasted_iota(jnp.int32, (1, nodes), 1)
    source = graph.in_node
    if source is None:
        source = jnp.maximum(node - lax.broadcasted_iota(jnp.int32, (slots, 1), 0), 0)[None]
    # Ties go to the edge that comes first in the edge list, then to the first node.
    keys = graph.in_arc * nodes + jnp.broadcast_to(source, graph.in_arc.shape)

    def step(best: tuple[Array, Array], frame: tuple[Array, Array]) -> tuple:
        counts, emission = frame
        before, error = (
            jnp.stack([predecessors(part, graph, slot, absent) for slot in range(slots)], axis=1)
            for part, absent in zip(best, (-jnp.inf, 0.0), strict=True)
        )
        high, low, key = _best_first(*_add(before, error, weights), keys)
        high, low = _add(high, low, emission)
        counts = counts[:, None]
        best = jnp.where(counts, high, best[0]), jnp.where(counts, low, best[1])
        return best, jnp.maximum(key, 0) % nodes

    start = jnp.where(node == 0, zero, -jnp.inf), zero
    best: tuple[Array, Array]
    back: Array
    best, back = lax.scan(step, start, (real, scores))
    high, low = best

    high = jnp.where(graph.final, high, -jnp.inf)
    top = jnp.max(high, axis=1, keepdims=True)
    low = jnp.where(high == top, low, -jnp.inf)
    end = jnp.argmax(low, axis=1).astype(jnp.int32)
    score = top[:, 0] + jnp.where(top[:, 0] == -jnp.inf, 0.0, jnp.max(low, axis=1))

    def trace(at: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        counts, before = frame
        previous = jnp.take_along_axis(before, at[:, None], axis=1, mode="clip")[:, 0]
        return jnp.where(counts, previous, at), at

    _, path = lax.scan(trace, end, (real, back), reverse=True)
    label = jnp.take_along_axis(layout.label[None], path[:, :, None], axis=2, mode="clip")[..., 0]
    shown = real & ((score > -jnp.inf) & ~bad)[None]
    return jnp.where(shown, label, -1), jnp.where(bad, jnp.nan, score)


@partial(jax.jit, static_argnames="time_major")
def _run(
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    am_scale: Array,
    tdp_scale: Array,
    log_prior: Array | None,
    prior_scale: Array,
    *,
    time_major: bool,
) -> tuple[Array, Array]:
    time_axis = 0 if time_major else 1
    num_frames = log_posteriors.shape[time_axis]
    dtype = jnp.float64 if log_posteriors.dtype == jnp.float64 else jnp.float32
    problem = prepare(
        num_frames,
        log_posteriors.shape[2],
        dtype,
        seq_lengths,
        automata,
        am_scale,
        tdp_scale,
        log_prior,
        prior_scale,
    )
    alignment, score = _solve(time_axis, at_least_one_frame(log_posteriors, time_axis), problem)
    alignment = alignment[:num_frames]
    return (alignment if time_major else alignment.T), score


def viterbi(
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    *,
    am_scale: float | Array = 1.0,
    tdp_scale: float | Array = 1.0,
    log_prior: Array | None = None,
    prior_scale: float | Array = 0.0,
    return_valid: bool = False,
    time_major: bool = True,
) -> tuple[Array, Array] | tuple[Array, Array, Array]:
    """The best path of each sequence's automaton.

    Arguments and errors are those of `jax_sprint.full_sum_loss`, as is the score of a path.  The
    result is a constant to differentiation.

    Returns:
        Alignment [T, B] int32 (or [B, T] where `time_major` is False), the label of each frame, -1
        on padding and throughout invalid sequences; and score [B] in nats, float32, or float64 for
        float64 input: -inf where there is no path, NaN as `full_sum_loss` has it.  Among paths of
        equal score the choice is deterministic: seen from the end, the edge that comes first in
        the edge list wins.  With `return_valid` also valid [B] bool.
    """
    check(log_posteriors, seq_lengths, automata, log_prior, time_major)
    alignment, score = _run(
        lax.stop_gradient(jnp.asarray(log_posteriors)),
        jnp.asarray(seq_lengths),
        lax.stop_gradient(automata),
        lax.stop_gradient(am_scale),
        lax.stop_gradient(tdp_scale),
        lax.stop_gradient(log_prior),
        lax.stop_gradient(0.0 if log_prior is None else prior_scale),
        time_major=time_major,
    )
    return (alignment, score, jnp.isfinite(score)) if return_valid else (alignment, score)
