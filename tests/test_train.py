"""The loop, on a tiny network: its files, its order, and how it goes on."""

import json
import shutil

import jax
import numpy as np
import pytest

from dwsep_jax import data, train
from dwsep_jax.checkpoint import checksums
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.step import make_run_keys, make_train_state
from tests import tiny


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())


@pytest.fixture(scope="module")
def dataset():
    return tiny.make_dataset()


def run(config, workdir):
    train.train_and_evaluate(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_times(rows):
    times = ("images_per_second", "elapsed_seconds")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def test_a_run_learns_and_leaves_its_files(tmp_path, capsys):
    config = tiny.make_config(num_epochs=8)
    rows = run(config, tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    # 44 images in batches of 8: the last, partial batch is left out.
    assert [row["step"] for row in rows] == [5 * (i + 1) for i in range(8)]
    assert rows[0].keys() == {
        *("schema", "epoch", "step", "train_loss", "train_accuracy"),
        *("train_eval_loss", "train_eval_accuracy", "val_loss", "val_accuracy"),
        *("learning_rate", "images_per_second", "elapsed_seconds"),
    }
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert rows[0]["elapsed_seconds"] < rows[-1]["elapsed_seconds"]
    last_rate = 0.1 * 0.5 * (1 + np.cos(np.pi * 39 / 40))
    assert rows[-1]["learning_rate"] == pytest.approx(last_rate, rel=1e-4)

    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["epoch"] == 8
    assert evaluation["accuracy"] > 0.9
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "checkpoints"),
        *("evaluation.json", "predictions.npz"),
    }
    shown = capsys.readouterr().out
    for text in (
        "block0/layer0/conv/depthwise/kernel",
        "MACs per image",
        "data: tiny, 44 train, 10 validation, 13 test",
        "peak learning rate 0.1",
        "epoch 8/8",
        f"test accuracy {evaluation['accuracy']:.2%} of 13 images",
        "network: DenseNet 1-1 of separable convolutions",
    ):
        assert text in shown

    # A finished run is left alone, and its result is printed again.
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    before.pop(tmp_path / "metrics.jsonl")
    run(config, tmp_path)
    shown = capsys.readouterr().out
    assert "compiled" not in shown
    assert "test accuracy" in shown
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())


def test_an_evaluation_of_other_weights_is_replaced(tmp_path):
    config = tiny.make_config(num_epochs=1)
    run(config, tmp_path)
    path = tmp_path / "evaluation.json"
    want = json.loads(path.read_text())
    path.write_text(json.dumps(want | {"accuracy": -1.0}))
    shutil.rmtree(tmp_path / "checkpoints")
    run(config, tmp_path)
    assert json.loads(path.read_text())["accuracy"] == want["accuracy"]


class Interrupted(Exception):
    """Stands for a process that is gone."""


def test_a_run_broken_off_goes_on_to_the_same_end(tmp_path, monkeypatch, capsys):
    config = tiny.make_config(num_epochs=3, mixup=0.2, cutout=2)
    whole = run(config, tmp_path / "whole")
    append_row = train.append_row

    def append_and_stop(workdir, row):
        append_row(workdir, row)
        if row["epoch"] == 2:
            raise Interrupted

    monkeypatch.setattr(train, "append_row", append_and_stop)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "broken")
    monkeypatch.setattr(train, "append_row", append_row)
    # The second epoch's row was written, its checkpoint was not: it is done again.
    rows = run(config, tmp_path / "broken")
    assert "resuming after epoch 1, step 5" in capsys.readouterr().out
    assert without_times(rows) == without_times(whole)
    a, b = (
        np.load(tmp_path / name / "predictions.npz")["probabilities"]
        for name in ("whole", "broken")
    )
    np.testing.assert_array_equal(a, b)


def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not(dataset):
    def last_state(seed):
        config = tiny.make_config(num_epochs=1, seed=seed)
        first = make_train_state(config, dataset)
        ((last, _),) = train.train_epochs(config, dataset, first, [])
        return checksums(last.params)

    assert last_state(0) == last_state(0)
    assert last_state(0) != last_state(1)


def test_every_example_is_trained_on_once_an_epoch(monkeypatch, dataset):
    seen = []

    def record(state, arrays, indices, **how):
        jax.debug.callback(lambda i: seen.append(np.asarray(i)), indices)
        return train_on_indices(state, arrays, indices, **how)

    train_on_indices = train.train_on_indices
    monkeypatch.setattr(train, "train_on_indices", record)
    config = tiny.make_config(num_epochs=2, batch_size=11)
    state = make_train_state(config, dataset)
    for _ in train.train_epochs(config, dataset, state, []):
        pass
    jax.effects_barrier()
    epochs = np.concatenate(seen).reshape(2, 44)
    for epoch, order in enumerate(epochs):
        assert sorted(order) == list(range(44))
        want = data.epoch_permutation(make_run_keys(0).order, epoch, 44)
        np.testing.assert_array_equal(order, want)
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    "change",
    [{"conv": "x"}, {"lowering": "x"}, {"schedule": "x"}, {"optimizer": "x"}],
    ids=str,
)
def test_an_unknown_choice_leaves_no_workdir_behind_that_refuses_the_right_one(
    tmp_path, change
):
    with pytest.raises(ConfigError, match="='x' is unknown; choose one of"):
        train.train_and_evaluate(tiny.make_config(**change), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(tmp_path):
    config = tiny.make_config(learning_rate=1e30)
    with pytest.raises(UserError, match=r"loss is nan in epoch .* below 1e\+30"):
        run(config, tmp_path)


def test_evaluating_a_workdir_reads_its_latest_checkpoint(
    tmp_path, monkeypatch, capsys
):
    from dwsep_jax import evaluate
    from dwsep_jax.config import load_config

    monkeypatch.setattr(evaluate, "load", lambda config: tiny.make_dataset())
    config = tiny.make_config(num_epochs=2)
    rows = run(config, tmp_path)
    capsys.readouterr()
    evaluate.evaluate_workdir(load_config(tmp_path), tmp_path, "validation")
    evaluation = json.loads((tmp_path / "evaluation-validation.json").read_text())
    assert evaluation["loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-6)
    assert evaluation["accuracy"] == pytest.approx(rows[-1]["val_accuracy"])
    assert "validation accuracy" in capsys.readouterr().out
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluate.evaluate_workdir(load_config(tmp_path), tmp_path / "no", "test")
