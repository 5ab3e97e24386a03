"""The callback route: Sprint's own loss and error signal inside a JAX program.

What happens in one training step::

    log_posteriors --> pure_callback --> pool --> Sprint processes
                            |
            loss [B], error signal [T, B, L]   (one call, in the forward pass)
                            |
    gradient  <--  error signal * cotangent of each sequence's loss

Only `_HostCall.__call__` runs on the host while a JAX program waits for it.  It and all that it
calls use numpy alone: touching jax there can deadlock.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint.bridge import SprintInstancePool, SprintOptions
from jax_sprint.errors import SprintClosedError
from jax_sprint.losses._arguments import check_arguments, is_tracing
from jax_sprint.losses._pieces import InPieces, copies_may_starve, in_pieces

__all__ = ["sprint_loss"]

logger = logging.getLogger("jax_sprint")

# Below the shortest time that XLA gives a collective, 30 s between two processes; seconds.
_PATIENCE_OF_PEERS = 25.0


@overload
def sprint_loss(
    log_posteriors: Any,
    seq_lengths: Any,
    tags: Any,
    *,
    sprint: SprintInstancePool | SprintOptions | Mapping[str, Any],
    return_valid: Literal[False] = False,
    time_major: bool = True,
) -> jax.Array: ...


@overload
def sprint_loss(
    log_posteriors: Any,
    seq_lengths: Any,
    tags: Any,
    *,
    sprint: SprintInstancePool | SprintOptions | Mapping[str, Any],
    return_valid: Literal[True],
    time_major: bool = True,
) -> tuple[jax.Array, jax.Array]: ...


def sprint_loss(
    log_posteriors: jax.Array,
    seq_lengths: jax.Array,
    tags: jax.Array | np.ndarray | Sequence[str] | Sequence[bytes],
    *,
    sprint: SprintInstancePool | SprintOptions | Mapping[str, Any],
    return_valid: bool = False,
    time_major: bool = True,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Sprint's loss for a batch of segments; its gradient is Sprint's error signal.

    One `jax.pure_callback` fetches loss and error signal together.  The backward pass scales the
    error signal by each sequence's cotangent and casts it to the dtype of `log_posteriors`.

    What the gradient is depends on what Sprint calls its error signal.  The embedded Sprint's
    full-sum criterion and RASR's lattice criteria return d loss / d log-posteriors.  A Sprint
    whose error signal is y - target, taken before the softmax, may be used just as well: such a
    signal sums to zero over the labels of a frame, and the derivative of `jax.nn.log_softmax`
    maps a vector g to g - softmax * sum(g), so it reaches the logits unchanged.

    Under `jax.vmap` the mapped axis is folded into the batch (one call, not many).  Under
    `jax.shard_map` each shard makes its own call, all at the same time.  JAX may drop or repeat a
    pure callback; asking Sprint twice is harmless.  There is no forward-mode derivative.

    Args:
        log_posteriors: [T, B, L] float32 (or float16, bfloat16, float64, which travel to Sprint
            as float32): natural-log probabilities.  Frames from a sequence's length on are padding:
            they may hold anything, also NaN, and get a gradient of exactly zero.
        seq_lengths: [B] integer, frames, each from 0 to T.
        tags: the full segment names.  Inside `jax.jit` and other transformations this must be the
            uint8 array [B, W] that `encode_tags` makes; outside, a list of str or bytes will do.
        sprint: a pool, or options (also the ancestor's dict) for the global pool of those options.
            Never a traced value.  It is resolved when the program is traced; a pool that is
            closed and opened again with `init()` needs no new trace.
        return_valid: also return which sequences have a finite loss.
        time_major: False takes `log_posteriors` as [B, T, L].

    Returns:
        loss [B] float32, in nats.  +inf where Sprint found no path or skipped the segment, NaN
        where a valid frame holds NaN; both have a gradient of exactly zero.  With
        `return_valid=True` the pair (loss, valid [B] bool).  With `on_error="mask"` in the pool's
        options, a segment whose loss cannot be had counts as loss 0, not valid, with gradient zero.

        Inside `jax.shard_map`, and in a program whose arguments are spread over a mesh of devices,
        nothing is raised for Sprint's failures, because the other devices would wait for this one
        in the next collective until XLA ends the process: a failing call gives NaN for its shard,
        not valid, with gradient zero.  Call the pool's `check()` on the host when the step's
        results are there (JAX runs ahead: `jax.block_until_ready`): it raises what happened.  For
        the same reason a call has an end there: `batch_timeout` of the pool's options, 25 s if
        that is None; call the pool's `start()` before the first step, so that starting Sprint does
        not count.  `docs/devices.md` names XLA's own time-outs.

    Raises:
        ValueError: an argument has the wrong rank, dtype or batch size, `tags` is a Python list
            inside a traced program, into which it would be frozen, or `log_posteriors` is so large
            that this jax, on CPUs with this many devices, would hang (the message says what to do).
        TypeError: `sprint` is neither a pool nor options.
        SprintError: Sprint failed, or the pool is closed.  From inside a compiled program JAX
            passes on only the message, in a `jax.errors.JaxRuntimeError`.
    """
    pool = _resolve(sprint)
    log_posteriors, seq_lengths, tags = check_arguments(
        log_posteriors, seq_lengths, tags, time_major
    )
    if pool.closed:
        raise SprintClosedError(
            "the pool given as sprint= is closed; call its init() to start its children again"
        )
    if not time_major:
        log_posteriors = jnp.swapaxes(log_posteriors, 0, 1)
    log_posteriors, seq_lengths, tags = _match_varying(log_posteriors, seq_lengths, tags)
    among_peers = bool(jax.sharding.get_abstract_mesh().manual_axes)
    if not among_peers and any(map(_is_spread, (log_posteriors, seq_lengths, tags))):
        among_peers = True
        if isinstance(log_posteriors, jax.core.Tracer):
            warnings.warn(
                "sprint_loss in a program that is sharded automatically: JAX gathers the whole "
                "batch onto one device for it; sharded_sprint_loss asks for each shard where it is",
                stacklevel=2,
            )
    loss, valid = _loss(_HostCall(pool, among_peers), log_posteriors, seq_lengths, tags)
    return (loss, valid) if return_valid else loss


