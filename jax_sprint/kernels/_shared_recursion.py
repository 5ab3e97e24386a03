"""Forward-backward over one automaton for all sequences of a batch, in any semiring.

With w(e) the weight of an edge e from p(e) to q(e), s_t(a) the score of label a in frame t, and
nodes v = (state, label) as in `jax_sprint.automata._sliced`,

    pre_t(v)   = sum over edges e into v of w(e) alpha_{t-1}(p(e))
    alpha_t(q) = sum over nodes v of q of s_t(v) pre_t(v)
    x_t(v)     = s_t(v) beta_t(q(v))
    beta_t(p)  = sum over edges e from p of w(e) x_{t+1}(q(e), a(e))

(L. R. Rabiner, A tutorial on hidden Markov models, 1989, III.A).  A sequence of n frames takes the
edges of the recursion in frames 0 to n - 2, and a closing edge, with the cost of its end state, in
frame n - 1:

    exit(p)    = sum over closing edges e from p of w(e) s_{n-1}(a(e))  = beta_{n-2}(p)
    whole      = sum over states p of alpha_{n-2}(p) exit(p)

A sequence without frames takes the paths without edges: states that are start and end.

Kept per frame are the alphas [S, B], nothing of the size of the arcs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.automata._sliced import Sliced
from jax_sprint.kernels._graph import gather
from jax_sprint.kernels._platform import if_any
from jax_sprint.kernels._semirings import Value
from jax_sprint.kernels._shared_sums import (
    LOGS,
    UNROLLED,
    Kind,
    collect,
    nothing,
    valued,
    weigh,
)

__all__ = [
    "Forward",
    "Scores",
    "Weighted",
    "blocks_of",
    "choose",
    "emission_if",
    "emission_scores",
    "empty_paths",
    "forward",
    "frame_at",
    "log_total",
    "part_of",
    "seeded",
    "sweep",
    "weighted",
]

Array = Any


class Scores(NamedTuple):
    """What paths are made of; log-scores without NaN and +inf."""

    frames: Array  # [T, B, V], -inf allowed; T > 0, V > 0
    am_scale: Array  # scalar
    bias: Array  # [V], added to the scaled scores
    arcs: Array  # [E]
    starts: Array  # [A], -inf on padding
    ends: Array  # [Z], likewise


class Weighted(NamedTuple):
    """The values of the tables' weights, the same for all frames; of [P], see `weigh`."""

    single: Value
    multi: Value
    merge: Value
    leaving: Value
    exits: Value
    closing: Array  # [C] log-scores


def weighted(kind: Kind, scores: Scores, tables: Sliced) -> Weighted:
    real = tables.closing_arc >= 0
    closing = gather(scores.arcs, jnp.maximum(tables.closing_arc, 0))
    closing = closing + gather(scores.ends, jnp.maximum(tables.closing_end, 0))
    closing = jnp.where(real, closing, -jnp.inf)
    arcs = valued(kind, scores.arcs)
    return Weighted(
        single=weigh(kind, tables.single, arcs),
        multi=weigh(kind, tables.multi, arcs),
        merge=weigh(kind, tables.merge, arcs),
        leaving=weigh(kind, tables.leaving, arcs),
        exits=weigh(kind, tables.exits, valued(kind, closing)),
        closing=closing,
    )


def _unchanged(array: Array) -> Array:
    """0, which varies over the mesh axes over which the array does."""
    zero = jnp.zeros((), array.dtype)
    return jnp.where(array == array, zero, zero)


def seeded(scores: Scores, lengths: Array) -> Array:
    """Zeros [B] that vary over every mesh axis over which any of the arguments does."""
    dtype = scores.bias.dtype
    seed = _unchanged(scores.frames[0, :, 0]).astype(dtype) + _unchanged(lengths).astype(dtype)
    rest = (scores.am_scale, scores.bias[0], scores.arcs[0], scores.starts[0], scores.ends[0])
    for value in rest:
        seed = seed + _unchanged(value)
    return seed


