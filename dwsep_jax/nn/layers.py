"""Layers as linen modules: convolutions, batch norm in two halves, dropout.

Each can be used alone. Convolutions keep float32 parameters in the shapes of `nn.Conv`
and compute in `dtype` (by default that of their input and parameters, promoted).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype, promote_dtype

from dwsep_jax.nn import ops
from dwsep_jax.nn.shifted import accumulator_dtype, activate, per_channel

Dtype = Any
Initializer = Callable[..., jax.Array]
he_normal = nn.initializers.he_normal()


class DepthwiseConv(nn.Module):
    """Convolve each channel alone: (N, H, W, C) -> (N, H', W', C).

    A drop-in for `nn.Conv(C, kernel_size, feature_group_count=C)` with the same
    parameters, `kernel` (kh, kw, 1, C) and `bias` (C,). Fields: `ops.depthwise_conv`.
    """

    kernel_size: tuple[int, int] = (3, 3)
    strides: int | tuple[int, int] = (1, 1)
    padding: ops.Padding = "SAME"
    kernel_dilation: int | tuple[int, int] = (1, 1)
    use_bias: bool = False
    dtype: Dtype | None = None
    kernel_init: Initializer = he_normal
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, 1, x.shape[-1])
        kernel, bias = _weights(self, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = ops.depthwise_conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            lowering=self.lowering,
        )
        return y if bias is None else _add(y, bias)


class PointwiseConv(nn.Module):
    """Mix the channels of each pixel: (..., C) -> (..., features).

    A drop-in for `nn.Conv(features, (1, 1))` with the same parameters (`kernel`
    (1, 1, C, features), `bias` (features,)).
    """

    features: int
    use_bias: bool = False
    dtype: Dtype | None = None
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, x.shape[-1], self.features)
        kernel, bias = _weights(self, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = ops.pointwise_conv(x, kernel)
        return y if bias is None else _add(y, bias)


class SeparableConv(nn.Module):
    """Convolve depthwise, then pointwise: (N, H, W, C) -> (N, H', W', features).

    Takes kh * kw * C + C * features multiply-adds a pixel where a standard convolution
    takes kh * kw * C * features (Howard et al. 2017, section 3.1). `norm` and
    `activation`, where given, stand between the two, as in MobileNet; Xception has
    neither (Chollet 2017). `norm` is a module factory, called with a `name` alone.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int | tuple[int, int] = (1, 1)
    padding: ops.Padding = "SAME"
    use_bias: bool = False
    dtype: Dtype | None = None
    kernel_init: Initializer = he_normal
    lowering: str = "auto"
    norm: Callable[..., Callable[[jax.Array], jax.Array]] | None = None
    activation: Callable[[jax.Array], jax.Array] | None = None

    # Says to `DenseLayer` that x may be `ops.Normalized`.
    takes_normalized: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array | ops.Normalized) -> jax.Array:
        channels = x.shape[-1]
        weights = partial(Weights, kernel_init=self.kernel_init)
        depthwise, _ = weights((*self.kernel_size, 1, channels), name="depthwise")()
        shape = (1, 1, channels, self.features)
        pointwise, bias = weights(shape, self.use_bias, name="pointwise")()
        x, depthwise, pointwise = self._promote(x, depthwise, pointwise)
        options = {"strides": self.strides, "padding": self.padding}
        options["lowering"] = self.lowering
        if self.norm is None and self.activation is None:
            y = ops.separable_conv(x, depthwise, pointwise, **options)
        else:
            x = x.compute() if isinstance(x, ops.Normalized) else x
            with jax.named_scope("depthwise"):
                y = ops.depthwise_conv(x, depthwise, **options)
            y = y if self.norm is None else self.norm(name="norm")(y)
            y = activate(y, (), self.activation, pointwise.dtype)
            with jax.named_scope("pointwise"):
                y = ops.pointwise_conv(y, pointwise)
        return y if bias is None else _add(y, bias)

    def _promote(self, x, *kernels):
        if not isinstance(x, ops.Normalized):
            return promote_dtype(x, *kernels, dtype=self.dtype)
        dtype = canonicalize_dtype(jnp.zeros((), x.dtype), *kernels, dtype=self.dtype)
        return x.replace(dtype=dtype), *(k.astype(dtype) for k in kernels)


