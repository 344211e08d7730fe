"""Files that are never half-written, and whose damage is noticed."""

import os

import pytest

from dwsep_jax import workdir
from dwsep_jax.errors import UserError
from dwsep_jax.space import parse_space
from dwsep_jax.trials import Trial, read_trials, write_trials


def test_text_and_bytes_are_written_and_nothing_else_is_left(tmp_path):
    workdir.write_atomically(tmp_path / "a", "grün\n")
    workdir.write_atomically(str(tmp_path / "b"), b"\0")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "grün\n"
    assert (tmp_path / "b").read_bytes() == b"\0"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    workdir.write_atomically(path, "old")

    def fail(*args):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        workdir.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_two_processes_write_under_different_names(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "replace", lambda old, new: seen.append(str(old)))
    for pid in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        workdir.write_atomically(tmp_path / "a", "x")
    assert len(set(seen)) == 2


ROW = {"epoch": 1, "step": 5, "train_loss": 1.5, "train_accuracy": 0.5}
ROW |= {"train_eval_loss": 1.0, "train_eval_accuracy": 0.5, "val_loss": 1.25}
ROW |= {"val_accuracy": 0.75, "learning_rate": 0.1}
AXES = parse_space(["mixup=0..1"])
TRIALS = [Trial(0, "complete", 0.9, 12, 3.25, None, None, {"mixup": 0.5})]
DIAGNOSIS = {"schema": 1, "verdict": "well_fitted", "evidence": {"gap": 0.25}}
DIAGNOSIS |= {"advice": "more"}


def pick(content, names):
    return {name: content.get(name) for name in names}


FILES = {
    "diagnosis.json": (
        lambda path: workdir.write_json(path, DIAGNOSIS),
        lambda path: pick(workdir.read_json(path.parent, "diagnosis"), DIAGNOSIS),
    ),
    "metrics.jsonl": (
        lambda path: workdir.write_rows(path.parent, [ROW]),
        lambda path: [pick(row, ROW) for row in workdir.read_rows(path.parent)],
    ),
    "trials.csv": (
        lambda path: write_trials(path, TRIALS, AXES),
        lambda path: read_trials(path, AXES),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_changes_what_is_read(tmp_path, name):
    path, (write, read) = tmp_path / name, FILES[name]
    write(path)
    content, want, noticed = path.read_bytes(), read(path), 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert read(path) == want
        except UserError:
            noticed += 1
    assert noticed > 0.8 * len(content)
