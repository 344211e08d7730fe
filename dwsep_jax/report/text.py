"""The sentences of a comparison, generated from its numbers."""

import math
from collections import Counter

from dwsep_jax.report import costs
from dwsep_jax.report.files import Comparison
from dwsep_jax.report.format import (
    fixed,
    interval,
    listing,
    percent,
    points,
    share,
    times,
)
from dwsep_jax.report.page import Headline
from dwsep_jax.statistics import MIN_SEEDS

ANSWER_WORDS = {
    "better": "better",
    "not_worse": "not worse by more than the margin",
    "worse": "worse",
    "undecided": "undecided",
}
VERDICT_WORDS = {
    "overfitting": "overfitting",
    "underfitting": "underfitting",
    "well_fitted": "well fitted",
    "still_improving": "still improving",
    "diverged": "diverged",
}


def answer(comparison: Comparison) -> Headline:
    """Return the answer: worth it or not, where, by how much, at what loss."""
    content = comparison.content
    main, baseline = content["main"], content["baseline"]
    pair = content["paired"].get(main)
    if pair is None or costs.accuracy(comparison, baseline) is None:
        text = (
            f"Not answered yet: {main} and {baseline} have no finished runs in common."
        )
        return Headline("Undecided", "open", text)
    speed = costs.mean_speed(costs.speed_of(comparison, main))
    saves = costs.relative(comparison, main, "macs") < 1
    verdict, tone = _decide(content["answer"], saves, speed)
    text = f"{_open(comparison, pair)} {_describe_costs(comparison, main)}"
    figures = _list_figures(comparison, pair)
    return Headline(verdict, tone, text, figures, _describe_rivals(comparison))


def _decide(result, saves, speed):
    """Return verdict and tone."""
    if result == "undecided":
        return "Undecided", "open"
    if result == "worse":
        gains = saves or (speed or 1) > 1 + costs.TOLERANCE
        return ("Not without a loss" if gains else "Not worth it"), "bad"
    if speed is not None and speed > 1 + costs.TOLERANCE:
        return "Worth it", "good"
    if not saves:
        return ("Worth it" if result == "better" else "No gain"), "open"
    if speed is not None and speed < 1 - costs.TOLERANCE:
        return "Worth it for its size, not for speed", "open"
    return "Worth it for its size", "good"


def _list_figures(comparison, pair):
    """Return the numbers of the answer, each with what it is."""
    main, baseline = comparison.content["main"], comparison.content["baseline"]
    speed = costs.speed_of(comparison, main)
    mean = costs.mean_speed(speed)
    figures = [
        (f"{points(pair['mean'])} points", f"accuracy, against {baseline}"),
        (share(costs.relative(comparison, main, "parameters")), "of its parameters"),
        (share(costs.relative(comparison, main, "macs")), "of its multiply-adds"),
    ]
    if mean:
        figures.append((times(mean), "its speed in inference"))
    if speed.train:
        figures.append((times(speed.train), "its speed in training"))
    return tuple(figures)


def _open(comparison, pair):
    """Return the sentence on accuracy, which begins with the answer."""
    content = comparison.content
    main, baseline = content["main"], content["baseline"]
    margin = f"{100 * content['margin']:.2f} points"
    difference = f"{points(pair['mean'])} points"
    reached = (
        f"{main} reaches {percent(costs.accuracy(comparison, main))} test accuracy "
        f"against {percent(costs.accuracy(comparison, baseline))} for {baseline}"
    )
    spread = _describe_intervals(pair)
    if content["answer"] == "better":
        return (
            f"Yes, it wins: on {content['dataset']}, {reached}, {difference}{spread}."
        )
    if content["answer"] == "not_worse":
        return (
            f"Yes, at no loss that matters: on {content['dataset']}, {reached}, "
            f"{difference}{spread}, which is not worse by more than the margin of "
            f"{margin}."
        )
    if content["answer"] == "worse":
        return (
            f"No, it loses accuracy: on {content['dataset']}, {reached}, "
            f"{difference}{spread}."
        )
    if pair["n"] < MIN_SEEDS:
        seeds = "1 seed is" if pair["n"] == 1 else f"{pair['n']} seeds are"
        return (
            f"Not answered yet, for want of seeds: {seeds} too few to tell a "
            f"difference from luck, and it takes {MIN_SEEDS} at least. So far, on "
            f"{content['dataset']}, {reached}, {difference}."
        )
    return (
        f"Not answered yet: on {content['dataset']}, {reached}, {difference}{spread}. "
        f"These intervals leave open whether it loses more than the margin of {margin}."
    )


def _describe_intervals(pair):
    parts = []
    if pair.get("ci95"):
        parts.append(f"{interval(pair['ci95'])} over {pair['n']} seeds")
    bootstrap = pair.get("bootstrap") or {}
    if bootstrap.get("ci95"):
        images = f"{bootstrap['num_images']:,} test images"
        parts.append(f"{interval(bootstrap['ci95'])} over {images}")
    return f" (95 % intervals: {'; '.join(parts)})" if parts else ""