@dataclasses.dataclass(frozen=True)
class _HostCall:
    """What JAX calls back: equal for equal pools, so that no step is traced or compiled again.

    Attributes:
        pool: whom to ask.
        among_peers: whether other devices may wait for this one in a collective.
    """

    pool: SprintInstancePool
    among_peers: bool = False

    def __call__(
        self, log_posteriors: Any, seq_lengths: Any, tags: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # First of all leave jax: these may be jax arrays, and even comparing them can hang here.
        log_posteriors, seq_lengths, tags = map(np.asarray, (log_posteriors, seq_lengths, tags))
        limits = {}
        if self.among_peers and self.pool.options.batch_timeout is None:
            limits["timeout"] = _PATIENCE_OF_PEERS
        try:
            loss, error_signal = self.pool.get_batch_loss_and_error_signal(
                log_posteriors, seq_lengths, tags, **limits
            )
        except BaseException as error:
            # Also a Ctrl-C: the others wait all the same, and `check` raises it.
            if not self.among_peers:
                raise
            self.pool.keep_error(error)
            logger.error("a shard has no loss; pool.check() raises why: %s", error)
            nothing = np.zeros(log_posteriors.shape, np.float32)
            loss = np.full(seq_lengths.shape, np.nan, np.float32)
            return loss, np.zeros(loss.shape, bool), nothing
        loss = np.asarray(loss, np.float32)
        valid = np.isfinite(loss)
        if self.pool.options.on_error == "mask":
            for b in np.flatnonzero(np.isnan(loss)):
                # Apart from masked segments, NaN in the loss comes from NaN in the posteriors.
                if not np.isnan(log_posteriors[: seq_lengths[b], b]).any():
                    loss[b] = 0.0
        return loss, valid, np.asarray(error_signal, np.float32)


def _resolve(sprint: Any) -> SprintInstancePool:
    if isinstance(sprint, SprintInstancePool):
        return sprint
    if isinstance(sprint, SprintOptions | Mapping):
        return SprintInstancePool.get_global_instance(sprint)
    raise TypeError(
        "sprint must be a SprintInstancePool, a SprintOptions or the ancestor's dict, got "
        f"{type(sprint).__name__}; it cannot be an argument of the jitted function: close over it"
    )


def _is_spread(array: jax.Array) -> bool:
    """Whether a program on this array runs on several devices, as far as its type tells."""
    mesh = jax.typeof(array).sharding.mesh
    return not mesh.empty and mesh.size > 1


def _match_varying(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Makes all arguments vary over the same manual mesh axes.

    A callback's outputs count as varying over what its inputs vary over, and the transpose of the
    cast is the sum over shards that a replicated argument's gradient needs.
    """
    axes: frozenset[str] = frozenset().union(*map(_varying, arrays))
    return tuple(_vary(array, axes) for array in arrays)


def _varying(array: jax.Array) -> frozenset[str]:
    return frozenset(jax.typeof(array).manual_axis_type.varying)


def _vary(array: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(sorted(axes - _varying(array)))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def _ask(
    host_call: _HostCall, log_posteriors: jax.Array, seq_lengths: jax.Array, tags: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss [B] float32, valid [B] bool and error signal [T, B, L] float32, from the host."""
    arguments = (log_posteriors.astype(jnp.float32), seq_lengths, tags)
    if not is_tracing() and not any(isinstance(a, jax.core.Tracer) for a in arguments):
        # Called eagerly: no program waits, so an exception can arrive as what it is.
        alone = dataclasses.replace(host_call, among_peers=False)
        loss, valid, error_signal = alone(*arguments)
        return jnp.asarray(loss), jnp.asarray(valid), jnp.asarray(error_signal)
    return _ask_in_program(host_call)(*arguments)


def _ask_in_program(host_call: _HostCall) -> Any:
    @jax.custom_batching.custom_vmap
    def ask(log_posteriors, seq_lengths, tags):
        steps, batch, labels = log_posteriors.shape
        result = (
            jax.ShapeDtypeStruct((batch,), jnp.float32),
            jax.ShapeDtypeStruct((batch,), jnp.bool_),
            jax.ShapeDtypeStruct((steps, batch, labels), jnp.float32),
        )
        axes = _varying(log_posteriors)
        if copies_may_starve():
            asked = InPieces(host_call, log_posteriors.shape)
            answer = jax.pure_callback(asked, result, seq_lengths, tags, *in_pieces(log_posteriors))
        else:
            answer = jax.pure_callback(host_call, result, log_posteriors, seq_lengths, tags)
        return tuple(_vary(array, axes) for array in answer)

    @ask.def_vmap
    def fold(axis_size, in_batched, log_posteriors, seq_lengths, tags):
        def spread(array, batched):
            return array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))

        log_posteriors, seq_lengths, tags = map(
            spread, (log_posteriors, seq_lengths, tags), in_batched
        )
        _, steps, batch, labels = log_posteriors.shape
        folded = jnp.moveaxis(log_posteriors, 0, 1).reshape(steps, axis_size * batch, labels)
        loss, valid, error_signal = ask(
            folded, seq_lengths.reshape(-1), tags.reshape(axis_size * batch, -1)
        )
        error_signal = error_signal.reshape(steps, axis_size, batch, labels)
        answer = (
            loss.reshape(axis_size, batch),
            valid.reshape(axis_size, batch),
            jnp.moveaxis(error_signal, 1, 0),
        )
        return answer, (True, True, True)

    return ask


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(host_call, log_posteriors, seq_lengths, tags):
    return _ask(host_call, log_posteriors, seq_lengths, tags)[:2]


def _loss_fwd(host_call, log_posteriors, seq_lengths, tags):
    loss, valid, error_signal = _ask(host_call, log_posteriors, seq_lengths, tags)
    # An empty array carries the input's dtype to the backward pass.
    return (loss, valid), (error_signal, valid, jnp.zeros((0,), log_posteriors.dtype))


def _loss_bwd(host_call, residuals, cotangents):
    del host_call
    error_signal, valid, like = residuals
    # `where`, not a product: the cotangent of an infinite loss may itself be NaN.
    scaled = jnp.where(valid[None, :, None], error_signal * cotangents[0][None, :, None], 0)
    return scaled.astype(like.dtype), None, None


_loss.defvjp(_loss_fwd, _loss_bwd)
