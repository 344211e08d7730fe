"""Time to accuracy: whether what a step saves is saved in the end.

Epochs are counted in metrics.jsonl, and cost what efficiency.json has measured for a
training step. The time that a run took itself depends on what else ran beside it.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from dwsep_jax.report import page
from dwsep_jax.report.costs import TOLERANCE
from dwsep_jax.report.files import Comparison
from dwsep_jax.report.format import fixed, times
from dwsep_jax.workdir import Row, score


def show_time_to_accuracy(comparison: Comparison) -> list[page.Block]:
    """Return the table of the variants, and what it says about the main one."""
    curves = {
        name: found
        for name, runs in comparison.runs.items()
        if (found := [run.rows for run in runs if run.rows])
    }
    bests = [max(map(score, rows)) for runs in curves.values() for rows in runs]
    level = math.floor(100 * min(bests, default=0.0) + 1e-9)
    if not level:
        return ["Left out: no level of accuracy that every run has reached."]
    rows, reached = [], {}
    for name, runs in curves.items():
        epochs = mean(_reach(run, level) for run in runs)
        epoch_seconds = measure_epoch(runs[0], comparison.runs[name][0].efficiency)
        seconds = epoch_seconds and epochs * epoch_seconds
        cells = [fixed(epoch_seconds, 2), fixed(epochs, 1), fixed(seconds, 0)]
        rows.append([name, *cells])
        reached[name] = epochs, seconds
    columns = ["variant", "seconds per epoch", "epochs", "seconds"]
    note = (
        "Epochs until the validation accuracy is first that high, mean over the seeds, "
        "times the seconds of an epoch by the measured speed of training. It is the "
        "best whole per cent that every run reaches."
    )
    table = page.Table(f"To {level} % on validation", columns, rows, note)
    return [table, *_conclude(comparison.content, reached, level)]


def _reach(rows, level):
    """Return the epoch of a run that first reaches a level, in per cent."""
    return next(row["epoch"] for row in rows if score(row) >= level / 100)


def measure_epoch(
    rows: Sequence[Row], efficiency: Mapping[str, Any] | None
) -> float | None:
    """Return the seconds of an epoch; None where the training was not measured."""
    train = efficiency["train"] if efficiency else {}
    if not train.get("images_per_second"):
        return None
    num_steps = rows[-1]["step"] / len(rows)
    return num_steps * train["batch_size"] / train["images_per_second"]


def _conclude(content, reached, level):
    """Return the main variant's time against the baseline's, where both are known."""
    (epochs, seconds), (other_epochs, other_seconds) = (
        reached.get(content[role], (None, None)) for role in ("main", "baseline")
    )
    if not (seconds and other_seconds):
        return []
    ratio = seconds / other_seconds
    outcome = "it takes as long to the same accuracy"
    if ratio < 1 - TOLERANCE:
        outcome = "what it saves per step is saved in the end"
    elif ratio > 1 + TOLERANCE:
        outcome = "it takes longer to the same accuracy"
    return [
        f"To {level} %, {content['main']} takes {times(epochs / other_epochs)} the "
        f"epochs and {times(ratio)} the time of {content['baseline']}: {outcome}."
    ]
