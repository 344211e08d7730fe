"""The training state, one training step and one evaluation step as pure functions.

`train_step` gets no configuration: what it depends on is a leaf of the state, or, if it
makes another program, a static field of it or of the model and the optimizer.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from dwsep_jax.config import run_fields
from dwsep_jax.data import Dataset
from dwsep_jax.data.augment import Augment
from dwsep_jax.data.order import batch_indices
from dwsep_jax.nn.densenet import create_model
from dwsep_jax.nn.shifted import per_channel
from dwsep_jax.train.class_weights import make_class_weights
from dwsep_jax.train.metrics import Metrics, measure
from dwsep_jax.train.optim import Plateau, make_optimizer, make_plateau, make_schedule

Batch = dict[str, jax.Array]

# Fields whose values are leaves of the state: runs that differ in them share a program.
# Some are off at 0, which makes another, smaller program.
_ALWAYS_IN_THE_STATE = ("learning_rate", "weight_decay")
_IN_THE_STATE_ABOVE_0 = ("dropout_rate", "label_smoothing")


class Average(struct.PyTreeNode):
    """A running average of the weights, with batch statistics of its own.

    Attributes:
      params: as in `TrainState`.
      batch_stats: as in `TrainState`.
      decay: share of the old average that a late step keeps, float32.
    """

    params: Any
    batch_stats: Any
    decay: jax.Array


class TrainState(struct.PyTreeNode):
    """Everything that training changes, and the constants that `train_step` needs.

    Attributes:
      step: steps taken, int32 scalar.
      params: trainable parameters.
      batch_stats: running batch statistics.
      opt_state: state of the optimizer.
      key: random key of all steps, constant; a step's keys derive from (key, step).
      ema: the running average of the weights; None if there is none.
      plateau: scales the learning rate, by `optim.update_plateau`.
      apply_fn: `model.apply`.
      tx: the optimizer.
      dropout_rate: passed to the model as `dropout_rate`, float32 scalar; if None, the
        model is called without it, and uses its own rate, if any.
      label_smoothing: share of each label that is spread evenly over all classes
        (Szegedy et al. 2016), float32 scalar; None for no smoothing.
      class_weights: K numbers, as for `cross_entropy`; None for no weights.
      accumulate: parts that a batch is divided into, each with batch statistics of its
        own; their gradients are averaged.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    key: jax.Array
    ema: Average | None
    plateau: Plateau
    apply_fn: Callable = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)
    dropout_rate: jax.Array | None = None
    label_smoothing: jax.Array | None = None
    class_weights: tuple[float, ...] | None = struct.field(
        pytree_node=False, default=None
    )
    accumulate: int = struct.field(pytree_node=False, default=1)


class RunKeys(NamedTuple):
    """The random keys of a run: for initial parameters, data order and steps."""

    init: jax.Array
    order: jax.Array
    steps: jax.Array