def _describe_costs(comparison, name):
    """Return what it saves, on paper and by the clock, and where."""
    parameters = share(costs.relative(comparison, name, "parameters"))
    macs = share(costs.relative(comparison, name, "macs"))
    speed = costs.speed_of(comparison, name)
    clock = [_describe_inference(speed.inference)]
    if speed.train:
        clock.append(f"training runs at {times(speed.train)} its speed")
    clock = [words for words in clock if words]
    device = _describe_device(comparison)
    sizes = f"It has {parameters} of the parameters and {macs} of the multiply-adds."
    if not clock:
        return f"{sizes} Its speed was not measured."
    return f"{sizes} By the clock{device}, {'; '.join(clock)}."


def _describe_device(comparison):
    for efficiency in comparison.efficiency.values():
        kind = (efficiency or {}).get("environment", {}).get("device_kind")
        if kind:
            return f" on this machine ({kind})"
    return ""


def _describe_inference(inference):
    """Return where it is faster, slower or the same, by batch size."""
    groups = {"faster": [], "slower": [], "about as fast": []}
    for batch, ratio in sorted(inference.items()):
        if ratio > 1 + costs.TOLERANCE:
            groups["faster"].append(batch)
        elif ratio < 1 - costs.TOLERANCE:
            groups["slower"].append(batch)
        else:
            groups["about as fast"].append(batch)
    parts = []
    for word, batches in groups.items():
        if not batches:
            continue
        ratios = sorted({times(inference[batch]) for batch in batches})
        low, high = (
            min(inference[b] for b in batches),
            max(inference[b] for b in batches),
        )
        ratios = times(low) if len(ratios) == 1 else f"{times(low)} to {times(high)}"
        where = listing([str(batch) for batch in batches])
        plural = "s" if len(batches) > 1 else ""
        parts.append(f"{word} at batch size{plural} {where} ({ratios} the speed)")
    return f"inference is {listing(parts)}" if parts else ""


def _describe_rivals(comparison):
    """Return how the variants of equal parameters and equal MACs do."""
    content = comparison.content
    main, baseline = content["main"], content["baseline"]
    sentences = []
    for name in content["variants"]:
        pair = content["paired"].get(name)
        if pair is None or name in (main, baseline):
            continue
        likeness = [
            words
            for key, words in (("parameters", "parameters"), ("macs", "multiply-adds"))
            if abs(costs.relative(comparison, name, key) - 1) < 0.03
        ]
        if not likeness:
            continue
        what = f", with as many {listing(likeness)} as {baseline},"
        sentences.append(
            f"{name}{what} is {ANSWER_WORDS[pair['answer']]}: {points(pair['mean'])} "
            f"points{_in_brackets(interval(pair.get('ci95')), pair.get('ci95'))}."
        )
    return " ".join(sentences)


def _in_brackets(text, condition):
    return f" ({text})" if condition else ""


def seeds_needed(comparison: Comparison) -> int | None:
    """Return about how many seeds narrow the interval to +- the margin.

    From the standard deviation of the paired differences, by the normal law; None
    where it is not known, or the seeds are enough already.
    """
    content = comparison.content
    pair = content["paired"].get(content["main"], {})
    if not pair.get("std") or not content["margin"]:
        return None
    needed = math.ceil((1.96 * pair["std"] / content["margin"]) ** 2)
    return needed if needed > pair["n"] else None


def discuss(comparison: Comparison) -> list[str]:
    """Return the trade-off and the effectiveness, a sentence or two each."""
    names = costs.finished(comparison)
    return [
        *_discuss_trade_off(comparison, names),
        *_discuss_promise(comparison),
        *_discuss_front(comparison, names),
        *_discuss_fit(comparison, names),
        *_discuss_calibration(comparison, names),
    ]


def _discuss_trade_off(comparison, names):
    content = comparison.content
    for name in names:
        pair = content["paired"].get(name)
        if name == content["baseline"] or pair is None:
            continue
        speed = costs.mean_speed(costs.speed_of(comparison, name))
        clock = f", at {times(speed)} the inference speed" if speed else ""
        yield (
            f"Trade-off of {name}: {points(pair['mean'])} points of accuracy for "
            f"{share(costs.relative(comparison, name, 'parameters'))} of the "
            f"parameters and {share(costs.relative(comparison, name, 'macs'))} of the "
            f"multiply-adds of {content['baseline']}{clock}."
        )


def _discuss_promise(comparison):
    main = comparison.content["main"]
    promised = 1 / costs.relative(comparison, main, "macs")
    inference = costs.speed_of(comparison, main).inference
    if not inference:
        return
    best = max(inference, key=inference.get)
    kept = inference[best] / promised
    why = (
        " A depthwise convolution does little arithmetic for each number that it "
        "moves, and a count of arithmetic does not see the moving."
    )
    yield (
        f"Effectiveness: {times(promised)} fewer multiply-adds promise as much speed; "
        f"the clock gives {times(inference[best])} at best (batch size {best}), "
        f"{share(kept)} of the promise.{why if kept < 0.8 else ''}"
    )
    efficiency = comparison.efficiency[main]
    machine = efficiency.get("machine") or {}
    achieved = efficiency.get("achieved_flops_per_second")
    peak = machine.get("matmul_flops_per_second")
    moved = efficiency.get("achieved_bytes_per_second")
    copied = machine.get("copy_bytes_per_second")
    if achieved and peak and moved and copied:
        arithmetic, memory = achieved / peak, moved / copied
        limit = "memory" if memory > arithmetic else "arithmetic"
        yield (
            f"{main} reaches {share(arithmetic)} of the arithmetic (FLOP/s) that a "
            f"matrix product reached on the same machine, and {share(memory)} of the "
            f"bytes per second of a copy: {limit} is the nearer limit."
        )


