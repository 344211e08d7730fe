"""Is a separable convolution as fast as its arithmetic promises? Ours, Flax, PyTorch.

The same networks with the same weights: ours, plain Flax (`nn.Conv` with
`feature_group_count`, `nn.BatchNorm`), PyTorch eager and compiled (channels_last), with
the same number of threads. Their outputs are compared first; then they are timed in
turn, in one process; a ratio is the median over the rounds. CPUs use float32, GPUs
bfloat16 (PyTorch by autocast). Prints Markdown and writes speed.json. About 20 minutes
on 2 CPU cores.

    python -m benchmarks.speed

With `--quick`, a few rounds of configs/cpu.py alone. Needs the extra `bench`.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn
from torch.nn import functional as F

from benchmarks import plain, torch_net
from benchmarks.timing import (
    Contenders,
    Timing,
    compile_jax,
    make_dataset,
    time_in_turn,
)
from configs import cpu, separable
from dwsep_jax.data.augment import make_augment
from dwsep_jax.environment import describe_environment, keep_freed_memory
from dwsep_jax.nn import ops
from dwsep_jax.nn.densenet import create_model
from dwsep_jax.train import loop, optim, programs
from dwsep_jax.train.step import create_train_state, make_run_keys, train_step

CONFIGS = {"cpu": cpu, "separable": separable}
BATCH_SIZE = 128
INFERENCE_SIZES = (1, 32, 128, 512)
LAYER_SHAPE = (BATCH_SIZE, 32, 32, 48)
MAX_ERROR = 1e-4
ON_GPU = jax.default_backend() == "gpu"
DTYPE = "bfloat16" if ON_GPU else "float32"
TORCH_DEVICE = "cuda" if ON_GPU else "cpu"


def to_torch(array: jax.Array) -> torch.Tensor:
    """Return images (N, H, W, C) as (N, C, H, W) in channels_last, on the device."""
    tensor = torch.from_numpy(np.array(array, np.float32)).permute(0, 3, 1, 2)
    return tensor.to(TORCH_DEVICE, memory_format=torch.channels_last)


def run_torch(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call that runs a function of PyTorch and waits for it."""

    def run():
        with torch.autocast("cuda", torch.bfloat16, enabled=ON_GPU):
            result = function()
        if ON_GPU:
            torch.cuda.synchronize()
        return result

    return run


class Network:
    """The network of a configuration, three times, with the same weights."""

    def __init__(self, name: str):
        config = CONFIGS[name].get_config()
        config.dtype = DTYPE
        self.config = optim.resolve(config)
        self.tx = optim.make_optimizer(self.config, lambda step: 1.0)
        self.model = create_model(self.config, 10)
        keys = make_run_keys(0)
        self.state = create_train_state(self.model, self.tx, (32, 32, 3), keys)
        twin = self.config.copy_and_resolve_references()
        twin.conv = "standard"
        model = create_model(twin, 10)
        self.twin = create_train_state(model, self.tx, (32, 32, 3), keys)
        self.plain = plain.PlainDenseNet(self.model, separable=True)
        variables = {
            "params": self.state.params,
            "batch_stats": self.state.batch_stats,
        }
        self.variables = jax.tree.map(jnp.copy, variables)
        self.plain_variables = plain.plain_variables(self.model, self.variables)
        net = torch_net.TorchDenseNet(self.model, separable=True)
        torch_net.load(net, self.plain_variables)
        self.torch = net.to(TORCH_DEVICE, memory_format=torch.channels_last)
        self.compiled = torch.compile(self.torch, dynamic=False)

    def make_batch(self, size: int) -> dict[str, jax.Array]:
        """Return random images and labels."""
        rng = np.random.default_rng(size)
        images = rng.uniform(-1, 1, (size, 32, 32, 3)).astype(np.float32)
        labels = rng.integers(0, 10, size).astype(np.int32)
        return {"image": jnp.asarray(images), "label": jnp.asarray(labels)}

    def compare_outputs(self) -> dict[str, float]:
        """Return the largest differences from our logits, relative to our largest."""
        images = self.make_batch(32)["image"]
        ours = np.asarray(jax.jit(self.model.apply)(self.variables, images))
        flax = np.asarray(jax.jit(self.plain.apply)(self.plain_variables, images))
        self.torch.eval()
        with torch.no_grad():
            pytorch = run_torch(lambda: self.torch(to_torch(images)))().cpu().numpy()
        scale = np.abs(ours).max()
        others = {"plain Flax": flax, "PyTorch": pytorch}
        return {k: float(np.abs(v - ours).max() / scale) for k, v in others.items()}

    def inference(self, size: int) -> Contenders:
        """Return one forward pass of each, with running statistics."""
        images = self.make_batch(size)["image"]
        tensor = to_torch(images)
        self.torch.eval()

        def infer(net):
            with torch.no_grad():
                return net(tensor)

        return {
            "ours": compile_jax(self.model.apply, self.variables, images),
            "plain Flax": compile_jax(self.plain.apply, self.plain_variables, images),
            "PyTorch eager": run_torch(partial(infer, self.torch)),
            "PyTorch compiled": run_torch(partial(infer, self.compiled)),
        }

    def training(self, with_plain: bool = True) -> Contenders:
        """Return a training step of each, on one batch."""
        batch = self.make_batch(BATCH_SIZE)
        flax_state = self.state.replace(
            **self.plain_variables,
            opt_state=self.tx.init(self.plain_variables["params"]),
            apply_fn=self.plain.apply,
        )
        contenders = {
            "ours": self._jax_step(self.state, batch),
            "ours, standard convolutions": self._jax_step(self.twin, batch),
            "PyTorch eager": run_torch(self._torch_step(self.torch, batch)),
            "PyTorch compiled": run_torch(self._torch_step(self.compiled, batch)),
        }
        if with_plain:
            contenders["plain Flax"] = self._jax_step(flax_state, batch)
        return contenders

    def _jax_step(self, state, batch):
        state = jax.tree.map(jnp.copy, state)
        step = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()

        def run():
            nonlocal state
            state, _ = step(state, batch)
            jax.block_until_ready(state.params)

        return run

    def _torch_step(self, net, batch):
        images = to_torch(batch["image"])
        labels = torch.from_numpy(np.array(batch["label"], np.int64)).to(TORCH_DEVICE)
        optimizer = torch.optim.SGD(
            self.torch.parameters(),
            lr=self.config.learning_rate,
            momentum=self.config.momentum,
            nesterov=True,
            weight_decay=5e-4,
        )

        def run():
            self.torch.train()
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()

        return run


