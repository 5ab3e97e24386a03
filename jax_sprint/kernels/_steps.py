"""Taking the recursions' steps, frame by frame.

On a CPU, what the backward recursion keeps of a frame takes the place of the emissions, which
nobody needs afterwards: moving memory, and its first touch, cost as much as the arithmetic.
Elsewhere a round of the loop takes several frames, so that they share what a round launches.  Where
JAX differentiates the recursion (`Semiring.by_jax`), it is a plain scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sprint.kernels import _platform
from jax_sprint.kernels._graph import Side, collect, per_sequence, varying_as
from jax_sprint.kernels._semirings import Semiring, Value

__all__ = ["BLOCK", "longest", "steps", "there_and_back"]

Array = Any

BLOCK = 4
"""Frames between two calls of `Semiring.tidy`."""

_IN_A_ROUND = 8
"""Frames in a round of the loop where launches cost.

XLA makes one kernel of two steps over bands, and one of each over tables; and some five of the rest
of a round.  More frames take longer to compile than they save.
"""


class _Place(NamedTuple):
    """Where a step is."""

    frame: Array  # int32, clipped to the frames
    inside: Array  # bool, whether it is one
    here: Array  # its place in the block
    next: Array  # that of the next frame to come


def _longest(counts: Array) -> Array:
    frame = lax.broadcasted_iota(jnp.int32, counts.shape, 0)
    return jnp.max(jnp.where(counts, frame + 1, 0), initial=0)


@jax.custom_batching.custom_vmap
def longest(counts: Array) -> Array:
    """Up to which frame of [T, B] any counts, scalar int32; under `jax.vmap` of all that it maps.

    A loop with a length of its own for each element would be one over all, which selects between
    all it carries in each step.
    """
    return _longest(counts)


@longest.def_vmap
def _longest_of_all(axis_size: int, in_batched: Any, counts: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return jnp.max(jax.vmap(_longest)(counts), initial=0), False


def _each_frame(
    frames: Any,
    stop: Any,
    back: bool,
    enter: Callable[[Any, Array, int, Array], tuple[Any, Any]],
    step: Callable[[Any, Any, _Place], Any],
    carry: Any,
) -> Any:
    """A loop over the frames, in blocks.

    XLA copies what a loop both reads and overwrites, all frames of it, unless it can prove that the
    one comes before the other.  So a block is read as a whole, by `enter`, and the steps within
    only write.

    Args:
        frames: number of frames, > 0; may be symbolic (`jax.export`), then a block is one frame.
        stop: how many of them to visit, from the first on; may be traced.
        back: whether to go from the last frame to the first.
        enter: takes the carry, the first frame of a block, the number of its frames and the place
            of the first step; returns the carry, and what the block's steps read.
        step: takes the carry, what `enter` gave, and the place; returns the carry.  The first few
            steps may be outside of the frames (at the first or the last one): they must not change
            the recursion, and what they write there is written again by the frame's own step.
        carry: what `enter` takes first.

    Returns:
        The last carry.
    """
    size = min(BLOCK, frames) if isinstance(frames, int) else 1
    blocks = (stop + size - 1) // size
    early = blocks * size - stop

    def frame(number: Array) -> Array:
        return stop - 1 + early - number if back else number - early

    def block(number: Array, carry: Any) -> Any:
        first = number * size
        begin = jnp.clip(frame(first + (size - 1 if back else 0)), 0, frames - size)

        def place(number: Array) -> Array:
            return jnp.clip(frame(number) - begin, 0, size - 1)

        carry, data = enter(carry, begin, size, place(first))

        def one(count: Array, carry: Any) -> Any:
            t = frame(first + count)
            here = jnp.clip(t, 0, stop - 1)
            at = _Place(here, here == t, place(first + count), place(first + count + 1))
            return step(carry, data, at)

        return lax.fori_loop(0, size, one, carry)

    return lax.fori_loop(0, blocks, block, carry)


def _frame_of(value: Value, frame: Array) -> Value:
    """[B, N] of [T, B, N]."""
    return tuple(lax.dynamic_index_in_dim(array, frame, 0, keepdims=False) for array in value)


def _frames_of(value: Value, begin: Array, size: int) -> Value:
    """[size, B, N] of [T, B, N]."""
    return tuple(lax.dynamic_slice_in_dim(array, begin, size, 0) for array in value)


def _entering(semiring: Semiring, ahead: Array | bool, x: Value, emission: Value) -> Value:
    """What the neighbours collect: alpha of the frame before; or beta with the emission."""
    if isinstance(ahead, bool):
        return x if ahead else semiring.times(x, emission)
    return per_sequence(ahead, x, semiring.times(x, emission))


def _entered(semiring: Semiring, ahead: Array | bool, x: Value, emission: Value) -> Value:
    """What is collected, as alpha or beta."""
    if isinstance(ahead, bool):
        return semiring.times(x, emission) if ahead else x
    return per_sequence(ahead, semiring.times(x, emission), x)


def _kept(ahead: Array | bool, before: Value, after: Value) -> Value:
    """The frame's alpha, which the step gives; or its beta, with which the step began."""
    if isinstance(ahead, bool):
        return after if ahead else before
    return per_sequence(ahead, after, before)


