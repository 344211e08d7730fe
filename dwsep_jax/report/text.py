"""The answer of a comparison, and the facts that its prose is written from."""

import math
from collections import Counter
from typing import Any

from dwsep_jax.report.costs import TOLERANCE, Measure, mean_speed, pareto_front, speeds
from dwsep_jax.report.files import Comparison
from dwsep_jax.report.format import points, share, times
from dwsep_jax.report.page import Headline, write
from dwsep_jax.statistics import MIN_SEEDS

ANSWER_WORDS = {
    "better": "better",
    "not_worse": "not worse by more than the margin",
    "worse": "worse",
    "undecided": "undecided",
}


def means(comparison: Comparison) -> dict[str, float]:
    """Return the mean test accuracy of each variant that has one, a share of 1."""
    found = {
        name: variant["summary"].get("accuracy", {}).get("mean")
        for name, variant in comparison.content["variants"].items()
    }
    return {name: mean for name, mean in found.items() if mean is not None}


def answer(facts: dict[str, Any]) -> Headline:
    """Return whether the main variant is worth it: accuracy, size and speed."""
    baseline, speed = facts["baseline"], facts["speed"]
    if facts["num_seeds"] == 0 or baseline not in facts["reached"]:
        text = f"{facts['main']} and {baseline} have no finished runs in common."
        return Headline("Undecided", "open", f"Not answered yet: {text}")
    verdict, tone = decide(facts["answer"], facts["macs"] < 1, speed)
    figures = [
        (f"{points(facts['difference'])} points", f"accuracy, against {baseline}"),
        (share(facts["parameters"]), "of its parameters"),
        (share(facts["macs"]), "of its multiply-adds"),
    ]
    if speed:
        figures.append((times(speed), "its speed in inference"))
    if facts["training"]:
        figures.append((times(facts["training"]), "its speed in training"))
    text = " ".join(write("comparison.jinja", "answer", facts))
    return Headline(verdict, tone, text, tuple(figures))


def decide(result: str, saves: bool, speed: float | None) -> tuple[str, str]:
    """Return the verdict and its tone.

    Args:
      result: the answer of comparison.json.
      saves: whether the main variant has fewer multiply-adds.
      speed: how many times as fast it is; None where it was not measured.
    """
    is_faster = speed is not None and speed > 1 + TOLERANCE
    is_slower = speed is not None and speed < 1 - TOLERANCE
    if result == "undecided":
        return "Undecided", "open"
    if result == "worse":
        return ("Not without a loss" if saves or is_faster else "Not worth it"), "bad"
    if is_faster:
        return "Worth it", "good"
    if not saves:
        return ("Worth it" if result == "better" else "No gain"), "open"
    if is_slower:
        return "Worth it for its size, not for speed", "open"
    return "Worth it for its size", "good"


def find_facts(comparison: Comparison, costs: dict[str, Measure]) -> dict[str, Any]:
    """Return comparison.json with what follows from it, as the prose takes it."""
    content, reached = comparison.content, means(comparison)
    main, baseline = content["main"], content["baseline"]
    pair = content["paired"].get(main, {"n": 0})
    inference, macs = speeds(costs, main, baseline), costs["macs"]
    fastest = max(inference, key=inference.get, default=None)
    measured = [
        efficiency for efficiency in comparison.efficiency.values() if efficiency
    ]
    verdicts = {
        name: Counter(d["verdict"].replace("_", " ") for d in found)
        for name, found in comparison.diagnoses.items()
    }
    return content | {
        "reached": reached,
        "num_seeds": pair["n"],
        "min_seeds": MIN_SEEDS,
        "tolerance": TOLERANCE,
        "needed": seeds_needed(pair, content["margin"]),
        "difference": pair.get("mean"),
        "parameters": costs["parameters"].ratio(main, baseline),
        "macs": macs.ratio(main, baseline),
        "promised": macs.ratio(baseline, main),
        "inference": inference,
        "fastest": fastest,
        "kept": inference and inference[fastest] * macs.ratio(main, baseline),
        "speed": mean_speed(inference),
        "training": costs["train"].ratio(baseline, main),
        "device": measured and measured[0]["environment"].get("device_kind"),
        "trade_offs": [
            (name, found.get("mean"))
            + tuple(costs[key].ratio(name, baseline) for key in ("parameters", "macs"))
            + (mean_speed(speeds(costs, name, baseline)),)
            for name in content["variants"]
            if (found := content["paired"].get(name))
        ],
        "front": pareto_front({n: (macs.values[n], a) for n, a in reached.items()}),
        "fits": {
            name: [
                f"{v} in {n} of {found.total()} runs" for v, n in found.most_common()
            ]
            for name, found in verdicts.items()
        },
        "improving": [n for n, v in verdicts.items() if v["still improving"]],
        "edges": [n for n, v in content["variants"].items() if _is_rate_at_edge(v)],
    }


def seeds_needed(pair: dict[str, Any], margin: float) -> int | None:
    """Return about how many seeds would narrow the interval to the margin.

    By the normal law, from the standard deviation of the paired differences; None where
    that is unknown or the seeds suffice already.
    """
    if not pair.get("std") or not margin:
        return None
    needed = math.ceil((1.96 * pair["std"] / margin) ** 2)
    return needed if needed > pair["n"] else None


def _is_rate_at_edge(variant):
    """Return whether the best learning rate was the lowest or highest of several."""
    tried = [rate["learning_rate"] for rate in variant.get("rates") or []]
    return len(tried) > 1 and variant.get("learning_rate") in (min(tried), max(tried))
