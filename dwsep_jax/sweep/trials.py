"""What the trials of a sweep came to: trials.csv, the best trials, importances."""

import csv
import io
from collections import Counter
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from dwsep_jax.sweep.study import Retry, Sweep, get_original, list_trials
from dwsep_jax.workdir import write_atomically

# Axes for each of whose choices the best trial is trained with new seeds.
COMPARED = ("optimizer", "activation")
DIVERGED = "diverged"
# With fewer complete trials, importances are noise.
_MIN_TRIALS = 4


class Choice(NamedTuple):
    """A trial to be trained with new seeds, and why."""

    trial: FrozenTrial
    reasons: list[str]


def describe_state(trial: FrozenTrial) -> str:
    """Return complete, pruned, failed, waiting or running."""
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def count_states(sweep: Sweep) -> Counter[str]:
    """Return how many trials are in each state, a retry in place of what it retries."""
    latest = {get_original(trial): trial for trial in list_trials(sweep.study)}
    return Counter(map(describe_state, latest.values()))


def write_trials(sweep: Sweep) -> None:
    """Write trials.csv: one row per trial, waiting and retried ones included."""
    columns = ["number", "state", "value", "epochs"]
    for axis in sweep.axes:
        columns += [axis.field, axis.name] if axis.is_factor else [axis.name]
    columns += ["seconds", "retry_of", "note"]
    trials = list_trials(sweep.study)
    retries = {}
    for trial in trials:
        if history := Retry.retry_history(trial):
            retries[history[-1]] = trial.number
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(_make_row(trial, retries) for trial in trials)
    write_atomically(sweep.workdir / "trials.csv", text.getvalue())


def _make_row(trial, retries):
    original, is_finished = get_original(trial), trial.state.is_finished()
    note = trial.user_attrs.get("note")
    if trial.number in retries:
        note = f"its worker was gone; tried again as {retries[trial.number]}"
    return {
        "number": trial.number,
        "state": describe_state(trial),
        "value": trial.value if is_finished else None,
        "epochs": trial.last_step or 0,
        "learning_rate": trial.user_attrs.get("learning_rate"),
        **trial.params,
        "seconds": round(trial.duration.total_seconds(), 3) if is_finished else None,
        "retry_of": None if original == trial.number else original,
        "note": note,
    }


def choose_best(sweep: Sweep) -> list[Choice]:
    """Return the winner, then the best trial of each optimizer and each activation.

    The best is the complete trial of the highest validation accuracy, ties broken by
    the lowest validation loss. Where all trials of an optimizer or an activation were
    pruned, it is the best of those: being pruned early proves little. A trial that is
    the best twice is listed once. Without a complete trial there is none.
    """
    trials = list_trials(sweep.study)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    pruned = [
        trial
        for trial in trials
        if trial.state == TrialState.PRUNED
        and trial.value is not None
        and trial.user_attrs.get("note") != DIVERGED
    ]
    candidates = {"winner": complete}
    for axis in sweep.axes if complete else []:
        for value in axis.choices or () if axis.name in COMPARED else ():
            candidates[f"{axis.name}={value}"] = [
                t for t in complete if t.params[axis.name] == value
            ] or [t for t in pruned if t.params[axis.name] == value]
    choices: dict[int, Choice] = {}
    for reason, some in candidates.items():
        if some:
            best = max(some, key=_rank)
            choices.setdefault(best.number, Choice(best, [])).reasons.append(reason)
    return list(choices.values())


def _rank(trial):
    # Of equal values, Optuna's `best_trial` is the first, whatever its loss.
    return trial.value, -trial.user_attrs.get("val_loss", 0.0), -trial.number


def measure_importance(sweep: Sweep) -> dict[str, float] | None:
    """Return each axis's share of the variance in accuracy, by fANOVA.

    Over the complete trials (Hutter et al. 2014); None where they are too few or all
    equal.
    """
    complete = sweep.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _MIN_TRIALS or len({trial.value for trial in complete}) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=sweep.config.seed)
    found = optuna.importance.get_param_importances(sweep.study, evaluator=evaluator)
    return {axis.name: float(found.get(axis.name, 0.0)) for axis in sweep.axes}
