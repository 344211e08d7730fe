"""A run while it trains: its state, its rows, and how both are kept."""

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from dwsep_jax import console, data, launch, processes
from dwsep_jax.data import order
from dwsep_jax.environment import describe_parallelism
from dwsep_jax.errors import ConfigError, DivergedError, UserError
from dwsep_jax.train import loggers, optim, output
from dwsep_jax.train.checkpoint import Checkpoints, Restored
from dwsep_jax.train.evaluation import evaluate_epoch
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.programs import EpochResult
from dwsep_jax.train.step import make_run_keys, make_state
from dwsep_jax.train.weights import load_weights
from dwsep_jax.workdir import (
    Row,
    append_row,
    is_settled,
    score,
    seconds_left,
    write_rows,
)

# The directory that holds an unfinished epoch of a run; its checkpoints are named by
# step.
_PART = "partial"


class Member:
    """A run, alone or among others, and how far it has been trained.

    Use as a context manager: its files are open inside the block.

    Attributes:
      config: resolved.
      workdir: where its files are.
      dataset: that it is trained on.
      network: one line that describes the network.
      checkpoints: its checkpoints.
      state: as last saved.
      total: metrics of its epoch so far.
      history: the rows of its epochs.
      num_resumed: how many of them an earlier process has trained.
      error: with which it diverged, or None.
      is_pruned: whether it was given up.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | os.PathLike,
        dataset: data.Dataset,
        log: pathlib.Path | None = None,
        prune: Callable[[list[Row]], bool] = lambda history: False,
    ):
        """Take a resolved configuration, and a file for what would go to the console.

        `prune` says whether to give the run up, given the rows of its epochs so far. It
        is asked after each epoch, and at the start about those already trained.
        """
        self.config, self.workdir, self.dataset = config, pathlib.Path(workdir), dataset
        self.state, self.history = make_state(config, dataset), []
        self.total, self._epoch_seconds = Metrics.empty(), 0.0
        self.error: DivergedError | None = None
        self.checkpoints, self._seconds_before = Checkpoints(workdir), 0.0
        self._steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
        self._logged = partial(console.logged, log) if log else contextlib.nullcontext
        self._prune, self._loggers = prune, []

    def __enter__(self) -> "Member":
        """Start the run or resume it, without the epochs that must be trained again.

        Raises:
          UserError: if there are results, but no checkpoint to resume from.
        """
        with contextlib.ExitStack() as stack, self._logged():
            self.network = output.print_start(self.config, self.dataset, self.state)
            self.history = processes.from_first(partial(self._open_files, stack))
            trees = self.state, self.total
            self.state, self.total = processes.tree_from_first(lambda: trees, trees)
            self._close = stack.pop_all().close
        n = self.num_resumed = len(self.history)
        self._saved_at = time.monotonic()
        self.is_pruned = any(self._prune(self.history[: i + 1]) for i in range(n))
        return self

    def __exit__(self, *exception):
        self._close()

    def _open_files(self, stack):
        """Restore what was saved, start the loggers, and return the rows."""
        saved = self.checkpoints.restore_latest(self.state)
        if saved:
            self.state, self.history = saved.tree, saved.metadata["history"]
            self._seconds_before = self.history[-1]["elapsed_seconds"]
        if saved := self._restore_part() or saved:
            what = "finished" if self.is_finished else "resuming"
            n, step = len(self.history), int(self.state.step)
            console.say(f"{what} after epoch {n}, step {step:,}")
            if not self.is_finished:
                self._compare_with(saved.metadata)
        elif self.config.init_from:
            self.state = load_weights(self.config, self.state)
            console.say(f"starting from the weights of {self.config.init_from}")
        write_rows(self.workdir, self.history)
        if not self.is_finished:  # Those of earlier epochs, before it goes on.
            for name in ("evaluation.json", "diagnosis.json"):
                (self.workdir / name).unlink(missing_ok=True)
        run = (self.config, self.workdir, self.history, self.is_finished)
        for logger in loggers.open_loggers(*run):
            self._loggers.append(logger)
            stack.callback(loggers.try_to, logger.close)
        return self.history

    @property
    def is_finished(self) -> bool:
        """Whether all epochs that it needs are trained."""
        return is_finished(self.config, self.history)

    @property
    def is_active(self) -> bool:
        """Whether there is another epoch to train."""
        return not (self.error or self.is_pruned or self.is_finished)

    def permute(self) -> jax.Array:
        """Return the order of the examples in the next epoch, int32 (M,)."""
        num_examples = len(self.dataset.train.labels)
        key = make_run_keys(self.config.seed).order
        return order.epoch_permutation(key, len(self.history), num_examples)

    def is_due(self) -> bool:
        """Return whether `checkpoint_minutes` have passed since it was saved."""
        minutes = self.config.checkpoint_minutes
        return 0 < 60 * minutes < time.monotonic() - self._saved_at

    def save(self, result: EpochResult, seconds: float, start: float) -> None:
        """Save the member after an epoch or a part of one.

        Args:
          result: of the epoch; if it diverged, only the error is kept.
          seconds: the time its steps took.
          start: of the training, by `time.perf_counter`.
        """
        self._epoch_seconds += seconds
        elapsed = self._seconds_before + time.perf_counter() - start
        try:
            if result.error is not None:
                raise result.error
            if int(result.state.step) % self._steps_per_epoch:
                self._save_part(result, elapsed)
            else:
                self._finish_epoch(result, elapsed)
        except DivergedError as error:
            self.error = error
        self._saved_at = time.monotonic()

    def _finish_epoch(self, result, elapsed):
        """Evaluate and save an epoch: first the state, then its row; print the row."""
        row = self._make_row(result, elapsed)
        before = result.state.plateau
        plateau = optim.update_plateau(self.config, before, row["val_loss"])
        self.state = result.state.replace(plateau=plateau)
        self.total, self._epoch_seconds = Metrics.empty(), 0.0
        self.history.append(row)
        if launch.is_first():
            self._write_epoch(row)
        self.is_pruned = self._prune(self.history)

    def _make_row(self, result, elapsed):
        """Evaluate an epoch; raise `DivergedError` if a loss is not finite."""
        config, state, step = self.config, result.state, int(result.state.step)
        schedule = optim.make_schedule(config, self._steps_per_epoch)
        rate = float(schedule(step - 1)) * config.learning_rate
        num_images = self._steps_per_epoch * config.batch_size
        means = result.total.compute()
        return {
            "epoch": step // self._steps_per_epoch,
            "step": step,
            **{f"train_{name}": float(value) for name, value in means.items()},
            **evaluate_epoch(config, self.dataset, state),
            "learning_rate": rate * float(state.plateau.multiplier),
            "images_per_second": num_images / self._epoch_seconds,
            "elapsed_seconds": elapsed,
        }

    def _write_epoch(self, row):
        scores = {row["epoch"]: score(row) for row in self.history}
        metadata = {"history": self.history}
        self._write(self.checkpoints, row["epoch"], self.state, metadata, scores)
        shutil.rmtree(self.workdir / _PART, ignore_errors=True)
        append_row(self.workdir, row)
        for logger in self._loggers:
            loggers.try_to(logger.log, row)
        num_epochs = self.config.num_epochs
        left = seconds_left(self.history, self.num_resumed, num_epochs)
        with self._logged():
            console.say(console.format_epoch(row, num_epochs, left))

    def _save_part(self, result, elapsed):
        """Save an epoch in the middle, to go on from there with the same bits."""
        self.state, self.total = tree = result.state, result.total
        if launch.is_first():
            step, parts = int(self.state.step), Checkpoints(self.workdir, _PART)
            times = {"elapsed_seconds": elapsed, "epoch_seconds": self._epoch_seconds}
            self._write(parts, step, tree, times, {step: 1.0})
            with self._logged():
                epoch = len(self.history) + 1
                console.say(f"saved in epoch {epoch}, after step {step:,}")

    def _write(self, checkpoints, number, tree, metadata, scores):
        if not self.workdir.is_dir():  # Part of it would be saved.
            raise UserError(
                f"{self.workdir} was removed while it was trained; the same command "
                "starts anew"
            )
        metadata["parallelism"] = describe_parallelism()
        metadata["data"] = self.dataset.checksum
        checkpoints.save(number, processes.localize(tree), metadata, scores)

    def _restore_part(self) -> Restored | None:
        """Go on in an epoch that was saved in the middle; return None if none was.

        One that is damaged, or older than the last whole epoch, is deleted.
        """
        try:
            parts = Checkpoints(self.workdir, _PART)
            found = parts.restore_latest((self.state, self.total))
        except ConfigError:
            raise  # It is whole, and of another network.
        except UserError:
            found = None  # Damaged, as has been said.
        if found and found.epoch // self._steps_per_epoch == len(self.history):
            self.state, self.total = found.tree
            self._seconds_before = found.metadata["elapsed_seconds"]
            self._epoch_seconds = found.metadata["epoch_seconds"]
            return found
        shutil.rmtree(self.workdir / _PART, ignore_errors=True)
        return None

    def _compare_with(self, metadata: dict[str, Any]) -> None:
        """Warn of another number of threads or devices; refuse to train on other data.

        Checkpoints of earlier versions lack what there is to compare.
        """
        if metadata.get("data") not in (None, self.dataset.checksum):
            raise UserError(
                f"dataset={self.config.dataset}: its images or labels have changed "
                f"since {self.workdir} was trained; restore them, or choose another "
                "--workdir"
            )
        before, now = metadata.get("parallelism"), describe_parallelism()
        if jax.default_backend() == "cpu" and before not in (None, now):
            there, here = (
                f"{numbers['cpu_threads']} CPU threads for {numbers['device_count']} "
                f"device{'s' * (numbers['device_count'] > 1)}"
                for numbers in (before, now)
            )
            console.say(
                f"warning: trained with {there} so far, and now with {here}: the last "
                "digits may differ from those of an uninterrupted run"
            )


def is_finished(config: ConfigDict, history: list[Row]) -> bool:
    """Return whether there is nothing left to train."""
    return len(history) >= config.num_epochs or is_settled(
        history, config.early_stopping, config.min_change
    )
