"""The programs of an epoch: compiled once, dispatched without waiting."""

import functools
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.data.augment import make_augment
from dwsep_jax.environment import compiler_options, memory_bytes
from dwsep_jax.errors import DivergedError, UserError
from dwsep_jax.nn.counting import peak_bytes
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.step import Batch, TrainState, train_many

# With more steps than these under way, the losses of the first program are read.
_MAX_STEPS_UNDER_WAY = 32

Steps = Callable[..., tuple[TrainState, Metrics, jax.Array]]


class Program(NamedTuple):
    """Some steps: (state, total, arrays, permutation) -> (state, total, losses)."""

    num_steps: int
    run: Steps


def make_steps(config: ConfigDict, num_classes: int) -> Steps:
    """Return `step.train_many` for a configuration; it lacks only `num_steps`.

    Configurations that augment alike get the same function.
    """
    return _make_steps(
        config.batch_size,
        flip=config.flip,
        shift=config.shift,
        cutout_size=config.cutout,
        mixup_alpha=config.mixup,
        num_classes=num_classes,
    )


@functools.lru_cache(maxsize=8)
def _make_steps(batch_size, **augmentation):
    augment = make_augment(**augmentation)
    return partial(train_many, augment=augment, batch_size=batch_size)


def compile_programs(
    config: ConfigDict, dataset: data.Dataset, state: TrainState, arrays: Batch
) -> list[Program]:
    """Compile the programs whose steps, one after the other, make an epoch."""
    steps = make_steps(config, len(dataset.class_names))
    permutation = jax.ShapeDtypeStruct(dataset.train.labels.shape, jnp.int32)
    arguments = (state, Metrics.empty(), arrays, permutation)
    remedy = (
        f"take a smaller --config.batch_size than {config.batch_size} or a smaller "
        "network, and another --workdir"
    )
    return compile_steps(config, dataset, steps, arguments, remedy)


def compile_steps(
    config: ConfigDict,
    dataset: data.Dataset,
    steps: Steps,
    arguments: tuple[Any, ...],
    remedy: str,
) -> list[Program]:
    """Compile an epoch of some steps, for arguments like these.

    All programs take `steps_per_dispatch` steps but the last, which takes what is left.

    Args:
      config: resolved.
      dataset: has so many steps in an epoch.
      steps: called with the arguments and `num_steps`.
      arguments: arrays, or shapes with the sharding that the arrays will have.
      remedy: what to do where they need more memory than there is.

    Raises:
      UserError: if they do.
    """
    start = time.perf_counter()
    whole, rest = divmod(
        dataset.steps_per_epoch(config.batch_size), config.steps_per_dispatch
    )
    programs = []
    for num_steps, count in ((config.steps_per_dispatch, whole), (rest, min(rest, 1))):
        if count:
            leaves, structure = jax.tree.flatten(arguments)
            shapes = tuple(map(_shape_of, leaves))
            compiled = _compile(
                steps, num_steps, config.deterministic, structure, shapes
            )
            _check_memory(compiled, remedy)
            programs += [Program(num_steps, compiled)] * count
    console.say(f"compiled the training step in {time.perf_counter() - start:.1f} s")
    return programs


def _shape_of(leaf):
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
    return leaf if is_shape else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


@functools.lru_cache(maxsize=16)
def _compile(steps, num_steps, deterministic, structure, shapes):
    """Compile some steps, once for all runs that are one program."""
    jitted = jax.jit(
        partial(steps, num_steps=num_steps),
        donate_argnums=(0, 1),
        compiler_options=compiler_options(deterministic),
    )
    return jitted.lower(*jax.tree.unflatten(structure, shapes)).compile()


def _check_memory(compiled, remedy):
    """Raise `UserError` if the program needs more memory than there is."""
    needed, available = peak_bytes(compiled), memory_bytes()
    if needed is not None and needed > available:
        raise UserError(
            f"a training step needs {needed / 2**30:.1f} GiB of memory, and there are "
            f"{available / 2**30:.1f}; {remedy}"
        )


def train_epoch(
    programs: list[Program],
    state: TrainState,
    arrays: Batch,
    permutation: jax.Array,
    progress: console.EpochProgress,
) -> tuple[TrainState, dict[str, float]]:
    """Run the programs of an epoch, and read their losses late.

    Args:
      programs: as `compile_programs` returns them.
      state: the state before, which is given up.
      arrays: `image`, uint8 (M, H, W, C), and `label`, int (M,), on the device.
      permutation: the order of the M examples.
      progress: is told of the steps.

    Returns:
      The state after, and the means of the metrics over the epoch.

    Raises:
      DivergedError: naming the first step with a loss or parameter that is not finite.
    """
    done = int(state.step)

    def read(losses):
        nonlocal done
        check_finite(done, losses)
        done += len(losses)
        progress.advance(len(losses))

    arguments = (state, Metrics.empty(), arrays, permutation)
    state, total = dispatch(programs, arguments, read)
    return state, {name: float(value) for name, value in total.compute().items()}


def dispatch(
    programs: list[Program],
    arguments: tuple[Any, ...],
    read: Callable[[jax.Array], None],
) -> tuple[Any, Metrics]:
    """Run the programs, and have their losses read while later ones run.

    Args:
      programs: as `compile_steps` returns them.
      arguments: of the first: state, total, arrays, permutation.
      read: given the losses of each program.

    Returns:
      The last state and total.
    """
    state, total, *rest = arguments
    under_way, num_steps = deque(), 0
    for program in programs:
        state, total, losses = program.run(state, total, *rest)
        under_way.append((program.num_steps, losses))
        num_steps += program.num_steps
        if num_steps > _MAX_STEPS_UNDER_WAY:
            num_read, losses = under_way.popleft()
            num_steps -= num_read
            read(losses)
    for _, losses in under_way:
        read(losses)
    return state, total


def check_finite(first_step: int, losses: jax.Array) -> None:
    """Raise `DivergedError` naming the first step whose loss is not finite.

    Args:
      first_step: steps taken before these.
      losses: of each step, as `train_many` returns them.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise DivergedError(
            f"step {first_step + bad[0] + 1:,} left a loss or a parameter that is not "
            "finite; try a lower --config.learning_rate, or --config.clip_norm=1. What "
            "was saved after the epochs before is kept"
        )
