"""The report of a comparison, from its files."""

from dwsep_jax.config import COMPARISON, format_value
from dwsep_jax.report import charts, costs, text
from dwsep_jax.report.files import Comparison, Unfinished
from dwsep_jax.report.format import (
    DASH,
    PLUS_MINUS,
    amount,
    fixed,
    interval,
    mean_and_interval,
    mebibytes,
    percent,
    points,
    scaled,
    share,
    significant,
    times,
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
)
from dwsep_jax.report.run import FLOPS_WORDS, build_command, describe_environment
from dwsep_jax.statistics import MIN_SEEDS

REFERENCES = (
    (
        "L. Sifre, Rigid-Motion Scattering for Image Classification, PhD thesis, 2014: "
        "depthwise-separable convolutions",
        "https://www.di.ens.fr/data/publications/papers/phd_sifre.pdf",
    ),
    (
        "F. Chollet, Xception: Deep Learning with Depthwise Separable Convolutions, "
        "2017",
        "https://arxiv.org/abs/1610.02357",
    ),
    (
        "A. G. Howard et al., MobileNets: Efficient Convolutional Neural Networks for "
        "Mobile Vision Applications, 2017",
        "https://arxiv.org/abs/1704.04861",
    ),
    (
        "G. Huang et al., Densely Connected Convolutional Networks, 2017",
        "https://arxiv.org/abs/1608.06993",
    ),
    (
        "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009: "
        "CIFAR-10",
        "https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
    ),
    (
        "PyTorch, the measured comparator: benchmarks/ times the same networks in it, "
        "on the same machine",
        "https://pytorch.org",
    ),
)
NO_EFFICIENCY = (
    "Left out: no variant has an efficiency.json; --mode=efficiency writes it for the "
    "workdir of a run, and the comparison for its first seed."
)


def describe_comparison(comparison: Comparison) -> Section:
    """Return what the files of a comparison have to show."""
    content = comparison.content
    headline = text.answer(comparison)
    parts = [
        Part("The variants", _show_variants(comparison)),
        Part("Differences, paired", _show_differences(comparison)),
        Part("Accuracy against cost", _show_costs(comparison)),
        Part("What FLOPs promise and what the clock says", _show_promise(comparison)),
        Part("Loss curves", _show_curves(comparison)),
        Part("Where the cost is", _show_layers(comparison)),
        Part("Classes", _show_classes(comparison)),
        Part("Discussion", [Bullets(text.discuss(comparison))]),
        Part("Limits", [Bullets(text.list_limits(comparison))]),
        Part("What to try next", [Bullets(text.list_next_steps(comparison))]),
        Part("How to reproduce it", _show_command(comparison)),
        Part("References", [_list_references()]),
    ]
    main = content["variants"][content["main"]]["summary"].get("accuracy")
    return Section(
        title="Is a depthwise-separable convolution worth it, on "
        f"{content['dataset']}?",
        lead=[headline, *_warn_of_gaps(comparison)],
        parts=parts,
        summary=[comparison.directory.resolve().name, content["dataset"]]
        + ["comparison", mean_and_interval(main), headline.verdict],
    )


def describe_unfinished(unfinished: Unfinished) -> Section:
    """Return how far a comparison has come that has no comparison.json yet."""
    rows = []
    for name, run in unfinished.runs.items():
        last = run.rows[-1] if run.rows else None
        done = run.evaluation
        rows.append(
            [name, str(last["epoch"]) if last else "0"]
            + [percent(last["val_accuracy"]) if last else DASH]
            + [percent(done["accuracy"]) if done else "not yet"]
        )
    count = sum(1 for run in unfinished.runs.values() if run.evaluation)
    words = (
        f"There is no comparison.json yet: {count} of the {len(rows)} runs that were "
        "begun are evaluated. Give the command of the comparison again to go on."
    )
    name = unfinished.directory.resolve().name
    columns = ["run", "epochs", "validation accuracy", "test accuracy"]
    return Section(
        title=f"Comparison {name}, under way",
        lead=[Headline("Unfinished", "open", words)],
        parts=[Part("Runs", [Table("The runs so far", columns, rows)])],
        summary=[name, DASH, "comparison", DASH, "Unfinished"],
    )


