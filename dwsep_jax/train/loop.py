"""The training loop, for one run or for several in one program.

A run is a `Member`, and `train` takes a list of members through the loop; a lone run is
a list of one. Only the compiled program differs: see `programs`.
"""

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from dwsep_jax import console, data, signals
from dwsep_jax.data import order
from dwsep_jax.diagnose import write_diagnosis
from dwsep_jax.environment import describe_parallelism, memory_bytes
from dwsep_jax.errors import ConfigError, DivergedError, UserError
from dwsep_jax.report.figures import LAST_FIGURE, draw_run
from dwsep_jax.train import optim, output
from dwsep_jax.train.checkpoint import Checkpoints, Restored
from dwsep_jax.train.evaluation import (
    compile_evaluation,
    evaluate_and_write,
    evaluate_epoch,
    read_evaluation,
    restore_to_evaluate,
)
from dwsep_jax.train.loggers import open_loggers
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.programs import EpochPrograms, EpochResult, count_devices
from dwsep_jax.train.step import TrainState, make_run_keys, make_state, static_fields
from dwsep_jax.train.weights import load_weights
from dwsep_jax.workdir import (
    Row,
    append_row,
    claimed,
    is_settled,
    open_workdir,
    score,
    seconds_left,
    write_rows,
)

# The directory that holds an unfinished epoch of a run; its checkpoints are named by
# step.
_PART = "partial"
# Whether to give a run up, given the rows of its epochs so far.
Prune = Callable[[list[Row]], bool]


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, on_test: bool = True
) -> None:
    """Train as `config` says, evaluate on test, and leave the files in `workdir`.

    An interrupted run resumes after its last complete epoch. A finished run is not
    trained again, and its result is printed again. With `on_test=False` the run is only
    trained, for decisions on validation; a later call evaluates it.

    Raises:
      UserError: if the workdir belongs to another configuration or is in use by another
        process, data are missing, or training diverges.
    """
    with open_member(config, workdir, data.load(config)) as member:
        train([member])
        if member.error is not None:
            raise member.error
        if on_test:
            evaluate_on_test(member)


def train_members(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[str | os.PathLike],
    dataset: data.Dataset,
) -> list["Member"]:
    """Train several runs in one program, each in its own workdir.

    Each leaves what `train_and_evaluate` leaves with `on_test=False`, and a train.log.
    Interrupted members resume after their own last complete epochs. A member that
    diverges or finishes early is frozen until the others have finished.

    Raises:
      ValueError: if the runs do not share a program: see `step.static_fields`.
      UserError: as for `train_and_evaluate`, but not for members that diverge.
    """
    with contextlib.ExitStack() as stack:
        members = []
        for config, workdir in zip(configs, workdirs, strict=True):
            log = pathlib.Path(workdir, "train.log")
            member = open_member(config, workdir, dataset, log)
            members.append(stack.enter_context(member))
        if len({static_fields(member.config) for member in members}) > 1:
            raise ValueError("the members do not share a program")
        train(members)
    return members


