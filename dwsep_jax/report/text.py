"""The sentences of a comparison's report, derived from its numbers."""

import math
from collections import Counter

from dwsep_jax.report.costs import TOLERANCE, Measure, mean_speed, pareto_front, speeds
from dwsep_jax.report.files import Comparison
from dwsep_jax.report.format import listing, percent, points, share, times
from dwsep_jax.report.page import Headline
from dwsep_jax.statistics import MIN_SEEDS

Costs = dict[str, Measure]

ANSWER_WORDS = {
    "better": "better",
    "not_worse": "not worse by more than the margin",
    "worse": "worse",
    "undecided": "undecided",
}
_OPENINGS = {
    "better": "Yes, it is more accurate",
    "not_worse": "Yes, without a loss of accuracy that matters",
    "worse": "No, it loses accuracy",
    "undecided": "Not answered yet",
}
_WHY_NOT_FASTER = (
    " A depthwise convolution does little arithmetic for each number it moves, and a "
    "count of arithmetic does not see the moving."
)


def means(comparison: Comparison) -> dict[str, float]:
    """Return the mean test accuracy of each variant that has one, a share of 1."""
    found = {
        name: variant["summary"].get("accuracy", {}).get("mean")
        for name, variant in comparison.content["variants"].items()
    }
    return {name: mean for name, mean in found.items() if mean is not None}


def answer(comparison: Comparison, costs: Costs) -> Headline:
    """Return whether it is worth it: accuracy, size and speed."""
    content, reached = comparison.content, means(comparison)
    main, baseline = content["main"], content["baseline"]
    pair = content["paired"].get(main)
    if pair is None or baseline not in reached:
        text = (
            f"Not answered yet: {main} and {baseline} have no finished runs in common."
        )
        return Headline("Undecided", "open", text)
    inference = speeds(costs, main, baseline)
    speed = mean_speed(inference)
    training = costs["train"].ratio(baseline, main)
    macs = costs["macs"].ratio(main, baseline)
    verdict, tone = decide(content["answer"], macs < 1, speed)
    text = (
        f"{_OPENINGS[content['answer']]}: on {content['dataset']}, {main} reaches "
        f"{percent(reached[main])} test accuracy, and {baseline} "
        f"{percent(reached[baseline])}. {content['reason'].rstrip('.')}. "
        f"{_describe_speed(comparison, inference)}"
    )
    figures = [
        (f"{points(pair['mean'])} points", f"accuracy, against {baseline}"),
        (share(costs["parameters"].ratio(main, baseline)), "of its parameters"),
        (share(macs), "of its multiply-adds"),
    ]
    if speed:
        figures.append((times(speed), "its speed in inference"))
    if training:
        figures.append((times(training), "its speed in training"))
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


def _describe_speed(comparison, inference):
    if not inference:
        return "Its speed was not measured."
    kinds = [
        e["environment"].get("device_kind") for e in comparison.efficiency.values() if e
    ]
    told = [f"{times(ratio)} at batch size {size}" for size, ratio in inference.items()]
    device = f" on this machine ({kinds[0]})" if kinds[0] else ""
    return f"Its inference speed, measured{device}: {listing(told)}."


def seeds_needed(comparison: Comparison) -> int | None:
    """Return about how many seeds would narrow the interval to the margin.

    By the normal law, from the standard deviation of the paired differences; None where
    that is unknown or the seeds suffice already.
    """
    content = comparison.content
    pair = content["paired"].get(content["main"], {})
    if not pair.get("std") or not content["margin"]:
        return None
    needed = math.ceil((1.96 * pair["std"] / content["margin"]) ** 2)
    return needed if needed > pair["n"] else None


