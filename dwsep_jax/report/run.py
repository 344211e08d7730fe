"""The report of one run, from its files."""

import math
import shlex
from typing import Any

import numpy as np

from dwsep_jax import cli
from dwsep_jax.config import (
    CHANGE_NOTHING,
    RUN,
    SECTIONS,
    fields_of,
    flatten,
    format_value,
    from_dict,
)
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.report import charts
from dwsep_jax.report.figures import render_pictures, render_run
from dwsep_jax.report.files import Run
from dwsep_jax.report.format import (
    DASH,
    amount,
    fixed,
    interval,
    mebibytes,
    percent,
    scaled,
    share,
    significant,
)
from dwsep_jax.report.mistakes import find_images, find_mistakes, to_data_uri
from dwsep_jax.report.page import (
    Block,
    Bullets,
    Chart,
    Code,
    Grid,
    Headline,
    Part,
    Pictures,
    Section,
    Table,
    Text,
)
from dwsep_jax.report.text import VERDICT_WORDS
from dwsep_jax.workdir import score

FLOPS_WORDS = (
    "FLOPs are a count of operations, two for each multiply-add (MAC); FLOP/s is a "
    "rate, FLOPs per second."
)
_CURVES = {
    "train, as trained": "train",
    "train, evaluated": "train_eval",
    "validation": "val",
    "validation, EMA weights": "ema_val",
}
_TONES = {"well_fitted": "good", "diverged": "bad"}


def describe_run(run: Run) -> Section:
    """Return what the files of a run have to show."""
    pngs = render_run(run.directory)
    evaluation = run.evaluation
    parts = [
        Part("Curves and diagnosis", _show_curves(run, pngs)),
        Part("Confusions", _show_confusions(evaluation, pngs)),
        Part("Classes", _show_classes(evaluation)),
        Part("The most confident mistakes", _show_mistakes(run)),
        Part("Calibration", _show_calibration(evaluation, pngs)),
        Part("Cost", show_cost(run.efficiency)),
        Part("How to reproduce it", _show_command(run)),
    ]
    path = run.directory.resolve()
    # A run of a comparison is named with its variant.
    name = "/".join(path.parts[-2:]) if path.name.startswith("seed") else path.name
    dataset = ((run.config or {}).get("resolved") or {}).get("dataset", "")
    headline = _summarize(run, dataset)
    accuracy = percent(evaluation["accuracy"]) if evaluation else DASH
    return Section(
        title=f"Run {name}" + (f" on {dataset}" if dataset else ""),
        lead=[headline, *_show_measures(run)],
        parts=parts,
        summary=[name, dataset or DASH, "run", accuracy, headline.verdict],
    )


def wilson_interval(share_of_one: float, count: int) -> list[float]:
    """Return the 95 % interval of a share of `count` trials (Wilson, 1927)."""
    z = 1.959964
    center = (share_of_one + z * z / (2 * count)) / (1 + z * z / count)
    spread = share_of_one * (1 - share_of_one) / count + z * z / (4 * count * count)
    half = z * math.sqrt(spread) / (1 + z * z / count)
    return [center - half, center + half]


def _summarize(run, dataset):
    evaluation, diagnosis = run.evaluation, run.diagnosis
    sentences = []
    if evaluation:
        ends = wilson_interval(evaluation["accuracy"], evaluation["num_examples"])
        where = f" on {dataset}" if dataset else ""
        weights = ", EMA weights" if evaluation["weights"] == "ema" else ""
        sentences.append(
            f"{percent(evaluation['accuracy'])} test accuracy{where} after epoch "
            f"{evaluation['epoch']}{weights} (95 % interval over "
            f"{evaluation['num_examples']:,} images: {interval(ends, percent)}), "
            f"macro F1 {fixed(evaluation['f1']['macro'])}, calibration error (ECE) "
            f"{fixed(evaluation['calibration']['ece'])}."
        )
    elif run.rows:
        last = run.rows[-1]
        sentences.append(
            f"Not evaluated on test yet: epoch {last['epoch']} is the last so far, "
            f"with {percent(score(last))} validation accuracy."
        )
    if diagnosis:
        words = VERDICT_WORDS[diagnosis["verdict"]]
        sentences.append(f"The loss curves read: {words}. {diagnosis['advice']}")
        verdict, tone = words.capitalize(), _TONES.get(diagnosis["verdict"], "open")
    else:
        verdict, tone = ("Finished" if evaluation else "Under way"), "open"
    text = " ".join(sentences) or "Its cost was measured."
    return Headline(verdict, tone, text, _list_figures(evaluation))


