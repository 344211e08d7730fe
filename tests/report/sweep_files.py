"""Writes the files of a made-up sweep, by the contract that they keep."""

import csv
import math
import pathlib

import numpy as np

from dwsep_jax.cli import CONFIGS, load_file
from dwsep_jax.config import to_dict
from tests.report import report_files

CHOICES = {"activation": ["relu", "leaky_relu", "swish"]}
CHOICES |= {"optimizer": ["adam", "rmsprop", "sgd"], "batch_size": [32, 64, 128]}
RANGES = {"learning_rate_factor": (0.1, 10.0, True), "dropout_rate": (0.0, 0.3, False)}
SPACE = [
    "activation=relu|leaky_relu|swish",
    "optimizer=adam|rmsprop|sgd",
    "learning_rate=x0.1..x10 log",
    "batch_size=32|64|128",
    "dropout_rate=0..0.3",
]
NAMES = ["activation", "optimizer", "learning_rate_factor", "batch_size"]
NAMES += ["dropout_rate"]
RATES = {"adam": 5e-3, "rmsprop": 5e-4, "sgd": 0.1}
WINNER = {"activation": "swish", "optimizer": "adam", "learning_rate_factor": 0.9}
WINNER |= {"batch_size": 64, "dropout_rate": 0.12}
COLUMNS = ["number", "state", "value", "epochs", *NAMES, "learning_rate", "seconds"]
COLUMNS += ["retry_of", "note"]


def make_axes() -> list[dict]:
    """Return the axes as best.json holds them."""
    axes = []
    for name in NAMES:
        axis = {"name": name, "field": name.removesuffix("_factor"), "log": False}
        axis |= {"kind": "choice", "low": None, "high": None, "choices": None}
        if name in CHOICES:
            axis["choices"] = CHOICES[name]
        else:
            low, high, log = RANGES[name]
            axis |= {"kind": "float", "low": low, "high": high, "log": log}
        axes.append(axis)
    return axes


