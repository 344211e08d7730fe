"""A network and a dataset small enough to train in a test."""

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import default
from dwsep_jax.data import Dataset, Split
from dwsep_jax.train import loop, running
from dwsep_jax.train.step import TrainState

NUM_CLASSES = 3


_CHANGES = {
    "dataset": "tiny",
    "growth_rate": 4,
    "block_sizes": (1, 1),
    "batch_size": 8,
    "eval_batch_size": 8,
    "num_epochs": 2,
    "warmup_epochs": 0.0,
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "shift": 1,
    "dropout_rate": 0.2,
}


def make_config(section: str = "compare", /, **changes) -> ConfigDict:
    """Return the default configuration on a network of a few hundred parameters.

    Args:
      section: `compare` or `sweep`, whose fields may be among the changes.
      **changes: values of fields, by their last names.
    """
    config = default.get_config()
    for name, value in (_CHANGES | changes).items():
        (config if name in config else config[section])[name] = value
    return config


def make_split(size: int, seed: int) -> Split:
    """Return 8x8 images whose class is the brightest channel."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(size) % NUM_CLASSES).astype(np.int32)
    images = rng.integers(0, 128, (size, 8, 8, 3))
    images[np.arange(size), :, :, labels] += 100
    ids = np.array([f"tiny_{seed}_{i:03d}" for i in range(size)])
    return Split(images.astype(np.uint8), labels, ids)


def make_dataset() -> Dataset:
    """Return 44 training, 10 validation and 13 test images: no size is a multiple."""
    return Dataset(
        name="tiny",
        class_names=("red", "green", "blue"),
        train=make_split(44, 0),
        validation=make_split(10, 1),
        train_eval=make_split(10, 0),
        test=make_split(13, 2),
    )


def make_resolved(**changes) -> ConfigDict:
    """Return `make_config` with every unset value set."""
    return loop.resolve(make_config(**changes), make_dataset())


def bits(tree) -> dict[str, tuple]:
    """Return dtype, shape and bytes of every leaf, by its path."""

    def read(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()

    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): read(leaf) for path, leaf in leaves}


def make_state(**changes) -> TrainState:
    """Return the initial state of `make_config`'s run."""
    return loop.make_state(make_config(**changes), make_dataset())


def fake_validation(monkeypatch, name: str, values: list[float]) -> None:
    """Replace a number of each epoch's row."""
    evaluate_epoch = running.evaluate_epoch

    def fake(config, dataset, state):
        row = evaluate_epoch(config, dataset, state)
        return row | {name: values[int(state.step) // 5 - 1]}

    monkeypatch.setattr(running, "evaluate_epoch", fake)
