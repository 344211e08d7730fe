"""What the trials of a sweep came to: trials.csv, the best, importances."""

import csv
import io
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from dwsep_jax.sweep.space import Axis
from dwsep_jax.sweep.study import get_original, list_trials
from dwsep_jax.workdir import write_atomically

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
}
# Of whose values the best are trained over several seeds, where they are axes.
COMPARED = ("optimizer", "activation")
# With fewer complete trials, importances are noise.
_MIN_TRIALS = 4
DIVERGED = "diverged"


class Choice(NamedTuple):
    """A trial that is to be trained over several seeds, and why."""

    trial: FrozenTrial
    reasons: list[str]


def describe_state(trial: FrozenTrial) -> str:
    """Return complete, pruned, failed, waiting or running."""
    return _STATES[trial.state]


def write_trials(study: optuna.Study, axes: Sequence[Axis], workdir: pathlib.Path):
    """Write trials.csv: a row for each trial, also those that wait or were retried."""
    columns = ["number", "state", "value", "epochs"]
    for axis in axes:
        columns += [axis.field, axis.name] if axis.is_factor else [axis.name]
    columns += ["seconds", "retry_of", "note"]
    trials = list_trials(study)
    retries: dict[int, list[int]] = {}
    for trial in trials:
        if (original := get_original(trial)) is not None:
            retries.setdefault(original, []).append(trial.number)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(_make_row(trial, retries) for trial in trials)
    write_atomically(workdir / "trials.csv", text.getvalue())


def _make_row(trial, retries):
    original = get_original(trial)
    note = trial.user_attrs.get("note", "")
    later = [
        number
        for number in retries.get(trial.number if original is None else original, [])
        if number > trial.number
    ]
    if later and trial.state == TrialState.FAIL:
        note = f"its worker was gone; tried again as {later[0]}"
    row = {
        "number": trial.number,
        "state": describe_state(trial),
        "value": trial.value if trial.state.is_finished() else None,
        "epochs": trial.last_step or 0,
        **trial.params,
        "seconds": None,
        "retry_of": original,
        "note": note,
    }
    if "learning_rate_factor" in trial.params:
        row["learning_rate"] = trial.user_attrs.get("learning_rate")
    if trial.state.is_finished():
        row["seconds"] = round(trial.duration.total_seconds(), 3)
    return row


def last_attempts(study: optuna.Study) -> list[FrozenTrial]:
    """Return each original trial, or the last that retries it."""
    attempts: dict[int, FrozenTrial] = {}
    for trial in list_trials(study):
        original = get_original(trial)
        attempts[trial.number if original is None else original] = trial
    return list(attempts.values())


def count_states(study: optuna.Study) -> Counter[str]:
    """Return how many of the original trials are in each state now."""
    return Counter(describe_state(trial) for trial in last_attempts(study))


def choose_best(study: optuna.Study, axes: Sequence[Axis]) -> list[Choice]:
    """Return the winner, then the best of each optimizer and of each activation.

    The best is the complete trial of the highest accuracy on validation; of equals, of
    the least loss there. Where all of an optimizer or an activation were pruned, it is
    the one that had come to the highest accuracy: pruning proves little. A trial that
    is the best twice is there once; there is none without a complete trial.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pruned = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        if trial.value is not None and trial.user_attrs.get("note") != DIVERGED
    ]
    if not complete:
        return []
    winner = max(complete, key=_rank)
    reasons = {winner.number: (winner, ["winner"])}
    for axis in axes:
        if axis.name not in COMPARED or axis.kind != "choice":
            continue
        for value in axis.choices:
            some = [t for t in complete if t.params[axis.name] == value]
            some = some or [t for t in pruned if t.params[axis.name] == value]
            if some:
                best = max(some, key=_rank)
                entry = reasons.setdefault(best.number, (best, []))
                entry[1].append(f"{axis.name}={value}")
    return [Choice(*entry) for entry in reasons.values()]


def _rank(trial):
    # Optuna's own best would be the first of equals.
    return trial.value, -trial.user_attrs.get("val_loss", 0.0), -trial.number


def measure_importance(
    study: optuna.Study, axes: Sequence[Axis], seed: int
) -> dict[str, float] | None:
    """Return the share of each axis in the variance of the accuracy, by fANOVA.

    Over the complete trials (Hutter et al. 2014); None where they are too few, or all
    the same.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _MIN_TRIALS or len({trial.value for trial in complete}) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {axis.name: float(found.get(axis.name, 0.0)) for axis in axes}


def describe_axes(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return the axes as best.json has them."""
    return [
        {
            "name": axis.name,
            "field": axis.field,
            "kind": axis.kind,
            "log": axis.log,
            "low": axis.low,
            "high": axis.high,
            "choices": None if axis.choices is None else list(axis.choices),
        }
        for axis in axes
    ]
