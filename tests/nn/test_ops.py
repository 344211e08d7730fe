"""Depthwise and pointwise convolution against the same sums in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType
from jax.test_util import check_grads

from dwsep_jax.nn import layers, ops, shifted
from tests.nn.numerics import relative_error

pytestmark = pytest.mark.usefixtures("strict")

CASES = {
    "3x3": dict(shape=(2, 6, 7, 5)),
    "1x1": dict(shape=(2, 4, 4, 3), kernel_size=(1, 1)),
    "even kernel": dict(shape=(1, 7, 6, 4), kernel_size=(2, 4)),
    "strides": dict(shape=(2, 8, 7, 3), strides=(2, 2)),
    "unequal strides": dict(shape=(2, 9, 8, 3), strides=(1, 3), kernel_size=(5, 3)),
    "dilation": dict(shape=(1, 9, 11, 2), kernel_dilation=(2, 3)),
    "valid": dict(shape=(1, 5, 9, 2), padding="VALID", kernel_size=(5, 2)),
    "valid, strides, dilation": dict(
        shape=(1, 12, 13, 2), padding="VALID", strides=(2, 3), kernel_dilation=(3, 2)
    ),
    "explicit padding": dict(shape=(1, 5, 6, 2), padding=((0, 3), (2, 1))),
    "one pixel": dict(shape=(3, 1, 1, 2)),
    "one channel": dict(shape=(2, 5, 5, 1)),
    # With pieces of 2**6 elements: a few images; or some rows, in parts, of one image.
    "many": dict(shape=(5, 6, 5, 3), strides=(2, 1), kernel_dilation=(1, 2)),
    "many rows": dict(shape=(2, 24, 3, 2), strides=(3, 1)),
}
LOWERINGS = ("conv", "shift", "auto")


@pytest.fixture(params=LOWERINGS)
def lowering(request):
    return request.param


def make_inputs(shape, kernel_size=(3, 3), dtype=np.float32, seed=0, **options):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(dtype)
    kernel = rng.normal(size=(*kernel_size, 1, shape[-1])).astype(dtype)
    return x, kernel, options


def exact(x, kernel, strides=(1, 1), padding="SAME", kernel_dilation=(1, 1)):
    """Convolve by jax alone, which pads by itself."""
    options = dict(rhs_dilation=kernel_dilation, feature_group_count=x.shape[-1])
    options["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_those_in_float64(case, monkeypatch):
    if case.startswith("many"):
        monkeypatch.setattr(shifted, "_PIECE_SIZE", 2**6)
        monkeypatch.setattr(shifted, "_MIN_PART_SIZE", 2**3)
    x, kernel, options = make_inputs(**CASES[case])

    def compute(convolve, dtype):
        @partial(jax.grad, argnums=(0, 1), has_aux=True)
        def gradients(x, kernel):
            y = convolve(x, kernel, **options)
            weights = jnp.arange(y.size, dtype=y.dtype).reshape(y.shape) / y.size
            return jnp.sum(y * y * weights), y

        found, y = jax.jit(gradients)(x.astype(dtype), kernel.astype(dtype))
        return y, *found

    with jax.enable_x64(True):
        want = compute(exact, np.float64)
    lowerings = [partial(ops.depthwise_conv, lowering=name) for name in LOWERINGS]
    results = [compute(convolve, np.float32) for convolve in lowerings]
    for i, (wide, *others) in enumerate(zip(want, *results)):
        errors = [relative_error(one, wide) for one in others]
        assert max(errors) < (max(2 * errors[0], 1e-6) if i else 1e-6)


def test_derivatives_of_both_modes_and_of_second_order(lowering):
    options = dict(strides=(2, 1), padding=((0, 3), (1, 0)), kernel_dilation=(2, 1))
    arrays = make_inputs((2, 6, 5, 2), dtype=np.float64)[:2]

    @jax.jit
    def f(x, kernel):
        y = ops.depthwise_conv(x, kernel, lowering=lowering, **options)
        return jnp.sum(jnp.sin(y))

    with jax.enable_x64(True):
        check_grads(f, arrays, order=2)


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_equals_a_loop(in_axes, lowering):
    x, kernel, _ = make_inputs((2, 5, 5, 3))
    xs = np.stack([x, x[::-1]]) if in_axes[0] == 0 else x
    kernels = np.stack([kernel, 2 * kernel]) if in_axes[1] == 0 else kernel

    def f(x, kernel):
        y = ops.depthwise_conv(x, kernel, lowering=lowering)
        return jnp.sum(jnp.sin(y)), y

    both = jax.value_and_grad(f, (0, 1), has_aux=True)
    got = jax.tree.leaves(jax.vmap(both, in_axes)(xs, kernels))
    for i in range(2):
        pair = (v[i] if axis == 0 else v for v, axis in zip((xs, kernels), in_axes))
        for many, one in zip(got, jax.tree.leaves(both(*pair)), strict=True):
            np.testing.assert_allclose(many[i], one, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_accumulated_in_float32(lowering):
    x = jnp.array([256.0, 1.0, 1.0], jnp.bfloat16).reshape(1, 1, 3, 1)
    kernel = jnp.ones((1, 3, 1, 1), jnp.bfloat16)
    y = ops.depthwise_conv(x, kernel, padding="VALID", lowering=lowering)
    assert y.dtype == jnp.bfloat16
    # bfloat16 has 8 bits: there, 256 + 1 is 256.
    assert y.item() == 258.0


def test_bfloat16_gradients_are_accumulated_in_float32():
    x, kernel, _ = make_inputs((2, 8, 8, 16))
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)

    def gradients(lowering, dtype):
        def loss(x, kernel):
            y = ops.depthwise_conv(x, kernel, lowering=lowering)
            weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
            return jnp.sum(y * weights.astype(dtype))

        gradient = jax.grad(loss, (0, 1))(x.astype(dtype), kernel.astype(dtype))
        return [np.asarray(g.astype(jnp.float32)) for g in gradient]

    want = gradients("conv", jnp.float32)
    reference, shift = (gradients(name, jnp.bfloat16) for name in ("conv", "shift"))
    for exact_gradient, by_conv, by_shift in zip(want, reference, shift):
        error = relative_error(by_shift, exact_gradient)
        assert error <= 1.2 * relative_error(by_conv, exact_gradient)


def test_bfloat16_pointwise_is_accumulated_in_float32_of_bfloat16_operands():
    x = jnp.array([[256.0, 1.0, 1.0]], jnp.bfloat16)
    kernel = jnp.ones((1, 1, 3, 1), jnp.bfloat16)
    assert ops.pointwise_conv(x, kernel).item() == 258.0
    backward = jax.make_jaxpr(jax.grad(lambda k: ops.pointwise_conv(x, k).sum()))
    products = [e for e in backward(kernel).eqns if e.primitive.name == "dot_general"]
    assert products
    for product in products:
        assert {v.aval.dtype.name for v in product.invars} == {"bfloat16"}


def test_one_number_stands_for_both_axes():
    x, kernel, _ = make_inputs((1, 9, 9, 2))
    got = ops.depthwise_conv(x, kernel, strides=2, padding=1, kernel_dilation=2)
    pairs = dict(strides=(2, 2), padding=((1, 1), (1, 1)), kernel_dilation=(2, 2))
    want = ops.depthwise_conv(x, kernel, **pairs)
    np.testing.assert_array_equal(got, want)
    options = dict(strides=np.int64(2), padding=(1, 1), kernel_dilation=2)
    np.testing.assert_array_equal(ops.depthwise_conv(x, kernel, **options), want)


def test_auto_is_shift_on_cpu_and_conv_elsewhere():
    x, kernel, _ = make_inputs((1, 4, 4, 2))
    convolve = jax.jit(lambda x, k: ops.depthwise_conv(x, k))

    def program(platform):
        return convolve.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in program("cpu")
    assert "stablehlo.convolution" in program("tpu")
    assert "stablehlo.convolution" in program("cuda")


def test_what_does_not_fit_is_refused_with_a_reason():
    x, kernel, _ = make_inputs((1, 5, 5, 2))
    for options, message in (
        (dict(lowering="fft"), "choose one of auto"),
        (dict(padding="FULL"), "one of SAME, SAME_LOWER, VALID"),
        (dict(strides=0), "strides are one or two"),
        (dict(padding=((-1, 0), (0, 0))), ">= 0"),
        (dict(strides=(1.5, 1)), "not \\(1.5, 1\\)"),
        (dict(padding="VALID", kernel_dilation=(3, 1)), "7 pixels does not fit into 5"),
        (dict(kernel=np.ones((0, 3, 1, 2), np.float32)), "is empty"),
        (dict(kernel=np.ones((3, 3, 1, 3), np.float32)), r"C \* channel_multiplier"),
        (dict(kernel=jnp.ones((3, 3, 1, 2), jnp.bfloat16)), "float32 and bfloat16"),
        (dict(x=np.ones((5, 5, 2), np.float32)), r"\(N, H, W, C\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.depthwise_conv(**{"x": x, "kernel": kernel} | options)
    with pytest.raises(ValueError, match=r"\(1, 1, 2, F\), not"):
        ops.pointwise_conv(jnp.asarray(x), jnp.asarray(kernel))


def normalize(x, mean, var, scale, bias, epsilon, activation):
    module = layers.Normalize(epsilon, activation=activation)
    return module.apply({"params": {"scale": scale, "bias": bias}}, x, mean, var)


@pytest.mark.parametrize("activation", [None, nn.relu, nn.swish])
def test_normalize_and_its_derivatives_equal_the_formula(activation):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(3, 4, 5, 6))
    vectors = [rng.normal(size=6), rng.uniform(1, 2, 6), *rng.normal(size=(2, 6))]

    def formula(x, *vectors):
        mean, var, scale, bias = (shifted.per_channel(v, 4) for v in vectors)
        y = (x - mean) / jnp.sqrt(var + 0.1) * scale + bias
        return y if activation is None else activation(y)

    def ours(*args):
        return normalize(*args, epsilon=0.1, activation=activation)

    def loss(f):
        return lambda *args: jnp.sum(jnp.sin(f(*args)))

    with jax.enable_x64(True):
        args = (jnp.asarray(x), *map(jnp.asarray, vectors))
        np.testing.assert_allclose(ours(*args), formula(*args), rtol=1e-12)
        everything = tuple(range(5))
        got, want = (jax.grad(loss(f), everything)(*args) for f in (ours, formula))
        for one, other in zip(got, want):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
        _, forward = jax.jvp(loss(ours), args, got)
        np.testing.assert_allclose(forward, sum(jnp.vdot(g, g) for g in got))


def test_gradient_of_normalize_takes_two_sums_over_the_elements():
    x, vector = jnp.ones((2, 3, 3, 4)), jnp.ones(4)

    def gradients(g, *args):
        f = partial(normalize, epsilon=0.1, activation=nn.relu)
        return jax.vjp(f, *args)[1](g)

    jaxpr = jax.make_jaxpr(gradients)(x, x, *[vector] * 4)
    sums = [e for e in jaxpr.eqns if e.primitive.name == "reduce_sum"]
    assert [e.invars[0].aval.shape for e in sums].count(x.shape) == 2


def test_gradients_on_a_mesh_are_those_on_one_device(lowering):
    x, kernel, _ = make_inputs((4, 5, 5, 3))

    def loss(kernel, x):
        return jnp.sum(jnp.sin(ops.depthwise_conv(x, kernel, lowering=lowering)))

    want = jax.grad(loss, (0, 1))(kernel, x)
    # Both devices share the kernel: its gradient is summed over them.
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = dict(in_specs=(jax.P(), jax.P("data")), out_specs=jax.P())
    mapped = jax.shard_map(jax.grad(loss), mesh=mesh, **specs)(kernel, x)
    np.testing.assert_allclose(mapped, want[0], rtol=1e-5, atol=1e-5)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
        with jax.set_mesh(mesh):
            sharded = jax.device_put(x, jax.P("data"))
            got = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(kernel), sharded)
            assert jax.typeof(got[1]) == jax.typeof(sharded)
            assert len(got[1].addressable_shards) == 2
        for a, b in zip(got, want):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_are_exported_for_any_number_of_images():
    x, kernel, _ = make_inputs((5, 4, 4, 2))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(ops.depthwise_conv(x, kernel)))

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    shape = (*jax.export.symbolic_shape("n"), 4, 4, 2)
    images = jax.ShapeDtypeStruct(shape, x.dtype)
    exported = jax.export.export(gradients)(images, kernel)
    for one, other in zip(exported.call(x, kernel), gradients(x, kernel)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_an_activation_may_have_parameters_of_its_own():
    x, vector = jnp.array([[-1.0, 2.0]]), jnp.ones(2)

    def f(slope):
        prelu = lambda y: jnp.where(y > 0, y, slope * y)  # noqa: E731
        args = (x, 0 * vector, vector, vector, 0 * vector)
        return normalize(*args, epsilon=0.0, activation=prelu).sum()

    assert jax.grad(f)(0.5) == -1.0


def test_eager_calls_of_equal_shapes_compile_nothing_more(caplog):
    x, kernel, _ = make_inputs((1, 4, 4, 2), seed=1)
    ops.depthwise_conv(x, kernel, lowering="shift")
    with jax.log_compiles():
        ops.depthwise_conv(2 * x, kernel, lowering="shift")
        assert "Compiling" not in caplog.text
        ops.depthwise_conv(x[:, 1:], kernel, lowering="shift")
        assert "Compiling" in caplog.text
