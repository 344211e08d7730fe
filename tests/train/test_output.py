"""TensorBoard events, read back from their file, and the progress of several runs."""

import struct

import numpy as np
from tensorboardX.proto import event_pb2

from dwsep_jax import data
from dwsep_jax.train import loop
from dwsep_jax.train.output import open_events, write_events
from dwsep_jax.train.runs import Progress
from tests import tiny

CURVES = ("train", "train_eval", "val", "ema_val")


def make_row(epoch):
    row = {"epoch": epoch, "step": 5 * epoch, "learning_rate": 0.1 / epoch}
    for i, curve in enumerate(CURVES):
        row |= {f"{curve}_loss": epoch + i / 10, f"{curve}_accuracy": i / 10}
    return row | {"images_per_second": 100.0 * epoch, "elapsed_seconds": 2.0 * epoch}


def read_scalars(workdir):
    """Return {(tag, step): value} of the event file, none of them there twice."""
    (path,) = (workdir / "tensorboard").iterdir()
    content, scalars = path.read_bytes(), {}
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + size])
        content = content[12 + size + 4 :]
        for value in event.summary.value:
            assert (value.tag, event.step) not in scalars
            scalars[value.tag, event.step] = np.float32(value.simple_value)
    return scalars


def test_a_restart_writes_each_row_once(tmp_path):
    rows = [make_row(epoch) for epoch in (1, 2, 3)]
    with open_events(tmp_path, []) as events:
        write_events(events, rows[0])
        write_events(events, make_row(2) | {"val_loss": -1.0})  # Lost in a kill.
    with open_events(tmp_path, rows[:1]) as events:
        write_events(events, rows[1])
        write_events(events, rows[2])
    tags = ("learning_rate", "images_per_second", "elapsed_seconds", "epoch")
    tags = {name: f"run/{name}" for name in tags}
    for curve in CURVES:
        tags |= {f"{curve}_{kind}": f"{kind}/{curve}" for kind in ("loss", "accuracy")}
    assert read_scalars(tmp_path) == {
        (tag, row["step"]): np.float32(row[name])
        for row in rows
        for name, tag in tags.items()
    }


def test_events_requested_after_the_end_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())
    monkeypatch.setattr(loop, "draw_run", lambda workdir: None)
    loop.train_and_evaluate(tiny.make_config(), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    modified = set()
    for _ in range(2):
        loop.train_and_evaluate(tiny.make_config(tensorboard=True), tmp_path)
        assert {step for _, step in read_scalars(tmp_path)} == {5, 10}
        (path,) = (tmp_path / "tensorboard").iterdir()
        modified.add(path.stat().st_mtime_ns)
    assert len(modified) == 1


def test_the_time_left_is_that_of_the_remaining_runs(capsys):
    progress = Progress(["a", "b", "a", "b", "b"])
    for name, seconds, line in (
        ("a", 10.0, "run 1/5  x  10 s, 40 s left\n"),
        ("b", 20.0, "run 2/5  x  20 s, 50 s left\n"),
        ("b", None, "run 3/5  x  was trained before\n"),
    ):
        progress.finish(name, seconds, "x")
        assert capsys.readouterr().out == line
