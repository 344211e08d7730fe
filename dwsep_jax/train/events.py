"""TensorBoard events of a run, without TensorFlow."""

import os
import pathlib
import shutil
from collections.abc import Iterable

from tensorboardX import SummaryWriter

from dwsep_jax.workdir import Row

# train_eval_loss is the curve train_eval of the chart loss.
_CURVES = ("train_eval", "train", "ema_val", "val")


class Events:
    """Writes the rows of a run to <workdir>/tensorboard. Use as a context manager."""

    def __init__(self, workdir: str | os.PathLike, history: Iterable[Row]):
        """Start anew from the rows so far, so that none is there twice or missing."""
        directory = pathlib.Path(workdir) / "tensorboard"
        if directory.exists():
            shutil.rmtree(directory)
        self._writer = SummaryWriter(str(directory))
        for row in history:
            self.write(row)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._writer.close()

    def write(self, row: Row) -> None:
        """Add the numbers of an epoch, at its step."""
        for name, value in row.items():
            if name not in ("schema", "step"):
                self._writer.add_scalar(_tag(name), value, row["step"])
        self._writer.flush()


def _tag(name):
    for curve in _CURVES:
        if name.startswith(curve + "_"):
            return f"{name.removeprefix(curve + '_')}/{curve}"
    return f"run/{name}"
