"""Evaluation: every example of a split counted exactly once."""

import functools
import io
import math
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dwsep_jax import console, launch, processes
from dwsep_jax.data import Dataset, Split
from dwsep_jax.data.augment import normalize
from dwsep_jax.environment import compiler_options, describe_environment
from dwsep_jax.errors import DivergedError, UserError
from dwsep_jax.train import metrics
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.train.programs import BATCH_AXIS
from dwsep_jax.train.step import TrainState, averaged, eval_step
from dwsep_jax.workdir import Row, read_intact, score, write_atomically, write_json


@functools.cache
def _jit_eval_step(deterministic, mesh):
    def step(state, images, labels, mask):
        batch = {"image": normalize(images), "label": labels, "mask": mask}
        return eval_step(state, batch)

    return jax.jit(
        step,
        out_shardings=mesh and NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(deterministic),
    )


def evaluate(
    state: TrainState, split: Split, batch_size: int, deterministic: bool = False
) -> tuple[dict[str, float], np.ndarray]:
    """Evaluate a state on all examples of a split.

    The last batch is padded and masked; loss and accuracy are summed on the device and
    divided once.

    Args:
      state: its weights, running statistics and `apply_fn` are used.
      split: uint8 images (N, H, W, C) and labels int (N,).
      batch_size: images per step.
      deterministic: compute the same bits each time on a GPU.

    Returns:
      {loss (nats), accuracy}, and the probabilities of the classes, float32 (N, K).
    """
    # The devices that share batches; one device has none.
    mesh = getattr(state.step.sharding, "mesh", None)
    step = _jit_eval_step(deterministic, mesh)
    if mesh is not None:
        batch_size = -(-batch_size // mesh.size) * mesh.size
    sharding = mesh and NamedSharding(mesh, PartitionSpec(BATCH_AXIS))
    results = []
    for start in range(0, len(split.labels), batch_size):
        batch = slice(start, start + batch_size)
        mask = np.arange(batch.start, batch.stop) < len(split.labels)
        missing = (0, batch_size - mask.sum())
        images = np.pad(split.images[batch], (missing, (0, 0), (0, 0), (0, 0)))
        labels = np.pad(split.labels[batch], missing)
        arrays = processes.place((images, labels, mask), sharding)
        results.append(step(state, *arrays))
    totals, probabilities = zip(*results, strict=True)
    total = functools.reduce(metrics.Metrics.merge, totals)
    values = {name: float(value) for name, value in total.compute().items()}
    return values, np.concatenate(jax.device_get(probabilities))[: len(split.labels)]


def compile_evaluation(config: ConfigDict, dataset: Dataset, state: TrainState) -> None:
    """Evaluate one image, so that compilation is not charged to the first epoch."""
    start = time.perf_counter()
    image = Split(*(array[:1] for array in dataset.validation))
    evaluate(state, image, config.eval_batch_size, config.deterministic)
    seconds = time.perf_counter() - start
    console.say(f"compiled the evaluation step in {seconds:.1f} s")


def evaluate_epoch(config: ConfigDict, dataset: Dataset, state: TrainState) -> Row:
    """Return loss and accuracy on train_eval and validation, also of the EMA weights.

    Raises:
      DivergedError: if a loss is not finite.
    """
    validation = dataset.validation
    parts = {"train_eval": (state, dataset.train_eval), "val": (state, validation)}
    if state.ema is not None:
        parts["ema_val"] = (averaged(state), validation)
    row, options = {}, (config.eval_batch_size, config.deterministic)
    for prefix, (weights, split) in parts.items():
        values, _ = evaluate(weights, split, *options)
        row |= {f"{prefix}_{name}": value for name, value in values.items()}
        if not math.isfinite(values["loss"]):
            raise DivergedError(
                f"{prefix}_loss is {values['loss']} after step {int(state.step):,}; "
                f"try a learning_rate below {config.learning_rate:g}"
            )
    return row


def evaluate_and_write(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: Dataset,
    state: TrainState,
    split_name: str,
    network: str,
) -> dict[str, Any]:
    """Evaluate a state on a split, print the result and write it with its predictions.

    EMA weights, where the state has them, are evaluated in place of the raw ones. A
    temperature is fitted on validation, whatever the split, and its effect is printed.
    Writes evaluation.json and predictions.npz for `test`, evaluation-<split>.json and
    predictions-<split>.npz for the others.

    Args:
      config: resolved.
      workdir: of the run.
      dataset: of the run.
      state: the weights.
      split_name: train, validation or test.
      network: one line that describes it, to be printed.

    Returns:
      The content of the evaluation file.

    Raises:
      UserError: if the result, which has been printed, cannot be written.
    """
    split, validation = getattr(dataset, split_name), dataset.validation
    weights = state if state.ema is None else averaged(state)
    options = config.eval_batch_size, config.deterministic
    values, probabilities = evaluate(weights, split, *options)
    on_validation = probabilities
    if split is not validation:
        _, on_validation = evaluate(weights, validation, *options)
    temperature = metrics.fit_temperature(validation.labels, on_validation)
    scaled = metrics.with_temperature(probabilities, temperature)
    calibrated = metrics.calibration(split.labels, scaled)
    evaluation = {
        "schema": 1,
        "split": split_name,
        "weights": "raw" if state.ema is None else "ema",
        "epoch": int(state.step) // dataset.steps_per_epoch(config.batch_size),
        "num_examples": len(split.labels),
        **values,
        **metrics.classification_report(
            split.labels, probabilities, dataset.class_names
        ),
        "calibration": metrics.calibration(split.labels, probabilities),
        "temperature": temperature,
        "calibrated": {name: calibrated[name] for name in ("ece", "nll")},
        "image_shape": list(dataset.image_shape),
        "environment": describe_environment(config.dtype, config.seed),
    }
    console.print_evaluation(evaluation, network)
    if launch.is_first():
        _write(pathlib.Path(workdir), evaluation, split, probabilities)
    return evaluation


def _write(directory, evaluation, split, probabilities):
    suffix = f"-{evaluation['split']}".removesuffix("-test")
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays, id=split.ids, label=split.labels, probabilities=probabilities
    )
    try:
        # The evaluation last: where it exists, so do its predictions.
        write_atomically(directory / f"predictions{suffix}.npz", arrays.getvalue())
        write_json(directory / f"evaluation{suffix}.json", evaluation)
    except OSError as error:
        raise UserError(
            f"{directory}: the result above cannot be written there "
            f"({error.strerror}); free some space or make it writable, and repeat the "
            "command"
        ) from error


def read_evaluation(workdir: str | os.PathLike, epoch: int) -> dict[str, Any] | None:
    """Return evaluation.json, or None unless it is intact and of this epoch."""
    evaluation = read_intact(workdir, "evaluation")
    return evaluation if evaluation and evaluation["epoch"] == epoch else None


def restore_to_evaluate(
    config: ConfigDict, checkpoints: Checkpoints, state: TrainState | None
) -> TrainState | None:
    """Return the state of the last epoch, or of the best one with early stopping.

    The best has the highest validation accuracy. None if there is no checkpoint. If
    `state` is None, the result is nested dicts.
    """
    latest = checkpoints.restore_latest(state)
    if latest is None or not config.early_stopping:
        return latest and latest.tree
    rows = {row["epoch"]: row for row in latest.metadata["history"]}
    epochs = [epoch for epoch in checkpoints.epochs() if epoch in rows]
    by_score = sorted(epochs, key=lambda epoch: score(rows[epoch]), reverse=True)
    best = checkpoints.restore(by_score, state)
    return best and best.tree
