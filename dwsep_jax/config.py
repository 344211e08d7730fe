"""The fields of a configuration: what each may be, who reads it, how it is written."""

import difflib
import hashlib
import math
import operator
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from dwsep_jax.errors import ConfigError


class Field(NamedTuple):
    """What a field must be; `must_be` and `example` are for error messages.

    A field with an `unset_type` may be None, and is of that type otherwise.
    """

    must_be: str
    example: str
    is_valid: Callable[[Any], bool]
    unset_type: type | None = None


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
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return (
            is_number
            and math.isfinite(value)
            and all(_LIMITS[name][1](value, limit) for name, limit in limits.items())
        )

    return Field(f"{noun} {' and '.join(words)}", example, is_valid)


def _integer(example: str, low: int, high: int) -> Field:
    return _number(example, int, ge=low, le=high)


def _text(example: str) -> Field:
    # Somebody who writes "None" wants to unset the field.
    return Field(
        "a name or path",
        example,
        lambda v: isinstance(v, str) and v.strip() not in ("", "None"),
    )


def _flag(example: str) -> Field:
    return Field("true or false", example, lambda v: isinstance(v, bool))


def _tuple(
    items: str, example: str, is_item: Callable[[Any], bool], distinct: str | None = ""
) -> Field:
    """Return a field of one item or more; `distinct` formats those that must differ."""

    def is_valid(value):
        if not isinstance(value, tuple) or not value or not all(map(is_item, value)):
            return False
        return distinct is None or len({f"{v:{distinct}}" for v in value}) == len(value)

    return Field(f"a tuple of {items}", example, is_valid)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _optional(unset_type: type, field: Field) -> Field:
    return Field(
        f"{field.must_be}, or left out",
        field.example,
        lambda v: v is None or field.is_valid(v),
        unset_type,
    )


_SEED = _integer("1", 0, 2**32 - 1)
_NUM_SEEDS = _integer("5", 1, 1000)
_MEMBERS_AT_ONCE = _optional(int, _integer("4", 1, 1000))

# One row per field of configs/default.py. The place of a field says who reads it: every
# run those at the top, a comparison also those of `compare`, a sweep those of `sweep`.
# Names that a factory looks up (conv, dtype, ...) and limits that depend on the data
# are checked there.
FIELDS = {
    "dataset": _text("cifar10"),
    "data_dir": _optional(str, _text("/data/tensorflow_datasets")),
    "validation_size": _number("5000", int, ge=1),
    "split_seed": _SEED,
    "flip": _flag("false"),
    "shift": _integer("4", 0, 64),
    "cutout": _integer("8", 0, 1024),
    "mixup": _number("0.2", ge=0, le=100),
    "label_smoothing": _number("0.1", ge=0, lt=1),
    "conv": _text("separable"),
    "growth_rate": _integer("24", 1, 4096),
    "block_sizes": _tuple(
        "integers from 1 to 256, one per block",
        "6,6,6,6",
        _integer("6", 1, 256).is_valid,
        distinct=None,
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
    ),
    "norm_momentum": _number("0.9", ge=0, lt=1),
    "dtype": _text("float32"),
    "lowering": _text("auto"),
    "optimizer": _text("sgd"),
    "learning_rate": _optional(float, _number("0.1", gt=0, le=1000)),
    "momentum": _number("0.9", ge=0, lt=1),
    "weight_decay": _optional(float, _number("5e-4", ge=0)),
    "schedule": _text("cosine"),
    "warmup_epochs": _optional(float, _number("5", ge=0)),
    "plateau_factor": _number("0.2", gt=0, lt=1),
    "plateau_patience": _integer("5", 1, 10**6),
    "clip_norm": _number("1.0", ge=0),
    "ema_decay": _number("0.999", ge=0, lt=1),
    "batch_size": _integer("128", 1, 10**6),
    "num_epochs": _integer("100", 1, 10**6),
    "early_stopping": _integer("10", 0, 10**6),
    "min_change": _number("0.001", ge=0, lt=1),
    "seed": _SEED,
    "steps_per_dispatch": _optional(int, _integer("16", 1, 10**4)),
    "eval_batch_size": _integer("512", 1, 10**5),
    "platform": _optional(str, _text("gpu")),
    "deterministic": _flag("true"),
    "tensorboard": _flag("true"),
    "progress": _flag("false"),
    "compare.variants": _tuple("different names", "separable,standard", _is_name),
    "compare.num_seeds": _NUM_SEEDS,
    "compare.rate_factors": _tuple(
        "numbers from 0.001 to 1000, different in the first three digits",
        "0.333,1,3",
        _number("3", ge=0.001, le=1000).is_valid,
        distinct=".3g",
    ),
    "compare.margin": _number("0.5", ge=0, le=100),
    "compare.members_at_once": _MEMBERS_AT_ONCE,
    "sweep.space": _tuple(
        "different axes FIELD=A|B|..., FIELD=LOW..HIGH or FIELD=LOW..HIGH log",
        "'optimizer=adam|sgd,learning_rate=x0.1..x10 log'",
        _is_name,
    ),
    "sweep.sampler": _text("tpe"),
    "sweep.pruner": _text("median"),
    "sweep.num_trials": _optional(int, _integer("24", 1, 10**6)),
    "sweep.num_seeds": _NUM_SEEDS,
    "sweep.storage": _optional(str, _text("postgresql://user@host/database")),
    "sweep.study": _text("sweep"),
    "sweep.members_at_once": _MEMBERS_AT_ONCE,
}

