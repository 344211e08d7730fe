"""How long do N members take in one program, against one run, and against N in turn?

Times training steps, with augmentation, of a config's network and of its twin, on the
device that jax finds, and prints a Markdown table. Members of separable convolutions
become one grouped convolution over the channels of all, and so do standard ones, which
are not grouped alone: so both twins are measured.

    python -m benchmarks.population
    python -m benchmarks.population --config=configs/digits.py --members=2,4
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dwsep_jax import cli, data
from dwsep_jax.environment import keep_freed_memory
from dwsep_jax.train import loop
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.programs import make_steps, stack, vmap_steps

NUM_ROUNDS = 5


def make_dataset(batch_size: int) -> data.Dataset:
    """Return random images of the size of CIFAR-10's, 16 batches of them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16 * batch_size, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, len(images)).astype(np.int32)
    split = data.Split(images, labels, np.arange(len(images)).astype(str))
    return data.Dataset("random", tuple("0123456789"), split, split, split, split)


def compile_run(config: ConfigDict, dataset: data.Dataset, num_members: int):
    """Return a call that takes the steps of a dispatch; 0 members: of a lone run."""
    states = []
    for seed in range(max(1, num_members)):
        member = config.copy_and_resolve_references()
        member.seed = seed
        states.append(loop.make_state(member, dataset))
    steps = make_steps(config, len(dataset.class_names))
    state, total = states[0], Metrics.empty()
    order = jnp.arange(len(dataset.train.labels), dtype=jnp.int32)
    if num_members:
        steps = vmap_steps(steps)
        state = stack(states)
        total, order = (stack([x] * num_members) for x in (total, order))
    images, labels = dataset.train.images, dataset.train.labels
    arrays = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    arguments = [state, total, arrays, order]
    if num_members:
        arguments.append(jnp.full(num_members, True))  # All are active.
    take = jax.jit(partial(steps, num_steps=config.steps_per_dispatch))
    compiled = take.lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def time_in_turn(calls: list) -> np.ndarray:
    """Return the seconds of each call in each round, (rounds, calls)."""
    seconds = np.empty((NUM_ROUNDS, len(calls)))
    for call in calls:
        call()
    for i in range(NUM_ROUNDS):
        for j, call in enumerate(calls):
            start = time.perf_counter()
            call()
            seconds[i, j] = time.perf_counter() - start
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="configs/cpu.py")
    parser.add_argument("--members", default="2,4,8")
    args = parser.parse_args()
    numbers = [int(n) for n in args.members.split(",")]
    keep_freed_memory()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.config}; ms a")
    print(f"step, median ± half the interquartile range of {NUM_ROUNDS} rounds\n")
    print("| convolutions | members | ms | to one run | to as many in turn |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for conv in ("separable", "standard"):
        config = cli.load_file(args.config).unlock()
        config.conv = conv
        dataset = make_dataset(config.batch_size)
        config = loop.resolve(config, dataset)
        calls = [compile_run(config, dataset, n) for n in (0, *numbers)]
        seconds = time_in_turn(calls) / config.steps_per_dispatch
        for j, n in enumerate((1, *numbers)):
            low, middle, high = 1e3 * np.percentile(seconds[:, j], (25, 50, 75))
            ratio = np.median(seconds[:, j] / seconds[:, 0])
            cells = f"{middle:.1f} ± {(high - low) / 2:.1f} | {ratio:.2f}x"
            print(f"| {conv} | {n} | {cells} | {ratio / n:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
