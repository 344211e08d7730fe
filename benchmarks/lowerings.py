"""Which lowering is faster? The measurements behind `lowering="auto"`.

Times a depthwise and a separable convolution, forward and with all gradients, with each
lowering in turn, for several shapes and dtypes, on the device that JAX finds. Prints a
Markdown table, which `ops` follows by platform and dtype. About 5 minutes on 2 CPU
cores, whose table is in benchmarks/lowerings.md.

    python -m benchmarks.lowerings
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import compile_jax, time_in_turn
from dwsep_jax.environment import keep_freed_memory
from dwsep_jax.nn import ops

# (N, H, W, C), side of the kernel, stride.
SHAPES = (
    ((128, 32, 32, 48), 3, 1),
    ((128, 32, 32, 48), 5, 1),
    ((128, 32, 32, 48), 3, 2),
    ((128, 8, 8, 168), 3, 1),
    ((128, 4, 4, 150), 3, 1),
    ((1, 32, 32, 48), 3, 1),
    ((1, 8, 8, 168), 3, 1),
)
NUM_FEATURES = 24


def depthwise(x, kernels, **options):
    """Convolve depthwise; ignore the pointwise kernel."""
    return ops.depthwise_conv(x, kernels[0], **options)


def separable(x, kernels, **options):
    """Convolve depthwise, then pointwise."""
    return ops.separable_conv(x, *kernels, **options)


def measure(function, shape, kernel_size, stride, dtype) -> list[str]:
    """Return the cells of a row: forward, then with gradients, shift against conv."""
    rng = np.random.default_rng(0)
    channels = shape[-1]
    draw = lambda *s: jnp.asarray(rng.normal(size=s), dtype)  # noqa: E731
    x = draw(*shape)
    kernels = (
        draw(kernel_size, kernel_size, 1, channels),
        draw(1, 1, channels, NUM_FEATURES),
    )
    cells = []
    for with_gradients in (False, True):
        contenders = {}
        for lowering in ("shift", "conv"):

            def forward(x, kernels, lowering=lowering):
                return function(x, kernels, strides=stride, lowering=lowering)

            def gradients(x, kernels, forward=forward):
                y, vjp = jax.vjp(forward, x, kernels)
                return vjp(y)

            run = gradients if with_gradients else forward
            contenders[lowering] = compile_jax(run, x, kernels)
        timings = time_in_turn(contenders, num_rounds=5)
        conv = timings["conv"]
        cells.append(f"{timings['shift']} | {conv} | {conv.ratio:.1f}x")
    return cells


def main() -> None:
    """Print the table."""
    keep_freed_memory()
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}; ms, median ± half the")
    print("interquartile range of 5 rounds; ratio: conv to shift\n")
    columns = "convolution | dtype | shape | kernel, stride"
    columns += " | shift, forward | conv | ratio | shift, gradients too | conv | ratio"
    print(f"| {columns} |\n{'| --- ' * 10}|")
    for function, dtype in itertools.product(
        (depthwise, separable), ("float32", "bfloat16")
    ):
        for shape, kernel_size, stride in SHAPES:
            cells = measure(function, shape, kernel_size, stride, dtype)
            size = "x".join(map(str, shape))
            name = f"{function.__name__} | {dtype} | {size} | {kernel_size}, {stride}"
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
