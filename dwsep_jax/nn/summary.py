"""What a configured network is made of: outputs, parameters and MACs of its parts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dwsep_jax.nn.counting import count_macs
from dwsep_jax.nn.densenet import create_model


class Part(NamedTuple):
    """A part of the network, for one image.

    Attributes:
      name: as among the parameters.
      output_shape: (H, W, C), or (K,) for the head.
      parameters: trainable numbers.
      macs: multiply-adds of convolutions and matrix products, textbook formula.
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
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def apply(variables, images):
        return model.apply(
            variables, images, capture_intermediates=lambda module, _: len(module.path)
        )

    _, captured = jax.eval_shape(apply, variables, images)
    macs: dict[str, int] = {}
    for operation in count_macs(model.apply, variables, images):
        name = operation.scope.split("/")[1]
        macs[name] = macs.get(name, 0) + operation.macs
    parts = []
    for name in _part_names(len(config.block_sizes)):
        (output,) = captured["intermediates"][name]["__call__"]
        leaves = jax.tree.leaves(variables["params"][name])
        parameters = sum(leaf.size for leaf in leaves)
        parts.append(Part(name, output.shape[1:], parameters, macs.get(name, 0)))
    return parts


def with_reference_lowering(config: ConfigDict) -> ConfigDict:
    """Return a copy whose network has nothing but operations that can be counted."""
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


def _part_names(num_blocks):
    names = ["stem", "block0"]
    for b in range(1, num_blocks):
        names += [f"transition{b}", f"block{b}"]
    return [*names, "norm", "head"]
