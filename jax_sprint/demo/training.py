"""One jitted training step per route, and the loop around it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_sprint.demo.batches import Bucket, batch_stream, spec_augment
from jax_sprint.demo.corpus import DemoError
from jax_sprint.demo.dataset import Part
from jax_sprint.demo.features import NUM_MEL_BINS
from jax_sprint.demo.model import (
    SUBSAMPLING,
    AcousticModel,
    frame_log_posteriors,
    output_lengths,
)
from jax_sprint.demo.padding import Padding
from jax_sprint.demo.progress import shown
from jax_sprint.demo.routes import Route

__all__ = ["Recipe", "Trained", "initial_parameters", "make_step", "train"]

Parameters = Any

_RISING_STEPS = 100
_MOST_BUCKETS = 7
_STEPS_OF_A_BUCKET = 120


@dataclass(frozen=True)
class Recipe:
    """What both routes train with.

    Attributes:
        steps: number of updates.
        batch_size: segments in each.
        warm_up: share of the steps in which longer segments join in; short ones come first.
        learning_rate: at its peak.
        weight_decay: of AdamW.
        seed: of the initial parameters, the order of the batches and the augmentation.
    """

    steps: int
    batch_size: int = 32
    warm_up: float = 0.3
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    seed: int = 0

    @property
    def num_buckets(self) -> int:
        """How many shapes to plan for; each is compiled, which takes as long as some 100 steps."""
        return min(max(self.steps // _STEPS_OF_A_BUCKET, 1), _MOST_BUCKETS)

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW on clipped gradients; the rate rises for 100 steps and falls like a cosine.

        It rises with the square of the steps: Adam's first updates, divided by hardly known
        moments, would otherwise blow up rounding into a visible difference between two routes to
        the same loss.
        """
        falling = optax.cosine_decay_schedule(
            self.learning_rate, max(self.steps - _RISING_STEPS, 1), alpha=0.02
        )

        def schedule(step):
            risen = jnp.minimum(jnp.asarray(step, jnp.float32) / _RISING_STEPS, 1.0)
            return risen**2 * falling(jnp.maximum(step - _RISING_STEPS, 0))

        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, weight_decay=self.weight_decay),
        )


@dataclass
class Trained:
    """What came out of a training.

    Attributes:
        parameters: of the model.
        loss: of each step, the mean over its segments, in nats.
        milliseconds: wall time of each step, making its batch and waiting for it included.
        frames: input frames (10 ms each) in each step, padding not counted.
        compiled: whether that step was the first of its shape.
        padding: what was computed for nothing.
        seconds: wall time of it all.
        cpu_seconds: processor time of this process, its children not counted.
    """

    parameters: Parameters
    loss: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    compiled: list[bool] = field(default_factory=list)
    padding: Padding = field(default_factory=Padding)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def step_ms(self) -> float:
        """Median time of a step in milliseconds, those that compiled left out."""
        return float(np.median(self._warm(self.milliseconds)))

    @property
    def frames_per_second(self) -> float:
        """Input frames per second of training, steps that compiled left out."""
        return float(1e3 * np.sum(self._warm(self.frames)) / np.sum(self._warm(self.milliseconds)))

    def _warm(self, values: list[Any]) -> list[Any]:
        warm = [value for value, first in zip(values, self.compiled, strict=True) if not first]
        return warm or values


def initial_parameters(model: AcousticModel, seed: int) -> Parameters:
    """Draws the parameters that training starts from; they depend on the seed alone."""
    features = jnp.zeros((1, 4 * SUBSAMPLING, NUM_MEL_BINS), jnp.float32)
    lengths = jnp.full((1,), features.shape[1], jnp.int32)
    return jax.jit(model.init, static_argnames="train")(
        jax.random.key(seed), features, lengths, train=False
    )


