"""The charts of a run, and their PNGs in its workdir."""

import os
import pathlib
from typing import Any

from dwsep_jax.report import charts
from dwsep_jax.report.format import percent
from dwsep_jax.report.page import Chart, draw
from dwsep_jax.workdir import read_json, read_rows, score, write_atomically

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

    From metrics.jsonl: curves.png. From each evaluation[-<split>].json:
    confusion_matrix[-<split>].png and reliability[-<split>].png.

    Returns:
      The paths of the PNGs.

    Raises:
      UserError: if a file is damaged; nothing has been written then.
    """
    workdir = pathlib.Path(workdir)
    rows = read_rows(workdir)
    figures = []
    if rows:
        panels = [chart.spec for chart in curves(rows)]
        for panel in panels:  # A reading rule needs a pointer.
            panel["layer"] = [one for one in panel["layer"] if "params" not in one]
        spec = {"vconcat": panels, "data": {"values": []}}
        figures.append(Chart("curves", describe_best(rows), spec))
    for name in ("evaluation.json", "evaluation-*.json"):
        for path in sorted(workdir.glob(name)):
            evaluation = read_json(path.parent, path.stem)
            figures += [confusion_matrix(evaluation), reliability(evaluation)]
    contents = {f"{chart.name}.png": draw(chart.spec, chart.title) for chart in figures}
    directory = workdir / "figures"
    if contents:
        directory.mkdir(exist_ok=True)
    for name, content in contents.items():
        write_atomically(directory / name, content)
    return [directory / name for name in contents]


def curves(rows: list[dict[str, Any]]) -> list[Chart]:
    """Return the loss, accuracy and learning rate of the rows of metrics.jsonl."""
    best = max(rows, key=score)["epoch"]  # The first of equals, as its checkpoint is.
    made = []
    for key, title, form, factor in (
        ("loss", "loss (nats)", ".4f", 1),
        ("accuracy", "accuracy (%)", ".2f", 100),
    ):
        series = {
            label: points
            for label, prefix in _CURVES.items()
            if (points := charts.band_of([rows], f"{prefix}_{key}", factor))
        }
        spec = charts.lines(series, list(_CURVES), title, form, best)
        made.append(Chart(f"curve_{key}", title.capitalize(), spec))
    words = "learning rate"
    series = {words: charts.band_of([rows], "learning_rate")}
    spec = charts.lines(series, [words], words, ".3g", best, height=110)
    return [*made, Chart("curve_learning_rate", words.capitalize(), spec)]


def describe_best(rows: list[dict[str, Any]]) -> str:
    """Return the best validation accuracy and its epoch, which the charts mark."""
    best = max(rows, key=score)
    weights = " of the EMA weights" if "ema_val_accuracy" in best else ""
    return (
        f"Best validation accuracy{weights}: {percent(score(best))}, in epoch "
        f"{best['epoch']} (vertical line)"
    )


def confusion_matrix(evaluation: dict[str, Any]) -> Chart:
    """Return the confusion matrix of an evaluation, rows are the true classes."""
    names = [row["name"] for row in evaluation["per_class"]]
    spec = charts.confusion(names, evaluation["confusion_matrix"])
    return _chart_of(evaluation, "confusion_matrix", "Confusion matrix", spec)


def reliability(evaluation: dict[str, Any]) -> Chart:
    """Return the reliability diagram of an evaluation."""
    spec = charts.reliability(evaluation["calibration"]["bins"])
    words = "Accuracy by confidence"
    return _chart_of(evaluation, "reliability", words, spec)


def _chart_of(evaluation, name, words, spec):
    suffix = "" if evaluation["split"] == "test" else f"-{evaluation['split']}"
    weights = ", EMA weights" if evaluation["weights"] == "ema" else ""
    title = (
        f"{words}, {evaluation['split']} after epoch {evaluation['epoch']}{weights}: "
        f"{percent(evaluation['accuracy'])} of {evaluation['num_examples']:,} images"
    )
    return Chart(name + suffix, title, spec, 640)
