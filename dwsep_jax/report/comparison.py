"""The report of a comparison."""

from dwsep_jax.fields import COMPARISON
from dwsep_jax.report import charts, text
from dwsep_jax.report.costs import measure, pareto_front
from dwsep_jax.report.files import Comparison, Unfinished
from dwsep_jax.report.format import (
    DASH,
    PLUS_MINUS,
    amount,
    fixed,
    interval,
    listing,
    mean_and_interval,
    percent,
    points,
)
from dwsep_jax.report.page import (
    Block,
    Bullets,
    Chart,
    Code,
    Grid,
    Headline,
    Part,
    Section,
    Table,
    Text,
    write,
)
from dwsep_jax.report.run import (
    FLOPS_WORDS,
    NOT_MEASURED,
    REDRAW,
    build_command,
    describe_environment,
)
from dwsep_jax.statistics import MIN_SEEDS

_COSTS_SHOWN = ("macs", "parameters", "latency", "memory")
_MAX_BARS = 30


def describe_comparison(comparison: Comparison) -> Section:
    """Return the report of a finished comparison."""
    content, costs = comparison.content, measure(comparison)
    facts = text.find_facts(comparison, costs)
    headline = text.answer(facts)
    lines = write("comparison.jinja", "references", facts)
    references, urls = zip(*(line.split(" | ") for line in lines), strict=True)
    parts = [
        Part("The variants", _show_variants(comparison, costs)),
        Part("Differences, paired", _show_differences(content)),
        Part("Accuracy against cost", _show_costs(comparison, costs)),
        Part("FLOPs and the clock", _show_promise(comparison, costs)),
        Part("Loss curves", _show_curves(comparison)),
        Part("Where the cost is", _show_layers(comparison)),
        Part("Classes", _show_classes(content)),
        *(
            Part(title, [Bullets(write("comparison.jinja", block, facts))])
            for title, block in (
                ("Discussion", "discussion"),
                ("Limits", "limits"),
                ("What to try next", "steps"),
            )
        ),
        Part("How to reproduce it", _show_command(comparison)),
        Part("References", [Bullets(list(references), list(urls))]),
    ]
    main = content["variants"][content["main"]]["summary"].get("accuracy")
    name = comparison.directory.resolve().name
    return Section(
        f"Is a depthwise-separable convolution worth it, on {content['dataset']}?",
        [headline, *_warn_of_gaps(content)],
        parts,
        [name, content["dataset"], "comparison"]
        + [mean_and_interval(main), headline.verdict],
    )


def describe_unfinished(unfinished: Unfinished) -> Section:
    """Return how far a comparison has come that has no comparison.json yet."""
    rows = []
    for name, run in unfinished.runs.items():
        last = run.rows[-1] if run.rows else {"epoch": 0, "val_accuracy": None}
        test = percent(run.evaluation["accuracy"]) if run.evaluation else "not yet"
        rows.append([name, str(last["epoch"]), percent(last["val_accuracy"]), test])
    count = sum(1 for run in unfinished.runs.values() if run.evaluation)
    words = (
        f"No comparison.json yet: {count} of the {len(rows)} runs begun are evaluated. "
        "Give the command of the comparison again to continue."
    )
    name = unfinished.directory.resolve().name
    columns = ["run", "epochs", "validation accuracy", "test accuracy"]
    return Section(
        title=f"Comparison {name}, under way",
        lead=[Headline("Unfinished", "open", words)],
        parts=[Part("Runs", [Table("The runs so far", columns, rows)])],
        summary=[name, DASH, "comparison", DASH, "Unfinished"],
    )


def _warn_of_gaps(content):
    num_seeds = len(content["seeds"])
    short = [
        f"{name} {len(variant['runs'])}"
        for name, variant in content["variants"].items()
        if len(variant["runs"]) < num_seeds
    ]
    words = f"Not all of the {num_seeds} seeds are done: {', '.join(short)}."
    return [Text(words)] if short else []


