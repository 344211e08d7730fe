"""Loss curves to a verdict, with the numbers behind it and what to do about it.

Reads what a run wrote, with numpy alone. Only losses and accuracies in evaluation mode
are looked at (`train_eval_*`, `val_*`): `train_loss` has dropout and augmentation in it.

Losses are judged as shares of the loss of guessing, ln(num_classes), so that one set of
thresholds fits any number of classes. The thresholds were set on made curves
(`make_tuning_curve` in tests/curves.py), and tested on others and on real runs.
"""

import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dwsep_jax.errors import UserError
from dwsep_jax.files import write_atomically
from dwsep_jax.history import Row, read_rows

Evidence = dict[str, float | None]

# The end of a curve is its last sixth; its course, the last half.
PARTS = 6
# Of the loss of guessing. A validation loss that rose by more than this since its best
# is overfitting; one that will fall by more, is still improving.
MIN_RISE = 0.03
MIN_GAIN = 0.04
# The same as a share of the validation loss itself.
MIN_RELATIVE_RISE = 0.15
MIN_RELATIVE_GAIN = 0.1
# In standard errors of the end of a curve.
MIN_SIGNIFICANCE = 3.0
# Accuracy on train above that on validation, and its share of the validation error.
MIN_GAP = 0.08
MIN_RELATIVE_GAP = 0.4
# Loss and error on train, as shares of those of guessing: above both, it underfits.
UNDERFITTED = 0.2
# The share of what was learned whose loss is divergence.
UNLEARNED = 0.6
# Fewer epochs show no end.
MIN_EPOCHS = 5


class Curves(NamedTuple):
    """Values at every epoch from the first to the last, float64 (N,)."""

    train_loss: np.ndarray
    val_loss: np.ndarray
    train_accuracy: np.ndarray | None
    val_accuracy: np.ndarray | None


def write_diagnosis(workdir: str | os.PathLike) -> dict[str, Any]:
    """Diagnose the run in a workdir; write diagnosis.json and return its content.

    The number of classes is read from evaluation.json, where there is one.

    Raises:
      UserError: if metrics.jsonl has no epoch, or is damaged.
    """
    workdir = pathlib.Path(workdir)
    rows = read_rows(workdir)
    if not rows:
        raise UserError(f"{workdir} has no epoch to diagnose; train it first")
    diagnosis = {"schema": 1, **diagnose(rows, _read_num_classes(workdir))}
    text = json.dumps(diagnosis, indent=2, sort_keys=True, allow_nan=False) + "\n"
    path = workdir / "diagnosis.json"
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)
    return diagnosis