def steps(
    semiring: Semiring,
    side: Side,
    ahead: Array | bool,
    first: Value,
    counts: Array,
    emission: Value,
    keep: bool = True,
) -> tuple[Value, Value]:
    """One recursion, or both.

    Args:
        semiring: what to compute in.
        side: where to collect from.
        ahead: whether to go from the first frame to the last, or from the last to the first; or
            [B] bool, whether a sequence is of the forward half of `both`.
        first: of [B, N], the first x.
        counts: [T, B] bool, the frames to take a step in.
        emission: of [T, B, N].
        keep: whether to keep alpha, or beta, of every frame.

    Returns:
        The last x; and what is kept, of [T, B, N]: in frames that do not count the x before, and
        anything finite after the last that does; () where nothing is.
    """
    run = _scan if semiring.by_jax else _rounds if _platform.launches() else _overwrite
    return run(semiring, side, ahead, first, counts, emission, keep)


def _scan(
    semiring: Semiring,
    side: Side,
    ahead: Array | bool,
    first: Value,
    counts: Array,
    emission: Value,
    keep: bool,
) -> tuple[Value, Value]:
    def step(x: Value, frame: tuple[Array, Value]) -> tuple[Value, Value]:
        now, emitted = frame
        after = collect(semiring, _entering(semiring, ahead, x, emitted), side)
        after = per_sequence(now, semiring.tidy(_entered(semiring, ahead, after, emitted)), x)
        return after, _kept(ahead, x, after) if keep else ()

    return lax.scan(step, first, (counts, emission), reverse=ahead is False)


