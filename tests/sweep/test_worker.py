"""Workers that share a study, and one that is killed in mid-trial."""

import os
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from optuna.trial import TrialState

from dwsep_jax.sweep import study, worker
from dwsep_jax.sweep.trial import tabulate
from tests.sweep import one_worker, sweeping

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def database():
    with sweeping.postgresql() as url:
        yield url


def start_worker(*arguments):
    words = [sys.executable, "-m", "tests.sweep.one_worker", *map(str, arguments)]
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)})


def read_logs(workdirs):
    """Return (worker, trial's number, value) of each attempt, by its directory."""
    return {
        path.parent: [tuple(line.split()) for line in path.read_text().splitlines()]
        for workdir in workdirs
        for path in workdir.glob("trials/*/log")
    }


@pytest.mark.parametrize("kind", ["study.db", "database"])
def test_the_trial_of_a_killed_worker_is_retried(kind, tmp_path, request):
    # A database serves workers on machines that share no directory.
    storage, workdirs = "study.db", [tmp_path / "sweep"] * 3
    if kind == "database":
        storage = request.getfixturevalue("database")
        workdirs = [tmp_path / name for name in ("victim", "a", "b")]
    with start_worker(storage, workdirs[0], "victim", 60) as victim:
        try:
            end = time.monotonic() + 60
            while not read_logs(workdirs[:1]):
                assert victim.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
        finally:
            victim.kill()
    ((_, lost, value),) = next(iter(read_logs(workdirs[:1]).values()))
    workers = [
        start_worker(storage, workdir, name, 0.3)
        for workdir, name in zip(workdirs[1:], ("a", "b"))
    ]
    assert [process.wait(timeout=60) for process in workers] == [0, 0]
    tabulate(one_worker.open_study(storage, workdirs[1]))
    rows = sweeping.read_trials(workdirs[1])
    # Every original has one complete trial; the lost one kept its values. Between the
    # two there may be a number of Optuna's, for a worker that found the queue empty.
    *originals, retry = [row["number"] for row in rows]
    assert originals == list("012345")
    (again,) = [row for row in rows if row["retry_of"]]
    assert (again["retry_of"], again["mixup"]) == (lost, value)
    (failed,) = [row for row in rows if row["state"] != "complete"]
    assert (failed["number"], failed["state"]) == (lost, "failed")
    assert failed["note"] == f"its worker was gone; tried again as {again['number']}"
    # Both workers had a share, no trial ran twice, and no two drew the same point.
    attempts = [line for lines in read_logs(set(workdirs)).values() for line in lines]
    assert sorted(number for _, number, _ in attempts) == [*originals, retry]
    assert {name for name, _, _ in attempts} == {"victim", "a", "b"}
    assert len({value for _, _, value in attempts}) == 6
    assert {d.name for d in read_logs(set(workdirs))} == set("012345")


@pytest.mark.parametrize("storage", ["sqlite:///{}/shared.db", "{}/shared.journal"])
def test_workers_that_start_together_queue_the_trials_once(storage, tmp_path):
    def open_study(name):
        return one_worker.open_study(storage.format(tmp_path), tmp_path / name)

    with ThreadPoolExecutor() as threads:
        sweeps = list(threads.map(open_study, "abc"))
    for sweep in sweeps:
        numbers = [trial.number for trial in study.list_trials(sweep.study)]
        assert numbers == list(range(one_worker.NUM_TRIALS))


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep of one trial."""
    monkeypatch.setattr(study, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(one_worker, "NUM_TRIALS", 1)
    return one_worker.open_study("study.db", tmp_path / "sweep")


def test_a_trial_beyond_the_queue_is_not_run(sweep):
    """Another machine's worker may take the last one between two looks at it."""
    worker._run_next(sweep, lambda *args: 0.5, lambda trial: None, lambda: None)
    worker._run_next(sweep, pytest.fail, pytest.fail, pytest.fail)
    states = [trial.state for trial in sweep.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL]
    assert [trial.number for trial in study.list_trials(sweep.study)] == [0]


def test_a_trial_is_locked_until_its_result_is_stored(sweep, monkeypatch):
    def after_trial(sampler, *args):
        worker.requeue_dead_trials(sweep)  # As another worker may at any time.

    monkeypatch.setattr(study.samplers.RandomSampler, "after_trial", after_trial)
    worker.work(sweep, lambda *args: 0.5, lambda trial: None)
    assert [t.state for t in sweep.study.trials] == [TrialState.COMPLETE]


def test_a_worker_that_was_taken_for_dead_leaves_its_trial(sweep, capsys):
    attempts, ended = [], []

    def run(trial, directory):
        attempts.append(trial.number)
        if len(attempts) == 1:
            # As another worker does, when the heartbeat has stopped.
            storage = sweep.study._storage
            storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            worker._retry(sweep, trial.number)
            trial.report(0.5, 1)
        return 0.5

    worker.work(sweep, run, ended.append)
    assert (attempts, ended) == ([0, 1], [1])
    assert "trial 0 was given to another worker" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize(
    ("host", "directory", "grace_seconds", "is_retried"),
    [
        # Killed between two lines of code, before it was recorded who runs it.
        (None, None, 60, False),
        (None, None, -1, True),
        ("elsewhere", "/", 60, False),
        (worker.socket.gethostname(), "/not/here", 60, False),
        (worker.socket.gethostname(), "/", 60, True),
    ],
)
def test_which_trials_are_dead(
    sweep, monkeypatch, host, directory, grace_seconds, is_retried
):
    monkeypatch.setattr(study, "GRACE_SECONDS", grace_seconds)
    trial = sweep.study.ask()
    for name, value in {"host": host, "directory": directory}.items():
        if value:
            trial.set_user_attr(name, value)
    worker.requeue_dead_trials(sweep)
    states = [t.state for t in sweep.study.trials]
    retried = [TrialState.FAIL, TrialState.WAITING]
    assert states == (retried if is_retried else [TrialState.RUNNING])
