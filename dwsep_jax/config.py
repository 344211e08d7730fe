"""Configurations: files, checks, the forms they are stored in, names of workdirs."""

import hashlib
import importlib.util
import os
import pathlib
import re
import sys
import traceback
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax.errors import ConfigError
from dwsep_jax.fields import (
    ADDED,
    FIELDS,
    MAY_CHANGE,
    RUN,
    SECTIONS,
    describe,
    fields_of,
    format_value,
    last_name,
    places,
    unknown_field,
)

# Inside the package if it was installed from a wheel, beside it in a clone.
_PACKAGE = pathlib.Path(__file__).parent
CONFIGS = next(
    path / "configs"
    for path in (_PACKAGE, _PACKAGE.parent)
    if (path / "configs").is_dir()
)
# Exports of trained networks, by name.
PRETRAINED = _PACKAGE / "pretrained"

# These schedules do not depend on `num_epochs`; `train.optim` has the others.
STEADY_SCHEDULES = ("constant", "plateau")


def load_file(config_path: str) -> ConfigDict:
    """Return the config of a `file[:arg]`, with the names of its fields checked.

    The files of `configs` may be given by their names, such as `digits`.

    Raises:
      ConfigError: if there is no such file, or `get_config` fails or returns something
        else.
    """
    path, colon, argument = config_path.partition(":")
    path = os.path.expanduser(path)
    if path in _shipped() and not os.path.isfile(path):
        path = str(CONFIGS / f"{path}.py")
    if not os.path.isfile(path):
        raise ConfigError(f"--config={path}: no such file{list_configs()}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None:
        raise ConfigError(f"--config={path}: must be a Python file, *.py")
    module = importlib.util.module_from_spec(spec)
    if "configs" not in sys.modules:  # For `from configs import default`.
        package = importlib.util.spec_from_file_location(
            "configs", CONFIGS / "__init__.py"
        )
        sys.modules["configs"] = importlib.util.module_from_spec(package)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([argument] if colon else []))
    except Exception as error:
        raise ConfigError(
            f"--config={config_path}: {type(error).__name__}: {error}"
            f"{_find_line(error, path)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"--config={config_path}: get_config() must return a ConfigDict, "
            f"not {type(config).__name__}"
        )
    check_fields(config, f"--config={config_path}")
    return config


def _find_line(error: Exception, path: str) -> str:
    """Return ` (line N)` of the config file, if the traceback passes through it."""
    path = os.path.abspath(path)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if os.path.abspath(f.filename) == path]
    return f" (line {lines[-1]})" if lines else ""


def list_configs() -> str:
    """Return what --config may be, for errors."""
    return f"; name a Python file, or one of {', '.join(_shipped())}"


def _shipped():
    return sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))


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


def flatten(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """Return {name: value} of all fields, those of a section as `section.field`."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat


def from_dict(stored: dict[str, Any]) -> ConfigDict:
    """Return the locked config that a config.json of any version holds.

    Lists become tuples. A field that has since moved into sections has its value in
    each of them, and one that is newer than the file has the value of `ADDED`.

    Raises:
      ConfigError: for a field that no version has had.
    """
    fields = {}
    for name, value in (ADDED | flatten(stored)).items():
        if not places(name):
            raise ConfigError(unknown_field(name))
        value = tuple(value) if isinstance(value, list) else value
        fields |= dict.fromkeys(places(name), value)
    config = ConfigDict({section: {} for section in SECTIONS.values() if section})
    config.update_from_flattened_dict(fields)
    return config.lock()


def run_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that every run reads, which are those at the top."""
    return {n: v for n, v in config.items() if not isinstance(v, ConfigDict)}


def identity(config: ConfigDict, kind: str) -> dict[str, Any]:
    """Return the fields that a workdir of this kind must keep, sorted by name.

    The names are without the section: `variants`, not `compare.variants`.
    """
    names = fields_of(kind) - MAY_CHANGE
    return dict(sorted((last_name(name), config[name]) for name in names))


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
