"""The dense network in PyTorch, as most people write it there.

`load` copies the weights of `dwsep_jax.DenseNet` into it.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dwsep_jax.nn.densenet import DenseNet

# flax.linen and dwsep_jax name activations as functions.
_ACTS = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(), "silu": nn.SiLU()}

ON_GPU = torch.cuda.is_available()  # To ask jax would start its threads.
DEVICE = "cuda" if ON_GPU else "cpu"

torch.set_num_threads(len(os.sched_getaffinity(0)))
torch._dynamo.config.recompile_limit = 1000  # One for each shape.


def to_torch(array: jax.Array) -> torch.Tensor:
    """Return images (N, H, W, C) as (N, C, H, W) in channels_last, on the device."""
    tensor = torch.from_numpy(np.array(array, np.float32)).permute(0, 3, 1, 2)
    return tensor.to(DEVICE, memory_format=torch.channels_last)


def run_torch(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call that runs a function of PyTorch and waits; bfloat16 on a GPU."""

    def run():
        with torch.autocast("cuda", torch.bfloat16, enabled=ON_GPU):
            result = function()
        if ON_GPU:
            torch.cuda.synchronize()
        return result

    return run


class SamePad(nn.Module):
    """Pad as XLA's SAME does: unevenly for strides above 1."""

    def __init__(self, kernel_size: int, stride: int):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for size in (x.shape[3], x.shape[2]):
            steps = -(-size // self.stride) - 1
            total = max(0, steps * self.stride + self.kernel_size - size)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)


class DenseLayer(nn.Sequential):
    """Its layers, whose output is joined to the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, super().forward(x)], dim=1)


class GlobalPool(nn.Module):
    """The mean over the pixels, in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3))


def make_torch_net(
    like: DenseNet, separable: bool, in_channels: int = 3
) -> nn.Sequential:
    """Return the textbook DenseNet with the fields of `like`: (N, C, H, W) -> (N, K).

    Its modules are named as those of `plain.PlainDenseNet`.
    """
    growth, size, act = like.growth_rate, like.kernel_size, _ACTS[like.act.__name__]
    conv = partial(nn.Conv2d, padding="same", bias=False)

    def chain(kind=nn.Sequential, **modules):
        return kind(OrderedDict(modules))

    def make_layer(n):
        parts = {"norm": nn.BatchNorm2d(n), "act": act}
        if like.bottleneck:
            width = round(like.bottleneck * growth)
            parts["bottleneck"] = conv(n, width, 1)
            n, parts["bottleneck_norm"] = width, nn.BatchNorm2d(width)
            parts["bottleneck_act"] = act
        if separable:
            depthwise = conv(n, n, size, groups=n)
            parts["conv"] = chain(depthwise=depthwise, pointwise=conv(n, growth, 1))
        else:
            parts["conv"] = conv(n, growth, size)
        return chain(DenseLayer, **parts, dropout=nn.Dropout(like.dropout_rate))

    n, stride = round(like.stem_width * growth), like.stem_stride
    stem = nn.Conv2d(in_channels, n, size, stride, bias=False)
    parts = {"stem": chain(pad=SamePad(size, stride), conv=stem)}
    for b, num_layers in enumerate(like.block_sizes):
        if b:
            kept = int(round(like.reduction * n, 9))
            norm, pool = nn.BatchNorm2d(n), nn.AvgPool2d(2)
            parts[f"transition{b}"] = chain(
                norm=norm, act=act, conv=conv(n, kept, 1), pool=pool
            )
            n = kept
        layers = {f"layer{i}": make_layer(n + i * growth) for i in range(num_layers)}
        parts[f"block{b}"] = chain(**layers)
        n += num_layers * growth
    head = nn.Linear(n, like.num_classes)
    return chain(**parts, norm=nn.BatchNorm2d(n), act=act, pool=GlobalPool(), head=head)


def load(net: nn.Sequential, plain: dict[str, Any]) -> None:
    """Copy variables, as `plain.plain_variables` returns them, into the network."""
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    names |= {"mean": "running_mean", "var": "running_var"}
    state = net.state_dict()
    for collection in plain.values():
        for module, arrays in collection.items():
            for leaf, value in arrays.items():
                array = np.array(value)
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
                name = f"{module.removesuffix('.normalize')}.{names[leaf]}"
                assert state[name].shape == array.shape, name
                state[name].copy_(torch.from_numpy(array))
