"""What a comparison compares: the separable network, and others to hold it against.

A smaller network is no fair comparison, so two variants of it are widened until they
have as many parameters, or take as many MACs, as the network of standard convolutions.
"""

from functools import partial
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dwsep_jax.compare.widths import Size, match_size, measure_size
from dwsep_jax.data import Dataset
from dwsep_jax.errors import ConfigError, choose

# The answer of a comparison is about the first against the second.
MAIN, BASELINE = "separable", "standard"


def _use_standard(config, *shapes):
    # A standard convolution has no inside.
    inner = [field for field in ("inner_norm", "inner_activation") if config[field]]
    return {"conv": "standard", **dict.fromkeys(inner, False)}


def _match_standard(quantity, config, *shapes):
    standard = measure_size(config, *shapes, **_use_standard(config))
    return match_size(config, quantity, getattr(standard, quantity), *shapes)


# {name: (description, function that returns the fields to change)}. The function takes
# the config, the number of classes and the image shape (H, W, C).
VARIANTS = {
    MAIN: ("separable convolutions", lambda config, *shapes: {}),
    BASELINE: ("standard convolutions in their place", _use_standard),
    "separable_parameters": (
        "separable, widened to the parameters of standard",
        partial(_match_standard, "parameters"),
    ),
    "separable_macs": (
        "separable, widened to the MACs of standard",
        partial(_match_standard, "macs"),
    ),
}


class Variant(NamedTuple):
    """A network of a comparison.

    Attributes:
      name: as in `config.compare.variants`.
      description: for people.
      overrides: the fields in which it differs from the comparison's config.
      config: all fields.
      size: its parameters and MACs.
    """

    name: str
    description: str
    overrides: dict[str, Any]
    config: ConfigDict
    size: Size


def make_variants(config: ConfigDict, dataset: Dataset) -> list[Variant]:
    """Return the variants that a configuration names, in its order.

    Raises:
      ConfigError: for an unknown variant, if one that the answer needs is missing, or
        for another `conv` than the variants start from.
    """
    names = config.compare.variants
    chosen = {name: choose("variants", name, VARIANTS) for name in names}
    if missing := [name for name in (MAIN, BASELINE) if name not in names]:
        raise ConfigError(
            f"--config.compare.variants={','.join(names)} lacks "
            f"{' and '.join(missing)}; the answer is about {MAIN} against {BASELINE}"
        )
    if config.conv != MAIN:
        raise ConfigError(
            f"--config.conv={config.conv}: a comparison starts from {MAIN}, and its "
            "variants set the others; leave it out, or choose another --config"
        )
    shapes = (len(dataset.class_names), dataset.train.images.shape[1:])
    variants = []
    for name, (description, find_overrides) in chosen.items():
        overrides = find_overrides(config, *shapes)
        changed = config.copy_and_resolve_references()
        changed.update(overrides)
        size = measure_size(changed, *shapes)
        variants.append(Variant(name, description, overrides, changed, size))
    return variants
