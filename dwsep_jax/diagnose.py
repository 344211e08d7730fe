"""Judge a run by its loss curves: a verdict, the evidence for it, and advice.

Reads what a run wrote, with numpy alone. Only losses and accuracies in evaluation mode
count (`train_eval_*`, `val_*`): `train_loss` includes dropout and augmentation.

Losses are judged as fractions of the loss of guessing, ln(num_classes), so one set of
thresholds fits any number of classes. The thresholds were set on synthetic curves and
tested on others, of other formulas (tests/curves.py), and on real runs.
"""

import math
import os
import pathlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from dwsep_jax.workdir import Row, read_intact, read_rows, write_json

# The end of a curve is its last sixth; trends are measured over its last half.
PARTS = 6
# Changes of the validation loss since its best epoch, and those expected if training
# continues: as fractions of the loss of guessing, and of the validation loss itself.
MIN_RISE, MIN_RELATIVE_RISE = 0.03, 0.15
MIN_GAIN, MIN_RELATIVE_GAIN = 0.04, 0.1
# In standard errors of the end of a curve.
MIN_SIGNIFICANCE = 3.0
# The excess of accuracy on train, absolute and as a fraction of the validation error.
MIN_GAP, MIN_RELATIVE_GAP = 0.08, 0.4
# Loss and error on train, as fractions of those of guessing: above both, it underfits.
UNDERFITTED = 0.2
# How much of what was learned has to be lost, and how much has to be learned first:
# accuracy above that of guessing, or loss as a fraction of that of guessing.
UNLEARNED = 0.6
MIN_LEARNED = 0.1
# A smaller drop of the validation accuracy does not count.
MIN_DROP = 0.01
# A shorter run is too short to judge.
MIN_EPOCHS = 5


def write_diagnosis(workdir: str | os.PathLike) -> dict[str, Any]:
    """Diagnose the run in a workdir; write diagnosis.json and return its content.

    The number of classes is read from evaluation.json if it exists.

    Raises:
      UserError: if metrics.jsonl is damaged.
    """
    evaluation = read_intact(workdir, "evaluation")
    num_classes = len(evaluation["per_class"]) if evaluation else None
    diagnosis = {"schema": 1, **diagnose(read_rows(workdir), num_classes)}
    # Diagnosing a finished run again leaves its file alone.
    if read_intact(workdir, "diagnosis") != diagnosis:
        write_json(pathlib.Path(workdir, "diagnosis.json"), diagnosis)
    return diagnosis


def diagnose(rows: Sequence[Row], num_classes: int | None = None) -> dict[str, Any]:
    """Return what the curves of a run say about it.

    Args:
      rows: as in metrics.jsonl, at least one.
      num_classes: the loss of guessing is its logarithm; without it, the loss of the
        first epoch is used.

    Returns:
      {verdict, evidence, advice}: one of overfitting, underfitting, well_fitted,
      still_improving, diverged; numbers by name, losses in nats, None if unknown; one
      or two sentences that name config fields.
    """
    evidence = _measure(rows, num_classes)
    verdict, advice = _judge(SimpleNamespace(**evidence))
    return {"verdict": verdict, "evidence": evidence, "advice": advice}


def _measure(rows, num_classes):
    """Return the evidence: what the rules use, and what else a reader wants to see."""
    names = ("train_eval_loss", "val_loss", "train_eval_accuracy", "val_accuracy")
    curves = {name: np.array([row[name] for row in rows], float) for name in names}
    train, val = curves["train_eval_loss"], curves["val_loss"]
    size = _part_size(len(rows))
    levels, gaps = _levels(val, size), _levels(val - train, size)
    rates = [row["learning_rate"] for row in rows]
    ends, best = {}, {}
    for name, curve in curves.items():
        ends[name] = _levels(curve, size)[-1]
        # A level may be better than any running median.
        best_of = min if name.endswith("loss") else max
        best[name] = best_of([*_smooth(curve, size), ends[name]])
    return ends | {
        "num_epochs": len(rows),
        "guessing_loss": math.log(num_classes or 1) or max(train[0], val[0]),
        "train_eval_loss_last": train[-1],
        "train_eval_loss_best": best["train_eval_loss"],
        "train_eval_loss_rise": ends["train_eval_loss"] - best["train_eval_loss"],
        "val_loss_best": best["val_loss"],
        "val_loss_best_epoch": rows[_smooth(val, size).argmin()]["epoch"],
        "val_loss_rise": ends["val_loss"] - best["val_loss"],
        "val_loss_fall": levels[0] - ends["val_loss"],
        "val_loss_slope": _slope(levels, size),
        "val_loss_noise": _measure_noise(val),
        "val_loss_gain_ahead": _extrapolate(train, val, size),
        "loss_gap": gaps[-1],
        "loss_gap_slope": _slope(gaps, size),
        "learning_rate_share": rates[-1] / max(rates) if any(rates) else None,
        "num_not_finite_at_end": 0,  # A run ends at the first loss that is not finite.
        "train_eval_accuracy_best": best["train_eval_accuracy"],
        "val_accuracy_best_epoch": rows[curves["val_accuracy"].argmax()]["epoch"],
        "val_accuracy_drop": best["val_accuracy"] - ends["val_accuracy"],
        "accuracy_gap": ends["train_eval_accuracy"] - ends["val_accuracy"],
    }


