"""Writes the files of made-up runs and comparisons, by the contract that they keep."""

import json
import math
import pathlib

import numpy as np
from ml_collections import ConfigDict

from dwsep_jax.config import CONFIGS, load_file
from dwsep_jax.environment import describe_environment

ENVIRONMENT = describe_environment("float32", 0)
ENVIRONMENT["git_commit"] = "0123456789abcdef0123456789abcdef01234567"
ENVIRONMENT["versions"]["dwsep_jax"] = None  # It is not installed.
# Name: parameters, MACs, milliseconds for an image, accuracy above `standard`'s.
VARIANTS = {
    "separable": (223_000, 62_000_000, 1.0, 0.0),
    "standard": (921_000, 244_000_000, 1.6, 0.0),
    "separable_parameters": (915_000, 251_000_000, 3.1, 0.006),
    "separable_macs": (890_000, 243_000_000, 2.9, 0.005),
}
BATCHES = (1, 8, 32, 128)
# Names that a format might take for markup, one for each digit.
NASTY = ["<script>alert(1)</script>", "a|b :tada:", 'say "hi" & $x$', "$5 to $10"]
NASTY += ["{{ x }} %s", "_[x](y)_", "100 % ~~a~~ `b` # \\ &lt;", "\N{GRINNING FACE}"]
NASTY += ["\u05d0\u05d1", "n" * 200]


