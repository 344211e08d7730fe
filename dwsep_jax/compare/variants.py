"""What a comparison compares: the separable network, and others to hold it against.

A smaller network is no like for like, so two variants of it are widened until they have
as many parameters, or take as many MACs, as the network of standard convolutions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dwsep_jax.compare.widths import Size, match_size, measure_size
from dwsep_jax.data import Dataset
from dwsep_jax.errors import ConfigError, choose

# The answer is that of the one against the other.
MAIN, BASELINE = "separable", "standard"


class Variant(NamedTuple):
    """A network of a comparison.

    Attributes:
      name: as in `config.compare.variants`.
      description: for people.
      overrides: the fields in which it differs from the config of the comparison.
      config: all fields.
      size: its parameters and MACs.
    """

    name: str
    description: str
    overrides: dict[str, Any]
    config: ConfigDict
    size: Size


class _Recipe(NamedTuple):
    description: str
    make_overrides: Callable[[ConfigDict, int, tuple[int, ...]], dict[str, Any]]


def _keep(config, num_classes, image_shape):
    return {}


def _standard(config, num_classes, image_shape):
    # A standard convolution has no inside.
    inner = [name for name in ("inner_norm", "inner_activation") if config[name]]
    return {"conv": "standard", **dict.fromkeys(inner, False)}


def _match_standard(quantity, config, num_classes, image_shape):
    standard = config.copy_and_resolve_references()
    standard.update(_standard(config, num_classes, image_shape))
    target = getattr(measure_size(standard, num_classes, image_shape), quantity)
    return match_size(config, quantity, target, num_classes, image_shape)


VARIANTS = {
    MAIN: _Recipe("separable convolutions", _keep),
    BASELINE: _Recipe("standard convolutions in their place", _standard),
    "separable_parameters": _Recipe(
        "separable, widened to the parameters of standard",
        partial(_match_standard, "parameters"),
    ),
    "separable_macs": _Recipe(
        "separable, widened to the MACs of standard", partial(_match_standard, "macs")
    ),
}


def make_variants(config: ConfigDict, dataset: Dataset) -> list[Variant]:
    """Return the variants that a configuration names, in its order.

    Raises:
      ConfigError: for an unknown variant, for lack of one that the answer needs, or
        for another `conv` than the variants start from.
    """
    recipes = {
        name: choose("variants", name, VARIANTS) for name in config.compare.variants
    }
    if missing := [name for name in (MAIN, BASELINE) if name not in recipes]:
        raise ConfigError(
            f"--config.compare.variants={','.join(recipes)}: lacks "
            f"{' and '.join(missing)}, and the answer is that of {MAIN} "
            f"against {BASELINE}"
        )
    if config.conv != MAIN:
        raise ConfigError(
            f"--config.conv={config.conv}: a comparison starts from {MAIN}, and its "
            "variants have the others; leave it out, or take another --config"
        )
    num_classes = len(dataset.class_names)
    image_shape = dataset.train.images.shape[1:]
    variants = []
    for name, recipe in recipes.items():
        overrides = recipe.make_overrides(config, num_classes, image_shape)
        changed = config.copy_and_resolve_references()
        changed.update(overrides)
        size = measure_size(changed, num_classes, image_shape)
        variants.append(Variant(name, recipe.description, overrides, changed, size))
    return variants
