"""A worker of a sweep: takes trials from the queue, and finds those of dead workers.

A trial whose worker is gone is failed and stands in the queue again. A database knows
from Optuna's heartbeat; where a file keeps the study, a trial lives as long as somebody
holds the lock of its directory. No jax is needed here.
"""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Callable

import optuna
from ml_collections import ConfigDict
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from dwsep_jax import console
from dwsep_jax.errors import ConfigError
from dwsep_jax.lock import locked
from dwsep_jax.sweep.space import Axis
from dwsep_jax.sweep.storage import GRACE_SECONDS, calmly, is_file
from dwsep_jax.sweep.study import POLL_SECONDS, is_planned, list_trials, seed_sampler

RunTrial = Callable[[optuna.Trial, Callable[[], None]], float]


class _SurplusError(Exception):
    """Another worker took the last trial of the queue, and Optuna made one more."""


def work(
    study: optuna.Study,
    config: ConfigDict,
    axes: list[Axis],
    workdir: pathlib.Path,
    run_trial: RunTrial,
    after_trial: Callable[[int], None],
) -> None:
    """Run trials of the queue until none is left that waits or runs.

    Args:
      study: as `open_study` returns it.
      config: of the sweep.
      axes: of its space.
      workdir: of the sweep.
      run_trial: returns the value of a trial; it calls its second argument once it has
        claimed the trial's directory.
      after_trial: is called with the number of each trial that ended here.

    Raises:
      optuna.exceptions.StorageInternalError: if the storage is lost.
    """
    watched: list[int] = []
    while True:
        with contextlib.ExitStack() as queue:
            queue.enter_context(locked(workdir / "trials"))
            requeue_dead(study, is_file(config.sweep.storage))
            trials = list_trials(study)
            if any(trial.state == TrialState.WAITING for trial in trials):
                # A grid's sampler decides at once, others when they are asked.
                seed_sampler(study, config, axes, 0)

                def run(trial: optuna.Trial, queue=queue) -> float:
                    seed_sampler(study, config, axes, trial.number)
                    return run_trial(trial, queue.close)

                if (number := _run_next(study, run)) is not None:
                    after_trial(number)
                continue
        running = [t for t in trials if t.state == TrialState.RUNNING]
        if not running:
            return
        if watched != (watched := [trial.number for trial in running]):
            _say_waiting(running, config)
        time.sleep(POLL_SECONDS)


def _run_next(study, run):
    """Run the next trial of the queue; return its number if it ended here.

    What stops the sweep puts the trial back into the queue.
    """
    taken, raised = [], []

    def objective(trial):
        taken.append(trial)
        if not is_planned(trial):
            raise _SurplusError
        try:
            return run(trial)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        study.optimize(objective, n_trials=1, catch=(ConfigError, _SurplusError))
    except (Exception, KeyboardInterrupt) as error:
        if taken and isinstance(error, ValueError) and error not in raised:
            # Optuna does not take the result: somebody has failed the trial.
            console.say(
                f"trial {taken[0].number} was given to another worker: this one was "
                f"silent for {GRACE_SECONDS} s"
            )
            return None
        for trial in taken:
            with contextlib.suppress(optuna.exceptions.StorageInternalError):
                _retry(study, trial.number)
        raise
    return taken[0].number if is_planned(taken[0]) else None


def requeue_dead(study: optuna.Study, is_in_file: bool) -> None:
    """Fail trials whose worker is gone, and put them back into the queue.

    Args:
      study: what has them.
      is_in_file: whether the locks of directories tell, and not the heartbeat alone.
    """
    with calmly():
        optuna.storages.fail_stale_trials(study)
    for trial in list_trials(study):
        if trial.state == TrialState.RUNNING and _is_dead(trial, is_in_file):
            # `tell` would have the sampler of a grid stop a study that is not at work.
            study.sampler = optuna.samplers.RandomSampler()
            with contextlib.suppress(
                ValueError, optuna.exceptions.UpdateFinishedTrialError
            ):  # Another worker was faster.
                study.tell(trial.number, state=TrialState.FAIL)
                _retry(study, trial.number)


def _is_dead(trial, is_in_file):
    directory = trial.user_attrs.get("directory")
    if directory is None:  # Killed between two lines: no heartbeat, no lock.
        age = time.time() - trial.datetime_start.timestamp()
        return age > GRACE_SECONDS
    if not is_in_file or trial.user_attrs["host"] != socket.gethostname():
        return False
    return os.path.isdir(directory) and not _is_claimed(directory)


def _is_claimed(directory):
    """Return whether a process holds the lock of a directory, or none can be had."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _retry(study, number):
    trial = study.get_trials(deepcopy=True)[number]
    if trial.state == TrialState.FAIL:
        with calmly():
            RetryHeartbeatStaleTrialCallback()(study, trial)


def _say_waiting(running, config):
    places = [
        f"{t.number} ({t.user_attrs.get('host')}:{t.user_attrs.get('directory')})"
        for t in running
    ]
    remedy = ""
    if config.sweep.storage is not None and is_file(config.sweep.storage):
        remedy = "; if one is gone, give this command again on its machine"
    console.say(f"waiting for other workers with trial {', '.join(places)}{remedy}")
