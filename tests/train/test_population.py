"""Members trained in one program: each leaves what its lone run would leave."""

from functools import partial

import jax.numpy as jnp
import pytest

from dwsep_jax import signals
from dwsep_jax.errors import DivergedError
from dwsep_jax.train import loop, programs, running, step
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.workdir import read_rows
from tests.train.test_loop import Interrupted
from tests.train.test_programs import assert_near, make_member, parts
from tests.train.test_stopping import signal_after

BAD_STEP, BAD_RATE = 8, 0.7  # The third step of the second epoch of member 2.


def explode(state, batch, train_step=step.train_step):
    """Make one step at this rate leave values that are not finite."""
    is_bad = state.opt_state[-1].learning_rate == jnp.float32(BAD_RATE)
    is_bad &= state.step == BAD_STEP - 1
    images = jnp.where(is_bad, jnp.inf, 1.0) * batch["image"]
    return train_step(state, batch | {"image": images})


class Trained:
    """Four members on two devices, interrupted and resumed.

    The first finishes, the second is pruned, a step of the third and an evaluation of
    the fourth diverge.
    """

    def __init__(self, directory, dataset, patch):
        patch.setattr(step, "train_step", explode)
        self.evaluate_epoch = running.evaluate_epoch
        self.append_row = running.append_row
        patch.setattr(running, "evaluate_epoch", self.evaluate)
        self.member_type = loop.Member
        patch.setattr(loop, "Member", self.open_member)
        self.configs = [make_member(i, num_epochs=3) for i in range(4)]
        self.configs[2].learning_rate = BAD_RATE
        self.workdirs = [directory / f"member{i}" for i in range(4)]
        self.asked = []
        with pytest.MonkeyPatch.context() as breaking:
            breaking.setattr(running, "append_row", self.interrupt)
            with pytest.raises(Interrupted):
                loop.train_members(self.configs, self.workdirs, dataset)
        self.lengths = [len(read_rows(workdir)) for workdir in self.workdirs]
        self.asked.clear()
        self.members = loop.train_members(self.configs, self.workdirs, dataset)
        self.asked_of_members = sorted(self.asked)

    def open_member(self, config, *arguments):
        return self.member_type(config, *arguments, partial(self.prune, config.seed))

    def prune(self, i, history):
        self.asked.append((i, len(history)))
        return i == 1 and len(history) == 2

    def evaluate(self, config, dataset, state):
        if config.seed == 3 and state.step == 10:
            raise DivergedError("val_loss is nan")
        return self.evaluate_epoch(config, dataset, state)

    def interrupt(self, workdir, row):
        if workdir == self.workdirs[1]:
            raise Interrupted
        self.append_row(workdir, row)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset):
    with pytest.MonkeyPatch.context() as patch:
        programs._compile.cache_clear()
        yield Trained(tmp_path_factory.mktemp("together"), dataset, patch)
        programs._compile.cache_clear()


def assert_same_files(workdir, lone, config, dataset):
    rows, others = read_rows(workdir), read_rows(lone)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"images_per_second", "elapsed_seconds"}:
            assert row[name] == pytest.approx(other[name], rel=1e-3), name
    text = (workdir / "config.json").read_text()
    assert text == (lone / "config.json").read_text()
    names = {path.name for path in workdir.iterdir()} - {"train.log"}
    assert names == {path.name for path in lone.iterdir()}
    like, restored = loop.make_state(config, dataset), []
    for directory in (workdir, lone):
        restored.append(Checkpoints(directory).restore_latest(like))
    assert restored[0].epoch == restored[1].epoch
    assert_near(*(parts(one.tree) for one in restored), 1e-3)


def test_a_member_leaves_the_files_of_its_lone_run(trained, dataset, tmp_path):
    config, workdir = trained.configs[0], trained.workdirs[0]
    loop.train_and_evaluate(config, tmp_path, on_test=False)
    assert_same_files(workdir, tmp_path, config, dataset)
    assert "epoch 3/3" in (workdir / "train.log").read_text()
    member = trained.members[0]
    assert (member.error, member.is_pruned) == (None, False)
    assert [{"schema": 1, **row} for row in member.history] == read_rows(workdir)


def test_a_member_diverges_as_its_lone_run(trained, dataset, tmp_path):
    config = trained.configs[2]
    with pytest.raises(DivergedError, match=f"^step {BAD_STEP} left a loss") as error:
        loop.train_and_evaluate(config, tmp_path, on_test=False)
    assert str(trained.members[2].error) == str(error.value)
    assert_same_files(trained.workdirs[2], tmp_path, config, dataset)
    assert str(trained.members[3].error) == "val_loss is nan"


def test_each_member_resumes_after_its_own_last_epoch(trained):
    # The second member's first row is missing, but not its checkpoint.
    assert trained.lengths == [1, 0, 0, 0]
    for member, length in zip(trained.members, (3, 2, 1, 1), strict=True):
        rows = read_rows(member.workdir)
        assert [row["epoch"] for row in rows] == [1, 2, 3][:length]
        assert [row["step"] for row in rows] == [5, 10, 15][:length]
        assert len(member.history) == length


def test_a_pruned_member_is_frozen_and_stays_pruned(trained, dataset, capsys):
    assert [member.is_pruned for member in trained.members] == [0, 1, 0, 0]
    # Asked after each epoch, those that were trained before included.
    asked = [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1), (3, 1)]
    assert trained.asked_of_members == asked
    some = trained.configs[:2], trained.workdirs[:2]
    members = loop.train_members(*some, dataset)
    assert [len(member.history) for member in members] == [3, 2]
    assert members[1].is_pruned
    assert "compiled" not in capsys.readouterr().out


def test_a_finished_member_is_a_finished_run(trained, capsys):
    workdir = trained.workdirs[0]
    rows = read_rows(workdir)
    loop.train_and_evaluate(trained.configs[0], workdir)
    assert read_rows(workdir) == rows
    shown = capsys.readouterr().out
    assert "finished after epoch 3, step 15" in shown
    assert "compiled" not in shown
    assert (workdir / "evaluation.json").exists()


def test_members_are_saved_at_the_epochs_end(trained, dataset, tmp_path, monkeypatch):
    workdirs = [tmp_path / str(i) for i in range(4)]
    signal_after(monkeypatch, [1])
    with signals.handled(), pytest.raises(signals.Stopped):
        loop.train_members(trained.configs, workdirs, dataset)
    for workdir in workdirs:
        assert [row["epoch"] for row in read_rows(workdir)] == [1]
        assert not (workdir / "partial").exists()


def test_runs_of_different_programs_are_refused(dataset, tmp_path):
    configs = [make_member(0), make_member(1, optimizer="adam")]
    workdirs = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(ValueError, match="do not share a program"):
        loop.train_members(configs, workdirs, dataset)
