"""A trial of a sweep: its configuration, its training, and its row of trials.csv."""

import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import optuna
from ml_collections import ConfigDict
from optuna.trial import TrialState

from dwsep_jax import console, data
from dwsep_jax.config import validate
from dwsep_jax.errors import ConfigError, DivergedError, is_out_of_memory
from dwsep_jax.fields import FIELDS
from dwsep_jax.space import Axis
from dwsep_jax.sweep.study import Retry, Sweep, list_trials
from dwsep_jax.train import loop, optim, running
from dwsep_jax.trials import ENDED, Trial, latest, write_trials
from dwsep_jax.workdir import evaluated_row, open_workdir, score

DIVERGED = "diverged"


def make_config(
    params: dict[str, Any],
    config: ConfigDict,
    axes: Sequence[Axis],
    is_final: bool = False,
) -> ConfigDict:
    """Return the configuration of the run at a point of the space.

    Args:
      params: {axis.name: value}, for all axes or some.
      config: of the sweep.
      axes: of its space.
      is_final: whether it is to train for `sweep.refit_epochs`, if these are set.

    Raises:
      ConfigError: if the values contradict each other.
    """
    config = config.copy_and_resolve_references()
    config.sweep.storage = None  # No run reads it, and it may contain a password.
    # The default learning rate depends on the other fields.
    for axis in sorted(axes, key=lambda axis: axis.is_factor):
        if axis.name not in params:
            continue
        value = params[axis.name]
        if axis.is_factor:
            config.learning_rate = None
            value *= optim.resolve(config).learning_rate
        config[axis.field] = FIELDS[axis.field].read(str(value))
    if is_final and config.sweep.refit_epochs is not None:
        config.num_epochs = config.sweep.refit_epochs
    validate(config)
    return config


def run_trial(
    sweep: Sweep, dataset: data.Dataset, trial: optuna.Trial, directory: pathlib.Path
) -> float | None:
    """Train a trial, and return its validation accuracy; None if it cannot be run.

    Raises:
      optuna.TrialPruned: if it is hopeless, or diverges.
    """
    params = {axis.name: axis.suggest(trial) for axis in sweep.axes}
    try:
        config = make_config(params, sweep.config, sweep.axes)
        if config.learning_rate is not None:
            trial.set_user_attr("learning_rate", config.learning_rate)
        config = open_workdir(directory, config, partial(loop.resolve, dataset=dataset))
        return _train(config, dataset, trial, directory)
    except DivergedError:
        trial.set_user_attr("note", DIVERGED)
        raise optuna.TrialPruned from None
    except ConfigError as error:
        trial.set_user_attr("note", str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        trial.set_user_attr("note", "out of memory")
    return None


def _train(config, dataset, trial, directory):
    def prune(history):
        trial.report(score(history[-1]), history[-1]["epoch"])
        # A run that has finished is complete, however bad.
        return not running.is_finished(config, history) and trial.should_prune()

    with (
        console.logged(directory / "train.log"),
        loop.Member(config, directory, dataset, prune=prune) as member,
    ):
        loop.train([member])
    if member.error is not None:
        raise member.error
    if member.is_pruned:
        raise optuna.TrialPruned
    row = evaluated_row(member.history, config.early_stopping)
    trial.set_user_attr("epoch", row["epoch"])
    trial.set_user_attr("val_loss", row.get("ema_val_loss", row["val_loss"]))
    return score(row)


def tabulate(sweep: Sweep) -> list[Trial]:
    """Write trials.csv, and return its rows."""
    trials = list_trials(sweep.study)
    histories = {trial.number: Retry.retry_history(trial) for trial in trials}
    retries = {lost[-1]: number for number, lost in histories.items() if lost}
    rows = [_make_row(trial, sweep, retries.get(trial.number)) for trial in trials]
    write_trials(sweep.workdir / "trials.csv", rows, sweep.axes)
    return rows


def _make_row(trial, sweep, retry):
    has_ended, note = trial.state.is_finished(), trial.user_attrs.get("note")
    if retry is not None:
        note = f"its worker was gone; tried again as {retry}"
    settings = dict(trial.params)
    if any(axis.is_factor for axis in sweep.axes):
        settings["learning_rate"] = trial.user_attrs.get("learning_rate")
    return Trial(
        number=trial.number,
        state="failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
        value=trial.value if has_ended else None,
        epochs=trial.last_step or 0,
        seconds=round(trial.duration.total_seconds(), 3) if has_ended else None,
        retry_of=Retry.retried_trial_number(trial),
        note=note,
        settings=settings,
    )


def end_trial(sweep: Sweep, number: int) -> None:
    """Write trials.csv, and print the result of a trial and the time left."""
    trials = tabulate(sweep)
    (trial,) = (trial for trial in trials if trial.number == number)
    states = [other.state for other in latest(trials)]
    total, num_waiting = len(states), states.count("waiting")
    done = sum(state in ENDED for state in states)
    seconds = [t.seconds for t in trials if t.state in ("complete", "pruned")]
    # This worker takes the next trial at once.
    num_rounds = num_waiting / (1 + states.count("running"))
    left = sum(seconds) / max(1, len(seconds)) * num_rounds
    settings = trial.settings.items()
    values = " ".join(f"{k}={console.format_setting(v)}" for k, v in settings)
    console.say(
        f"trial {done:>{len(str(total))}}/{total}  number {number}, {values}: "
        f"{_describe_result(trial)}  {console.format_seconds(trial.seconds)}, "
        f"{console.format_seconds(left)} left"
    )


def _describe_result(trial):
    if trial.state == "complete":
        return f"validation accuracy {trial.value:.2%}"
    if trial.note is not None:
        return f"{trial.state}: {trial.note}"
    return f"pruned after epoch {trial.epochs} at {trial.value:.2%}"
