"""What a configured network costs: counted of its reference lowering, timed as it runs.

`efficiency` and `timing` do the work and know no model; here are our networks.
"""

import json
import os
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dwsep_jax import data
from dwsep_jax.console import FLOP_ITEMS, print_efficiency, say
from dwsep_jax.efficiency import timing
from dwsep_jax.environment import (
    compiler_options,
    describe_environment,
    memory_bytes,
)
from dwsep_jax.nn.counting import (
    Operation,
    itemize_flops,
    list_layers,
    list_operations,
    read_cost,
    xla_flops,
)
from dwsep_jax.nn.densenet import DTYPES
from dwsep_jax.nn.summary import with_reference_lowering
from dwsep_jax.train import loop
from dwsep_jax.train.step import draw_state, state_maker, train_step
from dwsep_jax.workdir import load_config, open_workdir, write_atomically

BATCH_SIZES = {"cpu": (1, 8, 32, 128)}
OTHER_BATCH_SIZES = (1, 8, 32, 128, 512)
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # XLA's word.
MEMORY_SOURCES = {
    "parameters_bytes": "sizes of the arrays",
    "optimizer_bytes": "sizes of the arrays",
    "activations_bytes": "XLA's memory analysis of the training step: temporary",
    "peak_bytes": "the same: arguments, results and temporary",
    "device_peak_bytes": "the device's own statistics, after the training steps",
}