def write_json(path: pathlib.Path, content: dict) -> None:
    """Write a file of schema 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": 1, **content}, sort_keys=True, allow_nan=False)
    path.write_text(text)


def write_config(
    directory: pathlib.Path, config: str, kind: str = "run", **fields
) -> ConfigDict:
    """Write a config.json: a file of the repository, and fields that differ."""
    config = load_file(str(CONFIGS.parent / config)).copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    parts = dict.fromkeys(("requested", "resolved"), config.to_dict())
    write_json(directory / "config.json", {"kind": kind, **parts})
    return config


def make_rows(num_epochs: int, accuracy: float, seed: int = 0) -> list[dict]:
    """Return the rows of a run that ends near an accuracy."""
    rng = np.random.default_rng(seed)
    rows = []
    for epoch in range(1, num_epochs + 1):
        decay = math.exp(-6 * epoch / num_epochs)
        row = {"schema": 1, "epoch": epoch, "step": 41 * epoch}
        for prefix, gap in (("train", 0.01), ("train_eval", 0.0), ("val", 0.02)):
            noise = 0.01 * rng.standard_normal()
            row[f"{prefix}_loss"] = 2.2 * decay + 3 * (1 - accuracy) + gap + abs(noise)
            row[f"{prefix}_accuracy"] = accuracy - 0.8 * decay - gap / 2
        row |= {"learning_rate": 0.1 * decay, "images_per_second": 1500.0}
        rows.append(row | {"elapsed_seconds": 2.5 * epoch})
    return rows


def make_predictions(names: list[str], accuracy: float, num_examples: int, seed: int):
    """Return ids, labels and probabilities of that accuracy.

    All runs find the same images hard.
    """
    rng = np.random.default_rng(seed)
    labels = (np.arange(num_examples) % len(names)).astype(np.int32)
    hardness = np.random.default_rng(0).permutation(num_examples)
    wrong = hardness >= round(accuracy * num_examples)
    shift = wrong * rng.integers(1, len(names), num_examples)
    predicted = np.eye(len(names))[(labels + shift) % len(names)]
    top = rng.uniform(0.5, 1, (num_examples, 1))
    others = rng.dirichlet(np.full(len(names), 0.1), num_examples)
    probabilities = top * predicted + (1 - top) * others
    ids = np.array([f"test_{i:05d}" for i in range(num_examples)])
    return ids, labels, probabilities.astype(np.float32)


def write_run(
    directory: pathlib.Path,
    *,
    names: list[str] = tuple("0123456789"),
    accuracy: float = 0.98,
    num_examples: int = 360,
    num_epochs: int = 12,
    verdict: str | None = "well_fitted",
    efficiency: dict | None = None,
    seed: int = 0,
) -> dict:
    """Write all files of a run but its config; return its evaluation."""
    from dwsep_jax.train.metrics import calibration, classification_report

    directory.mkdir(parents=True, exist_ok=True)
    rows = make_rows(num_epochs, accuracy, seed)
    lines = [json.dumps(row) + "\n" for row in rows]
    (directory / "metrics.jsonl").write_text("".join(lines))
    found = make_predictions(names, accuracy, num_examples, seed)
    arrays = dict(zip(("id", "label", "probabilities"), found, strict=True))
    np.savez_compressed(directory / "predictions.npz", **arrays)
    evaluation = {"split": "test", "weights": "raw", "epoch": num_epochs}
    evaluation |= {"num_examples": num_examples, "loss": 0.0789}
    evaluation["environment"] = ENVIRONMENT
    evaluation |= classification_report(*found[1:], tuple(names))
    evaluation["calibration"] = calibration(*found[1:])
    write_json(directory / "evaluation.json", evaluation)
    if verdict:
        diagnosis = {"verdict": verdict, "evidence": {"gap": 0.02, "slope": None}}
        diagnosis["evidence"]["num_epochs"] = num_epochs
        diagnosis["advice"] = "Raise num_epochs, and dropout_rate with it."
        write_json(directory / "diagnosis.json", diagnosis)
    if efficiency:
        write_json(directory / "efficiency.json", efficiency)
    return evaluation


def make_efficiency(parameters: int, macs: int, ms_per_image: float) -> dict:
    """Return what efficiency.json holds of a network of these costs."""
    layer = {"name": "stem", "kind": "depthwise", "output_shape": [32, 32, 24]}
    layer |= {"parameters": parameters, "macs": macs, "share": 1.0}
    latency = [
        {"batch_size": size, "dtype": "float32", "median_ms": ms_per_image * (size + 2)}
        | {"p95_ms": 1.2 * ms_per_image * (size + 2), "spread_ms": 0.1 * ms_per_image}
        | {"images_per_second": 1e3 * size / (ms_per_image * (size + 2))}
        for size in BATCHES
    ]
    sizes = {"parameters_bytes": 4 * parameters, "optimizer_bytes": 4 * parameters}
    sizes |= {"activations_bytes": None, "peak_bytes": macs}
    items = {"padding": -macs // 10}
    return {
        "parameters": parameters,
        "macs": macs,
        "layers": [layer],
        "flops": {"xla_forward": 1.95 * macs, "xla_train_step": 5.9 * macs}
        | {"formula_forward": 2 * macs}
        | {"itemized": items, "itemized_train_step": items},
        "latency": latency,
        "train": {"images_per_second": 400 / ms_per_image, "batch_size": 128}
        | {"median_ms": 320 * ms_per_image, "p95_ms": None, "spread_ms": 4.0},
        "compile_seconds": {"inference": {"1": 1.5}, "train": 9.0},
        "achieved_flops_per_second": 2e3 * macs / ms_per_image,
        "achieved_bytes_per_second": 4e9,
        "achieved_by": "inference of 128 images",
        "limited_by": "memory",
        "machine": {"matmul_flops_per_second": 4e11, "copy_bytes_per_second": 9e9},
        "memory": sizes | {"source": dict.fromkeys(sizes, "XLA's memory analysis")},
        "environment": ENVIRONMENT,
    }


def write_comparison(
    directory: pathlib.Path,
    *,
    difference: float = 0.0,
    num_seeds: int = 3,
    num_epochs: int = 4,
    variants: dict = VARIANTS,
    **options,
) -> None:
    """Write a whole comparison.

    Args:
      directory: its workdir.
      difference: accuracy of `separable` minus that of `standard`, a share of 1.
      num_seeds: runs of each variant.
      num_epochs: of each run.
      variants: as `VARIANTS`.
      **options: of `write_run`.
    """
    from dwsep_jax.compare.result import build_comparison
    from dwsep_jax.compare.variants import Variant
    from dwsep_jax.compare.widths import Size

    fields = {"num_epochs": num_epochs, "growth_rate": 12, "progress": False}
    fields |= {"compare.num_seeds": num_seeds, "compare.variants": tuple(variants)}
    config = write_config(directory, "configs/compare.py:digits", **fields)
    options = {"num_examples": 1000, "num_epochs": num_epochs} | options
    rng, made = np.random.default_rng(0), []
    for name, (parameters, macs, ms, gain) in variants.items():
        accuracy = 0.97 + gain + (difference if name == "separable" else 0)
        # A seed that is good for one variant is not for the others.
        offsets = rng.permutation(np.linspace(-1, 1, num_seeds)) / 1000
        for seed, offset in enumerate(offsets if num_seeds > 1 else [0.0]):
            place = directory / name / f"seed{seed}"
            efficiency = make_efficiency(parameters, macs, ms) if seed == 0 else None
            options |= {"accuracy": accuracy + float(offset), "seed": seed}
            write_run(place, efficiency=efficiency, **options)
        words = f"the {name.replace('_', ' by ')} network"
        overrides = {"conv": name.partition("_")[0], "growth_rate": 24}
        made.append(Variant(name, words, overrides, config, Size(parameters, macs)))
    rates = [
        {"factor": factor, "learning_rate": 0.1 * factor, "val_loss": 0.2}
        | {"val_accuracy": 0.95 - abs(factor - 1) / 9, "workdir": "unknown"}
        for factor in (0.333, 1.0, 3.0)
    ]
    rates, seeds = dict.fromkeys(variants, rates), range(num_seeds)
    content = build_comparison(config, made, rates, seeds, directory)
    write_json(directory / "comparison.json", content | {"environment": ENVIRONMENT})
