"""The charts of a run, and their PNGs in its workdir."""

import os
import pathlib
from typing import Any

from dwsep_jax.report import charts
from dwsep_jax.report.files import read_evaluations
from dwsep_jax.report.format import amount, percent
from dwsep_jax.report.page import Chart, draw_all
from dwsep_jax.workdir import read_rows, score, write_atomically

# Written last of all that a run and its evaluation on test leave.
LAST_FIGURE = os.path.join("figures", "reliability.png")

_CURVES = {
    "train, as trained": "train",
    "train, evaluated": "train_eval",
    "validation": "val",
    "validation, EMA weights": "ema_val",
}


def draw_run(workdir: str | os.PathLike) -> list[pathlib.Path]:
    """Draw the files of a run into its figures/, as far as they exist.

    From metrics.jsonl: curve_{loss,accuracy,learning_rate}.png. From each
    evaluation[-<split>].json: {confusion_matrix,reliability}[-<split>].png.

    Returns:
      The paths of the PNGs.

    Raises:
      UserError: if a file is damaged; nothing has been written then.
    """
    rows = read_rows(workdir)
    found = curves(rows) if rows else []
    for evaluation in read_evaluations(workdir):
        found += [confusion_matrix(evaluation), reliability(evaluation)]
    return write_figures(workdir, draw_all(found))


def write_figures(
    directory: str | os.PathLike, figures: dict[str, bytes]
) -> list[pathlib.Path]:
    """Write PNGs, by their names, into figures/ of a directory; return their paths."""
    paths = [pathlib.Path(directory, "figures", name) for name in figures]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, figures[path.name])
    return paths


def curves(rows: list[dict[str, Any]]) -> list[Chart]:
    """Return the loss, accuracy and learning rate of the rows of metrics.jsonl."""
    best = max(rows, key=score)["epoch"]  # The first of equals, as its checkpoint is.
    made = []
    for key, title, factor in (
        ("loss", "Loss (nats)", 1),
        ("accuracy", "Accuracy (%)", 100),
    ):
        series = {
            label: charts.band_of([rows], f"{prefix}_{key}", factor)
            for label, prefix in _CURVES.items()
        }
        spec = charts.lines(series, title.lower(), best)
        made.append(Chart(f"curve_{key}", title, spec))
    title = "Learning rate"
    series = {title: charts.band_of([rows], "learning_rate")}
    spec = charts.lines(series, title.lower(), best, height=110)
    return [*made, Chart("curve_learning_rate", title, spec)]


def describe_best(rows: list[dict[str, Any]]) -> str:
    """Return the best epoch on validation, which the charts mark, and the time."""
    best, seconds = max(rows, key=score), rows[-1].get("elapsed_seconds")
    weights = " of the EMA weights" if "ema_val_accuracy" in best else ""
    took = f" Training took {amount(seconds)} s." if seconds else ""
    return (
        f"Best validation accuracy{weights}: {percent(score(best))}, in epoch "
        f"{best['epoch']} (vertical line).{took}"
    )


def confusion_matrix(evaluation: dict[str, Any]) -> Chart:
    """Return the confusion matrix of an evaluation, rows are the true classes."""
    names = [row["name"] for row in evaluation["per_class"]]
    spec = charts.confusion(names, evaluation["confusion_matrix"])
    return _chart_of(evaluation, "confusion_matrix", "Confusion matrix", spec)


def reliability(evaluation: dict[str, Any]) -> Chart:
    """Return the reliability diagram of an evaluation."""
    spec = charts.reliability(evaluation["calibration"]["bins"])
    return _chart_of(evaluation, "reliability", "Accuracy by confidence", spec)


def _chart_of(evaluation, name, words, spec):
    suffix = "" if evaluation["split"] == "test" else f"-{evaluation['split']}"
    weights = ", EMA weights" if evaluation["weights"] == "ema" else ""
    title = (
        f"{words}, {evaluation['split']} after epoch {evaluation['epoch']}{weights}: "
        f"{percent(evaluation['accuracy'])} of {evaluation['num_examples']:,} images"
    )
    return Chart(name + suffix, title, spec, 640)
