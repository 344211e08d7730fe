"""Console output: lines, tables, and a progress bar on a terminal."""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import rich.box
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Labels of the itemized FLOPs in efficiency.json; the rest is "other".
FLOP_ITEMS = {
    "conv_and_dense": "convolutions and dense, 2 x MACs",
    "padding": "their taps on padding",
    "bias": "bias",
    "norm": "batch norm",
    "activation": "activation",
    "pooling": "pooling",
    "dropout": "dropout and its random bits",
    "loss": "loss",
    "update": "optimizer and metrics",
}


# A console that neither styles, parses nor wraps what it prints.
_make_console = functools.partial(
    Console, highlight=False, emoji=False, markup=False, soft_wrap=True
)
_console = _make_console()
_log = None  # Within `logged`, the console that writes to the file.


@contextlib.contextmanager
def logged(path: str | os.PathLike) -> Iterator[None]:
    """Append lines and tables to a file; progress bars stay on the terminal."""
    global _log
    before = _log
    with open(path, "a", encoding="utf-8") as file:
        _log = _make_console(file=file)
        try:
            yield
        finally:
            _log = before


def say(text: str) -> None:
    """Print a line verbatim."""
    (_log or _console).print(text)


def print_table(
    title: str,
    columns: list[str],
    rows: list[list[Any]],
    text_columns: Sequence[int] = (0,),
) -> None:
    """Print a table, with text columns left-aligned and numbers right-aligned."""
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(
            column, justify="left" if i in text_columns else "right", no_wrap=True
        )
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else cell for cell in row)
        table.add_row(*map(Text, cells))
    # rich would cut or wrap a table that is wider than its console.
    _make_console(file=(_log or _console).file, width=100_000).print(table)


class EpochProgress(Progress):
    """A progress bar over the steps of each epoch, if enabled and on a terminal.

    A context manager around the whole run.
    """

    def __init__(self, config: ConfigDict, steps_per_epoch: int):
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TimeRemainingColumn(),
            console=_console,
            disable=not (config.progress and _console.is_terminal),
            transient=True,
        )
        self._task = self.add_task("", total=steps_per_epoch)
        self._num_epochs = config.num_epochs

    def start_epoch(self, epoch: int) -> None:
        """Move the bar back to the start of an epoch, counted from zero."""
        self.reset(self._task, description=f"epoch {epoch + 1}/{self._num_epochs}")

    def advance_steps(self, num_steps: int) -> None:
        """Move the bar."""
        self.advance(self._task, num_steps)


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


