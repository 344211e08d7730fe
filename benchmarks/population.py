"""How long do N runs take in one program, compared with one run, or N in turn?

Times epochs of 16 training steps, with augmentation, of a config's network and of its
standard twin, on the device that JAX finds, and prints a Markdown table. The
convolutions of several runs become one grouped convolution over all their channels.
Standard convolutions, unlike separable ones, are not grouped in a single run, so both
are measured.

    python -m benchmarks.population
    python -m benchmarks.population --config=configs/digits.py --members=2,4
"""

import jax

from benchmarks import timing
from dwsep_jax import cli
from dwsep_jax.train import loop

NUM_STEPS, NUM_ROUNDS = 16, 5


def main() -> None:
    """Print the table."""
    args = timing.start(__doc__, config="configs/cpu.py", members="2,4,8")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.config}; ms a")
    print(f"step, median ± half the interquartile range of {NUM_ROUNDS} rounds\n")
    columns = ("convolutions", "members", "ms", "to one run", "to as many in turn")
    timing.print_header(*columns)
    for conv in ("separable", "standard"):
        config = cli.load_file(args.config).unlock()
        config.conv = conv
        dataset = timing.make_dataset(NUM_STEPS * config.batch_size)
        config, contenders, states = loop.resolve(config, dataset), {}, []
        for n in (1, *map(int, args.members.split(","))):
            for seed in range(len(states), n):
                config.seed = seed
                states.append(loop.make_state(config, dataset))
            contenders[n] = timing.jax_epoch(config, dataset, states[:n])
        for n, measured in timing.time_in_turn(contenders, NUM_ROUNDS).items():
            measured.median_ms /= NUM_STEPS
            measured.spread_ms /= NUM_STEPS
            ratios = [f"{ratio:.2f}x" for ratio in (measured.ratio, measured.ratio / n)]
            timing.print_row(conv, n, measured, *ratios)


if __name__ == "__main__":
    main()
