"""Where the rows of a run go besides metrics.jsonl: TensorBoard, W&B, MLflow.

Each takes every row once, however often the run is resumed. Its `place` in the workdir
is there once rows were logged.
"""

import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax.config import flatten
from dwsep_jax.console import say
from dwsep_jax.errors import UserError
from dwsep_jax.workdir import Row, write_atomically

PROJECT = "dwsep_jax"
# Names in a row; `train_eval_loss` starts with two of the prefixes.
_OF_A_CURVE = re.compile("^(train_eval|train|ema_val|val)_(.*)")


class TensorBoard:
    """Events in <workdir>/tensorboard, started afresh."""

    place = "tensorboard"

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        from tensorboardX import SummaryWriter  # It imports PyTorch where that is.

        directory = workdir / self.place
        if directory.exists():
            shutil.rmtree(directory)
        self._writer = SummaryWriter(str(directory))

    def log(self, row: Row) -> None:
        """Add the numbers of an epoch, at its step."""
        for tag, value in _make_scalars(row).items():
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

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
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

    def log(self, row: Row) -> None:
        """Add the numbers of an epoch, at its step."""
        self._run.log(_make_scalars(row), step=row["step"])

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class MLflow:
    """A run of the experiment `dwsep_jax` at MLFLOW_TRACKING_URI."""

    place = "mlflow.id"

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        from mlflow.tracking import MlflowClient

        self._client = client = MlflowClient()
        found = client.get_experiment_by_name(PROJECT)
        parent = found.experiment_id if found else client.create_experiment(PROJECT)

        def start():
            run = client.create_run(parent, run_name=workdir.name)
            for name, value in flatten(config).items():
                client.log_param(run.info.run_id, name, value)
            return run.info.run_id

        self._id = _keep_id(workdir / self.place, start)
        there = client.get_metric_history(self._id, "run/epoch")
        self._last_step = max((metric.step for metric in there), default=0)

    def log(self, row: Row) -> None:
        """Add the numbers of an epoch, at its step."""
        if row["step"] > self._last_step:
            for tag, value in _make_scalars(row).items():
                self._client.log_metric(self._id, tag, value, step=row["step"])

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._id)


Logger = TensorBoard | WeightsAndBiases | MLflow
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
                started = logger(config, workdir)
                for row in history:
                    started.log(row)
            except Exception as error:  # Of many types, as each package has its own.
                place, remedy = workdir / logger.place, "log in there"
                if isinstance(error, ModuleNotFoundError):
                    remedy = f"pip install 'dwsep_jax[{name}]'"
                elif place.is_file():
                    remedy += f", delete {place} to log to another run"
                raise UserError(
                    f"--config.{name}: {error}; {remedy}, or --noconfig.{name}"
                ) from error
            say(f"logging to {name}")
            yield started


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


def _make_scalars(row: Row) -> dict[str, float]:
    """Return the numbers in a row by their tags, grouped by what they measure."""
    tags = {name: _OF_A_CURVE.sub(r"\2/\1", name) for name in row if name != "step"}
    return {t if "/" in t else f"run/{t}": row[name] for name, t in tags.items()}