def _rounds(
    semiring: Semiring,
    side: Side,
    ahead: Array | bool,
    first: Value,
    counts: Array,
    emission: Value,
    keep: bool,
) -> tuple[Value, Value]:
    # Nothing is overwritten: with several steps in sight XLA would copy all frames.
    frames = counts.shape[0]
    # Two rounds at least: XLA takes a single one for straight-line code, and compiles it for ever.
    size = min(_IN_A_ROUND, -(-frames // 2)) if isinstance(frames, int) else 1
    rounds = -(-frames // size)
    more = rounds * size - frames
    order = range(size - 1, -1, -1) if ahead is False else range(size)

    def cut(array: Array) -> Array:
        if isinstance(frames, int):
            array = jnp.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(rounds, size, *array.shape[1:])

    def one(x: Value, part: tuple[Array, Value]) -> tuple[Value, Value]:
        counts, emission = part
        found: list[Value] = [()] * size
        for step, t in enumerate(order):
            if step % BLOCK == 0:
                x = semiring.tidy(x)
            emitted = tuple(array[t] for array in emission)
            after = collect(semiring, _entering(semiring, ahead, x, emitted), side)
            after = per_sequence(counts[t], _entered(semiring, ahead, after, emitted), x)
            found[t] = _kept(ahead, x, after)
            x = after
        if not keep:
            return x, ()
        return x, tuple(jnp.stack(parts) for parts in zip(*found, strict=True))

    x, kept = lax.scan(one, first, (cut(counts), tuple(map(cut, emission))), reverse=ahead is False)
    kept = tuple(array.reshape(rounds * size, *array.shape[2:])[:frames] for array in kept)
    return semiring.tidy(x), kept


def _room(array: Array, first: Array) -> Array:
    """Zeros like `array`, to be written after `first`, which is finite.

    XLA would make them at the very beginning, beside all that is needed only to get there.
    """
    return jnp.broadcast_to(jnp.sum(0 * first).astype(array.dtype), array.shape)


def _overwrite(
    semiring: Semiring,
    side: Side,
    ahead: Array | bool,
    first: Value,
    counts: Array,
    emission: Value,
    keep: bool,
) -> tuple[Value, Value]:
    # The emissions are needed once more after the forward recursion.
    in_place = ahead is not True
    room = emission if in_place else tuple(_room(array, first[0]) for array in emission)
    # Over mesh axes the emissions may vary less than what takes their place.
    kept = tuple(varying_as(array, part) for array, part in zip(room, first, strict=True))

    def ready(x: Value, emitted: Value, place: Array) -> Value | None:
        # Made at the end of the step before: within a step XLA would multiply element by element
        # while it pads, in `collect`.
        if ahead is True:
            return None
        return _entering(semiring, ahead, x, _frame_of(emitted, place))

    def enter(carry: tuple, begin: Array, size: int, place: Array) -> tuple[tuple, Value]:
        x, _, kept = carry
        emitted = _frames_of(kept or emission, begin, size) if in_place else ()
        x = semiring.tidy(x)
        return (x, ready(x, emitted, place), kept), emitted

    def step(carry: tuple, emitted: Value, at: _Place) -> tuple:
        x, entering, kept = carry
        now = lax.dynamic_index_in_dim(counts, at.frame, 0, keepdims=False) & at.inside
        after = collect(semiring, x if entering is None else entering, side)
        here = _frame_of(emitted, at.here) if in_place else _frame_of(emission, at.frame)
        after = per_sequence(now, _entered(semiring, ahead, after, here), x)
        if kept:
            kept = tuple(
                lax.dynamic_update_index_in_dim(array, value, at.frame, 0)
                for array, value in zip(kept, _kept(ahead, x, after), strict=True)
            )
        return after, ready(after, emitted, at.next), kept

    carry = (first, None if ahead is True else first, kept if keep else ())
    frames = counts.shape[0]
    stop = longest(counts) if isinstance(ahead, bool) else frames
    x, _, kept = _each_frame(frames, stop, ahead is False, enter, step, carry)
    return semiring.tidy(x), kept


def there_and_back(
    semiring: Semiring,
    sides: tuple[Side, Side],
    ends: tuple[Value, Value],
    counts: Array,
    emission: Value,
) -> tuple[Value, Value, Value, Value]:
    """The forward recursion, then the backward one.

    Args:
        semiring: what to compute in.
        sides: where to collect from, forward and backward.
        ends: of [B, N], the first alpha and the first beta.
        counts: [T, B] bool, the frames to take a step in.
        emission: of [T, B, N].

    Returns:
        The last alpha, those kept, the last beta, those kept; see `steps`.
    """
    alpha, alphas = steps(semiring, sides[0], True, ends[0], counts, emission)
    first = ends[1]
    if not semiring.by_jax:
        # XLA has to know that the emissions have been read when they are overwritten, or it copies
        # them.  The mantissas are finite.
        first = (first[0] + 0 * alpha[0], *first[1:])
    beta, betas = steps(semiring, sides[1], False, first, counts, emission)
    return alpha, alphas, beta, betas
