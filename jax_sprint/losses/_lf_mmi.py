"""The lattice-free MMI loss: a numerator automaton per sequence against one denominator for all.

    case (of one sequence)                          loss    valid   gradient
    -------------------------------------------------------------------------
    both automata have a path                       finite  True    exact
    the numerator has none, or the denominator      +inf    False   exactly 0
    either one's loss is NaN (see `full_sum_loss`)  NaN     False   exactly 0

A denominator without any path would make the difference -inf, the best loss there is, though it
means that the two do not belong together (a numerator's paths are paths of the denominator), or
that there are too few frames: it counts as a failure, like a numerator without path.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_sprint.automata import Automata
from jax_sprint.losses._full_sum import full_sum_loss

__all__ = ["lf_mmi_loss"]

Array = Any


def lf_mmi_loss(
    log_posteriors: Array,
    seq_lengths: Array,
    numerator: Automata,
    denominator: Automata,
    *,
    am_scale: float | Array = 1.0,
    tdp_scale: float | Array = 1.0,
    denominator_scale: float | Array = 1.0,
    log_prior: Array | None = None,
    prior_scale: float | Array = 0.0,
    return_valid: bool = False,
    time_major: bool = True,
) -> Array | tuple[Array, Array]:
    """Lattice-free maximum mutual information (Povey et al., Interspeech 2016).

    With F the `full_sum_loss` over an automaton, minus the log of the summed scores of its paths::

        loss = F(numerator) - denominator_scale * F(denominator)

    At scale 1 that is minus the log of the probability that a path of the denominator is one of
    the numerator, if the numerator's paths are among the denominator's with the same weights.  The
    gradient with respect to `log_posteriors` is am_scale times the difference of the two
    automata's label posteriors.  Differentiable as `full_sum_loss` is.

    The exponentials of the log-posteriors are taken frame by frame, of those labels alone that an
    automaton emits.  The numerator emits few: what sharing them with the denominator's would save
    is not measurable.

    Args:
        log_posteriors: [T, B, L] float: log-probabilities, or any scores in nats; with this loss
            they need not be normalised.
        seq_lengths: [B] integer, number of valid frames, in 0..T.
        numerator: batch of B automata, the paths that spell what was said.
        denominator: one automaton for all sequences (`Automata.shared`), such as that of
            `topologies.ngram`; or a batch of B.
        am_scale: factor of the log-posteriors, in both.
        tdp_scale: factor of the automata's weights, in both.
        denominator_scale: factor of the denominator's part; scalar, may be traced.
        log_prior: [L] float, natural-log prior probabilities of the labels, or None.
        prior_scale: factor of the log-priors, in both.
        return_valid: also return which sequences are valid.
        time_major: False takes `log_posteriors` as [B, T, L].

    Returns:
        Loss [B] in nats, float32, or float64 for float64 input; with `return_valid` also valid
        [B] bool.  +inf where one of the automata has no path of that length, NaN as
        `full_sum_loss` has it; the gradient of both is exactly 0.

    Raises:
        ValueError: as `full_sum_loss` does, for either automaton; a denominator that is a batch of
            one for several sequences.

    Example:
        >>> from jax_sprint import lf_mmi_loss, topologies
        >>> denominator = topologies.ngram(texts, order=3, num_labels=40, shared=True)
        >>> numerator = topologies.ctc(labels, label_lengths, num_labels=40)
        >>> loss = lf_mmi_loss(scores, seq_lengths, numerator, denominator)
    """
    batch = np.shape(seq_lengths)
    if (
        isinstance(denominator, Automata)
        and np.ndim(denominator.weights) == 2
        and denominator.batch_size == 1
        and batch not in ((1,), ())
    ):
        raise ValueError(
            f"denominator is a batch of one automaton, but there are {batch[0]} sequences; pass "
            "denominator.shared(), which serves all of them"
        )
    parts: list[Any] = [
        full_sum_loss(
            log_posteriors,
            seq_lengths,
            automata,
            am_scale=am_scale,
            tdp_scale=tdp_scale,
            log_prior=log_prior,
            prior_scale=prior_scale,
            time_major=time_major,
        )
        for automata in (numerator, denominator)
    ]
    valid = jnp.isfinite(parts[0]) & jnp.isfinite(parts[1])
    # Selects on both sides of the difference: inf must not meet a derivative.
    own, all_paths = (jnp.where(valid, part, jnp.zeros_like(part)) for part in parts)
    loss = own - jnp.asarray(denominator_scale, own.dtype) * all_paths
    wrong = jnp.where(jnp.isnan(parts[0]) | jnp.isnan(parts[1]), jnp.nan, jnp.inf)
    loss = jnp.where(valid, loss, wrong.astype(loss.dtype))
    return (loss, valid) if return_valid else loss
