"""What the variants of a comparison cost, beside each other."""

import math
from typing import Any, NamedTuple

from dwsep_jax.report.files import Comparison

# Two times that differ by less are about the same: clocks are not steadier than this.
TOLERANCE = 0.05


class Speed(NamedTuple):
    """How fast a variant is beside the baseline.

    Attributes:
      inference: by batch size, how many times as fast as the baseline.
      train: how many times as fast it trains; None where it was not measured.
    """

    inference: dict[int, float]
    train: float | None


def shared_batches(comparison: Comparison) -> list[tuple[int, str]]:
    """Return (batch size, dtype) of the latencies that all measured variants have."""
    measured = [e for e in comparison.efficiency.values() if e]
    found = [{_key(row) for row in e["latency"]} for e in measured]
    return sorted(set.intersection(*found)) if found else []


def latency_ms(efficiency: dict[str, Any] | None, key: tuple[int, str]) -> float | None:
    """Return the median latency for a (batch size, dtype), or None."""
    rows = efficiency["latency"] if efficiency else []
    return next((row["median_ms"] for row in rows if _key(row) == key), None)


def train_rate(comparison: Comparison, name: str) -> float | None:
    """Return the measured training images per second, or None."""
    efficiency = comparison.efficiency[name] or {}
    return (efficiency.get("train") or {}).get("images_per_second")


def peak_bytes(comparison: Comparison, name: str) -> float | None:
    """Return the peak memory, or None where it was not measured."""
    efficiency = comparison.efficiency[name] or {}
    return (efficiency.get("memory") or {}).get("peak_bytes")


def relative(comparison: Comparison, name: str, key: str) -> float:
    """Return `parameters` or `macs` of a variant as a share of the baseline's."""
    variants = comparison.content["variants"]
    return variants[name][key] / variants[comparison.content["baseline"]][key]


def speed_of(comparison: Comparison, name: str) -> Speed:
    """Return how fast a variant is beside the baseline, in float32 where it has it."""
    baseline = comparison.content["baseline"]
    inference = {}
    for key in shared_batches(comparison):
        mine = latency_ms(comparison.efficiency[name], key)
        other = latency_ms(comparison.efficiency[baseline], key)
        if mine and other and (key[0] not in inference or key[1] == "float32"):
            inference[key[0]] = other / mine
    mine, other = train_rate(comparison, name), train_rate(comparison, baseline)
    return Speed(inference, mine / other if mine and other else None)


def mean_speed(speed: Speed) -> float | None:
    """Return the geometric mean over the batch sizes; None without any."""
    logs = [math.log(ratio) for ratio in speed.inference.values()]
    return math.exp(sum(logs) / len(logs)) if logs else None


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Return the names that no other one beats, cheapest first.

    Args:
      points: cost and accuracy of each. One beats another that costs no less and
        reaches no more, unless both are equal.
    """
    front = [
        name
        for name, (cost, accuracy) in points.items()
        if not any(
            c <= cost and a >= accuracy and (c, a) != (cost, accuracy)
            for c, a in points.values()
        )
    ]
    return sorted(front, key=lambda name: points[name])


def finished(comparison: Comparison) -> list[str]:
    """Return the variants that have a mean accuracy, in their order."""
    variants = comparison.content["variants"]
    return [name for name in variants if accuracy(comparison, name) is not None]


def accuracy(comparison: Comparison, name: str) -> float | None:
    """Return the mean test accuracy of a variant, a share of 1, or None."""
    summary = comparison.content["variants"][name]["summary"]
    return summary.get("accuracy", {}).get("mean")


def _key(row):
    return row["batch_size"], row["dtype"]
