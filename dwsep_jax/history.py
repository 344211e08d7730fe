"""The rows of a run's epochs: in metrics.jsonl, and what they say of its progress."""

import json
import os
import pathlib

from dwsep_jax.errors import UserError
from dwsep_jax.files import write_atomically

Row = dict[str, float]


def write_rows(workdir: str | os.PathLike, rows: list[Row]) -> None:
    """Make metrics.jsonl hold just these rows.

    Raises:
      UserError: if it has rows and there are none to go on from.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    old = path.read_text() if path.exists() else None
    if old and not rows:
        raise UserError(
            f"{workdir} has results in metrics.jsonl but no checkpoint to go on from; "
            "choose another --workdir, or delete this one to start over"
        )
    new = "".join(_json_line(row) for row in rows)
    if old != new:
        write_atomically(path, new)


def append_row(workdir: str | os.PathLike, row: Row) -> None:
    """Add a row to metrics.jsonl."""
    with (pathlib.Path(workdir) / "metrics.jsonl").open("a") as file:
        file.write(_json_line(row))


def score(row: Row) -> float:
    """Return the validation accuracy of the weights that are to be evaluated."""
    return row.get("ema_val_accuracy", row["val_accuracy"])


def evaluated_row(rows: list[Row], early_stopping: int) -> Row:
    """Return the row of the epoch that is evaluated at the end of a run."""
    return max(rows, key=score) if early_stopping else rows[-1]


def is_settled(rows: list[Row], patience: int, min_change: float) -> bool:
    """Return whether the last `patience` epochs brought no better validation accuracy.

    Better is what exceeds the best accuracy before by more than `min_change`, a share
    of 1. A patience of 0 waits for ever.
    """
    best, waited = -1.0, 0
    for row in rows:
        if score(row) > best + min_change:
            best, waited = score(row), 0
        else:
            waited += 1
    return 0 < patience <= waited


def seconds_left(rows: list[Row], num_before: int, num_epochs: int) -> float:
    """Return how long the rest of the epochs will take at the pace of these rows.

    Args:
      rows: of all epochs so far.
      num_before: how many of them an earlier process trained, at a pace of its own.
      num_epochs: of the whole run.
    """
    before = rows[num_before - 1]["elapsed_seconds"] if num_before else 0.0
    pace = (rows[-1]["elapsed_seconds"] - before) / (len(rows) - num_before)
    return pace * (num_epochs - len(rows))


def _json_line(row):
    return json.dumps({"schema": 1, **row}, allow_nan=False) + "\n"
