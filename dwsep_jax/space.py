"""The search space of a sweep: one axis per entry of `config.sweep.space`.

An axis is FIELD=A|B|..., FIELD=LOW..HIGH, or FIELD=LOW..HIGH log. Learning rates may be
written with an x (x0.1..x10): they then multiply the default learning rate of the
trial's optimizer and batch size.
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from dwsep_jax.errors import ConfigError
from dwsep_jax.fields import (
    CHANGE_NOTHING,
    FIELDS,
    describe,
    format_value,
    unknown_field,
)

_NOT_AXES = {
    **dict.fromkeys((name for name in FIELDS if "." in name), "no single run reads it"),
    **dict.fromkeys(
        CHANGE_NOTHING | {"platform", "num_devices", "remat"}, "it changes no result"
    ),
    **dict.fromkeys(
        ("dataset", "label", "image_size", "validation_size", "split_seed"),
        "all trials are scored on the same validation images",
    ),
    "seed": "the best trials are trained with sweep.num_seeds other seeds",
}


class Axis(NamedTuple):
    """A field of a run and the values that a sweep tries.

    Attributes:
      name: the field, or `learning_rate_factor` for multiples of the default rate.
      field: of the config.
      choices: strings, numbers or bools; a tuple is kept as its text. None: a range.
      low: of a range, inclusive; an int or a float, like `high`.
      high: of a range, inclusive.
      log: whether the range is sampled uniformly in its logarithm.
    """

    name: str
    field: str
    choices: tuple[str | int | float | bool, ...] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False

    @property
    def kind(self) -> str:
        """`choice`, `int` or `float`."""
        return "choice" if self.choices else type(self.low).__name__

    @property
    def step(self) -> float | None:
        """The spacing of a range of floats, from `low` on; None: continuous."""
        # The network rounds the dropout rate to a multiple of this.
        return 1 / 256 if self.field == "dropout_rate" and not self.log else None

    @property
    def is_factor(self) -> bool:
        """Whether the values are multiples of the default learning rate."""
        return self.name != self.field

    @property
    def extremes(self) -> tuple:
        """All choices, or the two bounds."""
        return self.choices or (self.low, self.high)

    @property
    def values(self) -> Sequence | None:
        """All values; None for a range of floats."""
        if self.kind == "int":
            return range(self.low, self.high + 1)
        return self.choices

    def suggest(self, trial: Any) -> str | int | float | bool:
        """Return the value of an `optuna.Trial`: sampled, unless it has one already."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.choices)
        if self.kind == "int":
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(
            self.name, self.low, self.high, step=self.step, log=self.log
        )

    def read(self, text: str) -> str | int | float | bool:
        """Return the value of a text that `str` made of it, or raise ValueError."""
        if self.choices:
            return self.choices[list(map(str, self.choices)).index(text)]
        return type(self.low)(text)


def parse_space(space: Sequence[str]) -> list[Axis]:
    """Return the axes of `config.sweep.space`, at most one per field.

    Raises:
      ConfigError: for a syntax error, a field that cannot be searched, or a value that
        the field cannot have.
    """
    axes: list[Axis] = []
    for text in space:
        try:
            axis = _parse_axis(text)
            if axis.field in [other.field for other in axes]:
                raise ConfigError(f"{axis.field} already has an axis; merge the two")
        except ConfigError as error:
            raise ConfigError(f"--config.sweep.space: {text}: {error}") from None
        axes.append(axis)
    return axes


def count_points(axes: Sequence[Axis]) -> int:
    """Return the number of points of the grid.

    Raises:
      ConfigError: if an axis is a range of floats.
    """
    for axis in axes:
        if axis.values is None:
            raise ConfigError(
                f"--config.sweep.sampler=grid: the space has any {axis.field} from "
                f"{axis.low:g} to {axis.high:g}; write choices, {axis.field}=A|B|..., "
                "or use --config.sweep.sampler=tpe"
            )
    return math.prod(len(axis.values) for axis in axes)


def _parse_axis(text):
    field, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not field:
        raise ConfigError(
            "an axis is FIELD=A|B|..., FIELD=LOW..HIGH or FIELD=LOW..HIGH log"
        )
    if field not in FIELDS:
        raise ConfigError(unknown_field(field).replace("--config.", ""))
    if field in _NOT_AXES:
        raise ConfigError(f"{field} cannot be an axis: {_NOT_AXES[field]}")
    bounds = re.fullmatch(r"(\S*)\s*\.\.\s*(\S*)(\s+log)?", values)
    parts = bounds.group(1, 2) if bounds else [v.strip() for v in values.split("|")]
    is_factor = field == "learning_rate" and all(part[:1] == "x" for part in parts)
    name = f"{field}_factor" if is_factor else field
    values = [_read_value(field, part[is_factor:]) for part in parts]
    if bounds:
        return _make_range(Axis(name, field, None, *values, bool(bounds[3])))
    if len(set(map(str, values))) < len(values):
        raise ConfigError("a choice is repeated")
    if len(values) == 1:
        raise ConfigError(
            f"an axis needs two choices; drop it and set --config.{field}={parts[0]}"
        )
    # Optuna stores no tuples.
    choices = (format_value(v) if isinstance(v, tuple) else v for v in values)
    return Axis(name, field, tuple(choices))


def _make_range(axis):
    if axis.kind not in ("int", "float"):
        raise ConfigError(f"{axis.field} has no order; write FIELD=A|B|...")
    if axis.log and axis.low <= 0:
        raise ConfigError(f"a log range needs bounds above zero, not {axis.low:g}")
    if axis.step is not None:
        num_steps = (Decimal(axis.high) - Decimal(axis.low)) // Decimal(axis.step)
        axis = axis._replace(high=axis.low + int(num_steps) * axis.step)
    if axis.low >= axis.high:
        raise ConfigError("the range needs at least two values")
    return axis


def _read_value(field, text):
    """Return the value that a text stands for, if the field may have it."""
    try:
        value = FIELDS[field].read(text)
    except (KeyError, ValueError):
        value = None
    if value is None or not FIELDS[field].is_valid(value):
        problem = describe(field, text).removeprefix("--config.")
        raise ConfigError(problem.partition("; e.g.")[0])
    return value
