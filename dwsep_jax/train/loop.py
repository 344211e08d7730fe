"""The training loop."""

import contextlib
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.data import order
from dwsep_jax.diagnose import write_diagnosis
from dwsep_jax.environment import memory_bytes
from dwsep_jax.errors import DivergedError, UserError
from dwsep_jax.lock import locked
from dwsep_jax.report.figures import LAST_FIGURE, draw_run
from dwsep_jax.train import optim
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.train.evaluation import (
    evaluate,
    evaluate_and_write,
    read_evaluation,
    restore_to_evaluate,
)
from dwsep_jax.train.events import Events
from dwsep_jax.train.programs import compile_programs, train_epoch
from dwsep_jax.train.start import print_start
from dwsep_jax.train.step import (
    Batch,
    TrainState,
    averaged,
    check_train_state,
    make_run_keys,
    make_train_state,
)
from dwsep_jax.workdir import (
    Row,
    append_row,
    is_settled,
    open_workdir,
    score,
    seconds_left,
    write_rows,
)


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, on_test: bool = True
) -> None:
    """Train as `config` says, evaluate on test, and leave the files in `workdir`.

    A run that was broken off goes on after its last whole epoch. A finished one is left
    alone, and its result is printed again. Without `on_test`, what is to be decided on
    validation first is only trained; called again with it, it is evaluated as well.

    Raises:
      UserError: if the workdir belongs to another configuration or another process,
        data are missing, or a loss or parameter is no longer finite.
    """
    dataset = data.load(config)
    config = open_workdir(workdir, config, partial(resolve, dataset=dataset))
    with claimed(workdir):
        run(config, workdir, dataset, on_test)


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike) -> Iterator[None]:
    """Have a workdir to oneself; raise `UserError` where another process is at work."""
    try:
        with locked(workdir, wait=False):
            yield
    except BlockingIOError:
        raise UserError(
            f"another process is at work in {workdir}; wait for it, or choose another "
            "--workdir"
        ) from None


def resolve(config: ConfigDict, dataset: data.Dataset) -> ConfigDict:
    """Return the configuration with every unset value set.

    Raises:
      ConfigError: if no run can be made of it; nothing has been written then.
    """
    config = optim.resolve(config)
    if config.steps_per_dispatch is None:
        # On CPU a loop of 8 steps made 0.7 to 1.0 of the images/s of single ones (2
        # cores, configs/cpu.py). Elsewhere not measured: there, a dispatch costs more.
        config.steps_per_dispatch = 1 if jax.default_backend() == "cpu" else 16
    check_train_state(config, dataset, memory_bytes())
    return config


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: data.Dataset,
    on_test: bool = True,
    after_epoch: Callable[[Row], None] | None = None,
) -> None:
    """Train what is left to train of a resolved configuration, then evaluate.

    `after_epoch` is called with the row of each epoch, first with those that an earlier
    process trained; what it raises ends the run, which can be gone on with.
    """
    after_epoch = after_epoch or (lambda row: None)
    state = make_train_state(config, dataset)
    network = print_start(config, dataset, state)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir))
        state, history = resume(config, workdir, checkpoints, state)
        for row in history:
            after_epoch(row)
        first = len(history)
        write_event = stack.enter_context(open_events(config, workdir, history))
        epochs = train_epochs(config, dataset, state, history.copy())
        for trained, row in stack.enter_context(contextlib.closing(epochs)):
            state = trained
            history.append(row)
            save_epoch(workdir, checkpoints, state, history)
            write_event(row)
            left = seconds_left(history, first, config.num_epochs)
            console.say(console.format_epoch(row, config.num_epochs, left))
            after_epoch(row)
        if not on_test:
            return
        if config.early_stopping:
            state = restore_to_evaluate(config, checkpoints, state)
    epoch = int(state.step) // dataset.steps_per_epoch(config.batch_size)
    if config.early_stopping:
        print_stop(config, history, epoch)
    # Another process may have written one while this one trained.
    evaluation = read_evaluation(workdir, epoch) if first == len(history) else None
    last_figure = pathlib.Path(workdir, LAST_FIGURE)
    if evaluation is None:
        evaluation = evaluate_and_write(config, workdir, dataset, state, "test")
        last_figure.unlink(missing_ok=True)
    console.print_evaluation(evaluation, network)
    if not last_figure.exists():
        draw_run(workdir)
    diagnosis = write_diagnosis(workdir)
    console.say(f"diagnosis: {diagnosis['verdict']}. {diagnosis['advice']}")
    console.say(f"files: {workdir}")


def is_finished(config: ConfigDict, history: list[Row]) -> bool:
    """Return whether there is nothing left to train."""
    return len(history) >= config.num_epochs or is_settled(
        history, config.early_stopping, config.min_change
    )


