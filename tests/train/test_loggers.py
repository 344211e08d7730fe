"""What loggers were given, read back from their files and stores."""

import struct
import sys

import mlflow.tracking
import numpy as np
import pytest
import wandb
from tensorboardX.proto import event_pb2

from dwsep_jax.errors import UserError
from dwsep_jax.train import loggers, loop
from dwsep_jax.train.loggers import MLflow, TensorBoard, WeightsAndBiases
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


def log(logger, workdir, history, rows):
    """Start a logger, and give it more rows."""
    logger = logger(tiny.make_config(), workdir)
    for row in history + rows:
        logger.log(row)
    logger.close()
    return logger


ROWS = [make_row(epoch) for epoch in (1, 2, 3)]
TAGS = ("learning_rate", "images_per_second", "elapsed_seconds", "epoch")
TAGS = {name: f"run/{name}" for name in TAGS}
for _curve in CURVES:
    TAGS |= {f"{_curve}_{kind}": f"{kind}/{_curve}" for kind in ("loss", "accuracy")}
SCALARS = {(tag, row["step"]): row[name] for row in ROWS for name, tag in TAGS.items()}


def test_a_restart_writes_each_row_once(tmp_path):
    lost_in_a_kill = ROWS[1] | {"val_loss": -1.0}
    log(TensorBoard, tmp_path, [], [ROWS[0], lost_in_a_kill])
    log(TensorBoard, tmp_path, ROWS[:1], ROWS[1:])
    assert read_scalars(tmp_path) == {k: np.float32(v) for k, v in SCALARS.items()}


def test_mlflow_has_each_row_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "run").mkdir()
    log(MLflow, tmp_path / "run", [], ROWS[:1])
    log(MLflow, tmp_path / "run", ROWS[:2], ROWS[2:])
    client = mlflow.tracking.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'dwsep_jax'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["growth_rate"] == "4"
    found = [
        ((tag, metric.step), metric.value)
        for tag in TAGS.values()
        for metric in client.get_metric_history(run.info.run_id, tag)
    ]
    assert sorted(found) == sorted(SCALARS.items())


def test_a_run_that_mlflow_has_lost_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.id").write_text("lost")
    config = tiny.make_resolved(mlflow=True)
    with pytest.raises(
        UserError, match=r"id=lost not found; .* delete .*mlflow\.id to"
    ):
        next(loggers.open_loggers(config, tmp_path, ROWS, is_finished=False))


def test_wandb_gets_the_rows_of_one_run(tmp_path, monkeypatch):
    given = []
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_row = lambda self, values, step: given.append((step, values))  # noqa: E731
    monkeypatch.setattr(wandb.Run, "log", log_row)
    ids = set()
    for history, rows in (([], ROWS[:1]), (ROWS[:1], ROWS[1:])):
        logger = log(WeightsAndBiases, tmp_path, history, rows)
        ids.add(logger._run.id)
        assert logger._run.config["growth_rate"] == 4
    assert len(ids) == 1
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{ids.pop()}*"))) == 2
    # W&B has step 5, and leaves it out.
    assert [step for step, _ in given] == [5, 5, 10, 15]
    scalars = {(t, step): v for step, values in given for t, v in values.items()}
    assert scalars == SCALARS


def test_a_service_that_fails_does_not_end_the_training(tmp_path, monkeypatch, capsys):
    class Broken(TensorBoard):
        def log(self, row):
            raise ConnectionError("gone")

        def close(self):
            raise ConnectionError("gone for good")

    monkeypatch.setitem(loggers.LOGGERS, "tensorboard", Broken)
    config = tiny.make_config(tensorboard=True)
    loop.train_and_evaluate(config, tmp_path, on_test=False)
    shown = capsys.readouterr().out
    assert shown.count("warning: Broken misses something, while training") == 3
    assert "epoch 2/2" in shown


def test_a_logger_that_cannot_start_is_one_line(tmp_path, dataset, monkeypatch):
    def fail(**options):
        raise RuntimeError("no API key")

    monkeypatch.setattr(wandb, "init", fail)
    missing = r"pip install 'dwsep_jax\[wandb\]', or --noconfig.wandb"
    for package, remedy in ((wandb, "log in"), (None, missing)):
        monkeypatch.setitem(sys.modules, "wandb", package)
        with pytest.raises(UserError, match=f"--config.wandb: .*{remedy}"):
            loop.Member(tiny.make_resolved(wandb=True), tmp_path, dataset).__enter__()


def test_events_requested_after_the_end_are_written_once(tmp_path):
    loop.train_and_evaluate(tiny.make_config(), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    modified = set()
    for _ in range(2):
        loop.train_and_evaluate(tiny.make_config(tensorboard=True), tmp_path)
        assert {step for _, step in read_scalars(tmp_path)} == {5, 10}
        (path,) = (tmp_path / "tensorboard").iterdir()
        modified.add(path.stat().st_mtime_ns)
    assert len(modified) == 1