def _read_num_classes(workdir):
    try:
        evaluation = json.loads((workdir / "evaluation.json").read_bytes())
        return len(evaluation["per_class"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def diagnose(rows: Sequence[Row], num_classes: int | None = None) -> dict[str, Any]:
    """Return what the curves of a run say about it.

    Epochs and values may be missing (left out, None or not finite).

    Args:
      rows: as in metrics.jsonl, in any order.
      num_classes: whose logarithm is the loss of guessing; without it, the loss of the
        first epoch stands for that.

    Returns:
      {verdict, evidence, advice}: one of overfitting, underfitting, well_fitted,
      still_improving, diverged; numbers by name, losses in nats, None where there is
      none; one or two sentences that name config fields.

    Raises:
      UserError: if no row has both a train_eval_loss and a val_loss.
    """
    by_epoch = {row["epoch"]: row for row in rows if _is_finite(row.get("epoch"))}
    rows = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    curves = _make_curves(rows)
    evidence = _measure(rows, curves, num_classes)
    verdict = _judge(evidence)
    return {
        "verdict": verdict,
        "evidence": evidence,
        "advice": _ADVICE[verdict](evidence),
    }


def _is_finite(value):
    return isinstance(value, int | float) and math.isfinite(value)


def _make_curves(rows):
    """Fill in what is missing along straight lines."""
    names = ("train_eval_loss", "val_loss", "train_eval_accuracy", "val_accuracy")
    points = {
        name: [(row["epoch"], row[name]) for row in rows if _is_finite(row.get(name))]
        for name in names
    }
    for name in names[:2]:
        if not points[name]:
            raise UserError(f"no epoch with a finite {name}: nothing to diagnose")
    epochs = np.arange(rows[0]["epoch"], rows[-1]["epoch"] + 1)
    return Curves(
        *(
            np.interp(epochs, *np.array(points[name], float).T)
            if points[name]
            else None
            for name in names
        )
    )


def _measure(rows, curves, num_classes):
    """Return the evidence: what is judged, and what else a reader wants to see."""
    train, val = curves.train_loss, curves.val_loss
    size = max(1, round(len(val) / PARTS))
    guessing = math.log(num_classes) if num_classes else max(train[0], val[0])
    train_end, val_end, train_accuracy, val_accuracy = (
        None if curve is None else _levels(curve, size)[-1] for curve in curves
    )
    smooth_train, smooth_val = _smooth(train, size), _smooth(val, size)
    gaps = _levels(val - train, size)
    falls = -np.diff(_levels(val, size))
    noise = _measure_noise(val)
    rates = [r["learning_rate"] for r in rows if _is_finite(r.get("learning_rate"))]
    first = rows[0]["epoch"]
    evidence = {
        "num_epochs": len(rows),
        "guessing_loss": guessing,
        "train_eval_loss": train_end,
        "train_eval_loss_last": train[-1],
        "train_eval_loss_best": smooth_train.min(),
        "train_eval_accuracy": train_accuracy,
        "val_loss": val_end,
        "val_loss_best": smooth_val.min(),
        "val_loss_best_epoch": first + int(smooth_val.argmin()),
        "val_loss_rise": val_end - smooth_val.min(),
        "val_loss_slope": -falls[-1] / size if len(falls) else None,
        "val_loss_noise": noise,
        "val_loss_gain_ahead": _extrapolate(curves, size, noise or 0.0),
        "val_accuracy": val_accuracy,
        "val_accuracy_best_epoch": None,
        "val_accuracy_drop": None,
        "loss_gap": gaps[-1],
        "loss_gap_slope": (gaps[-1] - gaps[-2]) / size if len(gaps) > 1 else None,
        "accuracy_gap": None,
        "learning_rate_share": rates[-1] / max(rates) if rates and max(rates) else None,
        "num_not_finite_at_end": _count_not_finite_at_end(rows),
    }
    if val_accuracy is not None:
        smooth = _smooth(curves.val_accuracy, size)
        evidence["val_accuracy_best_epoch"] = first + int(curves.val_accuracy.argmax())
        evidence["val_accuracy_drop"] = smooth.max() - val_accuracy
        if train_accuracy is not None:
            evidence["accuracy_gap"] = train_accuracy - val_accuracy
    return {
        name: value if value is None or isinstance(value, int) else float(value)
        for name, value in evidence.items()
    }


def _levels(curve, size):
    """Return the medians of the last three parts of `size` epochs, the last one last.

    Fewer where the curve is shorter.
    """
    starts = range(len(curve) - 3 * size, len(curve), size)
    parts = [curve[start : start + size] for start in starts if start >= 0]
    return np.array([np.median(part) for part in parts])


def _smooth(curve, size):
    """Return running medians: a spike of one epoch does not count as a best one."""
    half = min(max(1, size // 2), 12)
    padded = np.pad(curve, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    return np.median(windows, axis=1)


def _measure_noise(curve):
    """Return the standard deviation about a smooth curve, None for fewer than 6 epochs.

    From third differences, in which a parabola leaves nothing; of the latter half,
    since curves calm down.
    """
    if len(curve) < 6:
        return None
    differences = np.diff(curve[-max(6, len(curve) // 2) :], n=3)
    # Of Gaussian noise of standard deviation 1: sqrt(1 + 9 + 9 + 1), and 0.6745.
    return np.median(np.abs(differences)) / (math.sqrt(20) * 0.6745)


def _extrapolate(curves, size, noise):
    """Return by how much the validation loss will fall in as many epochs again.

    If each further part of it falls by the same factor less than the one before, as an
    exponential does. A schedule that decays flattens a curve, and gets its due: the
    factor is small there. Where the training loss falls along, both are averaged, since
    that halves the variance.
    """
    falls = -np.diff(_levels(curves.val_loss, size))
    train_falls = -np.diff(_levels(curves.train_loss, size))
    error = noise * math.sqrt(2 / size)
    if falls.sum() > 0.5 * train_falls.sum():
        falls, error = (falls + train_falls) / 2, error / math.sqrt(2)
    if not len(falls) or falls[-1] <= 0 or falls.sum() <= MIN_SIGNIFICANCE * error:
        return 0.0
    ratio = 0.5
    if len(falls) > 1:
        ratio = min(1.0, falls[-1] / falls[-2]) if falls[-2] > 0 else 1.0
    num_parts = round(len(curves.val_loss) / size)
    return falls[-1] * sum(ratio**k for k in range(1, num_parts + 1))


def _count_not_finite_at_end(rows):
    """Count the last epochs whose losses are there and no number (None is not there)."""
    count = 0
    for row in reversed(rows):
        losses = [row.get("train_eval_loss"), row.get("val_loss")]
        if not any(isinstance(v, float) and not math.isfinite(v) for v in losses):
            break
        count += 1
    return count


def _judge(evidence):
    """Return the verdict; where several are true, the one to act on first."""
    e = evidence
    if _is_diverged(e):
        return "diverged"
    guessing, noise = e["guessing_loss"], e["val_loss_noise"] or 0.0
    size = max(1, round(e["num_epochs"] / PARTS))
    rise = e["val_loss_rise"]
    train_rise = e["train_eval_loss"] - e["train_eval_loss_best"]
    if (
        rise > MIN_RISE * guessing
        and rise > MIN_RELATIVE_RISE * e["val_loss_best"]
        and rise > MIN_SIGNIFICANCE * noise / math.sqrt(size)
        and rise > 2 * train_rise
    ):
        return "overfitting"
    gain = e["val_loss_gain_ahead"]
    if gain > MIN_GAIN * guessing and gain > MIN_RELATIVE_GAIN * e["val_loss"]:
        return "still_improving"
    if _has_gap(e):
        return "overfitting"
    if e["num_epochs"] < MIN_EPOCHS:
        return "still_improving"
    is_underfitted = e["train_eval_loss"] > UNDERFITTED * guessing and (
        e["train_eval_accuracy"] is None or 1 - e["train_eval_accuracy"] > UNDERFITTED
    )
    return "underfitting" if is_underfitted else "well_fitted"


def _is_diverged(e):
    """Return whether most of what was learned is lost, or nothing ever was."""
    if e["num_not_finite_at_end"]:
        return True
    if e["num_epochs"] < 2:
        return False
    best, guessing = e["train_eval_loss_best"], e["guessing_loss"]
    lost = best + UNLEARNED * max(guessing - best, guessing / 2)
    return e["train_eval_loss"] > lost or e["train_eval_loss_last"] > max(lost, guessing)


def _has_gap(e):
    """Return whether generalization is most of what is missing."""
    if e["accuracy_gap"] is None:
        return e["loss_gap"] > max(
            2 * MIN_GAP * e["guessing_loss"], MIN_RELATIVE_GAP * e["val_loss"]
        )
    return e["accuracy_gap"] > max(
        MIN_GAP, MIN_RELATIVE_GAP * (1 - e["val_accuracy"])
    ) and e["loss_gap"] > MIN_GAP * e["guessing_loss"]


_ADVICE = {v: lambda e: "" for v in ("overfitting","underfitting","well_fitted","still_improving","diverged")}
