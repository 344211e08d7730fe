"""Many runs in one program: each member is what it would be alone."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwsep_jax import data, epoch, population, step, train
from dwsep_jax.checkpoint import Checkpoints
from dwsep_jax.errors import DivergedError
from dwsep_jax.metrics import Metrics
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
        self.configs = [
            train.resolve(make_member(i, conv=conv), dataset) for i in range(4)
        ]
        self.before = [step.make_train_state(c, dataset) for c in self.configs]
        self.arrays = train.on_device(dataset)
        self.steps = epoch.make_steps(self.configs[0], tiny.NUM_CLASSES)
        self.orders = [
            [
                data.epoch_permutation(step.make_run_keys(c.seed).order, e, 44)
                for c in self.configs
            ]
            for e in range(4)
        ]
        take = jax.jit(partial(self.steps, num_steps=5))
        first = jax.jit(partial(self.steps, num_steps=1))
        self.after_1, self.after_20 = [], []
        for i, state in enumerate(self.before):
            total = Metrics.empty()
            args = (self.arrays, self.orders[0][i])
            self.after_1.append(first(state, total, *args)[0])
            for e in range(4):
                state, total, _ = take(state, total, self.arrays, self.orders[e][i])
            self.after_20.append(state)
        assert take._cache_size() == 1


@pytest.fixture(scope="module", params=["separable", "standard"])
def alone(request, dataset):
    return Alone(dataset, request.param)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_members_are_their_lone_runs(alone, num_devices):
    assert population.count_devices(4) == 2
    steps = population.together(alone.steps, num_devices)
    members = population.Population(population.stack(alone.before), jnp.full(4, True))
    totals = population.stack([Metrics.empty()] * 4)
    orders = [population.stack(order) for order in alone.orders]
    first = jax.jit(partial(steps, num_steps=1))
    one, _, losses = first(members, totals, alone.arrays, orders[0])
    assert losses.shape == (4, 1)
    # What sgd has added up after a step is the gradient.
    gradients, lone = (
        [state.opt_state[0].trace for state in states]
        for states in (population.unstack(one.state), alone.after_1)
    )
    assert_near(gradients, lone, 1e-5)

    take = jax.jit(partial(steps, num_steps=5))
    for order in orders:
        members, totals, losses = take(members, totals, alone.arrays, order)
    assert losses.shape == (4, 5)
    assert len(members.state.step.sharding.device_set) == num_devices
    states = population.unstack(members.state)
    for got, want in zip(states, alone.after_20, strict=True):
        assert_near(parts(got), parts(want), 1e-3)
        assert int(got.step) == 20
    # They differ from each other.
    with pytest.raises(AssertionError):
        assert_near(parts(states[0]), parts(states[1]), 1e-1)


def test_a_member_that_is_not_active_does_not_change(alone):
    states = population.stack(alone.before[:2])
    members = population.Population(states, jnp.array([True, False]))
    totals = population.stack([Metrics.empty()] * 2)
    take = jax.jit(partial(population.together(alone.steps), num_steps=1))
    order = population.stack(alone.orders[0][:2])
    after, totals, _ = take(members, totals, alone.arrays, order)
    trained, frozen = population.unstack(after.state)
    assert_near([trained.params], [alone.after_1[0].params], 1e-5)
    for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(alone.before[1])):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert [int(t.loss.count) for t in population.unstack(totals)] == [8, 0]


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
    """Make a step of the member of this rate leave what is not finite."""
    is_bad = (state.opt_state[-1].learning_rate == jnp.float32(BAD_RATE)) & (
        state.step == BAD_STEP - 1
    )
    images = jnp.where(is_bad, jnp.inf, 1.0) * batch["image"]
    return train_step(state, batch | {"image": images})


class Trained:
    """Four members on two devices: two end, one is pruned, and one diverges."""

    def __init__(self, directory, dataset):
        self.configs = [make_member(i, num_epochs=3) for i in range(4)]
        self.configs[2].learning_rate = BAD_RATE
        self.workdirs = [directory / f"member{i}" for i in range(4)]
        self.asked = []
        self.outcomes = population.train_members(
            self.configs, self.workdirs, dataset, self.prune
        )

    def prune(self, i, history):
        self.asked.append((i, len(history)))
        return i == 1 and len(history) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "train_step", explode)
        epoch._compile.cache_clear()
        yield Trained(tmp_path_factory.mktemp("together"), dataset)
        epoch._compile.cache_clear()


def read_rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_schema(workdir):
    return [{k: v for k, v in r.items() if k != "schema"} for r in read_rows(workdir)]


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


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch, dataset):
    monkeypatch.setattr(data, "load", lambda config: dataset)
    monkeypatch.setattr(train, "draw_run", lambda workdir: None)


def test_a_member_leaves_the_files_of_its_lone_run(trained, dataset, tmp_path):
    config = trained.configs[0]
    train.train_and_evaluate(config, tmp_path, on_test=False)
    assert_same_files(trained.workdirs[0], tmp_path, config, dataset)
    assert trained.outcomes[0].error is None
    assert trained.outcomes[0].history == without_schema(trained.workdirs[0])


def test_a_member_diverges_as_its_lone_run(trained, dataset, tmp_path):
    config = trained.configs[2]
    with pytest.raises(DivergedError, match=f"^step {BAD_STEP} left a loss") as error:
        train.train_and_evaluate(config, tmp_path, on_test=False)
    assert str(trained.outcomes[2].error) == str(error.value)
    assert_same_files(trained.workdirs[2], tmp_path, config, dataset)


def test_a_member_is_finished_as_a_run_is(trained, dataset, capsys):
    workdir = trained.workdirs[3]
    rows = read_rows(workdir)
    assert "epoch 3/3" in (workdir / "train.log").read_text()
    train.train_and_evaluate(trained.configs[3], workdir)
    assert read_rows(workdir) == rows
    shown = capsys.readouterr().out
    assert "finished after epoch 3, step 15" in shown
    assert "compiled" not in shown
    assert json.loads((workdir / "evaluation.json").read_text())["epoch"] == 3
    # Then there is nothing left to train together either.
    outcomes = population.train_members([trained.configs[3]], [workdir], dataset)
    assert "compiled" not in capsys.readouterr().out
    assert len(outcomes[0].history) == 3


def test_a_pruned_member_is_frozen_and_the_others_go_on(trained):
    assert [outcome.is_pruned for outcome in trained.outcomes] == [0, 1, 0, 0]
    assert [len(outcome.history) for outcome in trained.outcomes] == [3, 1, 1, 3]
    lengths = [len(read_rows(workdir)) for workdir in trained.workdirs]
    assert lengths == [3, 1, 1, 3]
    assert sorted(trained.asked) == [
        *((0, 1), (0, 2), (0, 3)),
        (1, 1),
        (2, 1),
        *((3, 1), (3, 2), (3, 3)),
    ]


def test_members_broken_off_go_on_after_their_last_whole_epochs(
    trained, dataset, tmp_path, monkeypatch
):
    append_row = train.append_row
    workdirs = [tmp_path / f"member{i}" for i in range(4)]

    def stop(workdir, row):
        if workdir == workdirs[1] and row["epoch"] == 2:
            raise KeyboardInterrupt
        append_row(workdir, row)

    with monkeypatch.context() as patch:
        patch.setattr(train, "append_row", stop)
        with pytest.raises(KeyboardInterrupt):
            population.train_members(trained.configs, workdirs, dataset)
    # The checkpoint of the row that is missing is there.
    assert [len(read_rows(workdir)) for workdir in workdirs] == [2, 1, 1, 1]
    outcomes = population.train_members(trained.configs, workdirs, dataset)
    assert [len(outcome.history) for outcome in outcomes] == [3, 3, 1, 3]
    assert str(outcomes[2].error) == str(trained.outcomes[2].error)
    for i in (0, 3):
        assert_same_rows(read_rows(workdirs[i]), read_rows(trained.workdirs[i]))


def test_runs_of_two_programs_are_no_members(dataset, tmp_path):
    configs = [make_member(0), make_member(1, optimizer="adam")]
    workdirs = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(ValueError, match="not one program; `group` them first"):
        population.train_members(configs, workdirs, dataset)


def test_the_losses_of_an_evaluation_may_end_a_member(dataset, tmp_path, monkeypatch):
    evaluate_epoch = train.evaluate_epoch

    def fail(config, dataset, state):
        if config.seed == 1:
            raise DivergedError("val_loss is nan")
        return evaluate_epoch(config, dataset, state)

    monkeypatch.setattr(train, "evaluate_epoch", fail)
    configs = [make_member(i, num_epochs=1) for i in range(3)]
    workdirs = [tmp_path / f"{i}" for i in range(3)]
    outcomes = population.train_members(configs, workdirs, dataset)
    assert [str(outcome.error) for outcome in outcomes] == [
        *("None", "val_loss is nan", "None")
    ]
    assert [len(outcome.history) for outcome in outcomes] == [1, 0, 1]
