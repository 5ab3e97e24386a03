"""`sample_paths`: label alignments drawn from the distribution over paths."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.automata import Automata
from jax_sprint.kernels import _platform
from jax_sprint.kernels._closing import close
from jax_sprint.kernels._graph import at_frame, at_index, flat_shape
from jax_sprint.kernels._inputs import at_least_one_frame, check, prepare
from jax_sprint.kernels._recursion import alphas_of
from jax_sprint.kernels._scores import Problem, clean, last_label, node_scores
from jax_sprint.kernels._semirings import SCALED

__all__ = ["sample_paths"]

Array = Any


def _draw(key: Array, scores: Array) -> Array:
    """Indices [..., B] drawn with probabilities proportional to exp(scores [..., B, X])."""
    noise = jax.random.gumbel(key, scores.shape, scores.dtype)
    return jnp.argmax(scores + noise, axis=-1).astype(jnp.int32)


def _at(values: Array, index: Array) -> Array:
    """values [B, X] at index [S, B]: [S, B]."""
    batch = index.shape[1]
    rows = lax.broadcasted_iota(jnp.int32, (1, batch), 1)
    return values.at[rows, index].get(mode="promise_in_bounds")


def _solve(
    key: Array, num_samples: int, time_axis: int, log_posteriors: Array, problem: Problem
) -> Array:
    """Filtering forward, sampling backward (Carter and Kohn, Biometrika 81, 1994)."""
    graph, layout, real = problem.graph, problem.layout, problem.real
    scores = node_scores(time_axis, log_posteriors, problem)
    links, bad = clean(problem.links)
    bad = bad | scores.bad | problem.broken
    closing = close(SCALED, partial(at_frame, scores.node), scores.last, links, graph, real)
    alphas, alpha, final = alphas_of(SCALED, scores.node, links, graph, real, closing)
    before = jnp.concatenate([SCALED.log(closing.start)[None], SCALED.log(alphas)[:-1]])
    slots, nodes = graph.in_arc.shape[1:]
    batch = real.shape[1]
    weights = at_index(links.arcs, graph.in_arc)
    if graph.in_node is None:
        slot = lax.broadcasted_iota(jnp.int32, (1, slots, nodes), 1)
        source = jnp.maximum(lax.broadcasted_iota(jnp.int32, (1, slots, nodes), 2) - slot, 0)
        source = jnp.broadcast_to(source, graph.in_arc.shape)
    else:
        source = graph.in_node

    # How the path ends: in a node, or by an arc into a state that nothing leaves.
    ways = [SCALED.log(SCALED.times(final, closing.end))]
    labels = [layout.label]
    if closing.arcs is not None:
        taken = SCALED.times(tuple(part[:, None] for part in alpha), closing.arcs)
        taken = SCALED.log(SCALED.tidy(taken))
        ways.append(taken.reshape(flat_shape(taken)))
        label = last_label(problem)
        labels.append(label.reshape(flat_shape(label)))
    ending, label = jnp.concatenate(ways, axis=1), jnp.concatenate(labels, axis=1)
    feasible = (jnp.max(ending, axis=1) > -jnp.inf) & ~bad
    first, rest = jax.random.split(key)
    way = _draw(first, jnp.broadcast_to(ending, (num_samples, *ending.shape)))
    by_arc = way >= nodes
    at, final_label = way % nodes, _at(label, way)

    def step(carry: tuple[Array, Array], frame: tuple) -> tuple[tuple[Array, Array], Array]:
        at, key = carry
        counts, is_last, before = frame
        key, mine = jax.random.split(key)
        rows = lax.broadcasted_iota(jnp.int32, (1, batch), 1)
        sources = source.at[rows, :, at].get(mode="promise_in_bounds")
        weight = weights.at[rows, :, at].get(mode="promise_in_bounds")
        score = before.at[rows[:, :, None], sources].get(mode="promise_in_bounds") + weight
        slot = _draw(mine, score)
        previous = jnp.take_along_axis(sources, slot[:, :, None], axis=2)[..., 0]
        # An arc that ends the path names the node that it leaves.
        previous = jnp.where(is_last[None] & by_arc, at, previous)
        emitted = jnp.where(is_last[None], final_label, _at(layout.label, at))
        return (jnp.where(counts[None], previous, at), key), emitted

    frame = lax.broadcasted_iota(jnp.int32, real.shape, 0)
    frames = (real, frame == closing.last[None], before)
    _, path = lax.scan(step, (at, rest), frames, reverse=True, unroll=_platform.unroll(4))
    shown = real[:, None] & feasible[None, None]
    return jnp.swapaxes(jnp.where(shown, path, -1), 0, 1)


@partial(jax.jit, static_argnames=("num_samples", "time_major"))
def _run(
    key: Array,
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    am_scale: Array,
    tdp_scale: Array,
    log_prior: Array | None,
    prior_scale: Array,
    *,
    num_samples: int,
    time_major: bool,
) -> Array:
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
    log_posteriors = at_least_one_frame(log_posteriors, time_axis)
    paths = _solve(key, num_samples, time_axis, log_posteriors, problem)[:, :num_frames]
    return paths if time_major else jnp.swapaxes(paths, 1, 2)


def sample_paths(
    key: Array,
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    *,
    num_samples: int = 1,
    am_scale: float | Array = 1.0,
    tdp_scale: float | Array = 1.0,
    log_prior: Array | None = None,
    prior_scale: float | Array = 0.0,
    time_major: bool = True,
) -> Array:
    """Draws paths of each sequence's automaton, each with the probability that the model gives it.

    Other arguments and the errors are those of `jax_sprint.full_sum_loss`.  The result is a
    constant to differentiation.

    Args:
        key: a key of `jax.random`; the same key draws the same paths.
        num_samples: number P of paths per sequence, drawn independently; a Python int.

    Returns:
        Alignments [P, T, B] int32 (or [P, B, T] where `time_major` is False), the label of each
        frame, -1 on padding and throughout invalid sequences.

    Raises:
        ValueError: `num_samples` < 1 or no int, and what `full_sum_loss` raises.
    """
    if isinstance(num_samples, jax.core.Tracer) or int(num_samples) < 1:
        raise ValueError(f"num_samples must be a Python int of at least 1, got {num_samples}")
    check(log_posteriors, seq_lengths, automata, log_prior, time_major)
    return _run(
        key,
        lax.stop_gradient(jnp.asarray(log_posteriors)),
        jnp.asarray(seq_lengths),
        lax.stop_gradient(automata),
        lax.stop_gradient(am_scale),
        lax.stop_gradient(tdp_scale),
        lax.stop_gradient(log_prior),
        lax.stop_gradient(0.0 if log_prior is None else prior_scale),
        num_samples=int(num_samples),
        time_major=time_major,
    )
