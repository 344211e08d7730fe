"""SIGTERM, SIGINT and long epochs: a run saved in mid-epoch ends with the same bits."""

import dataclasses
import itertools
import os
import signal
import time
import types
from functools import partial

import pytest

from dwsep_jax import data, signals
from dwsep_jax.errors import ConfigError
from dwsep_jax.train import loop, running
from dwsep_jax.train.programs import EpochPrograms
from tests import tiny
from tests.train.test_loop import (
    EVERYTHING,
    flip_bytes,
    read_rows,
    restore,
    without_times,
)
from tests.train.test_programs import make_member

# Five steps an epoch: programs of 2, 2 and 1 of them.
CONFIG = tiny.make_config(**EVERYTHING, steps_per_dispatch=2, checkpoint_minutes=0.0)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())
    monkeypatch.setattr(loop, "draw_run", lambda workdir: None)


def train(workdir, config=CONFIG):
    loop.train_and_evaluate(config, workdir, on_test=False)
    state = restore(workdir, config, tiny.make_dataset())
    return tiny.bits(state), without_times(read_rows(workdir))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda config: tiny.make_dataset())
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


@pytest.mark.parametrize(
    ("number", "dispatch", "after", "step"),
    [
        (signal.SIGTERM, 1, 0, 2),
        (signal.SIGTERM, 3, 1, 5),
        (signal.SIGINT, 5, 1, 9),
    ],
    ids=str,
)
def test_a_signal_saves_the_run_where_it_is(
    whole, tmp_path, monkeypatch, capsys, number, dispatch, after, step
):
    with monkeypatch.context() as patch, signals.handled():
        signal_after(patch, [dispatch], number)
        with pytest.raises(signals.Stopped) as stopped:
            train(tmp_path)
    assert stopped.value.args == (number,)
    assert "stopped; the same command resumes" in capsys.readouterr().out
    assert (tmp_path / "partial").exists() == (step != 5)
    assert train(tmp_path) == whole
    assert f"resuming after epoch {after}, step {step}\n" in capsys.readouterr().out
    assert not (tmp_path / "partial").exists()


def test_a_long_epoch_is_saved_in_between(whole, tmp_path, monkeypatch, capsys):
    minutes = itertools.count(step=7)
    clock = {
        "monotonic": lambda: 60.0 * next(minutes),
        "perf_counter": time.perf_counter,
    }
    monkeypatch.setattr(running, "time", types.SimpleNamespace(**clock))
    config = tiny.make_config(**EVERYTHING, steps_per_dispatch=2)  # Ten minutes.
    with monkeypatch.context() as patch:
        patch.setattr(running, "append_row", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path, config)
    saved = capsys.readouterr().out
    assert "saved in epoch 1, after step 4" in saved
    assert "saved in epoch 1, after step 2" not in saved
    assert train(tmp_path, config) == whole


def test_a_damaged_part_is_passed_over(whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, signals.handled():
        signal_after(patch, [5])
        with pytest.raises(signals.Stopped):
            train(tmp_path)
    flip_bytes(tmp_path / "partial" / "9" / "arrays")
    assert train(tmp_path) == whole
    shown = capsys.readouterr().out
    assert "passing over the damaged checkpoint partial/9: ValueError" in shown
    assert "resuming after epoch 1, step 5\n" in shown


def test_a_part_of_another_network_is_refused_and_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, signals.handled():
        signal_after(patch, [1])
        with pytest.raises(signals.Stopped):
            train(tmp_path)
    four = dataclasses.replace(tiny.make_dataset(), class_names=tuple("abcd"))
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


def test_members_are_saved_at_the_end_of_the_epoch(tmp_path, monkeypatch):
    configs = [make_member(i) for i in range(2)]
    workdirs = [tmp_path / str(i) for i in range(2)]
    with monkeypatch.context() as patch, signals.handled():
        signal_after(patch, [1])
        with pytest.raises(signals.Stopped):
            loop.train_members(configs, workdirs, tiny.make_dataset())
    for workdir in workdirs:
        assert [row["epoch"] for row in read_rows(workdir)] == [1]
        assert not (workdir / "partial").exists()
