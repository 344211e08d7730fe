"""Reads what a run has written, without jax; a damaged file is one clear line."""

import json
import os
import pathlib
from collections.abc import Set
from typing import Any

from dwsep_jax.errors import UserError

_ROW_KEYS = {"epoch", "learning_rate"} | {
    f"{prefix}_{name}"
    for prefix in ("train", "train_eval", "val")
    for name in ("loss", "accuracy")
}
_EVALUATION_KEYS = {"split", "weights", "epoch", "num_examples", "accuracy"}
_EVALUATION_KEYS |= {"per_class", "confusion_matrix", "calibration"}


def read_rows(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl; none where there is no such file.

    Raises:
      UserError: if a row is damaged.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    remedy = "--mode=train on this workdir writes it again from the checkpoint"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [
        parse(line, _ROW_KEYS, f"{path}, line {number}", remedy)
        for number, line in enumerate(lines, start=1)
    ]


def read_evaluation(path: str | os.PathLike) -> dict[str, Any]:
    """Return an evaluation.json or evaluation-<split>.json; `UserError` if damaged."""
    path = pathlib.Path(path)
    split = path.stem.removeprefix("evaluation").removeprefix("-") or "test"
    remedy = f"write it again with --mode=evaluate --split={split}"
    return parse(path.read_bytes(), _EVALUATION_KEYS, str(path), remedy)


def parse(content: bytes, keys: Set[str], where: str, remedy: str) -> dict[str, Any]:
    """Return a JSON object that has the keys.

    Args:
      content: what was read.
      keys: that the object must have.
      where: the file, or its line, for the message.
      remedy: what the user can do about it.

    Raises:
      UserError: if the content is no JSON, no object, or lacks keys.
    """
    try:
        value = json.loads(content, parse_constant=_refuse)
    except ValueError as error:
        raise UserError(f"{where} is damaged ({error}); {remedy}") from error
    missing = keys - value.keys() if isinstance(value, dict) else keys
    if missing:
        names = ", ".join(sorted(missing))
        raise UserError(f"{where} is damaged (it lacks {names}); {remedy}")
    return value


def _refuse(constant):
    raise ValueError(f"{constant} is no number")