def _part_size(num_epochs):
    return max(1, round(num_epochs / PARTS))


def _slope(levels, size):
    """Return the slope per epoch between the last two levels; None without two."""
    return (levels[-1] - levels[-2]) / size if len(levels) > 1 else None


def _levels(curve, size):
    """Return the medians of the last parts of `size` epochs, three if there are."""
    starts = range(len(curve) - 3 * size, len(curve), size)
    parts = [curve[start : start + size] for start in starts if start >= 0]
    return np.array([np.median(part) for part in parts])


def _smooth(curve, size):
    """Return running medians, so that a spike of one epoch is never the best."""
    half = min(max(1, size // 2), 12)
    padded = np.pad(curve, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    return np.median(windows, axis=1)


def _measure_noise(curve):
    """Return the standard deviation about a smooth curve; None for fewer than 6 epochs.

    It is estimated from third differences, in which a parabola leaves nothing, of the
    second half, since curves become less noisy.
    """
    if len(curve) < 6:
        return None
    differences = np.diff(curve[-max(6, len(curve) // 2) :], n=3)
    # Gaussian noise of standard deviation 1 gives sqrt(1 + 9 + 9 + 1) * 0.6745.
    return np.median(np.abs(differences)) / (math.sqrt(20) * 0.6745)


def _extrapolate(train, val, size):
    """Return how far the validation loss will fall if as many epochs are added.

    Each part is assumed to fall by the same factor less than the one before, as an
    exponential does. A decaying learning rate flattens the curve, which makes the
    factor small. If the training loss falls at a similar rate, both are averaged, which
    halves the variance.
    """
    falls, train_falls = -np.diff(_levels(val, size)), -np.diff(_levels(train, size))
    error = (_measure_noise(val) or 0.0) * math.sqrt(2 / size)
    if 0.5 * train_falls.sum() < falls.sum() < 2 * train_falls.sum():
        falls, error = (falls + train_falls) / 2, error / math.sqrt(2)
    if not len(falls) or falls[-1] <= 0 or falls.sum() <= MIN_SIGNIFICANCE * error:
        return 0.0
    ratio = 0.5
    if len(falls) > 1:
        ratio = min(1.0, falls[-1] / falls[-2]) if falls[-2] > 0 else 1.0
    num_parts = round(len(val) / size)
    return falls[-1] * sum(ratio**k for k in range(1, num_parts + 1))


_AUGMENT = (
    "augment more (shift, cutout, mixup; flip where mirrored images mean the same)"
)
_MORE = " For more accuracy raise growth_rate together with cutout or mixup."
_DECAYED = " The learning rate has decayed, so a higher num_epochs may still gain."


def _judge(e: SimpleNamespace) -> tuple[str, str]:
    """Return verdict and advice by the evidence, in the order in which to act on it."""
    if _has_diverged(e):
        return "diverged", (
            f"Train loss was {e.train_eval_loss_best:.3g} at its best and is "
            f"{e.train_eval_loss_last:.3g} at the end: lower learning_rate to a third "
            "or less, then try a longer warmup_epochs or clip_norm=1."
        )
    if _has_risen(e):
        text = f"Validation loss rose by {e.val_loss_rise:.3g} since epoch "
        text += str(e.val_loss_best_epoch)
        if e.val_accuracy_drop < MIN_DROP:
            return "overfitting", (
                f"{text} while validation accuracy held: the network grows "
                "overconfident, not worse. Try label_smoothing, mixup or a higher "
                "weight_decay, or fewer num_epochs."
            )
        return "overfitting", (
            f"{text}: raise dropout_rate or weight_decay, or {_AUGMENT}. Failing that, "
            "set early_stopping, or shrink growth_rate or block_sizes."
        )
    gap = f"{100 * e.accuracy_gap:.1f} points of accuracy"
    ahead = f"Train is ahead of validation by {gap}"
    if _has_gap(e):
        return "overfitting", (
            f"{ahead}: raise dropout_rate or weight_decay, {_AUGMENT}, or shrink "
            "growth_rate or block_sizes."
        )
    if e.num_epochs < MIN_EPOCHS:
        return "still_improving", (
            f"Too few epochs to tell ({e.num_epochs}): raise num_epochs to "
            f"{4 * MIN_EPOCHS} or more before anything else."
        )
    min_gain = max(MIN_GAIN * e.guessing_loss, MIN_RELATIVE_GAIN * e.val_loss)
    if e.val_loss_gain_ahead > min_gain:
        return "still_improving", (
            f"Validation loss, now {e.val_loss:.3g}, may fall by another "
            f"{e.val_loss_gain_ahead:.2g} in as many epochs again: raise num_epochs "
            "before anything else, or learning_rate if each epoch is expensive."
        )
    # A decayed learning rate flattens a curve that could fall further.
    has_decayed = e.learning_rate_share <= 0.1 and e.val_loss_fall >= min_gain
    is_wrong = 1 - e.train_eval_accuracy > UNDERFITTED
    if is_wrong and e.train_eval_loss > UNDERFITTED * e.guessing_loss:
        return "underfitting", _advise_underfitted(e, has_decayed)
    good = f"{ahead}, and validation loss is level: there is nothing to fix."
    return "well_fitted", good + (_DECAYED if has_decayed else _MORE)


def _has_diverged(e):
    """Return whether most of what was learned has been lost."""
    best, guessing = e.train_eval_loss_best, e.guessing_loss
    lost = best + UNLEARNED * max(guessing - best, guessing / 2)
    if e.train_eval_loss > lost or e.train_eval_loss_last > max(lost, guessing):
        return True
    # If the learning rate is far too high, losses are wild; accuracies tell more.
    learned = e.train_eval_accuracy_best - math.exp(-guessing)
    left = e.train_eval_accuracy - math.exp(-guessing)
    is_worse = e.train_eval_loss_rise > MIN_LEARNED * guessing
    return is_worse and learned > MIN_LEARNED and left < (1 - UNLEARNED) * learned


def _has_risen(e):
    """Return whether validation loss is worse than its best, unlike training loss."""
    error = (e.val_loss_noise or 0.0) / math.sqrt(_part_size(e.num_epochs))
    return e.val_loss_rise > max(
        MIN_RISE * e.guessing_loss,
        MIN_RELATIVE_RISE * e.val_loss_best,
        MIN_SIGNIFICANCE * error,
        2 * e.train_eval_loss_rise,
    )


def _has_gap(e):
    """Return whether much of the error is a gap that more training would not close."""
    error = 1 - e.val_accuracy
    return e.accuracy_gap > max(MIN_GAP, MIN_RELATIVE_GAP * error) and e.loss_gap > max(
        MIN_GAP * e.guessing_loss, 2 * e.val_loss_gain_ahead
    )


def _advise_underfitted(e, has_decayed):
    if e.train_eval_loss > (1 - UNDERFITTED / 2) * e.guessing_loss:
        return (
            f"Train loss is {e.train_eval_loss:.3g} after {e.num_epochs} epochs, about "
            "that of guessing: try a learning_rate ten times as high and one a tenth "
            "as high, then a lower dropout_rate or weight_decay, or a larger "
            "growth_rate."
        )
    stuck = (
        f"Even on train the loss stays at {e.train_eval_loss:.3g}, "
        f"{e.train_eval_loss / e.guessing_loss:.0%} of that of guessing: lower "
        "dropout_rate, weight_decay or mixup, or raise growth_rate or block_sizes."
    )
    return stuck + (_DECAYED if has_decayed else "")
