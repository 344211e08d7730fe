"""What the JSON files of runs, comparisons and sweeps must hold, and their checks."""

import pathlib
from typing import Any, NamedTuple

from dwsep_jax.config import upgrade
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.workdir import parse

ANSWERS = ("better", "not_worse", "worse", "undecided")
VERDICTS = ("overfitting", "underfitting", "well_fitted", "still_improving", "diverged")
AXIS_KINDS = ("choice", "float", "int")


class _Each(NamedTuple):
    """A JSON object of any keys, each of whose values is like `value`."""

    value: Any


class _Maybe(NamedTuple):
    """`value`, or null."""

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
    "best": {
        "dataset": (str,),
        "sampler": (str,),
        "pruner": (str,),
        "axes": [
            {"name": (str,), "field": (str,), "kind": AXIS_KINDS, "log": (bool,)}
            | {"low": _MAYBE, "high": _MAYBE}
        ],
        "num_trials": {"complete": _NUMBER, "pruned": _NUMBER, "failed": _NUMBER},
        "number": _NUMBER,
        "overrides": {},
        "command": (str,),
        "validation": {"accuracy": _NUMBER, "epoch": _NUMBER},
        "importance": _Maybe(_Each(_NUMBER)),
        "finals": [
            {"number": _NUMBER, "overrides": {}, "reasons": [(str,)]}
            | {
                "runs": [{"seed": _NUMBER, "workdir": (str,), "accuracy": _NUMBER}],
                "summary": {"accuracy": {"n": _NUMBER, "mean": _MAYBE}},
            }
        ],
        "environment": {},
    },
    "config": {"requested": {}, "resolved": {"dataset": (str,)}},
}
_REMEDIES = {
    "config": "choose another --workdir, or train it anew",
    "diagnosis": "delete it, and --mode=report goes on without the diagnosis",
    "efficiency": "write it again with --mode=efficiency",
    "comparison": "give the command of the comparison again, and it is written anew",
    "best": "give the command of the sweep again, and it is written anew",
    "trials": "give the command of the sweep again, and it is written anew",
}


def read_json(directory: pathlib.Path, name: str) -> dict[str, Any] | None:
    """Return `<name>.json` of a workdir, checked; None where it is not there.

    Raises:
      UserError: if it is damaged.
    """
    path = directory / f"{name}.json"
    if not path.exists():
        return None
    shape = _SHAPES[name]
    content = parse(path.read_bytes(), shape.keys(), str(path), _REMEDIES[name])
    if content.get("schema") != 1:
        raise damaged(path, f"its schema is {content.get('schema')}, not 1")
    _check(content, shape, path, "")
    if name == "config":
        try:
            parts = {part: upgrade(content[part]) for part in shape}
        except ConfigError as error:
            raise damaged(path, str(error)) from error
        content |= parts
    return content


def check(value: Any, name: str, path: pathlib.Path) -> None:
    """Raise `UserError` unless what a file holds is what files of that name hold."""
    _check(value, _SHAPES[name], path, "")


def _check(value, shape, path, where):
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise damaged(path, f"{where} must be a list")
        for i, item in enumerate(value):
            _check(item, shape[0], path, f"{where}[{i}]")
    elif isinstance(shape, dict | _Each):
        if not isinstance(value, dict):
            raise damaged(path, f"{where} must be an object")
        inner = shape if isinstance(shape, dict) else dict.fromkeys(value, shape.value)
        for key, item_shape in inner.items():
            place = f"{where}.{key}" if where else key
            if key not in value:
                raise damaged(path, f"it lacks {place}")
            _check(value[key], item_shape, path, place)
    elif isinstance(shape, _Maybe):
        if value is not None:
            _check(value, shape.value, path, where)
    elif not _fits(value, shape):
        names = {int: "a number", str: "a text", bool: "true or false"}
        must_be = names.get(shape[0]) or f"one of {', '.join(shape)}"
        raise damaged(path, f"{where} must be {must_be}, not {str(value)[:40]!r}")


def _fits(value, shape):
    if isinstance(shape[0], str):
        return value in shape
    return isinstance(value, shape) and (bool in shape or not isinstance(value, bool))


def damaged(path: pathlib.Path, problem: str) -> UserError:
    """Return the error of a file: what is wrong with it, and what to do."""
    if path.stem.startswith(("evaluation", "predictions")):
        remedy = "write it again with --mode=evaluate"
    else:
        remedy = _REMEDIES[path.stem]
    return UserError(f"{path} is damaged ({problem}); {remedy}")