def _show_variants(comparison, costs):
    content = comparison.content
    shown = ("parameters", "macs", "memory")
    rows, described, runs = [], [], []
    for name, variant in content["variants"].items():
        summary = variant["summary"]
        row = [name, mean_and_interval(summary.get("accuracy"))]
        row += [mean_and_interval(summary.get(key), fixed) for key in ("f1", "ece")]
        rows.append(row + [costs[k].form(costs[k].values.get(name)) for k in shown])
        described.append(_describe_variant(name, variant))
        for run in variant["runs"]:
            row = [f"{name}, seed {run['seed']}", percent(run["accuracy"])]
            row += [percent(run.get("val_accuracy")), fixed(run.get("f1"))]
            runs.append([*row, amount(run.get("train_seconds"))])
    note = (
        f"Mean {PLUS_MINUS} half the 95 % interval over {len(content['seeds'])} seeds "
        f"(Student's t), on {content['num_examples']:,} test images after "
        f"{content['num_epochs']} epochs. MACs are multiply-adds per image; ECE is the "
        "expected calibration error, at best 0."
    )
    columns = ["variant", "test accuracy", "macro F1", "ECE"]
    columns += [costs[key].label for key in shown]
    per_run = ["run", "test accuracy", "validation accuracy", "macro F1", "seconds"]
    return [
        Table("Means over seeds, and sizes", columns, rows, note=note),
        Bullets(described),
        Table("Every run", per_run, runs, folded=True),
    ]


def _describe_variant(name, variant):
    """Return what sets a variant apart, and its learning rate among those tried."""
    told = [
        # A stem width that was solved for has many digits.
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in (variant.get("overrides") or {}).items()
    ]
    text = f"{name}: {variant['description']}"
    text += f" ({', '.join(told)})" if told else ""
    rates = [
        f"{rate['learning_rate']:.3g} ({percent(rate.get('val_accuracy'))})"
        for rate in variant.get("rates") or []
    ]
    if rates:
        chosen = f"learning rate {variant['learning_rate']:.3g}"
        text += f"; {chosen}, chosen on validation from {listing(rates)}"
    return f"{text}."


def _show_differences(content):
    rows = [
        [name, points(pair.get("mean")), interval(pair.get("ci95"))]
        + [interval((pair.get("bootstrap") or {}).get("ci95")), str(pair["n"])]
        + [text.ANSWER_WORDS[pair["answer"]]]
        for name in content["variants"]
        if (pair := content["paired"].get(name))
    ]
    if not rows:
        return [Text("Left out: no two variants have finished runs in common.")]
    columns = ["variant", "difference", "95 % over seeds", "95 % over images", "seeds"]
    note = (
        "Both intervals must agree. Better: both above 0. Not worse: both above "
        f"{points(-content['margin'])}, the margin. Worse: both below 0. Undecided: "
        f"anything else, or fewer than {MIN_SEEDS} seeds."
    )
    caption = f"Test accuracy minus that of {content['baseline']}, in points"
    return [Table(caption, [*columns, "answer"], rows, note=note)]


def _show_costs(comparison, costs):
    latencies = [key for key in costs if key.startswith("latency")]
    found = costs | ({"latency": costs[latencies[-1]]} if latencies else {})
    grid, missing = [], []
    for key in _COSTS_SHOWN:
        if key in found and found[key].values:
            grid.append(_chart_accuracy(comparison, key, found[key]))
        else:
            missing.append(found[key].label if key in found else key)
    words = (
        "Up and to the left is better. Error bars are 95 % intervals over seeds. The "
        "dashed line is the Pareto front: no other variant is both cheaper and more "
        "accurate."
    )
    if missing:
        words += f" Left out, not measured: {', '.join(missing)}."
    return [Grid(grid), Text(words)]


def _chart_accuracy(comparison, key, cost):
    rows, reached = [], {}
    for name, mean in text.means(comparison).items():
        if (value := cost.values.get(name)) is None:
            continue
        ends = comparison.content["variants"][name]["summary"]["accuracy"].get("ci95")
        low, high = (100 * end for end in ends) if ends else (None, None)
        reached[name] = value, mean
        row = {"variant": name, "cost": value, "shown": cost.form(value)}
        row |= {"accuracy": 100 * mean, "low": low, "high": high}
        rows.append(row | {"interval": interval(ends, percent)})
    unit = {"latency": " (ms)", "memory": " (bytes)"}.get(key, "")
    spec = charts.accuracy_against(
        rows,
        list(comparison.content["variants"]),
        pareto_front(reached),
        cost.label + unit,
    )
    return Chart(f"accuracy_{key}", f"Accuracy against {cost.label}", spec)


