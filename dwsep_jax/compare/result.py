"""What comparison.json holds, from the files of the runs."""

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dwsep_jax.compare.variants import BASELINE, MAIN, Variant
from dwsep_jax.environment import describe_environment
from dwsep_jax.statistics import (
    answer,
    bootstrap_images,
    compare_pairs,
    summarize_sample,
)
from dwsep_jax.workdir import read_rows, score

_RECIPE = (
    *("optimizer", "learning_rate", "momentum", "weight_decay", "schedule"),
    *("warmup_epochs", "clip_norm", "ema_decay", "batch_size", "early_stopping"),
    *("dropout_rate", "label_smoothing", "flip", "shift", "cutout", "mixup"),
)
_METRICS = (
    *("accuracy", "loss", "precision", "recall", "f1", "ece", "val_accuracy"),
    *("train_seconds", "images_per_second"),
)


class Trial(NamedTuple):
    """What a multiple of the learning rate comes to on validation.

    The accuracy and the loss are None where one was no longer finite.
    """

    factor: float
    learning_rate: float
    val_accuracy: float | None
    val_loss: float | None
    directory: pathlib.Path


def seed_directory(workdir: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Return the place of a variant's run with a seed."""
    return workdir / name / f"seed{seed}"


def build_comparison(
    config: ConfigDict,
    variants: Sequence[Variant],
    trials: dict[str, list[Trial]],
    chosen: dict[str, Trial],
    seeds: Sequence[int],
    workdir: pathlib.Path,
) -> dict[str, Any]:
    """Return the content of comparison.json, from the files of the seeds' runs."""
    evaluations = {
        variant.name: [
            _read_evaluation(seed_directory(workdir, variant.name, seed))
            for seed in seeds
        ]
        for variant in variants
    }
    entries = {
        v.name: _describe_variant(
            v, trials[v.name], chosen[v.name], evaluations[v.name], seeds, workdir
        )
        for v in variants
    }
    margin = config.compare.margin / 100
    paired = compare_with_baseline(entries, workdir, margin)
    some = evaluations[BASELINE][0]
    return {
        "schema": 1,
        "dataset": config.dataset,
        "split": "test",
        "num_examples": some["num_examples"],
        "class_names": [row["name"] for row in some["per_class"]],
        "margin": margin,
        "baseline": BASELINE,
        "main": MAIN,
        "seeds": list(seeds),
        "num_epochs": config.num_epochs,
        "recipe": {name: config[name] for name in _RECIPE},
        "variants": entries,
        "paired": paired,
        "per_class": {n: _average_classes(e) for n, e in evaluations.items()},
        "answer": paired[MAIN]["answer"],
        "reason": paired[MAIN]["reason"],
        "environment": describe_environment(config.dtype, config.seed),
    }


def _describe_variant(variant, trials, chosen, evaluations, seeds, workdir):
    """Return the entry of a variant in comparison.json."""
    runs = []
    for seed, evaluation in zip(seeds, evaluations, strict=True):
        directory = seed_directory(workdir, variant.name, seed)
        rows = read_rows(directory)
        runs.append(
            {
                "seed": seed,
                "workdir": directory.relative_to(workdir).as_posix(),
                "epoch": evaluation["epoch"],
                "accuracy": evaluation["accuracy"],
                "loss": evaluation["loss"],
                "precision": evaluation["precision"]["macro"],
                "recall": evaluation["recall"]["macro"],
                "f1": evaluation["f1"]["macro"],
                "ece": evaluation["calibration"]["ece"],
                "val_accuracy": score(rows[evaluation["epoch"] - 1]),
                "train_seconds": rows[-1]["elapsed_seconds"],
                "images_per_second": statistics.median(
                    row["images_per_second"] for row in rows
                ),
            }
        )
    efficiency = seed_directory(workdir, variant.name, seeds[0]) / "efficiency.json"
    return {
        "description": variant.description,
        "overrides": variant.overrides,
        "parameters": variant.size.parameters,
        "macs": variant.size.macs,
        "conv": variant.config.conv,
        "rates": [
            {
                "factor": trial.factor,
                "learning_rate": trial.learning_rate,
                "val_accuracy": trial.val_accuracy,
                "val_loss": trial.val_loss,
                "workdir": trial.directory.relative_to(workdir).as_posix(),
            }
            for trial in trials
        ],
        "learning_rate": chosen.learning_rate,
        "efficiency": efficiency.relative_to(workdir).as_posix(),
        "runs": runs,
        "summary": {
            metric: summarize_sample([run[metric] for run in runs])
            for metric in _METRICS
        },
    }


def compare_with_baseline(
    entries: dict[str, Any], workdir: pathlib.Path, margin: float
) -> dict[str, Any]:
    """Return the paired differences of each other variant from the baseline.

    Args:
      entries: the variants of comparison.json, with their runs.
      workdir: of the comparison.
      margin: a loss of accuracy that does not matter, as a share of 1.
    """
    accuracies = {
        name: [run["accuracy"] for run in entry["runs"]]
        for name, entry in entries.items()
    }
    correct = {
        name: _read_correct([workdir / run["workdir"] for run in entry["runs"]])
        for name, entry in entries.items()
    }
    paired = {}
    for name in entries:
        if name != BASELINE:
            seeds = compare_pairs(accuracies[name], accuracies[BASELINE])
            images = bootstrap_images(correct[name], correct[BASELINE])
            verdict, reason = answer(seeds, images, margin)
            paired[name] = {"against": BASELINE, **seeds, "bootstrap": images}
            paired[name] |= {"answer": verdict, "reason": reason}
    return paired


def _read_correct(directories):
    """Return whether each run is right on each image, bool (runs, images)."""
    correct = []
    for directory in directories:
        with np.load(directory / "predictions.npz") as arrays:
            order = np.argsort(arrays["id"])
            right = arrays["probabilities"].argmax(axis=1) == arrays["label"]
            correct.append(right[order])
    return np.stack(correct)


def _average_classes(evaluations):
    """Return the mean over the seeds of each class's figures."""
    classes = zip(*(evaluation["per_class"] for evaluation in evaluations), strict=True)
    return [
        {
            "name": rows[0]["name"],
            **{
                f"{key}_mean": statistics.mean(row[key] for row in rows)
                for key in ("f1", "recall", "precision")
            },
        }
        for rows in classes
    ]


def _read_evaluation(directory):
    return json.loads((directory / "evaluation.json").read_bytes())
