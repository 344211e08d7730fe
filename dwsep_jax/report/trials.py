"""The trials of a sweep, from its trials.csv, and the axes of its space."""

import csv
import dataclasses
import math
import pathlib
from typing import Any

from dwsep_jax.config import from_dict
from dwsep_jax.errors import UserError
from dwsep_jax.report.format import TIMES
from dwsep_jax.sweep.space import parse_space
from dwsep_jax.workdir import damaged

STATES = ("complete", "pruned", "failed", "running", "waiting")
_BEFORE, _AFTER = (
    ["number", "state", "value", "epochs"],
    ["seconds", "retry_of", "note"],
)


@dataclasses.dataclass(frozen=True)
class Axis:
    """What was searched over.

    Attributes:
      name: its column in trials.csv: the field, or `<field>_factor` for a multiple of
        the optimizer's default.
      field: of the config.
      kind: choice, float or int.
      log: whether it was searched on a logarithmic scale.
      low: its lower end; None for choices, or where it is not known.
      high: its upper end, likewise.
      choices: as texts; empty for a range.
    """

    name: str
    field: str
    kind: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What people read of it."""
        is_factor = self.name != self.field
        return f"{self.field}, {TIMES} default" if is_factor else self.field


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row of trials.csv; what it does not say is None.

    Attributes:
      number: of the trial.
      state: one of `STATES`.
      value: validation accuracy, a share of 1; a pruned trial's last.
      epochs: that it was trained for.
      settings: by column, as texts; empty where they are not drawn yet.
      seconds: that it took.
      retry_of: the trial that it does again.
      note: why it failed.
    """

    number: int
    state: str
    value: float | None
    epochs: float | None
    settings: dict[str, str]
    seconds: float | None
    retry_of: int | None
    note: str


def read_trials(path: pathlib.Path) -> list[Trial]:
    """Return the rows of trials.csv, by number.

    Raises:
      UserError: if there is no such file, or it is damaged.
    """
    if not path.exists():
        raise UserError(
            f"{path.parent}: there is no trials.csv yet; give the command of the "
            "sweep, and it is written"
        )
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error
    if header[:4] != _BEFORE or header[-3:] != _AFTER:
        needed = ", ".join([*_BEFORE, "...", *_AFTER])
        raise damaged(path, f"its columns must be {needed}")
    trials = [_read_row(path, i, header, row) for i, row in enumerate(rows, start=2)]
    return sorted(trials, key=lambda trial: trial.number)


def _read_row(path, line, header, row):
    if len(row) != len(header):
        problem = f"line {line} has {len(row)} cells, its header {len(header)}"
        raise damaged(path, problem)
    cells = dict(zip(header, row, strict=True))

    def read(column, form=float, must_be="a finite number of at least 0"):
        if cells[column] == "":
            return None
        try:
            value = form(cells[column])
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            problem = f"line {line}: {column} must be {must_be}"
            raise damaged(path, f"{problem}, not {cells[column][:40]!r}")
        return value

    number = read("number", int, "an integer of at least 0")
    if number is None:
        raise damaged(path, f"line {line} has no number")
    value = read("value")
    if value is not None and value > 1:
        problem = f"line {line}: value is {value:g}, and an accuracy is at most 1"
        raise damaged(path, problem)
    if cells["state"] not in STATES:
        problem = f"line {line}: state must be one of {', '.join(STATES)}"
        raise damaged(path, f"{problem}, not {cells['state'][:40]!r}")
    return Trial(
        number=number,
        state=cells["state"],
        value=value,
        epochs=read("epochs"),
        settings={name: cells[name] for name in header[4:-3]},
        seconds=read("seconds"),
        retry_of=read("retry_of", int, "an integer of at least 0"),
        note=cells["note"],
    )


def axes_of_best(best: dict[str, Any]) -> list[Axis]:
    """Return the axes as best.json describes them."""
    return [
        Axis(
            *(axis[key] for key in ("name", "field", "kind", "log", "low", "high")),
            choices=tuple(show_setting(c) for c in axis.get("choices") or ()),
        )
        for axis in best["axes"]
    ]


def axes_of_config(config: dict[str, Any]) -> list[Axis]:
    """Return the axes as config.json writes them.

    Raises:
      UserError: if they are none.
    """
    return [
        Axis(
            *(axis.name, axis.field, axis.kind, axis.log, axis.low, axis.high),
            choices=tuple(show_setting(c) for c in axis.choices or ()),
        )
        for axis in parse_space(from_dict(config["resolved"]))
    ]


def show_setting(value: Any) -> str:
    """Return a setting as trials.csv writes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def read_number(text: str | float) -> float | None:
    """Return a setting as a number; None for one that is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
