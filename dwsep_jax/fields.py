"""The fields of a configuration: what each may be, its flag, and who reads it."""

import difflib
import operator
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags
from ml_collections.config_flags import tuple_parser


class Field(NamedTuple):
    """What a field must be; `must_be` and `example` are for error messages.

    `read` returns the value of a text, or raises ValueError.
    """

    must_be: str
    example: str
    is_valid: Callable[[Any], bool]
    read: Callable[[str], Any]


# The limits of a number, in the order in which they are named.
_LIMITS = {
    "ge": ("of at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}


def _number(example: str, kind: type = float, **limits: float) -> Field:
    words = [f"{_LIMITS[name][0]} {limit:,}" for name, limit in limits.items()]
    noun = "an integer" if kind is int else "a finite number"

    def is_valid(value):
        # A bool is an int in Python, and an integer is fine where a float is meant.
        return (
            isinstance(value, int | kind)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
            and all(_LIMITS[name][1](value, limit) for name, limit in limits.items())
        )

    read = flags.IntegerParser().parse if kind is int else float
    return Field(f"{noun} {' and '.join(words)}", example, is_valid, read)


def _integer(example: str, low: int, high: int) -> Field:
    return _number(example, int, ge=low, le=high)


def _text(example: str) -> Field:
    def is_valid(value):
        # Somebody who writes "None" wants to unset the field.
        return isinstance(value, str) and value.strip() not in ("", "None")

    return Field("a name or path", example, is_valid, str)


def _matching(must_be: str, example: str, pattern: str) -> Field:
    def is_valid(value):
        return isinstance(value, str) and re.fullmatch(pattern, value) is not None

    return Field(must_be, example, is_valid, str)


def _flag(example: str) -> Field:
    read = flags.BooleanParser().parse
    return Field("true or false", example, lambda v: isinstance(v, bool), read)


_read_tuple = tuple_parser.TupleParser().parse


def _read_names(text: str) -> tuple[Any, ...]:
    """Return the names of A,B,... or of a tuple as Python writes it.

    A comma before a digit, as in block_sizes=3,3|6,6 of a space, does not separate.
    """
    if text.lstrip().startswith("("):
        return _read_tuple(text)
    return tuple(name.strip() for name in re.split(r",(?!\s*\d)", text))


def _tuple(
    items: str, example: str, item: Field, key: Callable[[Any], Any] | None = None
) -> Field:
    """Return a field of one item or more, which differ in `key` if that is given."""

    def is_valid(value):
        is_tuple = isinstance(value, tuple) and bool(value)
        if not is_tuple or not all(map(item.is_valid, value)):
            return False
        return key is None or len(set(map(key, value))) == len(value)

    read = _read_names if item.read is str else _read_tuple
    return Field(f"a tuple of {items}", example, is_valid, read)


def _optional(field: Field) -> Field:
    return field._replace(
        must_be=f"{field.must_be}, or left out",
        is_valid=lambda value: value is None or field.is_valid(value),
    )


_CLASS_WEIGHT = _number("2", ge=1e-6, le=1e6)


def read_class_weights(text: str) -> dict[str, float]:
    """Return {name: weight} of CLASS=NUMBER,...; a name may have commas.

    Raises:
      ValueError: for another text, a weight out of range or a repeated class.
    """
    *parts, rest = re.split(r"=\s*([\d.eE+-]+)\s*(?:,|\Z)", text)
    weights = {
        name.strip(): float(number)
        for name, number in zip(parts[::2], parts[1::2], strict=True)
    }
    is_complete = not rest and 0 < len(weights) == len(parts) // 2
    if not is_complete or not all(map(_CLASS_WEIGHT.is_valid, weights.values())):
        raise ValueError(text)
    return weights


def _is_class_weights(value):
    try:
        return value in ("none", "balanced") or bool(read_class_weights(value))
    except (TypeError, ValueError):
        return False


_MAX_SEEDS = 1000
# Comparisons and sweeps count up from it; the last is to fit into 32 bits, too.
_SEED = _integer("1", 0, 2**32 - 1 - _MAX_SEEDS)

# One row per field of configs/default.py. Every run reads the fields at the top; only a
# comparison reads those of `compare`, and only a sweep those of `sweep`. Names that a
# factory looks up (conv, dtype, ...) and limits that depend on the data are checked
# there.
FIELDS = {
    "dataset": _text("cifar10"),
    "label": _matching("a name of letters, digits and _", "coarse", r"\w+"),
    "image_size": _optional(_integer("64", 4, 1024)),
    "data_dir": _optional(_text("/data/tensorflow_datasets")),
    "validation_size": _number("5000", int, ge=1),
    "split_seed": _SEED,
    "flip": _flag("false"),
    "shift": _integer("4", 0, 64),
    "cutout": _integer("8", 0, 1024),
    "mixup": _number("0.2", ge=0, le=100),
    "label_smoothing": _number("0.1", ge=0, lt=1),
    "class_weights": Field(
        "none, balanced or CLASS=NUMBER,..., each class once and each number from "
        "1e-6 to 1e6",
        "balanced",
        _is_class_weights,
        str,
    ),
    "conv": _text("separable"),
    "growth_rate": _integer("24", 1, 4096),
    "block_sizes": _tuple(
        "integers from 1 to 256, one per block", "6,6,6,6", _integer("6", 1, 256)
    ),
    "bottleneck": _integer("4", 0, 64),
    "reduction": _number("0.5", gt=0, le=1),
    "stem_width": _number("2.0", gt=0, le=64),
    "stem_stride": _integer("2", 1, 2),
    "kernel_size": _integer("3", 1, 31),
    "activation": _text("relu"),
    "inner_norm": _flag("true"),
    "inner_activation": _flag("true"),
    "dropout_rate": Field(
        "a finite number that is 0, or from 1/256 to 255/256",
        "0.1",
        lambda v: _number("", ge=0).is_valid(v) and (v == 0 or 1 <= 256 * v <= 255),
        float,
    ),
    "norm_momentum": _number("0.9", ge=0, lt=1),
    "dtype": _text("float32"),
    "lowering": _text("auto"),
    "optimizer": _text("sgd"),
    "learning_rate": _optional(_number("0.1", gt=0, le=1000)),
    "momentum": _number("0.9", ge=0, lt=1),
    "weight_decay": _optional(_number("5e-4", ge=0)),
    "schedule": _text("cosine"),
    "warmup_epochs": _optional(_number("5", ge=0)),
    "plateau_factor": _number("0.2", gt=0, lt=1),
    "plateau_patience": _integer("5", 1, 10**6),
    "clip_norm": _number("1.0", ge=0),
    "ema_decay": _number("0.999", ge=0, lt=1),
    "batch_size": _integer("128", 1, 10**6),
    "num_epochs": _integer("100", 1, 10**6),
    "early_stopping": _integer("10", 0, 10**6),
    "min_change": _number("0.001", ge=0, lt=1),
    "init_from": _optional(_text("runs/separable")),
    "freeze": _optional(_text("'stem/*,block0/*'")),
    "seed": _SEED,
    "steps_per_dispatch": _optional(_integer("16", 1, 10**4)),
    "eval_batch_size": _integer("512", 1, 10**5),
    "checkpoint_minutes": _number("10", ge=0),
    "remat": _flag("true"),
    "accumulate": _integer("4", 1, 10**4),
    "num_devices": _optional(_integer("2", 1, 10**4)),
    "coordinator_address": _optional(
        _matching("host:port of process 0", "host0:12345", r".+:\d+")
    ),
    "num_processes": _optional(_integer("2", 1, 10**4)),
    "process_id": _optional(_integer("0", 0, 10**4 - 1)),
    "platform": _optional(_text("gpu")),
    "deterministic": _flag("true"),
    "tensorboard": _flag("true"),
    "wandb": _flag("true"),
    "mlflow": _flag("true"),
    "progress": _flag("false"),
    "compare.variants": _tuple(
        "different names", "separable,standard", _text("standard"), key=str
    ),
    "compare.num_seeds": _integer("5", 1, _MAX_SEEDS),
    "compare.rate_factors": _tuple(
        "numbers from 0.001 to 1000, different in the first three digits",
        "0.333,1,3",
        _number("3", ge=0.001, le=1000),
        key="{:.3g}".format,
    ),
    "compare.margin": _number("0.5", ge=0, le=100),
    "compare.members_at_once": _optional(_integer("4", 1, 1000)),
    "sweep.space": _tuple(
        "different axes FIELD=A|B|..., FIELD=LOW..HIGH or FIELD=LOW..HIGH log",
        "'optimizer=adam|sgd,learning_rate=x0.1..x10 log'",
        _text("flip=true|false"),
        key=str,
    ),
    "sweep.sampler": _text("tpe"),
    "sweep.pruner": _text("median"),
    "sweep.num_trials": _optional(_integer("24", 1, 10**6)),
    "sweep.num_seeds": _integer("5", 1, _MAX_SEEDS),
    "sweep.refit_epochs": _optional(_integer("100", 1, 10**6)),
    "sweep.storage": _optional(_text("postgresql://user@host/database")),
    "sweep.study": _text("sweep"),
    "sweep.members_at_once": _optional(_integer("4", 1, 1000)),
}

# Fields that were added after config.json had been written without them, each with the
# value that older runs had in effect: its default in configs/default.py.
ADDED: dict[str, Any] = {
    **dict.fromkeys(("image_size", "init_from", "freeze", "num_devices")),
    **dict.fromkeys(("coordinator_address", "num_processes", "process_id")),
    **dict.fromkeys(("remat", "wandb", "mlflow"), False),
    "sweep.refit_epochs": None,
    "label": "label",
    "class_weights": "none",
    "checkpoint_minutes": 10.0,
    "accumulate": 1,
}

# What a workdir may hold, and the section of the config that it alone reads.
RUN, COMPARISON, SWEEP = "run", "comparison", "sweep"
SECTIONS = {RUN: "", COMPARISON: "compare", SWEEP: "sweep"}
# These change no result, except for the last bits of an evaluation's sums.
CHANGE_NOTHING = {
    *("data_dir", "progress", "eval_batch_size", "checkpoint_minutes"),
    *("tensorboard", "wandb", "mlflow", "coordinator_address", "process_id"),
}
# These may differ when a workdir is continued: a comparison then has more seeds or
# another answer, a sweep more trials or other finals. With other devices, or members in
# another program, numbers are the same up to the last digits.
MAY_CHANGE = CHANGE_NOTHING | {
    *("num_devices", "num_processes"),
    *("compare.num_seeds", "compare.margin", "compare.members_at_once"),
    *("sweep.num_trials", "sweep.num_seeds", "sweep.refit_epochs"),
    *("sweep.storage", "sweep.members_at_once"),
}


def fields_of(kind: str) -> set[str]:
    """Return the names of the fields that a run, a comparison or a sweep reads."""
    sections = {"", SECTIONS[kind]}
    return {name for name in FIELDS if name.rpartition(".")[0] in sections}


def _last_name(name):
    return name.rpartition(".")[2]


def places(name: str) -> list[str]:
    """Return the fields that a name means; none if there are none.

    Older config.json files have the fields of the sections at the top, by their last
    names.
    """
    return [name] if name in FIELDS else [n for n in FIELDS if _last_name(n) == name]


def describe(name: str, value: Any) -> str:
    """Return the error line for a value that a field cannot have."""
    field = FIELDS[name]
    return (
        f"--config.{name}={format_value(value)}: must be {field.must_be}; "
        f"e.g. --config.{name}={field.example}"
    )


class _FieldParser(flags.ArgumentParser):
    """Reads what the flag of a field is given."""

    def __init__(self, name: str):
        self._name = name

    def parse(self, argument: str) -> Any:
        try:
            return FIELDS[self._name].read(argument)
        except ValueError:
            line = describe(self._name, argument)
            raise flags.IllegalFlagValueError(line) from None


def define_flags(values: flags.FlagValues) -> None:
    """Define a flag --config.FIELD for each field of the config."""
    for name, field in FIELDS.items():
        options = dict(flag_values=values, boolean=field.is_valid(False))
        flags.DEFINE(_FieldParser(name), f"config.{name}", None, "", **options)


def unknown_field(name: str) -> str:
    """Return the line for a field that does not exist, with the nearest that do."""
    near = [name]
    if not places(name):
        near = difflib.get_close_matches(name, FIELDS.keys() | map(_last_name, FIELDS))
    # Once each: a field and its last name may both be near.
    near = dict.fromkeys(field for n in near for field in places(n))
    return f"unknown field --config.{name}; " + (
        f"did you mean {' or '.join(f'--config.{n}' for n in near)}?"
        if near
        else "configs/default.py describes them all"
    )


def format_value(value: Any) -> str:
    """Return a field's value as one writes it on the command line."""
    is_list = isinstance(value, tuple) and value
    return ",".join(map(str, value)) if is_list else str(value)