class StandardConv(nn.Module):
    """Convolve all channels with all: (N, H, W, C) -> (N, H', W', features).

    `nn.Conv` with the defaults and the fields of `SeparableConv`, its twin.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int | tuple[int, int] = (1, 1)
    padding: ops.Padding = "SAME"
    use_bias: bool = False
    dtype: Dtype | None = None
    kernel_init: Initializer = he_normal
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel, bias = Weights(shape, self.use_bias, self.kernel_init, name="conv")()
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = ops.standard_conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            lowering=self.lowering,
        )
        return y if bias is None else _add(y, bias)


class BatchStatistics(nn.Module):
    """Take the mean and variance of each channel over the batch: the costly half.

    In training the statistics are the batch's (biased variance, float32, the formula
    of `nn.BatchNorm`) and move the running ones, which are used in evaluation. Whoever
    makes a tensor takes its statistics once; all its consumers share them.
    """

    momentum: float = 0.9

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Return (mean, variance), each (C,) in float32 or wider, of x (..., C)."""
        dtype = accumulator_dtype(x.dtype)
        shape = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if use_running_average:
            return running_mean.value, running_var.value
        x = x.astype(dtype)
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axes)
        var = jnp.maximum(jnp.mean(x * x, axes) - mean * mean, 0.0)
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var
        return mean, var


class Normalize(nn.Module):
    """Normalize with given statistics, scale, shift, activate: the cheap half."""

    epsilon: float = 1e-5
    dtype: Dtype | None = None
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        """Return x (..., C) normalized by mean and var, (C,), in `dtype`."""
        return self._defer((x,), mean, var).compute()

    def _defer(self, pieces, mean, var):
        scale = self.param("scale", nn.initializers.ones, mean.shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, mean.shape, jnp.float32)
        affine = ops.fold(mean, var, scale, bias, epsilon=self.epsilon)
        dtype = self.dtype or jnp.result_type(*pieces)
        return ops.Normalized(tuple(pieces), *affine, self.activation, dtype)


class DeferredNormalize(Normalize):
    """Normalize, but leave the computation to whoever reads the result."""

    @nn.compact
    def __call__(
        self, pieces: Sequence[jax.Array], mean: jax.Array, var: jax.Array
    ) -> ops.Normalized:
        """Return the normalized pieces (N, H, W, C_i), by mean and var of all C."""
        return self._defer(pieces, mean, var)


class BatchNorm(nn.Module):
    """Normalize each channel by its batch statistics (Ioffe and Szegedy 2015).

    `nn.BatchNorm` in two halves that other modules use apart, followed by an activation
    where one is given; without a `dtype` the result has that of the input.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        statistics = BatchStatistics(self.momentum, name="statistics")
        mean, var = statistics(x, self.use_running_average)
        normalize = Normalize(
            self.epsilon, self.dtype, self.activation, name="normalize"
        )
        return normalize(x, mean, var)


class Dropout(nn.Module):
    """Zero elements at random and scale up the rest (Srivastava et al. 2014).

    `rate` may be a traced number. It is rounded to 1/256, so that 8 random bits decide
    on each element, a quarter of the usual cost; the scale is that of the rounded rate,
    so the expectation is that of x. Draws from the stream `dropout`.
    """

    rate: float | jax.Array

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Return x, of any shape, or x unchanged if deterministic or never dropped."""
        never = isinstance(self.rate, int | float) and self.rate == 0
        if deterministic or never:
            return x
        keep = jnp.round(256 * (1 - jnp.asarray(self.rate, jnp.float32)))
        bits = _random_bytes(self.make_rng("dropout"), x.shape)
        kept = bits.astype(jnp.uint16) < keep.astype(jnp.uint16)
        scale = jnp.where(keep > 0, 256 / jnp.maximum(keep, 1), 0)
        # Scaled in float32: rounded to bfloat16, the scale would shift the expectation.
        wide = accumulator_dtype(x.dtype)
        scaled = (x.astype(wide) * scale.astype(wide)).astype(x.dtype)
        return jnp.where(kept, scaled, jnp.zeros((), x.dtype))


def _random_bytes(key, shape):
    """Draw uint8 numbers, four of each word: jax would draw a word for each of them.

    Each quarter of the numbers takes one byte of every word: so XLA need not interleave
    them.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    quarters = [(words >> 8 * i).astype(jnp.uint8) for i in range(4)]
    return jnp.concatenate(quarters)[:size].reshape(shape)


class Weights(nn.Module):
    """The parameters of a convolution, as a module by itself: a name among others."""

    shape: tuple[int, ...]
    use_bias: bool = False
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        """Return kernel and bias, float32; None for no bias."""
        return _weights(self, self.shape)


def _weights(module, shape):
    kernel = module.param("kernel", module.kernel_init, shape, jnp.float32)
    if not module.use_bias:
        return kernel, None
    return kernel, module.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)


def _add(y, bias):
    return y + per_channel(bias.astype(y.dtype), y.ndim)
