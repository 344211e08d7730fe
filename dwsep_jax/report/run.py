"""The report of one run."""

import shlex
from typing import Any

import numpy as np
import scipy.stats
from ml_collections import ConfigDict

from dwsep_jax.config import CONFIGS, flatten, load_file
from dwsep_jax.console import describe_limit, tabulate_classes, tabulate_efficiency
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.fields import CHANGE_NOTHING, RUN, SECTIONS, fields_of, format_value
from dwsep_jax.report import charts, figures, page
from dwsep_jax.report.files import Run
from dwsep_jax.report.format import DASH, amount, fixed, interval, percent
from dwsep_jax.report.mistakes import find_images, find_mistakes, to_data_uri
from dwsep_jax.workdir import score

NOT_MEASURED = page.Text("Left out: no efficiency.json; --mode=efficiency writes it.")
_TONES = {"well_fitted": "good", "diverged": "bad"}


def describe_run(run: Run) -> page.Section:
    """Return the report of a run, finished or not."""
    parts = [page.Part("Curves", _show_curves(run.rows))] if run.rows else []
    if run.evaluation:
        parts += [
            page.Part("Classes", _show_classes(run.evaluation)),
            page.Part("The most confident mistakes", _show_mistakes(run)),
            page.Part("Calibration", _show_calibration(run.evaluation)),
        ]
    parts += [
        page.Part("Efficiency", _show_efficiency(run.efficiency)),
        page.Part("How to reproduce it", _show_command(run)),
    ]
    path = run.directory.resolve()
    # A run of a comparison is named with its variant.
    name = "/".join(path.parts[-2:]) if path.name.startswith("seed") else path.name
    dataset = run.config["resolved"].dataset if run.config else DASH
    headline = _summarize(run)
    accuracy = percent(run.evaluation and run.evaluation["accuracy"])
    summary = [name, dataset, "run", accuracy, headline.verdict]
    return page.Section(f"Run {name} on {dataset}", [headline], parts, summary)


def _summarize(run):
    """Return the headline: the diagnosis, and the numbers on test."""
    verdict, tone, told, numbers = "Under way", "open", [], ()
    if evaluation := run.evaluation:
        accuracy, count = evaluation["accuracy"], evaluation["num_examples"]
        test = scipy.stats.binomtest(round(accuracy * count), count)
        ends = interval(test.proportion_ci(method="wilson"), percent)
        numbers = (
            (percent(accuracy), f"test accuracy (95 % interval {ends})"),
            (fixed(evaluation["f1"]["macro"]), "macro F1"),
            (fixed(evaluation["loss"]), "loss (nats)"),
        )
        verdict, epoch = "Finished", evaluation["epoch"]
        weights = " with EMA weights" if evaluation["weights"] == "ema" else ""
        told = [f"Measured on {count:,} test images after epoch {epoch}{weights}."]
    elif run.rows:
        last = run.rows[-1]
        told = [
            f"Epoch {last['epoch']} reached {percent(score(last))} on validation. "
            "Not evaluated on test yet: --mode=evaluate does that."
        ]
    told += [f"Accuracy on {e['split']}: {percent(e['accuracy'])}." for e in run.others]
    if run.diagnosis:
        verdict = run.diagnosis["verdict"].replace("_", " ").capitalize()
        tone = _TONES.get(run.diagnosis["verdict"], "open")
        told.append(run.diagnosis["advice"])
    return page.Headline(verdict, tone, " ".join(told), numbers)


def _show_curves(rows):
    text = f"{figures.describe_best(rows)}."
    if seconds := rows[-1].get("elapsed_seconds"):
        text += f" Training took {amount(seconds)} s."
    return [page.Text(text), page.Grid(figures.curves(rows))]


def _show_classes(evaluation):
    names = [row["name"] for row in evaluation["per_class"]]
    matrix = np.array(evaluation["confusion_matrix"])
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:5]
    found = [divmod(int(index), len(names)) for index in order]
    pairs = [f"{names[i]} as {names[j]} ({n})" for i, j in found if (n := matrix[i, j])]
    words = f"Most frequent confusions: {', '.join(pairs) or 'none'}."
    table = page.Table(*tabulate_classes(evaluation))
    return [table, page.Text(words), figures.confusion_matrix(evaluation)]


