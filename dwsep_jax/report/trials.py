"""The trials of a sweep, the space that it searches, and what its finals decide."""

import csv
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dwsep_jax.errors import UserError
from dwsep_jax.report.format import TIMES
from dwsep_jax.statistics import answer, bootstrap_images, compare_pairs
from dwsep_jax.workdir import damaged

STATES = ("complete", "pruned", "running", "waiting", "failed")
# A setting this close to an end of its range, as a share of it, is at the edge.
_EDGE = 0.03


class Trial(NamedTuple):
    """A row of trials.csv; an empty cell is None.

    Attributes:
      number: of the trial.
      state: one of `STATES`.
      value: validation accuracy, a share of 1; of a pruned trial, its last.
      epochs: trained.
      seconds: taken.
      retry_of: the trial that it repeats.
      note: why it failed.
      settings: by column, as texts, empty where they are not drawn yet.
    """

    number: int
    state: str
    value: float | None
    epochs: int | None
    seconds: float | None
    retry_of: int | None
    note: str | None
    settings: dict[str, str]


class Axis(NamedTuple):
    """A setting that a sweep searches.

    Attributes:
      name: its column in trials.csv: the field, or `<field>_factor` for a multiple of
        the optimizer's default.
      field: of the config.
      searched: its values, as config.space gives them.
      choices: as texts; empty for a range.
      low: the lower end of a range.
      high: the upper end of a range.
      log: whether the range is searched on a logarithmic scale.
    """

    name: str
    field: str
    searched: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    @property
    def is_factor(self) -> bool:
        """Whether settings are multiples of the optimizer's default."""
        return self.name == f"{self.field}_factor"

    @property
    def label(self) -> str:
        """The field, and the unit of a multiple."""
        return self.field + (f", {TIMES} default" if self.is_factor else "")

    @property
    def ticks(self) -> list[str] | list[float]:
        """The choices, or both ends of the range and its middle."""
        if self.choices:
            return list(self.choices)
        middle = (self.low + self.high) / 2
        if self.log:
            middle = math.sqrt(self.low * self.high)
        return [self.low, float(f"{middle:.2g}"), self.high]

    def read(self, trial: Trial) -> str | float | None:
        """Return the setting of a trial: a choice, else a number; None without one."""
        text = trial.settings[self.name]
        if not self.choices:
            return read_number(text)
        return _unify(text) if _unify(text) in self.choices else None

    def place(self, setting: str | float) -> float:
        """Return where a setting lies on the axis, from 0 to 1."""
        if self.choices:
            return (self.choices.index(setting) + 0.5) / len(self.choices)
        scale = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(setting) - low) / (high - low)

    def find_edge(self, trial: Trial) -> str | None:
        """Return `below` or `above` where a trial is at an end of the axis, else None.

        Only numbers have ends. There is nothing below 0, and of two choices each is
        an end.
        """
        value = read_number(trial.settings[self.name])
        numbers = [read_number(tick) for tick in self.ticks]
        if value is None or None in numbers or len(numbers) < 3:
            return None
        if self.choices:
            low, high = min(numbers), max(numbers)
            place = (value - low) / (high - low)
        else:
            low, place = self.low, self.place(value)
        if place >= 1 - _EDGE:
            return "above"
        return "below" if place <= _EDGE and low > 0 else None


def read_number(text: str | float) -> float | None:
    """Return the finite number that a text stands for, else None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _unify(text):
    """Return one spelling of equal settings: 1.0 and 1, True and true."""
    value = read_number(text)
    return text.strip().lower() if value is None else f"{value:g}"


def read_axes(space: Sequence[str]) -> list[Axis]:
    """Return the axes of config.space, whose form the sweep has checked.

    Args:
      space: texts such as `optimizer=adam|sgd` and `learning_rate=x0.1..x10 log`.

    Raises:
      ValueError: if a text has another form.
    """
    axes = []
    for text in space:
        field, _, searched = (part.strip() for part in text.partition("="))
        if not searched:
            raise ValueError(f"{text!r} is not FIELD=VALUES")
        is_factor = field == "learning_rate" and searched.startswith("x")
        axis = Axis(f"{field}_factor" if is_factor else field, field, searched)
        values = searched.replace("x", "") if is_factor else searched
        low, dots, rest = values.partition("..")
        if dots:
            high, *log = rest.split()
            ends = {"low": float(low), "high": float(high), "log": bool(log)}
        else:
            ends = {"choices": tuple(map(_unify, values.split("|")))}
        axes.append(axis._replace(**ends))
    return axes


def read_trials(path: pathlib.Path) -> list[Trial]:
    """Return the rows of trials.csv, by number.

    Raises:
      UserError: if the file is missing or damaged.
    """
    place, trials = "", []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if missing := [c for c in _CELLS if c not in (reader.fieldnames or ())]:
                raise ValueError(f"it lacks the column {missing[0]}")
            for row in reader:
                place = f"line {reader.line_num}: "
                trials.append(_read_trial(row))
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent}: there is no trials.csv yet; the command of the sweep "
            "writes it"
        ) from error
    except (csv.Error, ValueError) as error:
        raise damaged(path, f"{place}{error}") from error
    return sorted(trials, key=lambda trial: trial.number)


def _read_trial(row):
    if None in row or None in row.values():
        raise ValueError("it has more or fewer cells than the header")
    cells = {}
    for column, read in _CELLS.items():
        text = row.pop(column)
        try:
            cells[column] = read(text) if text or column in _NEEDED else None
        except ValueError:
            raise ValueError(f"{column} cannot be {text[:40]!r}") from None
    return Trial(**cells, settings=row)


def _at_least_0(kind, limit=math.inf):
    def read(text):
        value = kind(text)
        if not (0 <= value <= limit and math.isfinite(value)):
            raise ValueError
        return value

    return read


_NEEDED = ("number", "state")
_CELLS = {
    "number": _at_least_0(int),
    "state": lambda text: STATES[STATES.index(text)],
    "value": _at_least_0(float, limit=1),
    "epochs": _at_least_0(int),
    "seconds": _at_least_0(float),
    "retry_of": _at_least_0(int),
    "note": str,
}


class Duel(NamedTuple):
    """The winner against another final, by test accuracy.

    Attributes:
      over_seeds: the winner's accuracy minus the other's, paired by seed, as
        `compare_pairs` returns it.
      over_images: the 95 % interval over test images; None without predictions.
      answer: `better` if the winner is, `worse`, or `undecided`.
    """

    over_seeds: dict[str, Any]
    over_images: list[float] | None
    answer: str


def compare_finals(
    finals: Sequence[dict[str, Any]], correct: Mapping[int, np.ndarray | None]
) -> dict[int, Duel]:
    """Return the winner against each other final that shares seeds with it.

    Args:
      finals: of best.json, the winner's first.
      correct: by trial, whether each prediction is right, bool (seeds, images); None
        where a prediction is missing.
    """
    duels = {}
    for final in finals[1:]:
        ours, theirs = (
            {run["seed"]: run["accuracy"] for run in one["runs"]}
            for one in (finals[0], final)
        )
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            continue
        over_seeds = compare_pairs([ours[s] for s in seeds], [theirs[s] for s in seeds])
        right, other = correct[finals[0]["number"]], correct[final["number"]]
        images = over_seeds
        is_known = right is not None and other is not None
        if is_known and list(ours) == list(theirs) and right.shape == other.shape:
            images = bootstrap_images(right, other)
        over_images = images["ci95"] if images is not over_seeds else None
        decision = answer(over_seeds, images, margin=0.0).answer
        duels[final["number"]] = Duel(over_seeds, over_images, decision)
    return duels