def resume(
    config: ConfigDict,
    workdir: str | os.PathLike,
    checkpoints: Checkpoints,
    state: TrainState,
) -> tuple[TrainState, list[Row]]:
    """Return the state to go on from and the rows of its epochs; both may be fresh.

    Rows of epochs that are to be trained again are removed.

    Raises:
      UserError: if there are results, but no checkpoint to go on from.
    """
    history: list[Row] = []
    if restored := checkpoints.restore_latest(state):
        checkpoints.discard_after(restored.epoch)
        state, history = restored.tree, restored.metadata["history"]
        what = "finished" if is_finished(config, history) else "resuming"
        console.say(f"{what} after epoch {restored.epoch}, step {int(state.step):,}")
    write_rows(workdir, history)
    if not is_finished(config, history):
        # --mode=evaluate may have left one.
        pathlib.Path(workdir, "evaluation.json").unlink(missing_ok=True)
    return state, history


@contextlib.contextmanager
def open_events(
    config: ConfigDict, workdir: str | os.PathLike, history: list[Row]
) -> Iterator[Callable[[Row], None]]:
    """Give what writes a row as TensorBoard events, where they are wanted."""
    has_events = pathlib.Path(workdir, "tensorboard").exists()
    if config.tensorboard and not (has_events and is_finished(config, history)):
        with Events(workdir, history) as events:
            yield events.write
    else:
        yield lambda row: None


def save_epoch(
    workdir: str | os.PathLike,
    checkpoints: Checkpoints,
    state: TrainState,
    history: list[Row],
) -> None:
    """Save the state after the last epoch of the history, then the epoch's row."""
    row = history[-1]
    scores = {row["epoch"]: score(row) for row in history}
    checkpoints.save(row["epoch"], state, {"history": history}, scores)
    append_row(workdir, row)


def train_epochs(
    config: ConfigDict, dataset: data.Dataset, state: TrainState, history: list[Row]
) -> Iterator[tuple[TrainState, Row]]:
    """Train the epochs that `history` lacks; yield the state and the row of each.

    The state is given up (donated) when the next epoch begins.

    Raises:
      DivergedError: if a loss or a parameter is no longer finite.
    """
    if is_finished(config, history):
        return
    steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    arrays = on_device(dataset)
    programs = compile_programs(config, dataset, state, arrays)
    compile_evaluation(config, dataset, state)
    order_key = make_run_keys(config.seed).order
    elapsed_before = history[-1]["elapsed_seconds"] if history else 0.0
    start = time.perf_counter()
    with console.EpochProgress(config, steps_per_epoch) as progress:
        while not is_finished(config, history):
            epoch = len(history)
            progress.start_epoch(epoch)
            permutation = order.epoch_permutation(
                order_key, epoch, len(dataset.train.labels)
            )
            epoch_start = time.perf_counter()
            state, trained = train_epoch(programs, state, arrays, permutation, progress)
            seconds = time.perf_counter() - epoch_start
            row = make_row(config, dataset, state, trained, seconds)
            row["elapsed_seconds"] = elapsed_before + time.perf_counter() - start
            state = lower_rate_on_plateau(config, state, row["val_loss"])
            history.append(row)
            yield state, row


def on_device(dataset: data.Dataset) -> Batch:
    """Return the training images and labels as arrays of the device."""
    return {
        "image": jnp.asarray(dataset.train.images),
        "label": jnp.asarray(dataset.train.labels),
    }


def make_row(
    config: ConfigDict,
    dataset: data.Dataset,
    state: TrainState,
    trained: dict[str, float],
    seconds: float,
) -> Row:
    """Evaluate the state after an epoch, and return the epoch's row.

    Args:
      config: resolved.
      dataset: its train_eval and validation are read.
      state: before the rate is lowered on a plateau.
      trained: means of the metrics over the epoch.
      seconds: that its steps took.

    Raises:
      DivergedError: if a loss is not finite.
    """
    steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    num_steps = int(state.step)
    share = float(optim.make_schedule(config, steps_per_epoch)(num_steps - 1))
    multiplier = float(state.plateau.multiplier)
    return {
        "epoch": num_steps // steps_per_epoch,
        "step": num_steps,
        **{f"train_{name}": value for name, value in trained.items()},
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


def evaluate_epoch(config: ConfigDict, dataset: data.Dataset, state: TrainState) -> Row:
    """Return loss and accuracy on train_eval and validation, of the average as well.

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


def compile_evaluation(
    config: ConfigDict, dataset: data.Dataset, state: TrainState
) -> None:
    """Evaluate one image, so that the first epoch is not charged for it."""
    start = time.perf_counter()
    image = data.Split(*(array[:1] for array in dataset.validation))
    evaluate(state, image, config.eval_batch_size, deterministic=config.deterministic)
    seconds = time.perf_counter() - start
    console.say(f"compiled the evaluation step in {seconds:.1f} s")


def print_stop(config: ConfigDict, history: list[Row], epoch: int) -> None:
    """Say why a run with early stopping ended, and which epoch is evaluated."""
    why = "all epochs are trained"
    if len(history) < config.num_epochs:
        share = history[-1]["learning_rate"] / config.learning_rate
        why = (
            f"stopped early: in {config.early_stopping} epochs no validation accuracy "
            f"was better by more than {config.min_change:g}; the learning rate of the "
            f"{config.schedule} schedule was at {share:.0%} of its peak"
        )
    best = max(history, key=score)["epoch"]
    lost = "" if best == epoch else f"; the checkpoint of the best, {best}, is lost"
    console.say(f"{why}; epoch {epoch} is evaluated, the best that is kept{lost}")
