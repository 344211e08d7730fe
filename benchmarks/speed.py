"""Is a separable network as fast as its arithmetic promises? Ours, Flax, PyTorch.

The same networks with the same weights: ours, plain Flax (`nn.Conv` with
`feature_group_count`, `nn.BatchNorm`), PyTorch eager and compiled (channels_last), with
the same number of threads. Their outputs are compared first; then they are timed in
turn, in one process; a ratio is the median over the rounds. CPUs use float32, GPUs
bfloat16 (PyTorch by autocast). Prints Markdown and writes speed.json. About 20 minutes
on 2 CPU cores; `benchmarks.shapes` measures single convolutions.

    python -m benchmarks.speed

With `--quick`, a few rounds of configs/cpu.py alone (of separable.py on a GPU). Needs
the extra `bench`.
"""

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
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import plain, timing, torch_net
from benchmarks.torch_net import ON_GPU, run_torch, to_torch
from configs import cpu, separable
from dwsep_jax.environment import describe_environment
from dwsep_jax.nn.counting import peak_bytes
from dwsep_jax.train import loop, optim
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
        net = torch_net.make_torch_net(model, separable=True)
        torch_net.load(net, _variables(self.states["plain Flax"]))
        net = net.to(torch_net.DEVICE, memory_format=torch.channels_last)
        compiled = torch.compile(net, dynamic=False)
        self.torch = {"PyTorch eager": net, "PyTorch compiled": compiled}

    def inference(self, size: int) -> timing.Contenders:
        """Return one forward pass of each, with running statistics."""
        images = timing.make_batch(size)["image"]
        tensor = to_torch(images)

        def infer(net):
            net.eval()
            with torch.no_grad():
                return net(tensor)

        return self._make_contenders(
            lambda state: timing.compile_jax(state.apply_fn, _variables(state), images),
            lambda net: partial(infer, net),
        )

    def training(self, size: int) -> timing.Contenders:
        """Return a training step of each, on one batch."""
        batch = timing.make_batch(size)
        images = to_torch(batch["image"])
        labels = torch.from_numpy(np.array(batch["label"], np.int64)).to(images.device)

        def make_step(net):
            optimizer = torch.optim.SGD(
                net.parameters(),
                lr=self.config.learning_rate,
                momentum=self.config.momentum,
                nesterov=True,
                weight_decay=self.config.weight_decay,
            )

            def step():
                net.train()
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(net(images), labels).backward()
                optimizer.step()

            return step

        return self._make_contenders(partial(timing.jax_step, batch=batch), make_step)

    def _make_contenders(self, make_jax, make_torch):
        calls = {name: make_jax(state) for name, state in self.states.items()}
        nets = self.torch.items()
        return calls | {name: run_torch(make_torch(net)) for name, net in nets}

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

    def loop(self, num_steps: int) -> timing.Contenders:
        """Return an epoch of the training loop, and as many steps on a ready batch."""
        size, state = self.config.batch_size, self.states["ours"]
        dataset = timing.make_dataset(num_steps * size)
        step = timing.jax_step(state, timing.make_batch(size))
        config = loop.resolve(self.config, dataset)
        return {
            "loop": timing.jax_epoch(config, dataset, [state]),
            "steps alone": lambda: [step() for _ in range(num_steps)],
        }

    def peak_megabytes(self) -> dict[str, float]:
        """Return the peak memory that XLA plans for a training step of each."""
        step, batch = jax.jit(train_step), timing.make_batch(self.config.batch_size)
        return {
            name: peak_bytes(step.lower(state, batch).compile()) / 1e6
            for name, state in self.states.items()
        }


def _variables(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def measure_start(name: str) -> dict[str, float]:
    """Return seconds from the start of main.py until a step of the network can run.

    On digits, with an empty and then with a full compilation cache.
    """
    command = [sys.executable, "-m", "dwsep_jax", f"--config={name}"]
    for change in ("dataset=digits", "validation_size=100", "num_epochs=1"):
        command.append(f"--config.{change}")
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        for key in ("first", "second"):
            begin = time.perf_counter()
            words = [*command, f"--workdir={cache}/{key}"]
            options = {"env": environment, "stdout": subprocess.PIPE, "text": True}
            with subprocess.Popen(words, **options) as process:
                assert any("compiled the training" in line for line in process.stdout)
                seconds[key] = time.perf_counter() - begin
                process.kill()
    return seconds


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
        result[kind] = {}
        for size in sizes:
            result[kind][size] = timings = timing.time_in_turn(make(size), num_rounds)
            if size == sizes[0]:
                print()
                timing.print_header(f"{kind}, ms", *timings)
            timing.print_row(size, *(f"{t} ({t.ratio:.2f}x)" for t in timings.values()))
    return result


def main() -> None:
    """Measure everything; print Markdown, write JSON."""
    arguments = timing.start(__doc__, quick=False, out="speed.json")
    result = {"schema": 1, "environment": describe_environment("float32", 0)}
    result["environment"]["versions"]["torch"] = torch.__version__
    quick = ["separable" if ON_GPU else "cpu"]
    for name in quick if arguments.quick else CONFIGS:
        result[name] = measure_network(name, 3 if arguments.quick else 5)
    text = json.dumps(result, indent=2, default=dataclasses.asdict)
    pathlib.Path(arguments.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