def emission_scores(scores: Scores, tables: Sliced, frame: Array) -> Array:
    """Log-scores [U, B] of the labels in use from a frame [B, V]; -inf on padding."""
    label = jnp.clip(tables.slot_label, 0, frame.shape[1] - 1)
    raw = gather(frame.T, label).astype(scores.bias.dtype)
    scaled = jnp.where(raw == -jnp.inf, -jnp.inf, raw * scores.am_scale)
    scaled = scaled + gather(scores.bias, label)[:, None]
    scaled = jnp.where(scaled < jnp.inf, scaled, 0.0)
    return jnp.where(tables.slot_label[:, None] >= 0, scaled, -jnp.inf)


def emission(kind: Kind, scores: Scores, tables: Sliced, frame: Array, seed: Array) -> Array:
    """Values [U, B] of the labels in use from a frame [B, V], joined; `seed` is from `seeded`."""
    return kind.join(kind.semiring.value(emission_scores(scores, tables, frame) + seed[None]))


def emission_if(
    kind: Kind, wanted: Array, scores: Scores, tables: Sliced, frame: Array, seed: Array
) -> Array:
    """`emission`, or zeros where `wanted`, a scalar, says that no sequence has the frame."""

    def absent(frame: Array) -> Array:
        score = jnp.full((tables.slot_label.shape[0], 1), -jnp.inf, seed.dtype)
        return kind.join(kind.semiring.value(score + seed[None]))

    return if_any(wanted, lambda frame: emission(kind, scores, tables, frame, seed), absent, frame)


def choose(condition: Array, yes: Value, no: Value) -> Value:
    """Sequence by sequence; `condition` is [B]."""
    return tuple(jnp.where(condition[None], y, n) for y, n in zip(yes, no, strict=True))


def part_of(array: Array, begin: int, like: Value) -> Array:
    return lax.slice_in_dim(array, begin, begin + like[0].shape[0], axis=0)


def _last_frame(frames: Array, lengths: Array) -> Array:
    """Each sequence's last frame [B, V]."""
    index = jnp.clip(lengths - 1, 0, frames.shape[0] - 1)
    return jnp.take_along_axis(frames, index[None, :, None], axis=0, mode="clip")[0]


def _start(kind: Kind, scores: Scores, tables: Sliced, seed: Array) -> Array:
    """alpha_{-1} [S, B]."""
    entry = tables.start_entry
    picked = gather(scores.starts, jnp.maximum(entry, 0))
    value = kind.semiring.value(jnp.where(entry >= 0, picked, -jnp.inf))
    value = kind.semiring.plus_over(value, 0)
    like = kind.semiring.value(seed)
    return kind.join(
        tuple(
            jnp.where(one[None] == one[None], part[:, None], part[:, None])
            for part, one in zip(value, like, strict=True)
        )
    )


def _advance(
    kind: Kind, alpha: Array, labels: Array, counts: Array, tables: Sliced, weights: Weighted
) -> Array:
    """alpha_t from alpha_{t-1} [S, B]; sequences that do not count keep theirs."""
    semiring = kind.semiring

    def kept(value: Value, begin: int) -> Value:
        return choose(counts, semiring.tidy(value), kind.split(part_of(alpha, begin, value)))

    def emitting(value: Value, begin: int, first: int = 0) -> Value:
        slots = part_of(tables.node_slot, first + begin, value)
        return semiring.times(value, kind.split(gather(labels, slots)))

    def single(value: Value, begin: int) -> Value:
        return kept(emitting(value, begin), begin)

    parts = [collect(kind, alpha, tables.single, weights.single, single)]
    begin = parts[0].shape[0]
    if tables.multi.slices:

        def multi(value: Value, place: int) -> Value:
            return semiring.tidy(emitting(value, place, begin))

        nodes = collect(kind, alpha, tables.multi, weights.multi, multi)
        parts.append(
            collect(
                kind,
                nodes,
                tables.merge,
                weights.merge,
                lambda value, place: kept(value, begin + place),
            )
        )
        begin += parts[1].shape[0]
    none = nothing(kind, labels, tables.idle.shape[0])
    parts.append(kind.join(kept(none, begin)))
    return jnp.concatenate(parts)


class Forward(NamedTuple):
    alphas: Array  # [T, S, B] or one per block, see `forward`; joined
    last: Array  # [S, B] alpha_{n-2}
    start: Array  # [S, B] alpha_{-1}
    labels: Array  # [U, B] emissions of the last frame
    exits: Array  # [R, B] exit(p), in the order of `Sliced.exits`
    whole: Value  # [B]