def depthwise_layers() -> dict[str, Contenders]:
    """Return 3x3 depthwise convolutions: forward, and with gradients."""
    rng = np.random.default_rng(0)
    channels = LAYER_SHAPE[-1]
    x, g = (jnp.asarray(rng.normal(size=LAYER_SHAPE), DTYPE) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, channels)), DTYPE)
    module = nn.Conv(
        channels, (3, 3), feature_group_count=channels, use_bias=False, dtype=DTYPE
    )

    def ours(x, kernel):
        return ops.depthwise_conv(x, kernel)

    def flax(x, kernel):
        return module.apply({"params": {"kernel": kernel}}, x)

    def gradients(function):
        return lambda x, kernel, g: jax.vjp(function, x, kernel)[1](g)

    tensor, tensor_g = to_torch(x).requires_grad_(), to_torch(g)
    weight = to_torch(kernel.transpose(3, 0, 1, 2)).contiguous().requires_grad_()
    convolve = partial(F.conv2d, tensor, weight, padding=1, groups=channels)

    def forward():
        with torch.no_grad():
            convolve()

    def backward():
        y = convolve()
        torch.autograd.grad(y, (tensor, weight), tensor_g.to(y.dtype))

    return {
        "forward": {
            "ours": compile_jax(ours, x, kernel),
            "plain Flax": compile_jax(flax, x, kernel),
            "PyTorch eager": run_torch(forward),
            "copy": compile_jax(lambda x: x + 1, x),
        },
        "forward and backward": {
            "ours": compile_jax(gradients(ours), x, kernel, g),
            "plain Flax": compile_jax(gradients(flax), x, kernel, g),
            "PyTorch eager": run_torch(backward),
            "copy": compile_jax(lambda x: x + 1, x),
        },
    }


def measure_loop(network: Network, num_steps: int, num_rounds: int) -> dict[str, Any]:
    """Time an epoch of the training loop against the same number of steps alone.

    "step alone" is `train_step` on a batch that is ready; "step with data" gathers and
    augments the batch first, as the loop does.
    """
    size = num_steps * BATCH_SIZE
    dataset = make_dataset(size)
    config = loop.resolve(network.config, dataset)
    images, labels = (
        jnp.asarray(dataset.train.images),
        jnp.asarray(dataset.train.labels),
    )
    state = jax.tree.map(jnp.copy, network.state)
    compiled = programs.EpochPrograms(config, dataset, [state])
    permutation = jnp.arange(size, dtype=jnp.int32)
    progress = argparse.Namespace(advance=lambda num_steps: None)

    def epoch():
        nonlocal state
        state = state.replace(step=jnp.zeros((), jnp.int32))
        (result,) = compiled.train_epoch([state], [True], [permutation], progress)
        state = result.state

    step = network._jax_step(network.state, network.make_batch(BATCH_SIZE))
    augment = make_augment(config, 10)
    key, batch = jax.random.key(0), permutation[:BATCH_SIZE]
    make_batch = compile_jax(
        lambda *args: augment(args[0], images[args[1]], labels[args[1]]), key, batch
    )

    def bare():
        for _ in range(num_steps):
            step()

    def with_data():
        for _ in range(num_steps):
            make_batch()
            step()

    return time_in_turn(
        {"loop": epoch, "step alone": bare, "step with data": with_data}, num_rounds
    )


