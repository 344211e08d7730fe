"""What the variants of a comparison cost, relative to each other."""

import math
from collections.abc import Callable
from typing import NamedTuple

from dwsep_jax.report.files import Comparison
from dwsep_jax.report.format import amount, mebibytes, milliseconds

# Times that differ by less count as equal; clocks are not steadier than this.
TOLERANCE = 0.05


class Measure(NamedTuple):
    """One cost of all variants.

    Attributes:
      label: with its unit, where the numbers need one.
      form: formats a value, with its unit.
      values: by the names of the variants that have it.
    """

    label: str
    form: Callable[[float | None], str]
    values: dict[str, float]

    def ratio(self, name: str, other: str) -> float | None:
        """Return the cost of one variant over another's, or None."""
        mine, theirs = self.values.get(name), self.values.get(other)
        return mine / theirs if mine and theirs else None


def measure(comparison: Comparison) -> dict[str, Measure]:
    """Return every cost that was counted or measured.

    Keys: parameters, macs, flops, latency_<batch size> (of the batch sizes that all
    measured variants share), train, memory.
    """
    variants = comparison.content["variants"]
    measured = {n: e for n, e in comparison.efficiency.items() if e}
    times = {
        name: {row["batch_size"]: row["median_ms"] for row in efficiency["latency"]}
        for name, efficiency in measured.items()
    }
    rates = {
        n: (e.get("train") or {}).get("images_per_second") for n, e in measured.items()
    }
    found = {
        "parameters": Measure(
            "parameters", amount, {n: v["parameters"] for n, v in variants.items()}
        ),
        "macs": Measure(
            "multiply-adds (MACs)", amount, {n: v["macs"] for n, v in variants.items()}
        ),
        "flops": Measure(
            "FLOPs (XLA)",
            amount,
            {n: e["flops"]["xla_forward"] for n, e in measured.items()},
        ),
    }
    for size in sorted(set.intersection(*map(set, times.values())) if times else ()):
        found[f"latency_{size}"] = Measure(
            f"time for a batch of {size}",
            milliseconds,
            {name: latency[size] for name, latency in times.items()},
        )
    found["train"] = Measure(
        "training time per image",
        milliseconds,
        {name: 1e3 / rate for name, rate in rates.items() if rate},
    )
    found["memory"] = Measure(
        "peak memory",
        mebibytes,
        {n: (e.get("memory") or {}).get("peak_bytes") for n, e in measured.items()},
    )
    return {
        key: one._replace(values={n: v for n, v in one.values.items() if v is not None})
        for key, one in found.items()
    }


def speeds(costs: dict[str, Measure], name: str, baseline: str) -> dict[int, float]:
    """Return how many times as fast inference is, by batch size."""
    found = {
        int(key.removeprefix("latency_")): cost.ratio(baseline, name)
        for key, cost in costs.items()
        if key.startswith("latency_")
    }
    return {size: ratio for size, ratio in found.items() if ratio}


def mean_speed(speeds: dict[int, float]) -> float | None:
    """Return the geometric mean over the batch sizes; None without any."""
    logs = [math.log(ratio) for ratio in speeds.values()]
    return math.exp(sum(logs) / len(logs)) if logs else None


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Return the names that no other one dominates, cheapest first.

    Args:
      points: cost and accuracy of each. One dominates another that costs no less and
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
