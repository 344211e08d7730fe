"""Writes the files of made-up runs and comparisons, by the contract that they keep."""

import json
import math
import pathlib

import numpy as np

from dwsep_jax.config import CONFIGS, load_file
from dwsep_jax.statistics import answer as decide
from dwsep_jax.statistics import summarize_sample as summarize

ENVIRONMENT = {
    "device_kind": "cpu",
    "device_count": 1,
    "platform": "cpu",
    "machine": "Linux",
    "python": "3.11.7",
    "versions": {"jax": "0.10.2", "flax": "0.12.7", "dwsep_jax": None},
    "dtype": "float32",
    "seed": 0,
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
}
# Name: parameters, MACs, milliseconds for an image, accuracy above `standard`'s.
VARIANTS = {
    "separable": (223_000, 62_000_000, 1.0, 0.0),
    "standard": (921_000, 244_000_000, 1.6, 0.0),
    "separable_parameters": (915_000, 251_000_000, 3.1, 0.006),
    "separable_macs": (890_000, 243_000_000, 2.9, 0.005),
}
BATCHES = (1, 8, 32, 128)


def write_json(path: pathlib.Path, content: dict) -> None:
    """Write a file of schema 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": 1, **content}, sort_keys=True, allow_nan=False)
    path.write_text(text)


def write_config(directory: pathlib.Path, config: str, **fields) -> None:
    """Write a config.json: a file of the repository, and fields that differ."""
    config = load_file(str(CONFIGS.parent / config)).copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    parts = dict.fromkeys(("requested", "resolved"), config.to_dict())
    write_json(directory / "config.json", parts)


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
    """Return ids, labels and probabilities of that accuracy."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(num_examples) % len(names)).astype(np.int32)
    wrong = rng.permutation(num_examples) >= round(accuracy * num_examples)
    predicted = (labels + wrong * rng.integers(1, len(names), num_examples)) % len(
        names
    )
    probabilities = rng.dirichlet(np.full(len(names), 0.1), num_examples)
    top = rng.uniform(0.5, 1, num_examples)[:, None]
    probabilities = (1 - top) * probabilities
    probabilities[np.arange(num_examples), predicted] += top[:, 0]
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
    ids, labels, probabilities = make_predictions(names, accuracy, num_examples, seed)
    arrays = {"id": ids, "label": labels, "probabilities": probabilities}
    np.savez_compressed(directory / "predictions.npz", **arrays)
    evaluation = {"split": "test", "weights": "raw", "epoch": num_epochs}
    correct = probabilities.argmax(axis=1) == labels
    evaluation |= {"num_examples": num_examples, "accuracy": float(correct.mean())}
    evaluation |= {"loss": 0.0789, "environment": ENVIRONMENT}
    evaluation |= classification_report(labels, probabilities, tuple(names))
    evaluation["calibration"] = calibration(labels, probabilities)
    write_json(directory / "evaluation.json", evaluation)
    if verdict:
        diagnosis = {"verdict": verdict, "evidence": {"gap": 0.02, "slope": None}}
        diagnosis["advice"] = "Raise num_epochs, and dropout_rate with it."
        write_json(directory / "diagnosis.json", diagnosis)
    if efficiency:
        write_json(directory / "efficiency.json", efficiency)
    return evaluation


