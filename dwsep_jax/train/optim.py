"""Learning-rate schedules, optimizers, and which parameters decay.

An optimizer is `chain(clipping, scale_by_<name>, descent)`; the descent has the weight
decay, the schedule and the peak rate, and frozen parameters are left out. A schedule is
only a shape in [0, 1]. Peak rate and decay are leaves of the optimizer's state, so that
runs which differ only in them share a program.
"""

import fnmatch
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from dwsep_jax.errors import ConfigError, choose

Schedule = Callable[[jax.Array], jax.Array]


class Optimizer(NamedTuple):
    """An optimizer, and the rate and decay that suit it at a batch size of 128."""

    scale_by: Callable[[float], optax.GradientTransformation]  # of the momentum
    learning_rate: float
    weight_decay: float
    rate_exponent: float  # the rate grows with (batch_size / 128) to this power


def _rmsprop(momentum):
    rms = optax.scale_by_rms(decay=0.99, eps=1e-8, bias_correction=True)
    return optax.chain(rms, optax.trace(decay=momentum))


# The best of rates a factor of three apart, or the lower of two equally good ones,
# measured on digits (benchmarks/recipes.py), and for sgd on CIFAR-10.
OPTIMIZERS = {
    "sgd": Optimizer(partial(optax.trace, nesterov=True), 0.1, 5e-3, 1.0),
    "adam": Optimizer(partial(optax.scale_by_adam, b2=0.999), 5e-3, 0.0, 0.5),
    "adamw": Optimizer(partial(optax.scale_by_adam, b2=0.999), 5e-3, 0.05, 0.5),
    "rmsprop": Optimizer(_rmsprop, 5e-4, 0.05, 0.5),
    "lion": Optimizer(partial(optax.scale_by_lion, b2=0.99), 1e-3, 0.5, 0.5),
}


# Progress from 0 to 1 after the warm-up -> share of the peak rate.
SCHEDULES = {
    # Half a cosine (Loshchilov and Hutter 2017).
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    # The falling side of a triangle (Smith and Topin 2018).
    "onecycle": lambda progress: 1 - progress,
    # A tenth from a half on, a hundredth from three quarters on (Huang 2017).
    "step": lambda p: jnp.where(p < 0.5, 1.0, jnp.where(p < 0.75, 0.1, 0.01)),
    # Down to a hundredth, by the same factor at each step.
    "exponential": lambda progress: 0.01**progress,
    "constant": jnp.ones_like,
    # The state's multiplier does the rest: see `update_plateau`.
    "plateau": jnp.ones_like,
}


def make_schedule(config: ConfigDict, steps_per_epoch: int) -> Schedule:
    """Return step -> share of the peak learning rate, in [0, 1].

    Rises linearly over `warmup_epochs`, then follows the shape of `schedule` over the
    rest of `num_epochs`.

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
    """Return the configuration with suitable values for unset rate, decay and warm-up.

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
        share = 0.25 if config.schedule == "onecycle" else 0.05
        config.warmup_epochs = config.num_epochs * share
    return config


class Plateau(NamedTuple):
    """The state of the plateau schedule, as scalars.

    Attributes:
      multiplier: of the learning rate, float32; 1 with any other schedule.
      best_loss: the lowest validation loss, float32.
      epochs_since_best: int32.
    """

    multiplier: jax.Array
    best_loss: jax.Array
    epochs_since_best: jax.Array


def make_plateau() -> Plateau:
    """Return the state before the first epoch."""
    # Not infinite, which JAX_DEBUG_INFS would take for an error.
    highest = jnp.finfo(jnp.float32).max
    return Plateau(jnp.float32(1), jnp.float32(highest), jnp.int32(0))


def update_plateau(config: ConfigDict, plateau: Plateau, val_loss: float) -> Plateau:
    """Return the plateau's state after an epoch; with another schedule, it stays.

    The multiplier shrinks by `plateau_factor` once the validation loss has not fallen
    by one part in ten thousand for `plateau_patience` epochs; then the count starts
    over.
    """
    if config.schedule != "plateau":
        return plateau
    better = val_loss < plateau.best_loss * (1 - 1e-4)
    waited = jnp.where(better, 0, plateau.epochs_since_best + 1)
    expired = waited >= config.plateau_patience
    lower = plateau.multiplier * config.plateau_factor
    return Plateau(
        jnp.where(expired, lower, plateau.multiplier),
        jnp.where(better, jnp.float32(val_loss), plateau.best_loss),
        jnp.where(expired, 0, waited).astype(jnp.int32),
    )


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
        return DescentState(
            jnp.zeros((), jnp.int32),
            jnp.asarray(learning_rate, jnp.float32),
            jnp.asarray(weight_decay, jnp.float32),
        )

    def update(updates, state, params):
        rate = schedule(state.count) * state.learning_rate

        def step(u, p):
            is_kernel = p.ndim > 1  # Biases and the scales of norms do not decay.
            return -rate * (u + state.weight_decay * p if is_kernel else u)

        updates = jax.tree.map(step, updates, params)
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
    parts = [
        recipe.scale_by(config.momentum),
        descend(schedule, config.learning_rate, config.weight_decay),
    ]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.freeze:
        is_frozen = partial(frozen_mask, config.freeze)
        parts.append(optax.masked(optax.set_to_zero(), is_frozen))
    return optax.chain(*parts)


def frozen_mask(patterns: str, params: Any) -> Any:
    """Return a tree of bools: True for parameters that are not to be trained.

    Args:
      patterns: of names such as stem/conv/kernel, with `*` for any text; several with
        commas between them.
      params: nested dicts.

    Raises:
      ConfigError: if a pattern matches no parameter.
    """
    frozen = dict.fromkeys(flatten_dict(params, sep="/"), False)
    for pattern in re.split(r"\s*,\s*", patterns.strip()):
        names = fnmatch.filter(frozen, pattern)
        if not names:
            raise ConfigError(
                f"--config.freeze={patterns}: no parameter is called {pattern}; "
                f"there are {', '.join(frozen)}"
            )
        frozen |= dict.fromkeys(names, True)
    return unflatten_dict(frozen, sep="/")
