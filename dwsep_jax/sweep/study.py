"""The study of a sweep, which is Optuna's: definition, queue, sampler and pruner.

All trials are in the queue from the start, so that workers that join do not start more
of them together. No jax is needed here.
"""

import contextlib
import pathlib
import time
from typing import Any

import numpy as np
import optuna
from ml_collections import ConfigDict
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from dwsep_jax.config import SWEEP, format_value, identity
from dwsep_jax.errors import ConfigError, UserError, choose
from dwsep_jax.lock import locked
from dwsep_jax.sweep.space import Axis
from dwsep_jax.sweep.storage import calmly, open_storage

POLL_SECONDS = 2.0
_DEFINITION = "dwsep_jax_sweep"
# In a trial's attributes: it was put into the queue, and not asked for beyond it.
_PLANNED = "planned"


def _make_tpe(axes, seed, grid_seed):
    with calmly():
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _make_random(axes, seed, grid_seed):
    return optuna.samplers.RandomSampler(seed=seed)


def _make_grid(axes, seed, grid_seed):
    grid = {axis.name: axis.list_values() for axis in axes}
    return optuna.samplers.GridSampler(grid, seed=grid_seed)


SAMPLERS = {"tpe": _make_tpe, "random": _make_random, "grid": _make_grid}

# None is judged before a quarter of its epochs: small rates start slowly.
PRUNERS = {
    "median": lambda num_epochs: optuna.pruners.MedianPruner(
        n_startup_trials=5, n_warmup_steps=num_epochs // 4
    ),
    "halving": lambda num_epochs: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, num_epochs // 4), reduction_factor=2
    ),
    "none": lambda num_epochs: optuna.pruners.NopPruner(),
}


def check_study(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Check that the storage has no other study, and has that of the workdir's trials.

    Raises:
      ConfigError: if the study of that name is of another sweep.
      UserError: if the storage cannot be reached, or the workdir has another study's
        trials.
    """
    trials = workdir / "trials"
    if config.sweep.storage is not None or (workdir / "study.db").exists():
        storage = open_storage(config.sweep.storage, workdir)
        with contextlib.suppress(KeyError):
            study = optuna.load_study(study_name=config.sweep.study, storage=storage)
            _compare(study, config)
            return
    if trials.is_dir() and any(trials.iterdir()):
        raise UserError(
            f"--workdir={workdir}: has trials, and the storage no study of them; "
            "choose another --workdir, or the --config.sweep.storage that it had"
        )


def open_study(
    config: ConfigDict, workdir: pathlib.Path, num_trials: int
) -> optuna.Study:
    """Create the study, or join it, and fill the queue up to `num_trials`.

    Raises:
      ConfigError: if the study of that name is of another sweep.
      UserError: if the storage cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = workdir / "trials"
    trials.mkdir(exist_ok=True)
    with locked(trials):
        storage = open_storage(config.sweep.storage, workdir)
        pruner = choose("pruner", config.sweep.pruner, PRUNERS)(config.num_epochs)
        options = {
            "storage": storage,
            "study_name": config.sweep.study,
            "pruner": pruner,
        }
        try:
            study = optuna.create_study(direction="maximize", **options)
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(**options)
            _compare(study, config)
            _fill_queue(study, num_trials, is_new=False)
            return study
        study.set_user_attr(_DEFINITION, _define(config))
        _fill_queue(study, num_trials, is_new=True)
        return study


def _define(config):
    """Return what all workers of a study must agree on."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in identity(config, SWEEP).items()
    }


def _compare(study, config):
    start = time.monotonic()
    while (there := study.user_attrs.get(_DEFINITION)) is None:
        # Another worker may have created it just now, or was killed when it had.
        if time.monotonic() - start > POLL_SECONDS:
            if not study.get_trials(deepcopy=False):
                study.set_user_attr(_DEFINITION, _define(config))
                return
            raise ConfigError(
                f"--config.sweep.study={study.study_name}: that study in the storage "
                "is no sweep's; choose another --config.sweep.study"
            )
        time.sleep(POLL_SECONDS / 4)
    here = _define(config)
    if differences := [
        f"{name}={_format(there.get(name))} there, {_format(here.get(name))} here"
        for name in sorted(here.keys() | there.keys())
        if there.get(name) != here.get(name)
    ]:
        raise ConfigError(
            f"--config.sweep.study={study.study_name}: that study in the storage is of "
            f"another sweep: {'; '.join(differences)}; choose another "
            "--config.sweep.study"
        )


def _format(value):
    return format_value(tuple(value) if isinstance(value, list) else value)


def _fill_queue(study, num_trials, is_new):
    count = len(list_planned(study))
    while not is_new and count < num_trials:
        # Its creator, on another machine, may be filling it.
        time.sleep(POLL_SECONDS / 2)
        before, count = count, len(list_planned(study))
        if count == before:
            break
    for _ in range(num_trials - count):
        trial = optuna.create_trial(
            state=TrialState.WAITING, user_attrs={_PLANNED: True}
        )
        study.add_trial(trial)


def is_planned(trial: FrozenTrial | optuna.Trial) -> bool:
    """Return whether a trial was put into the queue, and not asked for beyond it."""
    return _PLANNED in trial.user_attrs


def list_planned(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that retry none, in order of their numbers."""
    return [trial for trial in list_trials(study) if get_original(trial) is None]


def list_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials that were in the queue, in order of their numbers."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if is_planned(trial)]


def get_original(trial: FrozenTrial) -> int | None:
    """Return the number of the trial that this one retries, if it does."""
    with calmly():
        return RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)


def suggest(trial: optuna.Trial, axes: list[Axis]) -> dict[str, Any]:
    """Return {name: value} of a trial, sampled unless it retries another."""
    return {axis.name: _suggest(trial, axis) for axis in axes}


def _suggest(trial, axis):
    if axis.kind == "choice":
        return trial.suggest_categorical(axis.name, axis.choices)
    if axis.kind == "int":
        return trial.suggest_int(axis.name, axis.low, axis.high, log=axis.log)
    return trial.suggest_float(
        axis.name, axis.low, axis.high, step=axis.step, log=axis.log
    )


def seed_sampler(
    study: optuna.Study, config: ConfigDict, axes: list[Axis], number: int
) -> None:
    """Give the study the sampler of a trial, a function of the seed and its number.

    Otherwise workers with one seed would draw the same points, and so would one that
    is started again.
    """
    sequence = np.random.SeedSequence([config.seed, number])
    seed = int(sequence.generate_state(1)[0])
    make_sampler = choose("sampler", config.sweep.sampler, SAMPLERS)
    study.sampler = make_sampler(axes, seed, config.seed)
