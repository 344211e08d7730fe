"""Inference from a few seeds: means, intervals, paired differences, and the answer."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
# With fewer, the spread over seeds is only a guess.
MIN_SEEDS = 3
NUM_RESAMPLES = 10_000


def summarize_sample(values: Sequence[float]) -> dict[str, Any]:
    """Return {n, mean, std, ci95} of a sample, one value per seed.

    `std` is the sample standard deviation (ddof 1), `ci95` Student's t interval of the
    mean, [low, high]; both are None for fewer than two values.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return {"n": n, "mean": mean, "std": None, "ci95": None}
    std = float(np.std(values, ddof=1))
    # Not `t.interval`: it returns NaN where all values are equal.
    quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    half = quantile * std / math.sqrt(n)
    return {"n": n, "mean": mean, "std": std, "ci95": [mean - half, mean + half]}


def compare_pairs(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return `summarize_sample` of ours minus theirs, and the `differences`.

    Both are of the same seeds, in the same order.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return {**summarize_sample(differences), "differences": differences}


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the interval of the probability of which `share` of `count` were seen."""
    test = scipy.stats.binomtest(round(share * count), count)
    low, high = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def bootstrap_images(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Bootstrap a difference in accuracy over test images (Efron 1979, percentiles).

    Each image is drawn together with the predictions of all seeds of both networks, so
    an image that is hard for both does not widen the interval.

    Args:
      ours: whether each prediction is right, bool (seeds, images); also as a list of
        the arrays of the seeds.
      theirs: the same, for the same seeds and images.

    Returns:
      {mean, ci95, num_resamples, num_images}; deterministic.
    """
    differences = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    result = scipy.stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=100,  # All resamples of 10,000 images at once would take a gigabyte.
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return {
        "mean": float(differences.mean()),
        "ci95": [float(bound) for bound in result.confidence_interval],
        "num_resamples": NUM_RESAMPLES,
        "num_images": len(differences),
    }


def answer(
    over_seeds: dict[str, Any], over_images: dict[str, Any], margin: float
) -> tuple[str, str]:
    """Decide what a difference in accuracy amounts to.

    Other seeds and other images would each have given another difference, so both
    intervals must agree: `better` if both lie above zero, `not_worse` if both lie above
    -margin, `worse` if both lie below zero, `undecided` otherwise, and with fewer than
    three seeds.

    Args:
      over_seeds: as returned by `compare_pairs`.
      over_images: as returned by `bootstrap_images`.
      margin: the loss of accuracy that is acceptable, as a share of 1.

    Returns:
      The answer, and the reason, one sentence.
    """
    n = over_seeds["n"]
    if n < MIN_SEEDS:
        count = "1 seed is" if n == 1 else f"{n} seeds are"
        reason = f"{count} too few to tell: it takes at least {MIN_SEEDS}."
        return "undecided", reason
    intervals = (over_seeds["ci95"], over_images["ci95"])
    lows, highs = zip(*intervals, strict=True)
    points = 100 * margin
    if min(lows) > 0:
        verdict, where = "better", "both lie above zero"
    elif min(lows) > -margin:
        verdict, where = "not_worse", f"both lie above the margin of -{points:g}"
    elif max(highs) < 0:
        verdict, where = "worse", f"both lie below zero, and not above -{points:g}"
    else:
        verdict = "undecided"
        where = f"not both lie above the margin of -{points:g}, nor both below zero"
    seeds, images = (f"{100 * a:+.2f} to {100 * b:+.2f}" for a, b in intervals)
    return verdict, (
        f"The difference in accuracy is {100 * over_seeds['mean']:+.2f} points over "
        f"{n} seeds; the 95 % intervals are {seeds} over seeds and {images} over test "
        f"images: {where}."
    )


def compare_networks(
    accuracies: tuple[Sequence[float], Sequence[float]],
    correct: tuple[np.ndarray, np.ndarray] | None,
    margin: float,
) -> dict[str, Any]:
    """Return the difference in accuracy of two networks, and what it amounts to.

    Args:
      accuracies: of ours and of theirs, over the same seeds.
      correct: of both, as `bootstrap_images` takes them; None if they are unknown, and
        the seeds decide alone.
      margin: as in `answer`.

    Returns:
      What `compare_pairs` returns, {bootstrap, answer, reason}.
    """
    seeds = compare_pairs(*accuracies)
    images = bootstrap_images(*correct) if correct else None
    verdict, reason = answer(seeds, images or seeds, margin)
    return {**seeds, "bootstrap": images, "answer": verdict, "reason": reason}
