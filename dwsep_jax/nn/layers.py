"""Layers as linen modules: convolutions, batch norm in two halves, dropout.

Each can be used alone. Convolutions have the names, defaults and parameters of
`nn.Conv`, but for `use_bias` and He's initializer, and compute in `dtype` (by default
that of their input and parameters, promoted).
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax

from dwsep_jax.nn import ops, shifted
from dwsep_jax.nn.compiler import hide_constant

Dtype = Any
Initializer = Callable[..., jax.Array]
he_normal = nn.initializers.he_normal()


class _Weighted(nn.Module, kw_only=True):
    """Fields of `nn.Conv` that all convolutions have, with its defaults but no bias."""

    use_bias: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: str | lax.Precision | None = None
    kernel_init: Initializer = he_normal
    bias_init: Initializer = nn.initializers.zeros
    promote_dtype: Callable[..., Any] = promote_dtype


class _Featured(_Weighted):
    """What all convolutions have whose output has channels of its own."""

    features: int


class _Convolution(_Weighted):
    """Fields of the convolutions of images; `lowering` is that of `ops`.

    As in `nn.Conv`, padding may also be "CIRCULAR" or "REFLECT", and x have any number
    of batch axes, or none. What the fast lowerings cannot do is not taken:
    `input_dilation`, groups of several channels, a `mask` of the kernel.
    """

    kernel_size: int | tuple[int, int] = (3, 3)
    strides: int | tuple[int, int] = (1, 1)
    padding: ops.Padding = "SAME"
    _: KW_ONLY
    kernel_dilation: int | tuple[int, int] = (1, 1)
    lowering: str = "auto"


class DepthwiseConv(_Convolution):
    """Convolve each channel alone: (..., H, W, C) -> (..., H', W', C * M).

    M is the `channel_multiplier`. A drop-in for
    `nn.Conv(C * M, kernel_size, feature_group_count=C)` with the same parameters,
    `kernel` (kh, kw, 1, C * M) and `bias` (C * M,). Fields: `ops.depthwise_conv`.
    """

    channel_multiplier: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1] * self.channel_multiplier
        shape = (*ops.pair("kernel_size", self.kernel_size), 1, channels)
        kernel, bias = _weights(self, shape)
        return _convolve(self, ops.depthwise_conv, x, [kernel], bias)


class PointwiseConv(_Featured):
    """Mix the channels of each pixel: (..., C) -> (..., features).

    A drop-in for `nn.Conv(features, (1, 1))` with the same parameters (`kernel`
    (1, 1, C, features), `bias` (features,)).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = _weights(self, (1, 1, x.shape[-1], self.features))
        x, kernel, bias = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
        with _precision(self.precision):
            return _add(ops.pointwise_conv(x, kernel), bias)


class SeparableConv(_Convolution, _Featured):
    """Convolve depthwise, then pointwise: (..., H, W, C) -> (..., H', W', features).

    Takes kh * kw * C + C * features multiply-adds a pixel where a standard convolution
    takes kh * kw * C * features (Howard et al. 2017, section 3.1);
    `channel_multiplier` times as many where each channel has several depthwise kernels.
    `norm` and `activation`, where given, stand between the two, as in MobileNet;
    Xception has neither (Chollet 2017). `norm` is a module factory, called with a
    `name` alone.
    """

    norm: Callable[..., Callable[[jax.Array], jax.Array]] | None = None
    activation: shifted.Activation | None = None
    channel_multiplier: int = 1

    # Says to `DenseLayer` that x may be `ops.Normalized`.
    takes_normalized: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array | ops.Normalized) -> jax.Array:
        channels = x.shape[-1] * self.channel_multiplier
        shape = (*ops.pair("kernel_size", self.kernel_size), 1, channels)
        depthwise, _ = _child_weights(self, shape, False, "depthwise")
        shape = (1, 1, channels, self.features)
        pointwise, bias = _child_weights(self, shape, self.use_bias, "pointwise")

        def with_inside(x, depthwise, pointwise, **options):
            x = x.compute() if isinstance(x, ops.Normalized) else x
            with jax.named_scope("depthwise"):
                y = ops.depthwise_conv(x, depthwise, **options)
            y = y if self.norm is None else self.norm(name="norm")(y)
            y = shifted.activate(y, (), self.activation, pointwise.dtype)
            with jax.named_scope("pointwise"):
                return ops.pointwise_conv(y, pointwise)

        is_bare = self.norm is None and self.activation is None
        function = ops.separable_conv if is_bare else with_inside
        return _convolve(self, function, x, [depthwise, pointwise], bias)


class StandardConv(_Convolution, _Featured):
    """Convolve all channels with all: (..., H, W, C) -> (..., H', W', features).

    `nn.Conv` with the defaults and the fields of `SeparableConv`, its twin.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*ops.pair("kernel_size", self.kernel_size), x.shape[-1], self.features)
        kernel, bias = _child_weights(self, shape, self.use_bias, "conv")
        return _convolve(self, ops.standard_conv, x, [kernel], bias)


class BatchStatistics(nn.Module):
    """Take the mean and variance of each channel over the batch: the costly half.

    In training the statistics are the batch's (biased variance, float32, the formula
    of `nn.BatchNorm`) and move the running ones, which are used in evaluation. Whoever
    makes a tensor takes its statistics once; all its consumers share them. `axis_name`,
    `axis_index_groups` and `use_fast_variance` are those of `nn.BatchNorm`.
    """

    momentum: float = 0.9
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return (mean, variance), each (C,) in float32 or wider, of x (..., C).

        Only elements where `mask` is true count; it broadcasts to the shape of x.
        """
        dtype = shifted.accumulator_dtype(x.dtype)
        shape = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if use_running_average:
            return running_mean.value, running_var.value

        def average(x):
            mean = jnp.mean(x, tuple(range(x.ndim - 1)), where=mask)
            if self.axis_name is None or self.is_initializing():
                return mean
            groups = self.axis_index_groups
            return lax.pmean(mean, self.axis_name, axis_index_groups=groups)

        x = x.astype(dtype)
        mean = average(x)
        if self.use_fast_variance:
            var = jnp.maximum(average(x * x) - mean * mean, 0.0)
        else:
            var = average((x - shifted.per_channel(mean, x.ndim)) ** 2)
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var
        return mean, var


