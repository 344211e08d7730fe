"""What the JSON files of runs, comparisons and sweeps hold, and the checks of that."""

import json
import pathlib
from typing import Any

from dwsep_jax.errors import UserError
from dwsep_jax.fields import COMPARISON, RUN, SWEEP

ANSWERS = ("better", "not_worse", "worse", "undecided")
VERDICTS = ("overfitting", "underfitting", "well_fitted", "still_improving", "diverged")


def _is_number(value, low=-1e100, high=1e100):
    # Not a bool, and not too large for the arithmetic of a report.
    return type(value) in (int, float) and low <= value <= high


def _one_of(choices):
    return choices.__contains__, f"one of {', '.join(choices)}"


# Kinds of values: the check, and the words of an error.
_VALUES = {
    "number": (_is_number, "a number"),
    "share": (lambda value: _is_number(value, 0, 1), "a number from 0 to 1"),
    "size": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "count": (lambda value: type(value) is int and _is_number(value, 0), "a count"),
    "interval": (
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_number, v)),
        "a list of two numbers",
    ),
    "text": (lambda value: isinstance(value, str), "a text"),
    "setting": (lambda value: not isinstance(value, dict), "the value of a field"),
    "answer": _one_of(ANSWERS),
    "verdict": _one_of(VERDICTS),
    "kind": _one_of((RUN, COMPARISON, SWEEP)),
    "limit": _one_of(("arithmetic", "memory", "neither")),
}
# Kinds of objects: "key:kind" for each key that is read; others may be beside them. Of
# a kind, [kind] is a list, {kind} an object of any keys, kind? may be null, and key?
# may be missing. The files are named like their kinds.
_OBJECTS = {
    "config": "requested:fields resolved:fields kind?:kind",
    "fields": "",  # see `dwsep_jax.fields`
    "environment": "device_kind:text device_count:count platform:text machine:text "
    "python:text versions:{text?} dtype:text git_commit:text?",
    "metrics": "epoch:count step:count train_loss:number train_accuracy:share "
    "train_eval_loss:number train_eval_accuracy:share val_loss:number "
    "val_accuracy:share ema_val_loss?:number ema_val_accuracy?:share "
    "learning_rate:number images_per_second?:number elapsed_seconds?:number",
    "evaluation": "split:text weights:text epoch:count num_examples:size loss:number "
    "accuracy:share precision:averages recall:averages f1:averages "
    "per_class:[class] confusion_matrix:[[count]] calibration:calibration "
    "environment:environment temperature?:size calibrated?:calibrated "
    "image_shape?:[count]",
    "calibrated": "ece:number nll:number",
    "averages": "macro:share weighted:share micro:share",
    "class": "name:text precision:share recall:share f1:share support:count",
    "calibration": "ece:number nll:number brier:number bins:[bin]",
    "bin": "low:share high:share count:count confidence:share? accuracy:share?",
    "diagnosis": "verdict:verdict evidence:{number?} advice:text",
    "efficiency": "parameters:count macs:count layers:[layer] flops:flops "
    "latency:[latency] train:training memory:memory machine:machine "
    "compile_seconds:compiled achieved_flops_per_second:number? "
    "achieved_bytes_per_second:number? achieved_by:text? limited_by:limit? "
    "environment:environment",
    "compiled": "train:number? inference:{number?}",
    "layer": "name:text kind:text output_shape:[count] parameters:count macs:count "
    "share:number",
    "flops": "xla_forward:number? xla_train_step:number? formula_forward:number "
    "itemized:{number?} itemized_train_step:{number?}",
    "latency": "batch_size:count dtype:text median_ms:number? p95_ms:number? "
    "spread_ms:number? images_per_second:number?",
    "training": "batch_size:count median_ms:number? p95_ms:number? spread_ms:number? "
    "images_per_second:number?",
    "memory": "parameters_bytes:number optimizer_bytes:number "
    "activations_bytes:number? peak_bytes:number? source:{text}",
    "machine": "matmul_flops_per_second:number? copy_bytes_per_second:number?",
    "run": "seed:count workdir:text accuracy:share val_accuracy?:share f1?:share "
    "train_seconds?:number",
    "summary": "n:count mean:number std:number? ci95:interval?",
    "comparison": "dataset:text num_examples:size num_epochs:count margin:share "
    "baseline:text main:text class_names:[text] seeds:[count] "
    "variants:{variant} paired:{pair} per_class:{[f1]} answer:answer reason:text "
    "environment:environment",
    "variant": "description:text parameters:size macs:size overrides:{setting} "
    "learning_rate:number rates:[rate] efficiency:text runs:[run] summary:scores",
    "scores": "accuracy:summary f1:summary ece:summary",
    "rate": "learning_rate:number val_accuracy:share?",
    "pair": "n:count mean:number std:number? ci95:interval? bootstrap:bootstrap "
    "against:text answer:answer",
    "bootstrap": "ci95:interval",
    "f1": "f1_mean:share",
    "best": "dataset:text sampler:text pruner:text command:text space:[text] "
    "number:count num_trials:states overrides:{setting} validation:reached "
    "importance:{number}? refit_epochs?:count? finals:[final] "
    "environment:environment",
    "manifest": "files:{text} class_names:[text] images:images",
    "images": "shape:[setting]",
    "states": "complete:count pruned:count failed:count",
    "reached": "accuracy:share epoch:count",
    "final": "number:count overrides:{setting} reasons:[text] runs:[run] "
    "diverged?:[count] summary:means",
    "means": "accuracy:summary val_accuracy?:summary",
}
# Older versions wrote accuracies in float32.
_ROUNDING = 1e-6
_REMEDIES = {
    "config": "choose another --workdir, or delete this one and train again",
    "metrics": "--mode=train on this workdir writes it again from the checkpoint",
    "predictions": "write it again with --mode=evaluate",
    "diagnosis": "delete it, and --mode=report will leave the diagnosis out",
    "efficiency": "write it again with --mode=efficiency",
    "manifest": "write it again with --mode=export",
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
      UserError: if it is not JSON, lacks a key, has a value of another kind, or is an
        evaluation that contradicts its own confusion matrix.
    """
    try:
        value = json.loads(content, parse_constant=_refuse)
        kind = path.stem.partition("-")[0]
        _check(value, kind, "")
        if kind == "evaluation":
            _check_scores(value)
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error), line) from error
    return value


def _refuse(constant):
    raise ValueError(f"{constant} is not a number")


def _check_scores(evaluation):
    """Raise ValueError where an evaluation is not that of its confusion matrix."""
    matrix, classes = evaluation["confusion_matrix"], evaluation["per_class"]
    if {len(classes)} != {len(matrix), *map(len, matrix)}:
        raise ValueError(f"confusion_matrix is not {len(classes)} x {len(classes)}")

    def check(where, value, score):
        if abs(value - score) > _ROUNDING:
            raise ValueError(
                f"{where} is {value}, and by its confusion_matrix {score:.6g}"
            )

    total = sum(map(sum, matrix))
    right = sum(row[i] for i, row in enumerate(matrix)) / max(total, 1)
    check("num_examples", evaluation["num_examples"], total)
    check("accuracy", evaluation["accuracy"], right)
    for i, row in enumerate(classes):
        hits, support, found = matrix[i][i], sum(matrix[i]), sum(r[i] for r in matrix)
        f1 = 2 * hits / max(support + found, 1)
        check(f"per_class[{i}].support", row["support"], support)
        check(f"per_class[{i}].precision", row["precision"], hits / max(found, 1))
        check(f"per_class[{i}].recall", row["recall"], hits / max(support, 1))
        check(f"per_class[{i}].f1", row["f1"], f1)
    for key in ("precision", "recall", "f1"):
        weighted = sum(row["support"] * row[key] for row in classes) / max(total, 1)
        check(f"{key}.micro", evaluation[key]["micro"], right)
        check(f"{key}.weighted", evaluation[key]["weighted"], weighted)


def _check(value: Any, kind: str, where: str) -> None:
    """Raise ValueError, with its place in the file, for a value of another kind."""
    prefix = f"{where}." if where else ""
    if kind.endswith("?"):
        if value is not None:
            _check(value, kind[:-1], where)
    elif kind.startswith("["):
        _check_type(value, list, where)
        for i, item in enumerate(value):
            _check(item, kind[1:-1], f"{where}[{i}]")
    elif kind.startswith("{"):
        _check_type(value, dict, where)
        for key, item in value.items():
            _check(item, kind[1:-1], f"{prefix}{key}")
    elif kind in _OBJECTS:
        _check_type(value, dict, where)
        keys = dict(pair.split(":") for pair in _OBJECTS[kind].split())
        if missing := sorted(k for k in keys if k[-1] != "?" and k not in value):
            raise ValueError(f"it lacks {prefix}{', '.join(missing)}")
        for key, inner in keys.items():
            if (name := key.removesuffix("?")) in value:
                _check(value[name], inner, f"{prefix}{name}")
    else:
        is_valid, must_be = _VALUES[kind]
        if not is_valid(value):
            raise ValueError(f"{where} must be {must_be}, not {str(value)[:40]!r}")


def _check_type(value, needed, where):
    if not isinstance(value, needed):
        words = "an object" if needed is dict else "a list"
        raise ValueError(f"{where or 'it'} must be {words}")
