"""TensorBoard events, read back from their file."""

import struct

import numpy as np
from tensorboardX.proto import event_pb2

from dwsep_jax import data
from dwsep_jax.train import loop
from dwsep_jax.train.events import Events
from tests import tiny

LOSSES = ("train", "train_eval", "val", "ema_val")


def make_row(epoch):
    row = {"epoch": epoch, "step": 5 * epoch, "learning_rate": 0.1 / epoch}
    for i, curve in enumerate(LOSSES):
        row |= {f"{curve}_loss": epoch + i / 10, f"{curve}_accuracy": i / 10}
    return row | {"images_per_second": 100.0 * epoch, "elapsed_seconds": 2.0 * epoch}


def read_scalars(path):
    """Return {(tag, step): value} of an event file, none of them there twice."""
    content, scalars = path.read_bytes(), {}
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + size])
        content = content[12 + size + 4 :]
        for value in event.summary.value:
            assert (value.tag, event.step) not in scalars
            scalars[value.tag, event.step] = np.float32(value.simple_value)
    return scalars


def expected(rows):
    tags = {"learning_rate", "images_per_second", "elapsed_seconds", "epoch"}
    tags = {name: f"run/{name}" for name in tags}
    for curve in LOSSES:
        tags |= {f"{curve}_{kind}": f"{kind}/{curve}" for kind in ("loss", "accuracy")}
    return {
        (tag, row["step"]): np.float32(row[name])
        for row in rows
        for name, tag in tags.items()
    }


def test_a_restart_leaves_each_row_there_once(tmp_path):
    rows = [make_row(epoch) for epoch in (1, 2, 3)]
    with Events(tmp_path, []) as events:
        events.write(rows[0])
        events.write(make_row(2) | {"val_loss": -1.0})  # Trained again after a kill.
    with Events(tmp_path, rows[:1]) as events:
        events.write(rows[1])
        events.write(rows[2])
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert read_scalars(path) == expected(rows)


def test_events_asked_for_after_the_end_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())
    loop.train_and_evaluate(tiny.make_config(num_epochs=1), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    for _ in range(2):
        config = tiny.make_config(num_epochs=1, tensorboard=True)
        loop.train_and_evaluate(config, tmp_path)
        (path,) = (tmp_path / "tensorboard").iterdir()
        modified = path.stat().st_mtime_ns
        assert {step for _, step in read_scalars(path)} == {5}
    assert path.stat().st_mtime_ns == modified
