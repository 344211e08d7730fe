"""The runs of a comparison or a sweep: each trained once, and how long they take."""

import pathlib
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence

from ml_collections import ConfigDict

from dwsep_jax import console, train
from dwsep_jax.config import load_config
from dwsep_jax.errors import UserError
from dwsep_jax.evaluate import read_evaluation
from dwsep_jax.figures import LAST_FIGURE
from dwsep_jax.history import evaluated_row
from dwsep_jax.reading import read_rows

# Of a run that has nothing left to do.
_FILES = ("evaluation.json", "predictions.npz", LAST_FIGURE, "diagnosis.json")


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


def train_logged(
    config: ConfigDict, directory: pathlib.Path, on_test: bool
) -> float | None:
    """Train what is left of a run, and evaluate it `on_test`, into its train.log.

    Returns:
      The seconds that took; None if nothing was left.
    """
    if (directory / "config.json").exists():
        load_config(directory, config)  # Another's run is refused.
        if _is_done(config, directory, on_test):
            return None
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    with console.logged(directory / "train.log"):
        train.train_and_evaluate(config, directory, on_test)
    return time.perf_counter() - start


def _is_done(config, directory, on_test):
    try:
        rows = read_rows(directory)
    except UserError:  # A process that was killed has left half a row.
        return False
    if not train.is_finished(config, rows):
        return False
    epoch = evaluated_row(rows, config.early_stopping)["epoch"]
    return not on_test or (
        read_evaluation(directory, epoch) is not None
        and all((directory / name).exists() for name in _FILES)
    )
