"""The files of a run and of a comparison, checked, as the report takes them."""

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dwsep_jax.errors import UserError
from dwsep_jax.reading import parse, read_evaluation, read_rows

ANSWERS = ("better", "not_worse", "worse", "undecided")
VERDICTS = ("overfitting", "underfitting", "well_fitted", "still_improving", "diverged")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's files; what is not there is None or empty.

    Attributes:
      directory: its workdir.
      config: what config.json holds, {requested, resolved}.
      rows: of metrics.jsonl.
      evaluation: of test.
      others: the evaluations of other splits.
      predictions: {id, label, probabilities} on test.
      diagnosis: of diagnosis.json.
      efficiency: of efficiency.json.
    """

    directory: pathlib.Path
    config: dict[str, Any] | None
    rows: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    others: list[dict[str, Any]]
    predictions: dict[str, np.ndarray] | None
    diagnosis: dict[str, Any] | None
    efficiency: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison's files; dicts are by the names of the variants.

    Attributes:
      directory: its workdir.
      content: of comparison.json.
      config: what config.json holds, {requested, resolved}; None without one.
      efficiency: of each variant, None where it was not measured.
      curves: the rows of each run of a variant that still has them.
      diagnoses: the diagnosis of each run of a variant that has one.
    """

    directory: pathlib.Path
    content: dict[str, Any]
    config: dict[str, Any] | None
    efficiency: dict[str, dict[str, Any] | None]
    curves: dict[str, list[list[dict[str, Any]]]]
    diagnoses: dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A comparison without its comparison.json: the runs that it has begun."""

    directory: pathlib.Path
    runs: dict[str, Run]


class _Each(NamedTuple):
    """A JSON object of any keys, each of whose values is like `value`."""

    value: Any


_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_AVERAGES = {"macro": _NUMBER}
_SHAPES = {
    "evaluation": {
        "split": (str,),
        "weights": (str,),
        "epoch": _NUMBER,
        "num_examples": _NUMBER,
        "accuracy": _NUMBER,
        "loss": _NUMBER,
        "precision": _AVERAGES,
        "recall": _AVERAGES,
        "f1": _AVERAGES,
        "per_class": [
            {"name": (str,), "precision": _NUMBER, "recall": _NUMBER}
            | {"f1": _NUMBER, "support": _NUMBER}
        ],
        "confusion_matrix": [[_NUMBER]],
        "calibration": {
            "ece": _NUMBER,
            "nll": _NUMBER,
            "brier": _NUMBER,
            "bins": [
                {"low": _NUMBER, "high": _NUMBER, "count": _NUMBER}
                | {"confidence": _MAYBE, "accuracy": _MAYBE}
            ],
        },
        "environment": {},
    },
    "diagnosis": {
        "verdict": VERDICTS,
        "evidence": _Each(_MAYBE),
        "advice": (str,),
    },
    "efficiency": {
        "parameters": _NUMBER,
        "macs": _NUMBER,
        "layers": [
            {"name": (str,), "kind": (str,), "output_shape": [_NUMBER]}
            | {"parameters": _NUMBER, "macs": _NUMBER}
        ],
        "flops": {
            "xla_forward": _MAYBE,
            "xla_train_step": _MAYBE,
            "formula_forward": _MAYBE,
            "itemized": _Each(_MAYBE),
        },
        "latency": [
            {"batch_size": _NUMBER, "dtype": (str,), "median_ms": _NUMBER}
            | {"p95_ms": _MAYBE, "spread_ms": _MAYBE, "images_per_second": _MAYBE}
        ],
        "environment": {},
    },
    "comparison": {
        "dataset": (str,),
        "num_examples": _NUMBER,
        "class_names": [(str,)],
        "margin": _NUMBER,
        "baseline": (str,),
        "main": (str,),
        "seeds": [_NUMBER],
        "num_epochs": _NUMBER,
        "recipe": {},
        "variants": _Each(
            {
                "description": (str,),
                "parameters": _NUMBER,
                "macs": _NUMBER,
                "runs": [{"seed": _NUMBER, "workdir": (str,), "accuracy": _NUMBER}],
                "summary": _Each({"n": _NUMBER, "mean": _MAYBE}),
            }
        ),
        "paired": _Each({"against": (str,), "n": _NUMBER, "answer": ANSWERS}),
        "per_class": _Each([{"name": (str,), "f1_mean": _MAYBE}]),
        "answer": ANSWERS,
        "reason": (str,),
        "environment": {},
    },
    "config": {"requested": {}, "resolved": {"dataset": (str,)}},
}
_REMEDIES = {
    "config": "choose another --workdir, or train it anew",
    "diagnosis": "delete it, and --mode=report goes on without the diagnosis",
    "efficiency": "write it again with --mode=efficiency",
    "comparison": "give the command of the comparison again, and it is written anew",
}


def read_workdir(workdir: str | os.PathLike) -> Run | Comparison | Unfinished:
    """Return what a workdir holds.

    Raises:
      UserError: if there is no such directory, nothing to report, or a file is damaged.
    """
    directory = pathlib.Path(workdir)
    if not directory.is_dir():
        raise UserError(
            f"--workdir={workdir}: no such directory; name one that --mode=train or "
            "--mode=compare has written"
        )
    if (directory / "comparison.json").exists():
        return _read_comparison(directory)
    run = read_run(directory)
    if run.rows or run.evaluation or run.others or run.efficiency:
        return run
    begun = sorted(path.parent for path in directory.glob("*/seed*/metrics.jsonl"))
    if begun:
        runs = {str(path.relative_to(directory)): read_run(path) for path in begun}
        return Unfinished(directory, runs)
    raise UserError(
        f"--workdir={workdir}: nothing to report yet (no comparison.json, "
        "metrics.jsonl, evaluation.json, efficiency.json); give it a --mode=train first"
    )


def read_run(directory: pathlib.Path) -> Run:
    """Return the files of a run's workdir; raise `UserError` if one is damaged."""
    evaluations = [
        _read_evaluation(path)
        for name in ("evaluation.json", "evaluation-*.json")
        for path in sorted(directory.glob(name))
    ]
    return Run(
        directory=directory,
        config=_read_json(directory, "config"),
        rows=read_rows(directory),
        evaluation=next((e for e in evaluations if e["split"] == "test"), None),
        others=[e for e in evaluations if e["split"] != "test"],
        predictions=_read_predictions(directory / "predictions.npz"),
        diagnosis=_read_json(directory, "diagnosis"),
        efficiency=_read_json(directory, "efficiency"),
    )


