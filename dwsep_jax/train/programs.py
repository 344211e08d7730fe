"""The compiled programs of an epoch, for one run or for several in one program.

A small network leaves most of an accelerator idle. Runs that differ only in leaves of
the state (seed, learning rate, weight decay, dropout rate, label smoothing) can be
trained together: the training step is vmapped over them, and each member keeps the data
order, augmentation and random bits of its lone run. With several devices, each device
trains its share of the members. A lone run's program is not vmapped.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.data.augment import make_augment
from dwsep_jax.environment import compiler_options, memory_bytes
from dwsep_jax.errors import DivergedError, UserError
from dwsep_jax.nn.counting import peak_bytes
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.step import TrainState, train_many

# Losses are read once this many later steps have been dispatched.
_MAX_PENDING_STEPS = 32
_AXIS = "members"

Steps = Callable[..., tuple[TrainState, Metrics, jax.Array]]


class EpochResult(NamedTuple):
    """What an epoch made of one member: its new state, and its means or its error."""

    state: TrainState
    means: dict[str, float]
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
        start = time.perf_counter()
        num_members = len(states)
        num_devices = count_devices(num_members) if num_members > 1 else 1
        self._per_member = self._replicated = None
        if num_devices > 1:
            mesh = _make_mesh(num_devices)
            self._per_member = NamedSharding(mesh, PartitionSpec(_AXIS))
            self._replicated = NamedSharding(mesh, PartitionSpec())
        self._arrays = self._place(
            {
                "image": jnp.asarray(dataset.train.images),
                "label": jnp.asarray(dataset.train.labels),
            },
            self._replicated,
        )
        steps = make_steps(config, len(dataset.class_names))
        remedy = (
            f"take a smaller --config.batch_size than {config.batch_size} or a smaller "
            "network, and another --workdir"
        )
        if num_members > 1:
            steps = vmap_steps(steps, num_devices)
            remedy = f"take members_at_once below {num_members}"
        order = jnp.zeros(len(dataset.train.labels), jnp.int32)
        arguments = self._pack(states, [True] * num_members, [order] * num_members)
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple(_describe_array(leaf, num_devices > 1) for leaf in leaves)
        self.programs = []
        whole, rest = divmod(
            dataset.steps_per_epoch(config.batch_size), config.steps_per_dispatch
        )
        for size, count in ((config.steps_per_dispatch, whole), (rest, rest > 0)):
            if count:
                program = _compile(steps, size, config.deterministic, structure, shapes)
                _check_memory(program, remedy)
                self.programs += [(size, program)] * count
        seconds = time.perf_counter() - start
        console.say(f"compiled the training step in {seconds:.1f} s")

    def train_epoch(
        self,
        states: Sequence[TrainState],
        is_active: Sequence[bool],
        orders: Sequence[jax.Array],
        progress: console.EpochProgress,
    ) -> list[EpochResult]:
        """Train the active members for an epoch; losses are read while later steps run.

        The epoch ends early once every active member has diverged.

        Args:
          states: one per member; a lone run's state is donated. Active members are at
            the start of an epoch, not necessarily the same one.
          is_active: members for which this is False are left as they are.
          orders: each member's permutation of the M training examples, int32 (M,).
          progress: is told of the steps.

        Returns:
          The result of each member, with the error that its lone run would raise.
        """
        done = [int(state.step) for state in states]
        errors: list[DivergedError | None] = [None] * len(states)

        def read(losses):
            losses = np.asarray(losses).reshape(len(states), -1)
            for i, member_losses in enumerate(losses):
                errors[i] = errors[i] or find_divergence(done[i], member_losses)
                done[i] += len(member_losses)
            progress.advance(losses.shape[1])

        state, total, *rest = self._pack(states, is_active, orders)
        pending, num_pending = deque(), 0
        for num_steps, program in self.programs:
            state, total, losses = program(state, total, *rest)
            pending.append(losses)
            num_pending += num_steps
            if num_pending > _MAX_PENDING_STEPS:
                num_pending -= pending[0].shape[-1]
                read(pending.popleft())
                if all(errors[i] for i in np.flatnonzero(is_active)):
                    break
        for losses in pending:
            read(losses)
        states, totals = self._unpack(state, total)
        means = [
            {name: float(value) for name, value in total.compute().items()}
            for total in totals
        ]
        return [EpochResult(*x) for x in zip(states, means, errors, strict=True)]

    def _pack(self, states, is_active, orders):
        """Return (state, total, arrays, order, [is_active]) as the programs take it."""
        totals = [Metrics.empty()] * len(states)
        if len(states) == 1:
            return states[0], totals[0], self._arrays, orders[0]
        stacked = stack(states), stack(totals), stack(orders), jnp.asarray(is_active)
        state, total, order, active = self._place(stacked, self._per_member)
        return state, total, self._arrays, order, active

    def _unpack(self, state, total):
        if state.step.ndim == 0:
            return [state], [total]
        if self._per_member is not None:
            state, total = jax.device_put((state, total), jax.devices()[0])
        return unstack(state), unstack(total)

    def _place(self, tree, sharding):
        return tree if sharding is None else jax.device_put(tree, sharding)


def make_steps(config: ConfigDict, num_classes: int) -> Steps:
    """Return `step.train_many` for a configuration, lacking only `num_steps`.

    Configurations with the same augmentation and batch size get the same function.
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


