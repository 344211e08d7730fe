"""The runs of a comparison or a sweep: each trained once, and how long they take."""

import pathlib
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.errors import UserError
from dwsep_jax.report.figures import LAST_FIGURE
from dwsep_jax.train import loop
from dwsep_jax.train.evaluation import read_evaluation
from dwsep_jax.workdir import evaluated_row, load_config, read_rows

# Of a run that has nothing left to do.
_FILES = ("evaluation.json", "predictions.npz", LAST_FIGURE, "diagnosis.json")


def limit_members(members_at_once: int | None) -> int:
    """Return how many runs to train in one program; None leaves it to the device."""
    if members_at_once is not None:
        return members_at_once
    # One run keeps a CPU busy.
    return 1 if jax.default_backend() == "cpu" else sys.maxsize


class Progress:
    """How many of the runs are trained, and how long the rest will take."""

    def __init__(self, names: Sequence[str]):
        """Plan a run for each of these names of variants, in any order."""
        self._total = len(names)
        self._left = list(names)
        self._seconds = defaultdict(list)

    def finish(self, name: str, seconds: float | None, text: str) -> None:
        """Note and print that a run is done; None: an earlier process trained it."""
        self._left.remove(name)
        done = self._total - len(self._left)
        if seconds is None:
            took = "was trained before"
        else:
            self._seconds[name].append(seconds)
            took = f"{console.format_seconds(seconds)}, {self._format_left()} left"
        count = f"run {done:>{len(str(self._total))}}/{self._total}"
        console.say(f"{count}  {text}  {took}")

    def _format_left(self):
        means = {name: statistics.mean(s) for name, s in self._seconds.items()}
        unseen = statistics.mean(means.values())
        left = sum(means.get(name, unseen) for name in self._left)
        return console.format_seconds(left)


class Run(NamedTuple):
    """A run: its configuration, resolved or not, and its directory."""

    config: ConfigDict
    directory: pathlib.Path


class Trainer:
    """Trains each run once; where that pays, several together, ahead of their turn.

    What is left for the turn of these is the evaluation, and to say what came of them:
    the seconds that each took, or why it diverged.
    """

    def __init__(self, members_at_once: int | None, dataset: data.Dataset):
        """Train at most so many runs together; None leaves it to the device."""
        self._dataset = dataset
        self.num_members = limit_members(members_at_once)
        self._outcomes = {}

    def train_ahead(self, runs: Sequence[Run]) -> None:
        """Train what is left of runs of one program, so many at once.

        With one member at once, nothing is done: each is trained when it is its turn.
        """
        runs = [run for run in runs if not _is_done(run, on_test=False)]
        for i in range(0, len(runs), self.num_members):
            some = runs[i : i + self.num_members]
            if len(some) > 1:
                self._train_together(some)

    def _train_together(self, runs):
        configs, directories = zip(*runs, strict=True)
        names = ", ".join(directory.name for directory in directories)
        console.say(f"training {directories[0].parent.name} together: {names}")
        start = time.perf_counter()
        members = loop.train_members(configs, directories, self._dataset)
        seconds = (time.perf_counter() - start) / len(runs)
        for directory, member in zip(directories, members, strict=True):
            self._outcomes[directory] = (seconds, member.error)

    def train(self, run: Run, on_test: bool) -> float | None:
        """Train what is left of a run, and evaluate it `on_test`, into its loop.log.

        Returns:
          The seconds that took, here or ahead; None if an earlier process did it all.

        Raises:
          DivergedError: if it diverges, or has ahead.
        """
        seconds, error = self._outcomes.get(run.directory, (None, None))
        if error is not None:
            raise error
        if _is_done(run, on_test):
            return seconds
        start = time.perf_counter()
        run.directory.mkdir(parents=True, exist_ok=True)
        with console.logged(run.directory / "train.log"):
            loop.train_and_evaluate(run.config, run.directory, on_test)
        return time.perf_counter() - start + (seconds or 0.0)


def _is_done(run, on_test):
    config, directory = run
    if not (directory / "config.json").exists():
        return False
    load_config(directory, config)  # Another's run is refused.
    try:
        rows = read_rows(directory)
    except UserError:  # A process that was killed has left half a row.
        return False
    if not loop.is_finished(config, rows):
        return False
    epoch = evaluated_row(rows, config.early_stopping)["epoch"]
    return not on_test or (
        read_evaluation(directory, epoch) is not None
        and all((directory / name).exists() for name in _FILES)
    )