def _warn_of_gaps(comparison):
    """Say which variants have fewer runs than there are seeds."""
    num_seeds = len(comparison.content["seeds"])
    short = [
        f"{name} {len(variant['runs'])}"
        for name, variant in comparison.content["variants"].items()
        if len(variant["runs"]) < num_seeds
    ]
    words = f"Not all of the {num_seeds} seeds are done: {', '.join(short)}."
    return [Text(words)] if short else []


def _show_variants(comparison):
    content = comparison.content
    batches = costs.shared_batches(comparison)
    shown = sorted({batches[0], batches[-1]}) if batches else []
    columns = ["variant", "test accuracy", "seeds", "macro F1", "parameters", "MACs"]
    columns += [_name_time(key) for key in shown]
    columns += ["training, images/s", "peak memory"]
    rows = []
    for name, variant in content["variants"].items():
        efficiency, summary = comparison.efficiency[name], variant["summary"]
        rate = costs.train_rate(comparison, name)
        rate = rate or summary.get("images_per_second", {}).get("mean")
        row = [name, mean_and_interval(summary.get("accuracy"))]
        row += [str(len(variant["runs"]))]
        row += [mean_and_interval(summary.get("f1"), fixed)]
        row += [amount(variant["parameters"]), amount(variant["macs"])]
        latencies = [costs.latency_ms(efficiency, key) for key in shown]
        row += [significant(ms) for ms in latencies]
        row += [amount(rate), mebibytes(costs.peak_bytes(comparison, name))]
        rows.append(row)
    note = (
        f"Mean {PLUS_MINUS} half of the 95 % interval over seeds (Student's t), on "
        f"{content['num_examples']:,} test images after {content['num_epochs']} "
        "epochs. MACs are multiply-adds per image; times are medians for a whole batch."
    )
    described = [
        f"{name}: {variant['description']}"
        + (f" ({_describe_overrides(variant)})" if variant.get("overrides") else "")
        for name, variant in content["variants"].items()
    ]
    return [
        Table("Means over seeds, and costs", columns, rows, note=note),
        Bullets(described),
        *_show_runs(content),
    ]


def _name_time(key):
    batch, dtype = key
    return f"batch {batch}, ms" + ("" if dtype == "float32" else f" ({dtype})")


def _describe_overrides(variant):
    values = variant["overrides"].items()
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values}
    # A width of the stem that was solved for has many digits.
    texts = {
        k: f"{v:.4g}" if isinstance(v, float) else format_value(v)
        for k, v in values.items()
    }
    return ", ".join(f"{k}={text}" for k, text in texts.items())


def _show_runs(content):
    runs, rates = [], []
    for name, variant in content["variants"].items():
        for run in variant["runs"]:
            seconds = amount(run.get("train_seconds"))
            row = [f"{name}, seed {run['seed']}", percent(run["accuracy"])]
            row += [percent(run.get("val_accuracy")), fixed(run.get("f1"))]
            runs.append([*row, fixed(run.get("ece")), seconds])
        for rate in variant.get("rates") or []:
            chosen = rate["learning_rate"] == variant.get("learning_rate")
            row = [name, f"{rate['learning_rate']:g}"]
            row += [percent(rate.get("val_accuracy")), "chosen" if chosen else ""]
            rates.append(row)
    columns = ["run", "test accuracy", "validation accuracy", "macro F1", "ECE"]
    yield Table("Every run", [*columns, "seconds"], runs, folded=True)
    if rates:
        columns = ["variant", "learning rate", "validation accuracy", ""]
        caption = "Learning rates tried, chosen on validation"
        yield Table(caption, columns, rates, folded=True)


