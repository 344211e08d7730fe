"""Loss curves to a verdict, with the numbers behind it and what to do about it.

Reads what a run wrote, with numpy alone. Only losses and accuracies in evaluation mode
count (`train_eval_*`, `val_*`): `train_loss` has dropout and augmentation in it.

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
from dwsep_jax.workdir import Row, read_rows, write_atomically

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
# The share of what was learned whose loss is divergence, and what counts as learned:
# accuracy above that of guessing, or loss as a share of that of guessing.
UNLEARNED = 0.6
MIN_LEARNED = 0.1
# A fall of the validation accuracy below this is none.
MIN_DROP = 0.01
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
    text = json.dumps(diagnosis, indent=2, sort_keys=True, allow_nan=False)
    content = f"{text}\n".encode()
    path = workdir / "diagnosis.json"
    # A finished run that is looked at again is left alone.
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)
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
    size = _part_size(len(rows))
    train, val = curves.train_loss, curves.val_loss
    has_classes = num_classes is not None and num_classes > 1
    guessing = math.log(num_classes) if has_classes else max(train[0], val[0])
    smooth_train, smooth_val = _smooth(train, size), _smooth(val, size)
    train_end, val_end = _levels(train, size)[-1], _levels(val, size)[-1]
    train_best = min(smooth_train.min(), train_end)
    val_best = min(smooth_val.min(), val_end)
    levels, gaps = _levels(val, size), _levels(val - train, size)
    noise = _measure_noise(val)
    rates = [r["learning_rate"] for r in rows if _is_finite(r.get("learning_rate"))]
    first = rows[0]["epoch"]
    evidence = {
        "num_epochs": len(rows),
        "guessing_loss": guessing,
        "train_eval_loss": train_end,
        "train_eval_loss_last": train[-1],
        "train_eval_loss_best": train_best,
        "train_eval_loss_rise": train_end - train_best,
        "val_loss": val_end,
        "val_loss_best": val_best,
        "val_loss_best_epoch": first + int(smooth_val.argmin()),
        "val_loss_rise": val_end - val_best,
        "val_loss_fall": levels[0] - val_end,
        "val_loss_slope": _slope(levels, size),
        "val_loss_noise": noise,
        "val_loss_gain_ahead": _extrapolate(curves, size, noise or 0.0),
        "loss_gap": gaps[-1],
        "loss_gap_slope": _slope(gaps, size),
        "learning_rate_share": rates[-1] / max(rates) if rates and max(rates) else None,
        "num_not_finite_at_end": _count_not_finite_at_end(rows),
        **_measure_accuracy(curves, first, size),
    }
    return {
        name: value if value is None or isinstance(value, int) else float(value)
        for name, value in evidence.items()
    }


def _measure_accuracy(curves, first, size):
    """Return what is known of the accuracies, of which there may be none."""
    train, val = curves.train_accuracy, curves.val_accuracy
    names = ("val_accuracy", "val_accuracy_best_epoch", "val_accuracy_drop")
    names += ("train_eval_accuracy", "train_eval_accuracy_best", "accuracy_gap")
    evidence = dict.fromkeys(names)
    if train is not None:
        end = _levels(train, size)[-1]
        evidence["train_eval_accuracy"] = end
        evidence["train_eval_accuracy_best"] = max(_smooth(train, size).max(), end)
    if val is not None:
        end = _levels(val, size)[-1]
        evidence["val_accuracy"] = end
        evidence["val_accuracy_best_epoch"] = first + int(val.argmax())
        evidence["val_accuracy_drop"] = max(_smooth(val, size).max(), end) - end
    if train is not None and val is not None:
        evidence["accuracy_gap"] = _levels(train, size)[-1] - end
    return evidence


def _part_size(num_epochs):
    return max(1, round(num_epochs / PARTS))


def _slope(levels, size):
    """Return the slope per epoch between the last two levels, None if there is one."""
    return (levels[-1] - levels[-2]) / size if len(levels) > 1 else None


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
    if 0.5 * train_falls.sum() < falls.sum() < 2 * train_falls.sum():
        falls, error = (falls + train_falls) / 2, error / math.sqrt(2)
    if not len(falls) or falls[-1] <= 0 or falls.sum() <= MIN_SIGNIFICANCE * error:
        return 0.0
    ratio = 0.5
    if len(falls) > 1:
        ratio = min(1.0, falls[-1] / falls[-2]) if falls[-2] > 0 else 1.0
    num_parts = round(len(curves.val_loss) / size)
    return falls[-1] * sum(ratio**k for k in range(1, num_parts + 1))


def _count_not_finite_at_end(rows):
    """Count the last epochs that have a loss of NaN or infinity (None is no loss)."""
    count = 0
    for row in reversed(rows):
        losses = [row.get("train_eval_loss"), row.get("val_loss")]
        if not any(isinstance(v, float) and not math.isfinite(v) for v in losses):
            break
        count += 1
    return count


def _judge(e):
    """Return the verdict that evidence makes; of several, the one to act on first."""
    if _is_diverged(e):
        return "diverged"
    gain, guessing = e["val_loss_gain_ahead"], e["guessing_loss"]
    # What is ahead does not count where it closes less than half of a gap.
    if _has_risen(e) or (_has_gap(e) and gain < 0.5 * e["loss_gap"]):
        return "overfitting"
    is_improving = gain > max(MIN_GAIN * guessing, MIN_RELATIVE_GAIN * e["val_loss"])
    if is_improving or e["num_epochs"] < MIN_EPOCHS:
        return "still_improving"
    is_underfitted = e["train_eval_loss"] > UNDERFITTED * guessing and (
        e["train_eval_accuracy"] is None or 1 - e["train_eval_accuracy"] > UNDERFITTED
    )
    return "underfitting" if is_underfitted else "well_fitted"


def _is_diverged(e):
    """Return whether most of what was learned is lost, or the loss is no number."""
    if e["num_not_finite_at_end"]:
        return True
    if e["num_epochs"] < 2:
        return False
    best, guessing = e["train_eval_loss_best"], e["guessing_loss"]
    lost = best + UNLEARNED * max(guessing - best, guessing / 2)
    if e["train_eval_loss"] > lost or e["train_eval_loss_last"] > max(lost, guessing):
        return True
    if e["train_eval_accuracy"] is None:
        return False
    # Where the rate is far too high, losses are wild: accuracies tell more.
    learned = e["train_eval_accuracy_best"] - math.exp(-guessing)
    left = e["train_eval_accuracy"] - math.exp(-guessing)
    is_worse = e["train_eval_loss_rise"] > MIN_LEARNED * guessing
    return is_worse and learned > MIN_LEARNED and left < (1 - UNLEARNED) * learned


def _has_risen(e):
    """Return whether validation got worse since its best, and training did not."""
    rise, train_rise = e["val_loss_rise"], e["train_eval_loss_rise"]
    error = (e["val_loss_noise"] or 0.0) / math.sqrt(_part_size(e["num_epochs"]))
    return rise > max(
        MIN_RISE * e["guessing_loss"],
        MIN_RELATIVE_RISE * e["val_loss_best"],
        MIN_SIGNIFICANCE * error,
        2 * train_rise,
    )


def _has_gap(e):
    """Return whether generalization is a good part of what is missing."""
    if e["accuracy_gap"] is None:
        return e["loss_gap"] > max(
            2 * MIN_GAP * e["guessing_loss"], MIN_RELATIVE_GAP * e["val_loss"]
        )
    missing = 1 - e["val_accuracy"]
    return (
        e["accuracy_gap"] > max(MIN_GAP, MIN_RELATIVE_GAP * missing)
        and e["loss_gap"] > MIN_GAP * e["guessing_loss"]
    )


def _advise_against_overfitting(e):
    if not _has_risen(e):
        return (
            f"Train is ahead of validation by {_format_gap(e)}: raise dropout_rate or "
            "weight_decay, augment more (shift, cutout, mixup; flip where mirrored "
            "images mean the same), or shrink growth_rate or block_sizes."
        )
    best = e["val_loss_best_epoch"]
    rose = f"Validation loss rose by {e['val_loss_rise']:.3g} since epoch {best}"
    drop = e["val_accuracy_drop"]
    if drop is not None and drop < MIN_DROP:
        return (
            f"{rose} while validation accuracy held: the network grows overconfident, "
            "not worse. Try label_smoothing, mixup or a higher weight_decay, or fewer "
            "num_epochs."
        )
    return (
        f"{rose}: raise dropout_rate or weight_decay, or augment more (shift, cutout, "
        "mixup; flip where mirrored images mean the same). Failing that, set "
        "early_stopping, or shrink growth_rate or block_sizes."
    )


def _advise_against_underfitting(e):
    loss, share = e["train_eval_loss"], e["train_eval_loss"] / e["guessing_loss"]
    if share > 1 - UNDERFITTED / 2:
        return (
            f"Train loss is {loss:.3g} after {e['num_epochs']} epochs, about that of "
            "guessing: try a learning_rate ten times as high and one a tenth as high, "
            "then a lower dropout_rate or weight_decay, or a larger growth_rate."
        )
    return (
        f"Even on train the loss stays at {loss:.3g}, {share:.0%} of that of guessing: "
        "lower dropout_rate, weight_decay or mixup, or raise growth_rate or "
        f"block_sizes.{_remark_on_schedule(e)}"
    )


def _advise_on_a_good_fit(e):
    more = " For more accuracy raise growth_rate together with cutout or mixup."
    return (
        f"Train is ahead of validation by {_format_gap(e)}, and validation loss is "
        f"level: there is nothing to mend.{_remark_on_schedule(e) or more}"
    )


def _advise_to_go_on(e):
    if e["num_epochs"] < MIN_EPOCHS:
        return (
            f"Too few epochs to tell ({e['num_epochs']}): raise num_epochs to "
            f"{4 * MIN_EPOCHS} or more before anything else."
        )
    return (
        f"Validation loss, now {e['val_loss']:.3g}, may fall by another "
        f"{e['val_loss_gain_ahead']:.2g} in as many epochs again: raise num_epochs "
        "before anything else, or learning_rate if each epoch is dear."
    )


def _advise_against_divergence(e):
    if e["num_not_finite_at_end"]:
        what = "The loss is no longer a number"
    else:
        best, last = e["train_eval_loss_best"], e["train_eval_loss_last"]
        what = f"Train loss was {best:.3g} at its best and is {last:.3g} at the end"
    return (
        f"{what}: lower learning_rate to a third or less, then try a longer "
        "warmup_epochs or clip_norm=1."
    )


def _format_gap(e):
    if e["accuracy_gap"] is None:
        return f"{e['loss_gap']:.2g} in loss"
    return f"{100 * e['accuracy_gap']:.1f} points of accuracy"


def _remark_on_schedule(e):
    """Say that a rate that has decayed flattens a curve that is not at its floor."""
    share, fall = e["learning_rate_share"], e["val_loss_fall"]
    much = max(MIN_GAIN * e["guessing_loss"], MIN_RELATIVE_GAIN * e["val_loss"])
    if share is None or share > 0.1 or fall < much:
        return ""
    return " The learning rate has decayed, so a higher num_epochs may still gain."


_ADVICE = {
    "overfitting": _advise_against_overfitting,
    "underfitting": _advise_against_underfitting,
    "well_fitted": _advise_on_a_good_fit,
    "still_improving": _advise_to_go_on,
    "diverged": _advise_against_divergence,
}
