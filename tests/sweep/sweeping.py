"""Sweeps that train nothing, and a PostgreSQL server for tests."""

import contextlib
import csv
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import types

import pytest

from dwsep_jax.sweep import search, study
from dwsep_jax.train import loop, optim
from dwsep_jax.workdir import write_rows
from tests import quick, tiny
from tests.quick import read

SPACE = ("optimizer=adam|sgd", "learning_rate=x0.1..x10 log", "dropout_rate=0..0.3")


class Quick:
    """Replaces training by writing its files.

    Attributes:
      trials: (number, config) of each trial.
      score: config -> validation accuracy of a trial after each epoch; may raise.
      finals: a `quick.Quick`, for the finals.
      reports: the workdirs of each report.
    """

    def __init__(self, patch):
        self.trials, self.finals = [], quick.Quick(patch)
        self.reports = quick.stand_in(patch)
        self.score = lambda config: [0.5] * config.num_epochs
        patch.setattr(study, "POLL_SECONDS", 0.05)
        patch.setattr(loop, "resolve", lambda config, dataset: optim.resolve(config))
        patch.setattr(loop, "Member", self.open_member)
        patch.setattr(loop, "train", self.train_trial)

    @contextlib.contextmanager
    def open_member(self, config, workdir, dataset, prune):
        self.trials.append((int(workdir.name), config))
        yield types.SimpleNamespace(
            **{"config": config, "workdir": workdir, "history": []},
            **{"error": None, "is_pruned": False, "prune": prune},
        )

    def train_trial(self, members):
        (member,) = members
        for row in quick.make_rows(self.score(member.config)):
            member.history.append(row)
            write_rows(member.workdir, member.history)
            if member.prune(member.history):
                member.is_pruned = True
                break


def by_optimizer(**scores):
    """Return a score by optimizer, the same after each epoch."""
    return lambda config: [scores[config.optimizer]] * config.num_epochs


def make_config(**changes):
    changes = {"num_trials": 4, "num_seeds": 2, "num_epochs": 2} | changes
    return tiny.make_config("sweep", **{"space": SPACE} | changes)


def run(workdir, **changes):
    search.sweep(make_config(**changes), workdir)
    return read(workdir / "best.json")


def read_trials(workdir):
    with (workdir / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def postgresql():
    """Start a server on a socket in a temporary directory; yield its URL."""
    places = map(str, pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    path = os.pathsep.join([os.environ["PATH"], *places])
    if shutil.which("initdb", path=path) is None:
        pytest.skip("no initdb of PostgreSQL here")
    home = pathlib.Path(tempfile.mkdtemp(prefix="pg"))
    options = {"cwd": home, "stdout": subprocess.DEVNULL}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root.
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    initdb, postgres = (shutil.which(n, path=path) for n in ("initdb", "postgres"))
    words = [initdb, "-D", home / "data", "-U", "tester", "-A", "trust", "-N"]
    words += ["--locale=C", "--encoding=UTF8"]
    subprocess.run(words, check=True, **options)
    words = [postgres, "-D", home / "data", "-k", home, "-F", "-c", "listen_addresses="]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL, **options)
    try:
        while not (home / ".s.PGSQL.5432").exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield f"postgresql://tester@/postgres?host={home}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(home)
