"""Many runs in one program: members that differ in leaves of the state alone.

A small network leaves most of an accelerator idle. `vmap` over the training steps takes
members of other seeds, learning rates, weight decays, dropout rates or label smoothing
through them at once; each keeps the order of the data, the augmentation and the random
bits of its lone run. Where there are several devices, each has members of its own.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections import defaultdict
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
from dwsep_jax.data import order
from dwsep_jax.errors import DivergedError
from dwsep_jax.train import loop
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.programs import (
    Steps,
    check_finite,
    compile_steps,
    dispatch,
    make_steps,
)
from dwsep_jax.train.start import print_start
from dwsep_jax.train.step import (
    TrainState,
    make_run_keys,
    make_train_state,
    static_fields,
)
from dwsep_jax.workdir import Row, open_workdir, seconds_left

_AXIS = "members"


class Population(NamedTuple):
    """Members on the device: each leaf has an axis of N members in front.

    Attributes:
      state: the states.
      is_active: bool (N,); what a step leaves as it is where it is False.
    """

    state: TrainState
    is_active: jax.Array


def group(configs: Sequence[ConfigDict]) -> list[list[int]]:
    """Return the indices of resolved configurations, those of one program together."""
    groups = defaultdict(list)
    for i, config in enumerate(configs):
        groups[static_fields(config)].append(i)
    return list(groups.values())


def limit_members(members_at_once: int | None) -> int:
    """Return how many members may be trained at once; None leaves it to the device."""
    if members_at_once is not None:
        return members_at_once
    # A CPU is busy with one.
    return 1 if jax.default_backend() == "cpu" else sys.maxsize


def count_devices(num_members: int) -> int:
    """Return how many devices so many members are spread over: all of them, or one."""
    num_devices = jax.local_device_count()
    return num_devices if num_members % num_devices == 0 else 1


@functools.lru_cache(maxsize=8)
def together(steps: Steps, num_devices: int = 1) -> Steps:
    """Return steps of all members at once, of those of one run.

    Args:
      steps: as `epoch.make_steps` returns them: (state, total, data, permutation,
        num_steps=...) -> (state, total, losses).
      num_devices: each takes its share of the members.

    Returns:
      The same of (Population, totals, data, permutations), with an axis of members in
      front of all but the data.
    """

    def take(num_steps, population, total, arrays, permutation):
        before = (population.state, total)
        *after, losses = steps(*before, arrays, permutation, num_steps=num_steps)
        keep = partial(jnp.where, population.is_active)
        state, total = jax.tree.map(keep, tuple(after), before)
        return population._replace(state=state), total, losses

    def take_all(*arguments, num_steps):
        mapped = jax.vmap(partial(take, num_steps), in_axes=(0, 0, None, 0))
        if num_devices == 1:
            return mapped(*arguments)
        spread, whole = PartitionSpec(_AXIS), PartitionSpec()
        return jax.shard_map(
            mapped,
            mesh=_mesh(num_devices),
            in_specs=(spread, spread, whole, spread),
            out_specs=spread,
            check_vma=False,
        )(*arguments)

    return take_all


def _mesh(num_devices):
    return Mesh(np.array(jax.local_devices()[:num_devices]), (_AXIS,))


@jax.jit
def stack(trees: Sequence[Any]) -> Any:
    """Return trees of one structure as one, with an axis of members in front."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def unstack(tree: Any) -> list[Any]:
    """Return the tree of each member."""
    num_members = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(itemgetter(i), tree) for i in range(num_members)]


class Programs:
    """The programs of an epoch of N members."""

    def __init__(
        self, config: ConfigDict, dataset: data.Dataset, states: Sequence[TrainState]
    ):
        """Compile them for states like these; the config is that of any member."""
        num_devices = count_devices(len(states))
        self._spread = self._whole = jax.local_devices()[0]
        if num_devices > 1:
            self._spread, self._whole = (
                NamedSharding(_mesh(num_devices), PartitionSpec(*axes))
                for axes in ((_AXIS,), ())
            )
        self._arrays = jax.device_put(loop.on_device(dataset), self._whole)
        orders = [jnp.zeros(len(dataset.train.labels), jnp.int32)] * len(states)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            self._arguments(states, [True] * len(states), orders),
        )
        steps = together(make_steps(config, len(dataset.class_names)), num_devices)
        remedy = f"take members_at_once below {len(states)}"
        self._programs = compile_steps(config, dataset, steps, shapes, remedy)

    def _arguments(self, states, is_active, permutations):
        totals = [Metrics.empty()] * len(states)
        population = Population(stack(states), jnp.asarray(is_active))
        placed = (population, stack(totals), stack(permutations))
        population, totals, permutations = jax.device_put(placed, self._spread)
        return population, totals, self._arrays, permutations

    def train_epoch(
        self,
        states: Sequence[TrainState],
        is_active: Sequence[bool],
        permutations: Sequence[jax.Array],
        progress: console.EpochProgress,
    ) -> tuple[list[TrainState], list[dict[str, float] | DivergedError]]:
        """Run the programs, as `epoch.train_epoch` does for one run.

        Args:
          states: of the members; an active one is at the start of an epoch of its own.
          is_active: the others are left as they are.
          permutations: each member's order of the M examples.
          progress: is told of the steps.

        Returns:
          The states after; of each member, the means of the metrics over the epoch, or
          the error that its lone run would raise.
        """
        done = [int(state.step) for state in states]
        errors = [None] * len(states)

        def read(losses):
            for i, member_losses in enumerate(np.asarray(losses)):
                try:
                    if errors[i] is None:
                        check_finite(done[i], member_losses)
                except DivergedError as error:
                    errors[i] = error
                done[i] += len(member_losses)
            progress.advance(losses.shape[1])

        arguments = self._arguments(states, is_active, permutations)
        population, totals = dispatch(self._programs, arguments, read)
        population, totals = jax.device_put((population, totals), jax.devices()[0])
        means = [
            {name: float(value) for name, value in total.compute().items()}
            for total in unstack(totals)
        ]
        results = [error or mean for error, mean in zip(errors, means, strict=True)]
        return unstack(population.state), results


