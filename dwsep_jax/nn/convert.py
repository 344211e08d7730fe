"""Weights of other libraries' separable convolutions, as those of `SeparableConv`.

Keras pads SAME as ours does. PyTorch has no SAME with strides above 1: there, and for
its usual `padding=1`, give `SeparableConv` the same number, `padding=1`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Params = dict[str, dict[str, np.ndarray]]


def separable_from_keras(weights: Sequence[ArrayLike]) -> Params:
    """Return the parameters of a `SeparableConv` from those of a Keras SeparableConv2D.

    Args:
      weights: `layer.get_weights()`: the depthwise kernel (H, W, C, M), the pointwise
        kernel (1, 1, C M, F), and the bias (F,) if there is one.

    Raises:
      ValueError: if the shapes are others.
    """
    if len(weights) not in (2, 3):
        raise ValueError(f"{len(weights)} arrays are not two kernels and a bias")
    depthwise, pointwise, *bias = map(np.asarray, weights)
    if depthwise.ndim == 4:
        depthwise = depthwise.reshape(*depthwise.shape[:2], 1, -1)
    return _make_params(depthwise, pointwise, bias)


def separable_from_torch(
    depthwise: Sequence[ArrayLike | None], pointwise: Sequence[ArrayLike | None]
) -> Params:
    """Return the parameters of a `SeparableConv` from those of two `torch.nn.Conv2d`.

    A bias of the first becomes part of the second's, which is the same function where
    nothing stands between the two.

    Args:
      depthwise: weight (C M, 1, H, W) and bias (C M,) of the convolution with C groups,
        on the CPU; the bias may be missing or None.
      pointwise: weight (F, C M, 1, 1) and bias (F,), likewise.

    Raises:
      ValueError: if the shapes are others.
    """
    (kernel, *inner), (mix, *outer) = (
        [np.asarray(array) for array in layer if array is not None]
        for layer in (depthwise, pointwise)
    )
    kernel, mix = kernel.transpose(2, 3, 1, 0), mix.transpose(2, 3, 1, 0)
    bias = [mix[0, 0].T @ array for array in inner] + outer
    return _make_params(kernel, mix, bias)


def _make_params(depthwise: Any, pointwise: Any, biases: list[Any]) -> Params:
    """Return the parameters of two kernels, and of the sum of the biases."""
    there = depthwise.shape, pointwise.shape
    if there[0][2:-1] != (1,) or there[1][:-1] != (1, 1, there[0][-1]):
        raise ValueError(
            f"kernels {there[0]} and {there[1]} are not a depthwise and a pointwise "
            "one: (H, W, 1, C) and (1, 1, C, F)"
        )
    for bias in biases:
        if bias.shape != there[1][3:]:
            raise ValueError(f"bias {bias.shape} is not that of {there[1][3]} outputs")
    params = {"depthwise": {"kernel": depthwise}, "pointwise": {"kernel": pointwise}}
    if biases:
        params["pointwise"]["bias"] = sum(biases)
    return params
