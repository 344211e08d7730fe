"""The configuration of a run at a point of a sweep's space."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax.config import validate
from dwsep_jax.sweep.space import Axis, set_value
from dwsep_jax.train import optim


def make_config_at(
    params: dict[str, Any], config: ConfigDict, axes: Sequence[Axis]
) -> ConfigDict:
    """Return the configuration of a run.

    Args:
      params: the value of each axis, or of some, by its name.
      config: of the sweep.
      axes: of its space.

    Raises:
      ConfigError: if the values are at odds with each other.
    """
    config = config.copy_and_resolve_references()
    config.sweep.storage = None  # No run reads it, and it may hold a password.
    factor = None
    for axis in axes:
        if axis.name in params:
            if axis.is_factor:
                factor = params[axis.name]
            else:
                set_value(config, axis, params[axis.name])
    if factor is not None:
        config.learning_rate = None
        config.learning_rate = factor * optim.resolve(config).learning_rate
    validate(config)
    return config