def format_setting(value: Any, digits: int = 3) -> str:
    """Return the value of a field, a float to so many significant digits."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def format_points(summary: dict[str, Any], sign: str = "") -> str:
    """Return mean and 95 % interval of shares of 1, in points.

    Args:
      summary: as `statistics.summarize_sample` returns it.
      sign: "+" to show that of a difference.
    """
    if summary["ci95"] is None:
        return f"{100 * summary['mean']:{sign}.2f}"
    half = (summary["ci95"][1] - summary["ci95"][0]) / 2
    return f"{100 * summary['mean']:{sign}.2f} ± {100 * half:.2f}"


def print_evaluation(evaluation: dict[str, Any], network: str) -> None:
    """Print the result of a run: one table of all classes, and a closing line."""
    print_table(*tabulate_classes(evaluation))
    say(
        f"{evaluation['split']} accuracy {evaluation['accuracy']:.2%} of "
        f"{evaluation['num_examples']:,} images, loss {evaluation['loss']:.4f}, "
        f"calibration error {evaluation['calibration']['ece']:.4f}"
    )
    if "temperature" in evaluation:  # Earlier versions had none.
        before, after = evaluation["calibration"], evaluation["calibrated"]
        say(
            f"temperature {evaluation['temperature']:.3f}, fitted on validation: "
            f"calibration error {before['ece']:.4f} -> {after['ece']:.4f}, "
            f"NLL {before['nll']:.4f} -> {after['nll']:.4f}"
        )
    say(f"network: {network}")


def tabulate_classes(evaluation: dict[str, Any]) -> tuple[str, list[str], list]:
    """Return title, columns and rows: scores of each class, and of the averages."""
    keys, count = ("precision", "recall", "f1"), f"{evaluation['num_examples']:,}"
    rows = [
        [c["name"], *(f"{c[key]:.4f}" for key in keys), f"{c['support']:,}"]
        for c in evaluation["per_class"]
    ]
    for average in ("macro", "weighted", "micro"):
        scores = (f"{evaluation[key][average]:.4f}" for key in keys)
        rows.append([f"{average} average", *scores, count])
    title = f"Result on {evaluation['split']} after epoch {evaluation['epoch']}"
    return title, ["class", "precision", "recall", "F1", "images"], rows


def print_efficiency(efficiency: dict[str, Any]) -> None:
    """Print the content of efficiency.json: tables, and what limits the network."""
    for table in tabulate_efficiency(efficiency):
        print_table(*table)
    say(describe_limit(efficiency))


def tabulate_efficiency(
    efficiency: dict[str, Any],
) -> list[tuple[str, list[str], list, tuple[int, ...]]]:
    """Return title, columns, rows and text columns of each table of efficiency.json.

    A figure that could not be had is "-".
    """
    total = {"name": "total", "kind": "", "output_shape": (), "share": 1.0}
    layers = [
        [layer["name"], layer["kind"], "x".join(map(str, layer["output_shape"]))]
        + [_number(layer["parameters"]), _number(layer["macs"])]
        + [f"{layer['share']:.2%}"]
        for layer in [*efficiency["layers"], efficiency | total]
    ]
    flops = efficiency["flops"]
    items = (flops["itemized"], flops["itemized_train_step"])
    counts = [
        [label, *(_number(found.get(item)) for found in items)]
        for item, label in {**FLOP_ITEMS, "other": "other"}.items()
    ]
    totals = (flops["xla_forward"], flops["xla_train_step"])
    counts.append(["total, as XLA counts it", *map(_number, totals)])

    compiled = efficiency["compile_seconds"]
    timed = [
        (f"inference, {row['dtype']}", row, compiled["inference"].get(f"{size}"))
        for row in efficiency["latency"]
        for size in [row["batch_size"]]
    ]
    timed.append(("training step", efficiency["train"], compiled["train"]))
    times = [
        [name, _number(row["batch_size"])]
        + [_number(row[key], 3) for key in ("median_ms", "p95_ms", "spread_ms")]
        + [_number(row["images_per_second"], 1), _number(seconds, 1)]
        for name, row, seconds in timed
    ]

    memory = efficiency["memory"]
    sizes = [
        [key.removesuffix("_bytes").replace("_", " ")]
        + [_number(memory.get(key), 3, 2**20), source]
        for key, source in memory["source"].items()
    ]
    columns = ["layer", "kind", "output", "parameters", "MACs per image", "share"]
    time_columns = ["time", "images", "median ms", "95 % ms", "spread ms", "images/s"]
    time_columns.append("compiled in s")
    return [
        ("Layers", columns, layers, (0, 1)),
        ("FLOPs per image", ["for", "inference", "training step"], counts, (0,)),
        ("Time", time_columns, times, (0,)),
        ("Memory", ["memory", "MiB", "source"], sizes, (0, 2)),
    ]


def describe_limit(efficiency: dict[str, Any]) -> str:
    """Return what the machine reached with the network, and what that says."""
    limits = {
        "arithmetic": "arithmetic limits it",
        "memory": "memory limits it",
        "neither": "neither limits it, but the number or the shape of its operations",
        None: "what limits it is not known",
    }
    rates = efficiency | efficiency["machine"]
    flops, most_flops, num_bytes, most_bytes = (
        _number(rates[f"{kind}_per_second"], 1, 1e9)
        for kind in ("achieved_flops", "matmul_flops", "achieved_bytes", "copy_bytes")
    )
    return (
        "FLOPs is a count of operations, two for each MAC, and FLOP/s a rate: "
        f"{efficiency['achieved_by'] or 'inference'} reached {flops} GFLOP/s of the "
        f"{most_flops} that a matrix product reaches here, and {num_bytes} GB/s (by "
        f"XLA's count of bytes) of the {most_bytes} of a copy; "
        f"{limits[efficiency['limited_by']]}"
    )


def _number(value, decimals=0, unit=1):
    return "-" if value is None else f"{value / unit:,.{decimals}f}"
