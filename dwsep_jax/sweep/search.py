"""Search a space of configurations on validation, and evaluate the best on test.

A trial is an ordinary run in trials/<number> that never reads test images. Once all
have ended, the winner and the best of each optimizer and activation are trained with
new seeds in final/trial<number>/seed<k>, and these alone are evaluated on test. Any
number of workers share the trials; one worker per workdir trains the best.
"""

import os
import pathlib
from collections.abc import Sequence
from functools import partial

import optuna
from ml_collections import ConfigDict

from dwsep_jax import console, data, errors
from dwsep_jax.errors import ConfigError, DivergedError, UserError, choose
from dwsep_jax.fields import SWEEP
from dwsep_jax.sweep.results import (
    DIVERGED,
    count_states,
    describe_state,
    format_setting,
    list_seeds,
    train_finals,
    write_trials,
)
from dwsep_jax.sweep.space import Axis, count_points, make_config_at, parse_space
from dwsep_jax.sweep.study import (
    PRUNERS,
    SAMPLERS,
    Sweep,
    check_study,
    describe_failure,
    open_study,
)
from dwsep_jax.sweep.worker import work
from dwsep_jax.train import loop
from dwsep_jax.workdir import Row, evaluated_row, open_workdir, score

_NUM_TRIALS = 24


