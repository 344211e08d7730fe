"""What the JSON files of runs, comparisons and sweeps hold, and the checks of that."""

import json
import pathlib
from typing import Any, NamedTuple

from dwsep_jax.errors import UserError

ANSWERS = ("better", "not_worse", "worse", "undecided")
VERDICTS = ("overfitting", "underfitting", "well_fitted", "still_improving", "diverged")


class _Each(NamedTuple):
    """A JSON object of any keys, each of whose values is like `value`."""

    value: Any


class _Maybe(NamedTuple):
    """`value`, or null."""

    value: Any


_NUMBER, _TEXT = (int, float), (str,)
_TYPE_NAMES = {_NUMBER: "a number", _TEXT: "a text"}


def _object(numbers: str = "", maybe_numbers: str = "", texts: str = "", **others: Any):
    """Return the shape of a JSON object: the keys of each type, then the other keys."""
    return {
        **dict.fromkeys(numbers.split(), _NUMBER),
        **dict.fromkeys(maybe_numbers.split(), _Maybe(_NUMBER)),
        **dict.fromkeys(texts.split(), _TEXT),
        **others,
    }


_RUNS = [_object("seed accuracy", texts="workdir")]
_MEAN = _object("n", "mean", ci95=_Maybe([_NUMBER]))
# A shape is a dict (these keys, and others), a list (items like its only one), a tuple
# of types or of texts to choose from, or one of the classes above.
_SHAPES = {
    "config": _object(requested={}, resolved=_object(texts="dataset")),
    "sweep": _object(texts="sampler pruner", space=[_TEXT]),
    "metrics": _object(
        "epoch learning_rate train_loss train_accuracy train_eval_loss "
        "train_eval_accuracy val_loss val_accuracy"
    ),
    "evaluation": _object(
        "epoch num_examples accuracy loss",
        texts="split weights",
        **dict.fromkeys(("precision", "recall", "f1"), _object("macro")),
        per_class=[_object("precision recall f1 support", texts="name")],
        confusion_matrix=[[_NUMBER]],
        calibration=_object(
            "ece nll brier", bins=[_object("low high count", "confidence accuracy")]
        ),
        environment={},
    ),
    "diagnosis": _object(
        texts="advice", verdict=VERDICTS, evidence=_Each(_Maybe(_NUMBER))
    ),
    "efficiency": _object(
        "parameters macs",
        layers=[_object("parameters macs", texts="name kind", output_shape=[_NUMBER])],
        flops=_object(
            maybe_numbers="xla_forward xla_train_step formula_forward",
            itemized=_Each(_Maybe(_NUMBER)),
        ),
        latency=[
            _object(
                "batch_size",
                maybe_numbers="median_ms p95_ms spread_ms images_per_second",
                texts="dtype",
            )
        ],
        environment={},
    ),
    "comparison": _object(
        "num_examples margin num_epochs",
        texts="dataset baseline main reason",
        class_names=[_TEXT],
        seeds=[_NUMBER],
        recipe={},
        variants=_Each(
            _object(
                "parameters macs",
                texts="description",
                runs=_RUNS,
                summary=_Each(_MEAN),
            )
        ),
        paired=_Each(_object("n", texts="against", answer=ANSWERS)),
        per_class=_Each([_object(maybe_numbers="f1_mean", texts="name")]),
        answer=ANSWERS,
        environment={},
    ),
    "best": _object(
        "number",
        texts="dataset sampler pruner command",
        space=[_TEXT],
        num_trials=_object("complete pruned failed"),
        overrides={},
        validation=_object("accuracy epoch"),
        importance=_Maybe(_Each(_NUMBER)),
        finals=[
            _object(
                "number",
                overrides={},
                reasons=[_TEXT],
                runs=_RUNS,
                summary=_object(accuracy=_MEAN),
            )
        ],
        environment={},
    ),
}
_REMEDIES = {
    "config": "choose another --workdir, or delete this one and train again",
    "metrics": "--mode=train on this workdir writes it again from the checkpoint",
    "predictions": "write it again with --mode=evaluate",
    "diagnosis": "delete it, and --mode=report will leave the diagnosis out",
    "efficiency": "write it again with --mode=efficiency",
    "comparison": "repeat the command of the comparison to write it again",
    "best": "repeat the command of the sweep to write it again",
    "trials": "repeat the command of the sweep to write it again",
}


def damaged(path: pathlib.Path, problem: str, line: int | None = None) -> UserError:
    """Return the error of a file, or of a line of it: the problem and the remedy."""
    name, _, split = path.stem.partition("-")
    if name == "evaluation":
        remedy = f"write it again with --mode=evaluate --split={split or 'test'}"
    else:
        remedy = _REMEDIES[name]
    place = path if line is None else f"{path}, line {line}"
    return UserError(f"{place} is damaged ({problem}); {remedy}")


def parse(content: bytes, path: pathlib.Path, line: int | None = None) -> dict:
    """Return the JSON object that a file, or a line of it, holds.

    Args:
      content: what was read.
      path: of the file, whose name says what it must hold.
      line: the number of the line.

    Raises:
      UserError: if it is not JSON, lacks a key, or has a value of another type.
    """
    try:
        value = json.loads(content, parse_constant=_refuse)
        _check(value, _SHAPES[path.stem.partition("-")[0]], "")
    except ValueError as error:
        raise damaged(path, str(error), line) from error
    return value


def check_sweep(resolved: dict[str, Any], path: pathlib.Path) -> None:
    """Raise `UserError` unless the resolved fields of a config.json are a sweep's."""
    try:
        _check(resolved.get("sweep"), _SHAPES["sweep"], "resolved.sweep")
    except ValueError as error:
        raise damaged(path, str(error)) from error


def _refuse(constant):
    raise ValueError(f"{constant} is not a number")


def _check(value: Any, shape: Any, where: str) -> None:
    """Raise ValueError, with the place in the file, where a value does not fit."""
    if isinstance(shape, _Maybe):
        if value is not None:
            _check(value, shape.value, where)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        for i, item in enumerate(value):
            _check(item, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict | _Each):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'it'} must be an object")
        keys = shape if isinstance(shape, dict) else dict.fromkeys(value, shape.value)
        prefix = f"{where}." if where else ""
        if missing := sorted(keys - value.keys()):
            raise ValueError(f"it lacks {prefix}{', '.join(missing)}")
        for key, inner in keys.items():
            _check(value[key], inner, f"{prefix}{key}")
    elif not _fits(value, shape):
        must_be = _TYPE_NAMES.get(shape) or f"one of {', '.join(shape)}"
        raise ValueError(f"{where} must be {must_be}, not {str(value)[:40]!r}")


def _fits(value, shape):
    if isinstance(shape[0], str):
        return value in shape
    return isinstance(value, shape) and not isinstance(value, bool)
