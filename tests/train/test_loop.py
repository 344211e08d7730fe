"""The loop, on a tiny network: its files, its order, and how it goes on."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwsep_jax import data
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.lock import locked
from dwsep_jax.train import evaluation, loop, programs
from dwsep_jax.train import step as step_lib
from dwsep_jax.train.checkpoint import Checkpoints, checksums
from dwsep_jax.train.step import make_train_state
from dwsep_jax.workdir import load_config
from tests import tiny


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())


@pytest.fixture(scope="module")
def dataset():
    return tiny.make_dataset()


class Interrupted(Exception):
    """Stands for a process that is gone."""


def interrupt(*args):
    raise Interrupted


def run(config, workdir):
    loop.train_and_evaluate(config, workdir)
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

    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["epoch"] == 8
    assert written["accuracy"] > 0.9
    diagnosis = json.loads((tmp_path / "diagnosis.json").read_text())
    assert diagnosis["evidence"]["guessing_loss"] == pytest.approx(np.log(3))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "checkpoints", "figures"),
        *("evaluation.json", "predictions.npz", "diagnosis.json"),
    }
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"curves.png", "confusion_matrix.png", "reliability.png"}
    shown = capsys.readouterr().out
    for text in (
        "block0/layer0/conv/depthwise/kernel",
        "MACs per image",
        "data: tiny, 44 train, 10 validation, 13 test",
        "peak learning rate 0.1",
        "epoch 8/8",
        f"test accuracy {written['accuracy']:.2%} of 13 images",
        f"diagnosis: {diagnosis['verdict']}. {diagnosis['advice']}",
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
    assert f"diagnosis: {diagnosis['verdict']}" in shown
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())

    # What a kill or a full disk may have left undone is made up for.
    (tmp_path / "figures" / "reliability.png").unlink()
    run(config, tmp_path)
    assert (tmp_path / "figures" / "reliability.png").exists()


def test_a_caller_sees_each_epoch_and_may_end_the_run(tmp_path, dataset):
    config = tiny.make_resolved(num_epochs=3)
    seen = []

    def end(row):
        seen.append(row)
        if row["epoch"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        loop.run(config, tmp_path, dataset, on_test=False, after_epoch=end)
    assert [row["epoch"] for row in seen] == [1, 2]
    again = []
    loop.run(config, tmp_path, dataset, on_test=False, after_epoch=again.append)
    # Also those that were trained before, and no epoch twice.
    assert again[:2] == seen
    assert [row["epoch"] for row in again] == [1, 2, 3]
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [{"schema": 1, **row} for row in again]


def test_an_evaluation_of_other_weights_is_replaced(tmp_path, monkeypatch):
    config = tiny.make_config(num_epochs=2)
    path = tmp_path / "evaluation.json"

    # Broken off after one epoch, evaluated, trained to the end, killed before the
    # evaluation.
    with monkeypatch.context() as patch:
        patch.setattr(loop, "append_row", interrupt)
        with pytest.raises(Interrupted):
            run(config, tmp_path)
    monkeypatch.setattr(evaluation, "load", lambda config: tiny.make_dataset())
    evaluation.evaluate_workdir(load_config(tmp_path), tmp_path, "test")
    assert json.loads(path.read_text())["epoch"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_and_write", interrupt)
        with pytest.raises(Interrupted):
            run(config, tmp_path)
    assert not path.exists()
    # An evaluation of the first epoch, by a process that began before the second.
    path.write_text(json.dumps({"epoch": 1}))
    run(config, tmp_path)
    whole = json.loads(path.read_text())
    assert whole["epoch"] == 2
    # One that lacks what is to be printed.
    path.write_text(json.dumps({"epoch": 2}))
    run(config, tmp_path)
    assert json.loads(path.read_text()) == whole


def test_a_process_that_has_trained_evaluates_and_draws_by_itself(
    tmp_path, monkeypatch
):
    settle(monkeypatch, [0.9, 0.5, 0.5])
    monkeypatch.setattr(evaluation, "load", lambda config: tiny.make_dataset())
    config = tiny.make_config(num_epochs=3, early_stopping=3)

    def evaluate_beside(workdir, row):
        append_row(workdir, row)
        if row["epoch"] == 2:
            evaluation.evaluate_workdir(load_config(workdir), workdir, "test")
            written = json.loads((tmp_path / "evaluation.json").read_text())
            assert written["epoch"] == 1
            drawn.append((tmp_path / "figures/curves.png").read_bytes())
            (tmp_path / "evaluation.json").write_text("[]")

    append_row, drawn = loop.append_row, []
    monkeypatch.setattr(loop, "append_row", evaluate_beside)
    run(config, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["epoch"] == 1
    assert (tmp_path / "figures/curves.png").read_bytes() != drawn[0]


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


def test_test_is_left_alone_until_it_is_asked_for(tmp_path, monkeypatch, capsys):
    config = tiny.make_config()
    loop.train_and_evaluate(config, tmp_path, on_test=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "metrics.jsonl", "checkpoints")
    }
    assert "test accuracy" not in capsys.readouterr().out
    rows = (tmp_path / "metrics.jsonl").read_text()
    loop.train_and_evaluate(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == rows
    assert "compiled" not in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())["epoch"] == 2


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
    config = tiny.make_config(
        num_epochs=3, mixup=0.2, cutout=2, ema_decay=0.9, schedule="plateau"
    )
    whole = run(config, tmp_path / "whole")
    append_row, save = loop.append_row, loop.Checkpoints.save

    def save_as_the_worst_yet(self, epoch, tree, metadata, scores):
        save(self, epoch, tree, metadata, {e: -e for e in scores})

    monkeypatch.setattr(loop.Checkpoints, "save", save_as_the_worst_yet)

    def stop_before_the_second_row(workdir, row):
        if row["epoch"] == 2:
            raise Interrupted
        append_row(workdir, row)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "append_row", stop_before_the_second_row)
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
        config = tiny.make_resolved(num_epochs=1, seed=seed)
        first = make_train_state(config, dataset)
        ((last, _),) = loop.train_epochs(config, dataset, first, [])
        return checksums(last.params)

    assert last_state(0) == last_state(0)
    assert last_state(0) != last_state(1)


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
        loop.train_and_evaluate(tiny.make_config(**change), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_does_not_fit_into_the_memory_is_refused(tmp_path, monkeypatch):
    # 575 parameters, their momentum, statistics and gradients.
    monkeypatch.setattr(loop, "memory_bytes", lambda: 575 * 12)
    config = tiny.make_config()
    message = r"growth_rate=4 and .*\(1, 1\) make 575 parameters; .* GiB of memory here"
    with pytest.raises(ConfigError, match=message):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("recompiled")
@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
@pytest.mark.parametrize("bad_step", [2, 5, 8])
def test_a_step_that_is_not_finite_stops_the_run_and_is_named(
    tmp_path, monkeypatch, bad_step, steps_per_dispatch
):
    train_step = step_lib.train_step

    def explode(state, batch):
        factor = jnp.where(state.step == bad_step - 1, jnp.inf, 1.0)
        return train_step(state, batch | {"image": factor * batch["image"]})

    monkeypatch.setattr(step_lib, "train_step", explode)
    config = tiny.make_config(num_epochs=3, steps_per_dispatch=steps_per_dispatch)
    message = (
        rf"^step {bad_step} left a loss or a parameter .* lower --config\.learning"
    )
    with pytest.raises(UserError, match=message):
        run(config, tmp_path)
    # Five steps an epoch: the epochs before are kept.
    whole = (bad_step - 1) // 5
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == whole
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.epochs() == [1] * whole


def test_an_evaluation_that_is_not_finite_stops_the_run(dataset):
    config = tiny.make_resolved(num_epochs=1)
    state = make_train_state(config, dataset)
    nan = jax.tree.map(lambda s: s * jnp.nan, state.batch_stats)
    message = r"train_eval_loss is nan after step 0; try a learning_rate below 0\.1"
    with pytest.raises(UserError, match=message):
        loop.evaluate_epoch(config, dataset, state.replace(batch_stats=nan))


def test_two_processes_do_not_share_a_workdir(tmp_path):
    config = tiny.make_config()
    with locked(tmp_path), pytest.raises(UserError, match="another process is at work"):
        run(config, tmp_path)


def test_rows_hold_what_their_names_say(dataset, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(ticks)))
    config = tiny.make_resolved(num_epochs=1)
    state = make_train_state(config, dataset)
    ((state, row),) = loop.train_epochs(config, dataset, state, [])
    for prefix, split in [
        ("train_eval", dataset.train_eval),
        ("val", dataset.validation),
    ]:
        values, _ = evaluation.evaluate(state, split, 8)
        assert row[f"{prefix}_loss"] == values["loss"]
        assert row[f"{prefix}_accuracy"] == values["accuracy"]
    # The clock ticks once a look: 40 images between two looks.
    assert row["images_per_second"] == 40.0
    assert row["elapsed_seconds"] > 1.0


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path, monkeypatch):
    seen = []
    save = loop.Checkpoints.save

    def spy(self, epoch, tree, metadata, scores):
        seen.append(scores)
        save(self, epoch, tree, metadata, scores)

    monkeypatch.setattr(loop.Checkpoints, "save", spy)
    rows = run(tiny.make_config(num_epochs=2), tmp_path)
    scores = {row["epoch"]: row["val_accuracy"] for row in rows}
    assert seen == [{1: scores[1]}, scores]


def test_a_run_passes_in_64_bits_with_the_same_dtypes(dataset):
    config = tiny.make_resolved(num_epochs=1, steps_per_dispatch=2)
    with jax.enable_x64(True):
        state = make_train_state(config, dataset)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(state.params)}
        assert dtypes == {np.dtype("float32")}
        ((_, row),) = loop.train_epochs(config, dataset, state, [])
    assert np.isfinite(row["train_loss"])


def test_evaluating_a_workdir_reads_its_latest_checkpoint(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluation, "load", lambda config: tiny.make_dataset())
    config = tiny.make_config(num_epochs=2)
    rows = run(config, tmp_path)
    capsys.readouterr()
    evaluation.evaluate_workdir(load_config(tmp_path), tmp_path, "validation")
    written = json.loads((tmp_path / "evaluation-validation.json").read_text())
    assert written["loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-6)
    assert written["accuracy"] == pytest.approx(rows[-1]["val_accuracy"])
    assert "validation accuracy" in capsys.readouterr().out
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluation.evaluate_workdir(load_config(tmp_path), tmp_path / "no", "test")


def settle(monkeypatch, accuracies):
    """Let the validation accuracy of each epoch be what is given."""
    evaluate_epoch = loop.evaluate_epoch

    def fake(config, dataset, state):
        row = evaluate_epoch(config, dataset, state)
        return row | {"val_accuracy": accuracies[int(state.step) // 5 - 1]}

    monkeypatch.setattr(loop, "evaluate_epoch", fake)


def test_a_settled_run_stops_and_its_best_epoch_is_evaluated(
    tmp_path, monkeypatch, capsys
):
    settle(monkeypatch, [0.5, 0.9, 0.9005, 0.8, 0.95, 0.95])
    config = tiny.make_config(num_epochs=6, early_stopping=2)
    rows = run(config, tmp_path)
    assert len(rows) == 4
    path = tmp_path / "evaluation.json"
    # 0.9005 is no change to wait for, but still the best.
    assert json.loads(path.read_text())["epoch"] == 3
    shown = capsys.readouterr().out
    assert "the cosine schedule is planned for all 6 epochs" in shown
    assert "stopped early: in 2 epochs" in shown
    assert "of the cosine schedule was at 30% of its peak; epoch 3 is eval" in shown
    # It stays stopped, and an evaluation of it is one of the same epoch.
    path.unlink()
    assert len(run(config, tmp_path)) == 4
    assert json.loads(path.read_text())["epoch"] == 3
    monkeypatch.setattr(evaluation, "load", lambda config: tiny.make_dataset())
    evaluation.evaluate_workdir(load_config(tmp_path), tmp_path, "validation")
    written = json.loads((tmp_path / "evaluation-validation.json").read_text())
    assert written["epoch"] == 3


def test_a_run_that_does_not_settle_is_trained_to_the_end(
    tmp_path, monkeypatch, capsys
):
    settle(monkeypatch, [0.5, 0.4, 0.6, 0.55])
    rows = run(tiny.make_config(num_epochs=4, early_stopping=2), tmp_path)
    assert len(rows) == 4
    assert "all epochs are trained; epoch 3 is evaluated" in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())["epoch"] == 3


def test_where_the_best_is_damaged_the_latest_is_evaluated(
    tmp_path, monkeypatch, capsys
):
    settle(monkeypatch, [0.9, 0.5, 0.5])
    config = tiny.make_config(num_epochs=3, early_stopping=3)
    run(config, tmp_path)
    flip_bytes(tmp_path / "checkpoints" / "1" / "arrays")
    (tmp_path / "evaluation.json").unlink()
    capsys.readouterr()
    run(config, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["epoch"] == 3
    shown = capsys.readouterr().out
    assert "finished after epoch 3, step 15" in shown
    assert "all epochs are trained; epoch 3 is evaluated" in shown
    assert "the checkpoint of the best, 1, is lost" in shown


def test_the_running_average_is_evaluated_beside_and_in_the_end(tmp_path, dataset):
    config = tiny.make_config(num_epochs=2, ema_decay=0.5)
    rows = run(config, tmp_path)
    assert rows[-1]["ema_val_loss"] != rows[-1]["val_loss"]
    state = make_train_state(config, dataset)
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore_latest(state).tree
    average = step_lib.averaged(state)
    values, _ = evaluation.evaluate(average, dataset.validation, 8)
    assert rows[-1]["ema_val_loss"] == pytest.approx(values["loss"])
    assert rows[-1]["ema_val_accuracy"] == pytest.approx(values["accuracy"])
    values, _ = evaluation.evaluate(average, dataset.test, 8)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["weights"] == "ema"
    assert written["loss"] == pytest.approx(values["loss"])


def test_the_plateau_lowers_the_rate_in_the_program_and_in_the_rows(
    tmp_path, monkeypatch
):
    evaluate_epoch = loop.evaluate_epoch
    losses = [1.0, 1.0, 0.5, 0.5]

    def fake(config, dataset, state):
        row = evaluate_epoch(config, dataset, state)
        return row | {"val_loss": losses[int(state.step) // 5 - 1]}

    monkeypatch.setattr(loop, "evaluate_epoch", fake)
    changes = dict(schedule="plateau", plateau_patience=1, plateau_factor=0.25)
    rows = run(tiny.make_config(num_epochs=4, **changes), tmp_path)
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.025, 0.025], rtol=1e-6)
    state = make_train_state(tiny.make_resolved(), tiny.make_dataset())
    with Checkpoints(tmp_path) as checkpoints:
        plateau = checkpoints.restore_latest(state).tree.plateau
    assert plateau.multiplier == 0.0625


def test_several_steps_a_dispatch_train_the_same_run(tmp_path):
    one = run(tiny.make_config(num_epochs=2), tmp_path / "one")
    many = run(tiny.make_config(num_epochs=2, steps_per_dispatch=3), tmp_path / "many")
    for a, b in zip(one, many, strict=True):
        assert a["step"] == b["step"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3)
        assert a["train_accuracy"] == b["train_accuracy"]


def test_steps_per_dispatch_is_fixed_at_the_first_start(tmp_path):
    run(tiny.make_config(num_epochs=1), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["requested"]["steps_per_dispatch"] is None
    assert content["resolved"]["steps_per_dispatch"] == 1


def test_compilation_is_no_part_of_the_elapsed_time(dataset, monkeypatch, capsys):
    def slow(*args):
        clock[0] += 1000.0
        return compile_programs(*args)

    clock, compile_programs = [0.0], loop.compile_programs
    monkeypatch.setattr(loop, "compile_programs", slow)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    config = tiny.make_resolved(num_epochs=1)
    state = make_train_state(config, dataset)
    monkeypatch.setattr(programs, "train_epoch", None)

    def no_training(programs, state, arrays, permutation, progress):
        clock[0] += 2.0
        return state, {"loss": 1.0, "accuracy": 0.5}

    monkeypatch.setattr(loop, "train_epoch", no_training)
    ((_, row),) = loop.train_epochs(config, dataset, state, [])
    assert row["elapsed_seconds"] == 2.0
    assert row["images_per_second"] == 20.0
    shown = capsys.readouterr().out
    assert "compiled the training step in" in shown
    assert "compiled the evaluation step in" in shown
