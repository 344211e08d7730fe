"""The training loop on a tiny network: its files, its rows, and how it resumes."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwsep_jax import data, evaluate
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.lock import locked
from dwsep_jax.report import figures
from dwsep_jax.train import evaluation, loop, running
from dwsep_jax.train import step as step_lib
from dwsep_jax.train.checkpoint import Checkpoints
from dwsep_jax.train.optim import resolve
from dwsep_jax.workdir import load_config, read_json, read_rows
from tests import tiny

# Every leaf that a state can have.
EVERYTHING = dict(num_epochs=3, mixup=0.2, cutout=2, ema_decay=0.9, label_smoothing=0.1)
EVERYTHING |= dict(schedule="plateau", plateau_patience=1)
STOPPING = dict(num_epochs=6, early_stopping=2)


class Interrupted(Exception):
    """Stands for a killed process."""


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Return the workdir and the rows of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(tiny.make_config(**EVERYTHING), workdir)


def run(config, workdir, **options):
    loop.train_and_evaluate(config, workdir, **options)
    return read_rows(workdir)


def read_evaluation(workdir, suffix=""):
    return read_json(workdir, f"evaluation{suffix}")


def evaluate_again(workdir, split):
    evaluate.evaluate_workdir(load_config(workdir), workdir, split)


def restore(workdir, config, dataset):
    like = loop.make_state(config, dataset)
    return Checkpoints(workdir).restore_latest(like).tree


def without_times(rows):
    times = ("images_per_second", "elapsed_seconds")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def flip_bytes(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = np.fromfile(path, np.uint8)
    middle = len(content) // 2
    content[middle : middle + 50] ^= 255
    content.tofile(path)


def test_a_run_learns_and_leaves_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "draw_run", figures.draw_run)
    config = tiny.make_config(num_epochs=8)
    rows = run(config, tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    # 44 images in batches of 8: the last, partial batch is dropped.
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

    written = read_evaluation(tmp_path)
    assert written["epoch"] == 8
    assert written["accuracy"] > 0.9
    diagnosis = json.loads((tmp_path / "diagnosis.json").read_text())
    assert diagnosis["evidence"]["guessing_loss"] == pytest.approx(np.log(3))
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["requested"]["steps_per_dispatch"] is None
    assert content["resolved"]["steps_per_dispatch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "metrics.jsonl", "checkpoints", "figures"),
        *("evaluation.json", "predictions.npz", "diagnosis.json"),
    }
    shown = capsys.readouterr().out
    for text in (
        *("network: DenseNet 1-1 of separable convolutions", "MACs per image"),
        *("block0/layer0/conv/depthwise/kernel", "peak learning rate 0.1"),
        *("data: tiny, 44 train, 10 validation, 13 test", "epoch 8/8"),
        f"test accuracy {written['accuracy']:.2%} of 13 images",
        f"diagnosis: {diagnosis['verdict']}. {diagnosis['advice']}",
    ):
        assert text in shown

    # A finished run is left alone, and its result is printed again.
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    run(config, tmp_path)
    shown = capsys.readouterr().out
    assert "compiled" not in shown
    assert "test accuracy" in shown
    assert f"diagnosis: {diagnosis['verdict']}" in shown
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())

    # What a kill or a full disk has left undone is completed.
    (tmp_path / loop.LAST_FIGURE).unlink()
    run(config, tmp_path)
    assert (tmp_path / loop.LAST_FIGURE).exists()


def test_test_is_read_only_on_request_and_results_are_not_overwritten(tmp_path, capsys):
    config = tiny.make_config(num_epochs=8)
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluate.evaluate_workdir(tiny.make_resolved(), tmp_path, "test")
    rows = run(config, tmp_path, on_test=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoints"}
    assert "test accuracy" not in capsys.readouterr().out
    assert run(config, tmp_path) == rows
    assert "compiled" not in capsys.readouterr().out
    whole = read_evaluation(tmp_path)
    assert whole["epoch"] == 8
    evaluate_again(tmp_path, "validation")
    written = read_evaluation(tmp_path, "-validation")
    assert written["loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-6)
    (tmp_path / "evaluation-validation.json").unlink()

    path = tmp_path / "evaluation.json"
    for damaged in ("{", json.dumps({"epoch": 2}), json.dumps(whole | {"epoch": 1})):
        path.write_text(damaged)
        run(config, tmp_path)
        assert read_evaluation(tmp_path) == whole

    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"metrics\.jsonl but no checkpoint"):
        run(config, tmp_path)
    assert read_rows(tmp_path) == rows
    # Without the rows it starts over, and does not trust an old evaluation.
    (tmp_path / "metrics.jsonl").unlink()
    path.write_text(json.dumps(whole | {"accuracy": -1.0}))
    run(config, tmp_path)
    assert read_evaluation(tmp_path)["accuracy"] == whole["accuracy"]


def test_rows_hold_what_their_names_say(tmp_path, dataset, monkeypatch):
    ticks, scores = itertools.count(), []
    save = Checkpoints.save

    def spy(self, epoch, tree, metadata, seen):
        scores.append(seen)
        save(self, epoch, tree, metadata, seen)

    monkeypatch.setattr(Checkpoints, "save", spy)
    monkeypatch.setattr(running.time, "perf_counter", lambda: float(next(ticks)))
    with loop.Member(tiny.make_resolved(num_epochs=8), tmp_path, dataset) as member:
        loop.train([member])
    first, row, *_, last = member.history
    splits = {"train_eval": dataset.train_eval, "val": dataset.validation}
    for prefix, split in splits.items():
        values, _ = evaluation.evaluate(member.state, split, 8)
        assert last[f"{prefix}_loss"] == values["loss"]
        assert last[f"{prefix}_accuracy"] == values["accuracy"]
    # The clock ticks each time it is read, and an epoch has 40 images. Compilation,
    # during which it is read four times, does not count.
    assert row["images_per_second"] == 40.0
    assert first["elapsed_seconds"] == 3.0
    assert row["elapsed_seconds"] == 6.0
    best = {row["epoch"]: row["val_accuracy"] for row in member.history}
    assert (scores[0], scores[-1]) == ({1: best[1]}, best)


def test_an_evaluation_that_is_not_finite_is_divergence(dataset):
    config = tiny.make_resolved(num_epochs=8)
    state = loop.make_state(config, dataset)
    nan = jax.tree.map(lambda s: s * jnp.nan, state.batch_stats)
    message = r"train_eval_loss is nan after step 0; try a learning_rate below 0\.1"
    with pytest.raises(UserError, match=message):
        evaluation.evaluate_epoch(config, dataset, state.replace(batch_stats=nan))


def test_an_evaluation_beside_the_training_is_not_trusted(tmp_path, monkeypatch):
    tiny.fake_validation(monkeypatch, "val_accuracy", [0.9, 0.5, 0.5])
    append_row, drawn = running.append_row, []

    def evaluate_beside(workdir, row):
        append_row(workdir, row)
        evaluate_again(workdir, "test")
        written = read_evaluation(workdir)
        assert written["epoch"] == 1  # The best so far.
        (workdir / "evaluation.json").write_text(json.dumps(written | {"loss": -1}))
        (workdir / loop.LAST_FIGURE).parent.mkdir(exist_ok=True)
        (workdir / loop.LAST_FIGURE).touch()

    monkeypatch.setattr(running, "append_row", evaluate_beside)
    monkeypatch.setattr(loop, "draw_run", drawn.append)
    run(tiny.make_config(**STOPPING), tmp_path)
    assert read_evaluation(tmp_path)["loss"] > 0
    assert drawn == [tmp_path]


def test_what_is_said_of_earlier_epochs_is_deleted(tmp_path, dataset):
    files = [tmp_path / name for name in ("evaluation.json", "diagnosis.json")]
    for path in files:
        path.touch()
    with loop.Member(tiny.make_resolved(), tmp_path, dataset):
        assert not any(path.exists() for path in files)


def test_a_stopped_run_stays_stopped_and_its_best_epoch_is_evaluated(
    tmp_path, monkeypatch, capsys
):
    # 0.9005 is too small a change to wait for, but still the best.
    accuracies = [0.5, 0.9, 0.9005, 0.8, 0.95, 0.95]
    tiny.fake_validation(monkeypatch, "val_accuracy", accuracies)
    config = tiny.make_config(**STOPPING)
    assert len(run(config, tmp_path)) == 4
    assert read_evaluation(tmp_path)["epoch"] == 3
    shown = capsys.readouterr().out
    assert "the cosine schedule is planned for all 6 epochs" in shown
    assert "stopped early: in 2 epochs" in shown
    assert "of the cosine schedule was at 30% of its peak; epoch 3 is eval" in shown
    (tmp_path / "evaluation.json").unlink()
    assert len(run(config, tmp_path)) == 4
    assert read_evaluation(tmp_path)["epoch"] == 3
    evaluate_again(tmp_path, "validation")
    assert read_evaluation(tmp_path, "-validation")["epoch"] == 3
    # Without the best checkpoint, the latest is evaluated.
    flip_bytes(tmp_path / "checkpoints" / "3" / "arrays")
    (tmp_path / "evaluation.json").unlink()
    run(config, tmp_path)
    assert read_evaluation(tmp_path)["epoch"] == 4
    shown = capsys.readouterr().out
    assert "finished after epoch 4, step 20" in shown
    assert "epoch 4 is evaluated" in shown
    assert "the checkpoint of the best, 3, is lost" in shown


@pytest.mark.parametrize("damage", [False, True])
def test_an_interrupted_run_ends_with_the_same_bits(
    everything, dataset, tmp_path, monkeypatch, capsys, damage
):
    config, (whole, rows) = tiny.make_config(**EVERYTHING), everything
    append_row, save = running.append_row, Checkpoints.save

    def keep_the_first(self, epoch, tree, metadata, scores):
        save(self, epoch, tree, metadata, {e: -e for e in scores})

    def stop_before_the_second_row(workdir, row):
        if row["epoch"] == 2:
            raise Interrupted
        append_row(workdir, row)

    monkeypatch.setattr(Checkpoints, "save", keep_the_first)
    with monkeypatch.context() as patch:
        patch.setattr(running, "append_row", stop_before_the_second_row)
        with pytest.raises(Interrupted):
            run(config, tmp_path)
    if damage:  # Epoch 2 is lost, and trained again.
        flip_bytes(tmp_path / "checkpoints" / "2" / "arrays")
        changed = {"device_count": 2, "cpu_threads": 1000}
        monkeypatch.setattr(running, "describe_parallelism", lambda: changed)
    resumed = run(config, tmp_path)
    after = "after epoch 1, step 5" if damage else "after epoch 2, step 10"
    shown = capsys.readouterr().out
    assert f"resuming {after}" in shown
    assert ("warning: trained with " in shown) == damage
    assert ("and now with 1000 CPU threads for 2 devices" in shown) == damage
    assert without_times(resumed) == without_times(rows)
    assert resumed[1]["elapsed_seconds"] < resumed[2]["elapsed_seconds"]
    a, b = (tiny.bits(restore(w, config, dataset)) for w in (whole, tmp_path))
    assert a == b
    a, b = (np.load(w / "predictions.npz")["probabilities"] for w in (whole, tmp_path))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("minutes", [0.0, 1e-9])
def test_a_run_ends_where_its_workdir_was_removed(tmp_path, monkeypatch, minutes):
    def remove(*arguments, save=running.Member.save):
        shutil.rmtree(tmp_path / "run")
        save(*arguments)

    monkeypatch.setattr(running.Member, "save", remove)
    config = tiny.make_config(checkpoint_minutes=minutes)
    with pytest.raises(UserError, match="run was removed while it was trained"):
        run(config, tmp_path / "run")
    assert list(tmp_path.glob("run/*")) == []


def test_a_run_does_not_go_on_with_other_images(everything, tmp_path, monkeypatch):
    workdir = shutil.copytree(everything[0], tmp_path / "run")
    changed = tiny.make_dataset()
    changed.train.images[-1, 0, 0, 0] ^= 1
    monkeypatch.setattr(data, "load", lambda config: changed)
    with pytest.raises(UserError, match="dataset=tiny: its images or labels have chan"):
        run(tiny.make_config(**EVERYTHING | {"num_epochs": 4}), workdir)
    assert len(read_rows(workdir)) == 3


def test_a_finished_run_is_trained_further_if_its_schedule_allows(everything, tmp_path):
    workdir, rows = everything
    shorter = tiny.make_config(**EVERYTHING | {"num_epochs": 2})
    run(shorter, tmp_path)
    assert read_evaluation(tmp_path)["epoch"] == 2
    longer = run(tiny.make_config(**EVERYTHING), tmp_path)
    assert without_times(longer) == without_times(rows)
    assert read_evaluation(tmp_path)["loss"] == read_evaluation(workdir)["loss"]
    assert load_config(tmp_path).num_epochs == 3
    with pytest.raises(ConfigError, match="num_epochs=3 there, 2 here"):
        run(shorter, tmp_path)
    loop.open_workdir(tmp_path / "decaying", tiny.make_config(num_epochs=1), resolve)
    with pytest.raises(ConfigError, match="num_epochs=1 there, 2 here"):
        run(tiny.make_config(num_epochs=2), tmp_path / "decaying")


def test_resuming_restores_every_leaf_of_the_state(dataset, tmp_path):
    config = tiny.make_resolved(**EVERYTHING)

    def change(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(leaf, 1)
        return jnp.where(leaf > 1e30, 0, leaf) + jnp.ones((), leaf.dtype)

    initial = loop.make_state(config, dataset)
    saved = jax.tree.map(change, initial)
    before, want = tiny.bits(initial), tiny.bits(saved)
    assert all(before[name] != want[name] for name in want)
    assert {".plateau.epochs_since_best", ".ema.decay", ".label_smoothing"} < set(want)
    row = {"epoch": 1, "val_accuracy": 0.5, "elapsed_seconds": 1.0}
    Checkpoints(tmp_path).save(1, saved, {"history": [row]}, {1: 0.5})
    with loop.Member(config, tmp_path, dataset) as member:
        assert tiny.bits(member.state) == want
        assert member.history == [row]


def test_rows_and_results_are_of_the_averaged_weights_too(everything, dataset):
    workdir, rows = everything
    state = step_lib.averaged(restore(workdir, tiny.make_config(**EVERYTHING), dataset))
    values, _ = evaluation.evaluate(state, dataset.validation, 8)
    assert rows[-1]["ema_val_loss"] != rows[-1]["val_loss"]
    assert rows[-1]["ema_val_loss"] == pytest.approx(values["loss"])
    assert rows[-1]["ema_val_accuracy"] == pytest.approx(values["accuracy"])
    values, _ = evaluation.evaluate(state, dataset.test, 8)
    written = read_evaluation(workdir)
    assert written["weights"] == "ema"
    assert written["loss"] == pytest.approx(values["loss"])


def test_the_plateau_lowers_the_rate_in_the_program_and_in_the_rows(
    everything, dataset, tmp_path, monkeypatch
):
    tiny.fake_validation(monkeypatch, "val_loss", [1.0, 1.0, 1.0])
    config = tiny.make_config(**EVERYTHING)
    rows = run(config, tmp_path)
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.02], rtol=1e-6)
    plateau = restore(tmp_path, config, dataset).plateau
    assert plateau.multiplier == pytest.approx(0.04)
    # The whole run, whose losses fell, has other weights after the third epoch.
    assert rows[2]["train_loss"] != everything[1][2]["train_loss"]


CHOICES = ("conv", "lowering", "optimizer", "schedule")


def test_a_refused_config_leaves_no_workdir(tmp_path, monkeypatch):
    # 575 parameters, their momentum and gradients, and fewer than 500 other bytes.
    monkeypatch.setattr(loop, "memory_bytes", lambda: 575 * 12 + 500)
    loop.resolve(tiny.make_config(shift=7, cutout=8), tiny.make_dataset())
    for changes, message in (
        *[({name: "x"}, f"{name}='x' is unknown; choose one of") for name in CHOICES],
        ({"batch_size": 45}, "batch_size=45 is more than the 44 training images"),
        ({"block_sizes": (1, 1, 1, 1, 1)}, "block_sizes w"),
        ({"shift": 8}, "^shift=8 leaves nothing of images of 8 pixels; take at most 7"),
        ({"cutout": 9}, "^cutout=9 leaves nothing of images of 8 pixels; .* most 8"),
        # The test's machine is that small.
        ({"growth_rate": 6}, r"th_rate=6 and .*\(1, 1\) make \d+ par.* of memory here"),
    ):
        with pytest.raises(ConfigError, match=message):
            loop.train_and_evaluate(tiny.make_config(**changes), tmp_path / "run")
        assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_share_a_workdir(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process is at work"):
        run(tiny.make_config(), tmp_path)


@pytest.mark.usefixtures("recompiled")
def test_divergence_stops_the_run_and_names_the_step(tmp_path, monkeypatch):
    train_step = step_lib.train_step

    def explode(state, batch):
        bad_step = jnp.round(10 * state.dropout_rate)
        factor = jnp.where(state.step == bad_step - 1, jnp.inf, 1.0)
        return train_step(state, batch | {"image": factor * batch["image"]})

    monkeypatch.setattr(step_lib, "train_step", explode)
    # Of five steps an epoch, three in a dispatch; earlier epochs are kept.
    for bad_step, epochs in ((2, []), (8, [1])):
        changes = {"dropout_rate": bad_step / 10, "block_sizes": (1,)}
        config = tiny.make_config(steps_per_dispatch=3, **changes)
        message = (
            rf"^step {bad_step} left a loss or a parameter .* lower --config\.learn"
        )
        with pytest.raises(UserError, match=message):
            run(config, tmp_path / str(bad_step))
        rows = read_rows(tmp_path / str(bad_step))
        assert [row["epoch"] for row in rows] == epochs
        assert Checkpoints(tmp_path / str(bad_step)).epochs() == epochs


@pytest.mark.usefixtures("recompiled", "strict")
def test_jaxs_own_checks_let_a_run_pass(tmp_path):
    with jax.debug_infs(True), jax.debug_nans(True):
        run(tiny.make_config(**EVERYTHING | {"num_epochs": 1}), tmp_path)
