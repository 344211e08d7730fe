"""The report of a comparison."""

import statistics
from typing import Any

from dwsep_jax.console import format_setting
from dwsep_jax.fields import COMPARISON
from dwsep_jax.report import charts, page
from dwsep_jax.report.costs import TOLERANCE, Cost, find_speeds, list_costs
from dwsep_jax.report.files import Comparison
from dwsep_jax.report.format import (
    DASH,
    difference,
    fixed,
    listing,
    mean_and_interval,
    percent,
    points,
    times,
)
from dwsep_jax.report.run import NOT_MEASURED, count_verdicts, show_command
from dwsep_jax.report.time_to_accuracy import show_time_to_accuracy
from dwsep_jax.statistics import MIN_SEEDS

_OPENINGS = {
    "better": "Yes, it is more accurate",
    "not_worse": "Yes, without a loss of accuracy that matters",
    "worse": "No, it loses accuracy",
    "undecided": "Not answered yet",
}
_LOSSES = {
    "loss_validation": ("val_loss", "Validation loss (nats)"),
    "loss_train": ("train_eval_loss", "Training loss, evaluated (nats)"),
}


def describe_comparison(comparison: Comparison) -> page.Section:
    """Return the report of a comparison, finished or not."""
    content, runs = comparison.content, comparison.runs
    if content is None:
        return _describe_unfinished(comparison)
    measured = {name: found[0].efficiency for name, found in runs.items()}
    costs = list_costs(content["variants"], measured)
    parts = {
        "The variants": _show_variants(content),
        "Accuracy against cost": _show_costs(content, costs),
        "Loss curves": _show_curves(runs),
        "Time to accuracy": show_time_to_accuracy(comparison),
        "Classes": [_tabulate_classes(content)],
        "Limits, and what to try next": [_list_limits(content)],
        "How to reproduce it": show_command(
            comparison.config, content["environment"], COMPARISON
        ),
    }
    main = content["variants"][content["main"]]["summary"]["accuracy"]
    name, dataset = comparison.directory.resolve().name, content["dataset"]
    title = f"Is a depthwise-separable convolution worth it, on {dataset}?"
    summary = [name, dataset, "comparison", mean_and_interval(main)]
    return page.Section(title, answer(content, costs), parts, summary)


def _describe_unfinished(comparison):
    """Return the progress of a comparison that has no comparison.json yet."""
    rows = []
    for variant, runs in comparison.runs.items():
        for run in runs:
            last = run.rows[-1] if run.rows else {"epoch": 0, "val_accuracy": None}
            test = percent(run.evaluation and run.evaluation["accuracy"])
            row = [f"{variant}/{run.directory.name}", str(last["epoch"])]
            rows.append([*row, percent(last["val_accuracy"]), test])
    words = "No comparison.json yet. Repeat the comparison's command to continue."
    headline = page.Headline("Unfinished", "open", words)
    columns = ["run", "epochs", "validation accuracy", "test accuracy"]
    parts = {"Runs": [page.Table("The runs so far", columns, rows)]}
    name = comparison.directory.resolve().name
    summary = [name, DASH, "comparison", DASH]
    return page.Section(f"Comparison {name}, under way", headline, parts, summary)


def answer(content: dict[str, Any], costs: dict[str, Cost]) -> page.Headline:
    """Return whether the main variant is worth it: accuracy, size and speed."""
    main, baseline, result = content["main"], content["baseline"], content["answer"]
    inference = find_speeds(costs, main, baseline)
    speed = statistics.geometric_mean(inference.values()) if inference else None
    parameters, macs = (costs[k].ratio(main, baseline) for k in ("parameters", "macs"))
    gain = points(content["paired"][main]["mean"])
    figures = [
        (f"{gain} points", f"accuracy, against {baseline}"),
        (percent(parameters, 0), "of its parameters"),
        (percent(macs, 0), "of its multiply-adds"),
        (times(speed), "its speed in inference, mean over batch sizes"),
        (times(costs["train"].ratio(baseline, main)), "its speed in training"),
    ]
    reached, other = (
        percent(content["variants"][name]["summary"]["accuracy"]["mean"])
        for name in (main, baseline)
    )
    text = (
        f"{_OPENINGS[result]}: on {content['dataset']}, {main} reaches {reached} test "
        f"accuracy, and {baseline} {other}. {content['reason']}"
    )
    return page.Headline(*decide(result, macs < 1, speed), text, tuple(figures))


def decide(result: str, saves: bool, speed: float | None) -> tuple[str, str]:
    """Return the verdict and its tone.

    Args:
      result: the answer of comparison.json.
      saves: whether the main variant has fewer multiply-adds.
      speed: how many times as fast it is; None where it was not measured.
    """
    is_faster = speed is not None and speed > 1 + TOLERANCE
    if result == "undecided":
        return "Undecided", "open"
    if result == "worse":
        return ("Not without a loss" if saves or is_faster else "Not worth it"), "bad"
    if is_faster:
        return "Worth it", "good"
    if not saves:
        return ("Worth it" if result == "better" else "No gain"), "open"
    if speed is not None and speed < 1 - TOLERANCE:
        return "Worth it for its size, not for speed", "open"
    return "Worth it for its size", "good"


