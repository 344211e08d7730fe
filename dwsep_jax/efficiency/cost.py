"""What a configured network costs: counted on its reference lowering, timed as it runs.

The counting (`nn.counting`) and the timing (`timing`) know no model; this module does.
"""

import os
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dwsep_jax import data
from dwsep_jax.console import FLOP_ITEMS, print_efficiency, say
from dwsep_jax.efficiency.timing import find_limit, measure_machine, measure_program
from dwsep_jax.environment import compiler_options, describe_environment
from dwsep_jax.nn import counting
from dwsep_jax.nn.densenet import DTYPES
from dwsep_jax.nn.summary import with_reference_lowering
from dwsep_jax.train import loop
from dwsep_jax.train.step import make_state, train_step
from dwsep_jax.workdir import load_config, open_workdir, write_json

CPU_BATCH_SIZES = (1, 8, 32, 128)
OTHER_BATCH_SIZES = (1, 8, 32, 128, 512)
MEMORY_SOURCES = {
    "parameters_bytes": "sizes of the arrays",
    "optimizer_bytes": "sizes of the arrays",
    "activations_bytes": "XLA's memory analysis of the training step: temporary",
    "peak_bytes": "the same: arguments, results and temporary",
    "device_peak_bytes": "the device's own statistics, after the training steps",
}


