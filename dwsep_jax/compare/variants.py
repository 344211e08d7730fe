"""What a comparison compares: the separable network, and others to hold it against.

A smaller network is no fair comparison, so two variants of it are widened until they
have as many parameters, or take as many MACs, as the network of standard convolutions.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dwsep_jax.compare.widths import Size, match_size, measure_size
from dwsep_jax.data import Dataset
from dwsep_jax.errors import ConfigError, choose

# The answer of a comparison is about the first against the second.
MAIN, BASELINE = "separable", "standard"
VARIANTS = {
    MAIN: "separable convolutions",
    BASELINE: "standard convolutions in their place",
    "separable_parameters": "separable, widened to the parameters of standard",
    "separable_macs": "separable, widened to the MACs of standard",
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
    descriptions = {name: choose("variants", name, VARIANTS) for name in names}
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
    for name, description in descriptions.items():
        overrides = _find_overrides(name, config, *shapes)
        changed = config.copy_and_resolve_references()
        changed.update(overrides)
        size = measure_size(changed, *shapes)
        variants.append(Variant(name, description, overrides, changed, size))
    return variants


def _find_overrides(name, config, *shapes):
    if name == MAIN:
        return {}
    # A standard convolution has no inside.
    inner = [field for field in ("inner_norm", "inner_activation") if config[field]]
    standard = {"conv": "standard", **dict.fromkeys(inner, False)}
    if name == BASELINE:
        return standard
    quantity = name.removeprefix("separable_")
    target = getattr(measure_size(config, *shapes, **standard), quantity)
    return match_size(config, quantity, target, *shapes)