def _show_promise(comparison, costs):
    if not any(comparison.efficiency.values()):
        return [NOT_MEASURED]
    content = comparison.content
    baseline = content["baseline"]
    values = [
        {"variant": name, "measure": cost.label, "ratio": cost.ratio(name, baseline)}
        | {"shown": cost.form(cost.values[name])}
        for key, cost in costs.items()
        for name in content["variants"]
        if key != "formula" and name != baseline and cost.ratio(name, baseline)
    ]
    blocks: list[Block] = [Text(FLOPS_WORDS)]
    if values:
        labels = list(dict.fromkeys(value["measure"] for value in values))
        title = f"Costs relative to {baseline}: on paper above, by the clock below"
        spec = charts.ratios(values, list(content["variants"]), labels)
        blocks.append(Chart("promise", title, spec))
    shown = [key for key in costs if key not in ("parameters", "macs", "memory")]
    rows = [
        [name, *(costs[key].form(costs[key].values.get(name)) for key in shown)]
        for name in content["variants"]
    ]
    columns = ["variant", *(costs[key].label for key in shown)]
    note = (
        "FLOPs of a forward pass over one image; XLA leaves out the taps that fall on "
        "padding. Times are medians."
    )
    return [*blocks, Table("FLOPs and times", columns, rows, note=note)]


def _show_curves(comparison):
    curves = {name: rows for name, rows in comparison.curves.items() if rows}
    if not curves:
        return [Text("Left out: no run has its metrics.jsonl any more.")]
    grid = []
    for name, key, words in (
        ("loss_validation", "val_loss", "validation loss (nats)"),
        ("loss_train", "train_eval_loss", "training loss, evaluated (nats)"),
    ):
        series = {
            variant: charts.band_of(rows, lambda row, key=key: row[key])
            for variant, rows in curves.items()
        }
        names = list(comparison.content["variants"])
        spec = charts.lines(series, names, words, ".4f")
        grid.append(Chart(name, words.capitalize(), spec))
    words = "Lines are means over seeds; bands run from the lowest to the highest."
    return [Grid(grid), Text(words)]


def _show_layers(comparison):
    measured = {n: e for n, e in comparison.efficiency.items() if e and e["layers"]}
    if not measured:
        return [NOT_MEASURED]
    sums: dict[tuple[str, str], float] = {}
    for name, efficiency in measured.items():
        for layer in efficiency["layers"]:
            key = layer["name"].partition("/")[0], name
            sums[key] = sums.get(key, 0) + layer["macs"]
    values = [
        {"variant": name, "part": part, "value": macs, "shown": amount(macs)}
        for (part, name), macs in sums.items()
        if any(sums.get((part, other)) for other in measured)
    ]
    parts = list(dict.fromkeys(value["part"] for value in values))
    spec = charts.bars(values, list(comparison.efficiency), parts, "multiply-adds")
    title = "Multiply-adds of the parts of the networks, per image"
    return [Chart("layers", title, spec)]


def _show_classes(content):
    scores = {
        name: {row["name"]: row["f1_mean"] for row in rows}
        for name, rows in content["per_class"].items()
    }
    main, baseline = content["main"], content["baseline"]
    mine, other = scores.get(main), scores.get(baseline)
    if not mine or not other:
        return [Text("Left out: comparison.json has no classes for both networks.")]
    values = [
        {"name": name, "difference": round(100 * (mine[name] - other[name]), 4)}
        for name in content["class_names"]
        if mine.get(name) is not None and other.get(name) is not None
    ]
    values.sort(key=lambda value: value["difference"])
    title = f"F1 of {main} minus {baseline}, in points, means over seeds"
    has_many = len(values) > _MAX_BARS
    if has_many:
        half = _MAX_BARS // 2
        title += f": the {half} largest losses and gains"
        values = values[:half] + values[-half:]
    spec = charts.differences(values, "difference in F1 (points)")
    names = [name for name in content["variants"] if name in scores]
    rows = [
        [label, *(fixed(scores[name].get(label)) for name in names)]
        for label in content["class_names"]
    ]
    table = Table("Mean F1 of each class", ["class", *names], rows, folded=has_many)
    return [Chart("classes", title, spec), table]


def _show_command(comparison):
    content = comparison.content
    recipe = ", ".join(
        f"{key} {f'{value:g}' if isinstance(value, float) else value}"
        for key, value in content["recipe"].items()
    )
    seeds = ", ".join(str(seed) for seed in content["seeds"])
    words = f"Seeds {seeds}; {content['num_epochs']} epochs. Recipe: {recipe}."
    blocks: list[Block] = []
    if comparison.config:
        argument = ":digits" if content["dataset"] == "digits" else ""
        command = build_command(
            comparison.config["requested"], COMPARISON, f"configs/compare.py{argument}"
        )
        blocks.append(Code(f"{command}\n{REDRAW}"))
    return [*blocks, Text(words), *describe_environment(content["environment"])]