START = """
import sys, time
start = time.perf_counter()
import importlib
import jax
import jax.numpy as jnp
from dwsep_jax import environment
from dwsep_jax.train import optim
from dwsep_jax.nn.densenet import create_model
from dwsep_jax.train.step import create_train_state, make_run_keys, train_step
environment.use_compilation_cache()
config = importlib.import_module("configs." + sys.argv[1]).get_config()
config.dtype = sys.argv[2]
config = optim.resolve(config)
tx = optim.make_optimizer(config, lambda step: 1.0)
model = create_model(config, 10)
state = create_train_state(model, tx, (32, 32, 3), make_run_keys(0))
size = int(sys.argv[3])
batch = {"image": jnp.zeros((size, 32, 32, 3)), "label": jnp.zeros(size, jnp.int32)}
jax.block_until_ready(jax.jit(train_step, donate_argnums=0)(state, batch))
print(time.perf_counter() - start)
"""


def measure_start(name: str) -> dict[str, float]:
    """Return seconds from the start of a program to the end of its first step.

    The first run starts with an empty compilation cache, the second with a full one.
    """
    command = [sys.executable, "-c", START, name, DTYPE, str(BATCH_SIZE)]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        run = partial(subprocess.check_output, command, env=environment, text=True)
        return {key: float(run()) for key in ("first_seconds", "second_seconds")}


def print_table(title: str, rows: dict[str, dict[str, Timing]]) -> None:
    """Print timings as a Markdown table: a row for each measurement."""
    columns = list(next(iter(rows.values())))
    print(f"\n| {title} | {' | '.join(columns)} |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, timings in rows.items():
        cells = []
        for column, t in timings.items():
            ratio = "" if column == columns[0] else f" ({t.ratio:.2f}x)"
            cells.append(f"{t}{ratio}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure_network(name: str, num_rounds: int) -> dict[str, Any]:
    """Check, time and print everything about the network of a configuration."""
    network = Network(name)
    errors = network.compare_outputs()
    print(f"\nconfigs/{name}.py, outputs differ from ours by {errors}", flush=True)
    bound = MAX_ERROR if DTYPE == "float32" else 0.05
    assert max(errors.values()) < bound, errors
    training = time_in_turn(network.training(), num_rounds)
    print_table("training step, ms", {f"batch size {BATCH_SIZE}": training})
    loop = measure_loop(network, num_steps=8, num_rounds=max(3, num_rounds // 2))
    print_table("8 steps, ms", {"loop": loop})
    inference = {
        str(size): time_in_turn(network.inference(size), num_rounds)
        for size in INFERENCE_SIZES
    }
    print_table("inference, ms, batch size", inference)
    start = measure_start(name)
    print(f"\nstart to first step: {start}", flush=True)
    result = {"errors": errors, "inference": inference, "training": training}
    return result | {"loop": loop, "start": start}


def main() -> None:
    """Measure everything; print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="configs/cpu.py, 3 rounds")
    parser.add_argument("--out", default="speed.json", help="where the JSON goes")
    arguments = parser.parse_args()
    keep_freed_memory()  # As main.py does. PyTorch gains by it, too.
    torch._dynamo.config.recompile_limit = 64  # One for each batch size.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    num_rounds = 3 if arguments.quick else 5
    result = {"schema": 1, "environment": describe_environment(DTYPE, 0)}
    result["environment"]["versions"]["torch"] = torch.__version__
    result["layers"] = {
        name: time_in_turn(contenders, 2 * num_rounds)
        for name, contenders in depthwise_layers().items()
    }
    shape = "x".join(map(str, LAYER_SHAPE))
    print_table(f"depthwise 3x3, {shape}, ms", result["layers"])
    copied = 2 * np.prod(LAYER_SHAPE) * jnp.dtype(DTYPE).itemsize
    result["copy_bytes_per_second"] = {
        name: copied / (t["copy"].median_ms / 1e3)
        for name, t in result["layers"].items()
    }
    for name in ["cpu"] if arguments.quick else CONFIGS:
        result[name] = measure_network(name, num_rounds)
    text = json.dumps(result, indent=2, default=dataclasses.asdict)
    pathlib.Path(arguments.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
