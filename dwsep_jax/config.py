"""Configurations: files, checks, the forms they are stored in."""

import importlib.util
import os
import pathlib
import sys
import traceback
import types
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax.errors import ConfigError
from dwsep_jax.fields import ADDED, FIELDS, SECTIONS, describe, places, unknown_field

# Inside the package if it was installed from a wheel, beside it in a clone.
_PACKAGE = pathlib.Path(__file__).parent
CONFIGS = _PACKAGE / "configs"
if not CONFIGS.is_dir():
    CONFIGS = _PACKAGE.parent / "configs"
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
    package = types.ModuleType("configs")  # For `from configs import default`.
    package.__path__ = [str(CONFIGS)]
    sys.modules.setdefault("configs", package)
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

    Args:
      stored: the fields, those of a section within it or as `section.field`.

    Raises:
      ConfigError: for a field that no version has had, or as `validate`.
    """
    fields = {}
    for name, value in (ADDED | flatten(stored)).items():
        if not places(name):
            raise ConfigError(unknown_field(name))
        value = tuple(value) if isinstance(value, list) else value
        fields |= dict.fromkeys(places(name), value)
    config = ConfigDict({section: {} for section in SECTIONS.values() if section})
    config.update_from_flattened_dict(fields)
    validate(config)
    return config.lock()


def run_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that every run reads, which are those at the top."""
    return {n: v for n, v in config.items() if not isinstance(v, ConfigDict)}