def _list_figures(evaluation):
    """Return the numbers of the headline, each with what it is."""
    if not evaluation:
        return ()
    return (
        (percent(evaluation["accuracy"]), "test accuracy"),
        *(
            (fixed(evaluation[key]["macro"]), f"{words}, macro")
            for words, key in (("precision", "precision"), ("recall", "recall"))
        ),
        (fixed(evaluation["f1"]["macro"]), "F1, macro"),
        (fixed(evaluation["loss"]), "loss (nats)"),
    )


def _show_measures(run):
    """Return the rest of what was measured, on demand."""
    rows = []
    if evaluation := run.evaluation:
        calibration = evaluation["calibration"]
        for key in ("precision", "recall", "f1"):
            for average, value in evaluation[key].items():
                rows.append([f"{key}, {average} average", fixed(value)])
        rows.append(["calibration error (ECE)", fixed(calibration["ece"])])
        rows.append(["Brier score", fixed(calibration["brier"])])
        rows.append(["test images", f"{evaluation['num_examples']:,}"])
    if run.rows:
        last = run.rows[-1]
        rows.append(["training, images/s", amount(last.get("images_per_second"))])
        rows.append(["training, seconds", amount(last.get("elapsed_seconds"))])
    for other in run.others:
        rows.append([f"accuracy on {other['split']}", percent(other["accuracy"])])
    return [Table("All measures", ["measure", "value"], rows, folded=True)]


def _show_curves(run, pngs):
    if not run.rows:
        return [Text("Left out: there is no metrics.jsonl with epochs yet.")]
    blocks: list[Block] = []
    if run.diagnosis is None:
        blocks.append(Text("There is no diagnosis.json: the curves are not judged."))
    found = {label: p for label, p in _CURVES.items() if f"{p}_loss" in run.rows[-1]}
    grid = []
    for key, form, factor in (("loss", ".4f", 1), ("accuracy", ".2f", 100)):
        series = {
            label: charts.band_of([run.rows], _reader(f"{prefix}_{key}", factor))
            for label, prefix in found.items()
        }
        y_title = "loss (nats)" if key == "loss" else "accuracy (%)"
        best = max(run.rows, key=score)
        alt = (
            f"{y_title} over {len(run.rows)} epochs: {', '.join(found)}. The best "
            f"validation accuracy is {percent(score(best))} in epoch {best['epoch']}."
        )
        spec = charts.lines(series, list(_CURVES), y_title, form)
        grid.append(Chart(f"curve_{key}", y_title.capitalize(), alt, spec))
    blocks.append(Grid(grid))
    blocks.append(Text(alt.partition(". ")[2]))
    if run.diagnosis:
        evidence = run.diagnosis["evidence"].items()
        rows = [[name, significant(value, 4)] for name, value in evidence]
        caption = "The numbers behind the diagnosis"
        blocks.append(Table(caption, ["number", "value"], rows, folded=True))
    return blocks


def _reader(key, factor):
    def read(row):
        return factor * row[key] if row.get(key) is not None else None

    return read


def _show_confusions(evaluation, pngs):
    if not evaluation:
        return [_not_evaluated()]
    names = [row["name"] for row in evaluation["per_class"]]
    matrix = np.array(evaluation["confusion_matrix"])
    off = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off, axis=None, kind="stable")[:5]
    found = [divmod(int(index), len(names)) for index in order]
    pairs = [f"{names[i]} as {names[j]} ({off[i, j]})" for i, j in found if off[i, j]]
    words = f"Most often taken for another class: {', '.join(pairs)}."
    words = words if pairs else "No image was taken for another class."
    spec = charts.confusion(names, evaluation["confusion_matrix"])
    alt = f"Confusion matrix of {len(names)} classes, rows are the truth. {words}"
    png = pngs["confusion_matrix.png"]
    chart = Chart("confusion_matrix", "Confusion matrix", alt, spec, png, 640)
    return [Text(words), chart]


def _show_classes(evaluation):
    if not evaluation:
        return [_not_evaluated()]
    rows = [
        [row["name"], fixed(row["precision"]), fixed(row["recall"]), fixed(row["f1"])]
        + [f"{row['support']:,}"]
        for row in evaluation["per_class"]
    ]
    columns = ["class", "precision", "recall", "F1", "images"]
    return [Table("Precision, recall and F1 of each class", columns, rows)]


