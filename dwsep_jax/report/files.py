"""The files of runs, comparisons and sweeps, read and checked for the report."""

import os
import pathlib
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import numpy as np

from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.fields import SWEEP
from dwsep_jax.schema import damaged
from dwsep_jax.space import Axis, parse_space
from dwsep_jax.trials import Trial, read_trials
from dwsep_jax.workdir import read_json, read_rows


class Run(NamedTuple):
    """A run's files; what does not exist is None or empty.

    Attributes:
      directory: its workdir.
      config: of config.json, {requested, resolved}.
      rows: of metrics.jsonl.
      evaluation: on test.
      others: the evaluations on other splits.
      predictions: {id, label, probabilities} on test.
      diagnosis: of diagnosis.json.
      efficiency: of efficiency.json.
    """

    directory: pathlib.Path
    config: dict[str, Any] | None
    rows: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    others: list[dict[str, Any]]
    predictions: dict[str, np.ndarray] | None
    diagnosis: dict[str, Any] | None
    efficiency: dict[str, Any] | None


class Comparison(NamedTuple):
    """A comparison's files.

    Attributes:
      directory: its workdir.
      content: of comparison.json; None while the comparison is under way.
      config: of config.json, {requested, resolved}; None without one.
      runs: of each variant, in the order of the seeds.
    """

    directory: pathlib.Path
    content: dict[str, Any] | None
    config: dict[str, Any] | None
    runs: dict[str, list[Run]]


class Sweep(NamedTuple):
    """A sweep's files; dicts are keyed by the numbers of its finalists.

    Attributes:
      directory: its workdir.
      config: of config.json, {requested, resolved}; None without one.
      best: of best.json; None while the sweep is under way.
      axes: of its space.
      trials: by number.
      diagnoses: the diagnosis of each final run that has one.
      correct: whether each final run's predictions on test are right, bool (runs,
        images); None where a run has none.
      num_evaluated: final runs that are evaluated on test.
    """

    directory: pathlib.Path
    config: dict[str, Any] | None
    best: dict[str, Any] | None
    axes: list[Axis]
    trials: list[Trial]
    diagnoses: dict[int, list[dict[str, Any]]]
    correct: dict[int, np.ndarray | None]
    num_evaluated: int


def read_workdir(workdir: str | os.PathLike) -> Run | Comparison | Sweep:
    """Return what a workdir holds.

    Raises:
      UserError: if there is no such directory, nothing to report, or a file is damaged.
    """
    directory = pathlib.Path(workdir)
    if not directory.is_dir():
        raise UserError(
            f"--workdir={workdir}: no such directory; name one that --mode=train, "
            "--mode=compare or --mode=sweep has written"
        )
    if (directory / "comparison.json").exists():
        return _read_comparison(directory)
    if (directory / "trials.csv").exists() or (directory / "best.json").exists():
        return _read_sweep(directory)
    run = read_run(directory)
    if run.config and run.config["kind"] == SWEEP:
        return _read_sweep(directory)
    if run.rows or run.evaluation or run.others or run.efficiency:
        return run
    runs: dict[str, list[Run]] = defaultdict(list)
    # Runs of a variant: `seed<k>`, and those that try its rates, `rate<factor>`.
    for path in sorted(directory.glob("*/[rs]*/metrics.jsonl")):
        runs[path.parent.parent.name].append(read_run(path.parent))
    if runs:
        return Comparison(directory, None, run.config, runs)
    raise UserError(
        f"--workdir={workdir}: nothing to report yet (no comparison.json, "
        "metrics.jsonl, evaluation.json, efficiency.json); give it a --mode=train first"
    )


def read_run(directory: pathlib.Path) -> Run:
    """Return the files of a run's workdir; raise `UserError` if one is damaged."""
    evaluations = [
        read_json(directory, path.stem)
        for name in ("evaluation.json", "evaluation-*.json")
        for path in sorted(directory.glob(name))
    ]
    evaluation = next((e for e in evaluations if e["split"] == "test"), None)
    return Run(
        directory=directory,
        config=read_json(directory, "config"),
        rows=read_rows(directory),
        evaluation=evaluation,
        others=[e for e in evaluations if e["split"] != "test"],
        predictions=_read_predictions(directory / "predictions.npz", evaluation),
        diagnosis=read_json(directory, "diagnosis"),
        efficiency=read_json(directory, "efficiency"),
    )