def train(members: Sequence["Member"]) -> None:
    """Train members until each has finished, diverged or been pruned.

    They share a program and a dataset; each has its own progress. A lone run that is
    told to stop is saved at once, several at the end of the epoch.

    Raises:
      signals.Stopped: after a SIGINT or SIGTERM; everything is saved.
    """
    if not any(member.is_active for member in members):
        return
    config, dataset = members[0].config, members[0].dataset
    programs = EpochPrograms(config, dataset, [member.state for member in members])
    compile_evaluation(config, dataset, members[0].state)
    start, num_steps = time.perf_counter(), dataset.steps_per_epoch(config.batch_size)
    with (
        signals.deferred() as stop,
        console.EpochProgress(config, num_steps) as progress,
    ):

        def must_save():
            return len(members) == 1 and bool(stop or members[0].is_due())

        while not stop and (active := [m for m in members if m.is_active]):
            progress.start_epoch(min(len(member.history) for member in active))
            epoch_start = time.perf_counter()
            results = programs.train_epoch(
                [member.state for member in members],
                [member.total for member in members],
                [member.is_active for member in members],
                [member.permute() for member in members],
                progress,
                must_save,
            )
            seconds = time.perf_counter() - epoch_start
            for member, result in zip(members, results, strict=True):
                if member.is_active:
                    member.save(result, seconds, start)
        if stop:
            console.say("stopped; the same command resumes")


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
        prune: Prune = lambda history: False,
    ):
        """Take a resolved configuration, and a file for what would go to the console.

        `prune` says whether to give the run up. It is asked after each epoch, and at
        the start about those already trained.
        """
        self.config, self.workdir, self.dataset = config, pathlib.Path(workdir), dataset
        self.state, self.history = make_state(config, dataset), []
        self.total, self._epoch_seconds = Metrics.empty(), 0.0
        self.error: DivergedError | None = None
        self._log, self._prune, self._loggers = log, prune, []
        self._order_key = make_run_keys(config.seed).order

    def __enter__(self) -> "Member":
        """Start the run or resume it, without the epochs that must be trained again.

        Raises:
          UserError: if there are results, but no checkpoint to resume from.
        """
        with contextlib.ExitStack() as stack, self._logged():
            self.network = output.print_start(self.config, self.dataset, self.state)
            self.checkpoints = stack.enter_context(Checkpoints(self.workdir))
            saved = self.checkpoints.restore_latest(self.state)
            if saved:
                self.state, self.history = saved.tree, saved.metadata["history"]
            part = self._restore_part()
            if saved := part or saved:
                what = "finished" if self.is_finished else "resuming"
                n, step = len(self.history), int(self.state.step)
                console.say(f"{what} after epoch {n}, step {step:,}")
                self._compare_with(saved.metadata)
            elif self.config.init_from:
                self.state = load_weights(self.config, self.state)
                console.say(f"starting from the weights of {self.config.init_from}")
            write_rows(self.workdir, self.history)
            self.checkpoints.discard_after(len(self.history))
            if not self.is_finished:  # --mode=evaluate may have evaluated before.
                (self.workdir / "evaluation.json").unlink(missing_ok=True)
            run = (self.config, self.workdir, self.history, self.is_finished)
            for logger in open_loggers(*run):
                self._loggers.append(logger)
                stack.callback(logger.close)
            self._close = stack.pop_all().close
        n = self.num_resumed = len(self.history)
        self._seconds_before = self.history[-1]["elapsed_seconds"] if n else 0.0
        if part:
            self._epoch_seconds = part.metadata["epoch_seconds"]
            self._seconds_before = part.metadata["elapsed_seconds"]
        self._saved_at = time.monotonic()
        self.is_pruned = any(self._prune(self.history[: i + 1]) for i in range(n))
        return self

    def __exit__(self, *exception):
        self._close()

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
        return order.epoch_permutation(self._order_key, len(self.history), num_examples)

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
        num_steps = self.dataset.steps_per_epoch(self.config.batch_size)
        if result.error is None and int(result.state.step) % num_steps:
            self._save_part(result, elapsed)
        else:
            self._finish_epoch(result, elapsed)
        self._saved_at = time.monotonic()

    def _finish_epoch(self, result, elapsed):
        """Evaluate and save an epoch: first the state, then its row; print the row."""
        try:
            row = make_row(self.config, self.dataset, result, self._epoch_seconds)
        except DivergedError as error:
            self.error = error
            return
        row["elapsed_seconds"] = elapsed
        self.state = lower_rate_on_plateau(self.config, result.state, row["val_loss"])
        self.total, self._epoch_seconds = Metrics.empty(), 0.0
        self.history.append(row)
        scores = {row["epoch"]: score(row) for row in self.history}
        metadata = {"history": self.history, **self._describe_circumstances()}
        self.checkpoints.save(row["epoch"], self.state, metadata, scores)
        shutil.rmtree(self.workdir / _PART, ignore_errors=True)
        append_row(self.workdir, row)
        for logger in self._loggers:
            logger.log(row)
        num_epochs = self.config.num_epochs
        left = seconds_left(self.history, self.num_resumed, num_epochs)
        with self._logged():
            console.say(console.format_epoch(row, num_epochs, left))
        self.is_pruned = self._prune(self.history)

    def _save_part(self, result, elapsed):
        """Save an epoch in the middle, to go on from there with the same bits."""
        self.state, self.total, step = (
            result.state,
            result.total,
            int(result.state.step),
        )
        metadata = {"elapsed_seconds": elapsed, "epoch_seconds": self._epoch_seconds}
        metadata |= self._describe_circumstances()
        with Checkpoints(self.workdir, name=_PART) as parts:
            parts.save(step, (self.state, self.total), metadata, {step: 1.0})
        with self._logged():
            console.say(f"saved in epoch {len(self.history) + 1}, after step {step:,}")

    def _restore_part(self) -> Restored | None:
        """Go on in an epoch that was saved in the middle; return None if none was.

        One that is damaged, or older than the last whole epoch, is deleted.
        """
        num_steps = self.dataset.steps_per_epoch(self.config.batch_size)
        with Checkpoints(self.workdir, read_only=True, name=_PART) as parts:
            try:
                found = parts.restore_latest((self.state, self.total))
            except ConfigError:
                raise  # It is whole, and of another network.
            except UserError:
                found = None  # Damaged, as has been said.
        if found and int(found.tree[0].step) // num_steps == len(self.history):
            self.state, self.total = found.tree
            return found
        shutil.rmtree(self.workdir / _PART, ignore_errors=True)
        return None

    def _describe_circumstances(self):
        return {"parallelism": describe_parallelism(), "data": self.dataset.checksum}

    def _compare_with(self, metadata: dict[str, Any]) -> None:
        """Warn of another number of threads or devices; refuse to train on other data.

        Checkpoints of earlier versions lack what there is to compare.
        """
        if self.is_finished:
            return
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

    def _logged(self):
        return console.logged(self._log) if self._log else contextlib.nullcontext()


