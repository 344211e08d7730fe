"""Comparisons that write no report, and runs that are not trained, for tests."""

import json
import types

import numpy as np

from dwsep_jax import data
from dwsep_jax.compare import runs
from dwsep_jax.efficiency import cost
from dwsep_jax.errors import DivergedError
from dwsep_jax.report import write
from dwsep_jax.report.figures import LAST_FIGURE
from dwsep_jax.train import loop
from dwsep_jax.train.metrics import calibration, classification_report
from dwsep_jax.workdir import open_workdir, write_rows
from tests import tiny

TWO = ("separable", "standard")


def stand_in(patch):
    """Replace the data, the measuring and the report; return what these were given."""
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


def draw(workdir):
    """Replace the figures, which take longer than the runs."""
    path = workdir / LAST_FIGURE
    path.parent.mkdir(exist_ok=True)
    path.touch()


def train_quickly(patch):
    """Replace training with writing its files; return a record of the runs.

    The record's `scores` set accuracy and loss on validation by learning rate.
    """
    quick = types.SimpleNamespace(runs=[], scores={}, groups=[])

    def train_and_evaluate(config, workdir, on_test):
        rate = round(config.learning_rate, 3)
        quick.runs.append((config.conv, rate, config.seed, on_test))
        config = open_workdir(workdir, config, lambda config: config)
        accuracy, loss = quick.scores.get(rate, (0.9, 0.1))
        if accuracy is None:
            raise DivergedError("val_loss is nan; try less")
        row = {"val_accuracy": accuracy, "val_loss": loss}
        row |= {"train_accuracy": accuracy, "train_loss": loss, "learning_rate": rate}
        row |= {"train_eval_accuracy": accuracy, "train_eval_loss": loss}
        row |= {"elapsed_seconds": 1.0, "images_per_second": 10.0}
        rows = [{"epoch": i + 1, **row} for i in range(config.num_epochs)]
        write_rows(workdir, rows)
        if on_test:
            write_evaluation(workdir, config)
            draw(workdir)
            (workdir / "diagnosis.json").write_text("{}")

    def train_members(configs, workdirs, dataset):
        quick.groups.append([workdir.name for workdir in workdirs])
        members = []
        for config, workdir in zip(configs, workdirs, strict=True):
            error = None
            try:
                train_and_evaluate(config, workdir, on_test=False)
            except DivergedError as its_error:
                error = its_error
            members.append(types.SimpleNamespace(error=error))
        return members

    patch.setattr(loop, "train_and_evaluate", train_and_evaluate)
    patch.setattr(loop, "train_members", train_members)
    return quick


def write_evaluation(workdir, config):
    split = tiny.make_dataset().test
    rng = np.random.default_rng(config.seed)
    probabilities = np.eye(3)[np.where(rng.random(13) < 0.9, split.labels, 0)]
    report = classification_report(split.labels, probabilities, ("r", "g", "b"))
    evaluation = {"schema": 1, "split": "test", "weights": "raw"}
    evaluation |= {"epoch": config.num_epochs, "num_examples": 13, "loss": 0.5}
    evaluation |= {"environment": {}, **report}
    evaluation["accuracy"] = float((probabilities.argmax(1) == split.labels).mean())
    evaluation["calibration"] = calibration(split.labels, probabilities)
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    arrays = {"id": split.ids, "label": split.labels, "probabilities": probabilities}
    np.savez(workdir / "predictions.npz", **arrays)


def run(workdir, **changes):
    changes = {"num_epochs": 1, "num_seeds": 2, "variants": TWO} | changes
    runs.compare(tiny.make_config(**changes), workdir)
    return read(workdir / "comparison.json")


def read(path):
    return json.loads(path.read_text())
