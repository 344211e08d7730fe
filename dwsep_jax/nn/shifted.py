"""Depthwise and separable convolution as sums of shifted products, in the cache.

XLA:CPU runs a grouped convolution many times slower than one multiply-add per tap of
shifted views. What is left is the memory: each intermediate tensor of a large batch is
written and read again. So a few images are taken through all the steps at a time, while
they are in the cache, forward and backward; the backward pass computes the intermediate
tensors again, for less than it would cost to read them.

The functions are primitives of jax with gradients of their own. A `custom_vjp` would do
as much for the gradients, but there would be no forward mode.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

Activation = Callable[[jax.Array], jax.Array]

# Elements of the input that are worked on at a time: with the other tensors of a layer
# they fit into the cache. From 2**17 to 2**19 the speed was much the same (2 cores, 8x8
# to 32x32 pixels, 48 to 168 channels); below 2 images one core idles.
_CHUNK_SIZE = 2**18
# A depthwise convolution alone has fewer other tensors: this was 1.2 times as fast.
_DEPTHWISE_CHUNK_SIZE = 2**20
# Images that are added up at once, for the gradient of a depthwise kernel.
_IMAGES_PER_SUM = 4


class Geometry(NamedTuple):
    """What a depthwise convolution is, apart from its arrays; pairs: rows, columns."""

    strides: tuple[int, int] = (1, 1)
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    kernel_dilation: tuple[int, int] = (1, 1)


def accumulator_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype in which numbers of `dtype` are added up: float32 or wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def depthwise(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolve x (N, H, W, C) depthwise with kernel (kh, kw, 1, C)."""
    if _name_axes(x, kernel):
        return shifted_sum(x, kernel, geometry=geometry)
    return _depthwise_p.bind(x, kernel, geometry=geometry)


def separable(
    pieces: Sequence[jax.Array],
    affine: Sequence[jax.Array],
    depthwise_kernel: jax.Array,
    pointwise_kernel: jax.Array,
    *,
    activation: Activation | None,
    geometry: Geometry,
) -> jax.Array:
    """Concatenate, scale and shift, activate, convolve depthwise and pointwise.

    Args:
      pieces: (N, H, W, C_i) each; their channels, one after the other, are the C.
      affine: factor and constant of each channel, (C,) in float32 or wider; or nothing.
      depthwise_kernel: (kh, kw, 1, C), of the dtype to compute in.
      pointwise_kernel: (1, 1, C, F), of the same dtype.
      activation: a function that depends on its argument alone.
      geometry: of the depthwise convolution.

    Returns:
      (N, H', W', F), of the dtype of the kernels.
    """
    arrays = (*pieces, *affine, depthwise_kernel, pointwise_kernel)
    static = {"num_pieces": len(pieces), "activation": activation, "geometry": geometry}
    if _name_axes(*arrays):
        return _separable_at_once(*arrays, **static)
    return _separable_p.bind(*arrays, **static)


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