def train(
    model: AcousticModel,
    part: Part,
    buckets: list[Bucket],
    route: Route,
    recipe: Recipe,
    *,
    progress: bool = True,
) -> Trained:
    """Trains a model by one route.

    Parameters, batches and augmentation depend on the seed of the recipe, not on the route.

    Args:
        model: what to train.
        part: what to train on.
        buckets: of `part`, made for the recipe.
        route: where the loss comes from.
        recipe: everything else.
        progress: whether to show a bar, on standard error.

    Returns:
        The parameters and what happened on the way.

    Raises:
        DemoError: if not one segment of a batch has a loss.
        SprintError: if Sprint fails; a `jax.errors.JaxRuntimeError` where it does so inside the
            compiled step.
    """
    optimizer = recipe.optimizer()
    parameters = initial_parameters(model, recipe.seed)
    state = (parameters, optimizer.init(parameters))
    step = make_step(model, optimizer, route)
    key = jax.random.key(recipe.seed + 1)
    stream = batch_stream(
        buckets,
        part.features,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        warm_up=round(recipe.warm_up * recipe.steps),
    )
    augmentation = np.random.default_rng([recipe.seed, 1])
    done = Trained(parameters)

    def recent() -> str:
        last = slice(-10, None)
        speed = 1e3 * sum(done.frames[last]) / sum(done.milliseconds[last])
        return f"loss {np.mean(done.loss[last]):.3f}, {speed:,.0f} frames/s"

    began, cpu_began = time.perf_counter(), time.process_time()
    step_began = began
    with contextlib.closing(route.supervise(itertools.islice(stream, recipe.steps))) as supervised:
        steps = shown(
            supervised,
            f"route {route.name}",
            total=recipe.steps,
            unit="steps",
            details=recent,
            enabled=progress,
        )
        for number, (batch, targets) in enumerate(steps):
            masked = spec_augment(augmentation, batch.features, batch.lengths)
            state, loss, valid = step(
                state, masked, batch.lengths, targets, jax.random.fold_in(key, number)
            )
            # Sprint without a criterion answers 0 everywhere, which would train nothing, in
            # silence.
            if not int(valid) or (number == 0 and float(loss) == 0.0):
                raise DemoError(
                    f"route {route.name} has no loss for any segment of step {number + 1}, such as"
                    f" {part.tags[batch.indices[0]]!r}: Sprint skips them or has no criterion"
                )
            done.loss.append(float(loss))
            now = time.perf_counter()
            done.milliseconds.append(1e3 * (now - step_began))
            step_began = now
            done.frames.append(int(batch.lengths.sum()))
            done.compiled.append(done.padding.add(batch, targets))
    done.parameters = jax.block_until_ready(state[0])
    done.seconds = time.perf_counter() - began
    done.cpu_seconds = time.process_time() - cpu_began
    return done


def make_step(
    model: AcousticModel, optimizer: optax.GradientTransformation, route: Route
) -> Callable[..., Any]:
    """Compiles one update.

    Args:
        model: what to train.
        optimizer: how.
        route: where the loss comes from.

    Returns:
        A jitted function of the state (parameters and optimizer's state, which it takes over),
        features [B, T, D], lengths [B], the route's targets and a random key; it gives the new
        state, the mean loss, and of how many segments that is.
    """

    def step(state, features, lengths, targets, key):
        parameters, optimizer_state = state

        def mean_loss(parameters):
            log_posteriors = frame_log_posteriors(
                model, parameters, features, lengths, train=True, rngs={"dropout": key}
            )
            loss, valid = route.loss(log_posteriors, output_lengths(lengths), targets)
            # One segment without a path must not make the whole batch infinite.
            number = jnp.sum(valid.astype(jnp.float32))
            total = jnp.sum(jnp.where(valid, loss, jnp.float32(0)))
            return total / jnp.maximum(number, jnp.float32(1)), number

        (loss, valid), gradient = jax.value_and_grad(mean_loss, has_aux=True)(parameters)
        update, optimizer_state = optimizer.update(gradient, optimizer_state, parameters)
        return (optax.apply_updates(parameters, update), optimizer_state), loss, valid

    return jax.jit(step, donate_argnums=0)
