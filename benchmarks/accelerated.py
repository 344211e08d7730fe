"""What does `dwsep_jax.accelerate()` make of other people's networks on a CPU?

MobileNetV2 and EfficientNetB0 of Keras, and a small MobileNet in Flax linen, Flax
nnx and Equinox, as jax compiles them and accelerated: inference and gradients, timed in
turn in one process. Outputs and gradients are compared first. Prints Markdown.

    python -m benchmarks.accelerated

Needs keras and equinox. `--quick` leaves out 224 pixels, and takes 4 minutes on 2 CPU
cores; the rest has not been timed.
"""

import argparse
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
from benchmarks.timing import compile_jax, print_header, print_row, time_in_turn
from dwsep_jax.environment import keep_freed_memory

WIDTHS = (32, 64, 128, 128, 256, 256)


def make_keras(name: str) -> tuple[Callable, list]:
    """Return (parameters, images) -> outputs, and the parameters."""
    options = dict(weights=None, include_top=False, pooling="avg")
    model = getattr(keras.applications, name)(**options)
    state = [v.value for v in model.non_trainable_variables]

    def apply(parameters, images):
        return model.stateless_call(parameters, state, images, training=False)[0]

    return apply, [v.value for v in model.trainable_variables]


class Linen(linen.Module):
    """Separable convolutions, every other one with stride 2."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(32, (3, 3), 2)(x))
        for i, width in enumerate(WIDTHS):
            n = x.shape[-1]
            x = linen.Conv(n, (3, 3), 1 + i % 2, feature_group_count=n)(x)
            x = linen.relu(linen.Conv(width, (1, 1))(linen.relu(x)))
        return linen.Dense(10)(x.mean((1, 2)))


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 32, (3, 3), 2, rngs=rngs)
        layers, n = [], 32
        for i, width in enumerate(WIDTHS):
            options = dict(strides=1 + i % 2, feature_group_count=n, rngs=rngs)
            layers.append(nnx.Conv(n, n, (3, 3), **options))
            layers.append(nnx.Conv(n, width, (1, 1), rngs=rngs))
            n = width
        self.layers, self.head = nnx.List(layers), nnx.Linear(n, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x.mean((1, 2)))


class Equinox(eqx.Module):
    """The same, of one image in channels-first order."""

    layers: list

    def __init__(self, key: jax.Array):
        keys = iter(jax.random.split(key, 20))
        self.layers, n = [eqx.nn.Conv2d(3, 32, 3, 2, 1, key=next(keys))], 32
        for i, width in enumerate(WIDTHS):
            depthwise = eqx.nn.Conv2d(n, n, 3, 1 + i % 2, 1, groups=n, key=next(keys))
            self.layers += [depthwise, eqx.nn.Conv2d(n, width, 1, key=next(keys))]
            n = width

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x.mean((1, 2))


def make_networks() -> dict[str, tuple[Callable, object]]:
    """Return (parameters, images NHWC) -> outputs, and parameters, by name."""
    key = jax.random.key(0)
    plain = Linen().init(key, jnp.ones((1, 32, 32, 3)))
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    arrays, static = eqx.partition(Equinox(key), eqx.is_array)

    def apply_equinox(arrays, images):
        return jax.vmap(eqx.combine(arrays, static))(images.transpose(0, 3, 1, 2))

    return {
        "Keras MobileNetV2": make_keras("MobileNetV2"),
        "Keras EfficientNetB0": make_keras("EfficientNetB0"),
        "Flax linen": (Linen().apply, plain),
        "Flax nnx": (lambda state, x: nnx.merge(graph, state)(x), state),
        "Equinox": (apply_equinox, arrays),
    }


def compare(apply: Callable, parameters: object, images: np.ndarray) -> list[str]:
    """Return the cells of a network: times, ratio and largest error of both passes."""

    def loss(parameters):
        return (apply(parameters, images) ** 2).sum()

    cells = []
    passes = {"inference": lambda p: apply(p, images), "gradients": jax.grad(loss)}
    for function in passes.values():
        ours = {}
        for name in ("accelerated", "jax"):
            if name == "accelerated":
                dwsep_jax.accelerate()
            # `jit` shares what it has compiled of one function.
            ours[name] = compile_jax(lambda p, f=function: f(p), parameters)
            dwsep_jax.undo_accelerate()
        leaves = [jax.tree.leaves(run()) for run in ours.values()]
        scale = max(np.abs(leaf).max() for leaf in leaves[1])
        error = max(np.abs(a - b).max() for a, b in zip(*leaves, strict=True)) / scale
        timings = time_in_turn(ours, 5)
        cells += [f"{timings['jax']}", f"{timings['accelerated']}"]
        cells += [f"{timings['jax'].ratio:.1f}x", f"{error:.0e}"]
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    sides = (96,) if parser.parse_args().quick else (96, 224)
    keep_freed_memory()
    print(f"jax {jax.__version__}, keras {keras.__version__}; ms, median ± IQR / 2\n")
    columns = ["jax", "accelerated", "ratio", "error"]
    print_header(["network", "pixels", "images", *columns, *columns])
    for name, network in make_networks().items():
        for side in sides:
            for size in (1, 16):
                shape = (size, side, side, 3)
                images = np.random.default_rng(0).normal(size=shape).astype("float32")
                cells = compare(*network, jnp.asarray(images))
                print_row([name, f"{side}", f"{size}", *cells])


if __name__ == "__main__":
    main()
