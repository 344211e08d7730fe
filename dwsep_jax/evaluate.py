"""--mode=evaluate: evaluate a run that is finished or still training."""

import os
from typing import Any, NamedTuple

import jax
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from dwsep_jax.config import PRETRAINED
from dwsep_jax.console import say
from dwsep_jax.data import load
from dwsep_jax.errors import UserError, choose
from dwsep_jax.nn.densenet import DenseNet, create_model
from dwsep_jax.nn.summary import describe_network, summarize
from dwsep_jax.report.figures import draw_run
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.train.evaluation import evaluate_and_write, restore_to_evaluate
from dwsep_jax.train.step import TrainState, make_state
from dwsep_jax.train.weights import read_exported
from dwsep_jax.workdir import load_config, read_json, read_rows


def evaluate_workdir(
    config: ConfigDict, workdir: str | os.PathLike, split_name: str
) -> None:
    """Evaluate what a run has trained so far; write, draw and print the result.

    Args:
      config: the resolved configuration of the run.
      workdir: of the run.
      split_name: train, validation or test.

    Raises:
      UserError: if there is no checkpoint, or the result, which has been printed,
        cannot be written.
    """
    dataset = load(config)
    state = restore(config, workdir, make_state(config, dataset))
    parts = summarize(config, len(dataset.class_names), dataset.image_shape)
    network = describe_network(config, parts)
    evaluate_and_write(config, workdir, dataset, state, split_name, network)
    draw_run(workdir)


def restore(
    config: ConfigDict, workdir: str | os.PathLike, state: TrainState | None
) -> TrainState:
    """Return what `restore_to_evaluate` does of a run that may still be training."""
    checkpoints = Checkpoints(workdir)
    for _ in range(5):
        if (found := restore_to_evaluate(config, checkpoints, state)) is not None:
            return found
        if not checkpoints.epochs():
            break
    if read_json(workdir, "manifest"):
        raise UserError(
            f"--workdir={workdir}: holds an export, which has no checkpoints; name the "
            "run's own"
        )
    raise UserError(
        f"{workdir} has no checkpoint yet; train it with --mode=train first"
    )


class Trained(NamedTuple):
    """A trained network, and what it tells apart.

    Attributes:
      model: called as `model.apply(variables, images, train=False)`, with float32
        images (N, H, W, C) in [-1, 1].
      variables: `params` and `batch_stats`, as NumPy's.
      class_names: in the order of the logits.
      image_shape: (H, W, C).
      temperature: by which logits are divided before the softmax.
      evaluation: of these weights on test, as evaluation.json has it; None without one.
    """

    model: DenseNet
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    temperature: float
    evaluation: dict[str, Any] | None = None


def load_trained(
    workdir: str | os.PathLike, config: ConfigDict | None = None
) -> Trained:
    """Return the network of a run, with the weights that its evaluation describes.

    Args:
      workdir: of a run, which may still be training; or a directory of --mode=export
        with safetensors.
      config: the resolved configuration of the run; None reads it.

    Raises:
      UserError: if there is no run, no checkpoint, or a file is damaged.
    """
    config = config or load_config(workdir)
    evaluation, manifest = (read_json(workdir, n) for n in ("evaluation", "manifest"))
    if manifest:
        names, shape = manifest["class_names"], manifest["images"]["shape"][1:]
        variables = unflatten_dict(read_exported(workdir), sep="/")
    else:
        if shape := evaluation and evaluation.get("image_shape"):
            names = [row["name"] for row in evaluation["per_class"]]
        else:  # An evaluation of an earlier version lacks the shape.
            dataset = load(config)
            names, shape = dataset.class_names, dataset.image_shape
        trained = restore(config, workdir, None)
        evaluation = evaluation and _match(evaluation, workdir, int(trained["step"]))
        weights = trained["ema"] or trained
        # Of one device, however many it was trained on.
        variables = jax.device_get({n: weights[n] for n in ("params", "batch_stats")})
    temperature = (evaluation or {}).get("temperature", 1.0)
    described = (tuple(names), tuple(shape), temperature, evaluation)
    return Trained(create_model(config, len(names)), variables, *described)


def _match(evaluation, workdir, step):
    """Return the evaluation, or None where the run was trained further after it."""
    epochs = {row["step"]: row["epoch"] for row in read_rows(workdir)}
    if (epoch := epochs.get(step)) in (None, evaluation["epoch"]):
        return evaluation
    say(
        f"{workdir}: evaluation.json is of epoch {evaluation['epoch']}, and the "
        f"weights are of epoch {epoch}: it is left out; --mode=evaluate writes it again"
    )
    return None


def load_pretrained(name: str) -> Trained:
    """Return a trained network that comes with the package.

    Args:
      name: that of the shipped config it was trained by, such as `digits`.

    Raises:
      ValueError: for another name, with those that there are.
    """
    places = {path.name: path for path in sorted(PRETRAINED.iterdir())}
    return load_trained(choose("name", name, places))
