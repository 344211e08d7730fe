"""Convolutions and batch statistics in NumPy and float64, each with its gradients.

Each function returns its result, and a function from the gradient of the result to
those of the arguments.
"""

import numpy as np


def convolve(x, kernel, stride=1):
    """Convolve x (N, H, W, C), SAME padding, depthwise where kernel is (kh, kw, 1, C).

    H and W are multiples of the stride.
    """
    n, height, width, channels = x.shape
    *sides, inputs, features = kernel.shape
    is_depthwise = inputs == 1 < channels
    totals = [max(side - stride, 0) for side in sides]
    pads = [(total // 2, total - total // 2) for total in totals]
    padded = np.pad(x, [(0, 0), *pads, (0, 0)])
    rows, columns = height // stride, width // stride
    windows = {
        (i, j): np.s_[:, i : i + height : stride, j : j + width : stride]
        for i, j in np.ndindex(*sides)
    }
    y = np.zeros((n, rows, columns, features))
    for tap, window in windows.items():
        view, weights = padded[window], kernel[tap]
        y += view * weights[0] if is_depthwise else view @ weights

    def gradients(g):
        d_padded, d_kernel = np.zeros_like(padded), np.zeros_like(kernel)
        for tap, window in windows.items():
            view, weights = padded[window], kernel[tap]
            if is_depthwise:
                d_padded[window] += g * weights[0]
                d_kernel[tap] = np.sum(view * g, (0, 1, 2))
            else:
                d_padded[window] += g @ weights.T
                d_kernel[tap] = np.tensordot(view, g, [(0, 1, 2)] * 2)
        (top, _), (left, _) = pads
        return d_padded[:, top : top + height, left : left + width], d_kernel

    return y, gradients


def halve(x):
    """Average 2x2 pixels."""
    n, height, width, channels = x.shape
    y = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    return y, lambda g: g.repeat(2, 1).repeat(2, 2) / 4


def activate(x, factor, constant):
    """Return relu(x * factor + constant)."""
    y = x * factor + constant

    def gradients(g):
        g = g * (y > 0)
        return g * factor, np.sum(g * x, (0, 1, 2)), np.sum(g, (0, 1, 2))

    return np.maximum(y, 0), gradients


def summarize(y):
    """Return y with its mean and variance by channel, and its mean over the pixels."""
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    rows, pixels = y[..., 0].size, y[0, ..., 0].size

    def gradient(g, d_mean, d_var, d_pooled):
        by_channel = (d_mean + 2 * d_var * (y - mean)) / rows
        return g + by_channel + d_pooled[:, None, None] / pixels

    return (y, mean, var, y.mean((1, 2))), gradient
