"""Workers that share a study, and one that is killed in mid-trial; without jax."""

import contextlib
import csv
import signal
import time

import pytest

from tests import sweeping


def read_trials(workdir):
    with (workdir / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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
