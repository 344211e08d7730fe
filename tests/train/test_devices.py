"""Several devices share the batches of a run, which stays the run of one device."""

import re

import jax
import numpy as np
import pytest

from dwsep_jax.errors import ConfigError
from dwsep_jax.train import loop, programs, running
from dwsep_jax.workdir import read_json, read_rows
from tests import tiny

OPTIONS = {"ema_decay": 0.9, "mixup": 0.2, "eval_batch_size": 6, "block_sizes": (1,)}


def train(workdir, num_devices):
    config = tiny.make_config(**OPTIONS, num_devices=num_devices)
    loop.train_and_evaluate(config, workdir)
    return read_rows(workdir), read_json(workdir, "evaluation")


def test_the_curve_is_that_of_one_device_even_if_moved(tmp_path, monkeypatch, capsys):
    rows, evaluation = train(tmp_path / "1", 1)
    assert "device: cpu (1 of 2 used)" in capsys.readouterr().out
    others, other = train(tmp_path / "2", 2)
    assert "device: cpu (2 of 2 used)" in capsys.readouterr().out
    for row, other_row in zip(rows, others, strict=True):
        for name in row.keys() - {"images_per_second", "elapsed_seconds"}:
            assert other_row[name] == pytest.approx(row[name], rel=1e-4), name
    assert other["confusion_matrix"] == evaluation["confusion_matrix"]
    assert other["loss"] == pytest.approx(evaluation["loss"], rel=1e-4)

    with monkeypatch.context() as patch:
        patch.setattr(running, "append_row", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "moved", 2)
    moved, _ = train(tmp_path / "moved", 1)
    assert moved[-1]["val_loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-4)


def test_each_device_computes_its_share_of_a_batch(dataset):
    config = tiny.make_resolved(**OPTIONS, num_devices=2)
    state = loop.make_state(config, dataset)
    _, program = programs.EpochPrograms(config, dataset, [state]).programs[0]
    text = program.as_text()
    # Images of 8x8 pixels: of four examples, never of the whole batch of eight.
    assert re.search(r"f32\[4,8,8,\d+\]", text)
    assert not re.search(r"f32\[8,8,8,\d+\].* (add|multiply|convolution|fusion)", text)
    for leaf in jax.tree.leaves(program.output_shardings):
        assert leaf.is_fully_replicated


def test_what_does_not_fit_is_refused():
    divided = "batch_size={} cannot be divided among 2 devices; take {}, or another"
    for num_devices, batch_size, message in (
        (3, 8, "num_devices=3: there are 2; take at most that many"),
        (2, 7, divided.format(7, "6 or 8")),
        (2, 1, divided.format(1, "2")),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny.make_resolved(num_devices=num_devices, batch_size=batch_size)


def test_devices_compute_their_shares_of_the_parts_of_a_batch(tmp_path):
    rows = []
    for num_devices in (1, 2):
        config = tiny.make_config(**OPTIONS, num_devices=num_devices, accumulate=2)
        loop.train_and_evaluate(config, tmp_path / f"{num_devices}")
        rows.append(read_rows(tmp_path / f"{num_devices}")[-1])
    assert rows[1]["val_loss"] == pytest.approx(rows[0]["val_loss"], rel=1e-4)
    with pytest.raises(ConfigError, match=r"accumulate=8: batch_size=8 .* 16 parts"):
        tiny.make_resolved(num_devices=2, accumulate=8)


def test_each_process_gives_as_many_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert programs.count_devices(tiny.make_config()) == 2
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    message = "num_devices=3: cannot be divided among 2 processes; take a multiple"
    with pytest.raises(ConfigError, match=message):
        programs.count_devices(tiny.make_config(num_devices=3))
    with pytest.raises(ConfigError, match="batch_size=6 cannot be divided among 4"):
        programs.count_devices(tiny.make_config(num_devices=4, batch_size=6))


def test_accelerators_are_all_used(monkeypatch):
    assert programs.count_devices(tiny.make_config()) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert programs.count_devices(tiny.make_config()) == 2
    assert np.prod(programs.make_batch_mesh(tiny.make_config()).devices.shape) == 2