def _show_differences(comparison):
    content = comparison.content
    rows = []
    for name in content["variants"]:
        if (pair := content["paired"].get(name)) is None:
            continue
        bootstrap = pair.get("bootstrap") or {}
        row = [name, points(pair.get("mean")), interval(pair.get("ci95"))]
        row += [interval(bootstrap.get("ci95")), str(pair["n"])]
        rows.append([*row, text.ANSWER_WORDS[pair["answer"]]])
    if not rows:
        return [Text("Left out: no two variants have finished runs in common.")]
    columns = ["variant", "difference", "95 % over seeds", "95 % over images", "seeds"]
    note = (
        "Both intervals must agree. Better: both above 0. Not worse: both above "
        f"{points(-content['margin'])}, the margin. Worse: both below 0. Undecided: "
        f"anything else, and fewer than {MIN_SEEDS} seeds."
    )
    caption = f"Test accuracy minus that of {content['baseline']}, in points"
    reason = Text(f"{content['reason'].rstrip('.')}.")
    return [reason, Table(caption, [*columns, "answer"], rows, note=note)]


def _show_costs(comparison):
    batches = costs.shared_batches(comparison)
    names = costs.finished(comparison)
    variants = comparison.content["variants"]
    measures = {
        "macs": ("multiply-adds (MACs)", amount, lambda n: variants[n]["macs"]),
        "parameters": ("parameters", amount, lambda n: variants[n]["parameters"]),
    }
    if batches:
        key = batches[-1]
        words = f"latency at batch size {key[0]} (ms)"
        measures["latency"] = (
            words,
            significant,
            lambda n: costs.latency_ms(comparison.efficiency[n], key),
        )
    words = "peak memory (bytes)"
    measures["memory"] = words, mebibytes, lambda n: costs.peak_bytes(comparison, n)
    grid, missing = [], []
    for stem, (words, form, read) in measures.items():
        found = {name: read(name) for name in names}
        found = {name: cost for name, cost in found.items() if cost is not None}
        if found:
            grid.append(_chart_accuracy(comparison, stem, words, form, found))
        else:
            missing.append(words)
    if "latency" not in measures:
        missing.append("latency")
    blocks: list[Block] = [Grid(grid)] if grid else []
    if missing:
        blocks.append(Text(f"Not measured, so left out: {', '.join(missing)}."))
    blocks.append(
        Text(
            "Up and to the left is better. Error bars: 95 % over seeds. The dashed "
            "line joins the variants that no other one beats (the Pareto front)."
        )
    )
    return blocks


def _chart_accuracy(comparison, stem, words, form, found):
    rows, reached = [], {}
    for name, cost in found.items():
        summary = comparison.content["variants"][name]["summary"]["accuracy"]
        low, high = summary.get("ci95") or (None, None)
        reached[name] = cost, summary["mean"]
        row = {"variant": name, "cost": cost, "shown": form(cost)}
        row |= {"accuracy": 100 * summary["mean"]}
        row |= {"low": low and 100 * low, "high": high and 100 * high}
        rows.append(row | {"interval": interval(summary.get("ci95"), percent)})
    front = costs.pareto_front(reached)
    title = f"Accuracy against {words}"
    listed = ", ".join(
        f"{n} {form(c)} and {percent(a)}" for n, (c, a) in reached.items()
    )
    alt = f"{title}: {listed}. Pareto front: {', '.join(front)}."
    names = list(comparison.content["variants"])
    spec = charts.accuracy_against(rows, names, front, words)
    return Chart(f"accuracy_{stem}", title, alt, spec)


def _show_promise(comparison):
    if not any(comparison.efficiency.values()):
        return [Text(NO_EFFICIENCY)]
    content = comparison.content
    batches = costs.shared_batches(comparison)
    baseline = content["baseline"]
    measures = _list_measures(comparison, batches)
    values = []
    for label, (form, read) in measures.items():
        for name in content["variants"]:
            mine, other = read(name), read(baseline)
            if name != baseline and mine and other:
                value = {"variant": name, "measure": label, "ratio": mine / other}
                values.append(value | {"shown": form(mine)})
    blocks: list[Block] = [Text(FLOPS_WORDS)]
    if values:
        labels = [m for m in measures if any(v["measure"] == m for v in values)]
        listed = "; ".join(
            f"{v['variant']} {v['measure']} {times(v['ratio'])}" for v in values
        )
        title = f"Costs as shares of {baseline}'s: on paper above, by the clock below"
        spec = charts.ratios(values, list(content["variants"]), labels)
        blocks.append(Chart("promise", title, f"{title}. {listed}.", spec))
    return [*blocks, _tabulate_flops(comparison, batches), *_tabulate_rates(comparison)]


