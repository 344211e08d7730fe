"""The loop, on a tiny network: its files, its order, and how it goes on."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from dwsep_jax import data, evaluate, train
from dwsep_jax import step as step_lib
from dwsep_jax.checkpoint import checksums
from dwsep_jax.config import load_config
from dwsep_jax.datasets.prepare import locked
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.metrics import Metrics
from dwsep_jax.step import make_run_keys, make_train_state
from tests import tiny


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())


@pytest.fixture(scope="module")
def dataset():
    return tiny.make_dataset()


class Interrupted(Exception):
    """Stands for a process that is gone."""


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


def test_an_evaluation_of_other_weights_is_replaced(tmp_path, monkeypatch):
    config = tiny.make_config(num_epochs=2)
    path = tmp_path / "evaluation.json"

    def stop(*args):
        raise Interrupted

    # Broken off after one epoch, evaluated, trained to the end, killed before the
    # evaluation.
    with monkeypatch.context() as patch:
        patch.setattr(train, "append_row", stop)
        with pytest.raises(Interrupted):
            run(config, tmp_path)
    monkeypatch.setattr(evaluate, "load", lambda config: tiny.make_dataset())
    evaluate.evaluate_workdir(load_config(tmp_path), tmp_path, "test")
    assert json.loads(path.read_text())["epoch"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate_and_write", stop)
        with pytest.raises(Interrupted):
            run(config, tmp_path)
    assert not path.exists()
    # An evaluation of the first epoch, by a process that began before the second.
    path.write_text(json.dumps({"epoch": 1}))
    run(config, tmp_path)
    assert json.loads(path.read_text())["epoch"] == 2


def test_results_without_a_checkpoint_are_not_trained_over(tmp_path):
    config = tiny.make_config(num_epochs=1)
    run(config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"metrics\.jsonl but no checkpoint"):
        run(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    # Without the rows it starts over, and an evaluation left behind does not count.
    (tmp_path / "metrics.jsonl").unlink()
    path = tmp_path / "evaluation.json"
    want = json.loads(path.read_text())
    path.write_text(json.dumps(want | {"accuracy": -1.0}))
    run(config, tmp_path)
    assert json.loads(path.read_text())["accuracy"] == want["accuracy"]


def flip_bytes(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(
        255 - b for b in content[middle : middle + 50]
    )
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [False, True])
def test_a_run_broken_off_goes_on_to_the_same_end(
    tmp_path, monkeypatch, capsys, damage
):
    config = tiny.make_config(num_epochs=3, mixup=0.2, cutout=2)
    whole = run(config, tmp_path / "whole")
    append_row, save = train.append_row, train.Checkpoints.save

    def save_as_the_worst_yet(self, epoch, tree, metadata, score):
        save(self, epoch, tree, metadata, score=-epoch)

    monkeypatch.setattr(train.Checkpoints, "save", save_as_the_worst_yet)

    def stop_before_the_second_row(workdir, row):
        if row["epoch"] == 2:
            raise Interrupted
        append_row(workdir, row)

    with monkeypatch.context() as patch:
        patch.setattr(train, "append_row", stop_before_the_second_row)
        with pytest.raises(Interrupted):
            run(config, tmp_path / "broken")
    if damage:
        # Of the epochs 1 (the best) and 2, the latter is lost and trained again.
        flip_bytes(tmp_path / "broken" / "checkpoints" / "2" / "arrays")
    rows = run(config, tmp_path / "broken")
    resumed = "after epoch 1, step 5" if damage else "after epoch 2, step 10"
    assert f"resuming {resumed}" in capsys.readouterr().out
    assert without_times(rows) == without_times(whole)
    assert rows[1]["elapsed_seconds"] < rows[2]["elapsed_seconds"]
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
    [
        {"conv": "x"},
        {"lowering": "x"},
        {"schedule": "x"},
        {"optimizer": "x"},
        {"batch_size": 45},
        {"block_sizes": (1, 1, 1, 1, 1)},
    ],
    ids=str,
)
def test_what_cannot_be_run_leaves_no_workdir_that_refuses_the_right_one(
    tmp_path, change
):
    with pytest.raises(ConfigError, match=r"is unknown|batch_size=45 is|block_sizes w"):
        train.train_and_evaluate(tiny.make_config(**change), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(tmp_path, num_epochs):
    config = tiny.make_config(learning_rate=1e30, num_epochs=num_epochs)
    with pytest.raises(UserError, match=r"loss is nan in epoch 1; .* below 1e\+30"):
        run(config, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_two_processes_do_not_share_a_workdir(tmp_path):
    config = tiny.make_config()
    with locked(tmp_path), pytest.raises(UserError, match="another process is at work"):
        run(config, tmp_path)


def test_rows_hold_what_their_names_say(dataset, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(train.time, "perf_counter", lambda: float(next(ticks)))
    config = tiny.make_config(num_epochs=1)
    state = make_train_state(config, dataset)
    ((state, row),) = train.train_epochs(config, dataset, state, [])
    for prefix, split in [
        ("train_eval", dataset.train_eval),
        ("val", dataset.validation),
    ]:
        values, _ = evaluate.evaluate(state, split, 8)
        assert row[f"{prefix}_loss"] == values["loss"]
        assert row[f"{prefix}_accuracy"] == values["accuracy"]
    # The clock ticks once a look: 40 images between two looks.
    assert row["images_per_second"] == 40.0
    assert row["elapsed_seconds"] > 1.0


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path, monkeypatch):
    seen = []
    save = train.Checkpoints.save

    def spy(self, epoch, tree, metadata, score):
        seen.append(score)
        save(self, epoch, tree, metadata, score)

    monkeypatch.setattr(train.Checkpoints, "save", spy)
    rows = run(tiny.make_config(num_epochs=2), tmp_path)
    assert seen == [row["val_accuracy"] for row in rows]


def program_of(dataset, **changes):
    config = train.resolve(tiny.make_config(**changes), dataset)
    state = jax.eval_shape(step_lib._state_maker(config, dataset))
    arrays = {"image": dataset.train.images, "label": dataset.train.labels}
    step = train.make_step(config, tiny.NUM_CLASSES)
    permutation = jax.ShapeDtypeStruct((44,), np.int32)
    return str(jax.make_jaxpr(step)(state, Metrics.empty(), arrays, permutation))


@pytest.mark.parametrize(
    "change",
    [
        {"flip": False},
        {"shift": 2},
        {"shift": 0},
        {"cutout": 2},
        {"mixup": 0.1},
        {"batch_size": 4},
        {"dropout_rate": 0.1},
        {"optimizer": "adam"},
        {"momentum": 0.5},
        {"schedule": "constant"},
        {"warmup_epochs": 1.0},
        {"num_epochs": 3},
    ],
    ids=str,
)
def test_fields_of_the_training_reach_the_step(dataset, change):
    assert program_of(dataset, **change) != program_of(dataset)


def test_the_training_step_lowers_for_tpu(dataset):
    config = train.resolve(tiny.make_config(mixup=0.2, cutout=2), dataset)
    state = make_train_state(config, dataset)
    step = train.make_step(config, tiny.NUM_CLASSES)
    arrays = {"image": dataset.train.images, "label": dataset.train.labels}

    def take(params, batch_stats, opt_state, key_data, arrays, permutation):
        new, total = step(
            state.replace(
                params=params,
                batch_stats=batch_stats,
                opt_state=opt_state,
                key=jax.random.wrap_key_data(key_data),
            ),
            Metrics.empty(),
            arrays,
            permutation,
        )
        return new.params, new.opt_state, total.compute()

    exported = jax.export.export(jax.jit(take), platforms=["tpu"])(
        state.params,
        state.batch_stats,
        state.opt_state,
        jax.random.key_data(state.key),
        arrays,
        np.arange(44, dtype=np.int32),
    )
    assert exported.platforms == ("tpu",)
    assert "stablehlo.convolution" in exported.mlir_module()


def test_a_run_passes_in_64_bits_with_the_same_dtypes(dataset):
    config = tiny.make_config(num_epochs=1)
    with jax.enable_x64(True):
        state = make_train_state(config, dataset)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(state.params)}
        assert dtypes == {np.dtype("float32")}
        ((_, row),) = train.train_epochs(config, dataset, state, [])
    assert np.isfinite(row["train_loss"])


def test_evaluating_a_workdir_reads_its_latest_checkpoint(
    tmp_path, monkeypatch, capsys
):
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
