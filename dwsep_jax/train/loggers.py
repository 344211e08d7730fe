"""Where the rows of a run go besides metrics.jsonl: TensorBoard, W&B, MLflow."""

import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ml_collections import ConfigDict

from dwsep_jax.config import flatten
from dwsep_jax.console import say
from dwsep_jax.errors import UserError
from dwsep_jax.workdir import Row, write_atomically

PROJECT = "dwsep_jax"
# Prefixes of a row's names; `train_eval_loss` starts with two of them.
_CURVES = ("train_eval", "train", "ema_val", "val")


class Logger(Protocol):
    """Takes each row of a run once, however often the run is resumed.

    Attributes:
      place: in the workdir, what is there once rows were logged.
    """

    place: str

    def log(self, row: Row) -> None:
        """Add the numbers of an epoch, at its step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Events in <workdir>/tensorboard, started afresh from the rows so far."""

    place = "tensorboard"

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, history: list[Row]):
        from tensorboardX import SummaryWriter  # It imports PyTorch where that is.

        directory = workdir / self.place
        if directory.exists():
            shutil.rmtree(directory)
        self._writer = SummaryWriter(str(directory))
        for row in history:
            self.log(row)

    def log(self, row: Row) -> None:
        """Add the numbers of an epoch, at its step."""
        for tag, value in _make_scalars(row):
            self._writer.add_scalar(tag, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `dwsep_jax`, below <workdir>/wandb; its id stays the same.

    W&B leaves out the steps that it has.
    """

    place = "wandb"

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, history: list[Row]):
        import wandb

        directory = workdir / self.place
        directory.mkdir(exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            name=workdir.name,
            dir=str(workdir),
            id=_keep_id(directory / "id", lambda: uuid.uuid4().hex),
            resume="allow",
            config=flatten(config),
            settings=wandb.Settings(silent=True),
        )
        for row in history:
            self.log(row)

    def log(self, row: Row) -> None:
        """Add the numbers of an epoch, at its step."""
        self._run.log(dict(_make_scalars(row)), step=row["step"])

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class MLflow:
    """A run of the experiment `dwsep_jax` at MLFLOW_TRACKING_URI."""

    place = "mlflow.id"

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, history: list[Row]):
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(PROJECT)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(PROJECT)
        )

        def start():
            run = self._client.create_run(experiment_id, run_name=workdir.name)
            for name, value in flatten(config).items():
                self._client.log_param(run.info.run_id, name, value)
            return run.info.run_id

        self._id = _keep_id(workdir / self.place, start)
        there = self._client.get_metric_history(self._id, "run/epoch")
        self._last_step = max((metric.step for metric in there), default=0)
        for row in history:
            self.log(row)

    def log(self, row: Row) -> None:
        """Add the numbers of an epoch, at its step."""
        if row["step"] > self._last_step:
            for tag, value in _make_scalars(row):
                self._client.log_metric(self._id, tag, value, step=row["step"])

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._id)


# By the fields of a config that ask for them.
LOGGERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def open_loggers(
    config: ConfigDict, workdir: pathlib.Path, history: list[Row], is_finished: bool
) -> Iterator[Logger]:
    """Start the loggers that a config asks for, and give them the rows so far.

    A run that is finished is logged only where it was not.

    Raises:
      UserError: if the package of one is missing, or its service does not answer.
    """
    for name, logger in LOGGERS.items():
        if config[name] and not (is_finished and (workdir / logger.place).exists()):
            try:
                yield logger(config, workdir, history)
            except ModuleNotFoundError as error:
                raise UserError(
                    f"--config.{name}: {error}; pip install 'dwsep_jax[{name}]', or "
                    f"--noconfig.{name}"
                ) from error
            except Exception as error:  # Of many types, as each package has its own.
                place = workdir / logger.place
                another = f"delete {place} to log to another run, " * place.is_file()
                raise UserError(
                    f"--config.{name}: {error}; log in there, {another}or "
                    f"--noconfig.{name}"
                ) from error
            say(f"logging to {name}")


def try_to(call: Callable[..., None], *arguments: Any) -> None:
    """Call a logger; warn where its service fails, which must not end the training."""
    try:
        call(*arguments)
    except Exception as error:  # Of many types, as each package has its own.
        name = type(call.__self__).__name__
        say(f"warning: {name} misses something, while training goes on: {error}")


def _keep_id(path: pathlib.Path, make: Callable[[], str]) -> str:
    """Return the id that a file holds; make one where there is none."""
    if not path.exists():
        write_atomically(path, make())
    return path.read_text().strip()


def _make_scalars(row):
    """Return (tag, value) of the numbers in a row, grouped by what they measure."""
    for name, value in row.items():
        if name in ("schema", "step"):
            continue
        curve = next((c for c in _CURVES if name.startswith(c + "_")), None)
        tag = f"{name.removeprefix(f'{curve}_')}/{curve}" if curve else f"run/{name}"
        yield tag, value
