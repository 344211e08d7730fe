"""The training loop, for one run or for several in one program.

`open_member` opens a run as a `Member`, and `train` takes a list of members through the
loop; a lone run is a list of one. Only the compiled program differs: see `programs`.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from dwsep_jax import console, data
from dwsep_jax.data import order
from dwsep_jax.diagnose import write_diagnosis
from dwsep_jax.environment import memory_bytes
from dwsep_jax.errors import ConfigError, DivergedError
from dwsep_jax.report.figures import LAST_FIGURE, draw_run
from dwsep_jax.train import optim, output
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.train.evaluation import (
    evaluate,
    evaluate_and_write,
    read_evaluation,
    restore_to_evaluate,
)
from dwsep_jax.train.programs import EpochPrograms, EpochResult
from dwsep_jax.train.step import (
    TrainState,
    averaged,
    make_run_keys,
    make_train_state,
    static_fields,
)
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

# Whether to give up a member, asked after each epoch, given the member's index and the
# rows of its epochs so far.
Prune = Callable[[int, list[Row]], bool]


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
    dataset = data.load(config)
    config = open_workdir(workdir, config, partial(resolve, dataset=dataset))
    with claimed(workdir), open_member(config, workdir, dataset) as member:
        train([member], dataset)
        if member.error is not None:
            raise member.error
        if on_test:
            evaluate_on_test(member, dataset)


def train_members(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[str | os.PathLike],
    dataset: data.Dataset,
    prune: Prune | None = None,
) -> list["Member"]:
    """Train several runs in one program, each in its own workdir.

    Each leaves what `train_and_evaluate` leaves with `on_test=False`, and a train.log.
    Interrupted members resume after their own last complete epochs. A member that
    diverges, is pruned or finishes early is frozen until the others have finished.

    Raises:
      ValueError: if the runs do not share a program: see `step.static_fields`.
      UserError: as for `train_and_evaluate`, but not for members that diverge.
    """
    with contextlib.ExitStack() as stack:
        members = []
        for config, workdir in zip(configs, workdirs, strict=True):
            config = open_workdir(workdir, config, partial(resolve, dataset=dataset))
            stack.enter_context(claimed(workdir))
            log = pathlib.Path(workdir, "train.log")
            member = open_member(config, workdir, dataset, log)
            members.append(stack.enter_context(member))
        if len({static_fields(member.config) for member in members}) > 1:
            raise ValueError("the members do not share a program")
        train(members, dataset, prune)
    return members


def train(
    members: Sequence["Member"], dataset: data.Dataset, prune: Prune | None = None
) -> None:
    """Train members until each has finished, diverged or been pruned.

    Args:
      members: runs that share a program, each with its own progress.
      dataset: of all members.
      prune: asked after each epoch, and at the start about those already trained.
    """
    prune = prune or (lambda i, history: False)
    for i, member in enumerate(members):
        histories = (member.history[: n + 1] for n in range(len(member.history)))
        member.is_pruned = any(prune(i, history) for history in histories)
    if not any(member.is_active for member in members):
        return
    config, num_examples = members[0].config, len(dataset.train.labels)
    programs = EpochPrograms(config, dataset, [member.state for member in members])
    compile_evaluation(config, dataset, members[0].state)
    steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    start = time.perf_counter()
    with console.EpochProgress(config, steps_per_epoch) as progress:
        while active := [i for i, member in enumerate(members) if member.is_active]:
            progress.start_epoch(min(len(members[i].history) for i in active))
            epoch_start = time.perf_counter()
            results = programs.train_epoch(
                [member.state for member in members],
                [member.is_active for member in members],
                [member.permute(num_examples) for member in members],
                progress,
            )
            seconds = time.perf_counter() - epoch_start
            for i in active:
                member = members[i]
                try:
                    row = make_row(member.config, dataset, results[i], seconds)
                except DivergedError as error:
                    member.error = error
                    continue
                row["elapsed_seconds"] = (
                    member.seconds_before + time.perf_counter() - start
                )
                member.finish_epoch(results[i].state, row)
                member.is_pruned = prune(i, member.history)


@dataclasses.dataclass(eq=False)
class Member:
    """A run, alone or among others, and how far it has been trained.

    Attributes:
      config: resolved.
      workdir: where its files are.
      network: one line that describes the network.
      checkpoints: its checkpoints, open.
      events: its TensorBoard events; None if not wanted.
      log: file that takes its console output; None for the console.
      state: after the last epoch.
      history: the rows of its epochs.
      error: how it diverged, if it did.
      is_pruned: whether it was given up.
    """

    config: ConfigDict
    workdir: pathlib.Path
    network: str
    checkpoints: Checkpoints
    events: SummaryWriter | None
    log: pathlib.Path | None
    state: TrainState
    history: list[Row]
    error: DivergedError | None = None
    is_pruned: bool = False

    def __post_init__(self):
        self.num_resumed = len(self.history)
        last = self.history[-1] if self.history else {"elapsed_seconds": 0.0}
        self.seconds_before = last["elapsed_seconds"]
        self._order_key = make_run_keys(self.config.seed).order

    @property
    def is_active(self) -> bool:
        """Whether there is another epoch to train."""
        has_ended = self.error is not None or self.is_pruned
        return not has_ended and not is_finished(self.config, self.history)

    def permute(self, num_examples: int) -> jax.Array:
        """Return the order of the examples in the next epoch, int32 (num_examples,)."""
        return order.epoch_permutation(self._order_key, len(self.history), num_examples)

    def finish_epoch(self, state: TrainState, row: Row) -> None:
        """Save an epoch: first the state, then its row, which is also printed."""
        self.state = lower_rate_on_plateau(self.config, state, row["val_loss"])
        self.history.append(row)
        scores = {row["epoch"]: score(row) for row in self.history}
        metadata = {"history": self.history}
        self.checkpoints.save(row["epoch"], self.state, metadata, scores)
        append_row(self.workdir, row)
        if self.events is not None:
            output.write_events(self.events, row)
        num_epochs = self.config.num_epochs
        left = seconds_left(self.history, self.num_resumed, num_epochs)
        with _logged(self.log):
            console.say(console.format_epoch(row, num_epochs, left))


@contextlib.contextmanager
def open_member(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: data.Dataset,
    log: pathlib.Path | None = None,
) -> Iterator[Member]:
    """Open the run of a resolved configuration, to start it or to resume it.

    Rows in metrics.jsonl of epochs that must be trained again are removed.

    Raises:
      UserError: if there are results, but no checkpoint to resume from.
    """
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        with _logged(log):
            state, history = make_state(config, dataset), []
            network = output.print_start(config, dataset, state)
            checkpoints = stack.enter_context(Checkpoints(workdir))
            if restored := checkpoints.restore_latest(state):
                checkpoints.discard_after(restored.epoch)
                state, history = restored.tree, restored.metadata["history"]
                what = "finished" if is_finished(config, history) else "resuming"
                step = int(state.step)
                console.say(f"{what} after epoch {restored.epoch}, step {step:,}")
        write_rows(workdir, history)
        finished, events = is_finished(config, history), None
        if not finished:  # --mode=evaluate may have evaluated an earlier epoch.
            (workdir / "evaluation.json").unlink(missing_ok=True)
        if config.tensorboard and not (finished and (workdir / "tensorboard").exists()):
            events = stack.enter_context(output.open_events(workdir, history))
        yield Member(config, workdir, network, checkpoints, events, log, state, history)


def _logged(log):
    return console.logged(log) if log else contextlib.nullcontext()


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
    _check_memory(config, make_state(config, dataset, abstract=True))
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
            f"make {parameter_bytes // 4:,} parameters; to train them takes more than "
            f"the {memory_bytes() / 2**30:.0f} GiB of memory here; take fewer"
        )


def make_state(
    config: ConfigDict, dataset: data.Dataset, abstract: bool = False
) -> TrainState:
    """Return the initial state of a run on a dataset, as `step.make_train_state`."""
    return make_train_state(
        config,
        len(dataset.class_names),
        dataset.train.images.shape[1:],
        dataset.steps_per_epoch(config.batch_size),
        abstract,
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
    num_steps = int(state.step)
    share = float(optim.make_schedule(config, steps_per_epoch)(num_steps - 1))
    multiplier = float(state.plateau.multiplier)
    return {
        "epoch": num_steps // steps_per_epoch,
        "step": num_steps,
        **{f"train_{name}": value for name, value in result.means.items()},
        **evaluate_epoch(config, dataset, state),
        "learning_rate": share * config.learning_rate * multiplier,
        "images_per_second": steps_per_epoch * config.batch_size / seconds,
    }


def evaluate_epoch(config: ConfigDict, dataset: data.Dataset, state: TrainState) -> Row:
    """Return loss and accuracy on train_eval and validation, also of the EMA weights.

    Raises:
      DivergedError: if a loss is not finite.
    """
    parts = {
        "train_eval": (state, dataset.train_eval),
        "val": (state, dataset.validation),
    }
    if state.ema is not None:
        parts["ema_val"] = (averaged(state), dataset.validation)
    row = {}
    for prefix, (weights, split) in parts.items():
        values, _ = evaluate(
            weights, split, config.eval_batch_size, deterministic=config.deterministic
        )
        row |= {f"{prefix}_{name}": value for name, value in values.items()}
        if not math.isfinite(values["loss"]):
            raise DivergedError(
                f"{prefix}_loss is {values['loss']} after step {int(state.step):,}; "
                f"try a learning_rate below {config.learning_rate:g}"
            )
    return row


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


def compile_evaluation(
    config: ConfigDict, dataset: data.Dataset, state: TrainState
) -> None:
    """Evaluate one image, so that compilation is not charged to the first epoch."""
    start = time.perf_counter()
    image = data.Split(*(array[:1] for array in dataset.validation))
    evaluate(state, image, config.eval_batch_size, deterministic=config.deterministic)
    seconds = time.perf_counter() - start
    console.say(f"compiled the evaluation step in {seconds:.1f} s")


def evaluate_on_test(member: Member, dataset: data.Dataset) -> None:
    """Evaluate a trained member on test; write, draw, diagnose and print the result."""
    config, workdir, state = member.config, member.workdir, member.state
    if config.early_stopping:
        state = restore_to_evaluate(config, member.checkpoints, state)
    epoch = int(state.step) // dataset.steps_per_epoch(config.batch_size)
    if config.early_stopping:
        output.print_stop(config, member.history, epoch)
    # If this process has trained, what is there may be of an earlier epoch.
    has_trained = len(member.history) > member.num_resumed
    evaluation = None if has_trained else read_evaluation(workdir, epoch)
    last_figure = workdir / LAST_FIGURE
    if evaluation is None:
        evaluate_and_write(config, workdir, dataset, state, "test", member.network)
        last_figure.unlink(missing_ok=True)
    else:
        console.print_evaluation(evaluation, member.network)
    if not last_figure.exists():
        draw_run(workdir)
    diagnosis = write_diagnosis(workdir)
    console.say(f"diagnosis: {diagnosis['verdict']}. {diagnosis['advice']}")
    console.say(f"files: {workdir}")
