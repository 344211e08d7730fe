"""The trials of a sweep, and trials.csv: the table that --mode=sweep writes of them."""

import csv
import io
import pathlib
import sys
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from dwsep_jax.errors import UserError
from dwsep_jax.space import Axis
from dwsep_jax.workdir import damaged, write_atomically

STATES = ("complete", "pruned", "running", "waiting", "failed")
ENDED = ("complete", "pruned", "failed")


class Trial(NamedTuple):
    """A row of trials.csv; None is an empty cell.

    Attributes:
      number: of the trial.
      state: one of `STATES`.
      value: validation accuracy, a share of 1; of a pruned trial, its last.
      epochs: trained.
      seconds: taken.
      retry_of: the trial that it repeats.
      note: why it failed.
      settings: by the names of the axes, once they are drawn; also the learning rate,
        where its axis has multiples of the default.
    """

    number: int
    state: str
    value: float | None
    epochs: int | None
    seconds: float | None
    retry_of: int | None
    note: str | None
    settings: dict[str, Any]


def latest(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, the last that repeats a lost one in its place."""
    attempts = {t.number if t.retry_of is None else t.retry_of: t for t in trials}
    return list(attempts.values())


def write_trials(
    path: pathlib.Path, trials: Sequence[Trial], axes: Sequence[Axis]
) -> None:
    """Write trials.csv: one row per trial, waiting and repeated ones included."""
    text, columns = io.StringIO(), list(_list_columns(axes))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "crc32"])
    rows = [map((t._asdict() | t.settings).get, columns) for t in trials]
    rows = [["" if value is None else str(value) for value in row] for row in rows]
    checksums = _checksums(rows)
    writer.writerows([*row, crc32] for row, crc32 in zip(rows, checksums, strict=True))
    write_atomically(path, text.getvalue())


def _checksums(rows):
    """Return a checksum for each row, of its cells and of all rows after it."""
    found = [0]
    for row in reversed(rows):
        found.append(zlib.crc32("\0".join(row).encode(), found[-1]))
    return found[:0:-1]


def read_trials(path: pathlib.Path, axes: Sequence[Axis]) -> list[Trial]:
    """Return the rows of trials.csv, by number.

    Raises:
      UserError: if the file is missing or damaged.
    """
    place, trials, columns = "", [], _list_columns(axes)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or ()
            if missing := [column for column in columns if column not in names]:
                raise ValueError(f"it lacks the column {missing[0]}")
            if others := set(names) - columns.keys() - {"crc32"}:
                raise ValueError(f"it has the unknown column {min(others)[:40]}")
            rows = []
            for row in reader:
                place = f"line {reader.line_num}: "
                trials.append(_read_trial(row, columns))
                rows.append(row)
        place, checksums = "", [row.get("crc32") for row in rows]
        expected = _checksums([[row[c] for c in columns] for row in rows])
        # Earlier versions wrote none.
        if any(checksums) and checksums != list(map(str, expected)):
            raise ValueError("its checksums differ")
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent}: there is no trials.csv yet; the command of the sweep "
            "writes it"
        ) from error
    except (csv.Error, ValueError) as error:
        raise damaged(path, f"{place}{error}") from error
    return sorted(trials, key=lambda trial: trial.number)


def _read_trial(row, columns):
    if None in row or None in row.values():
        raise ValueError("it has more or fewer cells than the header")
    cells = {}
    for column, read in columns.items():
        text, most = row[column], 1 if column == "value" else sys.float_info.max
        try:
            value = read(text) if text or column in ("number", "state") else None
            if isinstance(value, int | float) and not 0 <= value <= most:
                raise ValueError
        except ValueError:
            raise ValueError(f"{column} cannot be {text[:40]!r}") from None
        cells[column] = value
    own = {name: cells.pop(name) for name in Trial._fields if name in cells}
    return Trial(**own, settings=cells)


def _list_columns(axes):
    """Return how the cells of each column are read, from left to right."""
    columns = {
        "number": int,
        "state": lambda text: STATES[STATES.index(text)],
        "value": float,
        "epochs": int,
    }
    for axis in axes:
        if axis.is_factor:
            columns[axis.field] = float
        columns[axis.name] = axis.read
    return columns | {"seconds": float, "retry_of": int, "note": str}
