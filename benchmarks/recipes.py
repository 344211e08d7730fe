"""Are the default rates good? Every optimizer with every schedule and three rates.

Trains configs/digits.py for 15 epochs each time, 45 runs in all, and prints two
Markdown tables of the validation and test accuracies after the last epoch. About 20
minutes on 2 CPU cores. The default rates in `dwsep_jax/train/optim.py` come from here.

    python -m benchmarks.recipes
"""

import os
import sys
import tempfile
import time

from ml_collections import ConfigDict

from configs import digits
from dwsep_jax import console, data
from dwsep_jax.train import loop, optim
from dwsep_jax.train.evaluation import evaluate
from dwsep_jax.train.step import averaged

NUM_EPOCHS = 15
RATE_FACTORS = (1 / 3, 1, 3)


def make_config(**changes) -> ConfigDict:
    """Return the digits configuration, shortened, with an average of the weights."""
    config = digits.get_config()
    config.num_epochs = NUM_EPOCHS
    config.ema_decay = 0.99
    config.progress = False
    config.update(changes)
    return config


def measure(config: ConfigDict) -> str:
    """Train, and return one cell of the table."""
    dataset = data.load(config)
    config = loop.resolve(config, dataset)
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as workdir,
        console.logged(os.devnull),
        loop.open_member(config, workdir, dataset) as member,
    ):
        loop.train([member], dataset)
    if member.error is not None:
        return f"stopped: {str(member.error).partition(';')[0]}"
    state, last = member.state, member.history[-1]
    raw, _ = evaluate(state, dataset.test, config.eval_batch_size)
    ema, _ = evaluate(averaged(state), dataset.test, config.eval_batch_size)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return (
        f"{last['val_accuracy']:.1%}, {raw['accuracy']:.2%} (average: "
        f"{last['ema_val_accuracy']:.1%}, {ema['accuracy']:.2%})"
    )


def print_table(columns: list[str], rows: dict[str, list[ConfigDict]]) -> None:
    """Print a Markdown table, row by row as it is measured."""
    print(f"| optimizer | {' | '.join(columns)} |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, configs in rows.items():
        print(f"| {name} | {' | '.join(map(measure, configs))} |", flush=True)


def main() -> None:
    """Measure both tables."""
    print("Accuracy on validation, test (and of the running average)\n")
    rows, schedules = {}, list(optim.SCHEDULES)
    for name in optim.OPTIMIZERS:
        rows[name] = [make_config(optimizer=name, schedule=s) for s in schedules]
    print_table(schedules, rows)
    print()
    for name in optim.OPTIMIZERS:
        rate = optim.resolve(make_config(optimizer=name)).learning_rate
        rates = [rate * factor for factor in RATE_FACTORS]
        rows[name] = [make_config(optimizer=name, learning_rate=r) for r in rates]
    print_table([f"rate x {factor:.2g}" for factor in RATE_FACTORS], rows)


if __name__ == "__main__":
    main()
