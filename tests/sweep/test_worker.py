"""Workers that share a study, and one that is killed in mid-trial; without jax."""

import contextlib
import signal
import time

import optuna
import pytest

from dwsep_jax.sweep import study, worker
from dwsep_jax.sweep.space import parse_space
from tests.sweep import sweeping
from tests.sweep.sweeping import read_trials


@pytest.fixture(scope="module")
def database():
    place, user = sweeping.find_postgresql()
    if place is None or user is None:
        pytest.skip("no initdb of PostgreSQL here, or no user but root to run it")
    with sweeping.postgresql() as url:
        yield url


def wait_for(condition, worker, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert worker.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_in_mid_trial(storage, workdir):
    """Start a worker, kill it in a trial, and return the number of that trial."""
    victim = sweeping.start_worker(storage, workdir, "victim", 60)
    logs = workdir / "trials"
    with victim:
        wait_for(lambda: list(logs.glob("*/log")), victim)
        victim.send_signal(signal.SIGKILL)
    (log,) = logs.glob("*/log")
    return log.parent.name


def finish(worker):
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, output
    return output


@pytest.mark.parametrize("kind", ["database", "journal"])
def test_the_trial_of_a_killed_worker_is_tried_again(kind, tmp_path, request):
    storage = str(tmp_path / "study.journal")
    if kind == "database":
        storage = request.getfixturevalue("database")
    workdir = tmp_path / "sweep"
    workdir.mkdir()
    lost = kill_in_mid_trial(storage, workdir)
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(sweeping.start_worker(storage, workdir, name, 0.2))
            for name in ("a", "b")
        ]
        for worker in workers:
            finish(worker)
    rows = {row["number"]: row for row in read_trials(workdir)}
    assert list(rows) == list("0123456")
    retries = {row["retry_of"]: row for row in rows.values() if row["retry_of"]}
    assert list(retries) == [lost]
    again = retries[lost]
    assert rows[lost]["state"] == "failed"
    assert (
        rows[lost]["note"] == f"its worker was gone; tried again as {again['number']}"
    )
    # Every original has one whole trial, and the one that was lost kept its values.
    assert [r["number"] for r in rows.values() if r["state"] != "complete"] == [lost]
    assert again["mixup"] == rows[lost]["mixup"]
    lines = (workdir / "trials" / lost / "log").read_text().split()
    assert (lines[0], lines[1], lines[2]) == ("victim", lost, lines[5])
    assert lines[4] == again["number"]
    # Both had a share, and no two drew the same point.
    logs = [p.read_text().split() for p in (workdir / "trials").glob("*/log")]
    assert {log[-3] for log in logs} == {"a", "b"}
    assert len({log[2] for log in logs}) == 6


def test_workers_that_start_together_plan_the_trials_once(database, tmp_path):
    # As on two machines, with nothing in common but the database.
    storage = database.replace("/postgres?", "/together?")
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE DATABASE together")
    with contextlib.ExitStack() as stack:
        workers = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            worker = sweeping.start_worker(storage, tmp_path / name, name, 0.1)
            workers.append(stack.enter_context(worker))
        for worker in workers:
            finish(worker)
    for name in ("a", "b"):
        rows = read_trials(tmp_path / name)
        assert [row["number"] for row in rows] == list("012345")


def work(workdir, run, num_trials=1):
    """Open a study of so many trials, and work on it; return it and what ended."""
    config = sweeping.make_config(space=("mixup=0..1",), sampler="random")
    opened = study.open_study(config, workdir, num_trials)
    ended = []
    worker.work(opened, config, parse_space(config), workdir, run, ended.append)
    return opened, ended


def test_a_trial_beyond_the_queue_is_not_run(tmp_path):
    """Another machine's worker may take the last one between two looks at the queue."""

    def run(trial, release):
        return 0.5

    opened, ended = work(tmp_path, run)
    assert ended == [0]
    assert worker._run_next(opened, pytest.fail) is None
    assert len(opened.trials) == 2
    assert [trial.number for trial in study.list_trials(opened)] == [0]


def test_a_worker_that_was_taken_for_dead_leaves_its_trial(tmp_path, capsys):
    attempts = []

    def run(trial, release):
        attempts.append(trial.number)
        if len(attempts) == 1:
            # As another worker does, where the heartbeat has stopped.
            trial.storage.set_trial_state_values(
                trial._trial_id, state=optuna.trial.TrialState.FAIL
            )
            worker._retry(trial.study, trial.number)
            trial.report(0.5, 1)
        return 0.5

    _, ended = work(tmp_path, run)
    assert (attempts, ended) == ([0, 1], [1])
    assert "trial 0 was given to another worker" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_that_was_never_begun_is_tried_again_after_a_while(
    tmp_path, monkeypatch
):
    config = sweeping.make_config()
    opened = study.open_study(config, tmp_path, 1)
    trial = opened.ask()  # And killed before it is written down who runs it.
    worker.requeue_dead(opened, is_in_file=True)
    assert [t.state for t in opened.trials] == [optuna.trial.TrialState.RUNNING]
    monkeypatch.setattr(worker, "GRACE_SECONDS", -1)
    worker.requeue_dead(opened, is_in_file=False)
    assert [study.get_original(t) for t in opened.trials] == [None, trial.number]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_what_runs_elsewhere_is_not_taken_for_dead(tmp_path):
    opened = study.open_study(sweeping.make_config(), tmp_path, 2)
    for host, directory in (("elsewhere", tmp_path), (None, tmp_path / "not_here")):
        trial = opened.ask()
        trial.set_user_attr("host", host or worker.socket.gethostname())
        trial.set_user_attr("directory", str(directory))
    worker.requeue_dead(opened, is_in_file=True)
    states = [t.state for t in opened.trials]
    assert states == [optuna.trial.TrialState.RUNNING] * 2
