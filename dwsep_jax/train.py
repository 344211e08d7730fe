"""The training loop."""

import json
import math
import os
import pathlib
import time
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from clu import parameter_overview
from ml_collections import ConfigDict

from dwsep_jax import console, data, optim
from dwsep_jax.augment import make_augment
from dwsep_jax.checkpoint import Checkpoints
from dwsep_jax.config import open_workdir
from dwsep_jax.errors import UserError
from dwsep_jax.evaluate import evaluate, evaluate_and_write
from dwsep_jax.metrics import Metrics
from dwsep_jax.models import create_model
from dwsep_jax.step import (
    TrainState,
    make_run_keys,
    make_train_state,
    train_on_indices,
)
from dwsep_jax.summary import describe_network, summarize

Row = dict[str, float]


def train_and_evaluate(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Train as `config` says, evaluate on test, and leave the files in `workdir`.

    A run that was broken off goes on after its last whole epoch. A finished one is left
    alone, and its result is printed again.

    Raises:
      UserError: if the workdir belongs to another configuration, data are missing, or
        the loss is no longer finite.
    """
    config = open_workdir(workdir, config, resolve)
    dataset = data.load(config)
    state = make_train_state(config, dataset)
    network = print_start(config, dataset, state)
    history: list[Row] = []

    with Checkpoints(workdir) as checkpoints:
        if restored := checkpoints.restore_latest(state):
            state, history = restored.tree, restored.metadata["history"]
            console.say(f"resuming after epoch {restored.epoch}, step {state.step:,}")
        is_finished = len(history) == config.num_epochs
        write_history(workdir, history)
        for trained, row in train_epochs(config, dataset, state, list(history)):
            state = trained
            history.append(row)
            append_row(workdir, row)
            metadata = {"history": history}
            checkpoints.save(row["epoch"], state, metadata, score=row["val_accuracy"])
            console.say(console.format_epoch(row, config.num_epochs))

    path = pathlib.Path(workdir) / "evaluation.json"
    if not (is_finished and path.exists()):
        evaluate_and_write(config, workdir, dataset, state, "test")
    console.print_evaluation(json.loads(path.read_text()), network)
    console.say(f"files: {workdir}")


def resolve(config: ConfigDict) -> ConfigDict:
    """Return the configuration with every unset value set; refuse unknown choices.

    Raises:
      ConfigError: for an unknown choice, before anything is written.
    """
    config = optim.resolve(config)
    optim.make_schedule(config, steps_per_epoch=1)
    create_model(config, num_classes=1)
    return config


def train_epochs(
    config: ConfigDict, dataset: data.Dataset, state: TrainState, history: list[Row]
) -> Iterator[tuple[TrainState, Row]]:
    """Train the epochs that `history` lacks; yield the state and the row of each.

    The state is given up (donated) when the next epoch begins.
    """
    num_train = len(dataset.train.labels)
    steps_per_epoch = num_train // config.batch_size
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
                take_step = compile_step(config, dataset, state, arrays, permutation)
            epoch_start = time.perf_counter()
            for _ in progress.steps(epoch):
                state, total = take_step(state, total, arrays, permutation)
            trained = {name: float(value) for name, value in total.compute().items()}
            seconds = time.perf_counter() - epoch_start
            if not math.isfinite(trained["loss"]):
                raise UserError(
                    f"the training loss is {trained['loss']} in epoch {epoch + 1}; try "
                    f"a learning_rate below {config.learning_rate:g}"
                )
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
            yield state, row


def evaluate_prefixed(
    prefix: str, config: ConfigDict, state: TrainState, split: data.Split
) -> Row:
    """Return loss and accuracy of a split, their names prefixed."""
    values, _ = evaluate(state, split, config.eval_batch_size)
    return {f"{prefix}_{name}": value for name, value in values.items()}


def compile_step(config, dataset, state, arrays, permutation):
    """Compile (state, total, arrays, permutation) -> (state, total), both donated."""
    step = partial(
        train_in_order,
        batch_size=config.batch_size,
        augment=make_augment(
            flip=config.flip, shift=config.shift, cutout_size=config.cutout
        ),
        mixup_alpha=config.mixup,
        num_classes=len(dataset.class_names),
    )
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
        state, Metrics.empty(), arrays, permutation
    )
    compiled = lowered.compile()
    console.say(f"compiled the training step in {time.perf_counter() - start:.1f} s")
    return compiled


def train_in_order(state, total, arrays, permutation, *, batch_size, **how):
    """Train on the batch of the state's step, and add its metrics to the total."""
    steps_per_epoch = permutation.shape[0] // batch_size
    indices = data.batch_indices(permutation, state.step % steps_per_epoch, batch_size)
    state, metrics = train_on_indices(state, arrays, indices, **how)
    return state, total.merge(metrics)


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
    console.say(f"device: {jax.device_count()} x {device.device_kind}")
    return network


def write_history(workdir: str | os.PathLike, history: list[Row]) -> None:
    """Make metrics.jsonl hold just these rows: those after a checkpoint are redone."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(_json_line(row) for row in history))
    os.replace(temporary, path)


def append_row(workdir: str | os.PathLike, row: Row) -> None:
    """Add a row to metrics.jsonl."""
    with (pathlib.Path(workdir) / "metrics.jsonl").open("a") as file:
        file.write(_json_line(row))


def _json_line(row):
    return json.dumps({"schema": 1, **row}) + "\n"