class Outcome(NamedTuple):
    """What became of a member.

    Attributes:
      history: the rows of its epochs.
      error: that its lone run would have raised; None where there was none.
      is_pruned: whether it was given up.
    """

    history: list[Row]
    error: DivergedError | None
    is_pruned: bool


# Given the number of a member and the rows of its epochs: whether to give it up.
Prune = Callable[[int, list[Row]], bool]


def train_members(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[str | os.PathLike],
    dataset: data.Dataset,
    prune: Prune | None = None,
) -> list[Outcome]:
    """Train runs of one program together, each in a workdir of its own.

    Each leaves what `loop.train_and_evaluate` without `on_test` leaves, which then has
    nothing left to train, and a loop.log. Those that were broken off go on after their
    last whole epochs, which need not be the same. One that diverges, is pruned or ends
    early is frozen until the others have ended.

    Args:
      configs: of the runs.
      workdirs: theirs.
      dataset: of all.
      prune: asked after each epoch of each member.

    Raises:
      ValueError: if the runs are not one program: see `group`.
      UserError: as `loop.train_and_evaluate`, but for members that diverge.
    """
    with contextlib.ExitStack() as resources:
        members = [
            resources.enter_context(_open_member(config, workdir, dataset))
            for config, workdir in zip(configs, workdirs, strict=True)
        ]
        if len(group([member.config for member in members])) > 1:
            raise ValueError("the members are not one program; `group` them first")
        if any(member.is_active for member in members):
            _train(members, dataset, prune or (lambda i, history: False))
    return [Outcome(m.history, m.error, m.is_pruned) for m in members]


@dataclasses.dataclass
class _Member:
    """A run among others: its place, and what it has trained."""

    config: ConfigDict
    workdir: pathlib.Path
    checkpoints: Checkpoints
    write_event: Callable[[Row], None]
    state: TrainState
    history: list[Row]
    error: DivergedError | None = None
    is_pruned: bool = False

    def __post_init__(self):
        self._num_before = len(self.history)
        last = self.history[-1] if self.history else {"elapsed_seconds": 0.0}
        self._seconds_before = last["elapsed_seconds"]
        self._order_key = make_run_keys(self.config.seed).order

    @property
    def is_active(self):
        has_ended = self.error is not None or self.is_pruned
        return not has_ended and not loop.is_finished(self.config, self.history)

    def permute(self, num_examples):
        """Return the order of the examples in the next epoch."""
        return order.epoch_permutation(self._order_key, len(self.history), num_examples)

    def keep_epoch(self, state, row, seconds):
        """Keep what an epoch came to, as a lone run does; seconds: since the start."""
        row["elapsed_seconds"] = self._seconds_before + seconds
        self.state = loop.lower_rate_on_plateau(self.config, state, row["val_loss"])
        self.history.append(row)
        loop.save_epoch(self.workdir, self.checkpoints, self.state, self.history)
        self.write_event(row)
        num_epochs = self.config.num_epochs
        left = seconds_left(self.history, self._num_before, num_epochs)
        with console.logged(self.workdir / "train.log"):
            console.say(console.format_epoch(row, num_epochs, left))


@contextlib.contextmanager
def _open_member(config, workdir, dataset):
    workdir = pathlib.Path(workdir)
    config = open_workdir(workdir, config, partial(loop.resolve, dataset=dataset))
    with loop.claimed(workdir), Checkpoints(workdir) as checkpoints:
        with console.logged(workdir / "train.log"):
            state = make_train_state(config, dataset)
            print_start(config, dataset, state)
            state, history = loop.resume(config, workdir, checkpoints, state)
        with loop.open_events(config, workdir, history) as write_event:
            yield _Member(config, workdir, checkpoints, write_event, state, history)


def _train(members, dataset, prune):
    """Train the members until none is active."""
    config = members[0].config
    programs = Programs(config, dataset, [member.state for member in members])
    loop.compile_evaluation(config, dataset, members[0].state)
    steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    start = time.perf_counter()
    with console.EpochProgress(config, steps_per_epoch) as progress:
        while active := [i for i, member in enumerate(members) if member.is_active]:
            progress.start_epoch(min(len(members[i].history) for i in active))
            epoch_start = time.perf_counter()
            states, results = programs.train_epoch(
                [member.state for member in members],
                [member.is_active for member in members],
                [member.permute(len(dataset.train.labels)) for member in members],
                progress,
            )
            seconds = time.perf_counter() - epoch_start
            for i in active:
                member = members[i]
                try:
                    if isinstance(results[i], DivergedError):
                        raise results[i]
                    row = loop.make_row(
                        member.config, dataset, states[i], results[i], seconds
                    )
                except DivergedError as error:
                    member.error = error
                else:
                    member.keep_epoch(states[i], row, time.perf_counter() - start)
                    member.is_pruned = prune(i, member.history)