# Fields that were added after config.json had been written without them, each with the
# value that older runs had in effect: its default in configs/default.py.
ADDED: dict[str, Any] = {}

# {last name: names} of the fields in sections, all of which were once at the top.
_BY_LAST_NAME: dict[str, list[str]] = defaultdict(list)
for _name in FIELDS:
    if "." in _name:
        _BY_LAST_NAME[_name.rpartition(".")[2]].append(_name)

# What a workdir may hold, and the section of the config that it alone reads.
RUN, COMPARISON, SWEEP = "run", "comparison", "sweep"
SECTIONS = {RUN: "", COMPARISON: "compare", SWEEP: "sweep"}
# These change no result, except for the last bits of an evaluation's sums.
CHANGE_NOTHING = frozenset({"data_dir", "progress", "eval_batch_size", "tensorboard"})
# These may differ when a workdir is continued: a comparison then has more seeds or
# another answer, a sweep more trials and seeds. Members trained in another program have
# the same numbers up to the last digits.
MAY_CHANGE = CHANGE_NOTHING | {
    *("compare.num_seeds", "compare.margin", "compare.members_at_once"),
    *("sweep.num_trials", "sweep.num_seeds", "sweep.storage", "sweep.members_at_once"),
}

# These schedules do not depend on `num_epochs`.
STEADY_SCHEDULES = frozenset({"constant", "plateau"})


def validate(config: ConfigDict) -> None:
    """Check the names of the fields, each value by itself, and how they fit together.

    Raises:
      ConfigError: with the field, its value and what it must be.
    """
    check_fields(config)
    for name, field in FIELDS.items():
        if not field.is_valid(config[name]):
            raise ConfigError(describe(name, config[name]))
    warmup_epochs = config.warmup_epochs or 0
    decays = config.schedule not in STEADY_SCHEDULES
    if decays and warmup_epochs >= config.num_epochs:
        raise ConfigError(
            f"--config.warmup_epochs={config.warmup_epochs}: must be less than "
            f"--config.num_epochs={config.num_epochs} with the {config.schedule} "
            f"schedule; e.g. --config.warmup_epochs={config.num_epochs / 10:g}"
        )
    waits_longer = config.plateau_patience >= config.early_stopping > 0
    if config.schedule == "plateau" and waits_longer:
        raise ConfigError(
            f"--config.early_stopping={config.early_stopping}: would end the run "
            "before the plateau schedule lowers the rate; must be more than "
            f"--config.plateau_patience={config.plateau_patience}, or 0; "
            f"e.g. --config.early_stopping={3 * config.plateau_patience}"
        )


def check_fields(config: ConfigDict, source: str = "the config") -> None:
    """Raise `ConfigError` unless the config has exactly the fields of `FIELDS`."""
    names = flatten(config).keys()
    if unknown := sorted(names - FIELDS.keys(), key=str):
        raise ConfigError(f"{source}: {unknown_field(str(unknown[0]))}")
    if missing := [name for name in FIELDS if name not in names]:
        raise ConfigError(
            f"{source} lacks {', '.join(missing)}; start from default.get_config() "
            "of configs/default.py and change what differs"
        )


def describe(name: str, value: Any) -> str:
    """Return the line that says what the field must be, and that this value is not."""
    field = FIELDS[name]
    return (
        f"--config.{name}={format_value(value)}: must be {field.must_be}; "
        f"e.g. --config.{name}={field.example}"
    )