def _show_mistakes(run):
    if run.predictions is None:
        return [page.Text("Left out: no predictions.npz; --mode=evaluate writes it.")]
    names = [row["name"] for row in run.evaluation["per_class"]]
    mistakes = find_mistakes(run.predictions, names)
    if not mistakes:
        return [page.Text("None: every test image was classified correctly.")]
    try:
        images = find_images(run, [mistake["id"] for mistake in mistakes])
    except UserError as error:
        rows = [list(mistake.values()) for mistake in mistakes]
        columns = ["image", "true class", "predicted class", "confidence"]
        reason = f"The pictures are left out: {error}."
        return [page.Text(reason), page.Table("Test images", columns, rows)]
    values = [
        m | {"uri": to_data_uri(i)} for m, i in zip(mistakes, images, strict=True)
    ]
    title = "Test images, each with its true class, the prediction and its confidence"
    return [page.Chart("mistakes", title, charts.pictures(values), 560)]


def _show_calibration(evaluation):
    found = evaluation["calibration"]
    text = (
        f"Expected calibration error (ECE) {fixed(found['ece'])}, Brier score "
        f"{fixed(found['brier'])}, negative log likelihood {fixed(found['nll'])} nats; "
        "0 is perfect. In the chart, thick lines are the gaps between accuracy and "
        "confidence, and numbers count images."
    )
    return [page.Text(text), figures.reliability(evaluation)]


def _show_efficiency(efficiency):
    if efficiency is None:
        return [NOT_MEASURED]
    layers, *others = (page.Table(*t[:3]) for t in tabulate_efficiency(efficiency))
    return [*others, page.Text(f"{describe_limit(efficiency)}."), layers]


def _show_command(run):
    blocks = []
    if run.config:
        blocks.append(page.Code(build_command(run.config["requested"])))
    if run.evaluation:
        blocks += describe_environment(run.evaluation["environment"])
    return blocks or [page.Text("Left out: no config.json to derive the command from.")]


def build_command(
    requested: ConfigDict, kind: str = RUN, config: str = "configs/default.py"
) -> str:
    """Return the command that repeats a run, a comparison or a sweep elsewhere.

    Args:
      requested: the config, with fields unset.
      kind: `RUN`, `COMPARISON` or `SWEEP` of `config`.
      config: a config file of the repository, with its `:arg`; the command names only
        the fields that differ from it.
    """
    try:
        base = load_file(str(CONFIGS.parent / config))
    except ConfigError:
        base = {}  # Installed without the repository.
    mode = f" --mode={SECTIONS[kind]}" if SECTIONS[kind] else ""
    # With the same storage it would continue the same study.
    names = fields_of(kind) - CHANGE_NOTHING - {"sweep.storage", "sweep.study"}
    words = [f"python main.py{mode} --config={config}"]
    for name, value in flatten(requested).items():
        if value is not None and name in names and base.get(name) != value:
            words.append(f"--config.{name}={shlex.quote(format_value(value))}")
    return " \\\n  ".join([*words, "--workdir=runs/again"])


def describe_environment(environment: dict[str, Any] | None) -> list[page.Block]:
    """Return the device, the versions and the commit as a list; empty for None."""
    if environment is None:
        return []
    versions = [f"{name} {v}" for name, v in environment["versions"].items() if v]
    device = f"{environment['device_count']} x {environment['device_kind']}"
    commit = environment["git_commit"] or "not from a git checkout"
    return [
        page.Bullets(
            [
                f"Device: {device} ({environment['platform']}), "
                f"{environment['machine']}.",
                f"Versions: Python {environment['python']}, {', '.join(versions)}.",
                f"Dtype: {environment['dtype']}. Commit: {commit}.",
            ]
        )
    ]
