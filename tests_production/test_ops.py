"""Each operation, sums of its result, and all gradients: in one program, and alone."""

from functools import partial

import jax
import numpy as np
import pytest

from dwsep_jax.nn import layers, ops
from tests.nn.numerics import relative_error
from tests_production import reference

# Images, and pixels a side. Images x pixels are from 16,385 to 131,072, and the images
# not always a multiple of the chunks that are computed at a time.
SHAPES = [(20, 32), (41, 32), (129, 16), (128, 32)]
CHANNELS, FEATURES = 48, 24
RELU = jax.nn.relu


def make_inputs(n, size, *kernels):
    """Return images, factors and constants by channel, and kernels, in float32.

    Images, factors and constants are small multiples of powers of two: then float32 and
    float64 agree on which side of zero images * factors + constants are.
    """
    rng = np.random.default_rng(n)
    x = rng.integers(-60, 68, (n, size, size, CHANNELS)) / 32
    factor, constant = rng.integers(4, 12, CHANNELS) / 8, rng.integers(-8, 9, CHANNELS)
    constant = (constant + 0.5) / 256
    kernels = [rng.normal(0.1, 1, shape) for shape in kernels]
    return [np.asarray(a, np.float32) for a in (x, factor, constant, *kernels)]


def summarize(y):
    """Return y with its mean and variance by channel, and its mean over the pixels."""
    statistics = layers.BatchStatistics()
    (mean, var), _ = statistics.apply({}, y, False, mutable=["batch_stats"])
    return y, mean, var, y.mean((1, 2))


def check(function, expected, inputs):
    """Compare what `function` makes of the inputs, and its gradients, with float64.

    Args:
      function: of jax arrays, to an image.
      expected: the same in NumPy; returns the image and a function of its gradient.
      inputs: the arrays, float32.
    """

    def run(inputs, cotangents):
        results, vjp = jax.vjp(lambda *a: summarize(function(*a)), *inputs)
        return jax.tree.leaves((results, vjp(cotangents)))

    y, gradients = expected(*(a.astype(np.float64) for a in inputs))
    results, gradient = reference.summarize(y)
    rng = np.random.default_rng(0)
    # As large as that of the image, after they are divided by what they are means of.
    sizes = [y.size // a.size for a in results]
    cotangents = [
        np.asarray(rng.normal(0.1, 1, a.shape) * size, np.float32)
        for a, size in zip(results, sizes)
    ]
    want = results, gradients(gradient(*(c.astype(np.float64) for c in cotangents)))
    want = jax.tree.leaves(want)
    args = tuple(inputs), tuple(cotangents)
    together = jax.jit(run)(*args)
    # What has one reader is fused with it, and may come out otherwise.
    alone = [jax.jit(lambda *a, i=i: run(*a)[i])(*args) for i in range(len(want))]
    errors = [list(map(relative_error, got, want)) for got in (together, alone)]
    assert np.max(errors) < 5e-6, errors


@pytest.mark.parametrize(("n", "size"), SHAPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(n, size, stride):
    x, _, _, kernel = make_inputs(n, size, (3, 3, 1, CHANNELS))
    ours = partial(ops.depthwise_conv, strides=stride)
    check(ours, partial(reference.convolve, stride=stride), [x, kernel])


@pytest.mark.parametrize(("n", "size"), SHAPES)
def test_pointwise(n, size):
    x, _, _, kernel = make_inputs(n, size, (1, 1, CHANNELS, FEATURES))
    check(ops.pointwise_conv, reference.convolve, [x, kernel])


@pytest.mark.parametrize(("n", "size"), SHAPES)
def test_standard_by_patches_and_by_convolution(n, size):
    for channels in (3, CHANNELS):
        x, _, _, kernel = make_inputs(n, size, (3, 3, channels, FEATURES))
        check(ops.standard_conv, reference.convolve, [x[..., :channels], kernel])


def normalized(x, factor, constant):
    pieces = (x[..., :20], x[..., 20:])
    return ops.Normalized(pieces, factor, constant, RELU, x.dtype)


@pytest.mark.parametrize(("n", "size"), SHAPES)
def test_separable(n, size):
    shapes = (3, 3, 1, CHANNELS), (1, 1, CHANNELS, FEATURES)

    def ours(x, factor, constant, *kernels):
        return ops.separable_conv(normalized(x, factor, constant), *kernels)

    def expected(x, factor, constant, depthwise, pointwise):
        x, activate_gradients = reference.activate(x, factor, constant)
        x, depthwise_gradients = reference.convolve(x, depthwise)
        y, pointwise_gradients = reference.convolve(x, pointwise)

        def gradients(g):
            g, d_pointwise = pointwise_gradients(g)
            g, d_depthwise = depthwise_gradients(g)
            return (*activate_gradients(g), d_depthwise, d_pointwise)

        return y, gradients

    check(ours, expected, make_inputs(n, size, *shapes))


@pytest.mark.parametrize(("n", "size"), SHAPES)
def test_halving(n, size):
    def ours(x, factor, constant, kernel):
        x = normalized(x, factor, constant)
        return ops.halving_conv(x, kernel, lowering="auto")

    def expected(x, factor, constant, kernel):
        x, activate_gradients = reference.activate(x, factor, constant)
        x, convolve_gradients = reference.convolve(x, kernel)
        y, halve_gradient = reference.halve(x)

        def gradients(g):
            g, d_kernel = convolve_gradients(halve_gradient(g))
            return (*activate_gradients(g), d_kernel)

        return y, gradients

    check(ours, expected, make_inputs(n, size, (1, 1, CHANNELS, FEATURES)))
