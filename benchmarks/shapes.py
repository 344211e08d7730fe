"""Are our convolutions fast where other people call them? Twenty shapes, PyTorch, XLA.

Depthwise and separable convolutions behind an activation, forward and with all
gradients, of six shapes of known networks and 14 drawn by a seed: ours and PyTorch
eager (channels_last) in turn, in one process, and XLA's grouped convolution once.
Prints a Markdown table: medians ± half the interquartile range, in ms, and the ratio of
the others' time to ours. Needs the extra `bench`; about 15 minutes on 2 CPU cores.

    python -m benchmarks.shapes

`--part=I/N` measures every N-th shape, from the I-th.
"""

import argparse
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.timing import compile_jax, time_in_turn
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
ACTIVATIONS = {"relu": jax.nn.relu, "swish": jax.nn.silu}


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


def contenders(shape, separable, activation, with_gradients):
    """Return what is timed: a call of each."""
    n, size, channels, kernel_size, stride = shape
    rng = np.random.default_rng(0)
    draw = lambda *s: rng.normal(size=s).astype(np.float32)  # noqa: E731
    x = draw(n, size, size, channels)
    kernels = [draw(kernel_size, kernel_size, 1, channels)]
    function = ops.depthwise_conv
    if separable:
        kernels.append(draw(1, 1, channels, channels))
        function = ops.separable_conv
    # The same on both sides, as PyTorch has it.
    options = {"strides": stride, "padding": kernel_size // 2}
    calls = {}
    for name, lowering in (("ours", "auto"), ("XLA", "conv")):

        def forward(x, *kernels, lowering=lowering):
            x = ACTIVATIONS[activation](x)
            return function(x, *kernels, lowering=lowering, **options)

        def gradients(g, *arrays, forward=forward):
            return jax.vjp(forward, *arrays)[1](g)

        arrays = [jnp.asarray(a) for a in (x, *kernels)]
        g = jnp.ones(jax.eval_shape(forward, *arrays).shape)
        if with_gradients:
            calls[name] = compile_jax(gradients, g, *arrays)
        else:
            calls[name] = compile_jax(forward, *arrays)
    calls["PyTorch"] = torch_call(x, kernels, activation, stride, with_gradients)
    return calls


def torch_call(x, kernels, activation, stride, with_gradients):
    """Return a call of the same in PyTorch, channels_last."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layout = {"memory_format": torch.channels_last}
    x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(**layout)
    weights = [torch.from_numpy(k.transpose(3, 2, 0, 1)).contiguous() for k in kernels]
    arrays = [a.requires_grad_() for a in (x, *weights)]
    activate = {"relu": F.relu, "swish": F.silu}[activation]
    convolve = partial(F.conv2d, groups=x.shape[1], stride=stride)

    def forward():
        y = convolve(activate(x), weights[0], padding=weights[0].shape[2] // 2)
        return F.conv2d(y, weights[1]) if len(weights) > 1 else y

    g = torch.ones_like(forward().detach())

    def infer():
        with torch.no_grad():
            forward()

    return (
        (lambda: torch.autograd.grad(forward(), arrays, g)) if with_gradients else infer
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", default="0/1", help="I/N: every N-th shape, from I")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    part, num_parts = map(int, arguments.part.split("/"))
    keep_freed_memory()
    columns = "ours | PyTorch | XLA | PyTorch/ours | XLA/ours"
    print(f"| shape, kernel, stride | what | {columns} |\n{'| --- ' * 7}|")
    for i, shape in list(enumerate((*KNOWN, *draw_shapes(14))))[part::num_parts]:
        n, size, channels, kernel_size, stride = shape
        activation = list(ACTIVATIONS)[i % 2]
        for separable in (False, True):
            for with_gradients in (False, True):
                calls = contenders(shape, separable, activation, with_gradients)
                # Slow enough to be timed once, alone.
                xla = time_in_turn({"XLA": calls.pop("XLA")}, 1)["XLA"]
                timings = time_in_turn(calls, arguments.rounds)
                xla.ratio = xla.median_ms / timings["ours"].median_ms
                timings["XLA"] = xla
                kind = "separable" if separable else "depthwise"
                what = f"{activation}, {kind}" + with_gradients * ", gradients"
                cells = [f"{n}x{size}x{size}x{channels}, {kernel_size}, {stride}", what]
                cells += [str(t) for t in timings.values()]
                cells += [f"{t.ratio:.2f}" for t in list(timings.values())[1:]]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
