"""Separable convolution in chunks of images, against the same sums at once."""

import re
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType

from dwsep_jax.nn import ops, shifted
from tests.nn.numerics import relative_error

pytestmark = pytest.mark.usefixtures("strict")

ACTIVATIONS = [None, jax.nn.relu, jax.nn.leaky_relu, jax.nn.silu, jax.nn.gelu]


@pytest.fixture
def in_chunks(monkeypatch):
    """Let batches of a few small images be worked on in chunks."""
    monkeypatch.setattr(ops, "_CHUNK_SIZE", 2**9)
    monkeypatch.setattr(shifted, "_PIECE_SIZE", 2**8)
    monkeypatch.setattr(shifted, "_MIN_PART_SIZE", 2**4)


def make_inputs(
    n=11, size=(7, 6), pieces=(3, 2), kernel_size=(3, 3), features=4, dtype=np.float32
):
    rng = np.random.default_rng(0)
    channels = sum(pieces)
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    xs = tuple(draw(n, *size, c) for c in pieces)
    kernels = draw(*kernel_size, 1, channels), draw(1, 1, channels, features)
    return xs, draw(channels), draw(channels), *kernels


def convolve(xs, factor, constant, *kernels, activation=jax.nn.relu, **options):
    x = ops.Normalized(tuple(xs), factor, constant, activation, kernels[0].dtype)
    return ops.separable_conv(x, *kernels, **options)


def value_and_gradients(arrays, weights, **options):
    """Return the output, and the gradients of a weighted sum of its squares."""

    @partial(jax.grad, argnums=range(5), has_aux=True)
    def gradients(*arrays):
        y = convolve(*arrays, **options)
        wide = y.astype(weights.dtype)
        return jnp.sum(wide * wide * weights), y

    found, y = jax.jit(gradients)(*arrays)
    return [y, *jax.tree.leaves(found)]