class DeferredNormalize(nn.Module):
    """Normalize, but leave the computation to whoever reads the result."""

    epsilon: float = 1e-5
    dtype: Dtype | None = None
    activation: shifted.Activation | None = None

    @nn.compact
    def __call__(
        self, pieces: Sequence[jax.Array], mean: jax.Array, var: jax.Array
    ) -> ops.Normalized:
        """Return the normalized pieces (N, H, W, C_i), by mean and var of all C."""
        scale = self.param("scale", nn.initializers.ones, mean.shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, mean.shape, jnp.float32)
        # Backwards, these take two sums over the elements, all else is done by channel;
        # and the gradient needs x alone: a centered x would be one more tensor.
        factor = scale * lax.rsqrt(var + self.epsilon)
        affine = factor, bias - mean * factor
        dtype = self.dtype or jnp.result_type(*pieces)
        return ops.Normalized(tuple(pieces), *affine, self.activation, dtype)


class Normalize(DeferredNormalize):
    """Normalize with given statistics, scale, shift, activate: the cheap half."""

    def __call__(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        """Return x (..., C) normalized by mean and var, (C,), in `dtype`."""
        return super().__call__((x,), mean, var).compute()


class BatchNorm(nn.Module):
    """Normalize each channel by its batch statistics (Ioffe and Szegedy 2015).

    `nn.BatchNorm` in two halves that other modules use apart, followed by an activation
    where one is given; without a `dtype` the result has that of the input. Fields and
    arguments are those of `nn.BatchNorm`; channels are the last axis, and always have a
    scale and a bias.
    """

    use_running_average: bool | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    activation: shifted.Activation | None = None
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        name = "use_running_average"
        average = nn.merge_param(name, self.use_running_average, use_running_average)
        shared = (self.momentum, self.axis_name, self.axis_index_groups)
        statistics = BatchStatistics(*shared, self.use_fast_variance, name="statistics")
        mean, var = statistics(x, average, mask)
        dtype = self.dtype or x.dtype
        if not self.use_fast_variance:
            # Where the mean is much larger than the deviation, this is exact, and
            # x * factor + constant is not.
            x, mean = x - shifted.per_channel(mean, x.ndim), jnp.zeros_like(mean)
        normalize = Normalize(self.epsilon, dtype, self.activation, name="normalize")
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
        wide = shifted.accumulator_dtype(x.dtype)
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
    bias_init: Initializer = nn.initializers.zeros
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        """Return kernel and bias, in `param_dtype`; None for no bias."""
        return _weights(self, self.shape)


_PADDING_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


def _weights(module, shape):
    def init_kernel(*args):
        return hide_constant(module.kernel_init(*args))

    kernel = module.param("kernel", init_kernel, shape, module.param_dtype)
    if not module.use_bias:
        return kernel, None
    dtype = module.param_dtype
    return kernel, module.param("bias", module.bias_init, shape[-1:], dtype)


def _child_weights(module, shape, use_bias, name):
    inits = (module.kernel_init, module.bias_init)
    return Weights(shape, use_bias, *inits, module.param_dtype, name=name)()


def _convolve(module, function, x, kernels, bias):
    """Return function(images (N, H, W, C), *kernels, **options), plus the bias."""
    x, *kernels, bias = _promote(module, x, *kernels, bias)
    padding = module.padding
    if padding in ("CIRCULAR", "REFLECT"):
        x, padding = _pad(module, x, kernels[0].shape[:2]), "VALID"
    batch_shape = x.shape[:-3]
    if len(batch_shape) != 1:
        x = x.reshape(-1, *x.shape[-3:])
    with _precision(module.precision):
        y = function(
            x,
            *kernels,
            strides=module.strides,
            padding=padding,
            kernel_dilation=module.kernel_dilation,
            lowering=module.lowering,
        )
    y = _add(y, bias)
    return y if len(batch_shape) == 1 else y.reshape(*batch_shape, *y.shape[1:])


def _promote(module, x, *weights):
    if not isinstance(x, ops.Normalized):
        return module.promote_dtype(x, *weights, dtype=module.dtype)
    like = jnp.zeros((), x.dtype)
    like, *weights = module.promote_dtype(like, *weights, dtype=module.dtype)
    return x.replace(dtype=like.dtype), *weights


def _pad(module, x, kernel_size):
    """Pad x (..., H, W, C) with pixels of its own: the opposite ones, or mirrored."""
    x = x.compute() if isinstance(x, ops.Normalized) else x
    dilation = ops.pair("kernel_dilation", module.kernel_dilation)
    edges = [((s - 1) // 2, s // 2) for s in shifted.spans(kernel_size, dilation)]
    pads = [(0, 0)] * (x.ndim - 3) + edges + [(0, 0)]
    return jnp.pad(x, pads, mode=_PADDING_MODES[module.padding])


def _precision(precision):
    """Let matrix products and convolutions have this precision; None: jax's."""
    if precision is None:
        return contextlib.nullcontext()
    name = precision.name.lower() if isinstance(precision, lax.Precision) else precision
    return jax.default_matmul_precision(name)


def _add(y, bias):
    return y if bias is None else y + shifted.per_channel(bias.astype(y.dtype), y.ndim)
