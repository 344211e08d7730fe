"""Weights of the classes in the training loss."""

import difflib

import numpy as np

from dwsep_jax.data import Dataset
from dwsep_jax.errors import ConfigError
from dwsep_jax.fields import read_class_weights


def make_class_weights(text: str, dataset: Dataset) -> tuple[float, ...] | None:
    """Return the weight of each class, from `config.class_weights`; None for "none".

    "balanced" is the mean count of the classes that occur in `train`, divided by the
    class's own, as in scikit-learn; a class without images has weight 1.

    Raises:
      ConfigError: if a name is not one of the classes.
    """
    names = dataset.class_names
    if text == "none":
        return None
    weights = np.ones(len(names))
    if text == "balanced":
        occurring, counts = np.unique(dataset.train.labels, return_counts=True)
        weights[occurring] = counts.mean() / counts
        return tuple(weights.tolist())
    for name, weight in read_class_weights(text).items():
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=3, cutoff=0)
            raise ConfigError(
                f"--config.class_weights={text}: {name!r} is no class of "
                f"{dataset.name}; did you mean {' or '.join(nearest)}?"
            )
        weights[names.index(name)] = weight
    return tuple(weights.tolist())
