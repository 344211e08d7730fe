"""One training step and one evaluation step, as pure functions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from dwsep_jax.augment import Augment, mixup
from dwsep_jax.data import Dataset
from dwsep_jax.errors import ConfigError
from dwsep_jax.metrics import Metrics, measure
from dwsep_jax.models import create_model
from dwsep_jax.optim import make_optimizer, make_schedule

Batch = dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """All that training changes, plus the two functions that change it.

    Attributes:
      step: steps taken, int32 scalar.
      params: trainable parameters.
      batch_stats: running batch statistics.
      opt_state: state of the optimizer.
      key: random key of all steps; never changes, a step's keys come of (key, step).
      apply_fn: `model.apply`.
      tx: the optimizer.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    key: jax.Array
    apply_fn: Callable = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)


class RunKeys(NamedTuple):
    """The random keys of a run: initial parameters, order of the data, steps."""

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
) -> TrainState:
    """Draw initial parameters for images of shape (H, W, C).

    The model is called as `model.apply(variables, images, train=...)`.
    """

    @jax.jit
    def init():
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(keys.init, images)
        return variables["params"], variables.get("batch_stats", {})

    params, batch_stats = init()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        key=keys.steps,
        apply_fn=model.apply,
        tx=tx,
    )


def make_train_state(config: ConfigDict, dataset: Dataset) -> TrainState:
    """Return the state in which the run of a resolved configuration starts.

    Raises:
      ConfigError: for an unknown choice, or a batch larger than the training split.
    """
    # The program runs once: the CPU compiler would spend more than it saves.
    is_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if is_cpu else None
    return jax.jit(_state_maker(config, dataset), compiler_options=options)()


def check_train_state(config: ConfigDict, dataset: Dataset) -> None:
    """Raise what `make_train_state` would raise, without computing anything."""
    jax.eval_shape(_state_maker(config, dataset))


def _state_maker(config, dataset):
    steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    if steps_per_epoch == 0:
        raise ConfigError(
            f"batch_size={config.batch_size} is more than the "
            f"{len(dataset.train.labels)} training images; take a smaller one"
        )
    model = create_model(config, len(dataset.class_names))
    tx = make_optimizer(config, make_schedule(config, steps_per_epoch))
    image_shape = dataset.train.images.shape[1:]
    keys = make_run_keys(config.seed)
    return partial(create_train_state, model, tx, image_shape, keys)


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Take one step down the gradient of the mean cross-entropy.

    Args:
      state: the state before.
      batch: `image`, (N, H, W, C) floating point in [-1, 1]; `label`, classes int (N,)
        or probabilities of the classes (N, K).

    Returns:
      The state after, and the metrics of this batch as trained (with dropout, before
      the step).
    """
    labels = batch["label"]
    _, dropout_key = _step_keys(state)

    def loss_fn(params):
        logits, updated = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = cross_entropy(logits, labels)
        return losses.mean(), (losses, logits, updated.get("batch_stats", {}))

    grads, (losses, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    hard_labels = labels if labels.ndim == 1 else labels.argmax(axis=-1)
    metrics = measure(losses, logits, hard_labels, jnp.ones(losses.shape, bool))
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, metrics


def train_on_indices(
    state: TrainState,
    data: Batch,
    indices: jax.Array,
    *,
    augment: Augment,
    mixup_alpha: float,
    num_classes: int,
) -> tuple[TrainState, Metrics]:
    """Gather a batch from data on the device, augment it, and take a `train_step`.

    Args:
      state: the state before.
      data: `image`, uint8 (M, H, W, C); `label`, int (M,).
      indices: which examples, int (N,).
      augment: as `augment.make_augment` returns it.
      mixup_alpha: as in `augment.mixup`; 0: no mixup.
      num_classes: K.
    """
    augment_key, _ = _step_keys(state)
    image_key, mixup_key = jax.random.split(augment_key)
    images = augment(image_key, data["image"][indices])
    labels = data["label"][indices]
    if mixup_alpha:
        labels = jax.nn.one_hot(labels, num_classes)
        images, labels = mixup(mixup_key, images, labels, mixup_alpha)
    return train_step(state, {"image": images, "label": labels})


def eval_step(state: TrainState, batch: Batch) -> tuple[Metrics, jax.Array]:
    """Classify a batch with running statistics and without dropout.

    Args:
      state: the state to evaluate.
      batch: `image`, (N, H, W, C) floating point in [-1, 1]; `label`, int (N,);
        `mask`, bool (N,), False for padding, which does not count.

    Returns:
      Metrics of the batch, and probabilities of the classes, float32 (N, K).
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, batch["image"], train=False)
    losses = cross_entropy(logits, batch["label"])
    metrics = measure(losses, logits, batch["label"], batch["mask"])
    return metrics, nn.softmax(logits)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy (N,) in nats of logits (N, K).

    Labels are classes, int (N,), or probabilities, (N, K).
    """
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, labels)


def _step_keys(state):
    """Return the keys of a step: (augmentation, dropout)."""
    augment_key, dropout_key = jax.random.split(
        jax.random.fold_in(state.key, state.step)
    )
    return augment_key, dropout_key
