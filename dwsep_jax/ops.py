"""Depthwise and pointwise convolution as functions of arrays, with their lowerings.

A lowering is how a convolution becomes XLA operations. It changes speed, never the
parameters, and the result only by rounding (to the precision of the device's own
convolutions, which may be below float32 on GPU and TPU), so a checkpoint moves between
lowerings.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dwsep_jax.errors import choose

Padding = str | int | Sequence[tuple[int, int]]


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    kernel_dilation: int | tuple[int, int] = (1, 1),
    lowering: str = "auto",
) -> jax.Array:
    """Convolve every channel with a kernel of its own (Sifre 2014).

    Args:
      x: images, (N, H, W, C), floating point.
      kernel: (kh, kw, 1, C), the shape that `nn.Conv(feature_group_count=C)` keeps;
        of the dtype of `x`.
      strides: (rows, columns), in pixels; one number for both.
      padding: "SAME" or "VALID" as `lax` has them, or (low, high) pairs for rows and
        columns; one number for all four.
      kernel_dilation: (rows, columns) between taps, in pixels; one number for both.
      lowering: "conv" (one grouped convolution, the reference), "shift" (a sum of
        shifted products), or "auto" (the faster one on the platform it runs on).

    Returns:
      (N, H', W', C) in the dtype of `x`, accumulated in float32 or wider.

    Raises:
      ValueError: if shapes, dtypes, padding or the lowering do not fit.
    """
    _check_depthwise(x, kernel)
    strides = _pair("strides", strides)
    kernel_dilation = _pair("kernel_dilation", kernel_dilation)
    pads = _explicit_padding(x, kernel, strides, padding, kernel_dilation)
    convolve = choose("lowering", lowering, _LOWERINGS)
    return convolve(x, kernel, strides, pads, kernel_dilation)


def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Mix the channels of each pixel: a 1x1 convolution, as one matrix product.

    Args:
      x: (..., C), floating point.
      kernel: (1, 1, C, F), the shape that `nn.Conv` keeps; of the dtype of `x`.

    Returns:
      (..., F) in the dtype of `x`, accumulated in float32 or wider.

    Raises:
      ValueError: if shapes or dtypes do not fit.
    """
    if kernel.ndim != 4 or kernel.shape[:2] != (1, 1) or kernel.shape[2] != x.shape[-1]:
        raise ValueError(
            f"a pointwise kernel for {x.shape[-1]} channels has shape "
            f"(1, 1, {x.shape[-1]}, F), not {kernel.shape}"
        )
    _check_dtypes(x, kernel)
    # XLA adds up bfloat16 products in float32. To ask for a float32 result would make
    # the products of the gradient float32 ones, at twice the bytes.
    return lax.dot_general(x, kernel[0, 0], (((x.ndim - 1,), (0,)), ((), ())))


def _pair(name, value):
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(number < 1 for number in pair):
        raise ValueError(f"{name} are one or two numbers >= 1, not {value!r}")
    return pair


def accumulator_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype in which numbers of `dtype` are added up: float32 or wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _conv(x, kernel, strides, pads, kernel_dilation):
    """Lower to one convolution of C groups."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        rhs_dilation=kernel_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shift(x, kernel, strides, pads, kernel_dilation):
    """Lower to one multiply-add per tap, of shifted views; XLA fuses them."""
    # The cast comes first, so that the gradient, too, is added up in the wide dtype.
    dtype = accumulator_dtype(x.dtype)
    kernel, wide = kernel.astype(dtype), x.astype(dtype)
    edges = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    padded = lax.pad(wide, jnp.zeros((), dtype), edges)
    out_size = [
        (size - (k - 1) * dilation - 1) // stride + 1
        for size, k, dilation, stride in zip(
            padded.shape[1:3], kernel.shape[:2], kernel_dilation, strides, strict=True
        )
    ]
    n, _, _, channels = x.shape
    y = None
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * kernel_dilation[0], j * kernel_dilation[1]
            view = lax.slice(
                padded,
                (0, top, left, 0),
                (
                    n,
                    top + (out_size[0] - 1) * strides[0] + 1,
                    left + (out_size[1] - 1) * strides[1] + 1,
                    channels,
                ),
                (1, *strides, 1),
            )
            product = view * kernel[i : i + 1, j : j + 1]
            y = product if y is None else y + product
    return y.astype(x.dtype)


def _auto(x, kernel, strides, pads, kernel_dilation):
    """Lower to shifts on CPU, where XLA's grouped convolution is slow."""

    def run(lower):
        return lambda x, k: lower(x, k, strides, pads, kernel_dilation)

    return lax.platform_dependent(x, kernel, cpu=run(_shift), default=run(_conv))


_LOWERINGS = {"auto": _auto, "conv": _conv, "shift": _shift}


def _check_depthwise(x, kernel):
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "depthwise_conv takes x (N, H, W, C) and kernel (kh, kw, 1, C), not "
            f"{x.shape} and {kernel.shape}"
        )
    channels = x.shape[-1]
    if kernel.shape[2] != 1 or kernel.shape[3] != channels:
        raise ValueError(
            f"a depthwise kernel for {channels} channels has shape (kh, kw, 1, "
            f"{channels}), not {kernel.shape}; for a channel multiplier other than 1 "
            "use nn.Conv(feature_group_count=...)"
        )
    _check_dtypes(x, kernel)


def _check_dtypes(x, kernel):
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x and kernel share one floating dtype, not {x.dtype} and {kernel.dtype}"
        )


def _explicit_padding(x, kernel, strides, padding, kernel_dilation):
    """Return ((top, bottom), (left, right)); raise if no output would be left."""
    effective = [
        (k - 1) * dilation + 1
        for k, dilation in zip(kernel.shape[:2], kernel_dilation, strict=True)
    ]
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                f'padding is "SAME", "VALID" or (low, high) pairs, not {padding!r}'
            )
        padding = lax.padtype_to_pads(x.shape[1:3], effective, strides, padding)
    if isinstance(padding, int):
        padding = ((padding, padding),) * 2
    pads = tuple((int(low), int(high)) for low, high in padding)
    if len(pads) != 2 or any(low < 0 or high < 0 for low, high in pads):
        raise ValueError(
            f"padding has two (low, high) pairs of numbers >= 0, not {padding!r}"
        )
    for size, pad, k in zip(x.shape[1:3], pads, effective, strict=True):
        if size + sum(pad) < k:
            raise ValueError(
                f"a kernel that spans {k} pixels does not fit into {size} pixels "
                f"padded by {pad}"
            )
    return pads