def _list_measures(comparison, batches):
    """Return, by label, how to show and how to read what a variant costs."""
    variants, measured = comparison.content["variants"], comparison.efficiency

    def flops(name):
        return measured[name] and measured[name]["flops"]["xla_forward"]

    def train_ms(name):
        rate = costs.train_rate(comparison, name)
        return rate and 1e3 / rate

    measures = {
        "parameters": (amount, lambda n: variants[n]["parameters"]),
        "MACs": (amount, lambda n: variants[n]["macs"]),
        "FLOPs (XLA)": (amount, flops),
    }
    for key in batches:
        measures[f"time, {_name_time(key).replace(', ms', '')}"] = (
            lambda ms: f"{significant(ms)} ms",
            lambda n, key=key: costs.latency_ms(measured[n], key),
        )
    words = "time, training an image"
    measures[words] = (lambda ms: f"{significant(ms)} ms", train_ms)
    peak = "peak memory"
    measures[peak] = mebibytes, lambda name: costs.peak_bytes(comparison, name)
    return measures


def _tabulate_flops(comparison, batches):
    columns = ["variant", "FLOPs, formula", "FLOPs, XLA"]
    columns += [_name_time(key) for key in batches]
    rows = []
    for name, efficiency in comparison.efficiency.items():
        if efficiency is None:
            rows.append([name, "not measured"] + [DASH] * (len(columns) - 2))
            continue
        flops = efficiency["flops"]
        row = [name, amount(flops["formula_forward"]), amount(flops["xla_forward"])]
        spreads = {(r["batch_size"], r["dtype"]): r for r in efficiency["latency"]}
        for key in batches:
            spread = spreads[key]["spread_ms"]
            half = f" {PLUS_MINUS} {significant(spread, 2)}" if spread else ""
            row.append(f"{significant(spreads[key]['median_ms'])}{half}")
        rows.append(row)
    note = (
        "FLOPs: of a forward pass over one image. Times: median of a batch, with the "
        "spread that was measured. XLA leaves out the taps that fall on padding."
    )
    caption = "FLOPs, and the time beside them"
    return Table(caption, columns, rows, note=note)


def _tabulate_rates(comparison):
    rows = []
    for name, efficiency in comparison.efficiency.items():
        machine = (efficiency or {}).get("machine") or {}
        row = [name]
        for mine, most, unit in (
            ("achieved_flops_per_second", "matmul_flops_per_second", "FLOP/s"),
            ("achieved_bytes_per_second", "copy_bytes_per_second", "B/s"),
        ):
            rate, peak = (efficiency or {}).get(mine), machine.get(most)
            if rate and peak:
                row += [scaled(rate, unit), share(rate / peak)]
        if len(row) == 5:
            rows.append(row)
    columns = ["variant", "FLOP/s", "of a matrix product's", "bytes/s", "of a copy's"]
    caption = (
        "Rates achieved, and their share of what the machine was measured to reach"
    )
    return [Table(caption, columns, rows)] if rows else []


def _show_curves(comparison):
    curves = {n: rows for n, rows in comparison.curves.items() if any(rows)}
    if not curves:
        return [Text("Left out: no run has its metrics.jsonl any more.")]
    grid, variants = [], comparison.content["variants"]
    for stem, key, words in (
        ("loss_validation", "val_loss", "validation loss (nats)"),
        ("loss_train", "train_eval_loss", "training loss, evaluated (nats)"),
    ):
        series = {
            name: charts.band_of(rows, lambda row, key=key: row[key])
            for name, rows in curves.items()
        }
        last = ", ".join(f"{n} {fixed(s[-1][1])}" for n, s in series.items())
        alt = f"{words} over the epochs; means at the end: {last}."
        spec = charts.lines(series, list(variants), words, ".4f")
        grid.append(Chart(stem, words.capitalize(), alt, spec))
    words = "Lines are means over seeds, bands reach from the lowest to the highest."
    return [Grid(grid), Text(words)]


