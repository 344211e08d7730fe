"""Are our convolutions fast where other people call them? Twenty shapes, PyTorch, XLA.

Depthwise and separable convolutions behind an activation, forward and with all
gradients, of six shapes of known networks and 14 drawn by a seed: ours and PyTorch
(channels_last) in turn, in one process, XLA's grouped convolution once, and a copy of
the input, which no convolution can beat. `lowering="auto"` follows this table. Prints
Markdown: medians ± half the interquartile range, in ms, and the ratio of the others'
time to ours. Needs the extra `bench`; about 15 minutes on 2 CPU cores.

    python -m benchmarks.shapes

`--dtype=bfloat16` measures that, `--compiled` PyTorch compiled as well, and
`--part=I/N` every N-th shape, from the I-th.
"""

import argparse
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.timing import compile_jax, print_header, print_row, time_in_turn
from benchmarks.torch_net import run_torch, to_torch
from dwsep_jax.environment import keep_freed_memory
from dwsep_jax.nn import ops

# (images, rows and columns, channels, side of the kernel, stride).
KNOWN = (
    (128, 8, 192, 3, 1),
    (32, 32, 48, 3, 1),
    (8, 56, 144, 3, 1),
    (1, 112, 96, 3, 2),
    (16, 14, 480, 5, 1),
    (1, 56, 96, 7, 1),
)
ACTIVATIONS = {"relu": (jax.nn.relu, F.relu), "swish": (jax.nn.silu, F.silu)}


def draw_shapes(num_shapes: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Draw shapes of 2**14 to 2**25 elements, evenly on a logarithmic scale."""
    rng = np.random.default_rng(seed)
    shapes = []
    while len(shapes) < num_shapes:
        bounds = np.log([[1, 512], [4, 112], [16, 576]]).T
        n, size, channels = np.exp(rng.uniform(*bounds)).round().astype(int).tolist()
        kernel_size, stride = int(rng.choice([3, 5, 7])), int(rng.choice([1, 2]))
        if 2**14 <= n * size * size * channels <= 2**25 and kernel_size <= size:
            shapes.append((n, size, channels, kernel_size, stride))
    return shapes


def make_contenders(shape, separable, activation, with_gradients, dtype):
    """Return what is timed: a call of each."""
    n, size, channels, kernel_size, stride = shape
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(rng.normal(size=s), dtype)  # noqa: E731
    x = draw(n, size, size, channels)
    kernels = [draw(kernel_size, kernel_size, 1, channels)]
    function = ops.depthwise_conv
    if separable:
        kernels.append(draw(1, 1, channels, channels))
        function = ops.separable_conv
    activate, torch_activate = ACTIVATIONS[activation]

    def forward(lowering, x, *kernels):
        # The same padding on both sides, as PyTorch has it.
        options = {"strides": stride, "padding": kernel_size // 2}
        return function(activate(x), *kernels, lowering=lowering, **options)

    def gradients(lowering, g, *arrays):
        return jax.vjp(partial(forward, lowering), *arrays)[1](g)

    arrays = [x, *kernels]
    g = jnp.ones_like(forward("auto", *arrays))
    calls = {}
    for name, lowering in (("ours", "auto"), ("XLA", "conv")):
        if with_gradients:
            calls[name] = compile_jax(partial(gradients, lowering), g, *arrays)
        else:
            calls[name] = compile_jax(partial(forward, lowering), *arrays)
    calls["copy"] = compile_jax(lambda x: x + 1, x)

    type_ = getattr(torch, dtype)
    tensors = [to_torch(x).to(type_)]
    for kernel in kernels:
        weight = to_torch(kernel.transpose(3, 0, 1, 2)).to(type_)
        tensors.append(weight.contiguous())
    tensors = [tensor.requires_grad_(with_gradients) for tensor in tensors]

    def torch_forward(x, depthwise, *pointwise):
        options = {"stride": stride, "groups": channels, "padding": kernel_size // 2}
        y = F.conv2d(torch_activate(x), depthwise, **options)
        return F.conv2d(y, *pointwise) if pointwise else y

    def call(forward):
        y = forward(*tensors)
        if with_gradients:
            torch.autograd.grad(y, tensors, torch.ones_like(y))

    calls["PyTorch"] = run_torch(partial(call, torch_forward))
    compiled = torch.compile(torch_forward, dynamic=False)
    calls["PyTorch compiled"] = run_torch(partial(call, compiled))
    return calls


def measure(name: str, calls: dict) -> None:
    """Print the row of a convolution; XLA's is slow enough to be timed once, alone."""
    xla = time_in_turn({"XLA": calls.pop("XLA")}, 1)["XLA"]
    timings = time_in_turn(calls, num_rounds=7)
    xla.ratio = xla.median_ms / timings["ours"].median_ms
    timings["XLA"] = xla
    print_row([name, *(f"{t} ({t.ratio:.2f})" for t in timings.values())])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compiled", action="store_true", help="PyTorch compiled, too")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th shape, from I")
    arguments = parser.parse_args()
    part, num_parts = map(int, arguments.part.split("/"))
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch._dynamo.config.recompile_limit = 1000
    columns = ["ours", "copy", "PyTorch", "PyTorch compiled", "XLA"]
    if not arguments.compiled:
        columns.remove("PyTorch compiled")
    print_header(["shape, kernel, stride", *columns])
    for i, shape in list(enumerate((*KNOWN, *draw_shapes(14))))[part::num_parts]:
        n, size, channels, kernel_size, stride = shape
        activation = list(ACTIVATIONS)[i % 2]
        for separable in (False, True):
            for with_gradients in (False, True):
                calls = make_contenders(
                    shape, separable, activation, with_gradients, arguments.dtype
                )
                if not arguments.compiled:
                    del calls["PyTorch compiled"]
                kind = "separable" if separable else "depthwise"
                name = f"{n}x{size}x{size}x{channels}, {kernel_size}, {stride}, "
                measure(
                    name + f"{activation}, {kind}" + with_gradients * ", gradients",
                    calls,
                )


if __name__ == "__main__":
    main()
