"""The compiled programs of an epoch, for one run or for several in one program.

A small network leaves most of an accelerator idle. Runs that differ only in leaves of
the state (seed, learning rate, weight decay, dropout rate, label smoothing) can be
trained together: the training step is vmapped over them, and each member keeps the data
order, augmentation and random bits of its lone run. With several devices, each device
trains its share of the members. A lone run's program is not vmapped; there, each device
takes its share of every batch, and the batch statistics are those of the whole.
"""

import functools
import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dwsep_jax import console, data, processes
from dwsep_jax.data.augment import make_augment
from dwsep_jax.environment import compiler_options, memory_bytes
from dwsep_jax.errors import ConfigError, DivergedError, UserError
from dwsep_jax.nn.counting import peak_bytes
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.step import TrainState, train_many

_PER_MEMBER, _SHARED = PartitionSpec("members"), PartitionSpec()
BATCH_AXIS = "batch"


class EpochResult(NamedTuple):
    """What an epoch or a part of it made of a member: its new state, sums, error."""

    state: TrainState
    total: Metrics
    error: DivergedError | None


class EpochPrograms:
    """The programs whose steps, one after the other, make up an epoch.

    Attributes:
      programs: (number of steps, compiled program) pairs in order of execution. Every
        program but the last takes `steps_per_dispatch` steps.
    """

    def __init__(
        self, config: ConfigDict, dataset: data.Dataset, states: Sequence[TrainState]
    ):
        """Compile the programs for members whose states look like these.

        Args:
          config: resolved; of any member.
          dataset: its training split is copied to the device.
          states: one per member; a single state makes the program of a lone run.

        Raises:
          UserError: if a step needs more memory than there is.
        """
        start, n = time.perf_counter(), len(states)
        self._mesh = make_mesh(n) if n > 1 else make_batch_mesh(config)
        images, labels = dataset.train.images, dataset.train.labels
        self._arrays = self._place({"image": images, "label": labels}, _SHARED)
        order = jnp.zeros(len(labels), jnp.int32)
        arguments = self._pack(states, [Metrics.empty()] * n, [True] * n, [order] * n)
        leaves, structure = jax.tree.flatten(arguments)
        compile_steps = partial(
            _compile,
            make_augment(config, len(dataset.class_names)),
            config.batch_size,
            self._mesh,
            config.deterministic,
            structure,
            tuple(map(self._describe, leaves)),
        )
        size = config.steps_per_dispatch
        self._steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
        whole, rest = divmod(self._steps_per_epoch, size)
        sizes = [size] * whole + [rest] * (rest > 0)
        self.programs = [(size, compile_steps(size)) for size in sizes]
        text = f"compiled the training step in {time.perf_counter() - start:.1f} s"
        if (needed := peak_bytes(self.programs[0][1])) is not None:
            _check_memory(needed, config.batch_size, leaves, n)
            text += f"; it needs {needed / 2**20:,.0f} MiB of memory"
        console.say(text)

    def train_epoch(
        self,
        states: Sequence[TrainState],
        totals: Sequence[Metrics],
        is_active: Sequence[bool],
        orders: Sequence[jax.Array],
        progress: console.EpochProgress,
        must_save: Callable[[], bool] = lambda: False,
    ) -> list[EpochResult]:
        """Train the active members for an epoch; no accelerator waits for their losses.

        The epoch ends early once every active member has diverged.

        Args:
          states: one per member; a lone run's state is donated. Active members are at
            the start of an epoch, not necessarily the same one; a lone run may be
            further on.
          totals: of the steps of each member's epoch so far.
          is_active: members for which this is False are left as they are.
          orders: each member's permutation of the M training examples, int32 (M,).
          progress: is told of the steps.
          must_save: asked after each program; True returns what there is by then.

        Returns:
          The result of each member, with the error that its lone run would raise.
        """
        done = [int(state.step) for state in states]
        errors: list[DivergedError | None] = [None] * len(states)

        def read(losses):
            losses = np.asarray(losses).reshape(len(states), -1)
            for i, bad in enumerate(~np.isfinite(losses)):
                if bad.any():
                    errors[i] = errors[i] or _make_error(done[i] + bad.argmax() + 1)
                done[i] += len(bad)
            progress.advance_steps(losses.shape[1])

        num_before = done[0] % self._steps_per_epoch if len(states) == 1 else 0
        progress.advance_steps(num_before)
        state, total, *rest = self._pack(states, totals, is_active, orders)
        pending = None  # Read while an accelerator runs the next.
        num_done = num_before // self.programs[0][0]
        for _, program in self.programs[num_done:]:
            state, total, losses = program(state, total, *rest)
            if pending is not None:
                read(pending)
                if all(errors[i] for i in np.flatnonzero(is_active)):
                    break
            pending = losses
            if must_save():
                break
        read(losses)
        if len(states) == 1:
            return [EpochResult(state, total, errors[0])]
        state, total = jax.device_put((state, total), jax.devices()[0])
        return list(map(EpochResult, unstack(state), unstack(total), errors))

    def _pack(self, states, totals, is_active, orders):
        """Return (state, total, arrays, order, [is_active]) as the programs take it."""
        if len(states) == 1:
            alone = states[0], totals[0], self._arrays, orders[0]
            return self._place(alone, _SHARED)
        stacked = stack(states), stack(totals), stack(orders), jnp.asarray(is_active)
        state, total, order, is_active = self._place(stacked, _PER_MEMBER)
        return state, total, self._arrays, order, is_active

    def _place(self, tree, spec):
        return processes.place(tree, self._mesh and NamedSharding(self._mesh, spec))

    def _describe(self, array):
        sharding = self._mesh and array.sharding
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