def measure_workdir(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Measure the network of a configuration; write and print the result.

    Nothing is trained, and no trained weights are needed: they change no cost. Where no
    run was started in the workdir, this one is, and --mode=train goes on with it.

    Args:
      config: as requested.
      workdir: where to write efficiency.json.

    Raises:
      ConfigError: if the workdir belongs to another configuration.
      UserError: if data are missing: they say how large an image is.
    """
    if pathlib.Path(workdir, "config.json").exists():
        config = load_config(workdir, config)
    else:
        dataset = data.load(config)
        config = open_workdir(workdir, config, partial(loop.resolve, dataset=dataset))
    print_efficiency(write_efficiency(config, workdir))
    say(f"files: {workdir}")


def write_efficiency(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Measure the network of a resolved configuration; write efficiency.json.

    Returns:
      The content of the file.
    """
    dataset = data.load(config)
    image_shape = dataset.train.images.shape[1:]
    efficiency = measure_cost(config, len(dataset.class_names), image_shape)
    text = json.dumps(efficiency, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(pathlib.Path(workdir, "efficiency.json"), text + "\n")
    return efficiency


def measure_cost(
    config: ConfigDict, num_classes: int, image_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return the content of efficiency.json, of a resolved configuration.

    A figure that cannot be had here (a batch that does not fit into memory, an analysis
    that this platform lacks) is None.
    """
    counts = count_cost(config, num_classes, image_shape)
    state = draw_state(state_maker(config, num_classes, image_shape, 1))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    # The step gives up its state. It comes first: a device's peak is the process's.
    training, memory, train_seconds = _time_training(
        config, jax.tree.map(jnp.copy, state), num_classes, image_shape
    )
    latency, inference_seconds, bytes_per_second = _time_inference(
        config, state.apply_fn, variables, image_shape
    )
    machine = timing.measure_machine(DTYPES[config.dtype])
    flops = counts["flops"]["xla_forward"]
    return {
        "schema": 1,
        **counts,
        "memory": {
            "parameters_bytes": timing.tree_bytes(state.params),
            "optimizer_bytes": timing.tree_bytes(state.opt_state),
            **memory,
            "source": MEMORY_SOURCES,
        },
        "train": training,
        "latency": latency,
        "compile_seconds": {"train": train_seconds, "inference": inference_seconds},
        "machine": machine,
        **_rates(flops, latency, bytes_per_second, machine),
        "environment": describe_environment(config.dtype, config.seed),
    }


def count_cost(
    config: ConfigDict, num_classes: int, image_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return `parameters`, `macs`, `layers` and `flops` of efficiency.json.

    Nothing is computed on the device, and nothing depends on it or on the lowering.
    """
    reference = with_reference_lowering(config)
    state = jax.eval_shape(state_maker(reference, num_classes, image_shape, 1))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    operations = list_operations(state.apply_fn, variables, image)
    layers = list_layers(operations, state.params)
    macs = sum(layer.macs for layer in layers)
    return {
        "parameters": sum(layer.parameters for layer in layers),
        "macs": macs,
        "layers": [
            {
                **layer._asdict(),
                "kind": _kind(layer),
                "output_shape": _output_shape(layer),
                "share": layer.macs / macs,
            }
            for layer in layers
        ],
        "flops": _count_flops(config.batch_size, state, variables, image_shape, macs),
    }


def _count_flops(batch_size, state, variables, image_shape, macs):
    """Return FLOPs per image, of batches as in training."""
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    flops = {"batch_size": batch_size, "formula_forward": 2 * macs}
    for name, items_name, function, args in (
        ("xla_forward", "itemized", state.apply_fn, (variables, images)),
        (
            "xla_train_step",
            "itemized_train_step",
            train_step,
            (state, {"image": images, "label": labels}),
        ),
    ):
        total = xla_flops(function, *args)
        found = itemize_flops(list_operations(function, *args), _purpose)
        items = {item: found.get(item, 0) for item in FLOP_ITEMS}
        items["other"] = None if total is None else total - sum(items.values())
        flops[name] = None if total is None else total / batch_size
        flops[items_name] = {
            item: None if value is None else value / batch_size
            for item, value in items.items()
        }
    return flops


def _purpose(operation: Operation) -> str:
    """Return the item of an operation; gradients have the names of what they are of."""
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


def _output_shape(layer):
    """Return the shape for one image: of a norm, of all the pieces that it takes."""
    shape = list(layer.output_shape[1:])
    if layer.kind == "elementwise":
        shape[-1] = layer.parameters // 2  # A scale and a bias for each channel.
    return shape


def _kind(layer):
    if layer.kind == "elementwise":
        return "batch norm"
    if layer.kind != "matrix product":
        return layer.kind
    return "dense" if len(layer.output_shape) == 2 else "pointwise convolution"


def _time_training(config, state, num_classes, image_shape):
    """Return `train`, part of `memory`, and the seconds of compilation."""
    batch_size = config.batch_size
    draw = jax.jit(partial(_draw_batch, batch_size, num_classes, image_shape))
    step = jax.jit(
        train_step,
        donate_argnums=0,
        compiler_options=compiler_options(config.deterministic),
    )
    states = [state]

    def measure():
        compiled = _compile(step, state, jax.eval_shape(draw, 0))

        def run(batch):
            state, metrics = compiled.run(states.pop(), batch)
            states.append(state)
            return state, metrics

        return compiled, timing.time_calls(run, lambda i: (draw(i),))

    what = f"a training step of {batch_size} images (--config.batch_size)"
    compiled, times = _attempt(what, measure) or (None, None)
    memory = dict.fromkeys(("activations_bytes", "peak_bytes"))
    if compiled is not None:
        memory["activations_bytes"] = timing.temporary_bytes(compiled.run)
        memory["peak_bytes"] = timing.peak_bytes(compiled.run)
    memory["device_peak_bytes"] = timing.device_peak_bytes()
    return (
        {"batch_size": batch_size, **_describe_times(times, batch_size)},
        memory,
        compiled and compiled.seconds,
    )


def _time_inference(config, apply_fn, variables, image_shape):
    """Return `latency`, the seconds of compilation, and bytes/s of the last batch."""
    options = compiler_options(config.deterministic)
    infer = jax.jit(apply_fn, compiler_options=options)
    latency, seconds, bytes_per_second = [], {}, None
    for batch_size in BATCH_SIZES.get(jax.default_backend(), OTHER_BATCH_SIZES):
        draw = jax.jit(partial(_draw_images, batch_size, image_shape))

        def measure(draw=draw):
            compiled = _compile(infer, variables, jax.eval_shape(draw, 0))
            times = timing.time_calls(compiled.run, lambda i: (variables, draw(i)))
            return compiled, times

        what = f"inference of {batch_size} images"
        compiled, times = _attempt(what, measure) or (None, None)
        row = {"batch_size": batch_size, "dtype": config.dtype}
        latency.append({**row, **_describe_times(times, batch_size)})
        seconds[str(batch_size)] = compiled and compiled.seconds
        if compiled is not None:
            num_bytes = read_cost(compiled.run, "bytes accessed")
            bytes_per_second = num_bytes and num_bytes / (1e-3 * times.median_ms)
    return latency, seconds, bytes_per_second


def _compile(jitted, *args):
    """Compile, and raise `MemoryError` for a program that needs more than there is."""
    compiled = timing.compile_program(jitted, *args)
    needed, available = timing.peak_bytes(compiled.run) or 0, memory_bytes()
    if needed > available:
        raise MemoryError(
            f"needs {needed / 2**30:.1f} GiB of memory, and there are "
            f"{available / 2**30:.1f}"
        )
    return compiled


def _attempt(what, measure):
    """Return what `measure` returns, or None, and say so, if it does not fit."""
    try:
        return measure()
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        is_memory = isinstance(error, MemoryError) or _OUT_OF_MEMORY in str(error)
        if not is_memory:
            raise
        reason = str(error).partition("\n")[0]
        say(f"not measured: {what}: {reason}")
        return None


def _describe_times(times, batch_size):
    if times is None:
        return dict.fromkeys((*timing.Timing._fields, "images_per_second"))
    rate = batch_size / (1e-3 * times.median_ms)
    return {**times._asdict(), "images_per_second": rate}


def _rates(flops_per_image, latency, bytes_per_second, machine):
    """Return what inference reached at the largest batch that fits."""
    measured = [row for row in latency if row["images_per_second"] is not None]
    rates = dict.fromkeys(
        ("achieved_flops_per_second", "achieved_bytes_per_second", "achieved_by")
    )
    if measured and flops_per_image is not None:
        rate = flops_per_image * measured[-1]["images_per_second"]
        rates["achieved_flops_per_second"] = rate
    if measured:
        rates["achieved_bytes_per_second"] = bytes_per_second
        rates["achieved_by"] = f"inference of {measured[-1]['batch_size']} images"
    limit = timing.find_limit(
        rates["achieved_flops_per_second"], rates["achieved_bytes_per_second"], machine
    )
    return {**rates, "limited_by": limit}


def _draw_images(batch_size, image_shape, seed):
    shape = (batch_size, *image_shape)
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


def _draw_batch(batch_size, num_classes, image_shape, seed):
    labels = jax.random.randint(jax.random.key(seed), (batch_size,), 0, num_classes)
    return {"image": _draw_images(batch_size, image_shape, seed), "label": labels}