def sweep(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Run trials until all have ended, then train and evaluate the best.

    The same command joins a sweep in progress and resumes an interrupted one. With a
    greater `num_trials`, a finished sweep is extended.

    Raises:
      ConfigError: for a space that cannot be searched, or another sweep's study.
      UserError: if the storage fails, no trial was completed, or as
        `loop.train_and_evaluate`.
    """
    workdir = pathlib.Path(workdir)
    axes = parse_space(config)
    num_trials = count_trials(config, axes)
    dataset = data.load(config)
    try:
        if (workdir / "config.json").exists():
            check_study(config, workdir)  # Before another storage is recorded there.
        check = partial(check_search, axes=axes, dataset=dataset, workdir=workdir)
        config = open_workdir(workdir, config, check, SWEEP)
        opened = open_study(config, axes, workdir, num_trials)
        print_plan(opened)
        work(opened, partial(run_trial, opened, dataset), partial(end_trial, opened))
        write_trials(opened)
        train_finals(opened, dataset)
    except optuna.exceptions.StorageInternalError as error:
        raise UserError(
            f"the storage of study {config.sweep.study} failed: "
            f"{describe_failure(error)}; run the same command again once it is back"
        ) from error


def count_trials(config: ConfigDict, axes: Sequence[Axis]) -> int:
    """Return `config.sweep.num_trials`; unset: 24, or all points of a grid.

    Raises:
      ConfigError: for an unknown sampler, or a grid that is infinite or smaller.
    """
    choose("sampler", config.sweep.sampler, SAMPLERS)
    num_trials = config.sweep.num_trials
    if config.sweep.sampler != "grid":
        return num_trials or _NUM_TRIALS
    num_points = count_points(axes)
    if num_trials is not None and num_trials > num_points:
        raise ConfigError(
            f"--config.sweep.num_trials={num_trials}: the grid has {num_points} "
            "points; leave it unset, or use another --config.sweep.sampler"
        )
    return num_trials or num_points


def check_search(
    config: ConfigDict,
    axes: Sequence[Axis],
    dataset: data.Dataset,
    workdir: pathlib.Path,
) -> ConfigDict:
    """Return the configuration unchanged: each trial resolves its own unset fields.

    Raises:
      ConfigError: if no trial can have one of the values, or as `check_study`.
      UserError: as `check_study`.
    """
    choose("pruner", config.sweep.pruner, PRUNERS)
    list_seeds(config)
    loop.resolve(make_config_at({}, config, axes), dataset)
    for axis in axes:
        for value in axis.extremes:
            try:
                loop.resolve(make_config_at({axis.name: value}, config, axes), dataset)
            except ConfigError as error:
                raise ConfigError(
                    f"--config.sweep.space: {axis.name}={value}: {error}"
                ) from error
    check_study(config, workdir)
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
        config = make_config_at(params, sweep.config, sweep.axes)
        if config.learning_rate is not None:
            trial.set_user_attr("learning_rate", config.learning_rate)
        resolve = partial(loop.resolve, dataset=dataset)
        config = open_workdir(directory, config, resolve)
        return _train(config, dataset, trial, directory)
    except DivergedError:
        trial.set_user_attr("note", DIVERGED)
        raise optuna.TrialPruned from None
    except ConfigError as error:
        trial.set_user_attr("note", str(error))
    except Exception as error:
        if not errors.is_out_of_memory(error):
            raise
        trial.set_user_attr("note", "out of memory")
    return None


def _train(config, dataset, trial, directory):
    def prune(i: int, history: list[Row]) -> bool:
        trial.report(score(history[-1]), history[-1]["epoch"])
        # A run that has finished is complete, however bad.
        return not loop.is_finished(config, history) and trial.should_prune()

    with (
        console.logged(directory / "train.log"),
        loop.open_member(config, directory, dataset) as member,
    ):
        loop.train([member], dataset, prune)
    if member.error is not None:
        raise member.error
    if member.is_pruned:
        raise optuna.TrialPruned
    row = evaluated_row(member.history, config.early_stopping)
    trial.set_user_attr("epoch", row["epoch"])
    trial.set_user_attr("val_loss", row.get("ema_val_loss", row["val_loss"]))
    return score(row)


def end_trial(sweep: Sweep, trial: optuna.trial.FrozenTrial) -> None:
    """Write trials.csv, and print the result of a trial and the time left."""
    write_trials(sweep)
    states = count_states(sweep)
    total = states.total()
    done = total - states["waiting"] - states["running"]
    seconds = [
        other.duration.total_seconds()
        for other in sweep.study.get_trials(deepcopy=False)
        if describe_state(other) in ("complete", "pruned")
    ]
    # This worker takes the next trial at once.
    num_rounds = states["waiting"] / (1 + states["running"])
    left = sum(seconds) / max(1, len(seconds)) * num_rounds
    settings = dict(trial.params)
    if "learning_rate_factor" in settings:
        settings["learning_rate"] = trial.user_attrs.get("learning_rate")
    values = " ".join(f"{k}={format_setting(v)}" for k, v in settings.items())
    console.say(
        f"trial {done:>{len(str(total))}}/{total}  number {trial.number}, "
        f"{values}: {format_result(trial)}  "
        f"{console.format_seconds(trial.duration.total_seconds())}, "
        f"{console.format_seconds(left)} left"
    )


def format_result(trial: optuna.trial.FrozenTrial) -> str:
    """Return the outcome of a trial that has ended."""
    state, note = describe_state(trial), trial.user_attrs.get("note")
    if state == "complete":
        return f"validation accuracy {trial.value:.2%}"
    if note is not None:
        return f"{state}: {note}"
    return f"pruned after epoch {trial.last_step} at {trial.value:.2%}"


def print_plan(sweep: Sweep) -> None:
    """Print the space, and how many trials of what length it takes."""
    config, states = sweep.config, count_states(sweep)
    rows = [text.split("=", 1) for text in config.sweep.space]
    console.print_table("Space", ["field", "values"], rows, text_columns=(0, 1))
    lengths = [max(a.extremes) for a in sweep.axes if a.field == "num_epochs"]
    num_epochs = (lengths or [config.num_epochs])[0]
    console.say(
        f"{states.total()} trials of up to {num_epochs} epochs on {config.dataset}, "
        f"sampler {config.sweep.sampler}, pruner {config.sweep.pruner}; "
        f"{states['waiting']} waiting"
    )
