"""Times programs side by side, prints tables of them, and makes data for them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dwsep_jax.data import Dataset, Split
from dwsep_jax.train.step import train_step

Contenders = dict[str, Callable[[], Any]]


@dataclasses.dataclass
class Timing:
    """Median and interquartile range; `ratio` to the time of the first contender."""

    median_ms: float
    spread_ms: float
    ratio: float
    num_rounds: int

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ± {self.spread_ms / 2:.2f}"


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
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    first = np.array(next(iter(seconds.values())))
    timings = {}
    for name, values in seconds.items():
        low, middle, high = 1e3 * np.percentile(values, (25, 50, 75))
        ratio = float(np.median(np.array(values) / first))
        timings[name] = Timing(middle, high - low, ratio, num_rounds)
    return timings


def compile_jax(function: Callable, *args: Any, **options: Any) -> Callable[[], Any]:
    """Return a call that computes function(*args) and waits for it."""
    compiled = jax.jit(function, **options).lower(*args).compile()
    return lambda: jax.block_until_ready(compiled(*args))


def print_header(columns: list[str]) -> None:
    """Print the first two lines of a Markdown table."""
    print_row(columns)
    print("| --- " * len(columns) + "|")


def print_row(cells: list[str]) -> None:
    """Print a row of a Markdown table, as soon as it is measured."""
    print(f"| {' | '.join(cells)} |", flush=True)


def make_dataset(size: int) -> Dataset:
    """Return `size` random images of CIFAR-10's shape, the same in every split."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, size).astype(np.int32)
    split = Split(images, labels, np.arange(size).astype(str))
    return Dataset("random", tuple("0123456789"), split, split, split, split)


def make_batch(size: int) -> dict[str, jax.Array]:
    """Return random images and labels."""
    rng = np.random.default_rng(size)
    images = rng.uniform(-1, 1, (size, 32, 32, 3)).astype(np.float32)
    return {"image": jnp.asarray(images), "label": jnp.arange(size) % 10}


def jax_step(state: Any, batch: dict[str, jax.Array], **options: Any) -> Callable:
    """Return a call that takes another training step, jitted with these options."""
    state = jax.tree.map(jnp.copy, state)
    step = jax.jit(train_step, donate_argnums=0, **options)
    step = step.lower(state, batch).compile()

    def run():
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state.params)

    return run
