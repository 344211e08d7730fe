"""What a configured network consists of: outputs, parameters and MACs of its parts."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dwsep_jax.nn.counting import list_layers, list_operations
from dwsep_jax.nn.densenet import create_model


class Part(NamedTuple):
    """A part of the network, for one image.

    Attributes:
      name: as among the parameters.
      output_shape: (H, W, C), or (K,) for the head.
      parameters: number of trainable parameters.
      macs: multiply-adds of convolutions and matrix products, by the textbook formula.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def summarize(
    config: ConfigDict, num_classes: int, image_shape: tuple[int, ...]
) -> list[Part]:
    """Return the parts of the network in order; nothing is computed."""
    model = create_model(with_reference_lowering(config), num_classes)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def is_part(module, method_name):
        return len(module.path) == 1

    init = partial(model.init, mutable=True, capture_intermediates=is_part)
    variables = jax.eval_shape(init, jax.random.key(0), images)
    outputs = variables.pop("intermediates")
    operations = list_operations(model.apply, variables, images)
    parts: dict[str, Part] = {}
    for layer in list_layers(operations, variables["params"]):
        name = layer.name.partition("/")[0]
        (output,) = outputs[name]["__call__"]
        part = parts.get(name, Part(name, output.shape[1:], 0, 0))
        parameters, macs = part.parameters + layer.parameters, part.macs + layer.macs
        parts[name] = part._replace(parameters=parameters, macs=macs)
    return list(parts.values())


def with_reference_lowering(config: ConfigDict) -> ConfigDict:
    """Return a copy whose network consists of operations that can be counted."""
    reference = config.copy_and_resolve_references()
    reference.lowering = "conv"
    return reference


def describe_network(config: ConfigDict, parts: list[Part]) -> str:
    """Return one line that tells which network it is."""
    layers = "-".join(str(size) for size in config.block_sizes)
    return (
        f"DenseNet {layers} of {config.conv} convolutions, growth rate "
        f"{config.growth_rate}, {sum(part.parameters for part in parts):,} parameters, "
        f"{sum(part.macs for part in parts) / 1e6:.1f} M MACs per image"
    )