def unknown_field(name: str) -> str:
    """Return the line for a field that does not exist, with the nearest that do."""
    near = difflib.get_close_matches(name, [*FIELDS, *_BY_LAST_NAME])
    if name in _BY_LAST_NAME:
        near = [name]
    near = [place for match in near for place in _BY_LAST_NAME.get(match, [match])]
    return f"unknown field --config.{name}; " + (
        f"did you mean {' or '.join(f'--config.{n}' for n in near)}?"
        if near
        else "configs/default.py describes them all"
    )


def format_value(value: Any) -> str:
    """Return a field's value as one writes it on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def flatten(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """Return {name: value} of all fields, those of a section as `section.field`."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Set a field by its name, which for a field of a section has a dot."""
    section, _, last = name.rpartition(".")
    (config[section] if section else config)[last] = value


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Return a nested dict that JSON can hold: tuples become lists."""
    return _nest(
        {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in flatten(config).items()
        }
    )


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """Return the locked config that `to_dict` was given: lists become tuples."""
    fields = {}
    for name, value in flatten(values).items():
        if value is None and name in FIELDS:
            # Without its type, a flag could not replace it.
            value = config_dict.placeholder(FIELDS[name].unset_type or object)
        fields[name] = tuple(value) if isinstance(value, list) else value
    return ConfigDict(_nest(fields)).lock()


def upgrade(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json of any version, as `to_dict` would today.

    A field that has since moved into sections has its value in each of them, and one
    that is newer than the file the value of `ADDED`.

    Raises:
      ConfigError: for a field that no version has had.
    """
    fields = dict(ADDED)
    for name, value in flatten(stored).items():
        if name not in FIELDS and name not in _BY_LAST_NAME:
            raise ConfigError(unknown_field(name))
        places = [name] if name in FIELDS else _BY_LAST_NAME[name]
        fields |= dict.fromkeys(places, value)
    return _nest(fields)


def _nest(fields):
    """Undo `flatten`."""
    nested = {}
    for name, value in fields.items():
        section, _, last = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[last] = value
    return nested


def fields_of(kind: str) -> set[str]:
    """Return the names of the fields that a run, a comparison or a sweep reads."""
    sections = {"", SECTIONS[kind]}
    return {name for name in FIELDS if name.rpartition(".")[0] in sections}


def run_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that every run reads, which are those at the top."""
    return {n: v for n, v in config.items() if not isinstance(v, ConfigDict)}


def identity(config: ConfigDict, kind: str) -> dict[str, Any]:
    """Return the fields that a workdir of this kind must keep, sorted by name.

    The names are without the section: `variants`, not `compare.variants`.
    """
    names = fields_of(kind) - MAY_CHANGE
    return dict(sorted((name.rpartition(".")[2], config[name]) for name in names))


def default_workdir(
    config_path: str, config: ConfigDict, base: ConfigDict, kind: str = RUN
) -> str:
    """Return `runs/<config name>[@<arg>][-<field>=<value>...]`.

    A comparison's name begins with `compare`, that of a sweep with `sweep`.

    Args:
      config_path: the config file as given, with its `:arg` if it has one.
      config: the config of the run.
      base: what the file alone says; a field that keeps that value is not named.
      kind: `RUN`, `COMPARISON` or `SWEEP`.
    """
    path, colon, argument = config_path.partition(":")
    stem = pathlib.Path(path).stem
    prefix = SECTIONS[kind]
    pieces = [stem if prefix in ("", stem) else f"{prefix}-{stem}"]
    pieces += ["@", argument] if colon else []
    unchanged = identity(base, kind)
    for name, value in identity(config, kind).items():
        if value != unchanged[name]:
            pieces += [f"-{name}=", format_value(value).replace(",", "_")]
    # A name is unambiguous without "=" and "@" in the file's name, the argument and the
    # values. Any other name, and a long one, gets a hash.
    text = "".join(pieces)
    is_plain = all(re.fullmatch(r"[\w.+-]*", piece, re.ASCII) for piece in pieces[::2])
    if not is_plain or len(text) > 120:
        digest = hashlib.sha256(repr(pieces).encode()).hexdigest()[:10]
        text = re.sub(r"[^\w.=@+-]", "_", text, flags=re.ASCII)[:100] + f"-{digest}"
    return os.path.join("runs", text)
