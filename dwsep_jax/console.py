"""What a person sees of a run: tables, and a progress bar where there is a terminal."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import rich.box
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def _make_console(**options):
    """Return a console that prints text as it is, and long lines whole."""
    return Console(
        highlight=False, emoji=False, markup=False, soft_wrap=True, **options
    )


_console = _make_console()
_log = None  # Where lines and tables go instead, within `logged`.


@contextlib.contextmanager
def logged(path: str | os.PathLike) -> Iterator[None]:
    """Append lines and tables to a file instead; a progress bar is still shown."""
    global _log
    with open(path, "a", encoding="utf-8") as file:
        _log = _make_console(file=file)
        try:
            yield
        finally:
            _log = None


def say(text: str) -> None:
    """Print a line as it is."""
    (_log or _console).print(text)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table: the first column to the left, numbers to the right."""
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else cell for cell in row)
        table.add_row(*map(Text, cells))
    console = _log or _console
    unlimited = console.options.update(max_width=10_000)
    width = console.measure(table, options=unlimited).maximum
    # A console never prints wider than itself: a table would be cut, or wrapped.
    wide = _make_console(file=console.file, width=max(console.width, width))
    wide.print(table)


class EpochProgress:
    """A bar over the steps of each epoch, where there is a terminal and it is wanted.

    Use as a context manager around the whole run.
    """

    def __init__(self, config: ConfigDict, steps_per_epoch: int):
        self._num_epochs = config.num_epochs
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TimeRemainingColumn(),
            console=_console,
            disable=not (config.progress and _console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task("", total=steps_per_epoch)

    def __enter__(self) -> "EpochProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception):
        self._bar.stop()

    def start_epoch(self, epoch: int) -> None:
        """Move the bar back to the start of an epoch, counted from zero."""
        description = f"epoch {epoch + 1}/{self._num_epochs}"
        self._bar.reset(self._task, description=description)

    def advance(self, num_steps: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, num_steps)


def format_epoch(row: dict[str, Any], num_epochs: int, seconds_left: float) -> str:
    """Return the line of an epoch's row of metrics.jsonl."""
    ema = ""
    if "ema_val_accuracy" in row:
        ema = f" ({row['ema_val_accuracy']:.2%} averaged)"
    return (
        f"epoch {row['epoch']:>{len(str(num_epochs))}}/{num_epochs}"
        f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:6.2%}"
        f"  validation loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:6.2%}"
        f"{ema}  {row['images_per_second']:,.0f} images/s"
        f"  {format_seconds(seconds_left)} left"
    )


def format_seconds(seconds: float) -> str:
    """Return a duration as 45 s, 12 min 05 s or 3 h 07 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


def print_evaluation(evaluation: dict[str, Any], network: str) -> None:
    """Print the result of a run: one table of all classes, and a closing line."""
    rows = [
        [c["name"], *(f"{c[key]:.4f}" for key in ("precision", "recall", "f1"))]
        + [c["support"]]
        for c in evaluation["per_class"]
    ]
    for average in ("macro", "weighted", "micro"):
        scores = (evaluation[key][average] for key in ("precision", "recall", "f1"))
        count = evaluation["num_examples"]
        rows.append([f"{average} average", *(f"{s:.4f}" for s in scores), count])
    title = f"Result on {evaluation['split']} after epoch {evaluation['epoch']}"
    print_table(title, ["class", "precision", "recall", "F1", "images"], rows)
    calibration = evaluation["calibration"]
    say(
        f"{evaluation['split']} accuracy {evaluation['accuracy']:.2%} of "
        f"{evaluation['num_examples']:,} images, loss {evaluation['loss']:.4f}, "
        f"calibration error {calibration['ece']:.4f}"
    )
    say(f"network: {network}")
