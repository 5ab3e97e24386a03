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
from jax_sprint.kernels import _platform
from jax_sprint.kernels._closing import varying_zero
from jax_sprint.kernels._graph import at_frame, at_index, flat_shape, predecessors
from jax_sprint.kernels._inputs import at_least_one_frame, check, prepare
from jax_sprint.kernels._scores import Problem, clean, last_label, node_scores
from jax_sprint.kernels._shared import prepare_shared
from jax_sprint.kernels._shared_viterbi import shared_viterbi

__all__ = ["viterbi"]

Array = Any
_Best = tuple[Array, ...]  # [B, N]: the two parts of the score, and the edge that entered


def _add(high: Array, low: Array, score: Array) -> tuple[Array, Array]:
    """(high + low) + score; `high` may be -inf."""
    whole = high + score
    part = whole - high
    error = (high - (whole - part)) + (score - part)
    error = jnp.where(whole == -jnp.inf, 0.0, error) + low
    top = whole + error
    return top, jnp.where(top == -jnp.inf, 0.0, error - (top - whole))


def _best_first(
    high: Array, low: Array, edge: Array, came: Array, source: Array
) -> tuple[Array, Array, Array, Array]:
    """The largest of the scores [B, K, N] over K: its two parts, its edge and its source.

    Of equal ones that with the first edge, and of those that leave one state by one edge the one
    whose source was entered (`came`) by the first edge.  Reductions, not a chain of comparisons:
    some versions of XLA fuse such a chain into one kernel in which the work doubles with every
    link.
    """
    most = jnp.iinfo(jnp.int32).max
    top = jnp.max(high, axis=1, keepdims=True)
    low = jnp.where(high == top, low, -jnp.inf)
    top_low = jnp.max(low, axis=1, keepdims=True)
    # Where `high` is smaller `low` is -inf by now, and `top_low` is not: the top's is finite.
    best = low == top_low
    for key in (edge, came):
        key = jnp.where(best, key, most)
        best = best & (key == jnp.min(key, axis=1, keepdims=True))
    edge = jnp.min(jnp.where(best, edge, most), axis=1)
    return top[:, 0], top_low[:, 0], edge, jnp.min(jnp.where(best, source, most), axis=1)


def _solve(time_axis: int, log_posteriors: Array, problem: Problem) -> tuple[Array, Array]:
    graph, layout, real = problem.graph, problem.layout, problem.real
    scores = node_scores(time_axis, log_posteriors, problem)
    links, bad = clean(problem.links)
    bad = bad | scores.bad | problem.broken
    slots, nodes = graph.in_arc.shape[1:]
    weights = at_index(links.arcs, graph.in_arc)
    zero = varying_zero(scores.node[0], links, real)
    node = lax.broadcasted_iota(jnp.int32, (1, nodes), 1)
    source = graph.in_node
    if source is None:
        source = jnp.maximum(node - lax.broadcasted_iota(jnp.int32, (slots, 1), 0), 0)[None]
    source = jnp.broadcast_to(source, graph.in_arc.shape)

    def enter(best: _Best) -> tuple[Array, Array, Array, Array]:
        before, error, came = (
            jnp.stack([predecessors(part, graph, slot, absent) for slot in range(slots)], axis=1)
            for part, absent in zip(best, (-jnp.inf, 0.0, -1), strict=True)
        )
        return _best_first(*_add(before, error, weights), graph.in_arc, came, source)

    def step(best: _Best, frame: tuple[Array, Array]) -> tuple[_Best, Array]:
        counts, emission = frame
        high, low, edge, previous = enter(best)
        found = (*_add(high, low, emission), edge)
        counts = counts[:, None]
        best = tuple(jnp.where(counts, new, old) for new, old in zip(found, best, strict=True))
        return best, jnp.clip(previous, 0, nodes - 1)

    frame = lax.broadcasted_iota(jnp.int32, real.shape, 0)
    last = jnp.max(jnp.where(real, frame, -1), axis=0)
    inner = real & (frame < last[None])
    nowhere = jnp.where(zero == 0, -1, 0)
    start = zero + at_index(links.starts, graph.start), zero, nowhere
    end = at_index(links.ends, graph.end)
    best: _Best
    back: Array
    best, back = lax.scan(step, start, (inner, scores.node), unroll=_platform.unroll(2))

    # All ways to take the last frame, by the edge: into nodes, and into what nothing leaves.
    high, low, edge, previous = enter(best)
    high, low = _add(*_add(high, low, at_frame(scores.node, last)), end)
    # One edge enters one node: what it came from is settled.
    one = [high, low, edge, jnp.zeros_like(edge), previous, layout.label]
    ways = [[part[:, None] for part in one]]
    if graph.last is not None:
        arc = graph.last.arc
        score = at_index(links.arcs, arc)
        into = at_index(links.ends, jnp.where(arc >= 0, graph.last.end, -1))
        high, low, came = (jnp.broadcast_to(part[:, None], arc.shape) for part in best)
        high, low = _add(*_add(high, low, score), into)
        high, low = _add(high, low, scores.last)
        here = jnp.broadcast_to(node[None], arc.shape)
        ways.append([high, low, arc, came, here, last_label(problem)])
    high, low, edge, came, previous, label = (
        jnp.concatenate([way[part].reshape(flat_shape(way[part])) for way in ways], axis=1)[
            ..., None
        ]
        for part in range(6)
    )
    top, error, chosen, at = (part[:, 0] for part in _best_first(high, low, edge, came, previous))
    at = jnp.clip(at, 0, nodes - 1)
    # All arcs of an edge have its label.
    final_label = jnp.max(jnp.where(edge[..., 0] == chosen[:, None], label[..., 0], -1), axis=1)
    empty = jnp.max(start[0] + end, axis=1)
    score = jnp.where(last >= 0, top + jnp.where(top == -jnp.inf, 0.0, error), empty)

    def trace(at: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        counts, before = frame
        previous = jnp.take_along_axis(before, at[:, None], axis=1, mode="clip")[:, 0]
        return jnp.where(counts, previous, at), at

    _, path = lax.scan(trace, at, (inner, back), reverse=True, unroll=_platform.unroll(16))
    label = jnp.take_along_axis(layout.label[None], path[:, :, None], axis=2, mode="clip")[..., 0]
    label = jnp.where(frame == last[None], final_label[None], label)
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
    arguments = (
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
    log_posteriors = at_least_one_frame(log_posteriors, time_axis)
    if automata.sliced is not None:
        alignment, score = shared_viterbi(time_axis, log_posteriors, prepare_shared(*arguments))
    else:
        alignment, score = _solve(time_axis, log_posteriors, prepare(*arguments))
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
