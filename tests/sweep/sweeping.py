"""Sweeps that train nothing, workers without jax, and a PostgreSQL of their own."""

import contextlib
import csv
import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types

from dwsep_jax import data, report
from dwsep_jax.errors import DivergedError
from dwsep_jax.sweep import search, study, worker
from dwsep_jax.train import loop, optim
from dwsep_jax.workdir import write_rows
from tests import tiny
from tests.compare import comparing

ROOT = pathlib.Path(__file__).parents[2]
SPACE = ("optimizer=adam|sgd", "learning_rate=x0.1..x10 log", "dropout_rate=0..0.3")


def make_rows(config, accuracies):
    row = {"train_accuracy": 0.5, "train_loss": 1.0, "learning_rate": 0.1}
    row |= {"train_eval_accuracy": 0.5, "train_eval_loss": 1.0, "val_loss": 1.0}
    row |= {"elapsed_seconds": 1.0, "images_per_second": 10.0}
    return [
        {"epoch": i + 1, **row, "val_accuracy": a} for i, a in enumerate(accuracies)
    ]


def train_quickly(patch):
    """Replace training; return what is noted, and may be replaced in turn.

    `runs` are the trials and `finals` the seeds that were trained; `score(config)` is
    the accuracy of a trial in each epoch, and may raise.
    """
    quick = types.SimpleNamespace(runs=[], finals=[], reports=[])
    quick.score = lambda config: [0.5] * config.num_epochs

    @contextlib.contextmanager
    def open_member(config, workdir, dataset):
        member = types.SimpleNamespace(config=config, workdir=workdir, history=[])
        member.error, member.is_pruned = None, False
        yield member

    def train(members, dataset, prune):
        (member,) = members
        quick.runs.append((int(member.workdir.name), member.config))
        for row in make_rows(member.config, quick.score(member.config)):
            write_rows(member.workdir, [row])
            member.history.append(row)
            if prune(0, member.history):
                member.is_pruned = True
                break

    seeds = comparing.train_quickly(patch)
    train_seed = loop.train_and_evaluate

    def train_and_evaluate(config, workdir, on_test):
        assert on_test
        quick.finals.append((workdir.parent.name, config.seed))
        train_seed(config, workdir, on_test)

    def write_report(workdirs):
        quick.reports.append(list(workdirs))
        return workdirs[0] / "report.html"

    for module in (study, worker):
        patch.setattr(module, "POLL_SECONDS", 0.05)
    patch.setattr(loop, "open_member", open_member)
    patch.setattr(loop, "train", train)
    patch.setattr(loop, "train_and_evaluate", train_and_evaluate)
    patch.setattr(loop, "resolve", lambda config, dataset: optim.resolve(config))
    patch.setattr(data, "load", lambda config: tiny.make_dataset())
    patch.setattr(report, "write_report", write_report)
    quick.scores = seeds.scores
    return quick


def make_config(**changes):
    changes = {"num_trials": 4, "num_seeds": 2, "num_epochs": 2} | changes
    return tiny.make_config("sweep", **{"space": SPACE} | changes)


def run(workdir, **changes):
    search.sweep(make_config(**changes), workdir)
    return json.loads((workdir / "best.json").read_text())


def read_trials(workdir):
    with (workdir / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def diverge(config):
    raise DivergedError("val_loss is nan; try less")


# A worker whose trials write a line for each epoch, and take a little while.
WORKER = """
import pathlib, socket, sys, time
from configs import default
from dwsep_jax.sweep import storage
from dwsep_jax.sweep import study
from dwsep_jax.sweep import worker
from dwsep_jax.lock import locked
from dwsep_jax.sweep.space import parse_space
from dwsep_jax.sweep.trials import write_trials

url, workdir, name, seconds = sys.argv[1], pathlib.Path(sys.argv[2]), *sys.argv[3:]
storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS = 1, 2
worker.POLL_SECONDS = 0.2
config = default.get_config()
config.sweep.update(storage=url, space=("mixup=0..1",), sampler="random", num_trials=6)
axes = parse_space(config)
study = study.open_study(config, workdir, 6)

def run(trial, release):
    (frozen,) = [t for t in study.get_trials() if t.number == trial.number]
    original = frozen.system_attrs.get("failed_trial", trial.number)
    directory = workdir / "trials" / str(original)
    directory.mkdir(exist_ok=True)
    with locked(directory, wait=False):
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("directory", str(directory.resolve()))
        release()
        value = trial.suggest_float("mixup", 0, 1)
        with (directory / "log").open("a") as log:
            print(name, trial.number, value, file=log, flush=True)
            trial.report(value, 1)
            time.sleep(float(seconds))
    return value

worker.work(study, config, axes, workdir, run, lambda number: None)
write_trials(study, axes, workdir)
assert "jax" not in sys.modules
"""


def start_worker(storage, workdir, name, seconds):
    words = [sys.executable, "-c", WORKER, storage, str(workdir), name, str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def find_postgresql():
    """Return the directory of initdb and postgres, and a user who may run them."""
    places = [
        shutil.which("initdb"),
        *pathlib.Path("/usr/lib/postgresql").glob("*/bin"),
    ]
    place = next((pathlib.Path(p) for p in places if p), None)
    if place is not None and place.name == "initdb":
        place = place.parent
    if os.geteuid() != 0:
        return place, pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return place, pwd.getpwnam(name)
    return place, None


@contextlib.contextmanager
def postgresql():
    """Start a server of its own on a socket in a temporary directory; yield its URL."""
    place, user = find_postgresql()
    home = pathlib.Path(tempfile.mkdtemp(prefix="pg"))
    os.chown(home, user.pw_uid, user.pw_gid)
    options = {}
    if os.geteuid() == 0:
        options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    options |= {"cwd": home, "stdout": subprocess.DEVNULL}
    words = [place / "initdb", "-D", home / "data", "-U", "tester", "-A", "trust", "-N"]
    words += ["--locale=C", "--encoding=UTF8"]
    subprocess.run(words, check=True, **options)
    words = [place / "postgres", "-D", home / "data", "-k", home, "-F"]
    words += ["-c", "listen_addresses="]
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
