"""What the variants of a comparison cost, relative to each other."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dwsep_jax.report.format import amount, share, significant

# Times that differ by less count as equal; clocks are not steadier than this.
TOLERANCE = 0.05
_LATENCY = "latency_"


class Cost(NamedTuple):
    """One cost of all variants.

    Attributes:
      label: with its unit.
      form: formats a value, without its unit.
      values: by the names of the variants that have it.
    """

    label: str
    form: Callable[[float | None], str]
    values: dict[str, float]

    def ratio(self, name: str, other: str) -> float | None:
        """Return the cost of one variant over another's, or None."""
        mine, theirs = self.values.get(name), self.values.get(other)
        return mine / theirs if mine and theirs else None

    def describe(self, name: str, baseline: str) -> str:
        """Return the cost of a variant, and its share of the baseline's."""
        text, ratio = self.form(self.values.get(name)), self.ratio(name, baseline)
        return f"{text} ({share(ratio)})" if ratio and name != baseline else text


def list_costs(
    variants: dict[str, Any], efficiency: dict[str, dict[str, Any] | None]
) -> dict[str, Cost]:
    """Return every cost that was counted or measured.

    Args:
      variants: of comparison.json.
      efficiency: the efficiency.json of each; None where it was not measured.

    Returns:
      Costs by parameters, macs, formula, flops, latency_<batch size>, train, memory.
    """
    costs = {
        "parameters": Cost("parameters", amount, {}),
        "macs": Cost("MACs", amount, {}),
        "formula": Cost("FLOPs (formula)", amount, {}),
        "flops": Cost("FLOPs (XLA)", amount, {}),
    }
    rows = [row for e in efficiency.values() if e for row in e["latency"]]
    for size in sorted({row["batch_size"] for row in rows}):
        label = f"time for a batch of {size} (ms)"
        costs[f"{_LATENCY}{size}"] = Cost(label, significant, {})
    costs["train"] = Cost("training time per image (ms)", significant, {})
    costs["memory"] = Cost("peak memory (MiB)", significant, {})
    for name, variant in variants.items():
        for key, value in _read_costs(variant, efficiency[name]).items():
            if value is not None:
                costs[key].values[name] = value
    return costs


def _read_costs(variant, efficiency):
    """Return the costs of a variant, None where one could not be measured."""
    found = {"parameters": variant["parameters"], "macs": variant["macs"]}
    if efficiency:
        rate = efficiency["train"]["images_per_second"]
        peak = efficiency["memory"]["peak_bytes"]
        found["formula"] = efficiency["flops"]["formula_forward"]
        found["flops"] = efficiency["flops"]["xla_forward"]
        found["train"] = rate and 1e3 / rate
        found["memory"] = peak and peak / 2**20
        for row in efficiency["latency"]:
            found[f"{_LATENCY}{row['batch_size']}"] = row["median_ms"]
    return found


def find_speeds(costs: dict[str, Cost], name: str, baseline: str) -> dict[int, float]:
    """Return how many times as fast inference is, by batch size."""
    found = {
        int(key.removeprefix(_LATENCY)): cost.ratio(baseline, name)
        for key, cost in costs.items()
        if key.startswith(_LATENCY)
    }
    return {size: ratio for size, ratio in found.items() if ratio}


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
