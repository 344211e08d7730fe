"""Intervals against numbers worked out by hand, and the rule of the answer."""

import numpy as np
import pytest

from dwsep_jax.statistics import answer, bootstrap_images, compare_pairs
from dwsep_jax.statistics import summarize_sample as summarize


def test_the_interval_is_students():
    summary = summarize([1.0, 2.0, 3.0, 4.0, 5.0])
    # std is sqrt(10 / 4); the 97.5 % quantile of t with 4 degrees of freedom 2.776445.
    half = 2.776445 * np.sqrt(2.5) / np.sqrt(5)
    assert (summary["n"], summary["mean"]) == (5, 3.0)
    assert summary["std"] == pytest.approx(np.sqrt(2.5))
    assert summary["ci95"] == pytest.approx([3 - half, 3 + half], abs=1e-5)
    assert summarize([0.9]) == {"n": 1, "mean": 0.9, "std": None, "ci95": None}
    equal = summarize([0.5, 0.5, 0.5])
    assert (equal["std"], equal["ci95"]) == (0.0, [0.5, 0.5])


def test_differences_are_paired_by_seed():
    # Far apart over seeds, and nearly the same within each.
    ours, theirs = [0.5, 0.7, 0.91], [0.4, 0.6, 0.8]
    pairs = compare_pairs(ours, theirs)
    assert pairs["differences"] == pytest.approx([0.1, 0.1, 0.11])
    assert pairs["mean"] == pytest.approx(0.31 / 3)
    assert pairs["std"] < 0.01
    with pytest.raises(ValueError, match="shorter"):
        compare_pairs(ours, theirs[:2])


def test_the_bootstrap_agrees_with_the_normal_interval():
    rng = np.random.default_rng(1)
    ours, theirs = (rng.random((3, 2000)) < p for p in (0.9, 0.85))
    result = bootstrap_images(ours, theirs)
    differences = ours.mean(0) - theirs.mean(0)
    half = 1.96 * differences.std() / np.sqrt(2000)
    mean = ours.mean() - theirs.mean()
    assert result["mean"] == pytest.approx(mean)
    assert result["ci95"] == pytest.approx([mean - half, mean + half], abs=5e-4)
    assert (result["num_resamples"], result["num_images"]) == (10_000, 2000)
    assert bootstrap_images(ours, theirs) == result
    # Images that are hard for both do not widen the interval.
    result = bootstrap_images(ours, ours)
    assert (result["mean"], result["ci95"]) == (0.0, [0.0, 0.0])


ANSWERS = {
    "better": ([0.001, 0.02], [0.002, 0.03], "better"),
    "zero is not better": ([0.0, 0.02], [0.002, 0.03], "not_worse"),
    "images disagree on better": ([0.01, 0.02], [-0.001, 0.03], "not_worse"),
    "within the margin": ([-0.004, 0.01], [-0.002, 0.01], "not_worse"),
    "below zero, within the margin": ([-0.004, -0.001], [-0.003, -0.002], "not_worse"),
    "at the margin": ([-0.005, 0.01], [-0.002, 0.01], "undecided"),
    "images within the margin disagree": ([-0.004, 0.01], [-0.006, 0.01], "undecided"),
    "seeds within the margin disagree": ([-0.006, 0.01], [-0.004, 0.01], "undecided"),
    "worse": ([-0.02, -0.001], [-0.03, -0.002], "worse"),
    "images disagree on worse": ([-0.02, -0.01], [-0.03, 0.0], "undecided"),
    "seeds disagree on worse": ([-0.02, 0.01], [-0.03, -0.01], "undecided"),
    "wide": ([-0.02, 0.02], [-0.02, 0.02], "undecided"),
}


def verdict(seeds, images, n=3, margin=0.005):
    over_seeds = {"n": n, "mean": sum(seeds) / 2, "ci95": seeds}
    return answer(over_seeds, {"ci95": images}, margin)


@pytest.mark.parametrize(("seeds", "images", "want"), ANSWERS.values(), ids=ANSWERS)
def test_both_intervals_must_agree(seeds, images, want):
    assert verdict(seeds, images)[0] == want


def test_the_margin_and_the_number_of_seeds_count():
    assert verdict([-0.015, 0.01], [-0.01, 0.01], margin=0.02)[0] == "not_worse"
    assert verdict([-0.004, 0.01], [-0.004, 0.01], margin=0.0)[0] == "undecided"
    for n, count in ((2, "2 seeds are"), (1, "1 seed is")):
        reason = f"{count} too few to tell: it takes at least 3."
        assert verdict([0.1, 0.2], [0.1, 0.2], n=n) == ("undecided", reason)


def test_the_reason_has_the_numbers():
    assert verdict([-0.004, 0.01], [-0.002, 0.008])[1] == (
        "The difference in accuracy is +0.30 points over 3 seeds; the 95 % intervals "
        "are -0.40 to +1.00 over seeds and -0.20 to +0.80 over test images: both lie "
        "above the margin of -0.5."
    )
