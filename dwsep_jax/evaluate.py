"""Evaluation: every example of a split counted once."""

import io
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dwsep_jax.augment import normalize
from dwsep_jax.checkpoint import Checkpoints
from dwsep_jax.console import print_evaluation
from dwsep_jax.data import Dataset, Split, load
from dwsep_jax.environment import describe_environment
from dwsep_jax.errors import UserError, choose
from dwsep_jax.files import write_atomically
from dwsep_jax.metrics import calibration, classification_report
from dwsep_jax.step import TrainState, eval_step, make_train_state
from dwsep_jax.summary import describe_network, summarize


@jax.jit
def _eval_step(state, images, labels, mask):
    batch = {"image": normalize(images), "label": labels, "mask": mask}
    return eval_step(state, batch)


def evaluate(
    state: TrainState, split: Split, batch_size: int
) -> tuple[dict[str, float], np.ndarray]:
    """Evaluate a state on all examples of a split.

    The last batch is padded and masked; loss and accuracy are summed on the device and
    divided once.

    Returns:
      {loss, accuracy}, and the probabilities of the classes, float32 (N, K).
    """
    total, probabilities = None, []
    for start in range(0, len(split.labels), batch_size):
        images = split.images[start : start + batch_size]
        labels = split.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        mask = np.arange(batch_size) < len(labels)
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        labels = np.pad(labels, (0, missing))
        metrics, batch_probabilities = _eval_step(state, images, labels, mask)
        total = metrics if total is None else total.merge(metrics)
        probabilities.append(batch_probabilities)
    values = {name: float(value) for name, value in total.compute().items()}
    return values, np.concatenate(jax.device_get(probabilities))[: len(split.labels)]


def evaluate_and_write(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: Dataset,
    state: TrainState,
    split_name: str,
) -> dict[str, Any]:
    """Evaluate a state on a split, and write its evaluation and predictions.

    Writes evaluation.json and predictions.npz for `test`, evaluation-<split>.json and
    predictions-<split>.npz for the others.

    Returns:
      The content of the evaluation file.
    """
    splits = {
        "train": dataset.train,
        "validation": dataset.validation,
        "test": dataset.test,
    }
    split = choose("split", split_name, splits)
    values, probabilities = evaluate(state, split, config.eval_batch_size)
    steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    evaluation = {
        "schema": 1,
        "split": split_name,
        "weights": "raw",
        "epoch": int(state.step) // steps_per_epoch,
        "num_examples": len(split.labels),
        **values,
        **classification_report(split.labels, probabilities, dataset.class_names),
        "calibration": calibration(split.labels, probabilities),
        "environment": describe_environment(config.dtype, config.seed),
    }
    suffix = "" if split_name == "test" else f"-{split_name}"
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays, id=split.ids, label=split.labels, probabilities=probabilities
    )
    directory = pathlib.Path(workdir)
    # The evaluation last: where it stands, its predictions do, too.
    write_atomically(directory / f"predictions{suffix}.npz", arrays.getvalue())
    text = json.dumps(evaluation, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(directory / f"evaluation{suffix}.json", text + "\n")
    return evaluation


def read_evaluation(workdir: str | os.PathLike, epoch: int) -> dict[str, Any] | None:
    """Return evaluation.json, or None unless it describes the weights of an epoch."""
    path = pathlib.Path(workdir) / "evaluation.json"
    try:
        evaluation = json.loads(path.read_bytes())
        return evaluation if evaluation["epoch"] == epoch else None
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def evaluate_workdir(
    config: ConfigDict, workdir: str | os.PathLike, split_name: str
) -> None:
    """Evaluate the latest checkpoint of a run on a split; write and print the result.

    Args:
      config: the resolved configuration of the run.
      workdir: where the run is.
      split_name: train, validation or test.

    Raises:
      UserError: if there is no checkpoint.
    """
    dataset = load(config)
    state = make_train_state(config, dataset)
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore_latest(state)
    if restored is None:
        raise UserError(
            f"{workdir} has no checkpoint yet; train it with --mode=train first"
        )
    evaluation = evaluate_and_write(config, workdir, dataset, restored.tree, split_name)
    image_shape = dataset.train.images.shape[1:]
    parts = summarize(config, len(dataset.class_names), image_shape)
    print_evaluation(evaluation, describe_network(config, parts))