@contextlib.contextmanager
def open_member(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: data.Dataset,
    log: pathlib.Path | None = None,
) -> Iterator[Member]:
    """Open the run of a requested configuration, for this process alone."""
    config = open_workdir(workdir, config, partial(resolve, dataset=dataset))
    with claimed(workdir), Member(config, workdir, dataset, log) as member:
        yield member


def resolve(config: ConfigDict, dataset: data.Dataset) -> ConfigDict:
    """Return the configuration with every unset value set.

    Raises:
      ConfigError: if it cannot be trained on this dataset or with this memory.
    """
    config = optim.resolve(config)
    if config.steps_per_dispatch is None:
        # On CPU a loop of 8 steps made 0.7 to 1.0 of the images/s of single ones (2
        # cores, configs/cpu.py). Elsewhere not measured: there, a dispatch costs more.
        config.steps_per_dispatch = 1 if jax.default_backend() == "cpu" else 16
    count_devices(config)
    side = min(dataset.train.images.shape[1:3])
    for field, limit in (("shift", side - 1), ("cutout", side)):
        if config[field] > limit:
            raise ConfigError(
                f"{field}={config[field]} leaves nothing of images of {side} pixels; "
                f"take at most {limit}"
            )
    if dataset.steps_per_epoch(config.batch_size) == 0:
        raise ConfigError(
            f"batch_size={config.batch_size} is more than the "
            f"{len(dataset.train.labels)} training images; take a smaller one"
        )
    state = make_state(config, dataset, abstract=True)
    _check_memory(config, state)
    if config.init_from:
        load_weights(config, state)
    return config


def _check_memory(config, state):
    state_bytes, parameter_bytes = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (state, state.params)
    )
    # The gradients take as much as the parameters.
    if state_bytes + parameter_bytes > memory_bytes():
        raise ConfigError(
            f"growth_rate={config.growth_rate} and block_sizes={config.block_sizes} "
            f"make {parameter_bytes // 4:,} parameters; training them needs more than "
            f"the {memory_bytes() / 2**30:.0f} GiB of memory here; reduce either"
        )


def is_finished(config: ConfigDict, history: list[Row]) -> bool:
    """Return whether there is nothing left to train."""
    return len(history) >= config.num_epochs or is_settled(
        history, config.early_stopping, config.min_change
    )


def make_row(
    config: ConfigDict, dataset: data.Dataset, result: EpochResult, seconds: float
) -> Row:
    """Evaluate the state after an epoch, and return the epoch's row.

    Args:
      config: resolved.
      dataset: its train_eval and validation are read.
      result: of the epoch, before the rate is lowered on a plateau.
      seconds: that its steps took.

    Raises:
      DivergedError: if a loss or a parameter is not finite.
    """
    if result.error is not None:
        raise result.error
    state, steps_per_epoch = result.state, dataset.steps_per_epoch(config.batch_size)
    means = result.total.compute()
    num_steps = int(state.step)
    share = float(optim.make_schedule(config, steps_per_epoch)(num_steps - 1))
    multiplier = float(state.plateau.multiplier)
    return {
        "epoch": num_steps // steps_per_epoch,
        "step": num_steps,
        **{f"train_{name}": float(value) for name, value in means.items()},
        **evaluate_epoch(config, dataset, state),
        "learning_rate": share * config.learning_rate * multiplier,
        "images_per_second": steps_per_epoch * config.batch_size / seconds,
    }


def lower_rate_on_plateau(
    config: ConfigDict, state: TrainState, val_loss: float
) -> TrainState:
    """Return the state for the next epoch."""
    if config.schedule != "plateau":
        return state
    factor, patience = config.plateau_factor, config.plateau_patience
    plateau = optim.update_plateau(
        state.plateau, val_loss, factor=factor, patience=patience
    )
    return state.replace(plateau=plateau)


def evaluate_on_test(member: Member) -> None:
    """Evaluate a trained member on test; write, draw, diagnose and print the result."""
    config, workdir, state = member.config, member.workdir, member.state
    if config.early_stopping:
        state = restore_to_evaluate(config, member.checkpoints, state)
    epoch = int(state.step) // member.dataset.steps_per_epoch(config.batch_size)
    if config.early_stopping:
        output.print_stop(config, member.history, epoch)
    # If this process has trained, what is there may be of an earlier epoch.
    has_trained = len(member.history) > member.num_resumed
    evaluation = None if has_trained else read_evaluation(workdir, epoch)
    last_figure = workdir / LAST_FIGURE
    if evaluation is None:
        arguments = (member.dataset, state, "test", member.network)
        evaluate_and_write(config, workdir, *arguments)
        last_figure.unlink(missing_ok=True)
    else:
        console.print_evaluation(evaluation, member.network)
    if not last_figure.exists():
        draw_run(workdir)
    diagnosis = write_diagnosis(workdir)
    console.say(f"diagnosis: {diagnosis['verdict']}. {diagnosis['advice']}")
    console.say(f"files: {workdir}")
