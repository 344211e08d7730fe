"""A worker of a sweep: runs queued trials, and requeues those of dead workers.

A database notices a dead worker by Optuna's heartbeat. Where the study is a file, a
trial is alive as long as a process locks its directory. Nothing here needs jax.
"""

import contextlib
import os
import pathlib
import socket
import time
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from dwsep_jax import console
from dwsep_jax.errors import UserError
from dwsep_jax.lock import is_free, locked
from dwsep_jax.sweep import study
from dwsep_jax.sweep.study import Sweep, get_original, list_trials

# What Optuna raises for the result of a trial that has already ended.
_ENDED = (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError)
RunTrial = Callable[[optuna.Trial, pathlib.Path], float | None]


def work(sweep: Sweep, run_trial: RunTrial, after_trial: Callable[[int], None]) -> None:
    """Run trials until none is waiting or running in any worker.

    Args:
      sweep: as `open_study` returns it.
      run_trial: trains a trial in its directory, which no other process uses; returns
        its value, or None where it failed. What it raises, but for
        `optuna.TrialPruned`, stops the worker, and the trial is queued again.
      after_trial: called with the number of each trial that ended here.
    """
    watched: list[int] = []
    while True:
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked(sweep.workdir / "trials"))
            requeue_dead_trials(sweep)
            trials = list_trials(sweep.study)
            if any(trial.state == TrialState.WAITING for trial in trials):
                # Once the trial's own directory is locked, others may take the next.
                _run_next(sweep, run_trial, after_trial, lock.close)
                continue
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if not running:
            return
        if watched != (watched := [trial.number for trial in running]):
            _say_waiting(running, sweep.config.sweep.storage)
        time.sleep(study.POLL_SECONDS)


def _run_next(sweep, run_trial, after_trial, release):
    taken, errors = [], []

    def objective(trial):
        taken.append(trial)
        if not study.is_queued(trial):  # Another worker took the last one of the queue.
            return None
        sweep.study.sampler = study.make_sampler(sweep, trial.number)
        try:
            directory = _claim_directory(sweep, trial, claim)
            release()
            return run_trial(trial, directory)
        except optuna.TrialPruned:
            raise
        except (Exception, KeyboardInterrupt) as error:
            errors.append(error)
            return None  # Optuna lets the trial fail.

    # A grid assigns a point before the objective is called.
    sweep.study.sampler = study.make_sampler(sweep, 0)
    # Locked until the result is stored: a running trial without a lock is a dead one.
    with contextlib.ExitStack() as claim:
        try:
            sweep.study.optimize(objective, n_trials=1)
        except _ENDED:
            console.say(
                f"trial {taken[0].number} was given to another worker: this one sent "
                f"no heartbeat for {study.GRACE_SECONDS} s"
            )
            return
        if errors:
            _retry(sweep, taken[0].number)
            raise errors[0]
    if study.is_queued(taken[0]):
        after_trial(taken[0].number)


def _claim_directory(sweep, trial, claim):
    """Create, lock and record the directory of a trial, or of the one it retries."""
    original = get_original(sweep.study.get_trials(deepcopy=False)[trial.number])
    directory = sweep.workdir / "trials" / str(original)
    directory.mkdir(exist_ok=True)
    try:
        claim.enter_context(locked(directory, wait=False))
    except BlockingIOError:
        raise UserError(
            f"another process is using {directory}; wait until it has finished"
        ) from None
    trial.set_user_attr("host", socket.gethostname())
    trial.set_user_attr("directory", str(directory.resolve()))
    return directory


def requeue_dead_trials(sweep: Sweep) -> None:
    """Fail the trials whose worker has died, and queue them again."""
    optuna.storages.fail_stale_trials(sweep.study)
    is_in_file = study.is_file(sweep.config.sweep.storage)
    for trial in list_trials(sweep.study):
        if trial.state == TrialState.RUNNING and _is_dead(trial, is_in_file):
            # A grid's sampler would stop a study that is not being optimized.
            sweep.study.sampler = optuna.samplers.RandomSampler()
            with contextlib.suppress(*_ENDED):  # Another worker was faster.
                sweep.study.tell(trial.number, state=TrialState.FAIL)
                _retry(sweep, trial.number)


def _is_dead(trial, is_in_file):
    directory = trial.user_attrs.get("directory")
    if directory is None:  # Killed before it took its lock, or about to.
        return time.time() - trial.datetime_start.timestamp() > study.GRACE_SECONDS
    is_here = trial.user_attrs["host"] == socket.gethostname()
    return is_in_file and is_here and os.path.isdir(directory) and is_free(directory)


def _retry(sweep, number):
    study.Retry()(sweep.study, sweep.study.trials[number])


def _say_waiting(running, storage):
    names = ("host", "directory")
    places = [[t.number, *map(t.user_attrs.get, names)] for t in running]
    text = ", ".join(f"trial {n} ({host}:{path})" for n, host, path in places)
    if study.is_file(storage):
        text += "; if its worker has died, run this command again on its machine"
    console.say(f"waiting for other workers to finish {text}")