def _read_comparison(directory):
    content = _read_json(directory, "comparison")
    variants = content["variants"]
    for role in ("main", "baseline"):
        if content[role] not in variants:
            raise _damaged(
                directory / "comparison.json",
                f"{role} is {content[role]}, which is none of its variants",
            )
    # Its keys are sorted; people compare the two that the question is about first.
    first = [content["main"], content["baseline"]]
    rest = [name for name in variants if name not in first]
    variants = content["variants"] = {name: variants[name] for name in first + rest}
    efficiency, curves, diagnoses = {}, {}, {}
    for name, variant in variants.items():
        measured = variant.get("efficiency")
        place = (directory / measured).parent if measured else None
        efficiency[name] = _read_json(place, "efficiency") if place else None
        places = [directory / run["workdir"] for run in variant["runs"]]
        curves[name] = [rows for place in places if (rows := read_rows(place))]
        found = [_read_json(place, "diagnosis") for place in places]
        diagnoses[name] = [diagnosis for diagnosis in found if diagnosis]
    config = _read_json(directory, "config")
    return Comparison(directory, content, config, efficiency, curves, diagnoses)


def _read_json(directory, name):
    """Return a file of one schema, checked; None where it is not there."""
    path = directory / f"{name}.json"
    if not path.exists():
        return None
    shape = _SHAPES[name]
    content = parse(path.read_bytes(), shape.keys(), str(path), _REMEDIES[name])
    if content.get("schema") != 1:
        raise _damaged(path, f"its schema is {content.get('schema')}, not 1")
    _check(content, shape, path, "")
    return content


def _read_evaluation(path):
    evaluation = read_evaluation(path)
    _check(evaluation, _SHAPES["evaluation"], path, "")
    names, matrix = evaluation["per_class"], evaluation["confusion_matrix"]
    if {len(names)} != {len(matrix), *map(len, matrix)}:
        raise _damaged(path, f"confusion_matrix is not {len(names)} x {len(names)}")
    return evaluation


def _read_predictions(path):
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in ("id", "label", "probabilities")}
    except Exception as error:  # A damaged archive raises what it meets first.
        raise _damaged(path, str(error)) from error
    sizes = {len(array) for array in found.values()}
    if found["probabilities"].ndim != 2 or len(sizes) != 1:
        raise _damaged(path, "its arrays do not belong together")
    return found


def _check(value, shape, path, where):
    """Raise `UserError` unless a JSON value is of a shape: see `_SHAPES`."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise _damaged(path, f"{where} must be a list")
        for i, item in enumerate(value):
            _check(item, shape[0], path, f"{where}[{i}]")
    elif isinstance(shape, dict | _Each):
        if not isinstance(value, dict):
            raise _damaged(path, f"{where} must be an object")
        inner = shape if isinstance(shape, dict) else dict.fromkeys(value, shape.value)
        for key, item_shape in inner.items():
            place = f"{where}.{key}" if where else key
            if key not in value:
                raise _damaged(path, f"it lacks {place}")
            _check(value[key], item_shape, path, place)
    elif not _fits(value, shape):
        names = {int: "a number", str: "a text"}
        must_be = names.get(shape[0]) or f"one of {', '.join(shape)}"
        raise _damaged(path, f"{where} must be {must_be}, not {str(value)[:40]!r}")


def _fits(value, shape):
    if isinstance(shape[0], str):
        return value in shape
    return isinstance(value, shape) and not isinstance(value, bool)


def _damaged(path, problem):
    if path.stem.startswith(("evaluation", "predictions")):
        remedy = "write it again with --mode=evaluate"
    else:
        remedy = _REMEDIES[path.stem]
    return UserError(f"{path} is damaged ({problem}); {remedy}")
