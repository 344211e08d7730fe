"""The files of runs, comparisons and sweeps, read and checked for the report."""

import os
import pathlib
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from dwsep_jax.errors import UserError
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
      predictions: {id, label, probabilities, correct} on test.
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
    """A sweep's files.

    Attributes:
      directory: its workdir.
      config: of config.json, {requested, resolved}.
      best: of best.json; None while the sweep is under way.
      axes: of its space.
      trials: in the order of their numbers.
      finals: of best.json, by the numbers of their trials.
      runs: of each final, by the same.
    """

    directory: pathlib.Path
    config: dict[str, Any]
    best: dict[str, Any] | None
    axes: list[Axis]
    trials: list[Trial]
    finals: dict[int, dict[str, Any]]
    runs: dict[int, list[Run]]


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
    if content := read_json(directory, "comparison"):
        return _read_comparison(directory, content)
    run = read_run(directory)
    if run.config and run.config["kind"] == SWEEP:
        return _read_sweep(directory, run.config)
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
        "metrics.jsonl, evaluation.json, efficiency.json, or config.json of a sweep); "
        "give it a --mode=train first"
    )


def read_run(directory: pathlib.Path) -> Run:
    """Return the files of a run's workdir; raise `UserError` if one is damaged."""
    evaluations = read_evaluations(directory)
    evaluation = next((e for e in evaluations if e["split"] == "test"), None)
    diagnosis, rows = read_json(directory, "diagnosis"), read_rows(directory)
    _check_last_row(directory / "metrics.jsonl", rows, evaluation, diagnosis)
    return Run(
        directory=directory,
        config=read_json(directory, "config"),
        rows=rows,
        evaluation=evaluation,
        others=[e for e in evaluations if e["split"] != "test"],
        predictions=evaluation and _read_predictions(directory, evaluation),
        diagnosis=diagnosis,
        efficiency=read_json(directory, "efficiency"),
    )


def _check_last_row(path, rows, evaluation, diagnosis):
    """Raise `UserError` where other files are of an epoch after the last row."""
    num_rows = rows[-1]["epoch"] if rows else 0
    last = max(
        evaluation["epoch"] if evaluation else 0,
        (diagnosis["evidence"].get("num_epochs") if diagnosis else None) or 0,
    )
    if path.exists() and num_rows < last:
        raise damaged(path, f"its last row is of epoch {num_rows}, and {last} are done")


def read_evaluations(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return evaluation.json, then evaluation-<split>.json, as far as they exist."""
    others = sorted(pathlib.Path(workdir).glob("evaluation-*.json"))
    names = ["evaluation", *(path.stem for path in others)]
    return [found for name in names if (found := read_json(workdir, name))]


def _read_comparison(directory, content):
    # The report starts with the two variants that the question is about.
    variants = content["variants"]
    order = dict.fromkeys([content["main"], content["baseline"], *variants])
    content["variants"] = {name: variants[name] for name in order if name in variants}
    runs = _read_runs(directory, content["variants"])
    return Comparison(directory, content, read_json(directory, "config"), runs)


def _read_sweep(directory, config):
    best = read_json(directory, "best")
    axes = parse_space(config["resolved"].sweep.space)
    trials = read_trials(directory / "trials.csv", axes)
    finals = {final["number"]: final for final in (best["finals"] if best else [])}
    runs = _read_runs(directory, finals)
    return Sweep(directory, config, best, axes, trials, finals, runs)


def _read_runs(directory, entries):
    """Return the runs of each variant or final, in the order of their seeds."""
    return {
        name: [read_run(directory / run["workdir"]) for run in entry["runs"]]
        for name, entry in entries.items()
    }


def _read_predictions(directory, evaluation):
    """Return predictions.npz, which must be those of the evaluation on test."""
    path = directory / "predictions.npz"
    if not path.exists():
        return None
    counts = np.zeros_like(evaluation["confusion_matrix"])
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in ("id", "label", "probabilities")}
        predicted = found["probabilities"].argmax(axis=1)
        np.add.at(counts, (found["label"], predicted), 1)
    except Exception as error:  # A damaged archive raises what it meets first.
        raise damaged(path, str(error)) from error
    is_whole = found["id"].shape == found["label"].shape
    if not is_whole or not np.array_equal(counts, evaluation["confusion_matrix"]):
        raise damaged(path, "it contradicts the confusion matrix of evaluation.json")
    return found | {"correct": predicted == found["label"]}
