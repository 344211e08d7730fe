"""The runs of a comparison or a sweep: trained once each, with their progress."""

import pathlib
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.errors import DivergedError, UserError
from dwsep_jax.report.figures import LAST_FIGURE
from dwsep_jax.train import loop, running
from dwsep_jax.train.evaluation import read_evaluation
from dwsep_jax.workdir import evaluated_row, load_config, read_json, read_rows, score

# The files of a run that has nothing left to do.
_FILES = ("evaluation.json", "predictions.npz", LAST_FIGURE, "diagnosis.json")


class Progress:
    """Counts finished runs, and estimates how long the rest will take."""

    def __init__(self, groups: Sequence[str]):
        """Expect one run per entry, in any order; runs of a group take equally long."""
        self._total = len(groups)
        self._left = list(groups)
        self._seconds = defaultdict(list)

    def finish(self, group: str | None, seconds: float | None, text: str) -> None:
        """Print that a run is done.

        Args:
          group: None for a run that is not counted.
          seconds: that it took; None if it was trained earlier.
          text: its result.
        """
        if group is None:
            console.say(text)
            return
        self._left.remove(group)
        done = self._total - len(self._left)
        took = "was trained before"
        if seconds is not None:
            self._seconds[group].append(seconds)
            took = f"{console.format_seconds(seconds)}, {self._format_left()} left"
        console.say(
            f"run {done:>{len(str(self._total))}}/{self._total}  {text}  {took}"
        )

    def _format_left(self):
        means = {group: statistics.mean(s) for group, s in self._seconds.items()}
        unseen = statistics.mean(means.values())
        left = sum(means.get(group, unseen) for group in self._left)
        return console.format_seconds(left)


class Run(NamedTuple):
    """A run of a comparison or a sweep.

    Attributes:
      config: resolved or not.
      directory: of its files.
      label: for people.
      group: as `Progress` takes it.
    """

    config: ConfigDict
    directory: pathlib.Path
    label: str
    group: str | None


class RunQueue:
    """Trains each run once, or several in one program ahead of their turn.

    When the turn of these comes, they only have to be evaluated.
    """

    def __init__(
        self, members_at_once: int | None, dataset: data.Dataset, groups: Sequence[str]
    ):
        """Train at most so many runs together; None leaves it to the device.

        `groups` are those of the runs to come, as `Progress` takes them.
        """
        self._dataset = dataset
        is_cpu = jax.default_backend() == "cpu"  # One run keeps a CPU busy.
        self.num_members = members_at_once or (1 if is_cpu else sys.maxsize)
        self._outcomes = {}
        self._progress = Progress(groups)

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
        directories = [run.directory for run in runs]
        names = ", ".join(directory.name for directory in directories)
        console.say(f"training {directories[0].parent.name} together: {names}")
        start = time.perf_counter()
        configs = [run.config for run in runs]
        members = loop.train_members(configs, directories, self._dataset)
        seconds = (time.perf_counter() - start) / len(runs)
        for directory, member in zip(directories, members, strict=True):
            self._outcomes[directory] = (seconds, member.error)

    def finish(self, run: Run, on_test: bool) -> DivergedError | None:
        """Do what is left of a run, and print its result and the time left.

        Its console output goes into its train.log.

        Returns:
          The error with which it diverged, here or ahead.
        """
        start = time.perf_counter()
        seconds, error = self._outcomes.get(run.directory, (None, None))
        if error is None and not _is_done(run, on_test):
            run.directory.mkdir(parents=True, exist_ok=True)
            try:
                with console.logged(run.directory / "train.log"):
                    loop.train_and_evaluate(run.config, run.directory, on_test)
            except DivergedError as its_error:
                error = its_error
            seconds = time.perf_counter() - start + (seconds or 0.0)
        if error is not None:
            result = str(error).partition(";")[0]
        elif on_test:
            accuracy = read_json(run.directory, "evaluation")["accuracy"]
            result = f"test accuracy {accuracy:.2%}"
        else:
            result = "validation accuracy {:.2%}, loss {:.4f}".format(*read_score(run))
        self._progress.finish(run.group, seconds, f"{run.label}: {result}")
        return error


def _is_done(run, on_test):
    config, directory = run.config, run.directory
    if not (directory / "config.json").exists():
        return False
    load_config(directory, config)  # Refuses another run.
    try:
        rows = read_rows(directory)
    except UserError:  # A killed process left half a row.
        return False
    if not running.is_finished(config, rows):
        return False
    epoch = evaluated_row(rows, config.early_stopping)["epoch"]
    return not on_test or (
        read_evaluation(directory, epoch) is not None
        and all((directory / name).exists() for name in _FILES)
    )


def read_score(run: Run) -> tuple[float, float]:
    """Return validation accuracy and loss of the weights that will be evaluated."""
    row = evaluated_row(read_rows(run.directory), run.config.early_stopping)
    return score(row), row.get("ema_val_loss", row["val_loss"])


def describe_result(root: pathlib.Path, place: str, seed: int) -> dict[str, Any]:
    """Return what an entry of `runs` in a JSON file says about an evaluated run.

    Args:
      root: workdir of the comparison or the sweep.
      place: of the run below it.
      seed: of the run.
    """
    evaluation = read_json(root / place, "evaluation")
    epoch = evaluation["epoch"]
    return {
        "seed": seed,
        "workdir": place,
        "epoch": epoch,
        "accuracy": evaluation["accuracy"],
        "loss": evaluation["loss"],
        "f1": evaluation["f1"]["macro"],
        "val_accuracy": score(read_rows(root / place)[epoch - 1]),
    }
