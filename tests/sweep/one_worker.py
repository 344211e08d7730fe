"""A worker whose trials take a while and write a line; run as a process, without jax.

Arguments: the storage or "study.db", the workdir, the worker's name, seconds per trial,
and the number of trials, 6 by default.
"""

import pathlib
import sys
import time

from configs import default
from dwsep_jax.space import parse_space
from dwsep_jax.sweep import study, worker

NUM_TRIALS = 6


def open_study(storage, workdir, num_trials=None):
    config = default.get_config()
    config.sweep.update(space=("mixup=0..1",), sampler="random")
    config.sweep.storage = None if storage == "study.db" else storage
    workdir.mkdir(exist_ok=True)
    axes = parse_space(config.sweep.space)
    return study.open_study(config, axes, workdir, int(num_trials or NUM_TRIALS))


def main(storage, workdir, name, seconds, num_trials=None):
    study.HEARTBEAT_SECONDS, study.GRACE_SECONDS, study.POLL_SECONDS = 1, 2, 0.2

    def run(trial, directory):
        value = trial.suggest_float("mixup", 0, 1)
        with (directory / "log").open("a") as log:
            print(name, trial.number, value, file=log, flush=True)
        trial.report(value, 1)
        time.sleep(float(seconds))
        return value

    sweep = open_study(storage, pathlib.Path(workdir), num_trials)
    worker.work(sweep, run, lambda trial: None)
    assert "jax" not in sys.modules  # It would take seconds to load.


if __name__ == "__main__":
    main(*sys.argv[1:])
