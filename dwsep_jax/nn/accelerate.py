"""A lowering of lax's convolution, where it is depthwise: ours, and everybody's.

`by_shifts` gives it to the convolutions of one function, and `accelerate` to all of the
process, on CPU. All else is lax's own: autodiff, batching, sharding.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from dwsep_jax.nn import shifted

_MAX_TAPS = 128  # Each is some instructions in the program.
_DTYPES = {"bfloat16", "float16", "float32", "float64"}
_CONV = lax.conv_general_dilated_p


def accelerate() -> None:
    """Let all depthwise convolutions of this process be computed as ours, on CPU.

    Whoever makes them: Flax, Keras, Haiku, Equinox, `lax`; forward, both gradients,
    forward mode, `vmap`, `scan`, `remat`, sharded. Results change by rounding. What is
    not a depthwise convolution of images, of a floating dtype, is lowered as before.
    Functions that were jitted before are compiled anew.

    Raises:
      RuntimeError: if this jax keeps its lowerings where they are not found.
    """
    original = _registered_rule()
    if original is not _rule:
        _rule.original = original
        mlir.register_lowering(_CONV, _rule, platform="cpu")
        jax.clear_caches()


def undo_accelerate() -> None:
    """Undo `accelerate`: functions are compiled anew, as jax does it."""
    if _registered_rule() is _rule:
        mlir.register_lowering(_CONV, _rule.original, platform="cpu")
        jax.clear_caches()


def by_shifts(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return `function` with its convolutions, depthwise ones, as sums of shifts."""

    def run(*arrays):
        closed = jax.make_jaxpr(function)(*arrays)
        eqns = [
            eqn.replace(primitive=_shifted_conv_p) if eqn.primitive is _CONV else eqn
            for eqn in closed.eqns
        ]
        closed = closed.replace(jaxpr=closed.jaxpr.replace(eqns=eqns))
        (y,) = jaxpr_as_fun(closed)(*arrays)
        return y

    return run


def _registered_rule():
    """Return what lowers a convolution on CPU: the one thing here that is private."""
    try:
        return mlir._platform_specific_lowerings["cpu"][_CONV].rule
    except (AttributeError, KeyError) as error:
        raise RuntimeError(
            f"accelerate() does not know where jax {jax.__version__} keeps its "
            "lowerings; versions 0.10 to 0.12 are known"
        ) from error


_in_original = ContextVar("_in_original", default=False)


def _rule(ctx, x, kernel, **params):
    if not _in_original.get() and _is_depthwise(
        *ctx.avals_in, *ctx.avals_out, **params
    ):
        return _lower(ctx, x, kernel, **params)
    # It makes a complex convolution of real ones, which this rule shall leave alone.
    token = _in_original.set(True)
    try:
        return _rule.original(ctx, x, kernel, **params)
    finally:
        _in_original.reset(token)


def _is_depthwise(
    x, kernel, y, *, dimension_numbers, feature_group_count, batch_group_count, **params
):
    x_spec, kernel_spec, y_spec = dimension_numbers
    dtypes = {x.dtype.name, kernel.dtype.name, y.dtype.name}
    if x.ndim != 4 or not dtypes <= _DTYPES or x.dtype != kernel.dtype:
        return False
    if feature_group_count > 1:  # Each channel makes some, or some make one.
        groups = feature_group_count
        channels = min(x.shape[x_spec[1]], y.shape[y_spec[1]])
        num_taps = math.prod(kernel.shape[axis] for axis in kernel_spec[2:])
    else:
        groups, channels = batch_group_count, x.shape[x_spec[0]]
        num_taps = math.prod(y.shape[axis] for axis in y_spec[2:])
    empty = 0 in (*x.shape, *kernel.shape, *y.shape)
    return 1 < groups == channels and num_taps <= _MAX_TAPS and not empty