def make_efficiency(parameters: int, macs: int, ms_per_image: float) -> dict:
    """Return what efficiency.json holds of a network of these costs."""
    names = ["stem", *(f"block{b}/layer{i}/conv" for b in range(4) for i in range(6))]
    kinds = ["standard", *(["depthwise", "pointwise"] * 12)]
    layers = [
        {"name": name, "kind": kind, "output_shape": [32, 32, 24]}
        | {"parameters": parameters // 25, "macs": macs // 25, "share": 1 / 25}
        for name, kind in zip(names, kinds)
    ]
    layers.append(
        {"name": "norm", "kind": "norm", "output_shape": [4, 4, 300], "parameters": 600}
        | {"macs": 0, "share": 0.0}
    )
    latency = [
        {"batch_size": b, "dtype": "float32", "median_ms": ms_per_image * (b + 2)}
        | {"p95_ms": 1.2 * ms_per_image * (b + 2), "spread_ms": 0.1 * ms_per_image}
        | {"images_per_second": 1e3 * b / (ms_per_image * (b + 2))}
        for b in BATCHES
    ]
    sizes = {"parameters_bytes": 4 * parameters, "optimizer_bytes": 4 * parameters}
    sizes |= {"activations_bytes": 8 * macs // 10, "peak_bytes": macs}
    itemized = {"conv_and_dense": 2 * macs, "padding": -macs // 10, "norm": 9000}
    return {
        "parameters": parameters,
        "macs": macs,
        "layers": layers,
        "flops": {"xla_forward": 1.95 * macs, "xla_train_step": 5.9 * macs}
        | {"formula_forward": 2 * macs, "batch_size": 128, "itemized": itemized}
        | {"itemized_train_step": itemized},
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
    num_seeds: int = 5,
    spread: float = 0.001,
    names: list[str] = tuple("0123456789"),
    num_epochs: int = 12,
    num_examples: int = 2000,
    with_efficiency: bool = True,
    with_diagnosis: bool = True,
    variants: dict = VARIANTS,
) -> dict:
    """Write a whole comparison and return its content.

    Args:
      directory: its workdir.
      difference: accuracy of `separable` minus that of `standard`, a share of 1.
      num_seeds: runs of each variant.
      spread: how far the seeds lie apart.
      names: of the classes.
      num_epochs: of each run.
      num_examples: of test.
      with_efficiency: whether each variant has an efficiency.json.
      with_diagnosis: whether each run has a diagnosis.json.
      variants: as `VARIANTS`.
    """
    rng = np.random.default_rng(0)
    content = make_comparison(names, num_examples, num_epochs, num_seeds)
    fields = {"dataset": "digits", "num_epochs": num_epochs, "growth_rate": 12}
    fields |= {"progress": False, "compare.num_seeds": num_seeds}
    fields["compare.variants"] = tuple(variants)
    write_config(directory, "configs/compare.py:digits", **fields)
    accuracies = {}
    for name, (parameters, macs, ms, gain) in variants.items():
        better = gain + (difference if name == "separable" else 0)
        offsets = spread * np.linspace(-1, 1, num_seeds) if num_seeds > 1 else [0.0]
        efficiency = make_efficiency(parameters, macs, ms) if with_efficiency else None
        evaluations = [
            write_run(
                directory / name / f"seed{seed}",
                names=names,
                accuracy=0.97 + better + float(offset),
                num_examples=num_examples,
                num_epochs=num_epochs,
                verdict="well_fitted" if with_diagnosis else None,
                efficiency=efficiency if seed == 0 else None,
                seed=seed,
            )
            for seed, offset in enumerate(rng.permutation(offsets))
        ]
        entry = make_variant(name, evaluations, num_epochs, with_efficiency)
        content["variants"][name] = entry | {"parameters": parameters, "macs": macs}
        content["per_class"][name] = average_classes(evaluations)
        accuracies[name] = np.array([run["accuracy"] for run in entry["runs"]])
    for name in variants:
        if name != "standard":
            differences = accuracies[name] - accuracies["standard"]
            pair, reason = make_pair(differences, num_examples)
            content["paired"][name] = pair
            if name == "separable":
                content |= {"answer": pair["answer"], "reason": reason}
    write_json(directory / "comparison.json", content)
    return content


def make_comparison(
    names: list[str], num_examples: int, num_epochs: int, num_seeds: int
) -> dict:
    """Return a comparison.json that has no variants yet."""
    content = {"dataset": "digits", "split": "test", "num_examples": num_examples}
    content |= {"class_names": list(names), "margin": 0.005, "baseline": "standard"}
    content |= {"main": "separable", "seeds": list(range(num_seeds))}
    content |= {"num_epochs": num_epochs, "environment": ENVIRONMENT}
    content |= {"recipe": {"optimizer": "sgd", "schedule": "cosine", "batch_size": 128}}
    return content | {"variants": {}, "paired": {}, "per_class": {}}


def make_variant(
    name: str, evaluations: list[dict], num_epochs: int, with_efficiency: bool
) -> dict:
    """Return the entry of a variant, without its size, from its runs' evaluations."""
    runs = []
    for seed, evaluation in enumerate(evaluations):
        run = {"seed": seed, "workdir": f"{name}/seed{seed}", "epoch": num_epochs}
        run |= {"accuracy": evaluation["accuracy"], "loss": evaluation["loss"]}
        run |= {k: evaluation[k]["macro"] for k in ("precision", "recall", "f1")}
        run |= {"ece": evaluation["calibration"]["ece"], "val_accuracy": 0.96}
        runs.append(run | {"train_seconds": 120.0, "images_per_second": 1500.0})
    metrics = [key for key in runs[0] if key not in ("seed", "workdir")]
    rates = []
    for factor in (0.333, 1.0, 3.0):
        rate = {"factor": factor, "learning_rate": 0.1 * factor, "val_loss": 0.2}
        rate |= {"val_accuracy": 0.95 - abs(factor - 1) / 9}
        rates.append(rate | {"workdir": f"{name}/rate{factor}"})
    conv = name.partition("_")[0]
    return {
        "description": f"the {name.replace('_', ' by ')} network",
        "overrides": {"conv": conv, "growth_rate": 24},
        "conv": conv,
        "rates": rates,
        "learning_rate": 0.1,
        "efficiency": f"{name}/seed0/efficiency.json",
        "runs": runs,
        "summary": {key: summarize([r[key] for r in runs]) for key in metrics},
    }


def average_classes(evaluations: list[dict]) -> list[dict]:
    """Return the means over the runs of each class's figures."""
    return [
        {"name": rows[0]["name"]}
        | {
            f"{key}_mean": float(np.mean([row[key] for row in rows]))
            for key in ("f1", "recall", "precision")
        }
        for rows in zip(*(evaluation["per_class"] for evaluation in evaluations))
    ]


def make_pair(differences: np.ndarray, num_images: int) -> tuple[dict, str]:
    """Return the paired difference of a variant and its baseline, and the reason."""
    pair = summarize(differences.tolist())
    ends = [pair["mean"] - 0.002, pair["mean"] + 0.002]
    bootstrap = {"mean": pair["mean"], "ci95": ends, "num_images": num_images}
    answer = decide(pair, bootstrap, 0.005)
    found = {"against": "standard", "bootstrap": bootstrap, "answer": answer.answer}
    return pair | found, answer.reason


HUNDRED_CLASSES = [f"class {i:02d}" for i in range(100)]
