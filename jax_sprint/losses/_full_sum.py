"""The full-sum (FSA) loss."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint.automata import Automata
from jax_sprint.kernels import _platform
from jax_sprint.kernels._checkpointed import checkpointed_partition
from jax_sprint.kernels._inputs import at_least_one_frame, check, prepare
from jax_sprint.kernels._partition import partition
from jax_sprint.kernels._shared import prepare_shared, shared_partition
from jax_sprint.kernels._softmax import log_softmax, normalized

__all__ = ["full_sum_loss"]

Array = Any


# Bytes of the recursions' values beyond which they are computed twice rather than kept.  On a CPU
# the first touch of so much memory costs more than a second pass; elsewhere it is there to be used,
# and a second pass costs its launches.
_MOST_KEPT = 1 << 26
_MOST_KEPT_ELSEWHERE = 1 << 30


def _too_large(log_posteriors: Array, automata: Automata) -> bool:
    """Whether to checkpoint where the caller leaves it open."""
    if automata.node_label is None or automata.sliced is not None:
        return False  # these keep less, see `_shared_recursion`
    sizes = (*log_posteriors.shape, automata.node_label.shape[-1])
    if not all(isinstance(size, int) for size in sizes):  # symbolic, in `jax.export`
        return False
    frames, sequences, labels, nodes = sizes
    # Mantissas and exponents of both recursions; where launches cost, of the emissions too.
    kept = frames * sequences * nodes * (32 if _platform.launches() else 16)
    given = frames * sequences * labels * log_posteriors.dtype.itemsize
    most = _MOST_KEPT_ELSEWHERE if _platform.launches() else _MOST_KEPT
    return kept > max(most, 2 * given)


@partial(jax.jit, static_argnames=("from_logits", "time_major", "checkpoint"))
def _loss(
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    am_scale: Array,
    tdp_scale: Array,
    log_prior: Array | None,
    prior_scale: Array,
    *,
    from_logits: bool,
    time_major: bool,
    checkpoint: bool | None,
) -> Array:
    if checkpoint is None:
        checkpoint = _too_large(log_posteriors, automata)
    dtype = jnp.float64 if log_posteriors.dtype == jnp.float64 else jnp.float32
    time_axis = 0 if time_major else 1
    arguments = (
        log_posteriors.shape[time_axis],
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
        if from_logits:
            log_posteriors = log_softmax(time_axis, log_posteriors, seq_lengths, dtype)
        return shared_partition(time_axis, checkpoint, log_posteriors, prepare_shared(*arguments))
    solve = checkpointed_partition if checkpoint else partition
    problem = prepare(*arguments)
    if from_logits:
        problem = normalized(time_axis, log_posteriors, problem)
    return solve(time_axis, log_posteriors, problem)


def full_sum_loss(
    log_posteriors: Array,
    seq_lengths: Array,
    automata: Automata,
    *,
    am_scale: float | Array = 1.0,
    tdp_scale: float | Array = 1.0,
    log_prior: Array | None = None,
    prior_scale: float | Array = 0.0,
    infeasible: Literal["inf", "zero", "error"] = "inf",
    from_logits: bool = False,
    checkpoint: bool | None = None,
    return_valid: bool = False,
    time_major: bool = True,
) -> Array | tuple[Array, Array]:
    """Minus the log of the summed probability of all paths of each sequence's automaton.

    The score of a path of exactly `seq_lengths[b]` edges from the start to the end state is::

        sum over frames t of  am_scale    * log_posteriors[t, b, label of the edge]
                            - prior_scale * log_prior[label of the edge]
                            - tdp_scale   * weight of the edge

    (and - tdp_scale * weight of the start and of the end state, where these have weights), and the
    loss is minus the log-sum-exp over all of them.  Differentiable, also twice, in forward and
    reverse mode, with respect to `log_posteriors`, the automata's weights (of edges, starts and
    ends), `log_prior` and the scales; the gradient with respect to `log_posteriors` treats all
    entries as independent, so it is -am_scale times the posterior probability of the label in that
    frame.  Works under jit, vmap, scan, remat, shard_map and `jax.export`, and is deterministic.

    Args:
        log_posteriors: [T, B, L] float, natural-log probabilities (or any scores in nats; nothing
            assumes that they are normalised).  Padding frames may hold anything and get gradient 0.
            bfloat16 and float16 are computed in float32.
        seq_lengths: [B] integer, number of valid frames, in 0..T.
        automata: batch of B automata, or one for all (`Automata.shared`).
        am_scale: factor of the log-posteriors; scalar, may be traced.
        tdp_scale: factor of the automata's weights; scalar, may be traced.
        log_prior: [L] float, natural-log prior probabilities of the labels, or None.
        prior_scale: factor of the log-priors; scalar, may be traced.
        infeasible: what the loss of a sequence without any path is.  ``"inf"``: +inf; ``"zero"``:
            0, so that it drops out of a sum; ``"error"``: none, ValueError names the sequences (in
            eager calls only).  The gradient is exactly 0 and valid False in any case.
        from_logits: a Python bool; True takes `log_posteriors` as unnormalised logits and their
            log_softmax inside: the same loss and gradient, with fewer passes over arrays of that
            size and less memory than `jax.nn.log_softmax` before it.
        checkpoint: a Python bool; True keeps the recursions at every sqrt(T)-th frame only and
            computes them again for the gradient: the memory beside the log-posteriors grows with
            sqrt(T) times the automata's states in place of T times.  None decides by the sizes: on
            a CPU True from 64 MB of kept values on that are also twice the log-posteriors, where it
            takes no longer; elsewhere from 1 GB on.  Second derivatives keep everything.
        return_valid: also return which sequences are valid.
        time_major: False takes `log_posteriors` as [B, T, L].

    Returns:
        Loss [B] in nats, float32, or float64 for float64 input; with `return_valid` also valid
        [B] bool.  A sequence without any path has loss +inf (see `infeasible`), valid False and
        gradient exactly 0.
        A NaN in a valid frame, or a *traced* length or emission that is out of range, makes the
        loss of that sequence NaN, with valid False and gradient exactly 0.  See the table in
        `jax_sprint.kernels._partition`.

    Raises:
        ValueError: wrong rank, dtype or batch size, a number of labels that differs from the
            automata's, a concrete length outside of 0..T, or a concrete emission >= L; an unknown
            `infeasible`, `from_logits` or `checkpoint`, or ``"error"`` under a transformation or
            with a sequence without path.
    """
    if infeasible not in ("inf", "zero", "error"):
        raise ValueError(f"infeasible must be 'inf', 'zero' or 'error', got {infeasible!r}")
    for name, option, known in (
        ("from_logits", from_logits, "True or False"),
        ("checkpoint", checkpoint, "True, False or None"),
    ):
        if not isinstance(option, bool | np.bool_) and (option is not None or "None" not in known):
            raise ValueError(f"{name} must be {known}, got {option!r}")
    check(log_posteriors, seq_lengths, automata, log_prior, time_major)
    if log_prior is None:
        prior_scale = 0.0
    loss = _loss(
        jnp.asarray(log_posteriors),
        jnp.asarray(seq_lengths),
        automata,
        am_scale,
        tdp_scale,
        log_prior,
        prior_scale,
        from_logits=bool(from_logits),
        time_major=time_major,
        checkpoint=None if checkpoint is None else bool(checkpoint),
    )
    valid = jnp.isfinite(loss)
    if infeasible == "zero":
        loss = jnp.where(loss == jnp.inf, jnp.zeros_like(loss), loss)
    elif infeasible == "error":
        _refuse(loss, seq_lengths)
    return (loss, valid) if return_valid else loss


def _refuse(loss: Array, seq_lengths: Array) -> None:
    """Raises ValueError where a sequence has no path."""
    if isinstance(loss, jax.core.Tracer):
        raise ValueError(
            "infeasible='error' needs values, but the loss is traced (jit, grad, vmap, ...); take "
            "return_valid=True and look at valid outside, or call full_sum_loss eagerly"
        )
    without = np.flatnonzero(np.asarray(loss) == np.inf)
    if without.size:
        lengths = np.asarray(seq_lengths)[without]
        raise ValueError(
            f"sequences {without.tolist()} (of {lengths.tolist()} frames) have no path through "
            "their automata: are there too few frames for the transcription, or scores of -inf?  "
            "infeasible='zero' leaves them out"
        )