def measure_workdir(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Measure the network of a configuration; print and write the result.

    Nothing is trained and no trained weights are needed. A workdir without a run gets
    one that --mode=train continues.

    Args:
      config: as requested.
      workdir: where to write efficiency.json.

    Raises:
      ConfigError: if the workdir belongs to another configuration.
      UserError: if the dataset, which determines the image size, is missing.
    """
    if pathlib.Path(workdir, "config.json").exists():
        config = load_config(workdir, config)
    else:
        config = open_workdir(workdir, config, lambda c: loop.resolve(c, data.load(c)))
    efficiency = measure_cost(config, data.load(config))
    print_efficiency(efficiency)  # Whether it can be written or not.
    write_json(pathlib.Path(workdir, "efficiency.json"), efficiency)
    say(f"files: {workdir}")


def write_efficiency(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Measure the network of a resolved configuration; write efficiency.json."""
    efficiency = measure_cost(config, data.load(config))
    write_json(pathlib.Path(workdir, "efficiency.json"), efficiency)


def measure_cost(config: ConfigDict, dataset: data.Dataset) -> dict[str, Any]:
    """Return the content of efficiency.json for a resolved configuration.

    A figure that is unavailable here (the batch does not fit into memory, the platform
    lacks an analysis) is None.
    """
    counts = count_cost(config, dataset)
    state = make_state(config, dataset)
    train, inference = _measure_programs(config, dataset, state)
    machine = measure_machine(DTYPES[config.dtype])
    return {
        "schema": 1,
        **counts,
        "memory": {
            "parameters_bytes": _num_bytes(state.params),
            "optimizer_bytes": _num_bytes(state.opt_state),
            "activations_bytes": train.temporary_bytes,
            "peak_bytes": train.peak_bytes,
            "device_peak_bytes": train.device_peak_bytes,
            "source": MEMORY_SOURCES,
        },
        "train": _describe_times(config.batch_size, train),
        "latency": [
            {"dtype": config.dtype, **_describe_times(n, measured)}
            for n, measured in inference.items()
        ],
        "compile_seconds": {
            "train": train.compile_seconds,
            "inference": {str(n): m.compile_seconds for n, m in inference.items()},
        },
        "machine": machine,
        **_find_rates(counts["flops"]["xla_forward"], inference, machine),
        "environment": describe_environment(config.dtype, config.seed),
    }


def count_cost(config: ConfigDict, dataset: data.Dataset) -> dict[str, Any]:
    """Return `parameters`, `macs`, `layers` and `flops` of efficiency.json.

    Nothing is computed, and the result depends on neither device nor lowering.
    """
    reference = with_reference_lowering(config)
    state = make_state(reference, dataset, abstract=True)
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    operations = counting.list_operations(state.apply_fn, _variables(state), image)
    layers = counting.list_layers(operations, state.params)
    macs = sum(layer.macs for layer in layers)
    return {
        "parameters": sum(layer.parameters for layer in layers),
        "macs": macs,
        "layers": [
            {**_describe_layer(layer), "share": layer.macs / macs} for layer in layers
        ],
        "flops": _count_flops(config.batch_size, state, dataset.image_shape, macs),
    }


def _count_flops(batch_size, state, image_shape, macs):
    """Return `flops` of efficiency.json: per image, for batches as in training."""
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    batch = {"image": images, "label": labels}
    flops = {"batch_size": batch_size, "formula_forward": 2 * macs}
    for total, items, *program in (
        ("xla_forward", "itemized", state.apply_fn, _variables(state), images),
        ("xla_train_step", "itemized_train_step", train_step, state, batch),
    ):
        flops[total], flops[items] = _itemize(batch_size, *program)
    return flops


def _itemize(batch_size, function, *args):
    """Return XLA's FLOPs per image, and what they are for; None where XLA is silent."""
    total = counting.xla_flops(function, *args)
    counts = counting.itemize_flops(counting.list_operations(function, *args), _purpose)
    items = {item: counts.get(item, 0) / batch_size for item in FLOP_ITEMS}
    if total is None:
        return None, {**items, "other": None}
    other = total - sum(counts.get(item, 0) for item in FLOP_ITEMS)
    return total / batch_size, {**items, "other": other / batch_size}


def _purpose(operation: counting.Operation) -> str:
    """Return the item of an operation; a gradient has the scope of its function."""
    names = operation.scope.replace("(", "/").replace(")", "").split("/")
    for name in ("activation", "dropout"):
        if name in names:
            return name
    if any(n.endswith("norm") or n.startswith("statistics") for n in names):
        return "norm"
    if operation.kind == "convert_element_type":
        return "other"
    if names[-1] == "head":
        return "bias"
    if names[-1] == "DenseNet" or names[-1].startswith("transition"):
        return "pooling"
    return "loss" if "jvp" in names else "update"


def _describe_layer(layer: counting.Layer) -> dict[str, Any]:
    """Return a layer as in efficiency.json, with the output shape for one image."""
    kind, shape = layer.kind, list(layer.output_shape[1:])
    if kind == "elementwise":
        kind = "batch norm"
        # It has a scale and a bias per channel. Its last result may be only a piece.
        shape[-1] = layer.parameters // 2
    elif kind == "matrix product":
        kind = "pointwise convolution" if len(shape) > 1 else "dense"
    return {**layer._asdict(), "kind": kind, "output_shape": shape}


def _measure_programs(config, dataset, state):
    """Return measurements of a training step, and of inference by batch size."""
    sizes = CPU_BATCH_SIZES if jax.default_backend() == "cpu" else OTHER_BATCH_SIZES
    options = compiler_options(config.deterministic)
    step = jax.jit(train_step, donate_argnums=0, compiler_options=options)
    infer = jax.jit(state.apply_fn, compiler_options=options)

    @partial(jax.jit, static_argnums=0)
    def draw_batch(batch_size, seed):
        key, shape = jax.random.key(seed), (batch_size, *dataset.image_shape)
        return {
            "image": jax.random.uniform(key, shape, minval=-1, maxval=1),
            "label": jax.random.randint(key, shape[:1], 0, len(dataset.class_names)),
        }

    def make_train_inputs(seed):
        batch = draw_batch(config.batch_size, seed)
        return jax.tree.map(jnp.copy, state), batch  # The step donates its state.

    def make_inputs(batch_size, seed):
        return _variables(state), draw_batch(batch_size, seed)["image"]

    what = f"a training step of {config.batch_size} images (--config.batch_size)"
    # Training comes first: the device's peak is that of the whole process.
    train = measure_program(what, step, make_train_inputs)
    inference = {
        n: measure_program(f"inference of {n} images", infer, partial(make_inputs, n))
        for n in sizes
    }
    return train, inference


def _find_rates(flops_per_image, inference, machine):
    """Return the rates reached with the largest batch that fits, and their limit."""
    fitting = [n for n, measured in inference.items() if measured.timing.median_ms]
    size = max(fitting or inference)
    measured = inference[size]
    rate = _describe_times(size, measured)["images_per_second"]
    flops = rate and flops_per_image and flops_per_image * rate
    return {
        "achieved_flops_per_second": flops,
        "achieved_bytes_per_second": measured.bytes_per_second,
        "achieved_by": rate and f"inference of {size} images",
        "limited_by": find_limit(flops, measured.bytes_per_second, machine),
    }


def _describe_times(batch_size, measured):
    """Return `train` or a row of `latency`."""
    times = measured.timing
    rate = times.median_ms and batch_size / (1e-3 * times.median_ms)
    return {"batch_size": batch_size, "images_per_second": rate, **times._asdict()}


def _variables(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def _num_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
