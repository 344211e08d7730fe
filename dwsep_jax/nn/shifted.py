"""What convolutions and layers are made of: sums of shifted products, and the like.

XLA:CPU runs a grouped convolution many times slower than one multiply-add per tap of
shifted views. Three things bring these near the speed of the memory:

* The padded tensor is computed once, with what comes before it, an activation for one.
  XLA would repeat that in each tap.
* The gradient of the kernel adds up elementwise, and reduces only the sums. To reduce
  the products of a tap at once would be to read both tensors column by column.
* It goes through both tensors once, in pieces that stay in the cache for all taps.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Activation = Callable[[jax.Array], jax.Array]

# Elements of a tensor that are worked on at a time, for the gradient of a kernel.
_PIECE_SIZE = 2**16
# Parts of a piece, which are added up in one go. More of them make longer programs;
# fewer read and write the sums more often.
_MAX_PARTS = 8
_MIN_PART_SIZE = 2**12


class Geometry(NamedTuple):
    """What a depthwise convolution is, apart from its arrays; pairs: rows, columns."""

    strides: tuple[int, int] = (1, 1)
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    kernel_dilation: tuple[int, int] = (1, 1)
    input_dilation: tuple[int, int] = (1, 1)


def accumulator_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype in which numbers of `dtype` are added up: float32 or wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def activate(
    x: jax.Array,
    affine: Sequence[jax.Array],
    activation: Activation | None,
    dtype: jnp.dtype,
) -> jax.Array:
    """Return activation(x * factor + constant) in `dtype`; factor and constant (C,)."""
    # The scopes tell whoever counts what is for the norm and what for the activation.
    if affine:
        factor, constant = (per_channel(vector, x.ndim) for vector in affine)
        with jax.named_scope("norm"):
            x = x.astype(factor.dtype) * factor + constant
    if activation is not None:
        with jax.named_scope("activation"):
            x = activation(x)
    return x.astype(dtype)


def per_channel(vector: jax.Array, ndim: int) -> jax.Array:
    """Return a (C,) vector as (1, ..., 1, C), to go with a tensor of `ndim` axes."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


def join(pieces: Sequence[jax.Array]) -> jax.Array:
    """Return the pieces (..., C_i) as one tensor, channels one after the other."""
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)


def spans(kernel_size: Sequence[int], kernel_dilation: Sequence[int]) -> list[int]:
    """Return how many rows and columns a dilated kernel spans, in pixels."""
    pairs = zip(kernel_size, kernel_dilation, strict=True)
    return [(size - 1) * step + 1 for size, step in pairs]