def frame_at(frames: Array, time: Array) -> Array:
    """Frame [B, V] of frames [T, B, V]; behind the last one, that."""
    index = jnp.minimum(time, frames.shape[0] - 1)
    return lax.dynamic_index_in_dim(frames, index, axis=0, keepdims=False)


def sweep(
    kind: Kind,
    scores: Scores,
    tables: Sliced,
    lengths: Array,
    weights: Weighted,
    alpha: Array,
    times: Array,
    keep: bool,
) -> tuple[Array, Array]:
    """Advances alpha over the frames `times` [X]: the last one, and with `keep` all [X, S, B]."""
    seed = seeded(scores, lengths)

    def step(alpha: Array, frame: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        time, posteriors = frame
        inner = time + 1 < lengths
        wanted = jnp.any(inner)
        if posteriors is None:
            posteriors = frame_at(scores.frames, time)
        labels = emission_if(kind, wanted, scores, tables, posteriors, seed)
        alpha = if_any(
            wanted,
            lambda alpha, labels: _advance(kind, alpha, labels, inner, tables, weights),
            lambda alpha, labels: alpha,
            alpha,
            labels,
        )
        return alpha, alpha if keep else None

    # Derivatives of what is closed over and indexed would be as large as all frames in each frame.
    if kind is LOGS:
        return lax.scan(jax.checkpoint(step), alpha, (times, scores.frames))
    return lax.scan(step, alpha, (times, None))


def forward(
    kind: Kind,
    scores: Scores,
    tables: Sliced,
    lengths: Array,
    weights: Weighted,
    *,
    keep: bool,
    block: int | None = None,
) -> Forward:
    """The forward recursion.

    Args:
        kind: what to compute in.
        scores: see there.
        tables: the automaton.
        lengths: [B] int32 in 0..T.
        weights: from `weighted`.
        keep: whether the alphas are wanted.
        block: if given, only those before every `block`-th frame.
    """
    semiring = kind.semiring
    seed = seeded(scores, lengths)
    start = _start(kind, scores, tables, seed)
    frames = scores.frames.shape[0]
    if block is None:
        times = jnp.arange(frames, dtype=jnp.int32)
        last, alphas = sweep(kind, scores, tables, lengths, weights, start, times, keep)
    else:

        def over(alpha: Array, times: Array) -> tuple[Array, Array]:
            return sweep(kind, scores, tables, lengths, weights, alpha, times, False)[0], alpha

        last, alphas = lax.scan(over, start, blocks_of(frames, block))

    labels = emission(kind, scores, tables, _last_frame(scores.frames, lengths), seed)
    exits = collect(kind, labels, tables.exits, weights.exits, depth=UNROLLED)
    whole = semiring.times(kind.split(last), kind.split(gather(exits, tables.exit_state)))
    whole = semiring.tidy(semiring.plus_over(whole, 0))
    empty = semiring.plus_over(empty_paths(kind, scores, tables), 0)
    empty = tuple(jnp.broadcast_to(part, lengths.shape) for part in empty)
    whole = tuple(jnp.where(lengths == 0, e, w) for e, w in zip(empty, whole, strict=True))
    return Forward(alphas, last, start, labels, exits, whole)


def blocks_of(frames: int, block: int) -> Array:
    """Numbers of the frames by block [X, block]; the last block may go on behind the last frame."""
    count = -(-frames // block)
    return jnp.arange(count * block, dtype=jnp.int32).reshape(count, block)


def empty_paths(kind: Kind, scores: Scores, tables: Sliced) -> Value:
    """[P], the paths without edges."""
    start, end = tables.empty[:, 0], tables.empty[:, 1]
    score = gather(scores.starts, jnp.maximum(start, 0)) + gather(scores.ends, jnp.maximum(end, 0))
    return kind.semiring.value(jnp.where(start >= 0, score, -jnp.inf))


def log_total(kind: Kind, scores: Scores, tables: Sliced, lengths: Array) -> Array:
    """Log-sum over all paths [B]; lengths are in 0..T."""
    weights = weighted(kind, scores, tables)
    return kind.semiring.log(forward(kind, scores, tables, lengths, weights, keep=False).whole)
