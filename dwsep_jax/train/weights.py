"""Starts a run from the weights of another one."""

import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.flax import load_file
from safetensors.numpy import load as load_arrays

from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.train.evaluation import restore_to_evaluate
from dwsep_jax.train.step import TrainState
from dwsep_jax.workdir import load_config, read_json


def load_weights(config: ConfigDict, state: TrainState) -> TrainState:
    """Return the state with the weights and batch statistics of `init_from`.

    Those of a run, or of an export, are the ones that its evaluation describes. The
    head stays as it is where there is another number of classes.

    Args:
      config: resolved.
      state: initial; arrays, or only their shapes.

    Raises:
      UserError: if there is no run, or no checkpoint that can be read.
      ConfigError: for a file that cannot be read, or another network.
    """
    field = f"--config.init_from={config.init_from}"
    path = os.path.expanduser(config.init_from)
    if os.path.exists(os.path.join(path, "manifest.json")):
        there = {name: jnp.asarray(x) for name, x in read_exported(path).items()}
    elif os.path.isfile(path):
        there = _read_file(path, field)
    else:
        there = _read_run(path, field)
    here = _flatten({"params": state.params, "batch_stats": state.batch_stats})
    for name in sorted(there.keys() | here.keys()):
        shapes = [
            flat[name].shape if name in flat else "missing" for flat in (there, here)
        ]
        if shapes[0] == shapes[1]:
            there[name] = there[name].astype(here[name].dtype)
        else:
            if not name.startswith("params/head/") or "missing" in shapes:
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


def read_exported(directory: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the weights of a directory of --mode=export, by their paths with slashes.

    Raises:
      UserError: if they are missing or damaged.
    """
    path = pathlib.Path(directory) / "model.safetensors"
    digests = read_json(directory, "manifest")["files"]
    if path.name not in digests:
        raise UserError(f"{path} is missing; export again with --format=safetensors")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); export it again") from error
    if hashlib.sha256(content).hexdigest() != digests[path.name]:
        raise UserError(f"{path} is damaged: its checksum differs; export it again")
    arrays = load_arrays(content)
    return {name.replace(".", "/"): array for name, array in arrays.items()}


def _read_run(workdir, field):
    trained = restore_to_evaluate(load_config(workdir), Checkpoints(workdir), None)
    if trained is None:
        raise ConfigError(f"{field}: has no checkpoint yet; train it with --mode=train")
    return _flatten(trained["ema"] or trained)


def _read_file(path, field):
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{field}: is not a safetensors file that can be read ({error}); name "
            "another, or the workdir of a run"
        ) from error
    return {name.replace(".", "/"): array for name, array in arrays.items()}


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    parts = {name: tree[name] for name in ("params", "batch_stats")}
    return flatten_dict(parts, sep="/")