def make_run_keys(seed: int) -> RunKeys:
    """Derive the keys of a run from its seed."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 3))


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    keys: RunKeys,
    ema_decay: float = 0.0,
) -> TrainState:
    """Draw initial parameters for images of shape (H, W, C).

    The model is called as `model.apply(variables, images, train=...)`. With a decay
    above 0 the state keeps a running average of the weights.
    """

    @jax.jit
    def init():
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(keys.init, images, train=False)
        return variables["params"], variables.get("batch_stats", {})

    params, batch_stats = init()
    # Copied: a buffer can be donated once, so that no two leaves may share one.
    average, opt_state = jax.tree.map(
        jnp.copy, ((params, batch_stats), tx.init(params))
    )
    ema = Average(*average, jnp.float32(ema_decay)) if ema_decay else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        key=keys.steps,
        ema=ema,
        plateau=make_plateau(),
        apply_fn=model.apply,
        tx=tx,
    )


def make_state(
    config: ConfigDict, dataset: Dataset, abstract: bool = False
) -> TrainState:
    """Return the initial state of the run of a resolved configuration.

    Args:
      config: with rate, decay and warm-up set.
      dataset: gives classes, shape of the images and steps of an epoch.
      abstract: return shapes and dtypes in place of arrays; nothing is computed.

    Raises:
      ConfigError: for an unknown choice, or class.
    """
    network = len(dataset.class_names), dataset.image_shape
    steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    init = _make_init(static_fields(config), *network, steps_per_epoch)
    names = _ALWAYS_IN_THE_STATE + _IN_THE_STATE_ABOVE_0
    arguments = make_run_keys(config.seed), {name: config[name] for name in names}
    state = jax.eval_shape(init, *arguments) if abstract else init(*arguments)
    weights = make_class_weights(config.class_weights, dataset)
    return state.replace(class_weights=weights, accumulate=config.accumulate)


def static_fields(config: ConfigDict) -> tuple[tuple[str, Any], ...]:
    """Return what distinguishes programs: equal for two runs that share a program."""
    in_the_state = dict.fromkeys(("seed", *_ALWAYS_IN_THE_STATE), 0)
    in_the_state |= {name: config[name] > 0 for name in _IN_THE_STATE_ABOVE_0}
    return tuple((run_fields(config) | in_the_state).items())


@functools.lru_cache(maxsize=8)
def _make_init(fields, num_classes, image_shape, steps_per_epoch):
    """Return (keys, rates) -> state, one function for all runs that share a program.

    Programs are distinguished by `apply_fn` and `tx`, among others. These states share
    them; neither reads a value that the state holds.
    """
    static = dict(fields)
    config = ConfigDict(static | dict.fromkeys(_IN_THE_STATE_ABOVE_0, 0))
    schedule = make_schedule(config, steps_per_epoch)
    model, tx = create_model(config, num_classes), make_optimizer(config, schedule)

    def init(keys, rates):
        own_tx = make_optimizer(ConfigDict(static | rates), schedule)
        state = create_train_state(model, own_tx, image_shape, keys, config.ema_decay)
        above_0 = {n: jnp.float32(rates[n]) for n in _IN_THE_STATE_ABOVE_0 if static[n]}
        return state.replace(tx=tx, **above_0)

    # For so small a program, the CPU compiler would spend more time than it saves.
    is_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if is_cpu else None
    return jax.jit(init, compiler_options=options)


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Take one step down the gradient of the mean of `cross_entropy`.

    Args:
      state: the state before.
      batch: `image`, (N, H, W, C) floating point in [-1, 1]; `label`, classes int (N,)
        or probabilities of the classes (N, K).

    Returns:
      The state after, and the metrics of this batch as trained (with dropout, before
      the step).

    Raises:
      ValueError: for another dtype or shape.
    """
    _check_images(batch["image"])
    gradients = partial(_gradients, state, batch)
    (loss, (losses, logits, labels, batch_stats)), grads = gradients(state.params)
    tx = optax.with_extra_args_support(state.tx)
    updates, opt_state = tx.update(
        grads,
        state.opt_state,
        state.params,
        value=loss,
        grad=grads,
        value_fn=lambda params: gradients(params)[0][0],
    )
    updates = jax.tree.map(lambda u: state.plateau.multiplier * u, updates)
    params = optax.apply_updates(state.params, updates)
    hard_labels = labels if labels.ndim == 1 else labels.argmax(axis=-1)
    metrics = measure(losses, logits, hard_labels, jnp.ones(losses.shape, bool))
    state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=state.ema and _update_average(state.ema, state.step, params, batch_stats),
    )
    return state, metrics


def _gradients(state, batch, params):
    """Return (loss, (losses, logits, labels, batch statistics)) and the gradients.

    With `state.accumulate` parts, each of every so many examples, one is computed after
    the other: losses, logits and labels are in the order of the parts.
    """
    _, dropout_key = _step_keys(state)
    rates = {} if state.dropout_rate is None else {"dropout_rate": state.dropout_rate}

    def loss_fn(params, batch_stats, batch, key):
        logits, updated = state.apply_fn(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            **rates,
        )
        labels = batch["label"]
        losses = cross_entropy(
            logits, labels, state.label_smoothing, state.class_weights
        )
        return losses.mean(), (losses, logits, labels, updated.get("batch_stats", {}))

    take = jax.value_and_grad(loss_fn, has_aux=True)
    if (n := state.accumulate) == 1:
        return take(params, state.batch_stats, batch, dropout_key)

    def add(carry, part):
        batch_stats, total = carry
        (loss, (*each, batch_stats)), grads = take(params, batch_stats, *part)
        total = jax.tree.map(lambda t, new: t + new / n, total, (loss, grads))
        return (batch_stats, total), each

    parts = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)
    start = state.batch_stats, jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    keys = jax.random.split(dropout_key, n)
    (batch_stats, (loss, grads)), each = jax.lax.scan(add, start, (parts, keys))
    each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)
    return (loss, (*each, batch_stats)), grads


def _update_average(ema, step, params, batch_stats):
    """Move the average, which forgets faster than its decay while it is young."""
    age = step.astype(jnp.float32)
    share = 1 - jnp.minimum(ema.decay, (1 + age) / (10 + age))
    return ema.replace(
        params=optax.incremental_update(params, ema.params, share),
        batch_stats=optax.incremental_update(batch_stats, ema.batch_stats, share),
    )


def averaged(state: TrainState) -> TrainState:
    """Return the state with its weights replaced by their average."""
    return state.replace(params=state.ema.params, batch_stats=state.ema.batch_stats)