def _show_mistakes(run):
    if run.evaluation is None or run.predictions is None:
        return [Text("Left out: there is no evaluation of test with predictions.npz.")]
    names = [row["name"] for row in run.evaluation["per_class"]]
    if run.predictions["probabilities"].shape[1] != len(names):
        raise UserError(
            f"{run.directory / 'predictions.npz'} is not of the same classes as "
            "evaluation.json; write both again with --mode=evaluate"
        )
    mistakes = find_mistakes(run.predictions, names)
    if not mistakes:
        return [Text("There are none: every test image was classified correctly.")]
    rows = [[m.id, m.truth, m.prediction, percent(m.confidence)] for m in mistakes]
    columns = ["image", "true class", "predicted", "confidence"]
    table = Table("The most confident mistakes", columns, rows, folded=True)
    try:
        images = find_images(run, [mistake.id for mistake in mistakes])
    except UserError as error:
        reason = f"The pictures are left out: {error}."
        return [Text(reason), Table(table.caption, columns, rows)]
    captions = [
        f"{m.truth} as {m.prediction}, {percent(m.confidence)}" for m in mistakes
    ]
    png = render_pictures(
        np.stack(images),
        [f"{m.truth} as\n{m.prediction}, {m.confidence:.1%}" for m in mistakes],
    )
    alt = "Test images that were taken for another class: " + "; ".join(captions)
    sheet = Chart("mistakes", "True class, prediction, confidence", alt, png=png)
    uris = [to_data_uri(image) for image in images]
    return [Pictures(list(zip(uris, captions, strict=True)), sheet), table]


def _show_calibration(evaluation, pngs):
    if not evaluation:
        return [_not_evaluated()]
    calibration = evaluation["calibration"]
    bins = [b for b in calibration["bins"] if b["count"]]
    total = sum(b["count"] for b in bins)
    confidence = sum(b["count"] * b["confidence"] for b in bins) / total
    gap = confidence - evaluation["accuracy"]
    words = "more sure than it is right" if gap > 0 else "less sure than it is right"
    text = (
        f"Its mean confidence is {percent(confidence)} at an accuracy of "
        f"{percent(evaluation['accuracy'])}: on average it is {words}. ECE "
        f"{fixed(calibration['ece'])} (0 is perfect), Brier score "
        f"{fixed(calibration['brier'])}, negative log likelihood "
        f"{fixed(calibration['nll'])} nats."
    )
    spec = charts.reliability(calibration["bins"])
    alt = f"Accuracy against confidence in {len(bins)} bins with images. {text}"
    title = (
        "Accuracy in bins of confidence; the gap to the confidence is the thick line"
    )
    png = pngs["reliability.png"]
    return [Text(text), Chart("reliability", title, alt, spec, png, 640)]


def show_cost(efficiency: dict[str, Any] | None) -> list[Block]:
    """Return what a network costs, on paper and by the clock."""
    if efficiency is None:
        words = "Left out: there is no efficiency.json; --mode=efficiency writes it."
        return [Text(words)]
    return [Text(FLOPS_WORDS), *_show_counts(efficiency), *_show_layers(efficiency)]


def _show_counts(efficiency):
    flops, train = efficiency["flops"], efficiency.get("train") or {}
    latency = efficiency["latency"]
    blocks: list[Block] = []
    shortest = min(latency, key=lambda row: row["batch_size"], default=None)
    first = "not timed"
    if shortest:
        first = f"{significant(shortest['median_ms'])} ms at batch size "
        first += f"{shortest['batch_size']}"
    per_image = train.get("images_per_second")
    step = (
        f"{significant(1e3 / per_image)} ms in training" if per_image else "not timed"
    )
    rows = [
        ["Parameters", amount(efficiency["parameters"]), DASH],
        ["Multiply-adds (MACs), forward", amount(efficiency["macs"]), first],
        ["FLOPs, forward, by formula", amount(flops["formula_forward"]), first],
        ["FLOPs, forward, by XLA", amount(flops["xla_forward"]), first],
        ["FLOPs, training step, by XLA", amount(flops["xla_train_step"]), step],
    ]
    columns = ["per image", "count", "measured time"]
    blocks.append(Table("Counts, and the time beside them", columns, rows))
    items = [[k, amount(v)] for k, v in flops["itemized"].items() if v is not None]
    caption = "XLA's forward FLOPs, itemized"
    blocks.append(Table(caption, ["of", "FLOPs per image"], items, folded=True))
    blocks.append(_tabulate_latency(latency))
    blocks += _show_rates(efficiency)
    return blocks + _tabulate_memory(efficiency.get("memory") or {})


