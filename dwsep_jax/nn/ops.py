"""Depthwise and pointwise convolution and normalization as functions of arrays.

A lowering is how a convolution becomes XLA operations. It changes speed, never the
parameters, and the result only by rounding (to the precision of the device's own
convolutions, which may be below float32 on GPU and TPU), so a checkpoint moves between
lowerings.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import AxisType

from dwsep_jax.errors import choose
from dwsep_jax.nn import shifted
from dwsep_jax.nn.accelerate import by_shifts

Padding = str | int | Sequence[int | tuple[int, int]]


class Normalized(struct.PyTreeNode):
    """A tensor that is yet to be normalized and activated, by whoever reads it.

    A separable convolution does so on the way, a few images at a time, and the
    normalized tensor never goes through the memory.

    Attributes:
      pieces: (N, H, W, C_i) each; their channels, one after the other, are the C.
      factor: of each channel, (C,), float32 or wider.
      constant: added to each channel after that, (C,).
      activation: of each element; None: none.
      dtype: of the result.
    """

    pieces: tuple[jax.Array, ...]
    factor: jax.Array
    constant: jax.Array
    activation: shifted.Activation | None = struct.field(pytree_node=False)
    dtype: jnp.dtype = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (*self.pieces[0].shape[:-1], self.factor.shape[0])

    def map(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Return `function` of the result; it must leave the last axis, of channels."""
        parts, start = [], 0
        for piece in self.pieces:
            channels = slice(start, start + piece.shape[-1])
            affine = (self.factor[channels], self.constant[channels])
            y = shifted.activate(piece, affine, self.activation, self.dtype)
            parts.append(function(y))
            start = channels.stop
        return shifted.join(parts)

    def compute(self) -> jax.Array:
        """Return the result, (N, H, W, C)."""
        x, affine = shifted.join(self.pieces), (self.factor, self.constant)
        return shifted.activate(x, affine, self.activation, self.dtype)


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    kernel_dilation: int | tuple[int, int] = (1, 1),
    lowering: str = "auto",
) -> jax.Array:
    """Convolve every channel with kernels of its own (Sifre 2014).

    Args:
      x: images, (N, H, W, C), floating point.
      kernel: (kh, kw, 1, C * M), the shape that `nn.Conv(feature_group_count=C)` keeps,
        with the M kernels of a channel side by side; of the dtype of `x`.
      strides: (rows, columns), in pixels; one number for both.
      padding: "SAME", "SAME_LOWER" or "VALID" as `lax` has them, or (low, high) pairs
        for rows and columns; one number stands for a pair, or for all four.
      kernel_dilation: (rows, columns) between taps, in pixels; one number for both.
      lowering: "conv" (one grouped convolution, the reference), "shift" (a sum of
        shifted products), or "auto" (the faster one on the platform it runs on).

    Returns:
      (N, H', W', C * M) in the dtype of `x`, accumulated in float32 or wider.

    Raises:
      ValueError: if shapes, dtypes, padding or the lowering do not fit.
    """
    _check_depthwise(x, kernel)
    geometry = _geometry(x, kernel, strides, padding, kernel_dilation)
    convolve = partial(_conv, geometry=geometry)
    return _lower(lowering, convolve, by_shifts(convolve), x, kernel)


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
    channels = x.shape[-1]
    if kernel.ndim != 4 or kernel.shape[:3] != (1, 1, channels):
        raise ValueError(
            f"a pointwise kernel for {channels} channels has shape "
            f"(1, 1, {channels}, F), not {kernel.shape}"
        )
    _check_dtypes(x, kernel)
    return shifted.mix(x, kernel)


def separable_conv(
    x: jax.Array | Normalized,
    depthwise_kernel: jax.Array,
    pointwise_kernel: jax.Array,
    *,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    kernel_dilation: int | tuple[int, int] = (1, 1),
    lowering: str = "auto",
) -> jax.Array:
    """Convolve depthwise, then pointwise (Chollet 2017), without a memory in between.

    Args:
      x: images, (N, H, W, C), floating point; or `Normalized` ones, which this function
        normalizes on the way.
      depthwise_kernel: (kh, kw, 1, C * M), of the dtype of `x`.
      pointwise_kernel: (1, 1, C * M, F), of the same dtype.
      strides: of the depthwise convolution, as for `depthwise_conv`.
      padding: likewise.
      kernel_dilation: likewise.
      lowering: "conv" (a grouped convolution and a matrix product, the reference),
        "shift" (a few images at a time, as sums of shifted products), or "auto".

    Returns:
      (N, H', W', F) in the dtype of `x`, each of the two accumulated in float32 or
      wider.

    Raises:
      ValueError: if shapes, dtypes, padding or the lowering do not fit.
    """
    _check_depthwise(x, depthwise_kernel)
    geometry = _geometry(x, depthwise_kernel, strides, padding, kernel_dilation)
    convolve = partial(_conv, geometry=geometry)

    def separable(x, depthwise_kernel, pointwise_kernel, convolve):
        if isinstance(x, Normalized):
            x = x.compute()
        with jax.named_scope("depthwise"):
            x = convolve(x, depthwise_kernel)
        with jax.named_scope("pointwise"):
            return pointwise_conv(x, pointwise_kernel)

    reference = partial(separable, convolve=convolve)
    shifts = jax.checkpoint(partial(separable, convolve=by_shifts(convolve)))
    shifts = partial(_in_chunks, shifts)
    return _lower(lowering, reference, shifts, x, depthwise_kernel, pointwise_kernel)


