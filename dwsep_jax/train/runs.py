"""The runs of a comparison or a sweep: trained once each, with their progress."""

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

# The files of a run that has nothing left to do.
_FILES = ("evaluation.json", "predictions.npz", LAST_FIGURE, "diagnosis.json")


class Progress:
    """Counts finished runs, and estimates how long the rest will take."""

    def __init__(self, names: Sequence[str]):
        """Expect one run per name of a variant, in any order."""
        self._total = len(names)
        self._left = list(names)
        self._seconds = defaultdict(list)

    def finish(self, name: str, seconds: float | None, text: str) -> None:
        """Print that a run is done; `seconds` is None if it was trained earlier."""
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
    """Trains each run once, or several in one program ahead of their turn.

    When the turn of these comes, they only have to be evaluated; `train` then returns
    their share of the time, or raises the error with which they diverged.
    """

    def __init__(self, members_at_once: int | None, dataset: data.Dataset):
        """Train at most so many runs together; None leaves it to the device."""
        self._dataset = dataset
        is_cpu = jax.default_backend() == "cpu"  # One run keeps a CPU busy.
        self.num_members = members_at_once or (1 if is_cpu else sys.maxsize)
        self._outcomes = {}

    def train_ahead(self, runs: Sequence[Run]) -> None:
        """Train unfinished runs that share a program, `num_members` at a time.

        With one member at a time nothing is done: each run is trained at its turn.
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
        """Finish a run, with its console output in its train.log.

        Returns:
          The seconds it took, here or ahead; None if an earlier process did it all.

        Raises:
          DivergedError: if it diverges or diverged ahead.
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
    load_config(directory, config)  # Refuses another run.
    try:
        rows = read_rows(directory)
    except UserError:  # A killed process left half a row.
        return False
    if not loop.is_finished(config, rows):
        return False
    epoch = evaluated_row(rows, config.early_stopping)["epoch"]
    return not on_test or (
        read_evaluation(directory, epoch) is not None
        and all((directory / name).exists() for name in _FILES)
    )
