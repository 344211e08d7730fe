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

    Keys: parameters, macs, formula, flops, latency_<batch size> (of the batch sizes
    that all measured variants share), train, memory.
    """
    times = {
        name: {row["batch_size"]: row["median_ms"] for row in efficiency["latency"]}
        for name, efficiency in comparison.efficiency.items()
        if efficiency
    }
    found = {
        "parameters": ("parameters", amount, lambda v, _: v["parameters"]),
        "macs": ("MACs", amount, lambda v, _: v["macs"]),
    }
    for key, words in (("formula", "formula"), ("flops", "XLA")):
        field = f"{words.lower()}_forward"
        read = lambda _, e, field=field: e["flops"][field]  # noqa: E731
        found[key] = (f"FLOPs ({words})", amount, read)
    for size in sorted(set.intersection(*map(set, times.values())) if times else ()):
        words = f"time for a batch of {size}"
        found[f"latency_{size}"] = (words, milliseconds, _read_latency(size))
    found["train"] = ("training time per image", milliseconds, _read_training)
    found["memory"] = ("peak memory", mebibytes, lambda _, e: e["memory"]["peak_bytes"])
    measures = {}
    for key, (label, form, read) in found.items():
        measures[key] = Measure(label, form, {})
        for name, variant in comparison.content["variants"].items():
            try:
                value = read(variant, comparison.efficiency[name])
            except (LookupError, TypeError):  # Not measured.
                continue
            if value is not None:
                measures[key].values[name] = value
    return measures


def _read_latency(size):
    def read(_, efficiency):
        rows = {row["batch_size"]: row for row in efficiency["latency"]}
        return rows[size]["median_ms"]

    return read


def _read_training(_, efficiency):
    return 1e3 / efficiency["train"]["images_per_second"]


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
