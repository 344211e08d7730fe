"""Many runs in one program: each member is what it would be alone."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwsep_jax import data
from dwsep_jax.data import order
from dwsep_jax.errors import DivergedError
from dwsep_jax.train import loop, population, programs, step
from dwsep_jax.train.checkpoint import Checkpoints, checksums
from dwsep_jax.train.metrics import Metrics
from tests import tiny


@pytest.fixture(scope="module")
def dataset():
    return tiny.make_dataset()


def make_member(i, **changes):
    """Return a configuration that differs from all others in what may differ."""
    varied = {
        "seed": i,
        "learning_rate": 0.05 * (i + 1),
        "weight_decay": 0.01 * i,
        "dropout_rate": 0.1 * (i + 1),
        "label_smoothing": 0.05 * (i + 1),
    }
    return tiny.make_config(**{"num_epochs": 4} | varied | changes)


def assert_near(trees, others, tolerance):
    """Compare by the norm of the difference, relative to that of the others."""
    for tree, other in zip(trees, others, strict=True):
        a, b = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)], dtype=np.float64)
            for t in (tree, other)
        )
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def parts(state):
    return state.params, state.batch_stats, state.opt_state


class Alone:
    """Four members, each trained alone for 20 steps, by one program."""

    def __init__(self, dataset, conv):
        configs = [loop.resolve(make_member(i, conv=conv), dataset) for i in range(4)]
        self.before = [step.make_train_state(c, dataset) for c in configs]
        self.arrays = loop.on_device(dataset)
        self.steps = programs.make_steps(configs[0], tiny.NUM_CLASSES)
        keys = [step.make_run_keys(c.seed).order for c in configs]
        self.orders = [
            [order.epoch_permutation(key, i, 44) for key in keys] for i in range(4)
        ]
        take = jax.jit(partial(self.steps, num_steps=1))
        self.after_1, self.after_20 = [], []
        for i, state in enumerate(self.before):
            for epoch in np.repeat(np.arange(4), 5):
                state, _, _ = take(
                    state, Metrics.empty(), self.arrays, self.orders[epoch][i]
                )
                if state.step == 1:
                    self.after_1.append(state)
            self.after_20.append(state)
        assert take._cache_size() == 1
        self.take = {num_devices: self.make_take(num_devices) for num_devices in (1, 2)}

    def make_take(self, num_devices):
        """Return a step of all: (population, epoch) -> (population, totals, losses)."""
        steps = population.together(self.steps, num_devices)
        jitted = jax.jit(partial(steps, num_steps=1))

        def take(members, epoch):
            totals = population.stack([Metrics.empty()] * 4)
            orders = population.stack(self.orders[epoch])
            return jitted(members, totals, self.arrays, orders)

        return take


@pytest.fixture(scope="module", params=["separable", "standard"])
def alone(request, dataset):
    return Alone(dataset, request.param)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_members_are_their_lone_runs(alone, num_devices):
    assert population.count_devices(4) == 2
    take = alone.take[num_devices]
    members = population.Population(population.stack(alone.before), jnp.full(4, True))
    for i in range(20):
        members, _, losses = take(members, i // 5)
        assert losses.shape == (4, 1)
        if i == 0:
            # What sgd has added up after a step is the gradient.
            gradients, lone = (
                [state.opt_state[0].trace for state in states]
                for states in (population.unstack(members.state), alone.after_1)
            )
            assert_near(gradients, lone, 1e-5)
    assert len(members.state.step.sharding.device_set) == num_devices
    states = population.unstack(members.state)
    for got, want in zip(states, alone.after_20, strict=True):
        assert_near(parts(got), parts(want), 1e-3)
        assert int(got.step) == 20
    # They differ from each other.
    with pytest.raises(AssertionError):
        assert_near(parts(states[0]), parts(states[1]), 1e-1)


def test_a_member_that_is_not_active_does_not_change(alone):
    is_active = jnp.array([True, False, True, True])
    members = population.Population(population.stack(alone.before), is_active)
    after, totals, _ = alone.take[1](members, 0)
    trained, frozen, *_ = population.unstack(after.state)
    assert_near([trained.params], [alone.after_1[0].params], 1e-5)
    assert checksums(frozen) == checksums(alone.before[1])
    assert [int(t.loss.count) for t in population.unstack(totals)] == [8, 0, 8, 8]


def test_groups_are_told_apart_by_what_is_static():
    configs = [
        tiny.make_resolved(),
        tiny.make_resolved(seed=1, learning_rate=0.3, weight_decay=0.1),
        tiny.make_resolved(conv="standard"),
        tiny.make_resolved(dropout_rate=0.5),
        tiny.make_resolved(dropout_rate=0.0),
        tiny.make_resolved(label_smoothing=0.1),
        tiny.make_resolved(label_smoothing=0.2, dropout_rate=0.1, seed=3),
        tiny.make_resolved(optimizer="adam"),
        tiny.make_resolved(dropout_rate=0.0, seed=5),
    ]
    assert population.group(configs) == [[0, 1, 3], [2], [4, 8], [5, 6], [7]]


BAD_STEP, BAD_RATE = 8, 0.7  # The third step of the second epoch of member 2.


def explode(state, batch, train_step=step.train_step):
    """Make a step at this rate leave what is not finite."""
    is_bad = state.opt_state[-1].learning_rate == jnp.float32(BAD_RATE)
    is_bad &= state.step == BAD_STEP - 1
    images = jnp.where(is_bad, jnp.inf, 1.0) * batch["image"]
    return train_step(state, batch | {"image": images})


class Trained:
    """Four members on two devices, broken off and gone on with.

    The first ends; the second is pruned; a step, and an evaluation, of the others
    leaves what is not finite.
    """

    def __init__(self, directory, dataset, patch):
        patch.setattr(data, "load", lambda config: dataset)
        patch.setattr(loop, "draw_run", lambda workdir: None)
        patch.setattr(step, "train_step", explode)
        self.evaluate_epoch, self.append_row = loop.evaluate_epoch, loop.append_row
        patch.setattr(loop, "evaluate_epoch", self.evaluate)
        self.configs = [make_member(i, num_epochs=3) for i in range(4)]
        self.configs[2].learning_rate = BAD_RATE
        self.workdirs = [directory / f"member{i}" for i in range(4)]
        self.asked = []
        arguments = (self.configs, self.workdirs, dataset, self.prune)
        with pytest.MonkeyPatch.context() as breaking:
            breaking.setattr(loop, "append_row", self.break_off)
            with pytest.raises(KeyboardInterrupt):
                population.train_members(*arguments)
        self.lengths = [len(read_rows(workdir)) for workdir in self.workdirs]
        self.outcomes = population.train_members(*arguments)

    def evaluate(self, config, dataset, state):
        if config.seed == 3 and state.step == 10:
            raise DivergedError("val_loss is nan")
        return self.evaluate_epoch(config, dataset, state)

    def break_off(self, workdir, row):
        if workdir == self.workdirs[1]:
            raise KeyboardInterrupt
        self.append_row(workdir, row)

    def prune(self, i, history):
        self.asked.append((i, len(history)))
        return i == 1 and len(history) == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset):
    with pytest.MonkeyPatch.context() as patch:
        programs._compile.cache_clear()
        yield Trained(tmp_path_factory.mktemp("together"), dataset, patch)
        programs._compile.cache_clear()


def read_rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_rows(rows, others):
    times = ("images_per_second", "elapsed_seconds")
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - set(times):
            assert row[name] == pytest.approx(other[name], rel=1e-3), name


def restore(workdir, config, dataset):
    state = step.make_train_state(config, dataset)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore_latest(state)


def assert_same_files(workdir, lone, config, dataset):
    assert_same_rows(read_rows(workdir), read_rows(lone))
    text = (workdir / "config.json").read_text()
    assert text == (lone / "config.json").read_text()
    names = {path.name for path in workdir.iterdir()} - {"train.log"}
    assert names == {path.name for path in lone.iterdir()}
    kept, want = (restore(w, config, dataset) for w in (workdir, lone))
    assert kept.epoch == want.epoch
    assert_near(parts(kept.tree), parts(want.tree), 1e-3)


def test_a_member_leaves_the_files_of_its_lone_run(trained, dataset, tmp_path):
    config, workdir = trained.configs[0], trained.workdirs[0]
    loop.train_and_evaluate(config, tmp_path, on_test=False)
    assert_same_files(workdir, tmp_path, config, dataset)
    assert "epoch 3/3" in (workdir / "train.log").read_text()
    outcome = trained.outcomes[0]
    assert (outcome.error, outcome.is_pruned) == (None, False)
    assert [{"schema": 1, **row} for row in outcome.history] == read_rows(workdir)


def test_a_member_diverges_as_its_lone_run(trained, dataset, tmp_path):
    config = trained.configs[2]
    with pytest.raises(DivergedError, match=f"^step {BAD_STEP} left a loss") as error:
        loop.train_and_evaluate(config, tmp_path, on_test=False)
    assert str(trained.outcomes[2].error) == str(error.value)
    assert_same_files(trained.workdirs[2], tmp_path, config, dataset)
    assert str(trained.outcomes[3].error) == "val_loss is nan"
    assert len(read_rows(trained.workdirs[3])) == 1


def test_members_broken_off_go_on_each_after_its_own_last_epoch(trained):
    # The second member's row is missing, and its checkpoint is there.
    assert trained.lengths == [1, 0, 0, 0]
    lengths = [len(read_rows(workdir)) for workdir in trained.workdirs]
    assert lengths == [len(outcome.history) for outcome in trained.outcomes]
    assert lengths == [3, 2, 1, 1]
    for workdir in trained.workdirs:
        rows = read_rows(workdir)
        assert [row["epoch"] for row in rows] == [1, 2, 3][: len(rows)]
        assert [row["step"] for row in rows] == [5, 10, 15][: len(rows)]


def test_a_pruned_member_is_frozen_and_the_others_go_on(trained):
    assert [outcome.is_pruned for outcome in trained.outcomes] == [0, 1, 0, 0]
    asked = [(0, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 1)]
    assert sorted(trained.asked) == asked


def test_a_member_is_finished_as_a_run_is(trained, dataset, capsys):
    workdir = trained.workdirs[0]
    rows = read_rows(workdir)
    loop.train_and_evaluate(trained.configs[0], workdir)
    assert read_rows(workdir) == rows
    shown = capsys.readouterr().out
    assert "finished after epoch 3, step 15" in shown
    assert "compiled" not in shown
    assert json.loads((workdir / "evaluation.json").read_text())["epoch"] == 3
    # Then there is nothing left to train together either.
    outcomes = population.train_members([trained.configs[0]], [workdir], dataset)
    assert "compiled" not in capsys.readouterr().out
    assert len(outcomes[0].history) == 3


def test_runs_of_two_programs_are_no_members(trained, dataset, tmp_path):
    configs = [make_member(0), make_member(1, optimizer="adam")]
    workdirs = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(ValueError, match="not one program; `group` them first"):
        population.train_members(configs, workdirs, dataset)