@functools.lru_cache(maxsize=16)
def _compile(
    augment, batch_size, mesh, deterministic, structure, shapes, num_steps
) -> jax.stages.Compiled:
    """Compile `num_steps` steps, once for all runs that share the program."""
    is_alone = mesh is None or mesh.axis_names == (BATCH_AXIS,)
    if mesh is not None and is_alone:
        sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXIS))
        augment = partial(_augment_shares, augment, sharding)
    steps = partial(
        train_many, augment=augment, batch_size=batch_size, num_steps=num_steps
    )
    jitted = jax.jit(
        steps if is_alone else vmap_steps(steps, mesh),
        donate_argnums=(0, 1),
        out_shardings=NamedSharding(mesh, _SHARED) if mesh and is_alone else None,
        compiler_options=compiler_options(deterministic),
    )
    return jitted.lower(*jax.tree.unflatten(structure, shapes)).compile()


def _augment_shares(augment, sharding, *arguments):
    """Augment a batch of which each device computes its share."""
    return jax.lax.with_sharding_constraint(augment(*arguments), sharding)


def count_devices(config: ConfigDict) -> int:
    """Return how many devices, of all processes, share the batches of a lone run.

    Raises:
      ConfigError: if there are fewer, or not the same number of each process, or the
        batch cannot be divided among them.
    """
    found, num_processes = jax.device_count(), jax.process_count()
    # A CPU is one device, unless somebody wants to try several.
    default = num_processes if jax.default_backend() == "cpu" else found
    size, n = config.batch_size, config.num_devices or default
    if n > found:
        raise ConfigError(
            f"--config.num_devices={n}: there are {found}; take at most that many"
        )
    if n % num_processes:
        raise ConfigError(
            f"--config.num_devices={n}: cannot be divided among {num_processes} "
            f"processes; take a multiple, at most {found}"
        )
    if size % n:
        sizes = " or ".join(str(s) for s in (size // n * n, -(-size // n) * n) if s)
        raise ConfigError(
            f"--config.batch_size={size} cannot be divided among {n} devices; take "
            f"{sizes}, or another --config.num_devices"
        )
    return n


def make_batch_mesh(config: ConfigDict) -> Mesh | None:
    """Return the devices that share the batches of a lone run; None if it has one."""
    n = count_devices(config)
    return Mesh(processes.first_devices(n), BATCH_AXIS) if n > 1 else None


def make_mesh(num_members: int) -> Mesh:
    """Return the devices that the members are spread over: all of them, or one."""
    devices = jax.local_devices()
    return Mesh(devices if num_members % len(devices) == 0 else devices[:1], "members")


def vmap_steps(steps: Callable, mesh: Mesh) -> Callable:
    """Turn the steps of one run into the steps of several members at once.

    Args:
      steps: (state, total, data, order) -> (state, total, losses), as `train_many`.
      mesh: each device takes its share of the members.

    Returns:
      (states, totals, data, orders, is_active) -> (states, totals, losses), where all
      but the data have a leading axis of N members. A step leaves members unchanged
      where `is_active`, bool (N,), is False.
    """

    def take(state, total, arrays, order, is_active):
        *after, losses = steps(state, total, arrays, order)
        keep = partial(jnp.where, is_active)
        return *jax.tree.map(keep, tuple(after), (state, total)), losses

    return jax.shard_map(
        jax.vmap(take, in_axes=(0, 0, None, 0, 0)),
        mesh=mesh,
        in_specs=(_PER_MEMBER, _PER_MEMBER, _SHARED, _PER_MEMBER, _PER_MEMBER),
        out_specs=_PER_MEMBER,
        check_vma=False,
    )


@jax.jit
def stack(trees: Sequence[Any]) -> Any:
    """Stack trees of the same structure along a new leading axis of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def unstack(tree: Any) -> list[Any]:
    """Return the tree of each member."""
    num_members = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(itemgetter(i), tree) for i in range(num_members)]


def _check_memory(needed, batch_size, inputs, num_members):
    """Raise `UserError` if a program needs more memory than there is."""
    available = memory_bytes()
    if needed <= available:
        return
    remedy = f"take members_at_once below {num_members}"
    if num_members == 1:
        # The rest grows with the batch.
        fixed = sum(leaf.nbytes for leaf in inputs)
        fitting = int(batch_size * (available - fixed) / max(1, needed - fixed))
        remedy = "take a smaller network"
        if fitting >= 1:  # A power of 2, to be on the safe side.
            size = 2 ** (fitting.bit_length() - 1)
            remedy += f" or, by this estimate, --config.batch_size={size}"
        remedy += ", and another --workdir"
    raise UserError(
        f"a training step needs {needed / 2**30:.1f} GiB of memory, and there are "
        f"{available / 2**30:.1f}; {remedy}"
    )


def _make_error(step):
    return DivergedError(
        f"step {step:,} left a loss or a parameter that is not finite; try a lower "
        "--config.learning_rate, or --config.clip_norm=1. What was saved after the "
        "epochs before is kept"
    )
