"""Is a separable network as fast as its arithmetic promises? Ours, Flax, PyTorch.

The same networks with the same weights: ours, plain Flax (`nn.Conv` with
`feature_group_count`, `nn.BatchNorm`), PyTorch eager and compiled (channels_last), with
the same number of threads. Their outputs are compared first; then they are timed in
turn, in one process; a ratio is the median over the rounds. CPUs use float32, GPUs
bfloat16 (PyTorch by autocast). Prints Markdown and writes speed.json. About 20 minutes
on 2 CPU cores; `benchmarks.shapes` measures single convolutions.

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
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import plain, torch_net
from benchmarks.timing import (
    Contenders,
    Timing,
    compile_jax,
    jax_step,
    make_batch,
    make_dataset,
    print_header,
    print_row,
    time_in_turn,
)
from benchmarks.torch_net import ON_GPU, run_torch, to_torch
from configs import cpu, separable
from dwsep_jax.environment import describe_environment, keep_freed_memory
from dwsep_jax.nn.counting import peak_bytes
from dwsep_jax.train import loop, optim, programs
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.step import train_step

CONFIGS = {"cpu": cpu, "separable": separable}
TRAINING_SIZES, INFERENCE_SIZES = (32, 128, 512), (1, 8, 32, 128, 512)
MAX_ERROR = 0.05 if ON_GPU else 1e-4


class Network:
    """The network of a configuration, three times, with the same weights."""

    def __init__(self, name: str):
        self.config = optim.resolve(CONFIGS[name].get_config())
        self.config.dtype = "bfloat16" if ON_GPU else "float32"
        self.states, model = plain.make_states(self.config)
        self.state = self.states["ours"]
        net = torch_net.TorchDenseNet(model, separable=True)
        flax = self.states["plain Flax"]
        variables = {"params": flax.params, "batch_stats": flax.batch_stats}
        torch_net.load(net, variables)
        net = net.to(torch_net.DEVICE, memory_format=torch.channels_last)
        compiled = torch.compile(net, dynamic=False)
        self.torch = {"PyTorch eager": net, "PyTorch compiled": compiled}

    def inference(self, size: int) -> Contenders:
        """Return one forward pass of each, with running statistics."""
        images = make_batch(size)["image"]
        tensor = to_torch(images)

        def infer(net):
            net.eval()
            with torch.no_grad():
                return net(tensor)

        contenders = {
            name: compile_jax(
                state.apply_fn,
                {"params": state.params, "batch_stats": state.batch_stats},
                images,
            )
            for name, state in self.states.items()
        }
        nets = self.torch.items()
        return contenders | {k: run_torch(partial(infer, net)) for k, net in nets}

    def training(self, size: int) -> Contenders:
        """Return a training step of each, on one batch."""
        batch = make_batch(size)
        contenders = {k: jax_step(state, batch) for k, state in self.states.items()}
        for name, net in self.torch.items():
            contenders[name] = run_torch(self._torch_step(net, batch))
        return contenders

    def _torch_step(self, net, batch):
        images = to_torch(batch["image"])
        labels = torch.from_numpy(np.array(batch["label"], np.int64)).to(images.device)
        optimizer = torch.optim.SGD(
            net.parameters(),
            lr=self.config.learning_rate,
            momentum=self.config.momentum,
            nesterov=True,
            weight_decay=self.config.weight_decay,
        )

        def run():
            net.train()
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

        return run

    def compare_outputs(self) -> dict[str, float]:
        """Return the largest differences from our logits, relative to our largest."""
        logits = {name: run() for name, run in self.inference(32).items()}
        del logits["ours, standard convolutions"]
        for name in self.torch:
            logits[name] = logits[name].cpu().numpy()
        ours = np.asarray(logits.pop("ours"))
        return {
            name: float(np.abs(other - ours).max() / np.abs(ours).max())
            for name, other in logits.items()
        }

    def loop(self, num_steps: int) -> Contenders:
        """Return an epoch of the training loop, and as many steps on a ready batch."""
        size = self.config.batch_size
        dataset = make_dataset(num_steps * size)
        config = loop.resolve(self.config, dataset)
        state = jax.tree.map(jnp.copy, self.state)
        epoch_programs = programs.EpochPrograms(config, dataset, [state])
        permutation = jnp.arange(num_steps * size, dtype=jnp.int32)
        progress = argparse.Namespace(advance=lambda num_steps: None)

        def epoch():
            nonlocal state
            state = state.replace(step=jnp.zeros((), jnp.int32))
            (result,) = epoch_programs.train_epoch(
                [state], [Metrics.empty()], [True], [permutation], progress
            )
            state = result.state

        step = jax_step(self.state, make_batch(size))
        return {
            "loop": epoch,
            "steps alone": lambda: [step() for _ in range(num_steps)],
        }

    def peak_megabytes(self) -> dict[str, float]:
        """Return the peak memory that XLA plans for a training step of each."""
        step, batch = jax.jit(train_step), make_batch(self.config.batch_size)
        return {
            name: peak_bytes(step.lower(state, batch).compile()) / 1e6
            for name, state in self.states.items()
        }


def measure_start(name: str) -> dict[str, float]:
    """Return seconds from the start of main.py until a step of the network can run.

    On digits, with an empty and then with a full compilation cache.
    """
    command = [sys.executable, "-m", "dwsep_jax", f"--config={name}"]
    options = {"dataset": "digits", "validation_size": 100, "num_epochs": 1}
    command += [f"--config.{field}={value}" for field, value in options.items()]
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        for key in ("first", "second"):
            begin = time.perf_counter()
            process = subprocess.Popen(
                [*command, f"--workdir={cache}/{key}"],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            with process:
                assert any("compiled the training" in line for line in process.stdout)
                seconds[key] = time.perf_counter() - begin
                process.kill()
    return seconds


def print_table(title: str, rows: dict[str, dict[str, Timing]]) -> None:
    """Print timings, a row for each measurement, ratios to the first column."""
    print()
    print_header([title, *next(iter(rows.values()))])
    for name, timings in rows.items():
        print_row([name, *(f"{t} ({t.ratio:.2f}x)" for t in timings.values())])


def measure_network(name: str, num_rounds: int) -> dict[str, Any]:
    """Check, time and print everything about the network of a configuration."""
    network = Network(name)
    errors = network.compare_outputs()
    print(f"\nconfigs/{name}.py, outputs differ from ours by {errors}", flush=True)
    assert max(errors.values()) < MAX_ERROR, errors
    result = {"errors": errors, "peak_megabytes": network.peak_megabytes()}
    print(f"peak of a training step, MB: {result['peak_megabytes']}")
    result["start"] = measure_start(name)
    print(f"seconds from start to first step: {result['start']}", flush=True)
    kinds = (
        ("training step", network.training, TRAINING_SIZES),
        ("inference", network.inference, INFERENCE_SIZES),
        ("loop, steps", network.loop, (8,)),
    )
    for kind, make, sizes in kinds:
        rows = {str(size): time_in_turn(make(size), num_rounds) for size in sizes}
        print_table(f"{kind}, ms", rows)
        result[kind] = rows
    return result


def main() -> None:
    """Measure everything; print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="configs/cpu.py, 3 rounds")
    parser.add_argument("--out", default="speed.json", help="where the JSON goes")
    arguments = parser.parse_args()
    keep_freed_memory()  # As main.py does. PyTorch gains by it, too.
    torch._dynamo.config.recompile_limit = 64  # One for each batch size.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    result = {"schema": 1, "environment": describe_environment("float32", 0)}
    result["environment"]["versions"]["torch"] = torch.__version__
    for name in ["cpu"] if arguments.quick else CONFIGS:
        result[name] = measure_network(name, 3 if arguments.quick else 5)
    text = json.dumps(result, indent=2, default=dataclasses.asdict)
    pathlib.Path(arguments.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
