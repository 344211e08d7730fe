"""Console output: lines, tables, and a progress bar on a terminal."""

import contextlib
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


def _make_console(**options):
    """Return a console that neither styles, parses nor wraps what it prints."""
    return Console(
        highlight=False, emoji=False, markup=False, soft_wrap=True, **options
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
    console = _log or _console
    unlimited = console.options.update(max_width=10_000)
    width = console.measure(table, options=unlimited).maximum
    # rich would cut or wrap a table that is wider than its console.
    wide = _make_console(file=console.file, width=max(console.width, width))
    wide.print(table)


class EpochProgress:
    """A progress bar over the steps of each epoch, if enabled and on a terminal.

    A context manager around the whole run.
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


def print_efficiency(efficiency: dict[str, Any]) -> None:
    """Print the content of efficiency.json: four tables, and what limits the network.

    A figure that could not be had is printed as "-".
    """
    rows = [
        [
            *(layer[key] for key in ("name", "kind")),
            "x".join(map(str, layer["output_shape"])),
        ]
        + [layer["parameters"], layer["macs"], f"{layer['share']:.2%}"]
        for layer in efficiency["layers"]
    ]
    rows.append(
        ["total", "", "", efficiency["parameters"], efficiency["macs"], f"{1:.2%}"]
    )
    columns = ["layer", "kind", "output", "parameters", "MACs per image", "share"]
    print_table("Layers", columns, rows, text_columns=(0, 1))

    flops = efficiency["flops"]
    both = (flops["itemized"], flops["itemized_train_step"])
    labels = {**FLOP_ITEMS, "other": "other"}
    rows = [
        [label, *(_number(items[item]) for items in both)]
        for item, label in labels.items()
    ]
    totals = (flops["xla_forward"], flops["xla_train_step"])
    rows.append(["total, as XLA counts it", *map(_number, totals)])
    print_table("FLOPs per image", ["for", "inference", "training step"], rows)

    seconds = efficiency["compile_seconds"]
    rows = [
        [f"inference, {row['dtype']}", *_timing_cells(row)]
        + [_number(seconds["inference"][str(row["batch_size"])], 1)]
        for row in efficiency["latency"]
    ]
    train = ["training step", *_timing_cells(efficiency["train"])]
    rows.append([*train, _number(seconds["train"], 1)])
    columns = ["time", "images", "median ms", "95 % ms", "spread ms", "images/s"]
    print_table("Time", [*columns, "compiled in s"], rows)

    memory = efficiency["memory"]
    rows = [
        [key.removesuffix("_bytes").replace("_", " "), _number(memory[key], 3, 2**20)]
        + [source]
        for key, source in memory["source"].items()
    ]
    print_table("Memory", ["memory", "MiB", "source"], rows, text_columns=(0, 2))
    say(describe_limit(efficiency))


def describe_limit(efficiency: dict[str, Any]) -> str:
    """Return what the machine reached with the network, and what that says."""
    machine = efficiency["machine"]
    flops, num_bytes = (
        _number(efficiency[f"achieved_{unit}_per_second"], 1, 1e9)
        for unit in ("flops", "bytes")
    )
    limits = {
        "arithmetic": "arithmetic limits it",
        "memory": "memory limits it",
        "neither": "neither limits it, but the number or the shape of its operations",
        None: "what limits it is not known",
    }
    return (
        "FLOPs is a count of operations, two for each MAC, and FLOP/s a rate: "
        f"{efficiency['achieved_by'] or 'inference'} reached {flops} GFLOP/s of the "
        f"{_number(machine['matmul_flops_per_second'], 1, 1e9)} that a matrix product "
        f"reaches here, and {num_bytes} GB/s (by XLA's count of bytes) of the "
        f"{_number(machine['copy_bytes_per_second'], 1, 1e9)} of a copy; "
        f"{limits[efficiency['limited_by']]}"
    )


def _timing_cells(row):
    keys = ("median_ms", "p95_ms", "spread_ms")
    times = [_number(row[key], 3) for key in keys]
    return [row["batch_size"], *times, _number(row["images_per_second"], 1)]


def _number(value, decimals=0, unit=1):
    return "-" if value is None else f"{value / unit:,.{decimals}f}"
