"""Times programs side by side, prints tables of them, and makes data for them."""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dwsep_jax import console
from dwsep_jax.data import Dataset, Split
from dwsep_jax.environment import keep_freed_memory
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.programs import EpochPrograms
from dwsep_jax.train.step import TrainState, train_step

Contenders = dict[str, Callable[[], Any]]
Batch = dict[str, jax.Array]


@dataclasses.dataclass
class Timing:
    """Median and interquartile range; `ratio` to the time of the first contender."""

    median_ms: float
    spread_ms: float
    ratio: float
    num_rounds: int

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ± {self.spread_ms / 2:.2f}"


def start(description: str, **defaults: Any) -> argparse.Namespace:
    """Keep freed memory, as main.py does, and return the command's flags.

    Args:
      description: the docstring of the benchmark.
      **defaults: of the flags; one that is False by default takes no value.
    """
    keep_freed_memory()  # PyTorch gains by it, too.
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=style)
    for name, default in defaults.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def time_in_turn(contenders: Contenders, num_rounds: int) -> dict[str, Timing]:
    """Time each contender once per round; ratios are medians over the rounds.

    Each runs once more just before it is timed, so that caches and memory are its own,
    not those of another program, as they are from one training step to the next.
    """
    for run in contenders.values():
        run()
    seconds = {name: [] for name in contenders}
    for _ in range(num_rounds):
        for name, run in contenders.items():
            run()
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    first = np.array(next(iter(seconds.values())))
    timings = {}
    for name, values in seconds.items():
        low, middle, high = 1e3 * np.percentile(values, (25, 50, 75))
        ratio = float(np.median(np.array(values) / first))
        timings[name] = Timing(middle, high - low, ratio, num_rounds)
    return timings


def print_header(*columns: str) -> None:
    """Print the first two lines of a Markdown table."""
    print_row(*columns)
    print("| --- " * len(columns) + "|")


def print_row(*cells: Any) -> None:
    """Print a row of a Markdown table, as soon as it is measured."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def make_dataset(size: int) -> Dataset:
    """Return `size` random images of CIFAR-10's shape, the same in every split."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, size).astype(np.int32)
    split = Split(images, labels, np.arange(size).astype(str))
    return Dataset("random", tuple("0123456789"), split, split, split, split)


def make_batch(size: int) -> Batch:
    """Return random images and labels."""
    rng = np.random.default_rng(size)
    images = rng.uniform(-1, 1, (size, 32, 32, 3)).astype(np.float32)
    return {"image": jnp.asarray(images), "label": jnp.arange(size) % 10}


def compile_jax(function: Callable, *args: Any, **options: Any) -> Callable[[], Any]:
    """Return a call that computes function(*args) and waits for it."""
    compiled = jax.jit(function, **options).lower(*args).compile()
    return lambda: jax.block_until_ready(compiled(*args))


def jax_step(
    state: TrainState, batch: dict[str, jax.Array], **options: Any
) -> Callable:
    """Return a call that takes another training step, jitted with these options."""
    state = jax.tree.map(jnp.copy, state)
    step = jax.jit(train_step, donate_argnums=0, **options)
    step = step.lower(state, batch).compile()

    def run():
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state.params)

    return run


def jax_epoch(
    config: ConfigDict, dataset: Dataset, states: Sequence[TrainState]
) -> Callable[[], Any]:
    """Return a call that trains for an epoch as the loop does, all in one program."""
    n, states = len(states), jax.tree.map(jnp.copy, list(states))
    with console.logged(os.devnull):
        programs = EpochPrograms(config, dataset, states)
    order = jnp.arange(len(dataset.train.labels), dtype=jnp.int32)
    progress = SimpleNamespace(advance_steps=lambda num_steps: None)

    def run():
        nonlocal states
        states = [state.replace(step=jnp.zeros((), jnp.int32)) for state in states]
        totals, orders = [Metrics.empty() for _ in states], [order] * n
        results = programs.train_epoch(states, totals, [True] * n, orders, progress)
        states = [result.state for result in results]

    return run