def _tabulate_latency(latency):
    rows = [
        [f"{row['batch_size']} ({row['dtype']})", significant(row["median_ms"])]
        + [significant(row["p95_ms"]), significant(row["spread_ms"])]
        + [amount(row["images_per_second"])]
        for row in latency
    ]
    columns = ["batch size", "median (ms)", "p95 (ms)", "spread (ms)", "images/s"]
    return Table("Inference, measured after warm-up", columns, rows)


def _show_rates(efficiency):
    machine = efficiency.get("machine") or {}
    found = [
        (words, efficiency.get(f"achieved_{key}"), machine.get(other), unit)
        for words, key, other, unit in (
            ("arithmetic", "flops_per_second", "matmul_flops_per_second", "FLOP/s"),
            ("memory", "bytes_per_second", "copy_bytes_per_second", "B/s"),
        )
    ]
    rows = [
        [words, scaled(mine, unit), scaled(most, unit), share(mine / most)]
        for words, mine, most, unit in found
        if mine and most
    ]
    columns = ["rate", "achieved", "the machine's, measured", "share"]
    caption = "What limits it: the higher share is the nearer limit"
    return [Table(caption, columns, rows)] if rows else []


def _tabulate_memory(memory):
    sources = memory.get("source") or {}
    labels = ("parameters", "optimizer", "activations", "peak")
    rows = [
        [label, mebibytes(memory.get(f"{label}_bytes"))]
        + [str(sources.get(f"{label}_bytes", sources.get(label, DASH)))]
        for label in labels
        if memory.get(f"{label}_bytes") is not None
    ]
    return [Table("Memory", ["of", "size", "source"], rows)] if rows else []


def _show_layers(efficiency):
    total = sum(layer["macs"] for layer in efficiency["layers"])
    rows = [
        [layer["name"], layer["kind"]]
        + [" x ".join(str(size) for size in layer["output_shape"])]
        + [amount(layer["parameters"]), amount(layer["macs"])]
        + [f"{layer['macs'] / max(total, 1):.1%}".replace("%", " %")]
        for layer in efficiency["layers"]
    ]
    columns = ["layer", "kind", "output", "parameters", "MACs", "share"]
    return [Table("Each layer", columns, rows, folded=True)]


def _not_evaluated():
    return Text("Left out: there is no evaluation.json yet; --mode=evaluate writes it.")


def _show_command(run):
    blocks: list[Block] = []
    if run.config:
        blocks.append(Code(build_command(run.config["requested"])))
    blocks += describe_environment((run.evaluation or {}).get("environment"))
    return blocks or [Text("There is no config.json to tell the command.")]


def build_command(
    requested: dict[str, Any], kind: str = RUN, config: str = "configs/default.py"
) -> str:
    """Return the command that does the same again in another workdir.

    Args:
      requested: fields, as config.json holds them.
      kind: `RUN`, `COMPARISON` or `SWEEP` of `config`.
      config: a file of the repository, with its `:arg`; what it says is left out.
    """
    try:
        base = cli.load_file(str(cli.CONFIGS.parent / config))
    except ConfigError:
        base = {}  # Installed without the repository.
    mode = f" --mode={SECTIONS[kind]}" if SECTIONS[kind] else ""
    # In the same storage it would go on with the same study.
    names = fields_of(kind) - CHANGE_NOTHING - {"sweep.storage", "sweep.study"}
    words = [f"python main.py{mode} --config={config}"]
    for name, value in flatten(from_dict(requested)).items():
        if value is not None and name in names and base.get(name) != value:
            words.append(f"--config.{name}={shlex.quote(format_value(value))}")
    return " \\\n  ".join([*words, "--workdir=runs/again"])


def describe_environment(environment: dict[str, Any] | None) -> list[Block]:
    """Return device, versions and commit, as a list."""
    if not environment:
        return []
    versions = environment.get("versions") or {}
    found = ", ".join(f"{k} {v}" for k, v in versions.items() if v)
    count = environment.get("device_count")
    device = f"{environment.get('device_kind')} ({environment.get('platform')})"
    items = [
        f"Device: {count} x {device}; {environment.get('machine', 'unknown machine')}.",
        f"Versions: Python {environment.get('python')}; {found}.",
        f"Dtype: {environment.get('dtype')}.",
        f"Commit: {environment.get('git_commit') or 'not from a git checkout'}.",
    ]
    return [Bullets(items)]
