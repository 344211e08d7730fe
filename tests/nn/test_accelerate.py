"""`accelerate`: the depthwise convolutions of everybody's code, on CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import dwsep_jax
from dwsep_jax.nn import accelerate, shifted
from tests.nn.numerics import relative_error


@pytest.fixture
def accelerated(monkeypatch):
    """Accelerate, in pieces of a few images, and undo it."""
    monkeypatch.setattr(shifted, "_PIECE_SIZE", 2**7)
    monkeypatch.setattr(shifted, "_MIN_PART_SIZE", 2**4)
    yield dwsep_jax.accelerate
    dwsep_jax.undo_accelerate()


def draw(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def program(function, *arrays):
    return jax.jit(function).lower(*arrays).as_text()


def conv(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    numbers = options.pop("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    spec = lax.conv_dimension_numbers(x.shape, kernel.shape, numbers)
    options.setdefault("feature_group_count", x.shape[spec.lhs_spec[1]])
    return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)


IMAGES, KERNEL, OIHW = (5, 8, 7, 3), (3, 3, 1, 3), (3, 1, 3, 2)
NCHW = dict(dimension_numbers=("NCHW", "OIHW", "NCHW"), window_strides=(2, 1))
HWNC = dict(dimension_numbers=("HWNC", "OIHW", "CNHW"), padding=((0, 3), (2, -1)))
ROWS = dict(dimension_numbers=("NWC", "WIO", "NWC"), window_strides=(1,))
DILATED = dict(rhs_dilation=(2, 1), lhs_dilation=(1, 3), padding=((2, 1), (0, 3)))
ALL = dict(window_strides=(3, 2), lhs_dilation=(2, 2), rhs_dilation=(1, 2))
CASES = {
    "NHWC": (IMAGES, KERNEL, {}),
    "NCHW": ((5, 3, 8, 7), OIHW, NCHW),
    "HWNC": ((8, 7, 5, 3), OIHW, HWNC),
    "two a channel": (IMAGES, (3, 3, 1, 6), {"window_strides": (2, 3)}),
    "dilated": (IMAGES, KERNEL, DILATED),
    "all dilated": (IMAGES, (2, 5, 1, 3), ALL | {"padding": ((1, 1), (4, 3))}),
    "wide": (IMAGES, KERNEL, {"preferred_element_type": np.float64}),
}
OTHERS = {
    "standard": (IMAGES, (3, 3, 3, 4), {"feature_group_count": 1}),
    "groups of two": ((2, 5, 5, 4), (3, 3, 2, 4), {"feature_group_count": 2}),
    "one channel": ((2, 5, 5, 1), (3, 3, 1, 4), {}),
    "many taps": ((1, 16, 16, 2), (12, 12, 1, 2), {}),
    "rows": ((2, 9, 3), (3, 1, 3), ROWS),
}


def everything(x, kernel, options):
    """Return value, gradients, the gradients' gradients, a direction's derivative."""
    f = partial(conv, **options)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(f(x, kernel)))

    gradients = jax.grad(loss, (0, 1))

    def slope(x, kernel):
        return sum(jnp.sum(jnp.cos(g)) for g in gradients(x, kernel))

    return [
        f(x, kernel),
        *gradients(x, kernel),
        *jax.grad(slope, (0, 1))(x, kernel),
        jax.jvp(f, (x, kernel), (kernel.mean() * x, kernel))[1],
    ]


@pytest.mark.parametrize("case", CASES)
def test_values_and_all_derivatives_are_those_of_jax(case, accelerated):
    x_shape, kernel_shape, options = CASES[case]
    with jax.enable_x64(True):
        arrays = draw(*x_shape), draw(*kernel_shape)
        function = jax.jit(partial(everything, options=options))
        want = function(*arrays)
        accelerated()
        gradients = jax.grad(lambda *arrays: conv(*arrays, **options).sum(), (0, 1))
        assert "stablehlo.convolution" not in program(gradients, *arrays)
        for one, other in zip(function(*arrays), want, strict=True):
            assert one.dtype == other.dtype
            assert relative_error(one, other) < 1e-5


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 1)])
def test_vmap_scan_and_remat(axes, accelerated):
    arrays = [
        a if axis is None else np.stack([a, 2 * a], axis)
        for a, axis in zip((draw(*IMAGES), draw(*KERNEL)), axes, strict=True)
    ]

    def loss(x, kernel):
        def body(x, _):
            return jax.checkpoint(conv)(x, kernel), None

        return jnp.sum(jnp.sin(lax.scan(body, x, length=2)[0]))

    function = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), axes))
    want = function(*arrays)
    accelerated()
    assert "stablehlo.convolution" not in function.lower(*arrays).as_text()
    pairs = zip(*map(jax.tree.leaves, (function(*arrays), want)), strict=True)
    for one, other in pairs:
        assert relative_error(one, other) < 1e-5


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_not_depthwise_keeps_its_program(case, accelerated):
    x_shape, kernel_shape, options = OTHERS[case]
    arrays = draw(*x_shape), draw(*kernel_shape)
    before = program(partial(everything, options=options), *arrays)
    accelerated()
    assert program(partial(everything, options=options), *arrays) == before
    dwsep_jax.undo_accelerate()
    assert program(partial(everything, options=options), *arrays) == before


def test_complex_numbers_and_other_platforms_keep_their_program(accelerated):
    def lower(dtype, platform):
        x, kernel = draw(*IMAGES).astype(dtype), draw(*KERNEL).astype(dtype)
        traced = jax.jit(conv).trace(x, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    cases = [("complex64", "cpu"), ("float32", "cuda"), ("float32", "tpu")]
    before = [lower(*case) for case in cases]
    accelerated()
    assert [lower(*case) for case in cases] == before


def test_jitted_functions_follow_both_calls(accelerated):
    function = jax.jit(conv)
    arrays = draw(*IMAGES), draw(*KERNEL)
    text = function.lower(*arrays).as_text()
    want = function(*arrays)
    for _ in range(2):  # Twice is as once.
        accelerated()
    assert "stablehlo.convolution" not in function.lower(*arrays).as_text()
    assert function._cache_size() == 0
    assert relative_error(function(*arrays), want) < 1e-6
    for _ in range(2):
        dwsep_jax.undo_accelerate()
    assert function.lower(*arrays).as_text() == text
    assert function._cache_size() == 0


def test_a_jax_that_keeps_its_lowerings_elsewhere_is_left_alone(monkeypatch):
    monkeypatch.setattr(accelerate, "mlir", object())
    with pytest.raises(RuntimeError, match=r"where jax .* keeps its lowerings"):
        dwsep_jax.accelerate()