def _lower(ctx, x, kernel, **params):
    (y,) = ctx.avals_out
    shards = getattr(ctx.module_context.axis_context, "num_devices", 1)
    function = partial(_convolve, y=y, shards=shards, **params)
    # The sums need not know of meshes that types name: XLA shards them as the input is.
    plain = [jax.core.ShapedArray(a.shape, a.dtype) for a in (*ctx.avals_in, y)]
    ctx = ctx.replace(avals_in=plain[:2], avals_out=plain[2:])
    return mlir.lower_fun(function, multiple_results=False)(ctx, x, kernel)


def _convolve(x, kernel, *, y, shards, **params):
    """Compute what lax's convolution of these parameters does; y: its shape and dtype.

    That is a convolution, with which the gradient of the input is one, too; or the
    gradient of a kernel, a convolution whose batch is grouped: it takes the channels as
    the batch of x, the images as its channels, and the gradient of the output as the
    kernel.
    """
    x_spec, kernel_spec, y_spec = params["dimension_numbers"]
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    pads = tuple(map(tuple, params["padding"]))
    input_dilation = params["lhs_dilation"]
    groups = params["feature_group_count"]
    if groups > 1 or params["batch_group_count"] == x.shape[x_spec[1]] == 1:
        images = x.transpose(x_spec[0], *x_spec[2:], x_spec[1])
        taps = kernel.transpose(*kernel_spec[2:], *kernel_spec[:2])
        taps = taps.reshape(*taps.shape[:2], 1, -1)
        images = jnp.repeat(images, taps.shape[-1] // images.shape[-1], axis=-1)
        geometry = shifted.Geometry(strides, pads, dilation, input_dilation)
        result = shifted.shifted_sum(images, taps, geometry)
        if taps.shape[-1] > y.shape[y_spec[1]]:
            result = result.reshape(*result.shape[:3], groups, -1).sum(-1)
        axes = (0, 3, 1, 2)
    else:
        images = x.transpose(x_spec[1], *x_spec[2:], x_spec[0])
        g = kernel.transpose(kernel_spec[1], *kernel_spec[2:], kernel_spec[0])
        images = jnp.repeat(images, g.shape[-1] // images.shape[-1], axis=-1)
        geometry = shifted.Geometry(dilation, pads, strides, input_dilation)
        size = tuple(y.shape[axis] for axis in y_spec[2:])
        result = shifted.kernel_gradient(images, g, size, geometry, shards)
        axes = (2, 3, 0, 1)
    return jnp.moveaxis(result, axes, y_spec).astype(y.dtype)


# A convolution of lax under another name, with a lowering of its own.
_shifted_conv_p = Primitive("shifted_conv")
_shifted_conv_p.def_abstract_eval(
    lambda *avals, **params: _CONV.abstract_eval(*avals, **params)[0]
)
mlir.register_lowering(_shifted_conv_p, _lower)


@partial(jax.jit, static_argnames="params")
def _run(*arrays, params):
    return _shifted_conv_p.bind(*arrays, **dict(params))


@_shifted_conv_p.def_impl
def _compute(*arrays, **params):
    with jax.disable_jit(False):  # Else it would call itself.
        return _run(*arrays, params=tuple(params.items()))


def _transpose(convolve, g, unknown, known):
    """Return the gradient of `unknown`, as lax has it: by a convolution, too."""

    def transpose(g, known):
        return jax.linear_transpose(partial(convolve, known), unknown.aval)(g)[0]

    return by_shifts(transpose)(g, known)


def _transpose_x(g, x, kernel, **params):
    return _transpose(lambda kernel, x: _CONV.bind(x, kernel, **params), g, x, kernel)


def _transpose_kernel(g, x, kernel, **params):
    return _transpose(partial(_CONV.bind, **params), g, kernel, x)


def _batch(arrays, axes, **params):
    return by_shifts(jax.vmap(partial(_CONV.bind, **params), axes))(*arrays), 0


ad.defbilinear(_shifted_conv_p, _transpose_x, _transpose_kernel)
batching.primitive_batchers[_shifted_conv_p] = _batch
