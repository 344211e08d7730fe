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
from typing import Any

from ml_collections import ConfigDict

from benchmarks.timing import print_header, print_row, start
from configs import digits
from dwsep_jax import console, data
from dwsep_jax.train import loop, optim
from dwsep_jax.train.evaluation import evaluate
from dwsep_jax.train.step import averaged

NUM_EPOCHS = 15
RATE_FACTORS = (1 / 3, 1, 3)


def make_config(rate_factor: float = 1.0, **changes: str) -> ConfigDict:
    """Return the digits configuration, shortened, with an average of the weights."""
    config = digits.get_config()
    config.update(num_epochs=NUM_EPOCHS, ema_decay=0.99, progress=False, **changes)
    config.learning_rate = rate_factor * optim.resolve(config).learning_rate
    return config


def measure(config: ConfigDict) -> str:
    """Train, and return one cell of the table."""
    dataset = data.load(config)
    config = loop.resolve(config, dataset)
    begin = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as workdir,
        console.logged(os.devnull),
        loop.open_member(config, workdir, dataset) as member,
    ):
        loop.train([member])
    if member.error is not None:
        return f"stopped: {str(member.error).partition(';')[0]}"
    state, last = member.state, member.history[-1]
    raw, _ = evaluate(state, dataset.test, config.eval_batch_size)
    ema, _ = evaluate(averaged(state), dataset.test, config.eval_batch_size)
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return (
        f"{last['val_accuracy']:.1%}, {raw['accuracy']:.2%} (average: "
        f"{last['ema_val_accuracy']:.1%}, {ema['accuracy']:.2%})"
    )


def measure_all(columns: list[str], changes: list[dict[str, Any]]) -> None:
    """Print a table: a row for each optimizer, a column for each change."""
    print_header("optimizer", *columns)
    for name in optim.OPTIMIZERS:
        cells = [measure(make_config(optimizer=name, **change)) for change in changes]
        print_row(name, *cells)


def main() -> None:
    """Measure both tables."""
    start(__doc__)
    print("Accuracy on validation, test (and of the running average)\n")
    measure_all(list(optim.SCHEDULES), [{"schedule": s} for s in optim.SCHEDULES])
    print()
    columns = [f"rate x {factor:.2g}" for factor in RATE_FACTORS]
    measure_all(columns, [{"rate_factor": factor} for factor in RATE_FACTORS])


if __name__ == "__main__":
    main()
