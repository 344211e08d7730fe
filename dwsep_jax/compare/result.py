"""What comparison.json holds, from the files of the runs."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dwsep_jax.compare.variants import BASELINE, MAIN, Variant
from dwsep_jax.environment import describe_environment
from dwsep_jax.errors import UserError
from dwsep_jax.statistics import compare_networks, summarize_sample
from dwsep_jax.train.runs import describe_result
from dwsep_jax.workdir import read_json, read_rows

_METRICS = (
    *("accuracy", "loss", "precision", "recall", "f1", "ece", "val_accuracy"),
    *("train_seconds", "images_per_second"),
)

# An entry of `rates` in comparison.json: what a multiple of the learning rate reaches
# on validation. `val_accuracy` and `val_loss` are None if the run diverged.
Rate = dict[str, Any]


def choose_rate(name: str, rates: Sequence[Rate]) -> Rate:
    """Return the rate of the best validation accuracy; in a tie, the smallest loss.

    Raises:
      UserError: if the runs of a variant, its name, diverged at all of them.
    """
    finite = [rate for rate in rates if rate["val_accuracy"] is not None]
    if not finite:
        tried = ", ".join(f"{rate['learning_rate']:.3g}" for rate in rates)
        raise UserError(
            f"{name} diverges at every rate, {tried}; choose a lower "
            "--config.learning_rate, or --config.clip_norm=1, and another --workdir"
        )
    return max(finite, key=lambda rate: (rate["val_accuracy"], -rate["val_loss"]))


def build_comparison(
    config: ConfigDict,
    variants: Sequence[Variant],
    rates: Mapping[str, Sequence[Rate]],
    seeds: Sequence[int],
    workdir: pathlib.Path,
) -> dict[str, Any]:
    """Return the content of comparison.json, from the files of these seeds' runs."""
    entries, per_class = {}, {}
    for variant in variants:
        name = variant.name
        places = [f"{name}/seed{seed}" for seed in seeds]
        evaluations = [read_json(workdir / place, "evaluation") for place in places]
        runs = [
            describe_result(workdir, place, seed) | _describe_rest(workdir / place)
            for place, seed in zip(places, seeds, strict=True)
        ]
        per_class[name] = _average_classes(evaluations)
        entries[name] = {
            "description": variant.description,
            "overrides": variant.overrides,
            **variant.size._asdict(),
            "conv": variant.config.conv,
            "rates": rates[name],
            "learning_rate": choose_rate(name, rates[name])["learning_rate"],
            "efficiency": f"{places[0]}/efficiency.json",
            "runs": runs,
            "summary": {
                metric: summarize_sample([run[metric] for run in runs])
                for metric in _METRICS
            },
        }
    margin = config.compare.margin / 100
    paired = compare_with_baseline(entries, workdir, margin)
    return {
        "schema": 1,
        "dataset": config.dataset,
        "split": "test",
        "num_examples": evaluations[0]["num_examples"],
        "class_names": [row["name"] for row in per_class[BASELINE]],
        "margin": margin,
        "baseline": BASELINE,
        "main": MAIN,
        "seeds": list(seeds),
        "num_epochs": config.num_epochs,
        "variants": entries,
        "paired": paired,
        "per_class": per_class,
        "answer": paired[MAIN]["answer"],
        "reason": paired[MAIN]["reason"],
        "environment": describe_environment(config.dtype, config.seed),
    }


def _describe_rest(directory):
    """Return what `runs` says besides `describe_result`."""
    evaluation, rows = read_json(directory, "evaluation"), read_rows(directory)
    return {
        **{key: evaluation[key]["macro"] for key in ("precision", "recall")},
        "ece": evaluation["calibration"]["ece"],
        "train_seconds": rows[-1]["elapsed_seconds"],
        "images_per_second": statistics.median(r["images_per_second"] for r in rows),
    }


def _average_classes(evaluations):
    """Return the mean over the seeds of each class's figures."""
    classes = zip(*(evaluation["per_class"] for evaluation in evaluations), strict=True)
    return [
        {"name": rows[0]["name"]}
        | {
            f"{key}_mean": statistics.mean(row[key] for row in rows)
            for key in ("f1", "recall", "precision")
        }
        for rows in classes
    ]


def compare_with_baseline(
    entries: Mapping[str, Any], workdir: pathlib.Path, margin: float
) -> dict[str, Any]:
    """Return the paired differences of every other variant from the baseline.

    Args:
      entries: the variants of comparison.json, with their runs.
      workdir: of the comparison.
      margin: the loss of accuracy that is acceptable, as a share of 1.
    """

    def read(name):
        runs = entries[name]["runs"]
        correct = [_read_correct(workdir / run["workdir"]) for run in runs]
        return [run["accuracy"] for run in runs], np.stack(correct)

    paired, baseline = {}, read(BASELINE)
    for name in entries:
        if name != BASELINE:
            accuracies, correct = zip(read(name), baseline, strict=True)
            difference = compare_networks(accuracies, correct, margin)
            paired[name] = {"against": BASELINE, **difference}
    return paired


def _read_correct(directory):
    """Return whether a run is right on each image, ordered by id, bool (images,)."""
    with np.load(directory / "predictions.npz") as arrays:
        right = arrays["probabilities"].argmax(axis=1) == arrays["label"]
        return right[np.argsort(arrays["id"])]