def standard_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    kernel_dilation: int | tuple[int, int] = (1, 1),
    lowering: str = "auto",
) -> jax.Array:
    """Convolve all channels with all.

    Args:
      x: images, (N, H, W, C), floating point.
      kernel: (kh, kw, C, F), as `nn.Conv` keeps it; of the dtype of `x`.
      strides: as for `depthwise_conv`.
      padding: likewise.
      kernel_dilation: likewise.
      lowering: "conv" (one convolution, the reference), "shift" (shifted views joined
        to patches, and one matrix product), or "auto".

    Returns:
      (N, H', W', F) in the dtype of `x`, accumulated in float32 or wider.

    Raises:
      ValueError: if shapes, dtypes, padding or the lowering do not fit.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2] != x.shape[-1]:
        raise ValueError(
            "standard_conv takes x (N, H, W, C) and kernel (kh, kw, C, F), not "
            f"{x.shape} and {kernel.shape}"
        )
    geometry = _geometry(x, kernel, strides, padding, kernel_dilation)
    reference = jax.named_scope("conv")(partial(_conv, geometry=geometry))
    patches = partial(shifted.convolve_patches, geometry=geometry)
    if lowering == "auto" and kernel.size > _MAX_PATCH_LENGTH * kernel.shape[-1]:
        return reference(x, kernel)
    return _lower(lowering, reference, patches, x, kernel)


def halving_conv(x: Normalized, kernel: jax.Array, *, lowering: str) -> jax.Array:
    """Mix channels by a 1x1 convolution, and average 2x2 pixels, in either order.

    The two can change places, since each is linear and acts on what the other leaves
    alone. The average first, there is a quarter of the pixels to mix.

    Args:
      x: (N, H, W, C); an odd last row or column is dropped.
      kernel: (1, 1, C, F), of the dtype of `x`.
      lowering: "conv" (mixed first, as Huang et al. 2017 have it, the reference),
        "shift" or "auto" (averaged first).

    Returns:
      (N, H/2, W/2, F) in the dtype of `x`.

    Raises:
      ValueError: if the kernel, its dtype or the lowering do not fit.
    """
    choose("lowering", lowering, _LOWERINGS)
    if lowering == "conv":
        x = x.compute()
        with jax.named_scope("conv"):
            x = pointwise_conv(x, kernel)
        return halve(x)
    return pointwise_conv(x.map(halve), kernel)


def halve(x: jax.Array) -> jax.Array:
    """Average 2x2 pixels, an odd edge dropped: (N, H, W, C) -> (N, H/2, W/2, C)."""
    n, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    # One axis at a time, which keeps the sharding of the others on an explicit mesh.
    x = x.reshape(n, height, 2, 2 * width, channels)
    return x.reshape(n, height, 2, width, 2, channels).mean((2, 4))


# Elements of the input of a separable convolution that are worked on at a time.
_CHUNK_SIZE = 2**19

# Numbers of the input that make one of the output. XLA:CPU is slow where these are few,
# as in the first layer of a network; where they are many, patches cost memory.
_MAX_PATCH_LENGTH = 128


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return what an option is for rows and columns; raise `ValueError` if not >= 1."""
    numbers = (value, value) if isinstance(value, Integral) else tuple(value)
    whole = all(isinstance(number, Integral) for number in numbers)
    if len(numbers) != 2 or not whole or min(numbers) < 1:
        raise ValueError(f"{name} are one or two numbers >= 1, not {value!r}")
    return tuple(map(int, numbers))


