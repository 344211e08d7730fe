"""What does `dwsep_jax.accelerate()` make of other people's networks on a CPU?

MobileNetV2 and EfficientNetB0 of Keras, and a small MobileNet in Flax linen, Flax
nnx and Equinox, as jax compiles them and accelerated: inference and gradients, timed in
turn in one process. Outputs and gradients are compared first. Prints Markdown.

    python -m benchmarks.accelerated

Needs keras and equinox; 7 minutes on 2 CPU cores. `--quick` leaves out 224 pixels.
"""

import os
from collections.abc import Callable

os.environ["KERAS_BACKEND"] = "jax"

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
from flax import linen, nnx

import dwsep_jax
from benchmarks.timing import compile_jax, print_header, print_row, start, time_in_turn

WIDTHS = (32, 64, 128, 128, 256, 256)


def make_keras(name: str) -> tuple[Callable, list]:
    """Return (parameters, images) -> outputs, and the parameters."""
    options = dict(weights=None, include_top=False, pooling="avg")
    model = getattr(keras.applications, name)(**options)
    state = [v.value for v in model.non_trainable_variables]

    def apply(parameters, images):
        return model.stateless_call(parameters, state, images, training=False)[0]

    return apply, [v.value for v in model.trainable_variables]


def make_layers(conv: Callable, activation: Callable) -> list[Callable]:
    """Return separable convolutions, every other one with stride 2, and a pooling.

    `conv` takes input and output channels, side of the kernel, stride and groups.
    """
    layers, n = [conv(3, 32, 3, 2, 1), activation], 32
    for i, width in enumerate(WIDTHS):
        layers += [conv(n, n, 3, 1 + i % 2, n), activation]
        layers += [conv(n, width, 1, 1, 1), activation]
        n = width
    return [*layers, lambda x: x.mean((1, 2))]


def make_linen() -> tuple[Callable, object]:
    """Return a small MobileNet as `make_keras` does; so do the next two."""

    def conv(n, width, size, stride, groups):
        return linen.Conv(width, (size, size), stride, feature_group_count=groups)

    model = linen.Sequential([*make_layers(conv, linen.relu), linen.Dense(10)])
    return model.apply, model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))


def make_nnx() -> tuple[Callable, object]:
    """The same in nnx."""
    rngs = nnx.Rngs(0)

    def conv(n, width, size, stride, groups):
        options = {"feature_group_count": groups, "rngs": rngs}
        return nnx.Conv(n, width, (size, size), stride, **options)

    head = nnx.Linear(WIDTHS[-1], 10, rngs=rngs)
    graph, state = nnx.split(nnx.Sequential(*make_layers(conv, nnx.relu), head))
    return lambda state, images: nnx.merge(graph, state)(images), state


def make_equinox() -> tuple[Callable, object]:
    """The same in Equinox, channels first and without the head."""
    keys = iter(jax.random.split(jax.random.key(0), 20))

    def conv(n, width, size, stride, groups):
        options = {"groups": groups, "key": next(keys)}
        return eqx.nn.Conv2d(n, width, size, stride, size // 2, **options)

    arrays, static = eqx.partition(make_layers(conv, jax.nn.relu), eqx.is_array)

    def apply(arrays, images):
        x = images.transpose(0, 3, 1, 2)
        for layer in eqx.combine(arrays, static):
            x = jax.vmap(layer)(x)
        return x

    return apply, arrays


def compare(apply: Callable, parameters: object, images: np.ndarray) -> list[str]:
    """Return the cells of a network: times, ratio and largest error of both passes."""

    def loss(parameters):
        return (apply(parameters, images) ** 2).sum()

    cells = []
    for function in (lambda p: apply(p, images), jax.grad(loss)):
        # `jit` shares what it has compiled of one function.
        dwsep_jax.accelerate()
        ours = compile_jax(lambda p, f=function: f(p), parameters)
        dwsep_jax.undo_accelerate()
        theirs = compile_jax(lambda p, f=function: f(p), parameters)
        pairs = list(zip(*map(jax.tree.leaves, (ours(), theirs())), strict=True))
        scale = max(np.abs(b).max() for _, b in pairs)
        error = max(np.abs(a - b).max() for a, b in pairs) / scale
        timings = time_in_turn({"ours": ours, "theirs": theirs}, 5)
        cells += [timings["theirs"], timings["ours"]]
        cells += [f"{timings['theirs'].ratio:.1f}x", f"{error:.0e}"]
    return cells


def main() -> None:
    """Print the table."""
    sides = (96,) if start(__doc__, quick=False).quick else (96, 224)
    print(f"jax {jax.__version__}, keras {keras.__version__}; ms, median ± IQR / 2\n")
    columns = ["jax", "accelerated", "ratio", "error"]
    print_header("network", "pixels", "images", *columns, *columns)
    networks = {
        "Keras MobileNetV2": make_keras("MobileNetV2"),
        "Keras EfficientNetB0": make_keras("EfficientNetB0"),
        "Flax linen": make_linen(),
        "Flax nnx": make_nnx(),
        "Equinox": make_equinox(),
    }
    for name, network in networks.items():
        for side in sides:
            for size in (1, 16):
                shape = (size, side, side, 3)
                images = np.random.default_rng(0).normal(size=shape).astype("float32")
                print_row(name, side, size, *compare(*network, jnp.asarray(images)))


if __name__ == "__main__":
    main()
