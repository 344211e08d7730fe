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

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import timing
from benchmarks.torch_net import ON_GPU, run_torch, to_torch
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


def make_contenders(
    shape: tuple[int, ...],
    activation: str,
    separable: bool,
    with_gradients: bool,
    dtype: str,
) -> timing.Contenders:
    """Return what is timed: a call of each."""
    n, size, channels, kernel_size, stride = shape
    padding = kernel_size // 2  # The same on both sides, as PyTorch has it.
    activate, torch_activate = ACTIVATIONS[activation]
    rng, function = np.random.default_rng(0), ops.depthwise_conv
    shapes = [(n, size, size, channels), (kernel_size, kernel_size, 1, channels)]
    if separable:
        shapes.append((1, 1, channels, channels))
        function = ops.separable_conv
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]

    def forward(lowering, x, *kernels):
        options = {"strides": stride, "padding": padding, "lowering": lowering}
        return function(activate(x), *kernels, **options)

    def gradients(lowering, g, *arrays):
        return jax.vjp(partial(forward, lowering), *arrays)[1](g)

    compute, arguments = forward, arrays
    if with_gradients:
        compute = gradients
        arguments = [jnp.ones_like(forward("auto", *arrays)), *arrays]
    lowerings = {"ours": "auto", "XLA": "conv"}
    if ON_GPU:  # Where "auto" is XLA's.
        lowerings["shifts"] = "shift"
    calls = {
        name: timing.compile_jax(partial(compute, lowering), *arguments)
        for name, lowering in lowerings.items()
    }
    calls["copy"] = timing.compile_jax(lambda x: x + 1, arrays[0])

    tensors = [to_torch(arrays[0])]
    tensors += [to_torch(k.transpose(3, 0, 1, 2)).contiguous() for k in arrays[1:]]
    tensors = [x.to(getattr(torch, dtype)) for x in tensors]
    tensors = [x.requires_grad_(with_gradients) for x in tensors]

    def torch_forward(x, depthwise, *pointwise):
        options = {"stride": stride, "groups": channels, "padding": padding}
        y = F.conv2d(torch_activate(x), depthwise, **options)
        return F.conv2d(y, *pointwise) if pointwise else y

    def call(forward):
        y = forward(*tensors)
        if with_gradients:
            torch.autograd.grad(y, tensors, torch.ones_like(y))

    compiled = torch.compile(torch_forward, dynamic=False)
    calls["PyTorch"] = run_torch(partial(call, torch_forward))
    calls["PyTorch compiled"] = run_torch(partial(call, compiled))
    return calls


def main() -> None:
    """Print the table."""
    args = timing.start(__doc__, dtype="float32", compiled=False, part="0/1")
    part, num_parts = map(int, args.part.split("/"))
    columns = ["ours", "copy", *["shifts"] * ON_GPU, "PyTorch"]
    columns += ["PyTorch compiled"] * args.compiled
    timing.print_header("shape, kernel, stride", *columns, "XLA")
    for i, shape in list(enumerate((*KNOWN, *draw_shapes(14))))[part::num_parts]:
        n, size, channels, kernel_size, stride = shape
        activation = list(ACTIVATIONS)[i % 2]
        for separable, with_gradients in itertools.product((False, True), repeat=2):
            kind = "separable" if separable else "depthwise"
            name = f"{n}x{size}x{size}x{channels}, {kernel_size}, {stride}, "
            name += f"{activation}, {kind}" + with_gradients * ", gradients"
            options = (activation, separable, with_gradients, args.dtype)
            calls = make_contenders(shape, *options)
            timings = timing.time_in_turn({c: calls[c] for c in columns}, 7)
            # XLA's is slow enough to be timed once, alone.
            timings |= timing.time_in_turn({"XLA": calls["XLA"]}, 1)
            timings["XLA"].ratio = timings["XLA"].median_ms / timings["ours"].median_ms
            timing.print_row(name, *(f"{t} ({t.ratio:.2f})" for t in timings.values()))


if __name__ == "__main__":
    main()
