"""Depthwise and pointwise convolution and normalization as functions of arrays.

A lowering is how a convolution becomes XLA operations. It changes speed, never the
parameters, and the result only by rounding (to the precision of the device's own
convolutions, which may be below float32 on GPU and TPU), so a checkpoint moves between
lowerings.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

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
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float,
    activation: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Return activation((x - mean) / sqrt(var + epsilon) * scale + bias).

    Args:
      x: (..., C), floating point.
      mean: and `var`, `scale`, `bias`: (C,), float32 or wider.
      epsilon: keeps the root from zero.
      activation: of each element; None: none.

    Returns:
      (..., C) in the dtype of `mean`.
    """
    factor = scale * lax.rsqrt(var + epsilon)
    y = _affine(x, mean, factor, bias)
    if activation is None:
        return y
    with jax.named_scope("activation"):  # Whoever counts can tell it from the norm.
        return activation(y)


@jax.custom_jvp
def _affine(x, mean, factor, bias):
    constant = per_channel(bias - mean * factor, x.ndim)
    return x.astype(mean.dtype) * per_channel(factor, x.ndim) + constant


@_affine.defjvp
def _affine_jvp(primals, tangents):
    x, mean, factor, bias = primals
    dx, dmean, dfactor, dbias = tangents
    # Transposed, this takes two sums over the elements, for a channel's constant part
    # and for its factor, and needs x alone: a centered x would be one more tensor.
    constant = dbias - factor * dmean - mean * dfactor
    dy = dx.astype(mean.dtype) * per_channel(factor, x.ndim)
    dy = dy + x.astype(mean.dtype) * per_channel(dfactor, x.ndim)
    return _affine(x, mean, factor, bias), dy + per_channel(constant, x.ndim)


def per_channel(vector: jax.Array, ndim: int) -> jax.Array:
    """Return a (C,) vector as (1, ..., 1, C), to go with a tensor of `ndim` axes."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


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
    # Padded here, so that the gradient of the kernel takes what is padded already.
    edges = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    geometry = {"strides": strides, "kernel_dilation": kernel_dilation}
    if _names_axes(x) or _names_axes(kernel):
        return _shifted_sum(x, kernel, **geometry)
    return _shifted_sum_p.bind(x, kernel, **geometry)


def _names_axes(array):
    """Return whether the type of an array names axes of a mesh, explicit or manual.

    Operations of jax know what to do with such types, under `shard_map` for one; a
    primitive of ours would have to be taught.
    """
    axis_types = jax.typeof(array).sharding.mesh.axis_types or ()
    return any(axis_type != AxisType.Auto for axis_type in axis_types)


def _shifted_sum(x, kernel, *, strides, kernel_dilation):
    kernel = kernel.astype(accumulator_dtype(x.dtype))
    y = None
    for i, j, view in _views(x, kernel.shape[:2], strides, kernel_dilation):
        product = view * kernel[i : i + 1, j : j + 1]
        y = product if y is None else y + product
    return y.astype(x.dtype)


def _tap_products(x, g, *, kernel_size, strides, kernel_dilation):
    """Sum x times g over images and pixels, for each tap: the kernel's gradient.

    A sum per tap would read both tensors nine times from memory. Where they are large,
    a few images are added up at a time, elementwise, while they are in the cache.
    """

    def products(x, g):
        g = g.astype(accumulator_dtype(g.dtype))
        views = _views(x, kernel_size, strides, kernel_dilation)
        return [view * g for _, _, view in views]

    n, per_image = len(g), math.prod(g.shape[1:])
    chunk = math.gcd(n, 2 ** max(0, round(math.log2(2**16 / per_image))))
    if n * per_image < 2**18 or chunk == n:
        sums = products(x, g)
    else:
        chunks = [a.reshape(n // chunk, chunk, *a.shape[1:]) for a in (x, g)]

        def add(totals, pair):
            return jax.tree.map(jnp.add, totals, products(*pair)), None

        zeros = jnp.zeros((chunk, *g.shape[1:]), accumulator_dtype(g.dtype))
        sums, _ = lax.scan(add, [zeros] * math.prod(kernel_size), chunks)
    gradient = jnp.stack([total.sum((0, 1, 2)) for total in sums])
    return gradient.reshape(*kernel_size, 1, x.shape[-1]).astype(x.dtype)


def _spread(g, kernel, image_size, *, strides, kernel_dilation):
    """Convolve g, its pixels `strides` apart, with the kernel turned about.

    This is the gradient of the input, whose rows and columns are `image_size`.
    """
    rows, columns = ((0, 0, stride - 1) for stride in strides)
    g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))
    edges = []
    for axis in range(2):
        reach = (kernel.shape[axis] - 1) * kernel_dilation[axis]
        edges.append((reach, image_size[axis] - g.shape[1 + axis]))
    return _shift(g, kernel[::-1, ::-1], (1, 1), tuple(edges), kernel_dilation)


def _make_bilinear(name, function, static_names):
    """Make a primitive of a function that is linear in each of two arrays.

    So its gradients can be ours: XLA's gradient of a shifted sum pads nine times over.
    A `custom_vjp` would do as much, but there would be no forward mode.
    """
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames=static_names))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))

    @primitive.def_abstract_eval
    def abstract_eval(a, b, **static):
        result = jax.eval_shape(partial(function, **static), a, b)
        return jax.core.ShapedArray(result.shape, result.dtype)

    def batch(arrays, axes, **static):
        return jax.vmap(partial(function, **static), axes)(*arrays), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_GEOMETRY = ("strides", "kernel_dilation")
_shifted_sum_p = _make_bilinear("shifted_sum", _shifted_sum, _GEOMETRY)
_tap_products_p = _make_bilinear(
    "tap_products", _tap_products, ("kernel_size", *_GEOMETRY)
)


def _input_gradient(g, x, kernel, **geometry):
    return _spread(g, kernel, x.aval.shape[1:3], **geometry)


def _kernel_gradient(g, x, kernel, **geometry):
    kernel_size = kernel.aval.shape[:2]
    return _tap_products_p.bind(x, g, kernel_size=kernel_size, **geometry)


def _tap_products_input_gradient(kernel, x, g, kernel_size, **geometry):
    return _spread(g, kernel, x.aval.shape[1:3], **geometry)


def _tap_products_output_gradient(kernel, x, g, kernel_size, **geometry):
    return _shifted_sum_p.bind(x, kernel, **geometry)


ad.defbilinear(_shifted_sum_p, _input_gradient, _kernel_gradient)
ad.defbilinear(
    _tap_products_p, _tap_products_input_gradient, _tap_products_output_gradient
)


def _views(x, kernel_size, strides, kernel_dilation):
    """Yield (i, j, what tap (i, j) of the kernel sees), each in the wide dtype."""
    x = x.astype(accumulator_dtype(x.dtype))
    n, height, width, channels = x.shape
    spans = [
        size - (k - 1) * dilation
        for size, k, dilation in zip(
            (height, width), kernel_size, kernel_dilation, strict=True
        )
    ]
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            top, left = i * kernel_dilation[0], j * kernel_dilation[1]
            start = (0, top, left, 0)
            limit = (n, top + spans[0], left + spans[1], channels)
            yield i, j, lax.slice(x, start, limit, (1, *strides, 1))


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