def _show_layers(comparison):
    measured = {n: e for n, e in comparison.efficiency.items() if e and e["layers"]}
    if not measured:
        return [Text(NO_EFFICIENCY)]
    values, parts = [], []
    for name, efficiency in measured.items():
        sums: dict[str, float] = {}
        for layer in efficiency["layers"]:
            part = layer["name"].partition("/")[0]
            sums[part] = sums.get(part, 0) + layer["macs"]
        for part, macs in sums.items():
            value = {"variant": name, "part": part, "value": macs}
            values.append(value | {"shown": amount(macs)})
        parts += [part for part in sums if part not in parts]
    shown = [
        part for part in parts if any(v["value"] for v in values if v["part"] == part)
    ]
    values = [value for value in values if value["part"] in shown]
    title = "Multiply-adds of the parts of the networks, per image"
    listed = "; ".join(f"{v['variant']} {v['part']} {v['shown']}" for v in values)
    spec = charts.bars(values, list(comparison.efficiency), shown, "multiply-adds")
    chart = Chart("layers", title, f"{title}: {listed}.", spec)
    tables = [_tabulate_layers(name, e) for name, e in measured.items()]
    return [Text(text.describe_layers(comparison)), chart, *tables]


def _tabulate_layers(name, efficiency):
    total = max(efficiency["macs"], 1)
    rows = [
        [layer["name"], layer["kind"], amount(layer["parameters"])]
        + [amount(layer["macs"]), f"{100 * layer['macs'] / total:.1f} %"]
        for layer in efficiency["layers"]
    ]
    columns = ["layer", "kind", "parameters", "MACs", "share"]
    return Table(f"Each layer of {name}", columns, rows, folded=True)


def _show_classes(comparison):
    content = comparison.content
    scores = {
        name: {row["name"]: row["f1_mean"] for row in rows}
        for name, rows in content["per_class"].items()
    }
    mine, other = scores.get(content["main"]), scores.get(content["baseline"])
    if not mine or not other:
        return [Text("Left out: comparison.json has no classes for both networks.")]
    values = [
        {"name": name, "difference": round(100 * (mine[name] - other[name]), 4)}
        for name in content["class_names"]
        if mine.get(name) is not None and other.get(name) is not None
    ]
    values.sort(key=lambda value: value["difference"])
    extremes = charts.MAX_BARS // 2
    some = len(values) > charts.MAX_BARS
    shown = values[:extremes] + values[-extremes:] if some else values
    which = f", the {extremes} greatest losses and gains" if some else ""
    title = f"F1 of {content['main']} minus {content['baseline']}, in points{which}"
    low, high = values[0], values[-1]
    words = (
        f"The greatest difference to the worse is {low['name']} "
        f"({points(low['difference'] / 100)} points of F1), to the better "
        f"{high['name']} ({points(high['difference'] / 100)}). Means over seeds."
    )
    spec = charts.differences(shown, "difference in F1 (points)")
    names = [name for name in content["variants"] if name in scores]
    rows = [
        [name, *(fixed(scores[n].get(name)) for n in names)]
        for name in content["class_names"]
    ]
    table = Table("Mean F1 of each class", ["class", *names], rows, folded=some)
    return [Text(words), Chart("classes", title, f"{title}. {words}", spec), table]


def _show_command(comparison):
    content = comparison.content
    recipe = ", ".join(f"{k} {_show_value(v)}" for k, v in content["recipe"].items())
    seeds = ", ".join(str(seed) for seed in content["seeds"])
    words = f"Seeds {seeds}; {content['num_epochs']} epochs. Recipe: {recipe}."
    redraw = "python main.py --mode=report --workdir=runs/again"
    blocks: list[Block] = []
    if comparison.config:
        blocks.append(Code(f"{_build_command(comparison)}\n{redraw}"))
    return [
        *blocks,
        Text(words),
        *describe_environment(content["environment"]),
    ]


def _build_command(comparison):
    dataset = comparison.content["dataset"]
    argument = f":{dataset}" if dataset == "digits" else ""
    file = f"configs/compare.py{argument}"
    return build_command(comparison.config["requested"], COMPARISON, file)


def _show_value(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list_references():
    items, urls = zip(*REFERENCES, strict=True)
    return Bullets(list(items), list(urls))
