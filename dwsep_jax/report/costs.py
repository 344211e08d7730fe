"""What the variants of a comparison cost, relative to each other."""

import math
from collections.abc import Callable
from typing import NamedTuple

from dwsep_jax.report.files import Comparison
from dwsep_jax.report.format import amount, mebibytes, milliseconds

# Times that differ by less count as equal; clocks are not steadier than this.
TOLERANCE = 0.05
_LATENCY = "latency_"


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

    Keys: parameters, macs, formula, flops, latency_<batch size> (of the batch sizes
    that all measured variants share), train, memory.
    """
    found = {
        name: _list_costs(variant, comparison.efficiency[name])
        for name, variant in comparison.content["variants"].items()
    }
    measured = [found[name] for name, e in comparison.efficiency.items() if e]
    shared = set.intersection(*map(set, measured)) if measured else set()
    sizes = [
        int(key.removeprefix(_LATENCY)) for key in shared if key.startswith(_LATENCY)
    ]
    looks = {
        "parameters": ("parameters", amount),
        "macs": ("MACs", amount),
        "formula": ("FLOPs (formula)", amount),
        "flops": ("FLOPs (XLA)", amount),
    }
    for size in sorted(sizes):
        looks[f"{_LATENCY}{size}"] = f"time for a batch of {size}", milliseconds
    looks["train"] = "training time per image", milliseconds
    looks["memory"] = "peak memory", mebibytes
    return {
        key: Measure(
            *look, {n: costs[key] for n, costs in found.items() if key in costs}
        )
        for key, look in looks.items()
    }


def _list_costs(variant, efficiency):
    """Return the costs of one variant, without those that were not measured."""
    efficiency = efficiency or {}
    flops = efficiency.get("flops", {})
    rate = (efficiency.get("train") or {}).get("images_per_second")
    costs = {
        "parameters": variant["parameters"],
        "macs": variant["macs"],
        "formula": flops.get("formula_forward"),
        "flops": flops.get("xla_forward"),
        "train": rate and 1e3 / rate,
        "memory": (efficiency.get("memory") or {}).get("peak_bytes"),
    }
    for row in efficiency.get("latency", []):
        costs[f"{_LATENCY}{row['batch_size']}"] = row["median_ms"]
    return {key: cost for key, cost in costs.items() if cost is not None}


def speeds(costs: dict[str, Measure], name: str, baseline: str) -> dict[int, float]:
    """Return how many times as fast inference is, by batch size."""
    found = {
        int(key.removeprefix(_LATENCY)): cost.ratio(baseline, name)
        for key, cost in costs.items()
        if key.startswith(_LATENCY)
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
