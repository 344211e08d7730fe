"""Sweeps that train nothing, and a PostgreSQL server for tests."""

import contextlib
import csv
import json
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

from dwsep_jax import data
from dwsep_jax.errors import DivergedError
from dwsep_jax.report import write
from dwsep_jax.sweep import results, search, study
from dwsep_jax.train import loop, optim
from dwsep_jax.workdir import open_workdir, write_rows
from tests import tiny

SPACE = ("optimizer=adam|sgd", "learning_rate=x0.1..x10 log", "dropout_rate=0..0.3")


class Quick:
    """Replaces training: records what is trained, and writes its files.

    Attributes:
      trials: (number, config) of each trial.
      finals: (trial's directory, seed) of each run of the finals.
      ahead: lists of the runs that may be trained together.
      reports: the workdirs of each report.
      score: config -> validation accuracy of a trial after each epoch; may raise.
      final_score: config -> test accuracy of a run of the finals; may raise.
    """

    def __init__(self, patch):
        self.trials, self.finals, self.ahead, self.reports = [], [], [], []
        self.score = lambda config: [0.5] * config.num_epochs
        self.final_score = lambda config: 1 - config.seed / 10
        patch.setattr(study, "POLL_SECONDS", 0.05)
        patch.setattr(data, "load", lambda config: tiny.make_dataset())
        patch.setattr(loop, "resolve", lambda config, dataset: optim.resolve(config))
        patch.setattr(loop, "open_member", self.open_member)
        patch.setattr(loop, "train", self.train_trial)
        patch.setattr(results, "Trainer", self.make_trainer)
        patch.setattr(write, "write_report", self.write_report)

    def make_trainer(self, members_at_once, dataset):
        self.members_at_once = members_at_once
        return self

    @contextlib.contextmanager
    def open_member(self, config, workdir, dataset):
        self.trials.append((int(workdir.name), config))
        yield types.SimpleNamespace(
            **{"config": config, "workdir": workdir, "history": []},
            **{"error": None, "is_pruned": False},
        )

    def train_trial(self, members, dataset, prune):
        (member,) = members
        for row in make_rows(self.score(member.config)):
            member.history.append(row)
            write_rows(member.workdir, member.history)
            if prune(0, member.history):
                member.is_pruned = True
                break

    def train_ahead(self, runs):
        self.ahead.append([(r.directory.parent.name, r.config.seed) for r in runs])

    def train(self, run, on_test):
        assert on_test
        self.finals.append((run.directory.parent.name, run.config.seed))
        accuracy = self.final_score(run.config)
        config = open_workdir(run.directory, run.config, lambda config: config)
        write_rows(run.directory, make_rows([0.8] * config.num_epochs))
        evaluation = {"epoch": config.num_epochs, "accuracy": accuracy, "loss": 0.1}
        evaluation["f1"] = {"macro": accuracy - 0.1}
        (run.directory / "evaluation.json").write_text(json.dumps(evaluation))
        return 1.0

    def write_report(self, workdirs):
        self.reports.append(list(workdirs))
        return workdirs[0] / "report.html"


def make_rows(accuracies):
    row = {"train_accuracy": 0.5, "train_loss": 1.0, "learning_rate": 0.1}
    row |= {"train_eval_accuracy": 0.5, "train_eval_loss": 1.0, "val_loss": 1.0}
    return [
        {"epoch": i + 1, **row, "val_accuracy": a} for i, a in enumerate(accuracies)
    ]


def by_optimizer(**scores):
    """Return a score by optimizer, the same after each epoch."""
    return lambda config: [scores[config.optimizer]] * config.num_epochs


def diverge(config):
    raise DivergedError("val_loss is nan; try less")


def make_config(**changes):
    changes = {"num_trials": 4, "num_seeds": 2, "num_epochs": 2} | changes
    return tiny.make_config("sweep", **{"space": SPACE} | changes)


def run(workdir, **changes):
    search.sweep(make_config(**changes), workdir)
    return json.loads((workdir / "best.json").read_text())


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
