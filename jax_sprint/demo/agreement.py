"""Do both routes say the same?  Loss and gradient of every segment, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint import SprintInstancePool
from jax_sprint.demo.dataset import Part
from jax_sprint.demo.model import AcousticModel, output_lengths
from jax_sprint.demo.progress import shown
from jax_sprint.demo.routes import CallbackRoute, FsaRoute, Route

__all__ = ["Agreement", "compare_losses", "compare_routes"]

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-5
FIRST_STEPS = 20
FIRST_STEPS_TOLERANCE = 1e-4

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Agreement:
    """How far two routes are apart on a set of segments.

    Attributes:
        segments: how many were compared.
        without_path: how many have no path, by both routes.
        loss: largest relative difference of the losses.
        gradient: largest absolute difference of the gradients with respect to the logits.
    """

    segments: int
    without_path: int
    loss: float
    gradient: float

    @property
    def good(self) -> bool:
        """Whether both are within what single precision allows."""
        return self.loss <= LOSS_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


def compare_routes(
    model: AcousticModel,
    parameters: Any,
    part: Part,
    pool: SprintInstancePool,
    *,
    progress: bool = False,
) -> Agreement:
    """Computes loss and gradient of every segment by both routes.

    Args:
        model: gives the logits.
        parameters: of the model.
        part: whose segments to take.
        pool: the Sprint processes.
        progress: whether to show it, on standard error.

    Returns:
        The largest differences.
    """
    number = without_path = 0
    loss_apart = gradient_apart = 0.0
    buckets = part.evaluation_buckets()
    routes = [route(pool, part, buckets) for route in (FsaRoute, CallbackRoute)]
    functions = [_loss_and_gradient(route) for route in routes]
    forward = jax.jit(partial(model.apply, train=False))
    batches = part.batches(buckets, _BATCH_SIZE)
    supervised = zip(
        *(route.supervise(batch for batch, _ in batches) for route in routes), strict=True
    )
    pairs = shown(
        zip(batches, supervised, strict=True),
        "comparing the routes",
        total=len(batches),
        unit="batches",
        enabled=progress,
    )
    for (batch, rows), supervision in pairs:
        logits = forward(parameters, batch.features, batch.lengths)
        lengths = output_lengths(batch.lengths)
        (loss, gradient), (other_loss, other_gradient) = (
            function(logits, lengths, targets)
            for function, (_, targets) in zip(functions, supervision, strict=True)
        )
        loss, other_loss = np.asarray(loss)[:rows], np.asarray(other_loss)[:rows]
        finite = np.isfinite(loss)
        if not np.array_equal(finite, np.isfinite(other_loss)):
            return Agreement(number + rows, without_path, float("inf"), float("inf"))
        number += rows
        without_path += int(np.sum(~finite))
        loss_apart = max(loss_apart, _relative(loss[finite], other_loss[finite]))
        difference = np.abs(np.asarray(gradient) - np.asarray(other_gradient))
        gradient_apart = max(gradient_apart, float(difference.max(initial=0.0)))
    return Agreement(number, without_path, loss_apart, gradient_apart)


def compare_losses(losses: Sequence[float], others: Sequence[float]) -> float:
    """Gives the largest relative difference among the first 20 steps of two trainings."""
    return _relative(np.array(losses[:FIRST_STEPS]), np.array(others[:FIRST_STEPS]))


def _relative(values: np.ndarray, others: np.ndarray) -> float:
    size = np.maximum(np.abs(values), np.abs(others))
    apart = np.abs(values - others) / np.maximum(size, np.finfo(np.float32).tiny)
    return float(apart.max(initial=0.0))


def _loss_and_gradient(route: Route) -> Callable[..., Any]:
    @jax.jit
    def function(logits, lengths, targets):
        def total(logits):
            log_posteriors = jnp.swapaxes(jax.nn.log_softmax(logits), 0, 1)
            loss, valid = route.loss(log_posteriors, lengths, targets)
            return jnp.sum(jnp.where(valid, loss, jnp.float32(0))), loss

        gradient, loss = jax.grad(total, has_aux=True)(logits)
        return loss, gradient

    return function
