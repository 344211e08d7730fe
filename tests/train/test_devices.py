"""Several devices share the batches of a run, which stays the run of one device."""

import re

import jax
import numpy as np
import pytest

from dwsep_jax import data
from dwsep_jax.errors import ConfigError
from dwsep_jax.train import loop, programs, running
from dwsep_jax.workdir import read_json, read_rows
from tests import tiny

OPTIONS = {"ema_decay": 0.9, "mixup": 0.2, "eval_batch_size": 6}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())
    monkeypatch.setattr(loop, "draw_run", lambda workdir: None)


def train(workdir, num_devices, **changes):
    config = tiny.make_config(**OPTIONS | changes, num_devices=num_devices)
    loop.train_and_evaluate(config, workdir)
    return read_rows(workdir), read_json(workdir, "evaluation")


def test_the_curve_is_that_of_one_device(tmp_path, capsys):
    rows, evaluation = train(tmp_path / "1", 1)
    assert "device: cpu (1 of 2 used)" in capsys.readouterr().out
    others, other = train(tmp_path / "2", 2)
    assert "device: cpu (2 of 2 used)" in capsys.readouterr().out
    for row, other_row in zip(rows, others, strict=True):
        for name in row.keys() - {"images_per_second", "elapsed_seconds"}:
            assert other_row[name] == pytest.approx(row[name], rel=1e-4), name
    assert other["confusion_matrix"] == evaluation["confusion_matrix"]
    assert other["loss"] == pytest.approx(evaluation["loss"], rel=1e-4)


def test_a_run_goes_on_with_another_number_of_devices(tmp_path, monkeypatch):
    rows, _ = train(tmp_path / "whole", 1)
    with monkeypatch.context() as patch:
        patch.setattr(running, "append_row", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "moved", 2)
    moved, _ = train(tmp_path / "moved", 1)
    assert moved[-1]["val_loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-4)


def test_each_device_computes_its_share_of_a_batch():
    config, dataset = tiny.make_resolved(num_devices=2), tiny.make_dataset()
    state = loop.make_state(config, dataset)
    _, program = programs.EpochPrograms(config, dataset, [state]).programs[0]
    text = program.as_text()
    # Images of 8x8 pixels: of four examples, never of the whole batch of eight.
    assert re.search(r"f32\[4,8,8,\d+\]", text)
    assert not re.search(r"f32\[8,8,8,\d+\].* (add|multiply|convolution|fusion)", text)
    for leaf in jax.tree.leaves(program.output_shardings):
        assert leaf.is_fully_replicated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_devices": 3}, "num_devices=3: there are 2; take at most that many"),
        (
            {"num_devices": 2, "batch_size": 7},
            "batch_size=7 cannot be divided among 2 devices; take 6 or 8, or another",
        ),
        (
            {"num_devices": 2, "batch_size": 1},
            "batch_size=1 cannot be divided among 2 devices; take 2, or another",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny.make_resolved(**changes)


def test_accelerators_are_all_used(monkeypatch):
    assert programs.count_devices(tiny.make_config()) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert programs.count_devices(tiny.make_config()) == 2
    assert np.prod(programs.make_batch_mesh(tiny.make_config()).devices.shape) == 2
