"""The dense network in PyTorch, as most people write it there.

`load` copies the weights of `dwsep_jax.DenseNet` into it.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn
from torch.nn import functional as F

from dwsep_jax.nn.densenet import DenseNet

# flax.linen and dwsep_jax name activations as functions.
_ACTIVATIONS = {"relu": F.relu, "leaky_relu": F.leaky_relu, "silu": F.silu}

ON_GPU = jax.default_backend() == "gpu"
DEVICE = "cuda" if ON_GPU else "cpu"


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


class SeparableConv(nn.Module):
    """Depthwise, then pointwise."""

    def __init__(self, inputs: int, features: int, kernel_size: int):
        super().__init__()
        self.depthwise = nn.Conv2d(
            inputs, inputs, kernel_size, padding="same", groups=inputs, bias=False
        )
        self.pointwise = nn.Conv2d(inputs, features, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.depthwise(x))


class DenseLayer(nn.Module):
    """dropout(conv(act(norm(x)))), after a bottleneck if there is one."""

    def __init__(self, like: DenseNet, separable: bool, inputs: int):
        super().__init__()
        self.act = _ACTIVATIONS[like.act.__name__]
        self.norm = nn.BatchNorm2d(inputs)
        self.has_bottleneck = bool(like.bottleneck)
        if self.has_bottleneck:
            width = round(like.bottleneck * like.growth_rate)
            self.bottleneck = nn.Conv2d(inputs, width, 1, bias=False)
            self.bottleneck_norm = nn.BatchNorm2d(width)
            inputs = width
        size = like.kernel_size
        if separable:
            self.conv = SeparableConv(inputs, like.growth_rate, size)
        else:
            self.conv = nn.Conv2d(
                inputs, like.growth_rate, size, padding="same", bias=False
            )
        self.dropout = nn.Dropout(like.dropout_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(x))
        if self.has_bottleneck:
            x = self.act(self.bottleneck_norm(self.bottleneck(x)))
        return self.dropout(self.conv(x))


class TorchDenseNet(nn.Module):
    """The textbook DenseNet with the fields of `like`: (N, C, H, W) -> (N, K)."""

    def __init__(self, like: DenseNet, separable: bool, in_channels: int = 3):
        super().__init__()
        self.act = _ACTIVATIONS[like.act.__name__]
        width = round(like.stem_width * like.growth_rate)
        size, stride = like.kernel_size, like.stem_stride
        self.stem_pad = SamePad(size, stride)
        self.stem = nn.Conv2d(in_channels, width, size, stride, bias=False)
        self.steps = []
        for b, num_layers in enumerate(like.block_sizes):
            if b:
                self._add(f"transition{b}_norm", nn.BatchNorm2d(width))
                kept = int(round(like.reduction * width, 9))
                self._add(f"transition{b}_conv", nn.Conv2d(width, kept, 1, bias=False))
                width = kept
            for i in range(num_layers):
                self._add(f"block{b}_layer{i}", DenseLayer(like, separable, width))
                width += like.growth_rate
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, like.num_classes)

    def _add(self, name, module):
        self.add_module(name, module)
        self.steps.append(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(self.stem_pad(x))
        for name in self.steps:
            module = getattr(self, name)
            if name.endswith("norm"):
                x = self.act(module(x))
            elif name.endswith("conv"):
                x = F.avg_pool2d(module(x), 2)
            else:
                x = torch.cat([x, module(x)], dim=1)
        return self.head(self.act(self.norm(x)).float().mean((2, 3)))


def load(net: TorchDenseNet, plain: dict[str, Any]) -> None:
    """Copy variables, as `plain.plain_variables` returns them, into the network."""
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    names |= {"mean": "running_mean", "var": "running_var"}
    state = net.state_dict()
    for collection in plain.values():
        for (*path, leaf), value in flatten_dict(collection).items():
            name = ".".join(path).replace(".normalize", "")
            name = name.replace(".conv.conv", ".conv")
            for word in ("block", "transition"):
                if name.startswith(word):
                    name = name.replace(".", "_", 1)
            name = name.replace("stem.conv", "stem")
            array = np.asarray(value)
            if array.ndim == 4:
                array = array.transpose(3, 2, 0, 1)
            elif array.ndim == 2:
                array = array.T
            target = state[f"{name}.{names[leaf]}"]
            assert target.shape == array.shape, name
            target.copy_(torch.from_numpy(np.array(array)))
