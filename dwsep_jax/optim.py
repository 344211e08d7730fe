"""Learning-rate schedules, optimizers, and which parameters decay.

An optimizer is `chain(scale_by_<name>, decoupled weight decay, schedule, peak rate)`.
A schedule is only a shape in [0, 1]; peak rate and decay are leaves of the optimizer's
state, so that runs which differ in them are one program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dwsep_jax.errors import choose

Schedule = Callable[[jax.Array], jax.Array]


class Recipe(NamedTuple):
    """An optimizer, with a usual rate and decay for it at a batch of 128 images.

    Usual is what other networks of this kind take; they are not yet tuned for this one.
    """

    scale_by: Callable[[float], optax.GradientTransformation]
    learning_rate: float
    weight_decay: float
    rate_exponent: float  # the rate grows with (batch_size / 128) to this power


def _sgd(momentum):
    return optax.trace(decay=momentum, nesterov=True)


def _adam(momentum):
    return optax.scale_by_adam(b1=momentum, b2=0.999)


def _rmsprop(momentum):
    rms = optax.scale_by_rms(decay=0.99, eps=1e-8, bias_correction=True)
    return optax.chain(rms, optax.trace(decay=momentum))


OPTIMIZERS = {
    "sgd": Recipe(_sgd, 0.1, 5e-3, 1.0),
    "adam": Recipe(_adam, 3e-3, 0.05, 0.5),
    "rmsprop": Recipe(_rmsprop, 3e-4, 0.05, 0.5),
}


def _cosine(progress):
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _constant(progress):
    return jnp.ones_like(progress)


SCHEDULES = {"cosine": _cosine, "constant": _constant}


def make_schedule(config: ConfigDict, steps_per_epoch: int) -> Schedule:
    """Return step -> share of the peak learning rate, in [0, 1].

    Rises linearly over `warmup_epochs`, then follows the shape of `schedule` over what
    is left of `num_epochs`.

    Raises:
      ConfigError: for an unknown schedule.
    """
    shape = choose("schedule", config.schedule, SCHEDULES)
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    decay_steps = max(1, config.num_epochs * steps_per_epoch - warmup_steps)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        warmup = (step + 1) / max(1, warmup_steps)
        progress = jnp.clip((step - warmup_steps) / decay_steps, 0.0, 1.0)
        return jnp.where(step < warmup_steps, warmup, shape(progress))

    return schedule


def resolve(config: ConfigDict) -> ConfigDict:
    """Return the configuration with unset rate, decay and warm-up set to usual ones.

    Raises:
      ConfigError: for an unknown optimizer.
    """
    recipe = choose("optimizer", config.optimizer, OPTIMIZERS)
    config = config.copy_and_resolve_references()
    if config.learning_rate is None:
        scale = (config.batch_size / 128) ** recipe.rate_exponent
        config.learning_rate = recipe.learning_rate * scale
    if config.weight_decay is None:
        config.weight_decay = recipe.weight_decay
    if config.warmup_epochs is None:
        config.warmup_epochs = config.num_epochs / 20
    return config


class DescentState(NamedTuple):
    """Steps taken (int32), peak learning rate and weight decay (float32), scalars."""

    count: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array


def descend(
    schedule: Schedule, learning_rate: float, weight_decay: float
) -> optax.GradientTransformation:
    """Turn a direction u into the step -rate * (u + weight_decay * kernels).

    The rate is `schedule(step) * learning_rate` (decoupled decay as in Loshchilov and
    Hutter 2019, times the rate as in `optax.adamw`).
    """

    def init(params):
        del params
        return DescentState(
            jnp.zeros((), jnp.int32),
            jnp.asarray(learning_rate, jnp.float32),
            jnp.asarray(weight_decay, jnp.float32),
        )

    def update(updates, state, params):
        rate = schedule(state.count) * state.learning_rate

        def step(u, p, decays):
            return -rate * (u + state.weight_decay * p if decays else u)

        updates = jax.tree.map(step, updates, params, decay_mask(params))
        return updates, state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    config: ConfigDict, schedule: Schedule
) -> optax.GradientTransformation:
    """Build the optimizer of a configuration whose rate and decay are resolved.

    Raises:
      ConfigError: for an unknown optimizer.
    """
    recipe = choose("optimizer", config.optimizer, OPTIMIZERS)
    return optax.chain(
        recipe.scale_by(config.momentum),
        descend(schedule, config.learning_rate, config.weight_decay),
    )


def decay_mask(params: Any) -> Any:
    """Return a tree of bools: True for kernels, False for biases and norms' scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