def _read_comparison(directory):
    content = read_json(directory, "comparison")
    _check_variants(directory / "comparison.json", content)
    variants = content["variants"]
    # The keys of the file are sorted; the report starts with the two variants that the
    # question is about, and keeps the order of the config.
    config = read_json(directory, "config")
    asked = config["resolved"].compare.variants if config else []
    order = dict.fromkeys([content["main"], content["baseline"], *asked, *variants])
    variants = content["variants"] = {n: variants[n] for n in order if n in variants}
    runs = {
        name: [read_run(directory / run["workdir"]) for run in variant["runs"]]
        for name, variant in variants.items()
    }
    return Comparison(directory, content, config, runs)


def _check_variants(path, content):
    """Raise `UserError` unless the parts of comparison.json belong together."""
    variants, num_classes = content["variants"], len(content["class_names"])
    for role in ("main", "baseline"):
        if content[role] not in variants:
            problem = f"{role} is {content[role]}, which is none of its variants"
            raise damaged(path, problem)
    for name, variant in variants.items():
        is_compared = name != content["baseline"] or name == content["main"]
        if is_compared and name not in content["paired"]:
            raise damaged(path, f"it lacks paired.{name}")
        if len(content["per_class"].get(name, [])) != num_classes:
            raise damaged(path, f"per_class.{name} must have {num_classes} items")
        if not variant["runs"]:
            raise damaged(path, f"variants.{name}.runs is empty")


def _read_sweep(directory):
    config, best = read_json(directory, "config"), read_json(directory, "best")
    if best is None and config is None:
        raise UserError(
            f"{directory}: without best.json and config.json, the space that "
            "trials.csv searched is unknown; put config.json back"
        )
    source = directory / ("best.json" if best else "config.json")
    space = best["space"] if best else config["resolved"].sweep.space
    try:
        axes = parse_space(space)
    except ConfigError as error:
        raise damaged(source, str(error)) from error
    trials = read_trials(directory / "trials.csv", axes)
    _check_belonging(directory, best, axes, trials)
    runs = {
        final["number"]: [read_run(directory / run["workdir"]) for run in final["runs"]]
        for final in (best["finals"] if best else [])
    }
    diagnoses = {
        n: [r.diagnosis for r in found if r.diagnosis] for n, found in runs.items()
    }
    correct = {number: _find_correct(found) for number, found in runs.items()}
    evaluated = sum(1 for _ in directory.glob("final/*/seed*/evaluation.json"))
    return Sweep(directory, config, best, axes, trials, diagnoses, correct, evaluated)


def _check_belonging(directory, best, axes, trials):
    """Raise `UserError` unless the files belong to one sweep."""
    path, numbers = directory / "trials.csv", {trial.number for trial in trials}
    if best is None:
        return
    finals = [final["number"] for final in best["finals"]]
    for number in (best["number"], *finals):
        if number not in numbers:
            raise damaged(path, f"it lacks trial {number} of best.json")
    if finals[:1] != [best["number"]]:
        problem = f"its finals do not begin with the winner, trial {best['number']}"
        raise damaged(directory / "best.json", problem)
    if best["importance"]:
        for axis in axes:
            if axis.name not in best["importance"]:
                raise damaged(
                    directory / "best.json", f"it lacks importance.{axis.name}"
                )


def _find_correct(runs):
    """Return whether each prediction is right, bool (runs, images), or None."""
    predictions = [run.predictions for run in runs]
    if not predictions or None in predictions:
        return None
    found = [p["probabilities"].argmax(axis=1) == p["label"] for p in predictions]
    same_size = len({len(correct) for correct in found}) == 1
    return np.stack(found) if same_size else None


def _read_predictions(path, evaluation):
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in ("id", "label", "probabilities")}
    except Exception as error:  # A damaged archive raises what it meets first.
        raise damaged(path, str(error)) from error
    shapes = [found["id"].shape, found["label"].shape, found["probabilities"].shape[:1]]
    if found["probabilities"].ndim != 2 or len({*shapes}) != 1:
        raise damaged(path, "its arrays do not belong together")
    predicted = found["probabilities"].argmax(axis=1)
    pairs = Counter(zip(found["label"].tolist(), predicted.tolist(), strict=True))
    if evaluation:
        matrix = np.array(evaluation["confusion_matrix"])
        if pairs != {pair: n for pair, n in np.ndenumerate(matrix) if n}:
            raise damaged(
                path, "it contradicts the confusion matrix of evaluation.json"
            )
    return found
