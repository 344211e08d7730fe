"""Writes the files of a made-up sweep on the digits, as --mode=sweep would."""

import csv
import math
import pathlib

import numpy as np

from dwsep_jax.config import CONFIGS, load_file
from dwsep_jax.statistics import summarize_sample
from tests.report import report_files

CHOICES = {
    "activation": ["relu", "leaky_relu", "swish"],
    "optimizer": ["adam", "rmsprop", "sgd"],
    "batch_size": [32, 64, 128],
}
SPACE = [
    "activation=relu|leaky_relu|swish",
    "optimizer=adam|rmsprop|sgd",
    "learning_rate=x0.1..x10 log",
    "batch_size=32|64|128",
    "dropout_rate=0..0.3",
]
NAMES = ["activation", "optimizer", "learning_rate_factor", "batch_size"]
NAMES += ["dropout_rate"]
COLUMNS = ["number", "state", "value", "epochs", *NAMES, "learning_rate", "seconds"]
COLUMNS += ["retry_of", "note"]
WINNER = {"activation": "swish", "optimizer": "adam", "learning_rate_factor": 0.9}
WINNER |= {"batch_size": 64, "dropout_rate": 0.12}
# How far the final of each reason lies below the winner's test accuracy.
LOSSES = {"optimizer=rmsprop": 0.02, "optimizer=sgd": 0.03}
LOSSES |= {"activation=relu": 0.02, "activation=leaky_relu": 0.025}


def make_trials(num_trials: int = 16, num_complete: int = 10, **winner) -> list[dict]:
    """Return rows of trials.csv: 2 wins, the last has diverged, others are pruned.

    Args:
      num_trials: rows.
      num_complete: complete trials besides the winner.
      **winner: settings that differ from `WINNER`.
    """
    rng = np.random.default_rng(0)
    rows = []
    for number in range(num_trials):
        row = {name: rng.choice(values) for name, values in CHOICES.items()}
        row["learning_rate_factor"] = float(10 ** rng.uniform(-1, 1))
        row["dropout_rate"] = float(rng.uniform(0, 0.3))
        row |= WINNER | winner if number == 2 else {}
        distance = abs(math.log10(row["learning_rate_factor"]))
        row |= {"number": number, "state": "complete", "epochs": 12, "seconds": 20.5}
        row["value"] = 0.975 - 0.05 * distance - 0.01 * float(rng.uniform())
        row["learning_rate"] = 5e-3 * row["learning_rate_factor"]
        if number == 2:
            row["value"] = 0.985
        elif number == num_trials - 1:
            row |= {"state": "failed", "value": "", "epochs": 1, "note": "diverged"}
        elif number > num_complete:
            row |= {"state": "pruned", "value": row["value"] - 0.2, "epochs": 3}
        rows.append(row)
    for number, reason in enumerate(LOSSES, start=3):
        field, _, value = reason.partition("=")
        rows[number] |= {**WINNER, **winner, field: value}
    return rows


def write_trials(directory: pathlib.Path, rows: list[dict]) -> None:
    """Write trials.csv, and config.json if there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    if not (directory / "config.json").exists():
        fields = load_file(str(CONFIGS / "sweep.py") + ":digits").to_dict()
        fields |= {"num_epochs": 12}
        fields["sweep"] |= {"space": SPACE, "num_trials": len(rows)}
        content = {"kind": "sweep", "requested": fields, "resolved": fields}
        report_files.write_json(directory / "config.json", content)


def write_sweep(
    directory: pathlib.Path,
    rows: list[dict] | None = None,
    *,
    losses: dict[str, float] | None = None,
    num_seeds: int = 3,
    importance: dict | None = None,
    pruner: str = "median",
    verdict: str = "well_fitted",
    num_examples: int = 500,
) -> None:
    """Write a finished sweep.

    Args:
      directory: its workdir.
      rows: of trials.csv.
      losses: of some reasons, other than `LOSSES`.
      num_seeds: runs of each final.
      importance: of best.json.
      pruner: of best.json.
      verdict: of the diagnosis of every final run.
      num_examples: of the test set.
    """
    rows = rows or make_trials()
    write_trials(directory, rows)
    states = [row["state"] for row in rows]
    overrides = {name.removesuffix("_factor"): rows[2][name] for name in NAMES}
    finals = {"winner": 0.0} | LOSSES | (losses or {})
    best = {"dataset": "digits", "study": "sweep", "sampler": "tpe", "pruner": pruner}
    best |= {"space": SPACE, "number": 2, "overrides": overrides, "command": "python"}
    best["num_trials"] = {s: states.count(s) for s in ("complete", "pruned", "failed")}
    best |= {"validation": {"accuracy": 0.985, "epoch": 12}, "importance": importance}
    best["finals"] = [
        {
            "number": number,
            "overrides": {},
            "reasons": [reason],
            **write_final(directory, number, loss, num_seeds, verdict, num_examples),
        }
        for number, (reason, loss) in enumerate(finals.items(), start=2)
    ]
    best["environment"] = report_files.ENVIRONMENT
    report_files.write_json(directory / "best.json", best)


def write_final(directory, number, loss, num_seeds, verdict, num_examples):
    """Write the runs of a final, and return {runs, summary}."""
    offsets = np.linspace(-0.002, 0.002, num_seeds) if num_seeds > 1 else [0.0]
    runs = []
    # A seed that is good for one final is not for the others.
    for seed, offset in enumerate(np.roll(offsets, number), start=1):
        workdir = f"final/trial{number}/seed{seed}"
        evaluation = report_files.write_run(
            directory / workdir,
            accuracy=0.98 - loss + float(offset),
            num_examples=num_examples,
            verdict=verdict,
            seed=seed,
        )
        run = {"seed": seed, "workdir": workdir, "accuracy": evaluation["accuracy"]}
        runs.append(run | {"val_accuracy": 0.982 - loss + float(offset)})
    summary = {
        key: summarize_sample([run[key] for run in runs])
        for key in ("accuracy", "val_accuracy")
    }
    return {"runs": runs, "summary": summary}
