"""Starts a run from the weights of another one."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from dwsep_jax.errors import ConfigError
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.train.evaluation import restore_to_evaluate
from dwsep_jax.train.step import TrainState
from dwsep_jax.workdir import load_config


def load_weights(config: ConfigDict, state: TrainState) -> TrainState:
    """Return the state with weights and batch statistics of the run `init_from`.

    They are those that its evaluation describes. The head stays as it is where the
    other run has another number of classes.

    Args:
      config: resolved.
      state: initial; arrays, or only their shapes.

    Raises:
      UserError: if there is no run, or no checkpoint that can be read.
      ConfigError: if it has another network.
    """
    field = f"--config.init_from={config.init_from}"
    with Checkpoints(config.init_from, read_only=True) as checkpoints:
        trained = restore_to_evaluate(load_config(config.init_from), checkpoints, None)
    if trained is None:
        raise ConfigError(f"{field}: has no checkpoint yet; train it with --mode=train")
    there = _flatten(trained["ema"] or trained)
    here = _flatten({"params": state.params, "batch_stats": state.batch_stats})
    for name in sorted(there.keys() | here.keys()):
        shapes = [
            flat[name].shape if name in flat else "missing" for flat in (there, here)
        ]
        if shapes[0] != shapes[1]:
            if not name.startswith("params/head/"):
                raise ConfigError(
                    f"{field}: has another network: {name} is {shapes[0]} there, "
                    f"{shapes[1]} here; only the number of classes may differ"
                )
            there[name] = here[name]
    weights = unflatten_dict(there, sep="/")
    if state.ema is not None:
        # Copied: a buffer can be donated only once.
        average = jax.tree.map(jnp.copy, weights)
        state = state.replace(ema=state.ema.replace(**average))
    return state.replace(**weights)


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    parts = {name: tree[name] for name in ("params", "batch_stats")}
    return flatten_dict(parts, sep="/")