def discuss(comparison: Comparison, costs: Costs) -> list[str]:
    """Return the trade-off of each variant, and what became of the promised speed."""
    content, reached = comparison.content, means(comparison)
    main, baseline = content["main"], content["baseline"]
    sentences = []
    for name, pair in content["paired"].items():
        speed = mean_speed(speeds(costs, name, baseline))
        sentences.append(
            f"{name} changes accuracy by {points(pair.get('mean'))} points with "
            f"{share(costs['parameters'].ratio(name, baseline))} of the parameters and "
            f"{share(costs['macs'].ratio(name, baseline))} of the multiply-adds of "
            f"{baseline}{f', at {times(speed)} its inference speed' if speed else ''}."
        )
    if inference := speeds(costs, main, baseline):
        promised = costs["macs"].ratio(baseline, main)
        best = max(inference, key=inference.get)
        kept = inference[best] / promised
        sentences.append(
            f"{times(promised)} fewer multiply-adds promise as much speed; the clock "
            f"gives {times(inference[best])} at best (batch size {best}), "
            f"{share(kept)} of the promise.{_WHY_NOT_FASTER if kept < 0.8 else ''}"
        )
    macs = costs["macs"].values
    front = pareto_front({name: (macs[name], mean) for name, mean in reached.items()})
    sentences.append(f"On the Pareto front in multiply-adds: {listing(front)}.")
    for name, found in comparison.diagnoses.items():
        verdicts = Counter(d["verdict"].replace("_", " ") for d in found)
        told = [f"{v} in {n} of {len(found)} runs" for v, n in verdicts.most_common()]
        if told:
            sentences.append(f"Loss curves of {name}: {listing(told)}.")
    return sentences


def list_limits(comparison: Comparison) -> list[str]:
    """Return what the answer does not cover."""
    content = comparison.content
    limits = [
        f"One dataset ({content['dataset']}), one recipe, {content['num_epochs']} "
        "epochs; another recipe may favour another variant.",
        f"{content['num_examples']:,} test images: one image is "
        f"{100 / content['num_examples']:.2g} points.",
        "The times hold only for the machine they were taken on.",
        f"The margin of {100 * content['margin']:.2f} points is a choice; the table of "
        "differences lets you apply another.",
    ]
    if edges := _rates_at_the_edge(comparison):
        limits.append(
            f"The best learning rate was the lowest or highest tried for "
            f"{listing(edges)}; a better one may lie beyond."
        )
    return limits


def list_next_steps(comparison: Comparison, costs: Costs) -> list[str]:
    """Return what to try next, given what was found."""
    content = comparison.content
    main, result = content["main"], content["answer"]
    improving = [
        name
        for name, found in comparison.diagnoses.items()
        if any(diagnosis["verdict"] == "still_improving" for diagnosis in found)
    ]
    speed = mean_speed(speeds(costs, main, content["baseline"]))
    steps = []
    if content["paired"].get(main, {"n": 0})["n"] < MIN_SEEDS:
        steps.append(f"More seeds: at least {MIN_SEEDS}, 5 for a useful interval.")
    elif result == "undecided" and (needed := seeds_needed(comparison)):
        steps.append(
            f"More seeds: about {needed} would narrow the interval to the margin, if "
            "they vary as these did."
        )
    if edges := _rates_at_the_edge(comparison):
        steps.append(f"Learning rates beyond those tried for {listing(edges)}.")
    if improving:
        steps.append(
            f"More epochs (num_epochs): {listing(improving)} had runs that were still "
            "improving."
        )
    if speed is not None and speed < 1 + TOLERANCE:
        steps.append(
            "For speed: the other lowering, larger batches, or dtype=bfloat16 on an "
            "accelerator."
        )
    if result == "worse":
        steps.append("A wider separable network (growth_rate), or more epochs for it.")
    return [*steps, "The same comparison on the device and the data you care about."]


def _rates_at_the_edge(comparison):
    edges = []
    for name, variant in comparison.content["variants"].items():
        tried = [rate["learning_rate"] for rate in variant.get("rates") or []]
        if len(tried) > 1 and variant.get("learning_rate") in (min(tried), max(tried)):
            edges.append(name)
    return edges
