"""Weights of other libraries: against their definitions, in float64."""

import jax
import numpy as np
import pytest
from jax import lax

from dwsep_jax import SeparableConv, separable_from_keras, separable_from_torch

RNG = np.random.default_rng(0)
C, M, F = 3, 2, 5


def convolve(x, kernel, groups, stride, pads):
    """Convolve NHWC by a kernel (F, C / groups, H, W), as PyTorch has it, in float64.

    Output f reads group f // (F / groups).
    """
    options = dict(window_strides=(stride, stride), padding=(pads, pads))
    options["dimension_numbers"] = ("NHWC", "OIHW", "NHWC")
    with jax.enable_x64(True):
        y = lax.conv_general_dilated(x, kernel, feature_group_count=groups, **options)
        return np.asarray(y)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_pytorchs_pair_of_convolutions(stride, bias):
    shapes = (C * M, 1, 3, 3), (F, C * M, 1, 1), C * M, F, (2, 8, 8, C)
    depthwise, mix, inner, outer, x = (RNG.normal(size=shape) for shape in shapes)
    want = convolve(x, depthwise, C, stride, (1, 1)) + bias * inner
    want = want @ mix[:, :, 0, 0].T + bias * outer
    pairs = [(depthwise, inner), (mix, outer)]
    params = separable_from_torch(*((k, b if bias else None) for k, b in pairs))
    layer = SeparableConv(F, 3, stride, padding=1, channel_multiplier=M, use_bias=bias)
    got = layer.apply({"params": params}, x.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# Rows that Keras adds before and after an 8x8 image for SAME and a 3x3 kernel.
@pytest.mark.parametrize(("stride", "pads"), [(1, (1, 1)), (2, (0, 1))])
def test_kerass_separable_convolution(stride, pads):
    depthwise, mix = RNG.normal(size=(3, 3, C, M)), RNG.normal(size=(1, 1, C * M, F))
    x, bias = RNG.normal(size=(2, 8, 8, C)), RNG.normal(size=F)
    # Output c * M + m is that of kernel m of channel c.
    kernel = np.stack([depthwise[..., c, m] for c in range(C) for m in range(M)])
    want = convolve(x, kernel[:, None], C, stride, pads) @ mix[0, 0] + bias
    params = separable_from_keras([depthwise, mix, bias])
    layer = SeparableConv(F, 3, stride, channel_multiplier=M, use_bias=True)
    got = layer.apply({"params": params}, x.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_other_shapes_are_refused():
    full = np.ones((4, 4, 3, 3)), np.ones((4, 4, 1, 1))
    with pytest.raises(ValueError, match="are not a depthwise and a pointwise one"):
        separable_from_torch(full[:1], full[1:])
    with pytest.raises(ValueError, match="are not a depthwise and a pointwise one"):
        separable_from_keras([np.ones((3, 3, 4, 1)), np.ones((1, 1, 5, 4))])
    pair = np.ones((3, 3, 4, 1)), np.ones((1, 1, 4, 5))
    for kernel in (np.ones(3), np.ones((3, 3, 4, 1, 1))):
        with pytest.raises(ValueError, match="are not a depthwise and a pointwise one"):
            separable_from_keras([kernel, pair[1]])
    for size in (1, 6):
        with pytest.raises(ValueError, match="is not that of 5 outputs"):
            separable_from_keras([*pair, np.ones(size)])
    for weights in (pair[:1], [*pair, np.ones(5), np.ones(5)]):
        with pytest.raises(ValueError, match="arrays are not two kernels and a bias"):
            separable_from_keras(weights)
    depthwise, mix = np.ones((4, 1, 3, 3)), np.ones((5, 4, 1, 1))
    with pytest.raises(ValueError, match="is not that of 5 outputs"):
        separable_from_torch((depthwise, np.ones(4)), (mix, np.ones(1)))
