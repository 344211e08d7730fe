"""What the variants of a comparison cost, relative to each other."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dwsep_jax.report.format import amount, percent, significant

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
        return f"{text} ({percent(ratio, 0)})" if ratio and name != baseline else text


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
    costs: dict[str, Cost] = {}
    for name, variant in variants.items():
        for key, label, form, value in _read_costs(variant, efficiency[name]):
            values = costs.setdefault(key, Cost(label, form, {})).values
            if value is not None:
                values[name] = value
    return costs


def _read_costs(variant, measured):
    """Yield key, label, form and value of each cost, None where it is not known."""
    yield "parameters", "parameters", amount, variant["parameters"]
    yield "macs", "MACs", amount, variant["macs"]
    flops = measured["flops"] if measured else {}
    yield "formula", "FLOPs (formula)", amount, flops.get("formula_forward")
    yield "flops", "FLOPs (XLA)", amount, flops.get("xla_forward")
    for row in measured["latency"] if measured else []:
        size, label = row["batch_size"], f"time for a batch of {row['batch_size']} (ms)"
        yield f"{_LATENCY}{size}", label, significant, row["median_ms"]
    rate = measured and measured["train"]["images_per_second"]
    yield "train", "training time per image (ms)", significant, rate and 1e3 / rate
    peak = measured and measured["memory"]["peak_bytes"]
    yield "memory", "peak memory (MiB)", significant, peak and peak / 2**20


def find_speeds(costs: dict[str, Cost], name: str, baseline: str) -> dict[int, float]:
    """Return how many times as fast inference is, by batch size."""
    return {
        int(key.removeprefix(_LATENCY)): ratio
        for key, cost in costs.items()
        if key.startswith(_LATENCY) and (ratio := cost.ratio(baseline, name))
    }