def mix(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve x (..., C) with kernel (1, 1, C, F), as one matrix product."""
    # XLA adds up bfloat16 products in float32. To ask for a float32 result would make
    # the products of the gradient float32 ones, at twice the bytes.
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def shifted_sum(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Convolve depthwise: a multiply-add per tap, of shifted views, which XLA fuses."""
    kernel = kernel.astype(accumulator_dtype(x.dtype))
    y = None
    for i, j, view in _views(x, kernel.shape[:2], geometry):
        product = view * kernel[i : i + 1, j : j + 1]
        y = product if y is None else y + product
    return y.astype(x.dtype)


def convolve_patches(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolve x (N, H, W, C) with kernel (kh, kw, C, F), as one matrix product."""
    views = [
        view.astype(x.dtype) for _, _, view in _views(x, kernel.shape[:2], geometry)
    ]
    return mix(jnp.concatenate(views, -1), kernel.reshape(1, 1, -1, kernel.shape[-1]))


def _name_axes(*arrays):
    """Return whether the type of an array names axes of a mesh, explicit or manual.

    Operations of jax know what to do with such types, under `shard_map` for one; a
    primitive of ours would have to be taught.
    """
    meshes = (jax.typeof(array).sharding.mesh for array in arrays)
    return any(t != AxisType.Auto for mesh in meshes for t in mesh.axis_types or ())


def _views(x, kernel_size, geometry):
    """Yield (i, j, what tap (i, j) of the kernel sees), each in the wide dtype."""
    edges = ((0, 0, 0), *((low, high, 0) for low, high in geometry.pads), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    x = x.astype(accumulator_dtype(x.dtype))
    n, height, width, channels = x.shape
    dilation = geometry.kernel_dilation
    spans = [
        size - (k - 1) * step
        for size, k, step in zip((height, width), kernel_size, dilation, strict=True)
    ]
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            top, left = i * dilation[0], j * dilation[1]
            limit = (n, top + spans[0], left + spans[1], channels)
            strides = (1, *geometry.strides, 1)
            yield i, j, lax.slice(x, (0, top, left, 0), limit, strides)


def _spread(g, kernel, image_size, geometry):
    """Convolve g, its pixels `strides` apart, with the kernel turned about.

    This is the gradient of the input, whose rows and columns are `image_size`.
    """
    rows, columns = ((0, 0, stride - 1) for stride in geometry.strides)
    g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))
    pads = []
    for axis in range(2):
        reach = (kernel.shape[axis] - 1) * geometry.kernel_dilation[axis]
        before = reach - geometry.pads[axis][0]
        after = image_size[axis] + reach - before - g.shape[1 + axis]
        pads.append((before, after))
    turned = Geometry((1, 1), tuple(pads), geometry.kernel_dilation)
    return shifted_sum(g, kernel[::-1, ::-1], geometry=turned)


def _chunk_length(n, elements_per_image, size):
    """Return how many of n images, a power of two or all, are worked on at a time."""
    if n * elements_per_image < 2 * size:
        return n
    return min(n, 2 ** max(1, int(math.log2(size / elements_per_image))))


def _depthwise_chunk_length(x):
    return _chunk_length(len(x), math.prod(x.shape[1:]), _DEPTHWISE_CHUNK_SIZE)


def _separable_chunk_length(x, num_channels):
    """x is any of the pieces."""
    elements = math.prod(x.shape[1:3]) * num_channels
    return _chunk_length(len(x), elements, _CHUNK_SIZE)


def _for_each_chunk(add, init, arrays, chunk):
    """Fold `add(carry, first image, chunk of each array)` over chunks of images."""
    n = len(arrays[0])
    if chunk == n:
        return add(init, 0, arrays)

    def body(i, carry):
        start = i * chunk
        part = [lax.dynamic_slice_in_dim(a, start, chunk) for a in arrays]
        return add(carry, start, part)

    carry = lax.fori_loop(0, n // chunk, body, init)
    rest = n % chunk
    return add(carry, n - rest, [a[n - rest :] for a in arrays]) if rest else carry


def _put(whole, part, start):
    """Return `whole` with a part of its images replaced, or all of them."""
    if part.shape == whole.shape:
        return part
    return lax.dynamic_update_slice_in_dim(whole, part, start, axis=0)


def _map_images(function, arrays, chunk):
    """Return function(*arrays), computed for a few images at a time."""
    n = len(arrays[0])
    if chunk == n:
        return function(*arrays)
    part = [jax.ShapeDtypeStruct((chunk, *a.shape[1:]), a.dtype) for a in arrays]
    shape = jax.eval_shape(function, *part)

    def add(y, start, part):
        return _put(y, function(*part), start)

    return _for_each_chunk(
        add, jnp.zeros((n, *shape.shape[1:]), shape.dtype), arrays, chunk
    )


def _depthwise(x, kernel, *, geometry):
    function = partial(shifted_sum, kernel=kernel, geometry=geometry)
    return _map_images(function, [x], _depthwise_chunk_length(x))


def _depthwise_input_gradient(g, kernel, *, image_size, geometry):
    function = partial(_spread, kernel=kernel, image_size=image_size, geometry=geometry)
    return _map_images(function, [g], _depthwise_chunk_length(g))


def _zero_sums(g, num_channels, kernel_size, chunk):
    """Return what `_add_tap_products` starts from: for each tap, sums by pixel."""
    num_sums = max(1, chunk // _IMAGES_PER_SUM)
    shape = (num_sums, *g.shape[1:3], num_channels)
    return [jnp.zeros(shape, accumulator_dtype(g.dtype))] * math.prod(kernel_size)


def _add_tap_products(sums, x, g, kernel_size, geometry):
    """Add x times g to the sums of each tap: their total is the kernel's gradient.

    To add up all pixels at once, for each tap, would read both tensors nine times from
    memory, and column by column. So the sums are elementwise until the last chunk.
    """
    g = g.astype(accumulator_dtype(g.dtype))
    length = len(sums[0])
    added = []
    for total, (_, _, view) in zip(sums, _views(x, kernel_size, geometry), strict=True):
        product = view * g
        for start in range(0, len(g), length):
            part = product[start : start + length]
            if len(part) == length:
                total = total + part
            else:
                total = total.at[: len(part)].add(part)
        added.append(total)
    return added


def _total(sums, kernel_size, dtype):
    """Return the gradient of a depthwise kernel, (kh, kw, 1, C)."""
    gradient = jnp.stack([s.sum((0, 1, 2)) for s in sums])
    return gradient.reshape(*kernel_size, 1, -1).astype(dtype)


def _depthwise_kernel_gradient(x, g, *, kernel_size, geometry):
    chunk = _depthwise_chunk_length(x)

    def add(sums, start, part):
        return _add_tap_products(sums, *part, kernel_size, geometry)

    sums = _zero_sums(g, g.shape[-1], kernel_size, chunk)
    sums = _for_each_chunk(add, sums, [x, g], chunk)
    return _total(sums, kernel_size, x.dtype)


def _split(arrays, num_pieces):
    """Return (pieces, affine, depthwise kernel, pointwise kernel) of a flat list."""
    pieces, rest = arrays[:num_pieces], arrays[num_pieces:]
    return pieces, rest[:-2], rest[-2], rest[-1]


def _separable_at_once(*arrays, num_pieces, activation, geometry):
    pieces, affine, kernel, mixer = _split(arrays, num_pieces)
    x = activate(join(pieces), affine, activation, kernel.dtype)
    return mix(shifted_sum(x, kernel, geometry=geometry), mixer)


def _separable(*arrays, num_pieces, activation, geometry):
    pieces, affine, kernel, mixer = _split(arrays, num_pieces)
    static = {"num_pieces": num_pieces, "activation": activation, "geometry": geometry}

    def function(*pieces):
        return _separable_at_once(*pieces, *affine, kernel, mixer, **static)

    return _map_images(
        function, pieces, _separable_chunk_length(pieces[0], kernel.shape[-1])
    )


def _separable_tangent(*arrays, **static):
    """Return the derivative in a direction; arrays: the arguments, then the direction.

    Computed only in forward mode: backwards, its transpose is.
    """
    half = len(arrays) // 2
    function = partial(_separable_at_once, **static)
    return jax.jvp(function, arrays[:half], arrays[half:])[1]


def _separable_gradients(*arrays, num_pieces, activation, geometry):
    """Return the gradient of each argument; arrays: g, then the arguments."""
    g, *arrays = arrays
    pieces, affine, kernel, mixer = _split(arrays, num_pieces)
    kernel_size, image_size = kernel.shape[:2], pieces[0].shape[1:3]
    wide = accumulator_dtype(kernel.dtype)
    chunk = _separable_chunk_length(pieces[0], kernel.shape[-1])

    def add(carry, start, part):
        d_pieces, d_affine, sums, d_mixer = carry
        g, *pieces = part
        x, join_vjp = jax.vjp(lambda *pieces: join(pieces), *pieces)
        u, activate_vjp = jax.vjp(
            lambda x, *affine: activate(x, affine, activation, kernel.dtype), x, *affine
        )
        y = shifted_sum(u, kernel, geometry=geometry)
        dy = mix(g, mixer.swapaxes(2, 3))
        # Contracted in place: the transpose of `@` would copy g to columns first.
        flat_y, flat_g = (a.reshape(-1, a.shape[-1]) for a in (y, g))
        d_mixer += lax.dot_general(
            flat_y, flat_g, (((0,), (0,)), ((), ())), preferred_element_type=wide
        )
        sums = _add_tap_products(sums, u, dy, kernel_size, geometry)
        du = _spread(dy, kernel, image_size, geometry)
        dx, *d_affine_part = activate_vjp(du)
        d_affine = [a + b for a, b in zip(d_affine, d_affine_part, strict=True)]
        d_pieces = [
            _put(whole, d_part, start)
            for whole, d_part in zip(d_pieces, join_vjp(dx), strict=True)
        ]
        return d_pieces, d_affine, sums, d_mixer

    init = (
        [jnp.zeros_like(piece) for piece in pieces],
        [jnp.zeros_like(vector) for vector in affine],
        _zero_sums(g, kernel.shape[-1], kernel_size, chunk),
        jnp.zeros(mixer.shape[2:], wide),
    )
    d_pieces, d_affine, sums, d_mixer = _for_each_chunk(add, init, [g, *pieces], chunk)
    d_kernel = _total(sums, kernel_size, kernel.dtype)
    return [*d_pieces, *d_affine, d_kernel, d_mixer.astype(mixer.dtype)[None, None]]


def _make_primitive(name, function):
    """Make a primitive of a function of arrays and hashable keywords, vmap included."""
    primitive = Primitive(name)

    @partial(jax.jit, static_argnames="static")
    def run(*arrays, static):
        return function(*arrays, **dict(static))

    def evaluate(*arrays, **static):
        return run(*arrays, static=tuple(static.items()))

    primitive.def_impl(evaluate)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))

    @primitive.def_abstract_eval
    def abstract_eval(*avals, **static):
        result = jax.eval_shape(partial(function, **static), *avals)
        return jax.core.ShapedArray(result.shape, result.dtype)

    def batch(arrays, axes, **static):
        return jax.vmap(partial(function, **static), axes)(*arrays), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_depthwise_p = _make_primitive("depthwise", _depthwise)
_input_gradient_p = _make_primitive("depthwise_input", _depthwise_input_gradient)
_kernel_gradient_p = _make_primitive("depthwise_kernel", _depthwise_kernel_gradient)
_separable_p = _make_primitive("separable", _separable)
_separable_tangent_p = _make_primitive("separable_tangent", _separable_tangent)


def _transpose_input(g, x, kernel, *, geometry):
    image_size = x.aval.shape[1:3]
    return _input_gradient_p.bind(g, kernel, image_size=image_size, geometry=geometry)


def _transpose_kernel(g, x, kernel, *, geometry):
    kernel_size = kernel.aval.shape[:2]
    return _kernel_gradient_p.bind(x, g, kernel_size=kernel_size, geometry=geometry)


ad.defbilinear(_depthwise_p, _transpose_input, _transpose_kernel)
# Each gradient is linear in each of its two arguments, too, and they turn into one
# another.
ad.defbilinear(
    _input_gradient_p,
    lambda x, g, kernel, *, image_size, geometry: _depthwise_p.bind(
        x, kernel, geometry=geometry
    ),
    lambda x, g, kernel, *, image_size, geometry: _kernel_gradient_p.bind(
        x, g, kernel_size=kernel.aval.shape[:2], geometry=geometry
    ),
)
ad.defbilinear(
    _kernel_gradient_p,
    lambda kernel, x, g, *, kernel_size, geometry: _input_gradient_p.bind(
        g, kernel, image_size=x.aval.shape[1:3], geometry=geometry
    ),
    lambda kernel, x, g, *, kernel_size, geometry: _depthwise_p.bind(
        x, kernel, geometry=geometry
    ),
)


def _separable_jvp(primals, tangents, **static):
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    y = _separable_p.bind(*primals, **static)
    return y, _separable_tangent_p.bind(*primals, *tangents, **static)


def _separable_tangent_jvp(primals, tangents, **static):
    tangents = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
    return jax.jvp(partial(_separable_tangent, **static), primals, tangents)


_run_separable_gradients = jax.jit(
    _separable_gradients, static_argnames=("num_pieces", "activation", "geometry")
)


def _separable_transpose(g, *arrays, **static):
    half = len(arrays) // 2
    directions = arrays[half:]
    gradients = _run_separable_gradients(g, *arrays[:half], **static)
    return [None] * half + [
        gradient if ad.is_undefined_primal(direction) else None
        for gradient, direction in zip(gradients, directions, strict=True)
    ]


ad.primitive_jvps[_separable_p] = _separable_jvp
ad.primitive_jvps[_separable_tangent_p] = _separable_tangent_jvp
ad.primitive_transposes[_separable_tangent_p] = _separable_transpose
