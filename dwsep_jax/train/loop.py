"""The training loop, for one run or for several in one program.

A run is a `Member`, and `train` takes a list of members through the loop; a lone run is
a list of one. Only the compiled program differs: see `programs`.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from functools import partial

import jax
from ml_collections import ConfigDict

from dwsep_jax import console, data, launch, processes, signals
from dwsep_jax.config import flatten, from_dict
from dwsep_jax.diagnose import write_diagnosis
from dwsep_jax.environment import memory_bytes
from dwsep_jax.errors import ConfigError
from dwsep_jax.fields import CHANGE_NOTHING
from dwsep_jax.report.figures import LAST_FIGURE, draw_run
from dwsep_jax.train import evaluation, optim, output
from dwsep_jax.train.programs import EpochPrograms, count_devices, make_batch_mesh
from dwsep_jax.train.running import Member
from dwsep_jax.train.step import make_state, static_fields
from dwsep_jax.train.weights import load_weights
from dwsep_jax.workdir import claimed, open_workdir


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, on_test: bool = True
) -> None:
    """Train as `config` says, evaluate on test, and leave the files in `workdir`.

    An interrupted run resumes after its last complete epoch. A finished run is not
    trained again, and its result is printed again. With `on_test=False` the run is only
    trained, for decisions on validation; a later call evaluates it.

    Raises:
      UserError: if the workdir belongs to another configuration or is in use by another
        process, data are missing, or training diverges.
    """
    # Process 0 prepares and decodes the data for all that share its disk.
    dataset = processes.in_turn(partial(data.load, config))
    fields = {n: v for n, v in flatten(config).items() if n not in CHANGE_NOTHING}
    processes.check_same(fields, str(workdir), dataset.checksum)
    with open_member(config, workdir, dataset) as member:
        train([member])
        if member.error is not None:
            raise member.error
        if on_test:
            evaluate_on_test(member)


def train_members(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[str | os.PathLike],
    dataset: data.Dataset,
) -> list[Member]:
    """Train several runs in one program, each in its own workdir.

    Each leaves what `train_and_evaluate` leaves with `on_test=False`, and a train.log.
    Interrupted members resume after their own last complete epochs. A member that
    diverges or finishes early is frozen until the others have finished.

    Raises:
      ValueError: if the runs do not share a program: see `step.static_fields`.
      UserError: as for `train_and_evaluate`, but not for members that diverge.
    """
    with contextlib.ExitStack() as stack:
        members = []
        for config, workdir in zip(configs, workdirs, strict=True):
            log = pathlib.Path(workdir, "train.log")
            member = open_member(config, workdir, dataset, log)
            members.append(stack.enter_context(member))
        if len({static_fields(member.config) for member in members}) > 1:
            raise ValueError("the members do not share a program")
        train(members)
    return members


def train(members: Sequence[Member]) -> None:
    """Train members until each has finished, diverged or been pruned.

    They share a program and a dataset; each has its own progress. A lone run that is
    told to stop is saved at once, several at the end of the epoch.

    Raises:
      signals.Stopped: after a SIGINT or SIGTERM; everything is saved.
    """
    if not any(member.is_active for member in members):
        return
    config, dataset = members[0].config, members[0].dataset
    programs = EpochPrograms(config, dataset, [member.state for member in members])
    evaluation.compile_evaluation(config, dataset, members[0].state)
    start, num_steps = time.perf_counter(), dataset.steps_per_epoch(config.batch_size)
    progress = console.EpochProgress(config, num_steps)
    with signals.deferred() as stop, progress:
        vote = processes.Vote(make_batch_mesh(config))

        def must_save():
            is_due = bool(stop) or members[0].is_due()
            return len(members) == 1 and vote.later(int(is_due)) > 0

        # The number of a signal, by which all processes stop, or 0.
        while not (signal := vote.now(stop[0] if stop else 0)) and (
            active := [m for m in members if m.is_active]
        ):
            progress.start_epoch(min(len(member.history) for member in active))
            epoch_start = time.perf_counter()
            results = programs.train_epoch(
                [member.state for member in members],
                [member.total for member in members],
                [member.is_active for member in members],
                [member.permute() for member in members],
                progress,
                must_save,
            )
            seconds = time.perf_counter() - epoch_start
            for member, result in zip(members, results, strict=True):
                if member.is_active:
                    member.save(result, seconds, start)
        if signal:
            console.say("stopped; the same command resumes")
            stopped = signals.Stopped(signal)
            stopped.is_told = True
            raise stopped


@contextlib.contextmanager
def open_member(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: data.Dataset,
    log: pathlib.Path | None = None,
) -> Iterator[Member]:
    """Open the run of a requested configuration, for this process alone."""
    with contextlib.ExitStack() as stack:

        def open_files():
            found = open_workdir(workdir, config, partial(resolve, dataset=dataset))
            stack.enter_context(claimed(workdir))
            return found.to_dict()

        resolved = from_dict(processes.from_first(open_files))
        yield stack.enter_context(Member(resolved, workdir, dataset, log))


def resolve(config: ConfigDict, dataset: data.Dataset) -> ConfigDict:
    """Return the configuration with every unset value set.

    Raises:
      ConfigError: if it cannot be trained on this dataset or with this memory.
    """
    config = optim.resolve(config)
    if config.steps_per_dispatch is None:
        # On CPU a loop of 8 steps made 0.7 to 1.0 of the images/s of single ones (2
        # cores, configs/cpu.py). Elsewhere not measured: there, a dispatch costs more.
        config.steps_per_dispatch = 1 if jax.default_backend() == "cpu" else 16
    parts = config.accumulate * count_devices(config)
    if config.batch_size % parts:
        raise ConfigError(
            f"--config.accumulate={config.accumulate}: batch_size={config.batch_size} "
            f"cannot be divided into {parts} parts; take another of the two"
        )
    side = min(dataset.train.images.shape[1:3])
    for field, limit in (("shift", side - 1), ("cutout", side)):
        if config[field] > limit:
            raise ConfigError(
                f"{field}={config[field]} leaves nothing of images of {side} pixels; "
                f"take at most {limit}"
            )
    if dataset.steps_per_epoch(config.batch_size) == 0:
        raise ConfigError(
            f"batch_size={config.batch_size} is more than the "
            f"{len(dataset.train.labels)} training images; take a smaller one"
        )
    state = make_state(config, dataset, abstract=True)
    _check_memory(config, state)
    if config.init_from:
        load_weights(config, state)
    return config


def _check_memory(config, state):
    state_bytes, parameter_bytes = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (state, state.params)
    )
    # The gradients take as much as the parameters.
    if state_bytes + parameter_bytes > memory_bytes():
        raise ConfigError(
            f"growth_rate={config.growth_rate} and block_sizes={config.block_sizes} "
            f"make {parameter_bytes // 4:,} parameters; training them needs more than "
            f"the {memory_bytes() / 2**30:.0f} GiB of memory here; reduce either"
        )


def evaluate_on_test(member: Member) -> None:
    """Evaluate a trained member on test; write, draw, diagnose and print the result."""
    config, workdir, state = member.config, member.workdir, member.state
    if config.early_stopping:
        like = processes.localize(state)
        checkpoints = member.checkpoints
        restore = partial(evaluation.restore_to_evaluate, config, checkpoints, like)
        state = processes.tree_from_first(restore, like)
    epoch = int(state.step) // member.dataset.steps_per_epoch(config.batch_size)
    if config.early_stopping:
        output.print_stop(config, member.history, epoch)
    # If this process has trained, what is there may be of an earlier epoch.
    has_trained = len(member.history) > member.num_resumed
    read = partial(evaluation.read_evaluation, workdir, epoch)
    found = None if has_trained else processes.from_first(read)
    last_figure = workdir / LAST_FIGURE
    if found is None:
        arguments = (member.dataset, state, "test", member.network)
        evaluation.evaluate_and_write(config, workdir, *arguments)
    if not launch.is_first():
        return
    if found is None:
        last_figure.unlink(missing_ok=True)
    else:
        console.print_evaluation(found, member.network)
    if not last_figure.exists():
        draw_run(workdir)
    diagnosis = write_diagnosis(workdir)
    console.say(f"diagnosis: {diagnosis['verdict']}. {diagnosis['advice']}")
    console.say(f"files: {workdir}")