def mix(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve x (..., C) with kernel (1, 1, C, F), as one matrix product."""
    # XLA adds up bfloat16 products in float32. To ask for a float32 result would make
    # the products of the gradient float32 ones, at twice the bytes.
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def convolve_patches(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolve x (N, H, W, C) with kernel (kh, kw, C, F), as one matrix product."""
    taps = _views(_pad(x, geometry), kernel.shape[:2], geometry)
    patches = jnp.concatenate([view.astype(x.dtype) for _, _, view in taps], -1)
    return mix(patches, kernel.reshape(1, 1, -1, kernel.shape[-1]))


def shifted_sum(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolve x (N, H, W, C) with kernel (kh, kw, 1, C); the result is a wide one."""
    x = _pad(x, geometry)
    kernel = kernel.astype(x.dtype)
    y = None
    for i, j, view in _views(x, kernel.shape[:2], geometry):
        product = view * kernel[i : i + 1, j : j + 1]
        y = product if y is None else y + product
    # Changes nothing, but keeps XLA from handing the sum, tap by tap, to the library
    # that it has for a product of matrices.
    return lax.clamp(jnp.array(-jnp.inf, y.dtype), y, jnp.array(jnp.inf, y.dtype))


def kernel_gradient(
    x: jax.Array,
    g: jax.Array,
    kernel_size: tuple[int, int],
    geometry: Geometry,
    num_shards: int = 1,
) -> jax.Array:
    """Return the gradient (kh, kw, 1, C) of the kernel, a wide one; g: the output's.

    Images that are sharded over devices stay where they are.
    """
    n, channels = g.shape[0], g.shape[-1]
    if not isinstance(n, int):  # Exported for any batch.
        taps = _views(_pad(x, geometry), kernel_size, geometry, g.shape[1:3])
        sums = jnp.stack([(view * g).sum((0, 1, 2)) for _, _, view in taps])
    elif num_shards > 1 and n % num_shards == 0:
        x, g = (a.reshape(num_shards, -1, *a.shape[1:]) for a in (x, g))
        add = partial(_add_pieces, kernel_size=kernel_size, geometry=geometry)
        sums = jax.vmap(add)(x, g).sum((0, 2, 3, 4))
    else:
        sums = _add_pieces(x, g, kernel_size, geometry).sum((1, 2, 3))
    return sums.reshape(*kernel_size, 1, channels)


def _add_pieces(x, g, kernel_size, geometry):
    """Return the gradient of each tap, (taps, ..., C), yet to be summed over pixels."""
    n, height, width, channels = g.shape
    stride = geometry.strides[0]
    num_images, rows = _piece(n, height, max(math.prod(a.shape[1:]) for a in (x, g)))
    num_blocks = -(-height // rows)
    if num_blocks > 1:
        x, geometry = _pad_rows(x, height, kernel_size, geometry)
    x_rows = x.shape[1] - (height - rows) * stride
    images_per_part, rows_per_part = _part(num_images, rows, width * channels)
    padded_rows = -(-rows // rows_per_part) * rows_per_part
    parts = [
        (slice(i, i + images_per_part), slice(j, j + rows_per_part))
        for i in range(0, num_images, images_per_part)
        for j in range(0, padded_rows, rows_per_part)
    ]

    def cut(images, start, row, num_rows):
        size = (num_images, num_rows, *images.shape[2:])
        return lax.dynamic_slice(images, (start, row, 0, 0), size)

    def add_piece(i, sums):
        # The last images and rows overlap those before, which count once.
        first, first_row = i // num_blocks * num_images, i % num_blocks * rows
        start = jnp.minimum(first, n - num_images)
        row = jnp.minimum(first_row, height - rows)
        seen, piece = cut(x, start, row * stride, x_rows), cut(g, start, row, rows)
        if n % num_images:
            new = start + jnp.arange(num_images) >= first
            piece = jnp.where(new[:, None, None, None], piece, 0)
        if height % rows:
            new = row + jnp.arange(rows) >= first_row
            piece = jnp.where(new[:, None, None], piece, 0)
        # The rows that the last part lacks, and one more: XLA copies what is padded. It
        # would slice a slice anew for each of its readers, and that is not vectorized.
        extra = padded_rows - rows
        seen = _pad(seen, geometry, extra * stride + 1)
        piece = _pad(piece, Geometry(), extra + 1)
        taps = _views(seen, kernel_size, geometry, (padded_rows, width))
        added = []
        for total, (_, _, view) in zip(sums, taps, strict=True):
            products = [view[part] * piece[part] for part in parts]
            added.append(total + sum(products[1:], products[0]))
        return added

    shape = (images_per_part, rows_per_part, width, channels)
    zeros = [jnp.zeros(shape, accumulator_dtype(g.dtype))] * math.prod(kernel_size)
    num_pieces = -(-n // num_images) * num_blocks
    return jnp.stack(lax.fori_loop(0, num_pieces, add_piece, zeros))


def _piece(n, height, elements_per_image):
    """Return how many images, and how many of their rows, are worked on at a time."""
    if elements_per_image > 1.5 * _PIECE_SIZE:
        return 1, -(-height // -(-elements_per_image // _PIECE_SIZE))
    num_images = min(n, max(1, _PIECE_SIZE // elements_per_image))
    return -(-n // -(-n // num_images)), height


def _part(num_images, num_rows, elements_per_row):
    """Return how many images and rows each part of a piece has, all of one size.

    The last part may lack rows: it is padded.
    """
    elements = num_images * num_rows * elements_per_row
    count = max(1, min(_MAX_PARTS, elements // _MIN_PART_SIZE))
    images = divisor(num_images, num_images / count)
    return images, -(-num_rows // max(1, count * images // num_images))


def divisor(number: int, least: float) -> int:
    """Return the least divisor of a number that is not below `least`."""
    return next(d for d in range(1, number + 1) if number % d == 0 and d >= least)


def _pad_rows(x, height, kernel_size, geometry):
    """Pad the rows alone, to those that the taps of `height` rows see."""
    (stride, _), (dilation, step) = geometry.strides, geometry.input_dilation
    (low, _), columns = geometry.pads
    x_height = (height - 1) * stride + spans(kernel_size, geometry.kernel_dilation)[0]
    high = x_height - low - (x.shape[1] - 1) * dilation - 1
    outer = Geometry(pads=((low, high), (0, 0)), input_dilation=(dilation, 1))
    inner = geometry._replace(pads=((0, 0), columns), input_dilation=(1, step))
    return _pad(x, outer), inner


def _views(x, kernel_size, geometry, size=None):
    """Yield (i, j, what tap (i, j) of the kernel sees) of x, padded.

    These are `size` rows and columns; None: as many as there are.
    """
    strides, dilation = geometry.strides, geometry.kernel_dilation
    counts = zip(x.shape[1:3], spans(kernel_size, dilation), strides, strict=True)
    size = size or [(pixels - span) // stride + 1 for pixels, span, stride in counts]
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            top, left = i * dilation[0], j * dilation[1]
            bottom = top + (size[0] - 1) * strides[0] + 1
            right = left + (size[1] - 1) * strides[1] + 1
            yield i, j, x[:, top : bottom : strides[0], left : right : strides[1]]


def _pad(x, geometry, num_rows=0):
    """Pad and dilate x, and `num_rows` more, once for all taps; the result is wide."""
    (low, high), columns = geometry.pads
    interior = [step - 1 for step in geometry.input_dilation]
    edges = [(0, 0, 0), (low, high + num_rows, interior[0])]
    edges += [(*columns, interior[1]), (0, 0, 0)]
    x = x.astype(accumulator_dtype(x.dtype))
    return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), edges))