@functools.lru_cache(maxsize=8)
def vmap_steps(steps: Steps, num_devices: int = 1) -> Steps:
    """Turn the steps of one run into the steps of several members at once.

    Args:
      steps: as `make_steps` returns them: (state, total, data, order, num_steps=...) ->
        (state, total, losses).
      num_devices: each takes its share of the members.

    Returns:
      (states, totals, data, orders, is_active, num_steps=...) -> (states, totals,
      losses), where all but the data have a leading axis of N members. A step leaves
      members unchanged where `is_active`, bool (N,), is False.
    """

    def take(num_steps, state, total, arrays, order, is_active):
        before = (state, total)
        *after, losses = steps(*before, arrays, order, num_steps=num_steps)
        keep = partial(jnp.where, is_active)
        return *jax.tree.map(keep, tuple(after), before), losses

    def take_all(*arguments, num_steps):
        mapped = jax.vmap(partial(take, num_steps), in_axes=(0, 0, None, 0, 0))
        if num_devices == 1:
            return mapped(*arguments)
        per_member, replicated = PartitionSpec(_AXIS), PartitionSpec()
        return jax.shard_map(
            mapped,
            mesh=_make_mesh(num_devices),
            in_specs=(per_member, per_member, replicated, per_member, per_member),
            out_specs=per_member,
            check_vma=False,
        )(*arguments)

    return take_all


def count_devices(num_members: int) -> int:
    """Return how many devices the members are spread over: all of them, or one."""
    num_devices = jax.local_device_count()
    return num_devices if num_members % num_devices == 0 else 1


def _make_mesh(num_devices):
    return Mesh(np.array(jax.local_devices()[:num_devices]), (_AXIS,))


@jax.jit
def stack(trees: Sequence[Any]) -> Any:
    """Stack trees of the same structure along a new leading axis of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def unstack(tree: Any) -> list[Any]:
    """Return the tree of each member."""
    num_members = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(itemgetter(i), tree) for i in range(num_members)]


def _describe_array(array, with_sharding):
    sharding = array.sharding if with_sharding else None
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


@functools.lru_cache(maxsize=16)
def _compile(steps, num_steps, deterministic, structure, shapes):
    """Compile `num_steps` steps, once for all runs that share the program."""
    jitted = jax.jit(
        partial(steps, num_steps=num_steps),
        donate_argnums=(0, 1),
        compiler_options=compiler_options(deterministic),
    )
    return jitted.lower(*jax.tree.unflatten(structure, shapes)).compile()


def _check_memory(compiled, remedy):
    needed, available = peak_bytes(compiled), memory_bytes()
    if needed is not None and needed > available:
        raise UserError(
            f"a training step needs {needed / 2**30:.1f} GiB of memory, and there are "
            f"{available / 2**30:.1f}; {remedy}"
        )


def find_divergence(first_step: int, losses: np.ndarray) -> DivergedError | None:
    """Return the error that names the first step whose loss is not finite, if any.

    Args:
      first_step: number of steps taken before these.
      losses: of each step, as `train_many` returns them.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        return None
    return DivergedError(
        f"step {first_step + bad[0] + 1:,} left a loss or a parameter that is not "
        "finite; try a lower --config.learning_rate, or --config.clip_norm=1. What was "
        "saved after the epochs before is kept"
    )