def _show_variants(content):
    rows, described = [], []
    for name, variant in content["variants"].items():
        summary, pair = variant["summary"], content["paired"].get(name)
        means = [mean_and_interval(summary[key], fixed) for key in ("f1", "ece")]
        row = [name, mean_and_interval(summary["accuracy"]), *means, *difference(pair)]
        rows.append([*row, pair["answer"].replace("_", " ") if pair else DASH])
        # A stem width that was solved for has many digits.
        told = [f"{k}={format_setting(v, 4)}" for k, v in variant["overrides"].items()]
        tried = [f"{rate['learning_rate']:.3g}" for rate in variant["rates"]]
        rate = f"{variant['learning_rate']:.3g}"
        if len(tried) > 1:
            rate += f", on validation the best of {listing(tried)}"
        words = ", ".join([variant["description"], *told])
        described.append(f"{name}: {words}; learning rate {rate}.")
    columns = ["variant", "test accuracy", "macro F1", "ECE"]
    columns += [f"minus {content['baseline']}, points", "95 % over seeds"]
    columns += ["95 % over images", "answer"]
    note = (
        "Mean ± half the 95 % interval over seeds (Student's t, "
        f"n = {len(content['seeds'])}), on {content['num_examples']:,} test images "
        f"after {content['num_epochs']} epochs; ECE is the expected calibration error, "
        "at best 0. Differences are paired, and both intervals must agree. Better: "
        f"both above 0. Not worse: both above {points(-content['margin'])}, the "
        "margin. Worse: both below 0. Undecided: anything else, or fewer than "
        f"{MIN_SEEDS} seeds."
    )
    return [page.Table("Means over seeds", columns, rows, note), described]


def _show_costs(content, costs):
    main, baseline = content["main"], content["baseline"]
    latencies = [key for key in costs if key.startswith("latency")]
    # The largest batch that most variants were timed with.
    latencies = sorted(latencies, key=lambda key: len(costs[key].values))[-1:]
    shown = ["macs", "parameters", *latencies, "memory"]
    found = [_draw_accuracy(content, k, costs[k]) for k in shown if costs[k].values]
    words = "Up and to the left is better. Error bars are 95 % intervals over seeds."
    names = list(content["variants"])
    known = [cost for cost in costs.values() if cost.values]
    rows = [[c.label, *(c.describe(name, baseline) for name in names)] for c in known]
    note = (
        f"Times are medians; in parentheses, the share of {baseline}. FLOPs count the "
        "operations of a forward pass over one image, two for each multiply-add (MAC); "
        "XLA leaves out the taps that fall on padding."
    )
    blocks = [*found, words, page.Table("Costs", ["cost", *names], rows, note)]
    if not (speeds := find_speeds(costs, main, baseline)):
        return [*blocks, NOT_MEASURED]
    size = max(speeds, key=speeds.get)
    promised = costs["macs"].ratio(baseline, main)
    words = (
        f"By its multiply-adds, {main} would be {times(promised)} as fast as "
        f"{baseline}; it is {times(speeds[size])} as fast at best (batch size {size}), "
        f"{percent(speeds[size] / promised, 0)} of that."
    )
    return [*blocks, words]


def _draw_accuracy(content, key, cost):
    """Return the chart of accuracy against a cost."""
    rows = []
    for name, value in cost.values.items():
        accuracy = content["variants"][name]["summary"]["accuracy"]
        row = {"variant": name, cost.label: value}
        row[charts.TEST_ACCURACY] = round(100 * accuracy["mean"], 2)
        if ends := accuracy["ci95"]:
            row |= {"low": round(100 * ends[0], 2), "high": round(100 * ends[1], 2)}
        rows.append(row)
    spec = charts.accuracy_against(cost.label, rows, list(content["variants"]))
    name = f"accuracy_{key.partition('_')[0]}"
    return page.Chart(name, f"Accuracy against {cost.label}", spec)


def _show_curves(runs):
    if not any(run.rows for found in runs.values() for run in found):
        return ["Left out: no run has its metrics.jsonl any more."]
    blocks = []
    for name, (key, title) in _LOSSES.items():
        series = {
            variant: charts.band_of([run.rows for run in found], key)
            for variant, found in runs.items()
        }
        spec = charts.lines(series, title.lower())
        blocks.append(page.Chart(name, title, spec))
    text = "Lines are means over seeds; bands run from the lowest to the highest."
    for name, found in runs.items():
        if verdicts := count_verdicts(found):
            text += f" {name}: {verdicts}."
    return [*blocks, text]


def _tabulate_classes(content):
    main, baseline, names = content["main"], content["baseline"], content["variants"]
    found = []
    for i, label in enumerate(content["class_names"]):
        f1 = {name: content["per_class"][name][i]["f1_mean"] for name in names}
        gain = f1[main] - f1[baseline]
        found.append((gain, [label, *map(fixed, f1.values()), points(gain)]))
    rows = [cells for _, cells in sorted(found, key=lambda pair: pair[0])]
    columns = ["class", *names, f"{main} minus {baseline}, points"]
    caption = "F1 of each class, mean over seeds; the largest drop first"
    return page.Table(caption, columns, rows)


def _list_limits(content):
    """Return what the answer does not show, and what would show more."""
    count = content["num_examples"]
    limits = [
        f"One dataset ({content['dataset']}), one recipe, {content['num_epochs']} "
        "epochs, the times of one machine: others may favor another variant. Repeat "
        "the comparison on the device and the data you care about.",
        f"{count:,} test images: one image is {100 / count:.2g} points.",
    ]
    if content["answer"] == "undecided":
        limits.append(
            "More seeds (compare.num_seeds) narrow the interval over seeds; it takes "
            f"at least {MIN_SEEDS} to tell."
        )
    if edges := [n for n, v in content["variants"].items() if _is_rate_at_edge(v)]:
        limits.append(
            "The best learning rate was the lowest or highest tried for "
            f"{listing(edges)}; a better one may lie beyond (compare.rate_factors)."
        )
    return limits


def _is_rate_at_edge(variant):
    """Return whether the best learning rate was the lowest or highest of several."""
    tried = [rate["learning_rate"] for rate in variant["rates"]]
    return len(tried) > 1 and variant["learning_rate"] in (min(tried), max(tried))
