"""The dense network (Huang et al. 2017), of any convolution.

In a dense block every layer reads all earlier outputs. All readers of a channel see the
same batch mean and variance, so these are taken once, where the channel is made, and
travel with it as `Features`; each reader has a scale and a bias of its own. The result
is that of a `nn.BatchNorm` in each reader, for a fraction of the cost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from dwsep_jax.errors import ConfigError, choose
from dwsep_jax.nn import layers, ops

ModuleDef = Any
Activation = Callable[[jax.Array], jax.Array]


class Features(NamedTuple):
    """Channels in the pieces in which they were made, with their batch statistics.

    The pieces (N, H, W, C_i) are not joined: a tensor that grows by each layer would be
    copied for each. mean and var are of all channels, (C,).
    """

    pieces: tuple[jax.Array, ...]
    mean: jax.Array
    var: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (*self.pieces[0].shape[:-1], self.mean.shape[0])

    def append(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> "Features":
        """Return the features with another piece."""
        means = jnp.concatenate([self.mean, mean])
        return Features((*self.pieces, x), means, jnp.concatenate([self.var, var]))


class DenseLayer(nn.Module):
    """Make `growth_rate` channels: dropout(conv(act(norm(x)))).

    `normalize` and `norm` end with the activation. A convolution that takes
    `Normalized` features computes them on the way. With a `bottleneck`, a 1x1
    convolution to that many growth rates of channels, a norm and an activation come
    before the convolution (DenseNet-B).
    """

    growth_rate: int
    conv: ModuleDef
    normalize: ModuleDef
    norm: ModuleDef
    bottleneck: float = 0
    dropout_rate: float | jax.Array = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool) -> jax.Array:
        x = self.normalize(name="norm")(*features)
        if self.bottleneck:
            width = round(self.bottleneck * self.growth_rate)
            bottleneck = layers.PointwiseConv(
                width, dtype=self.dtype, name="bottleneck"
            )
            x = self.norm(name="bottleneck_norm")(bottleneck(x.compute()))
        conv = self.conv(self.growth_rate, name="conv")
        if not (self.bottleneck or getattr(conv, "takes_normalized", False)):
            x = x.compute()
        dropout = layers.Dropout(self.dropout_rate, name="dropout")
        return dropout(conv(x), deterministic=not train)


class DenseBlock(nn.Module):
    """Run dense layers, each on the outputs of all before it."""

    num_layers: int
    layer: ModuleDef
    statistics: ModuleDef

    @nn.compact
    def __call__(self, features: Features, train: bool) -> Features:
        for i in range(self.num_layers):
            y = self.layer(name=f"layer{i}")(features, train)
            statistics = self.statistics(name=f"statistics{i}")(y, not train)
            features = features.append(y, *statistics)
        return features


class Transition(nn.Module):
    """Mix and thin out the channels by a 1x1 convolution, and halve the image."""

    num_channels: int
    normalize: ModuleDef
    lowering: str = "auto"

    @nn.compact
    def __call__(self, features: Features) -> jax.Array:
        x = self.normalize(name="norm")(*features)
        shape = (1, 1, x.shape[-1], self.num_channels)
        kernel, _ = layers.Weights(shape, name="conv")()
        return ops.halving_conv(x, kernel.astype(x.dtype), lowering=self.lowering)


class DenseNet(nn.Module):
    """Classify images: stem, dense blocks with transitions between, pooling, dense.

    Attributes:
      conv: the convolution of the dense layers, a module factory called as
        `conv(features, kernel_size=..., dtype=..., name=...)`: `SeparableConv`,
        `StandardConv`, or any other that takes these.
      num_classes: length of the logits.
      growth_rate: channels that each dense layer adds.
      block_sizes: dense layers of each block.
      bottleneck: width of the 1x1 convolution in each layer, in growth rates; 0: none.
      reduction: share of the channels that a transition keeps.
      stem_width: channels of the stem, in growth rates.
      stem_stride: 1, or 2 to halve the image at once.
      kernel_size: side of the kernels of the stem and the dense layers.
      act: activation.
      dropout_rate: share of each dense layer's outputs that is dropped.
      inner_norm: put a batch norm between depthwise and pointwise (`SeparableConv`).
      inner_act: put the activation between depthwise and pointwise, likewise.
      norm_momentum: share that running statistics keep at each step.
      lowering: of the stem and the transitions, as in `ops`; changes speed alone.
      dtype: of the activations; parameters, statistics and logits are float32.
      remat: compute the inside of each dense layer again in the backward pass, rather
        than keep it (Chen et al. 2016): less memory, more time, the same result.
    """

    conv: ModuleDef = layers.SeparableConv
    num_classes: int = 10
    growth_rate: int = 24
    block_sizes: Sequence[int] = (6, 6, 6, 6)
    bottleneck: float = 0
    reduction: float = 0.5
    stem_width: float = 2.0
    stem_stride: int = 1
    kernel_size: int = 3
    act: Activation = nn.relu
    dropout_rate: float = 0.0
    inner_norm: bool = False
    inner_act: bool = False
    norm_momentum: float = 0.9
    lowering: str = "auto"
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool = False,
        dropout_rate: float | jax.Array | None = None,
    ) -> jax.Array:
        """Return logits (N, num_classes), float32, of images x (N, H, W, C).

        In training, batch statistics are of this batch, the collection `batch_stats`
        must be mutable, and dropout draws from the stream `dropout`. A `dropout_rate`
        replaces that of the network; it may be traced.
        """
        dropout_rate = self.dropout_rate if dropout_rate is None else dropout_rate
        _check_image_size(x.shape, self.stem_stride, len(self.block_sizes))
        stem_width = max(1, round(self.stem_width * self.growth_rate))
        num_chunks = 1 if train else self._count_chunks(x, stem_width)
        if num_chunks > 1:
            apply = partial(self.clone(parent=None).apply, self.variables)
            return ops.map_chunks(lambda images: apply(*images), [x], num_chunks)
        kernel_size = (self.kernel_size, self.kernel_size)
        dtype, act = self.dtype, self.act
        statistics = partial(layers.BatchStatistics, self.norm_momentum)
        normalize = partial(layers.DeferredNormalize, dtype=dtype, activation=act)
        norm = partial(layers.BatchNorm, not train, self.norm_momentum, dtype=dtype)
        conv = partial(self.conv, kernel_size=kernel_size, dtype=dtype)
        if self.inner_norm:
            conv = partial(conv, norm=norm)
        if self.inner_act:
            conv = partial(conv, activation=act)
        layer = partial(
            nn.remat(DenseLayer, static_argnums=2) if self.remat else DenseLayer,
            growth_rate=self.growth_rate,
            conv=conv,
            normalize=normalize,
            norm=partial(norm, activation=act),
            bottleneck=self.bottleneck,
            dropout_rate=dropout_rate,
            dtype=dtype,
        )

        stem = partial(layers.StandardConv, dtype=dtype, lowering=self.lowering)
        x = stem(stem_width, kernel_size, self.stem_stride, name="stem")(x)
        for b, num_layers in enumerate(self.block_sizes):
            features = Features((x,), *statistics(name=f"statistics{b}")(x, not train))
            block = DenseBlock(num_layers, layer, statistics, name=f"block{b}")
            features = block(features, train)
            if b + 1 < len(self.block_sizes):
                # Rounded first: 0.58 * 100 is a little less than 58.
                kept = int(round(self.reduction * features.shape[-1], 9))
                transition = partial(Transition, name=f"transition{b + 1}")
                x = transition(max(1, kept), normalize, self.lowering)(features)
        x = normalize(name="norm")(*features).map(
            lambda x: jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        )
        return nn.Dense(self.num_classes, kernel_init=layers.he_normal, name="head")(x)

    def _count_chunks(self, x, stem_width):
        """Return into how many parts to cut images; in the cache, inference is faster.

        A part has 16 images or more. Nobody sees what happens inside the parts.
        """
        is_seen = self.is_initializing() or self.is_mutable_collection("intermediates")
        if is_seen or self.lowering == "conv" or jax.default_backend() != "cpu":
            return 1
        num_pixels = math.prod(-(-size // self.stem_stride) for size in x.shape[1:3])
        num_chunks = ops.count_chunks([x], num_pixels * stem_width)
        # The size of a batch may be a symbol; then there is one part.
        is_worth_it = num_chunks > 1 and 16 * num_chunks <= x.shape[0]
        return num_chunks if is_worth_it else 1


def _check_image_size(shape, stem_stride, num_blocks):
    """Raise unless a pixel is left after the stem and every transition."""
    size = -(-min(shape[1:3]) // stem_stride)
    if size >> (num_blocks - 1) == 0:
        raise ConfigError(
            f"block_sizes with {num_blocks} blocks halves the image {num_blocks - 1} "
            f"times, more than {shape[1]}x{shape[2]} pixels with stem_stride="
            f"{stem_stride} allow; take fewer blocks, or larger images"
        )


CONVOLUTIONS = {"separable": layers.SeparableConv, "standard": layers.StandardConv}
ACTIVATIONS = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "swish": nn.swish,
    "gelu": nn.gelu,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def create_model(config: ConfigDict, num_classes: int) -> DenseNet:
    """Build the network of a configuration.

    Raises:
      ConfigError: for an unknown choice, or an option that the convolution lacks.
    """
    conv = choose("conv", config.conv, CONVOLUTIONS)
    for field in ("inner_norm", "inner_activation"):
        if conv is layers.StandardConv and config[field]:
            raise ConfigError(
                f"{field}={config[field]} needs conv='separable': a standard "
                "convolution has no inside"
            )
    # Most fields have the name of an argument.
    arguments = {f.name: config[f.name] for f in fields(DenseNet) if f.name in config}
    arguments["conv"] = partial(conv, lowering=config.lowering)
    arguments["dtype"] = choose("dtype", config.dtype, DTYPES)
    act = choose("activation", config.activation, ACTIVATIONS)
    return DenseNet(
        **arguments, num_classes=num_classes, act=act, inner_act=config.inner_activation
    )
