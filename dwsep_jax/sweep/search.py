"""Search a space of configurations on validation, and evaluate the best on test.

A trial is an ordinary run in trials/<number>, and reads no test images. When all have
ended, the winner and the best of each optimizer and activation are trained with new
seeds in final/trial<number>/seed<k>, and only they are evaluated on test. Any number of
workers share the trials; one of each workdir trains the best.
"""

import os
import pathlib
import socket
from collections.abc import Callable, Sequence
from functools import partial

import optuna
from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.config import SWEEP
from dwsep_jax.errors import ConfigError, DivergedError, choose, is_out_of_memory
from dwsep_jax.sweep import final
from dwsep_jax.sweep.points import make_config_at
from dwsep_jax.sweep.space import Axis, count_points, list_trials_to_check, parse_space
from dwsep_jax.sweep.storage import kept
from dwsep_jax.sweep.study import (
    PRUNERS,
    SAMPLERS,
    check_study,
    get_original,
    list_planned,
    open_study,
    suggest,
)
from dwsep_jax.sweep.trials import (
    DIVERGED,
    count_states,
    describe_state,
    write_trials,
)
from dwsep_jax.sweep.worker import work
from dwsep_jax.train import loop
from dwsep_jax.workdir import Row, evaluated_row, open_workdir, score

_NUM_TRIALS = 24