def _conv(x, kernel, geometry):
    """Lower to one convolution: of C groups, or of all channels with all."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.pads,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _in_chunks(function, x, *kernels):
    """Return function(x, *kernels) by some images at a time, if x is large.

    So the tensors in between are small, forwards and backwards.
    """
    images = x.pieces if isinstance(x, Normalized) else (x,)

    def run(images):
        chunk = x.replace(pieces=images) if isinstance(x, Normalized) else images[0]
        return function(chunk, *kernels)

    num_chunks = count_chunks(images, math.prod(x.shape[1:]))
    if num_chunks == 1:
        return function(x, *kernels)
    return map_chunks(run, images, num_chunks)


def count_chunks(images: Sequence[jax.Array], num_elements: int) -> int:
    """Return into how many equal parts to cut a batch, so that a part fits the cache.

    Args:
      images: arrays (N, ...).
      num_elements: of the largest tensor that is made of each image.
    """
    n = images[0].shape[0]
    meshes = (jax.typeof(a).sharding.mesh for a in images)
    kinds = {kind for mesh in meshes for kind in mesh.axis_types or ()}
    is_plain = isinstance(n, int) and kinds <= {AxisType.Auto}
    if not is_plain or n == 1 or n * num_elements <= _CHUNK_SIZE:
        return 1
    return shifted.divisor(n, min(n, n * num_elements / _CHUNK_SIZE))


def map_chunks(
    function: Callable[[tuple[jax.Array, ...]], jax.Array],
    images: Sequence[jax.Array],
    num_chunks: int,
) -> jax.Array:
    """Return what a function makes of arrays (N, ...), a chunk of N after the other."""
    # Consecutive images, which need no copy (3 % of a step); but where they may be
    # sharded, a chunk takes some on each device.
    n, axis = images[0].shape[0], 1 if jax.device_count() > 1 else 0
    size = [n // num_chunks]
    size.insert(axis, num_chunks)
    chunks = (a.reshape(*size, *a.shape[1:]).swapaxes(0, axis) for a in images)
    y = lax.map(function, tuple(chunks)).swapaxes(0, axis)
    return y.reshape(n, *y.shape[2:])


_PADDINGS = dict.fromkeys(("SAME", "SAME_LOWER", "VALID"))
_LOWERINGS = dict.fromkeys(("auto", "conv", "shift"))


def _lower(lowering, reference, shifts, *arrays):
    """Run one of two functions of the arrays.

    "auto" is shifts on CPU, where they are faster in each shape and dtype measured. The
    measurements are in benchmarks/lowerings.md. Elsewhere there are none yet.
    """
    choose("lowering", lowering, _LOWERINGS)
    if lowering == "auto":
        return lax.platform_dependent(*arrays, cpu=shifts, default=reference)
    return reference(*arrays) if lowering == "conv" else shifts(*arrays)


def _check_depthwise(x, kernel):
    fits = len(x.shape) == kernel.ndim == 4 and kernel.shape[2] == 1
    if not fits or kernel.shape[3] % max(x.shape[3], 1):
        raise ValueError(
            "a depthwise convolution takes x (N, H, W, C) and kernel (kh, kw, 1, "
            f"C * channel_multiplier), not {x.shape} and {kernel.shape}"
        )


def _check_dtypes(x, kernel):
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x and kernel share one floating dtype, not {x.dtype} and {kernel.dtype}"
        )


def _geometry(x, kernel, strides, padding, kernel_dilation):
    """Return the geometry with explicit padding; raise if no output would be left."""
    _check_dtypes(x, kernel)
    if 0 in (*kernel.shape, *x.shape[1:]):
        raise ValueError(f"x {x.shape} or kernel {kernel.shape} is empty")
    strides = pair("strides", strides)
    kernel_dilation = pair("kernel_dilation", kernel_dilation)
    spans = shifted.spans(kernel.shape[:2], kernel_dilation)
    if isinstance(padding, str):
        choose("padding", padding, _PADDINGS)
        padding = lax.padtype_to_pads(x.shape[1:3], spans, strides, padding)
    if isinstance(padding, Integral):
        padding = (padding, padding)
    padding = [(p, p) if isinstance(p, Integral) else p for p in padding]
    pads = tuple((int(low), int(high)) for low, high in padding)
    if len(pads) != 2 or any(low < 0 or high < 0 for low, high in pads):
        raise ValueError(
            f"padding has two (low, high) pairs of numbers >= 0, not {padding!r}"
        )
    for size, pad, k in zip(x.shape[1:3], pads, spans, strict=True):
        if size + sum(pad) < k:
            raise ValueError(
                f"a kernel that spans {k} pixels does not fit into {size} pixels "
                f"padded by {pad}"
            )
    return shifted.Geometry(strides, pads, kernel_dilation)
