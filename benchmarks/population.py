"""How long do N runs take in one program, compared with one run, or N in turn?

Times training steps, with augmentation, of a config's network and of its standard twin,
on the device that JAX finds, and prints a Markdown table. The convolutions of several
runs become one grouped convolution over all their channels. Standard convolutions,
unlike separable ones, are not grouped in a single run, so both are measured.

    python -m benchmarks.population
    python -m benchmarks.population --config=configs/digits.py --members=2,4
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks.timing import make_dataset, print_header, print_row, time_in_turn
from dwsep_jax import cli
from dwsep_jax.data import Dataset
from dwsep_jax.data.augment import make_augment
from dwsep_jax.environment import keep_freed_memory
from dwsep_jax.train import loop
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.programs import make_mesh, stack, vmap_steps
from dwsep_jax.train.step import train_many

NUM_ROUNDS = 5


def compile_run(config: ConfigDict, dataset: Dataset, num_members: int):
    """Return a call that runs one dispatch; 0 members stands for a single run."""
    states = []
    for seed in range(max(1, num_members)):
        member = config.copy_and_resolve_references()
        member.seed = seed
        states.append(loop.make_state(member, dataset))
    steps = partial(
        train_many,
        augment=make_augment(config, len(dataset.class_names)),
        batch_size=config.batch_size,
        num_steps=config.steps_per_dispatch,
    )
    state, total = states[0], Metrics.empty()
    order = jnp.arange(len(dataset.train.labels), dtype=jnp.int32)
    if num_members:
        steps = vmap_steps(steps, make_mesh(1))
        state = stack(states)
        total, order = (stack([x] * num_members) for x in (total, order))
    images, labels = dataset.train.images, dataset.train.labels
    arrays = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    arguments = [state, total, arrays, order]
    if num_members:
        arguments.append(jnp.full(num_members, True))  # All are active.
    compiled = jax.jit(steps).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


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
    print_header(["convolutions", "members", "ms", "to one run", "to as many in turn"])
    for conv in ("separable", "standard"):
        config = cli.load_file(args.config).unlock()
        config.conv = conv
        dataset = make_dataset(16 * config.batch_size)
        config = loop.resolve(config, dataset)
        contenders = {max(1, n): compile_run(config, dataset, n) for n in (0, *numbers)}
        for n, timing in time_in_turn(contenders, NUM_ROUNDS).items():
            num_steps = config.steps_per_dispatch
            middle, spread = timing.median_ms / num_steps, timing.spread_ms / num_steps
            ratios = [f"{ratio:.2f}x" for ratio in (timing.ratio, timing.ratio / n)]
            print_row([conv, str(n), f"{middle:.1f} ± {spread / 2:.1f}", *ratios])


if __name__ == "__main__":
    main()
