"""The space that a sweep searches: axes, from their text in the config.

An axis is FIELD=A|B|..., FIELD=LOW..HIGH, or FIELD=LOW..HIGH log. Where an x stands
before the numbers, they multiply the learning rate that suits the optimizer and the
batch size of a trial.
"""

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dwsep_jax.config import (
    CHANGE_NOTHING,
    FIELDS,
    format_value,
    unknown_field,
)
from dwsep_jax.config import describe as describe_field
from dwsep_jax.errors import ConfigError

_FIXED = {
    **dict.fromkeys(
        ("dataset", "validation_size", "split_seed"),
        "all trials are scored on the same validation images",
    ),
    "seed": "the best are trained with other seeds, and sweep.num_seeds of them",
    **dict.fromkeys(CHANGE_NOTHING | {"platform"}, "it changes no result"),
}
# What the field is rounded to.
_STEPS = {"dropout_rate": 1 / 256}
_FLAGS = {"true": True, "True": True, "false": False, "False": False}


class Axis(NamedTuple):
    """A field of a run, and what a sweep may set it to.

    Attributes:
      name: `field`, or `learning_rate_factor` where values are multiples of the rate.
      field: of the config.
      choices: texts, numbers or bools, what the text of a tuple stands for; or None.
      low: the bounds, both included, two ints or two floats; or None.
      high: see `low`.
      log: whether the logarithm is what is uniform.
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
        return "choice" if self.choices is not None else type(self.low).__name__

    @property
    def step(self) -> float | None:
        """What floats are low plus a multiple of; None: nothing."""
        return None if self.log or self.kind != "float" else _STEPS.get(self.field)

    @property
    def is_factor(self) -> bool:
        """Whether values are multiples of the learning rate that suits."""
        return self.name != self.field

    def list_values(self) -> list[str | int | float | bool] | None:
        """Return all values there are; None for floats."""
        if self.kind == "int":
            return list(range(self.low, self.high + 1))
        return None if self.choices is None else list(self.choices)

    def list_extremes(self) -> list[str | int | float | bool]:
        """Return the choices, or the two bounds."""
        return [self.low, self.high] if self.choices is None else list(self.choices)


def parse_space(config: ConfigDict) -> list[Axis]:
    """Return the axes of `config.sweep.space`, one per field.

    Raises:
      ConfigError: for what is no axis, a field that cannot be one, or a value that the
        field cannot have.
    """
    axes: list[Axis] = []
    for text in config.sweep.space:
        axis = _parse_axis(text.strip(), config)
        if axis.field in [other.field for other in axes]:
            raise _refuse(text, f"{axis.field} has an axis already; join the two")
        axes.append(axis)
    return axes


def count_points(axes: Sequence[Axis]) -> int:
    """Return the number of points of the grid.

    Raises:
      ConfigError: if an axis has floats between two bounds.
    """
    for axis in axes:
        if axis.list_values() is None:
            raise ConfigError(
                f"--config.sweep.sampler=grid: {axis.field} is any number from "
                f"{axis.low:g} to {axis.high:g} (space); write choices, e.g. "
                f"{axis.field}={_prefix(axis)}{axis.low:g}|{_prefix(axis)}"
                f"{axis.high:g}, or take --config.sweep.sampler=tpe"
            )
    return math.prod(len(axis.list_values()) for axis in axes)


def set_value(config: ConfigDict, axis: Axis, value: Any) -> None:
    """Set the field of an axis that is no factor to one of its values."""
    config[axis.field] = _parse_value(axis.field, str(value), config)


def list_trials_to_check(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Yield {name: value} of each choice and bound, by itself."""
    for axis in axes:
        for value in axis.list_extremes():
            yield {axis.name: value}


def _parse_axis(text, config):
    field, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not field:
        form = "FIELD=A|B|..., FIELD=LOW..HIGH or FIELD=LOW..HIGH log"
        raise _refuse(text, f"an axis is {form}")
    _check_field(text, field)
    low, dots, high = values.partition("..")
    if not dots:
        return _parse_choices(text, field, values.split("|"), config)
    high, *scale = high.split() or [""]
    if scale not in ([], ["log"]):
        raise _refuse(text, f"{' '.join(scale)!r} after a range can only be log")
    return _parse_range(text, field, low.strip(), high, bool(scale), config)


def _check_field(text, field):
    if field not in FIELDS:
        line = unknown_field(field)
        raise _refuse(text, line.replace("--config.", ""))
    if field in _FIXED:
        raise _refuse(text, f"{field} cannot be an axis: {_FIXED[field]}")
    if "." in field:
        raise _refuse(text, f"{field} cannot be an axis: no single run reads it")


def _parse_choices(text, field, parts, config):
    parts = [part.strip() for part in parts]
    is_factor = _is_factor(text, field, parts)
    choices = [_check_value(text, field, part, is_factor, config) for part in parts]
    if len(set(map(str, choices))) < len(choices):
        raise _refuse(text, "a choice stands there twice")
    if len(choices) < 2:
        remedy = f"leave it out, and give --config.{field}={parts[0]}"
        raise _refuse(text, f"one choice is no axis; {remedy}")
    # A study keeps no tuples.
    kept = tuple(format_value(c) if isinstance(c, tuple) else c for c in choices)
    return Axis(_name(field, is_factor), field, choices=kept)


def _parse_range(text, field, low, high, log, config):
    is_factor = _is_factor(text, field, [low, high])
    bounds = [_check_value(text, field, b, is_factor, config) for b in (low, high)]
    for bound in bounds:
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise _refuse(text, f"{field} has no order; write FIELD=A|B|...")
    low, high = bounds
    if log and low <= 0:
        raise _refuse(text, f"log needs bounds above zero, and {low:g} is not")
    if low >= high:
        raise _refuse(text, f"the range is empty: {low:g} is not below {high:g}")
    axis = Axis(_name(field, is_factor), field, None, low, high, log)
    if axis.step is not None:
        steps = (Decimal(high) - Decimal(low)) // Decimal(axis.step)
        axis = axis._replace(high=low + int(steps) * axis.step)
    if axis.low == axis.high:
        raise _refuse(text, f"the range is empty: {field} is rounded to {axis.step:g}")
    return axis


def _is_factor(text, field, parts):
    factors = [part.startswith("x") for part in parts]
    if field != "learning_rate" or not any(factors):
        return False
    if not all(factors):
        raise _refuse(text, "an x stands before all numbers, or before none")
    return True


def _check_value(text, field, part, is_factor, config):
    """Return the value that a part of the text stands for."""
    if is_factor:
        try:
            factor = float(part[1:])
        except ValueError:
            factor = math.nan
        if not 0 < factor < math.inf:
            # Zero on a log axis too: no rate is a multiple of it.
            raise _refuse(text, f"{part} is no multiple: write a number above zero")
        return factor
    value = _parse_value(field, part, config)
    if value is None or not FIELDS[field].is_valid(value):
        line = describe_field(field, part).removeprefix("--config.")
        raise _refuse(text, line.partition("; e.g.")[0])
    return value


def _parse_value(field, text, config):
    """Return the value of the field's type that a text stands for, None if none."""
    kind = config.get_type(field)
    try:
        if kind is bool:
            return _FLAGS[text]
        if kind is tuple:
            some = config[field][0]
            return tuple(type(some)(part) for part in text.split(","))
        return kind(text)
    except (KeyError, ValueError):
        return None


def _name(field, is_factor):
    return f"{field}_factor" if is_factor else field


def _prefix(axis):
    return "x" if axis.is_factor else ""


def _refuse(text, problem):
    return ConfigError(f"--config.sweep.space: {text}: {problem}")