def sweep(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Run trials until all have ended, then train and evaluate the best.

    The same command joins a sweep that is under way, and goes on with one that was
    broken off. A finished one gains the trials that a greater `num_trials` adds.

    Raises:
      ConfigError: for a space that cannot be searched, or another sweep's study.
      UserError: if the storage cannot be reached, no trial came to its end, or as
        `loop.train_and_evaluate`.
    """
    axes = parse_space(config)
    num_trials = count_trials(config, axes)
    dataset = data.load(config)
    workdir = pathlib.Path(workdir)
    check = partial(resolve, axes=axes, dataset=dataset, workdir=workdir)
    with kept(config.sweep.study):
        if (workdir / "config.json").exists():
            check_study(config, workdir)  # Before another storage is noted there.
        config = open_workdir(workdir, config, check, SWEEP)
        study = open_study(config, workdir, num_trials)
        print_plan(config, axes, study)
        trials = Trials(config, axes, study, workdir, dataset)
        work(study, config, axes, workdir, trials.run, trials.finish)
        write_trials(study, axes, workdir)
        final.train_best(config, axes, study, workdir, dataset)


def count_trials(config: ConfigDict, axes: Sequence[Axis]) -> int:
    """Return `config.sweep.num_trials`, or what it is where it is unset.

    Raises:
      ConfigError: for an unknown sampler, or for a grid that is endless or smaller.
    """
    choose("sampler", config.sweep.sampler, SAMPLERS)
    if config.sweep.sampler != "grid":
        return config.sweep.num_trials or _NUM_TRIALS
    num_points = count_points(axes)
    if config.sweep.num_trials is not None and config.sweep.num_trials > num_points:
        raise ConfigError(
            f"--config.sweep.num_trials={config.sweep.num_trials}: the grid has "
            f"{num_points} points; leave it out, or take another --config.sweep.sampler"
        )
    return config.sweep.num_trials or num_points


def resolve(
    config: ConfigDict,
    axes: Sequence[Axis],
    dataset: data.Dataset,
    workdir: pathlib.Path,
) -> ConfigDict:
    """Return the configuration as it is: each trial sets its own unset values.

    Raises:
      ConfigError: if no trial can have one of the values, or as `check_study`.
      UserError: as `check_study`.
    """
    choose("pruner", config.sweep.pruner, PRUNERS)
    final.list_seeds(config)
    loop.resolve(make_config_at({}, config, axes), dataset)
    for params in list_trials_to_check(axes):
        try:
            loop.resolve(make_config_at(params, config, axes), dataset)
        except ConfigError as error:
            ((name, value),) = params.items()
            raise ConfigError(
                f"--config.sweep.space: {name}={value}: {error}"
            ) from error
    check_study(config, workdir)
    return config


class Trials:
    """Runs the trials of a sweep, one after the other."""

    def __init__(
        self,
        config: ConfigDict,
        axes: Sequence[Axis],
        study: optuna.Study,
        workdir: pathlib.Path,
        dataset: data.Dataset,
    ):
        """Take what all trials share; see `sweep`."""
        self._config = config
        self._axes = axes
        self._study = study
        self._workdir = workdir
        self._dataset = dataset

    def run(self, trial: optuna.Trial, release: Callable[[], None]) -> float:
        """Train a trial, and return its accuracy on validation.

        Args:
          trial: just taken from the queue.
          release: called once the directory is claimed, for others to take trials.

        Raises:
          optuna.TrialPruned: if it is hopeless, or diverges.
          ConfigError: if its values are at odds with each other.
        """
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        original = get_original(frozen)
        number = trial.number if original is None else original
        directory = self._workdir / "trials" / str(number)
        directory.mkdir(exist_ok=True)
        with loop.claimed(directory):
            trial.set_user_attr("host", socket.gethostname())
            trial.set_user_attr("directory", str(directory.resolve()))
            release()
            params = suggest(trial, self._axes)
            try:
                return self._train(trial, params, directory)
            except DivergedError:
                trial.set_user_attr("note", DIVERGED)
                raise optuna.TrialPruned from None
            except ConfigError as error:
                trial.set_user_attr("note", str(error))
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                trial.set_user_attr("note", "out of memory")
                raise ConfigError("out of memory") from error

    def _train(self, trial, params, directory):
        config = make_config_at(params, self._config, self._axes)
        if config.learning_rate is not None:
            trial.set_user_attr("learning_rate", config.learning_rate)
        check = partial(loop.resolve, dataset=self._dataset)
        config = open_workdir(directory, config, check)

        def report(i: int, history: list[Row]) -> bool:
            row = history[-1]
            trial.report(score(row), row["epoch"])
            # One that has come to its end is complete, however good.
            return not loop.is_finished(config, history) and trial.should_prune()

        with (
            console.logged(directory / "train.log"),
            loop.open_member(config, directory, self._dataset) as member,
        ):
            loop.train([member], self._dataset, report)
        if member.error is not None:
            raise member.error
        if member.is_pruned:
            raise optuna.TrialPruned
        row = evaluated_row(member.history, config.early_stopping)
        trial.set_user_attr("epoch", row["epoch"])
        trial.set_user_attr("val_loss", row.get("ema_val_loss", row["val_loss"]))
        return score(row)

    def finish(self, number: int) -> None:
        """Print what a trial came to, and write trials.csv."""
        write_trials(self._study, self._axes, self._workdir)
        trial = self._study.get_trials(deepcopy=False)[number]
        states = count_states(self._study)
        total = sum(states.values())
        done = total - states["waiting"] - states["running"]
        left = self._format_left(states)
        took = console.format_seconds(trial.duration.total_seconds())
        console.say(
            f"trial {done:>{len(str(total))}}/{total}  number {number}, "
            f"{format_params(trial)}: {format_result(trial)}  {took}, {left} left"
        )

    def _format_left(self, states):
        finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        trials = self._study.get_trials(deepcopy=False, states=finished)
        seconds = [trial.duration.total_seconds() for trial in trials]
        mean = sum(seconds) / max(1, len(seconds))
        # This worker takes a trial again at once.
        left = mean * states["waiting"] / (1 + states["running"])
        return console.format_seconds(left)


def format_params(trial: optuna.trial.FrozenTrial) -> str:
    """Return the values of a trial, as a person reads them."""
    texts = []
    for name, value in trial.params.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        if name == "learning_rate_factor":
            rate = trial.user_attrs.get("learning_rate", float("nan"))
            name, text = "learning_rate", f"{rate:.3g} (x{text})"
        texts.append(f"{name}={text}")
    return " ".join(texts)


def format_result(trial: optuna.trial.FrozenTrial) -> str:
    """Return what a trial that has ended came to."""
    state, note = describe_state(trial), trial.user_attrs.get("note")
    if state == "complete":
        return f"validation accuracy {trial.value:.2%}"
    if note is not None:
        return f"{state}: {note}"
    return f"pruned after epoch {trial.last_step} at {trial.value:.2%}"


def print_plan(config: ConfigDict, axes: Sequence[Axis], study: optuna.Study) -> None:
    """Print what is searched, and how many runs that takes."""
    values = [text.partition("=")[2].strip() for text in config.sweep.space]
    rows = [[axis.field, text] for axis, text in zip(axes, values, strict=True)]
    console.print_table("Space", ["field", "values"], rows, text_columns=(0, 1))
    num_trials, states = len(list_planned(study)), count_states(study)
    lengths = [axis.list_extremes() for axis in axes if axis.field == "num_epochs"]
    num_epochs = max(lengths[0]) if lengths else config.num_epochs
    console.say(
        f"{num_trials} trials of up to {num_epochs} epochs on {config.dataset}, "
        f"sampler {config.sweep.sampler}, pruner {config.sweep.pruner}; "
        f"{states['waiting']} wait"
    )