def train_many(
    state: TrainState,
    total: Metrics,
    data: Batch,
    permutation: jax.Array,
    *,
    augment: Augment,
    batch_size: int,
    num_steps: int,
) -> tuple[TrainState, Metrics, jax.Array]:
    """Take the next steps of an epoch, in the order of a permutation.

    Args:
      state: the state before; its step says where in the epoch it is.
      total: metrics that those of the steps are added to.
      data: on the device: `image`, uint8 (M, H, W, C); `label`, int (M,).
      permutation: the epoch's order of the M examples, int (M,).
      augment: as `augment.make_augment` returns it.
      batch_size: examples per step.
      num_steps: steps to take.

    Returns:
      The state after; the metrics; the loss of each step, float32 (num_steps,), NaN
      where the step left a parameter that is not finite.

    Raises:
      ValueError: for another dtype or shape, or a batch larger than the epoch.
    """
    images, labels = data["image"], data["label"]
    if images.dtype != jnp.uint8 or not (
        labels.shape == permutation.shape == images.shape[:1]
    ):
        raise ValueError(
            f"image {jax.typeof(images)}, label {jax.typeof(labels)} and permutation "
            f"{jax.typeof(permutation)} must be uint8 (M, H, W, C), int (M,), int (M,)"
        )
    if not 1 <= batch_size <= len(labels):
        raise ValueError(f"batch_size={batch_size} must be 1 to {len(labels)}")
    steps_per_epoch = permutation.shape[0] // batch_size

    def take_step(carry, _):
        state, total = carry
        step_in_epoch = state.step % steps_per_epoch
        indices = batch_indices(permutation, step_in_epoch, batch_size)
        key, _ = _step_keys(state)
        image, label = augment(key, images[indices], labels[indices])
        state, metrics = train_step(state, {"image": image, "label": label})
        loss = metrics.compute()["loss"]
        loss = jnp.where(jnp.isfinite(optax.tree.norm(state.params)), loss, jnp.nan)
        return (state, total.merge(metrics)), loss

    if num_steps == 1:  # A loop of one step would only hide it from the compiler.
        carry, loss = take_step((state, total), None)
        return *carry, loss[None]
    carry, losses = jax.lax.scan(take_step, (state, total), length=num_steps)
    return *carry, losses


def eval_step(state: TrainState, batch: Batch) -> tuple[Metrics, jax.Array]:
    """Classify a batch with running statistics and without dropout.

    Args:
      state: the state to evaluate.
      batch: `image`, (N, H, W, C) floating point in [-1, 1]; `label`, int (N,);
        `mask`, bool (N,), False for padding, which is not counted.

    Returns:
      Metrics of the batch, and probabilities of the classes, float32 (N, K).

    Raises:
      ValueError: for another dtype or shape.
    """
    _check_images(batch["image"])
    labels, mask = batch["label"], batch["mask"]
    if labels.ndim != 1 or mask.shape != labels.shape or mask.dtype != bool:
        raise ValueError(
            f"labels {jax.typeof(labels)} and mask {jax.typeof(mask)} must be int (N,) "
            "and bool (N,)"
        )
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, batch["image"], train=False)
    metrics = measure(cross_entropy(logits, labels), logits, labels, mask)
    return metrics, nn.softmax(logits)


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: jax.Array | None = None,
    class_weights: Sequence[float] | None = None,
) -> jax.Array:
    """Return the cross-entropy (N,) in nats of logits (N, K).

    Labels are classes, int (N,), or probabilities, float (N, K). A smoothing spreads
    that share of each evenly over the classes; before or after mixup is the same, as
    both are linear. K class weights multiply the terms of the sum over classes,
    as in PyTorch; their mean is over images, as in Keras, not over weights.

    Raises:
      ValueError: for labels of another dtype or shape.
    """
    is_integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if labels.shape != (logits.shape[:1] if is_integer else logits.shape):
        raise ValueError(
            f"labels {jax.typeof(labels)} do not fit logits {jax.typeof(logits)}: they "
            "must be classes, int (N,), or probabilities of the classes, float (N, K)"
        )
    if is_integer and smoothing is None and class_weights is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if is_integer:
        labels = jax.nn.one_hot(labels, logits.shape[-1])
    if smoothing is not None:
        labels = optax.smooth_labels(labels, smoothing)
    if class_weights is not None:
        weights = jnp.asarray(class_weights, labels.dtype)
        labels = labels * per_channel(weights, labels.ndim)
    return optax.softmax_cross_entropy(logits, labels)


def _check_images(images):
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images {jax.typeof(images)} must be floating point in [-1, 1]: see "
            "`dwsep_jax.data.augment.normalize`"
        )


def _step_keys(state):
    """Return the keys of a step: (augmentation, dropout)."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))
