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

from dwsep_jax import console, data
from dwsep_jax.errors import ConfigError, UserError, choose
from dwsep_jax.fields import SWEEP
from dwsep_jax.space import Axis, count_points, parse_space
from dwsep_jax.sweep import finals, study, trial, worker
from dwsep_jax.train import loop
from dwsep_jax.trials import latest
from dwsep_jax.workdir import open_workdir

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
    axes = parse_space(config.sweep.space)
    num_trials = count_trials(config, axes)
    dataset = data.load(config)
    try:
        if (workdir / "config.json").exists():
            # Before another storage is recorded there.
            study.check_study(config, workdir)
        check = partial(check_search, axes=axes, dataset=dataset, workdir=workdir)
        config = open_workdir(workdir, config, check, SWEEP)
        opened = study.open_study(config, axes, workdir, num_trials)
        print_plan(opened)
        run_trial = partial(trial.run_trial, opened, dataset)
        worker.work(opened, run_trial, partial(trial.end_trial, opened))
        finals.train_finals(opened, dataset)
    except optuna.exceptions.StorageInternalError as error:
        raise UserError(
            f"the storage of study {config.sweep.study} failed: "
            f"{study.describe_failure(error)}; run the same command again once it is "
            "back"
        ) from error


def count_trials(config: ConfigDict, axes: Sequence[Axis]) -> int:
    """Return `config.sweep.num_trials`; unset: 24, or all points of a grid.

    Raises:
      ConfigError: for an unknown sampler, or a grid that is infinite or smaller.
    """
    choose("sampler", config.sweep.sampler, study.SAMPLERS)
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

    def check(params):
        loop.resolve(trial.make_config(params, config, axes), dataset)
        trial.make_config(params, config, axes, is_final=True)

    choose("pruner", config.sweep.pruner, study.PRUNERS)
    check({})
    for axis in axes:
        for value in axis.extremes:
            try:
                check({axis.name: value})
            except ConfigError as error:
                raise ConfigError(
                    f"--config.sweep.space: {axis.name}={value}: {error}"
                ) from error
    study.check_study(config, workdir)
    return config


def print_plan(sweep: study.Sweep) -> None:
    """Print how many trials of what length the space takes."""
    config = sweep.config
    states = [row.state for row in latest(trial.tabulate(sweep))]
    lengths = [max(a.extremes) for a in sweep.axes if a.field == "num_epochs"]
    (num_epochs,) = lengths or [config.num_epochs]
    console.say(
        f"{len(states)} trials of up to {num_epochs} epochs on {config.dataset}, "
        f"sampler {config.sweep.sampler}, pruner {config.sweep.pruner}; "
        f"{states.count('waiting')} waiting; space: {', '.join(config.sweep.space)}"
    )
