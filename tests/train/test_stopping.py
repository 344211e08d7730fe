"""SIGTERM, SIGINT and long epochs: a run saved in mid-epoch ends with the same bits."""

import dataclasses
import itertools
import os
import signal
import types
from functools import partial
from time import perf_counter

import pytest

from dwsep_jax import data, signals
from dwsep_jax.errors import ConfigError
from dwsep_jax.train import loop, running
from dwsep_jax.train.programs import EpochPrograms
from dwsep_jax.workdir import read_rows
from tests import tiny
from tests.train.test_loop import EVERYTHING, flip_bytes, restore, without_times

# Five steps an epoch: programs of 2, 2 and 1 of them. A part is saved after 10 minutes.
CONFIG = tiny.make_config(**EVERYTHING, steps_per_dispatch=2)


def train(workdir):
    loop.train_and_evaluate(CONFIG, workdir, on_test=False)
    state = restore(workdir, CONFIG, tiny.make_dataset())
    return tiny.bits(state), without_times(read_rows(workdir))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def signal_after(monkeypatch, dispatches, number=signal.SIGTERM):
    """Send a signal to this process while each of these dispatches runs."""
    count, init = itertools.count(1), EpochPrograms.__init__

    def spy(program, *inputs):
        if next(count) in dispatches:
            os.kill(os.getpid(), number)
        return program(*inputs)

    def spied(self, *arguments):
        init(self, *arguments)
        self.programs = [(n, partial(spy, program)) for n, program in self.programs]

    monkeypatch.setattr(EpochPrograms, "__init__", spied)


def stop(monkeypatch, workdir, dispatch, number=signal.SIGTERM):
    with monkeypatch.context() as patch, signals.handled():
        signal_after(patch, [dispatch], number)
        with pytest.raises(signals.Stopped) as stopped:
            train(workdir)
    assert stopped.value.args == (number,)


@pytest.mark.parametrize(
    ("number", "dispatch", "after", "step"),
    [(signal.SIGTERM, 1, 0, 2), (signal.SIGINT, 3, 1, 5), (signal.SIGINT, 5, 1, 9)],
)
def test_a_signal_saves_the_run_where_it_is(
    whole, tmp_path, monkeypatch, capsys, number, dispatch, after, step
):
    stop(monkeypatch, tmp_path, dispatch, number)
    assert "stopped; the same command resumes" in capsys.readouterr().out
    assert (tmp_path / "partial").exists() == (step != 5)
    assert train(tmp_path) == whole
    assert f"resuming after epoch {after}, step {step}\n" in capsys.readouterr().out
    assert not (tmp_path / "partial").exists()


def test_a_long_epoch_is_saved_between(whole, dataset, tmp_path, monkeypatch, capsys):
    seconds = itertools.count(step=7 * 60)
    clock = {"monotonic": lambda: next(seconds), "perf_counter": perf_counter}
    monkeypatch.setattr(running, "time", types.SimpleNamespace(**clock))
    with monkeypatch.context() as patch:
        patch.setattr(running, "append_row", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path)
    saved = capsys.readouterr().out
    assert "saved in epoch 1, after step 4" in saved
    assert "saved in epoch 1, after step 2" not in saved
    assert train(tmp_path) == whole
    loop.train_members([tiny.make_config()], [tmp_path / "logged"], dataset)
    assert "saved in epoch 1, " in (tmp_path / "logged" / "train.log").read_text()
    (tmp_path / "other").mkdir()
    with loop.Member(tiny.make_resolved(), tmp_path / "other", dataset) as member:
        for minutes, is_due in ((6.0, True), (0.0, False)):
            member.config.checkpoint_minutes = minutes
            assert member.is_due() == is_due


def test_a_damaged_part_is_passed_over(whole, tmp_path, monkeypatch, capsys):
    stop(monkeypatch, tmp_path, 5)
    flip_bytes(tmp_path / "partial" / "9" / "arrays")
    assert train(tmp_path) == whole
    shown = capsys.readouterr().out
    assert "passing over the damaged checkpoint partial/9: ValueError" in shown
    assert "resuming after epoch 1, step 5\n" in shown


def test_a_part_of_another_network_is_refused_and_kept(tmp_path, dataset, monkeypatch):
    stop(monkeypatch, tmp_path, 1)
    four = dataclasses.replace(dataset, class_names=tuple("abcd"))
    monkeypatch.setattr(data, "load", lambda config: four)
    with pytest.raises(ConfigError, match="partial/2 is of another network"):
        train(tmp_path)
    assert (tmp_path / "partial" / "2").exists()


def test_a_second_signal_does_not_wait(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, signals.handled():
        signal_after(patch, [1, 2])
        patch.setattr(loop.Member, "_save_part", lambda *arguments: signal_again())
        with pytest.raises(signals.Stopped):
            train(tmp_path)
    assert read_rows(tmp_path) == []

    def outside():
        with signals.handled():
            signal_again()

    with pytest.raises(signals.Stopped):
        outside()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def signal_again():
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("the signal was not raised at once")
