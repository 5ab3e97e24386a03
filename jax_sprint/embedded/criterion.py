"""Training criteria of the embedded Sprint, and how they are configured.

=======================================  =======================================================
``*.training-criterion``                 ``full-sum`` (default), ``cross-entropy`` or ``none``.
                                         The name is RASR's; ``full-sum`` is ours, and RASR's
                                         default is ``none``.
``*.criterion.am-scale``                 scale of the log-posteriors (default 1)
``*.criterion.tdp-scale``                scale of the automaton's weights (default 1).  The
                                         acoustic model's own ``tdp.scale`` is in the weights
                                         already.
``*.criterion.prior-scale``              scale of the log-prior that is subtracted (default 0)
``*.criterion.prior-file``               the log-prior, natural logarithm, one number a label:
                                         ``.npy``, a text file of numbers, or XML as RASR
                                         writes vectors (``<vector-f32 size="...">``)
``*.alignment-fsa-exporter.cache-arcs``  see `jax_sprint.embedded.exporter`
=======================================  =======================================================

Full-sum: the score of a path is the sum over frames of
``am_scale * log_posterior - prior_scale * log_prior[label] - tdp_scale * weight``, the loss is
-log of the sum over all paths, and its derivative with respect to a log-posterior, all of them
taken as independent, is ``-am_scale`` times the posterior probability of that label in that frame.
Everything is float64 inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import ConfigurationError, NotOfferedError
from jax_sprint.embedded.full_sum import NodeGraph, full_sum

__all__ = ["CRITERIA", "Criterion", "cross_entropy"]

CRITERIA = ("full-sum", "cross-entropy", "none")
_RASR_ONLY = ("squared-error", "binary-divergence")


@dataclass(frozen=True)
class Criterion:
    """What is to be computed, as configured.

    Attributes:
        name: one of `CRITERIA`.
        am_scale: see the module.
        tdp_scale: see the module.
        prior_scale: see the module.
        log_prior: [L] float64, natural logarithm, or None.
    """

    name: str = "full-sum"
    am_scale: float = 1.0
    tdp_scale: float = 1.0
    prior_scale: float = 0.0
    log_prior: np.ndarray | None = None

    @classmethod
    def from_configuration(cls, config: Configuration) -> Criterion:
        """Reads the parameters of the table above.

        Args:
            config: of the application.

        Raises:
            ConfigurationError: a value that makes no sense, a prior that cannot be read.
        """
        name = config.get_choice("training-criterion", CRITERIA + _RASR_ONLY, "full-sum")
        if name in _RASR_ONLY:
            offered = ", ".join(CRITERIA)
            raise config.error(
                "training-criterion", f"{name!r} is not offered here; offered are {offered}"
            )
        own = config.select("criterion")
        limit = 1e30
        prior_scale = own.get_float("prior-scale", 0.0, minimum=-limit, maximum=limit)
        file = own.get_path("prior-file")
        if prior_scale and not file:
            raise own.error("prior-scale", "it needs a 'prior-file' beside it")
        return cls(
            name=name,
            am_scale=own.get_float("am-scale", 1.0, minimum=-limit, maximum=limit),
            tdp_scale=own.get_float("tdp-scale", 1.0, minimum=-limit, maximum=limit),
            prior_scale=prior_scale,
            log_prior=read_log_prior(file) if prior_scale else None,
        )

    def full_sum(self, log_posteriors: np.ndarray, graph: NodeGraph) -> tuple[float, np.ndarray]:
        """Loss of one segment, and how it depends on the log-posteriors.

        Args:
            log_posteriors: [T, L] float, natural logarithm.
            graph: the automaton, compiled with `tdp_scale`.

        Returns:
            ``(loss, gradient)``: a float, and [T, L] float32.  Without any path +inf and exactly
            0; if a score that the automaton can use is NaN, all of both is NaN.

        Raises:
            ValueError: the automaton uses a label that the log-posteriors lack, or the prior has
                another number of labels.
        """
        offset = None
        if self.log_prior is not None:
            if len(self.log_prior) != log_posteriors.shape[1]:
                raise ConfigurationError(
                    f"the prior has {len(self.log_prior)} labels, "
                    f"the posteriors have {log_posteriors.shape[1]}"
                )
            offset = self.prior_scale * self.log_prior
        loss, occupancy = full_sum(graph, log_posteriors, am_scale=self.am_scale, offset=offset)
        gradient = np.full(log_posteriors.shape, np.nan if np.isnan(loss) else 0.0, np.float32)
        if np.isfinite(loss):
            gradient[:, graph.labels] = occupancy * -self.am_scale
        return loss, gradient


def cross_entropy(posteriors: np.ndarray, alignment: np.ndarray) -> tuple[float, np.ndarray]:
    """The frame-wise cross-entropy of an alignment, as RASR gives it.

    Args:
        posteriors: [T, L] float, probabilities.
        alignment: [T] label of each frame; any dtype, whole numbers.

    Returns:
        ``(loss, error)``: the sum over frames of -log of the aligned label's posterior, and
        posteriors minus one-hot targets [T, L] float32: the derivative with respect to what goes
        into the softmax.

    Raises:
        ValueError: the alignment has another length or labels that there are not.
    """
    frames, labels = posteriors.shape
    target = np.asarray(alignment)
    if target.shape != (frames,):
        raise ValueError(
            f"alignment must have one label for each of the {frames} frames; "
            f"its shape is {target.shape}"
        )
    index = target.astype(np.int64)
    if not (index == target).all() or (frames and not 0 <= index.min() <= index.max() < labels):
        raise ValueError(f"alignment must hold whole numbers from 0 to {labels - 1}")
    at = np.arange(frames), index
    with np.errstate(divide="ignore"):
        loss = -np.log(posteriors[at].astype(np.float64)).sum()
    error = np.array(posteriors, dtype=np.float32)
    error[at] -= 1.0
    return float(loss), error


def read_log_prior(path: str) -> np.ndarray:
    """Reads a vector of numbers: ``.npy``, plain text, or RASR's XML.

    Args:
        path: relative to the working directory.

    Returns:
        [L] float64.

    Raises:
        ConfigurationError: missing file, or no vector of finite numbers in it.
    """
    try:
        if path.endswith(".npy"):
            values = np.load(path, allow_pickle=False).astype(np.float64)
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            match = re.search(r"<vector-f(?:32|64)[^>]*>(.*?)</vector-f", text, re.DOTALL)
            values = np.array((match.group(1) if match else text).split(), dtype=np.float64)
    except OSError as error:
        raise ConfigurationError(f"cannot read the prior file {path!r}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"the prior file {path!r} holds no numbers: {error}") from None
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ConfigurationError(
            f"the prior file {path!r} must hold a vector of finite numbers; "
            f"its shape is {values.shape}"
        )
    return values


def refuse_error_signal(criterion: str) -> NotOfferedError:
    """The error for a derivative that RASR does not have either."""
    return NotOfferedError(
        f"the criterion {criterion!r} has no output_error_type 'error-signal'; "
        "use 'error-signal-before-softmax'"
    )
