"""The training loop."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from ml_collections import ConfigDict

from dwsep_jax import console, data, optim
from dwsep_jax.augment import make_augment
from dwsep_jax.checkpoint import Checkpoints
from dwsep_jax.config import open_workdir
from dwsep_jax.datasets.prepare import locked
from dwsep_jax.errors import UserError
from dwsep_jax.evaluate import evaluate, evaluate_and_write, read_evaluation
from dwsep_jax.files import write_atomically
from dwsep_jax.metrics import Metrics
from dwsep_jax.step import (
    TrainState,
    check_train_state,
    make_run_keys,
    make_train_state,
    train_on_indices,
)
from dwsep_jax.summary import describe_network, summarize

Row = dict[str, float]
Step = Callable[..., tuple[TrainState, Metrics]]


def train_and_evaluate(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Train as `config` says, evaluate on test, and leave the files in `workdir`.

    A run that was broken off goes on after its last whole epoch. A finished one is left
    alone, and its result is printed again.

    Raises:
      UserError: if the workdir belongs to another configuration or another process,
        data are missing, or a loss is no longer finite.
    """
    dataset = data.load(config)
    config = open_workdir(workdir, config, partial(resolve, dataset=dataset))
    try:
        with locked(workdir, wait=False):
            run(config, workdir, dataset)
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
    check_train_state(config, dataset)
    return config


def run(config: ConfigDict, workdir: str | os.PathLike, dataset: data.Dataset) -> None:
    """Train what is left to train of a resolved configuration, then evaluate."""
    state = make_train_state(config, dataset)
    network = print_start(config, dataset, state)
    with Checkpoints(workdir) as checkpoints:
        state, history = resume(workdir, checkpoints, state)
        if len(history) < config.num_epochs:  # --mode=evaluate may have left one.
            pathlib.Path(workdir, "evaluation.json").unlink(missing_ok=True)
        epochs = train_epochs(config, dataset, state, list(history))
        with contextlib.closing(epochs):
            for trained, row in epochs:
                state = trained
                history.append(row)
                metadata = {"history": history}
                score = row["val_accuracy"]
                checkpoints.save(row["epoch"], state, metadata, score)
                append_row(workdir, row)
                console.say(console.format_epoch(row, config.num_epochs))
    evaluation = read_evaluation(workdir, epoch=config.num_epochs)
    if evaluation is None:
        evaluation = evaluate_and_write(config, workdir, dataset, state, "test")
    console.print_evaluation(evaluation, network)
    console.say(f"files: {workdir}")


def resume(
    workdir: str | os.PathLike, checkpoints: Checkpoints, state: TrainState
) -> tuple[TrainState, list[Row]]:
    """Return the state to go on from and the rows of its epochs; both may be fresh.

    Rows of epochs that are to be trained again are removed.

    Raises:
      UserError: if there are results, but no checkpoint to go on from.
    """
    metrics = pathlib.Path(workdir) / "metrics.jsonl"
    history: list[Row] = []
    if restored := checkpoints.restore_latest(state):
        checkpoints.discard_after(restored.epoch)
        state, history = restored.tree, restored.metadata["history"]
        console.say(f"resuming after epoch {restored.epoch}, step {int(state.step):,}")
    elif metrics.exists() and metrics.stat().st_size:
        raise UserError(
            f"{workdir} has results in metrics.jsonl but no checkpoint to go on from; "
            "choose another --workdir, or delete this one to start over"
        )
    text = "".join(_json_line(row) for row in history)
    if not metrics.exists() or metrics.read_text() != text:
        write_atomically(metrics, text)
    return state, history