def assert_close(got, want):
    """Check that all arrays of two trees are equal up to rounding."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    assert all(relative_error(one, other) < 1e-5 for one, other in pairs)


def cast(arrays, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)


SETTINGS = dict(deadline=None, derandomize=True, database=None, max_examples=12)
SETTINGS["suppress_health_check"] = [hypothesis.HealthCheck.function_scoped_fixture]


@hypothesis.settings(**SETTINGS)
@hypothesis.given(
    n=st.integers(1, 13),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    pieces=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    kernel_size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from(["SAME", "VALID", ((0, 3), (4, 1))]),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_lowerings_agree_over_a_range_of_shapes(
    in_chunks, n, size, pieces, kernel_size, strides, dilation, padding, activation
):
    spans = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation)]
    if padding == "VALID":
        size = tuple(max(pair) for pair in zip(size, spans))
    elif padding != "SAME":
        added = (sum(pad) for pad in padding)
        size = tuple(max(s, k - a) for s, k, a in zip(size, spans, added))
    options = dict(strides=strides, padding=padding, kernel_dilation=dilation)
    options["activation"] = activation
    arrays = make_inputs(n, size, pieces, kernel_size)
    with jax.enable_x64(True):
        wide = cast(arrays, jnp.float64)
        shape = jax.eval_shape(partial(convolve, **options, lowering="conv"), *wide)
        weights = np.random.default_rng(1).normal(size=shape.shape)
        exact = value_and_gradients(wide, weights, lowering="conv", **options)
    weights = weights.astype(np.float32)
    reference = value_and_gradients(arrays, weights, lowering="conv", **options)
    got = value_and_gradients(arrays, weights, lowering="shift", **options)
    for want, one, other in zip(exact, reference, got, strict=True):
        bound = max(2 * relative_error(one, want), 1e-6)
        assert relative_error(other, want) <= bound


@pytest.mark.parametrize("n", [2, 11])
def test_bfloat16_is_as_exact_as_the_reference(in_chunks, n):
    arrays = make_inputs(n, (8, 8), (9, 7), features=8)
    xs, factor, constant, *kernels = arrays
    half = (*cast((xs,), jnp.bfloat16), factor, constant, *cast(kernels, jnp.bfloat16))
    weights = np.random.default_rng(1).normal(size=(n, 8, 8, 8)).astype(np.float32)
    exact = value_and_gradients(arrays, weights, lowering="conv")
    reference = value_and_gradients(half, weights, lowering="conv")
    got = value_and_gradients(half, weights, lowering="shift")
    for want, one, other in zip(exact, reference, got, strict=True):
        assert one.dtype == other.dtype
        error = relative_error(other.astype(jnp.float32), want)
        assert error <= 1.2 * relative_error(one.astype(jnp.float32), want)


def test_forward_mode_and_second_derivatives(in_chunks):
    arrays = make_inputs(5, (4, 4), (2, 1), features=2)

    def f(lowering, *arrays):
        y = convolve(*arrays, activation=jax.nn.silu, lowering=lowering)
        return jnp.sum(jnp.sin(y))

    def second(lowering, *arrays):
        gradients = jax.grad(partial(f, lowering), range(5))(*arrays)
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))

    def slope(lowering, *arrays):
        return jax.jvp(partial(f, lowering), arrays, arrays)[1]

    for function in (f, second, slope):

        @partial(jax.jit, static_argnums=0)
        def derivatives(*arguments, function=function):
            f = partial(function, arguments[0])
            forward = jax.jvp(f, arguments[1:], arguments[1:])
            return forward, function is slope or jax.grad(f, range(5))(*arguments[1:])

        got, want = (derivatives(name, *arrays) for name in ("shift", "conv"))
        np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
        assert_close(got[1], want[1])


def test_vmap_over_kernels_and_images_equals_a_loop(in_chunks):
    one = make_inputs()
    many = jax.tree.map(lambda a: np.stack([a, 2 * a[::-1]]), one)
    f = lambda *a: jnp.sum(jnp.sin(convolve(*a, lowering="shift")))  # noqa: E731
    gradients = jax.grad(f, range(5))
    got = jax.vmap(gradients)(*many)
    for i in range(2):
        want = gradients(*jax.tree.map(lambda a, i=i: a[i], many))
        assert_close(jax.tree.map(lambda a, i=i: a[i], got), want)


def test_only_what_is_asked_for_has_a_gradient(in_chunks):
    arrays = make_inputs()
    for argnum in range(5):
        got, want = (
            jax.grad(lambda *a: convolve(*a, lowering=name).sum(), argnum)(*arrays)  # noqa: B023
            for name in ("shift", "conv")
        )
        assert_close(got, want)


def test_gradients_on_a_mesh_are_those_on_one_device(in_chunks):
    xs, *others = make_inputs(n=12)

    def loss(xs, *others):
        return jnp.sum(jnp.sin(convolve(xs, *others, lowering="auto")))

    want = jax.grad(loss, range(5))(xs, *others)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
        with jax.set_mesh(mesh):
            sharded = jax.device_put(xs, jax.NamedSharding(mesh, jax.P("data")))
            whole = [jnp.asarray(other) for other in others]
            assert_close(jax.jit(jax.grad(loss, range(5)))(sharded, *whole), want)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = dict(in_specs=(jax.P("data"), *[jax.P()] * 4), out_specs=jax.P())
    mapped = jax.shard_map(jax.grad(loss, range(1, 5)), mesh=mesh, **specs)
    assert_close(mapped(xs, *others), want[1:])


def test_an_activation_with_parameters_of_its_own_has_gradients():
    arrays = make_inputs()

    def f(slope, lowering):
        prelu = lambda y: jnp.where(y > 0, y, slope * y)  # noqa: E731
        return convolve(*arrays, activation=prelu, lowering=lowering).sum()

    slope = np.float32(0.5)
    got, want = (jax.grad(f)(slope, name) for name in ("shift", "conv"))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_arrays_need_no_normalization(in_chunks):
    (x,), _, _, *kernels = make_inputs(pieces=(5,))
    f = lambda lowering: ops.separable_conv(x, *kernels, lowering=lowering)  # noqa: E731
    assert relative_error(f("shift"), f("conv")) < 1e-6


@pytest.mark.parametrize("case", [dict(strides=2), dict(padding="VALID"), dict()])
def test_patches_of_a_standard_convolution(case):
    rng = np.random.default_rng(0)
    shapes = (2, 7, 8, 3), (3, 2, 3, 5)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

    def gradients(lowering):
        def f(x, kernel):
            y = ops.standard_conv(x, kernel, lowering=lowering, **case)
            return jnp.sum(jnp.sin(y)), y

        found, y = jax.grad(f, (0, 1), has_aux=True)(x, kernel)
        return [y, *found]

    for one, other in zip(gradients("shift"), gradients("conv")):
        assert relative_error(one, other) < 1e-6


def test_auto_makes_patches_on_cpu_of_short_ones_only():
    def program(channels, platform):
        x, kernel = jnp.ones((1, 4, 4, channels)), jnp.ones((3, 3, channels, 2))
        traced = jax.jit(lambda *arrays: ops.standard_conv(*arrays)).trace(x, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in program(3, "cpu")
    assert "stablehlo.convolution" in program(3, "cuda")
    assert "stablehlo.convolution" in program(48, "cpu")


@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_halving_before_the_convolution_is_halving_after_it(size):
    xs, factor, constant, _, kernel = make_inputs(2, size)
    x = ops.Normalized(xs, factor, constant, jax.nn.relu, jnp.dtype(jnp.float32))
    got, want = (ops.halving_conv(x, kernel, lowering=n) for n in ("shift", "conv"))
    assert got.shape == (2, size[0] // 2, size[1] // 2, 4)
    assert relative_error(got, want) < 1e-6


def test_what_does_not_fit_is_refused_with_a_reason():
    (x,), _, _, *kernels = cast(make_inputs(pieces=(5,)), jnp.float32)
    for call, message in (
        (lambda x, d, p: ops.separable_conv(x, d, p[..., :2, :]), "(1, 1, 5, F), not"),
        (lambda x, d, p: ops.separable_conv(x, d, p.astype(jnp.bfloat16)), "bfloat16"),
        (lambda x, d, p: ops.separable_conv(x, d, p, lowering="fft"), "one of auto"),
        (lambda x, d, p: ops.standard_conv(x, p[..., :2, :]), "(kh, kw, C, F), not"),
        (lambda x, d, p: ops.halving_conv(x, p, lowering="fft"), "one of auto"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(x, *kernels)
