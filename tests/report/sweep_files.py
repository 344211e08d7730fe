"""Writes the files of a made-up sweep on the digits, as --mode=sweep would."""

import math
import pathlib
from collections import Counter

import numpy as np

from dwsep_jax import trials
from dwsep_jax.space import parse_space
from dwsep_jax.statistics import summarize_sample
from dwsep_jax.trials import Trial
from tests.report import report_files

SPACE = (
    *("activation=relu|leaky_relu|swish", "optimizer=adam|rmsprop|sgd"),
    *("learning_rate=x0.1..x10 log", "batch_size=32|64|128", "dropout_rate=0..0.3"),
)
AXES = parse_space(SPACE)
NAMES = [axis.name for axis in AXES]
WINNER = {"activation": "swish", "optimizer": "adam", "learning_rate_factor": 0.9}
WINNER |= {"batch_size": 64, "dropout_rate": 0.12}
# How far the final of each reason lies below the winner's test accuracy.
LOSSES = {"optimizer=rmsprop": 0.02, "optimizer=sgd": 0.03}
LOSSES |= {"activation=relu": 0.02, "activation=leaky_relu": 0.025}


def make_trials(num_trials: int = 16, num_complete: int = 10, **winner) -> list[Trial]:
    """Return trials: 2 wins, 3 to 6 are the other finals, and the last has diverged.

    Args:
      num_trials: at least 8.
      num_complete: complete trials besides the winner; others are pruned.
      **winner: settings that differ from `WINNER`.
    """
    rng, made = np.random.default_rng(0), []
    changes = [{}, {}, {}, *(dict([reason.split("=")]) for reason in LOSSES)]
    for number in range(num_trials):
        settings = {
            axis.name: rng.choice(axis.choices).item()
            if axis.choices
            else float(rng.uniform(axis.low, axis.high))
            for axis in AXES
        }
        if 2 <= number < len(changes):
            settings |= WINNER | winner | changes[number]
        factor = settings["learning_rate_factor"]
        settings["learning_rate"] = 5e-3 * factor
        value = 0.975 - 0.05 * abs(math.log10(factor)) - 0.01 * float(rng.uniform())
        trial = Trial(number, "complete", value, 12, 20.5, None, None, settings)
        if number == 2:
            trial = trial._replace(value=0.985)
        elif number == num_trials - 1:
            failed = {"state": "failed", "value": None, "epochs": 1}
            trial = trial._replace(**failed, note="diverged")
        elif number > num_complete:
            trial = trial._replace(state="pruned", value=value - 0.2, epochs=3)
        made.append(trial)
    return made


def write_trials(directory: pathlib.Path, made: list[Trial]) -> None:
    """Write trials.csv, and config.json if there is none."""
    if not (directory / "config.json").exists():
        fields = {"num_epochs": 12, "sweep.space": SPACE, "sweep.num_trials": len(made)}
        name = "configs/sweep.py:digits"
        report_files.write_config(directory, name, kind="sweep", **fields)
    trials.write_trials(directory / "trials.csv", made, AXES)


def write_sweep(
    directory: pathlib.Path,
    made: list[Trial] | None = None,
    *,
    losses: dict[str, float] | None = None,
    num_seeds: int = 3,
    importance: dict | None = None,
    num_examples: int = 500,
    **options,
) -> None:
    """Write a finished sweep.

    Args:
      directory: its workdir.
      made: its trials.
      losses: of some reasons, other than `LOSSES`.
      num_seeds: runs of each final.
      importance: of best.json.
      num_examples: of the test set.
      **options: of `report_files.write_run`.
    """
    made = made or make_trials()
    write_trials(directory, made)
    states = Counter(trial.state for trial in made)
    best = {"dataset": "digits", "sampler": "tpe", "pruner": "median", "space": SPACE}
    best |= {"number": 2, "overrides": made[2].settings, "command": "python main.py"}
    best["num_trials"] = {s: states[s] for s in ("complete", "pruned", "failed")}
    best |= {"validation": {"accuracy": 0.985, "epoch": 12}, "importance": importance}
    best |= {"environment": report_files.ENVIRONMENT, "finals": []}
    reasons = {"winner": 0.0} | LOSSES | (losses or {})
    for number, (reason, loss) in enumerate(reasons.items(), start=2):
        # A seed that is good for one final is not for the others.
        offsets = np.roll(np.linspace(-1, 1, num_seeds), number) / 500
        runs = []
        for seed, offset in enumerate(offsets if num_seeds > 1 else [0.0], start=1):
            workdir = f"final/trial{number}/seed{seed}"
            accuracy = 0.98 - loss + float(offset)
            options |= {"num_examples": num_examples, "accuracy": accuracy}
            evaluation = report_files.write_run(directory / workdir, **options)
            run = {"seed": seed, "workdir": workdir, "val_accuracy": accuracy + 0.002}
            runs.append(run | {"accuracy": evaluation["accuracy"]})
        summary = {
            key: summarize_sample([run[key] for run in runs])
            for key in ("accuracy", "val_accuracy")
        }
        final = {"number": number, "overrides": {}, "reasons": [reason]}
        best["finals"].append(final | {"runs": runs, "summary": summary})
    report_files.write_json(directory / "best.json", best)
