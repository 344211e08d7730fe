"""Runs that write their files without being trained."""

import json
import types

import numpy as np

from dwsep_jax import data
from dwsep_jax.efficiency import cost
from dwsep_jax.environment import describe_environment
from dwsep_jax.errors import DivergedError
from dwsep_jax.report import write
from dwsep_jax.report.figures import LAST_FIGURE
from dwsep_jax.train import loop, optim
from dwsep_jax.train.metrics import calibration, classification_report
from dwsep_jax.workdir import open_workdir, write_rows
from tests import tiny


def stand_in(patch):
    """Replace data, measuring and report; return a list of what is written."""
    written = []

    def write_efficiency(config, workdir):
        written.append((config.conv, config.seed, workdir))
        (workdir / "efficiency.json").write_text("{}")

    def write_report(workdirs):
        written.append(list(workdirs))
        return workdirs[0] / "report.html"

    patch.setattr(cost, "write_efficiency", write_efficiency)
    patch.setattr(write, "write_report", write_report)
    patch.setattr(data, "load", lambda config: tiny.make_dataset())
    return written


class Quick:
    """Replaces training by writing its files.

    Attributes:
      runs: (directory, resolved config, on_test) of each run.
      groups: lists of the directories of runs that were trained together.
      score: config -> accuracy on validation after each epoch; may raise.
      loss: config -> loss on validation.
    """

    def __init__(self, patch):
        self.runs, self.groups = [], []
        self.score = lambda config: [0.9] * config.num_epochs
        self.loss = lambda config: 0.1
        patch.setattr(loop, "train_and_evaluate", self._train)
        patch.setattr(loop, "train_members", self._train_members)

    def _train(self, config, workdir, on_test):
        config = open_workdir(workdir, config, optim.resolve)
        self.runs.append((workdir, config, on_test))
        write_rows(workdir, make_rows(self.score(config), self.loss(config)))
        if on_test:
            write_evaluation(workdir, config)
            draw(workdir)
            (workdir / "diagnosis.json").write_text("{}")

    def _train_members(self, configs, workdirs, dataset):
        self.groups.append(list(workdirs))
        return [
            types.SimpleNamespace(error=self._try(config, workdir))
            for config, workdir in zip(configs, workdirs, strict=True)
        ]

    def _try(self, config, workdir):
        try:
            self._train(config, workdir, on_test=False)
        except DivergedError as error:
            return error


def diverge(config):
    raise DivergedError("val_loss is nan; try less")


def make_rows(accuracies, loss=1.0):
    """Return a row of metrics.jsonl for each accuracy on validation."""
    row = {"train_accuracy": 0.5, "train_loss": 1.0, "learning_rate": 0.1}
    row |= {"train_eval_accuracy": 0.5, "train_eval_loss": 1.0, "val_loss": loss}
    row |= {"elapsed_seconds": 1.0, "images_per_second": 10.0}
    return [
        {"epoch": i, "step": 5 * i, **row, "val_accuracy": accuracy}
        for i, accuracy in enumerate(accuracies, start=1)
    ]


def write_evaluation(workdir, config):
    """Write evaluation.json and predictions.npz; accuracies depend on the seed."""
    split = tiny.make_dataset().test
    rng = np.random.default_rng(config.seed)
    probabilities = np.eye(3)[np.where(rng.random(13) < 0.9, split.labels, 0)]
    report = classification_report(split.labels, probabilities, ("r", "g", "b"))
    evaluation = {"schema": 1, "split": "test", "weights": "raw"}
    evaluation |= {"epoch": config.num_epochs, "num_examples": 13, "loss": 0.5}
    evaluation |= {"environment": describe_environment("float32", 0), **report}
    evaluation["calibration"] = calibration(split.labels, probabilities)
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    arrays = {"id": split.ids, "label": split.labels, "probabilities": probabilities}
    np.savez(workdir / "predictions.npz", **arrays)


def draw(workdir):
    """Write the last figure, which takes longer than a run."""
    path = workdir / LAST_FIGURE
    path.parent.mkdir(exist_ok=True)
    path.touch()


def read(path):
    """Return the content of a JSON file, without its checksum."""
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    return content