def make_trials(num_trials: int, num_complete: int, winner: dict) -> list[dict]:
    """Return rows of trials.csv: number 2 wins, one has failed, the rest is pruned."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(num_trials):
        settings = {name: str(rng.choice(values)) for name, values in CHOICES.items()}
        settings["learning_rate_factor"] = float(10 ** rng.uniform(-1, 1))
        settings["dropout_rate"] = float(rng.uniform(0, 0.3))
        settings = winner if number == 2 else settings
        distance = abs(math.log10(settings["learning_rate_factor"]))
        value = 0.975 - 0.05 * distance - 0.01 * float(rng.uniform())
        row = {"number": number, "state": "complete", "value": value, "epochs": 12}
        row |= settings | {"seconds": 20.5, "retry_of": "", "note": ""}
        factor = settings["learning_rate_factor"]
        row["learning_rate"] = RATES[settings["optimizer"]] * factor
        if number == 2:
            row["value"] = 0.985
        elif number == num_trials - 1:
            row |= {"state": "failed", "value": "", "note": "diverged", "epochs": 1}
        elif number > num_complete:
            row |= {"state": "pruned", "value": value - 0.2, "epochs": 3}
        rows.append({name: row[name] for name in COLUMNS})
    return rows


def write_trials(directory: pathlib.Path, rows: list[dict]) -> None:
    """Write trials.csv."""
    with (directory / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_sweep(
    directory: pathlib.Path,
    *,
    losses: dict[str, float] | None = None,
    num_trials: int = 16,
    num_complete: int = 10,
    num_seeds: int = 3,
    winner: dict | None = None,
    importance: dict | None = None,
    pruner: str = "median",
    verdict: str = "well_fitted",
    num_examples: int = 1000,
    finished: bool = True,
) -> dict:
    """Write a whole sweep and return what best.json holds.

    Args:
      directory: its workdir.
      losses: how far each reason's final lies below the winner's test accuracy.
      num_trials: rows of trials.csv.
      num_complete: of them, besides the winner.
      num_seeds: runs of each final.
      winner: settings that differ from `WINNER`.
      importance: of best.json; None is "not known".
      pruner: of the config.
      verdict: of the finals' diagnosis.
      num_examples: of test.
      finished: whether there is a best.json, and finals.
    """
    directory.mkdir(parents=True, exist_ok=True)
    winner = WINNER | (winner or {})
    fields = {"pruner": pruner, "num_trials": num_trials, "num_seeds": num_seeds}
    write_config(directory, fields)
    losses = dict(losses or {"optimizer=rmsprop": 0.02, "optimizer=sgd": 0.03})
    losses |= {} if len(losses) > 2 else {"activation=relu": 0.02}
    rows = make_trials(num_trials, num_complete, winner)
    for number, reason in enumerate(losses, start=3):
        field, _, value = reason.partition("=")
        rows[number] |= {**winner, field: value}
    write_trials(directory, rows)
    if not finished:
        return {}
    overrides = make_overrides(winner)
    best = make_best(rows, overrides, pruner, importance)
    own = [f"{name}={winner[name]}" for name in ("optimizer", "activation")]
    finals = {"winner": (2, overrides, ["winner", *own], 0.0)}
    for number, (reason, loss) in enumerate(losses.items(), start=3):
        values = make_overrides(rows[number])
        finals[reason] = number, values, [reason], loss
    for number, values, reasons, loss in finals.values():
        final = write_final(directory, number, loss, num_seeds, verdict, num_examples)
        best["finals"].append(final | {"overrides": values, "reasons": reasons})
    report_files.write_json(directory / "best.json", best)
    return best


def make_best(
    rows: list[dict], overrides: dict, pruner: str, importance: dict | None
) -> dict:
    """Return a best.json that has no finals yet."""
    states = [row["state"] for row in rows]
    best = {"dataset": "digits", "study": "sweep", "sampler": "tpe", "pruner": pruner}
    best |= {"space": SPACE, "axes": make_axes(), "number": 2, "overrides": overrides}
    best["num_trials"] = {s: states.count(s) for s in ("complete", "pruned", "failed")}
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    command = ["python main.py --config=configs/digits.py", *flags]
    best |= {"command": " \\\n  ".join(command), "importance": importance}
    best |= {"validation": {"accuracy": 0.985, "epoch": 12}, "finals": []}
    return best | {"environment": report_files.ENVIRONMENT}


def write_config(directory: pathlib.Path, changes: dict) -> None:
    """Write the config.json of a sweep on digits."""
    fields = to_dict(load_file(str(CONFIGS / "sweep.py") + ":digits"))
    fields["num_epochs"] = 12
    fields["sweep"] |= {"space": SPACE} | changes
    content = {"kind": "sweep", "requested": fields, "resolved": fields}
    report_files.write_json(directory / "config.json", content)


def make_overrides(settings: dict) -> dict:
    """Return the fields of a trial, with its rate and not the multiple."""
    fields = {name.removesuffix("_factor"): settings[name] for name in NAMES}
    rate = RATES[settings["optimizer"]] * settings["learning_rate_factor"]
    return fields | {"learning_rate": rate}


def write_final(directory, number, loss, num_seeds, verdict, num_examples):
    """Write the runs of a final and return its entry, without what it is."""
    runs = []
    offsets = np.linspace(-0.002, 0.002, num_seeds) if num_seeds > 1 else [0.0]
    offsets = np.roll(offsets, number)  # Seeds that are good for one are so for few.
    for seed, offset in enumerate(offsets, start=1):
        workdir = f"final/trial{number}/seed{seed}"
        evaluation = report_files.write_run(
            directory / workdir,
            accuracy=0.98 - loss + float(offset),
            num_examples=num_examples,
            verdict=verdict,
            seed=seed,
        )
        run = {"seed": seed, "workdir": workdir, "accuracy": evaluation["accuracy"]}
        run |= {"loss": evaluation["loss"], "f1": evaluation["f1"]["macro"]}
        runs.append(run | {"val_accuracy": 0.982 - loss + float(offset), "epoch": 12})
    summary = {
        key: report_files.summarize([run[key] for run in runs])
        for key in ("accuracy", "val_accuracy")
    }
    final = {"number": number, "directory": f"final/trial{number}"}
    return final | {"runs": runs, "summary": summary}