def train_epochs(
    config: ConfigDict, dataset: data.Dataset, state: TrainState, history: list[Row]
) -> Iterator[tuple[TrainState, Row]]:
    """Train the epochs that `history` lacks; yield the state and the row of each.

    The state is given up (donated) when the next epoch begins.
    """
    num_train = len(dataset.train.labels)
    steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    arrays = {
        "image": jnp.asarray(dataset.train.images),
        "label": jnp.asarray(dataset.train.labels),
    }
    order_key = make_run_keys(config.seed).order
    schedule = optim.make_schedule(config, steps_per_epoch)
    elapsed_before = history[-1]["elapsed_seconds"] if history else 0.0
    start, take_step = time.perf_counter(), None

    with console.EpochProgress(config, steps_per_epoch) as progress:
        for epoch in range(len(history), config.num_epochs):
            permutation = data.epoch_permutation(order_key, epoch, num_train)
            total = Metrics.empty()
            if take_step is None:
                step = make_step(config, len(dataset.class_names))
                take_step = compile_step(step, state, total, arrays, permutation)
            epoch_start = time.perf_counter()
            for _ in progress.steps(epoch):
                state, total = take_step(state, total, arrays, permutation)
            trained = {name: float(value) for name, value in total.compute().items()}
            seconds = time.perf_counter() - epoch_start
            last_step = (epoch + 1) * steps_per_epoch - 1
            row = {
                "epoch": epoch + 1,
                "step": last_step + 1,
                **{f"train_{name}": value for name, value in trained.items()},
                **evaluate_prefixed("train_eval", config, state, dataset.train_eval),
                **evaluate_prefixed("val", config, state, dataset.validation),
                "learning_rate": float(schedule(last_step)) * config.learning_rate,
                "images_per_second": steps_per_epoch * config.batch_size / seconds,
            }
            row["elapsed_seconds"] = elapsed_before + time.perf_counter() - start
            for name in ("train_loss", "train_eval_loss", "val_loss"):
                if not math.isfinite(row[name]):
                    raise UserError(
                        f"{name} is {row[name]} in epoch {epoch + 1}; try a "
                        f"learning_rate below {config.learning_rate:g}"
                    )
            yield state, row


def evaluate_prefixed(
    prefix: str, config: ConfigDict, state: TrainState, split: data.Split
) -> Row:
    """Return loss and accuracy of a split, their names prefixed."""
    values, _ = evaluate(state, split, config.eval_batch_size)
    return {f"{prefix}_{name}": value for name, value in values.items()}


def make_step(config: ConfigDict, num_classes: int) -> Step:
    """Return (state, total, arrays, permutation) -> (state, total), to be jitted."""
    augment = make_augment(
        flip=config.flip, shift=config.shift, cutout_size=config.cutout
    )
    return partial(
        train_in_order,
        batch_size=config.batch_size,
        augment=augment,
        mixup_alpha=config.mixup,
        num_classes=num_classes,
    )


def compile_step(step: Step, *args: Any) -> Step:
    """Compile a step for arguments like these, the first two of which it may reuse."""
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile()
    console.say(f"compiled the training step in {time.perf_counter() - start:.1f} s")
    return compiled


def train_in_order(state, total, arrays, permutation, *, batch_size, **how):
    """Train on the batch of the state's step, and add its metrics to the total."""
    steps_per_epoch = permutation.shape[0] // batch_size
    indices = data.batch_indices(permutation, state.step % steps_per_epoch, batch_size)
    state, metrics = train_on_indices(state, arrays, indices, **how)
    merged = total.merge(metrics)
    # clu counts in int64 where jax has 64 bits, but starts in int32.
    return state, jax.tree.map(lambda old, new: new.astype(old.dtype), total, merged)


def print_start(config: ConfigDict, dataset: data.Dataset, state: TrainState) -> str:
    """Print what is trained on what; return one line that names the network."""
    console.say(parameter_overview.get_parameter_overview(state.params))
    image_shape = dataset.train.images.shape[1:]
    parts = summarize(config, len(dataset.class_names), image_shape)
    rows = [
        [p.name, "x".join(map(str, p.output_shape)), p.parameters, p.macs]
        for p in parts
    ]
    parameters, macs = (sum(p[i] for p in parts) for i in (2, 3))
    rows.append(["total", "", parameters, macs])
    columns = ["part", "output", "parameters", "MACs per image"]
    console.print_table("Network", columns, rows)
    network = describe_network(config, parts)
    sizes = (dataset.train, dataset.validation, dataset.test)
    train, validation, test = (f"{len(split.labels):,}" for split in sizes)
    device = jax.devices()[0]
    console.say(f"network: {network}")
    console.say(
        f"data: {dataset.name}, {train} train, {validation} validation, {test} test"
    )
    console.say(
        f"optimizer: {config.optimizer}, peak learning rate {config.learning_rate:g}, "
        f"weight decay {config.weight_decay:g}, batch size {config.batch_size}"
    )
    count = jax.device_count()
    others = f" (1 of {count} is used)" if count > 1 else ""
    console.say(f"device: {device.device_kind}{others}")
    return network


def append_row(workdir: str | os.PathLike, row: Row) -> None:
    """Add a row to metrics.jsonl."""
    with (pathlib.Path(workdir) / "metrics.jsonl").open("a") as file:
        file.write(_json_line(row))


def _json_line(row):
    return json.dumps({"schema": 1, **row}, allow_nan=False) + "\n"