def _discuss_front(comparison, names):
    macs = {n: comparison.content["variants"][n]["macs"] for n in names}
    reached = {n: (macs[n], costs.accuracy(comparison, n)) for n in names}
    front = costs.pareto_front(reached)
    beaten = [name for name in names if name not in front]
    if len(names) > 1:
        rest = f"; {listing(beaten)} cost more for no more accuracy" if beaten else ""
        rest = rest if len(beaten) != 1 else rest.replace(" cost ", " costs ")
        yield f"Best for its multiply-adds (the Pareto front): {listing(front)}{rest}."


def _discuss_fit(comparison, names):
    parts = []
    for name in names:
        verdicts = [d["verdict"] for d in comparison.diagnoses[name]]
        counts = Counter(VERDICT_WORDS[verdict] for verdict in verdicts).most_common()
        found = [f"{words} in {n} of {len(verdicts)} runs" for words, n in counts]
        if found:
            parts.append(f"{name}: {listing(found)}")
    if parts:
        yield f"How the loss curves read: {'; '.join(parts)}."


def _discuss_calibration(comparison, names):
    variants = comparison.content["variants"]
    errors = {n: variants[n]["summary"].get("ece", {}).get("mean") for n in names}
    if errors and None not in errors.values():
        found = [f"{name} {fixed(error)}" for name, error in errors.items()]
        yield f"Calibration error (ECE, 0 is perfect): {', '.join(found)}."


def list_limits(comparison: Comparison) -> list[str]:
    """Return what the answer does not cover."""
    content = comparison.content
    images = content["num_examples"]
    limits = [
        f"One dataset ({content['dataset']}), one recipe, {content['num_epochs']} "
        "epochs. Another recipe may favour another variant.",
        f"{images:,} test images: one image is {100 / images:.2g} points.",
        "Times hold for the machine that they were taken on, and no other.",
        f"The margin of {100 * content['margin']:.2f} points is a choice; the table of "
        "differences lets you take another.",
    ]
    if edges := _rates_at_the_edge(comparison):
        limits.append(
            f"The best of the learning rates tried was the lowest or the highest for "
            f"{listing(edges)}: a better one may lie beyond."
        )
    return limits


def list_next_steps(comparison: Comparison) -> list[str]:
    """Return what to try next, by what was found."""
    content = comparison.content
    main = content["main"]
    pair = content["paired"].get(main, {"n": 0})
    steps = []
    if pair["n"] < MIN_SEEDS:
        steps.append(f"More seeds: {MIN_SEEDS} at least, 5 for a useful interval.")
    elif content["answer"] == "undecided" and (needed := seeds_needed(comparison)):
        steps.append(
            f"More seeds: about {needed} narrow the interval to the margin, if the "
            "runs vary as they did."
        )
    if edges := _rates_at_the_edge(comparison):
        steps.append(f"Other learning rates for {listing(edges)}, beyond those tried.")
    improving = [
        name
        for name, found in comparison.diagnoses.items()
        if any(diagnosis["verdict"] == "still_improving" for diagnosis in found)
    ]
    if improving:
        steps.append(
            f"More epochs (num_epochs): {listing(improving)} had runs that were still "
            "improving."
        )
    speed = costs.mean_speed(costs.speed_of(comparison, main))
    if speed is not None and speed < 1 + costs.TOLERANCE:
        steps.append(
            "Speed: the other value of lowering, larger batches, dtype=bfloat16 on an "
            "accelerator."
        )
    if content["answer"] == "worse":
        steps.append("A wider separable network (growth_rate), or more epochs for it.")
    steps.append("The same comparison on the device and the data that you care about.")
    return steps


def _rates_at_the_edge(comparison):
    edges = []
    for name, variant in comparison.content["variants"].items():
        tried = [rate["learning_rate"] for rate in variant.get("rates") or []]
        if len(tried) > 1 and variant.get("learning_rate") in (min(tried), max(tried)):
            edges.append(name)
    return edges


def describe_layers(comparison: Comparison) -> str:
    """Return where the multiply-adds of the main variant are."""
    main = comparison.content["main"]
    layers = (comparison.efficiency[main] or {}).get("layers") or []
    total = sum(layer["macs"] for layer in layers)
    kinds: Counter = Counter()
    for layer in layers:
        kinds[layer["kind"]] += layer["macs"]
    if not total:
        return ""
    found = [f"{kind} {share(macs / total)}" for kind, macs in kinds.most_common(3)]
    return f"Multiply-adds of {main} by kind of layer: {', '.join(found)}."
