"""Time to accuracy: whether what a step saves is saved in the end.

Epochs are counted in metrics.jsonl, and cost what efficiency.json has measured for a
training step. The time that a run took itself depends on what else ran beside it.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from dwsep_jax.report import page
from dwsep_jax.report.costs import TOLERANCE
from dwsep_jax.report.files import Comparison
from dwsep_jax.report.format import fixed, times
from dwsep_jax.workdir import Row, score

# How many points below the best level the others lie.
_BELOW = (10, 5, 2, 0)


class Reached(NamedTuple):
    """Epochs to a level of validation accuracy, mean over the runs, and their time."""

    epochs: float
    seconds: float | None


def find_levels(curves: Mapping[str, Sequence[Sequence[Row]]]) -> list[int]:
    """Return levels of validation accuracy, in per cent, that every run reaches.

    The last is the best such level.

    Args:
      curves: the rows of each run of each variant.
    """
    bests = [max(map(score, rows)) for runs in curves.values() for rows in runs]
    top = math.floor(100 * min(bests, default=0.0) + 1e-9)
    return [top - points for points in _BELOW if top > points]


def measure_epoch(
    rows: Sequence[Row], efficiency: Mapping[str, Any] | None
) -> float | None:
    """Return the seconds of an epoch; None where the training was not measured."""
    train = efficiency["train"] if efficiency else {}
    if not train.get("images_per_second"):
        return None
    num_steps = rows[-1]["step"] / len(rows)
    return num_steps * train["batch_size"] / train["images_per_second"]


def reach(
    runs: Sequence[Sequence[Row]], level: int, epoch_seconds: float | None
) -> Reached:
    """Return when the runs of a variant first reach a level."""
    epochs = mean(
        next(row["epoch"] for row in rows if score(row) >= level / 100) for rows in runs
    )
    return Reached(epochs, epoch_seconds and epochs * epoch_seconds)


def show_time_to_accuracy(comparison: Comparison) -> list[page.Block]:
    """Return the table of the variants, and what it says about the main one."""
    curves = {
        name: found
        for name, runs in comparison.runs.items()
        if (found := [run.rows for run in runs if run.rows])
    }
    levels = find_levels(curves)
    if not levels:
        return [page.Text("Left out: no level of accuracy that every run has reached.")]
    rows, at_best = [], {}
    for name, runs in curves.items():
        seconds = measure_epoch(runs[0], comparison.runs[name][0].efficiency)
        reached = [reach(runs, level, seconds) for level in levels]
        cells = [
            f"{fixed(found.epochs, 1)} epochs, {fixed(found.seconds, 0)} s"
            for found in reached
        ]
        rows.append([name, fixed(seconds, 2), *cells])
        at_best[name] = reached[-1]
    columns = ["variant", "seconds per epoch", *(f"{level} %" for level in levels)]
    note = (
        "Epochs until the validation accuracy is first that high, mean over the seeds, "
        "times the seconds of an epoch by the measured speed of training. The highest "
        "column is the best whole per cent that every run reaches."
    )
    table = page.Table("Time to a validation accuracy", columns, rows, note)
    words = _conclude(comparison.content, at_best, levels[-1])
    return [table, page.Text(words)] if words else [table]


def _conclude(content, reached, level):
    """Return the main variant's time against the baseline's; None where unknown."""
    main, baseline = (reached.get(content[role]) for role in ("main", "baseline"))
    if not (main and baseline and main.seconds and baseline.seconds):
        return None
    ratio = main.seconds / baseline.seconds
    if ratio < 1 - TOLERANCE:
        outcome = "what it saves per step is saved in the end"
    elif ratio > 1 + TOLERANCE:
        outcome = "it takes longer to the same accuracy"
    else:
        outcome = "it takes as long to the same accuracy"
    return (
        f"To {level} %, {content['main']} takes {times(main.epochs / baseline.epochs)} "
        f"the epochs and {times(ratio)} the time of {content['baseline']}: {outcome}."
    )
