"""The report of one run."""

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax.config import CONFIGS, flatten, load_file
from dwsep_jax.console import describe_limit, tabulate_classes, tabulate_efficiency
from dwsep_jax.fields import CHANGE_NOTHING, RUN, SECTIONS, fields_of, format_value
from dwsep_jax.report import figures, page
from dwsep_jax.report.files import Run
from dwsep_jax.report.format import DASH, fixed, interval, listing, percent
from dwsep_jax.report.mistakes import show_mistakes
from dwsep_jax.statistics import wilson_interval
from dwsep_jax.workdir import score

NOT_MEASURED = "Left out: no efficiency.json; --mode=efficiency writes it."
_TONES = {"well_fitted": "good", "diverged": "bad"}


def describe_run(run: Run) -> page.Section:
    """Return the report of a run, finished or not."""
    parts = {}
    if run.rows:
        text = figures.describe_best(run.rows)
        parts["Curves"] = [text, *figures.curves(run.rows)]
    if run.evaluation:
        table = page.Table(*tabulate_classes(run.evaluation))
        parts |= {
            "Classes": [table, figures.confusion_matrix(run.evaluation)],
            "The most confident mistakes": show_mistakes(run),
            "Calibration": _show_calibration(run.evaluation),
        }
    parts["Efficiency"] = _show_efficiency(run.efficiency)
    environment = run.evaluation and run.evaluation["environment"]
    parts["How to reproduce it"] = show_command(run.config, environment)
    path = run.directory.resolve()
    # A run of a comparison is named with its variant.
    name = "/".join(path.parts[-2:]) if path.name.startswith("seed") else path.name
    dataset = run.config["resolved"].dataset if run.config else DASH
    accuracy = percent(run.evaluation and run.evaluation["accuracy"])
    summary = [name, dataset, "run", accuracy]
    return page.Section(f"Run {name} on {dataset}", _summarize(run), parts, summary)


def _summarize(run):
    """Return the headline: the diagnosis, and the numbers on test."""
    verdict, tone, told, numbers = "Under way", "open", [], ()
    if evaluation := run.evaluation:
        accuracy, count = evaluation["accuracy"], evaluation["num_examples"]
        ends = interval(wilson_interval(accuracy, count), percent)
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


def _show_calibration(evaluation):
    found = evaluation["calibration"]
    text = (
        f"Expected calibration error (ECE) {fixed(found['ece'])}, Brier score "
        f"{fixed(found['brier'])}, negative log likelihood {fixed(found['nll'])} nats; "
        "0 is perfect. In the chart, thick lines are the gaps between accuracy and "
        "confidence, and numbers count images."
    )
    if temperature := evaluation.get("temperature"):  # Earlier versions had none.
        scaled = evaluation["calibrated"]
        text += (
            f" With the logits divided by {temperature:.3f}, a temperature fitted on "
            f"validation, the ECE is {fixed(scaled['ece'])} and the negative log "
            f"likelihood {fixed(scaled['nll'])} nats."
        )
    return [text, figures.reliability(evaluation)]


def _show_efficiency(efficiency):
    if efficiency is None:
        return [NOT_MEASURED]
    layers, *others = (page.Table(*t[:3]) for t in tabulate_efficiency(efficiency))
    return [*others, f"{describe_limit(efficiency)}.", layers]


def count_verdicts(runs: Sequence[Run]) -> str:
    """Return `well fitted in 2 and overfitting in 1 of 3 runs`; empty without any."""
    found = Counter(run.diagnosis["verdict"] for run in runs if run.diagnosis)
    told = [f"{v.replace('_', ' ')} in {n}" for v, n in found.most_common()]
    return f"{listing(told)} of {found.total()} runs" if told else ""


def show_command(
    config: dict[str, Any] | None, environment: dict[str, Any] | None, kind: str = RUN
) -> list[page.Block]:
    """Return the command that repeats what a workdir holds, and where it was run.

    Args:
      config: of config.json; None without one.
      environment: of one of its other files; None without one.
      kind: `RUN`, `COMPARISON` or `SWEEP`.
    """
    blocks = [page.Code(build_command(config["requested"], kind))] if config else []
    blocks += [_describe_environment(environment)] if environment else []
    return blocks or ["Left out: no config.json to derive the command from."]


def build_command(requested: ConfigDict, kind: str = RUN) -> str:
    """Return the command that repeats a run, a comparison or a sweep elsewhere.

    It names the fields that differ from a config file of the repository.

    Args:
      requested: the config, with fields unset.
      kind: `RUN`, `COMPARISON` or `SWEEP`.
    """
    mode = SECTIONS[kind]
    file = f"{mode or 'default'}.py"
    file += ":digits" if mode and requested.dataset == "digits" else ""
    base = load_file(str(CONFIGS / file))
    # With the same storage it would continue the same study.
    names = fields_of(kind) - CHANGE_NOTHING - {"sweep.storage", "sweep.study"}
    words = [f"python main.py{mode and f' --mode={mode}'} --config=configs/{file}"]
    for name, value in flatten(requested).items():
        if value is not None and name in names and base.get(name) != value:
            words.append(f"--config.{name}={shlex.quote(format_value(value))}")
    return " \\\n  ".join([*words, "--workdir=runs/again"])


def _describe_environment(environment):
    """Return the device, the versions and the commit as a list of sentences."""
    versions = [f"{name} {v}" for name, v in environment["versions"].items() if v]
    device = f"{environment['device_count']} x {environment['device_kind']}"
    commit = environment["git_commit"] or "not from a git checkout"
    return [
        f"Device: {device} ({environment['platform']}), {environment['machine']}.",
        f"Versions: Python {environment['python']}, {', '.join(versions)}.",
        f"Dtype: {environment['dtype']}. Commit: {commit}.",
    ]
