"""The report of one run."""

import math
import shlex
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dwsep_jax.config import CONFIGS, flatten, load_file
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.fields import CHANGE_NOTHING, RUN, SECTIONS, fields_of, format_value
from dwsep_jax.report import charts, figures
from dwsep_jax.report.files import Run
from dwsep_jax.report.format import (
    DASH,
    amount,
    fixed,
    interval,
    mebibytes,
    milliseconds,
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
    Section,
    Table,
    Text,
    write,
)

FLOPS_WORDS = (
    "FLOPs are a count of operations, two for each multiply-add (MAC); FLOP/s is a "
    "rate, FLOPs per second."
)
NOT_EVALUATED = Text("Left out: no evaluation.json yet; --mode=evaluate writes it.")
NOT_MEASURED = Text("Left out: no efficiency.json; --mode=efficiency writes it.")
REDRAW = "python main.py --mode=report --workdir=runs/again"
_TONES = {"well_fitted": "good", "diverged": "bad"}
# What was achieved, and what the machine was measured to reach.
RATES = (
    ("arithmetic", "flops_per_second", "matmul_flops_per_second", "FLOP/s"),
    ("memory traffic", "bytes_per_second", "copy_bytes_per_second", "B/s"),
)


def describe_run(run: Run) -> Section:
    """Return the report of a run, finished or not."""
    evaluation = run.evaluation
    evaluated = [
        ("Confusions", _show_confusions),
        ("Classes", _show_classes),
        ("The most confident mistakes", lambda _: _show_mistakes(run)),
        ("Calibration", _show_calibration),
    ]
    parts = [
        Part("Curves and diagnosis", _show_curves(run)),
        *(
            Part(title, show(evaluation) if evaluation else [NOT_EVALUATED])
            for title, show in evaluated
        ),
        Part("Cost", _show_cost(run)),
        Part("How to reproduce it", _show_command(run)),
    ]
    path = run.directory.resolve()
    # A run of a comparison is named with its variant.
    name = "/".join(path.parts[-2:]) if path.name.startswith("seed") else path.name
    dataset = run.config["resolved"].dataset if run.config else ""
    headline = _summarize(run)
    accuracy = percent(evaluation and evaluation["accuracy"])
    return Section(
        title=f"Run {name}" + (f" on {dataset}" if dataset else ""),
        lead=[headline],
        parts=parts,
        summary=[name, dataset or DASH, "run", accuracy, headline.verdict],
    )


def wilson_interval(proportion: float, count: int) -> list[float]:
    """Return the 95 % interval of a proportion of `count` trials (Wilson, 1927)."""
    z = 1.959964
    center = (proportion + z * z / (2 * count)) / (1 + z * z / count)
    spread = proportion * (1 - proportion) / count + z * z / (4 * count * count)
    half = z * math.sqrt(spread) / (1 + z * z / count)
    return [center - half, center + half]


def _summarize(run):
    """Return the headline: the diagnosis, and the numbers on test."""
    evaluation, diagnosis, numbers = run.evaluation, run.diagnosis, ()
    if evaluation:
        accuracy = evaluation["accuracy"]
        ends = wilson_interval(accuracy, evaluation["num_examples"])
        words = f"test accuracy (95 % interval {interval(ends, percent)})"
        numbers = (
            (percent(accuracy), words),
            (fixed(evaluation["precision"]["macro"]), "macro precision"),
            (fixed(evaluation["recall"]["macro"]), "macro recall"),
            (fixed(evaluation["f1"]["macro"]), "macro F1"),
            (fixed(evaluation["loss"]), "loss (nats)"),
        )
    verdict, tone = ("Finished" if evaluation else "Under way"), "open"
    if diagnosis:
        verdict = diagnosis["verdict"].replace("_", " ").capitalize()
        tone = _TONES.get(diagnosis["verdict"], "open")
    text = " ".join(write("run.jinja", "headline", run._asdict()))
    return Headline(verdict, tone, text, numbers)


def _show_curves(run):
    if not run.rows:
        return [Text("Left out: no metrics.jsonl with epochs yet.")]
    blocks = [Text(f"{figures.describe_best(run.rows)}.")]
    blocks.append(Grid(figures.curves(run.rows)))
    if run.diagnosis is None:
        return [*blocks, Text("Without a diagnosis.json, the curves are not judged.")]
    evidence = run.diagnosis["evidence"].items()
    rows = [[name, significant(value, 4)] for name, value in evidence]
    caption = "The numbers behind the diagnosis"
    return [*blocks, Table(caption, ["number", "value"], rows, folded=True)]


def _show_confusions(evaluation):
    names = [row["name"] for row in evaluation["per_class"]]
    matrix = np.array(evaluation["confusion_matrix"])
    off = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off, axis=None, kind="stable")[:5]
    found = [divmod(int(index), len(names)) for index in order]
    pairs = [f"{names[i]} as {names[j]} ({off[i, j]})" for i, j in found if off[i, j]]
    words = f"Most frequent confusions: {', '.join(pairs)}."
    words = words if pairs else "No image was misclassified."
    return [Text(words), figures.confusion_matrix(evaluation)]


def _show_classes(evaluation):
    keys = ("precision", "recall", "f1")
    rows = [
        [row["name"], *(fixed(row[key]) for key in keys), f"{row['support']:,}"]
        for row in evaluation["per_class"]
    ]
    rows += [
        [f"{average} average", *(fixed(evaluation[key].get(average)) for key in keys)]
        + [f"{evaluation['num_examples']:,}"]
        for average in evaluation["f1"]
    ]
    columns = ["class", "precision", "recall", "F1", "images"]
    return [Table("Precision, recall and F1 of each class", columns, rows)]


def _show_mistakes(run):
    if run.predictions is None:
        return [Text("Left out: no predictions.npz; --mode=evaluate writes it.")]
    names = [row["name"] for row in run.evaluation["per_class"]]
    if run.predictions["probabilities"].shape[1] != len(names):
        raise UserError(
            f"{run.directory / 'predictions.npz'} is damaged (its classes are not "
            "those of evaluation.json); write both again with --mode=evaluate"
        )
    mistakes = find_mistakes(run.predictions, names)
    if not mistakes:
        return [Text("None: every test image was classified correctly.")]
    try:
        images = find_images(run, [mistake["id"] for mistake in mistakes])
    except UserError as error:
        rows = [list(mistake.values()) for mistake in mistakes]
        columns = ["image", "true class", "predicted class", "confidence"]
        reason = f"The pictures are left out: {error}."
        return [Text(reason), Table("Test images", columns, rows)]
    values = [
        m | {"uri": to_data_uri(i)} for m, i in zip(mistakes, images, strict=True)
    ]
    title = "Test images, each with its true class, the prediction and its confidence"
    return [Chart("mistakes", title, charts.pictures(values), 560)]


def _show_calibration(evaluation):
    calibration = evaluation["calibration"]
    bins = [b for b in calibration["bins"] if b["count"]]
    total = sum(b["count"] for b in bins)
    confidence = sum(b["count"] * b["confidence"] for b in bins) / max(total, 1)
    text = write("run.jinja", "calibration", evaluation | {"confidence": confidence})
    return [Text(" ".join(text)), figures.reliability(evaluation)]


def _show_cost(run):
    blocks: list[Block] = []
    if run.rows and run.rows[-1].get("elapsed_seconds"):
        last = run.rows[-1]
        words = f"Training took {amount(last['elapsed_seconds'])} s"
        rate = amount(last.get("images_per_second"))
        blocks.append(Text(f"{words}, at {rate} images/s in the last epoch."))
    if run.efficiency is None:
        return [*blocks, NOT_MEASURED]
    blocks += [Text(FLOPS_WORDS), *_tabulate_counts(run.efficiency)]
    blocks.append(_tabulate_latency(run.efficiency["latency"]))
    return [*blocks, *_tabulate_limits(run.efficiency), *_tabulate_layers(run)]


def _tabulate_counts(efficiency):
    """Return the counts per image, with the measured time beside them."""
    flops = efficiency["flops"]
    # A batch that does not fit into memory has no time.
    timed = [row for row in efficiency["latency"] if row["median_ms"] is not None]
    forward = step = "not timed"
    if timed:
        first = min(timed, key=lambda row: row["batch_size"])
        forward = milliseconds(first["median_ms"])
        forward += f" at batch size {first['batch_size']}"
    if rate := (efficiency.get("train") or {}).get("images_per_second"):
        step = f"{milliseconds(1e3 / rate)} in training"
    rows = [
        ["Parameters", amount(efficiency["parameters"]), DASH],
        ["Multiply-adds (MACs), forward", amount(efficiency["macs"]), forward],
        ["FLOPs, forward, by formula", amount(flops["formula_forward"]), forward],
        ["FLOPs, forward, by XLA", amount(flops["xla_forward"]), forward],
        ["FLOPs, training step, by XLA", amount(flops["xla_train_step"]), step],
    ]
    items = [[k, amount(v)] for k, v in flops["itemized"].items() if v is not None]
    return [
        Table("Counts and times", ["per image", "count", "measured time"], rows),
        Table("XLA's forward FLOPs, itemized", ["kind", "FLOPs"], items, folded=True),
    ]


def _tabulate_latency(latency):
    keys = ("median_ms", "p95_ms", "spread_ms")
    rows = [
        [f"{row['batch_size']} ({row['dtype']})"]
        + [significant(row[key]) for key in keys]
        + [amount(row["images_per_second"])]
        for row in latency
    ]
    columns = ["batch size", "median (ms)", "p95 (ms)", "spread (ms)", "images/s"]
    return Table("Inference, measured after warm-up", columns, rows)


def _tabulate_limits(efficiency):
    """Yield the achieved rates beside the machine's, and the memory."""
    machine, memory = efficiency.get("machine") or {}, efficiency.get("memory") or {}
    rates = [
        [words, scaled(mine, unit), scaled(most, unit), share(mine / most)]
        for words, key, limit, unit in RATES
        if (mine := efficiency.get(f"achieved_{key}")) and (most := machine.get(limit))
    ]
    if rates:
        caption = "Achieved rates; the one with the higher share is the nearer limit"
        columns = ["rate", "achieved", "measured limit of the machine", "share"]
        yield Table(caption, columns, rates)
    sources = memory.get("source") or {}
    sizes = [
        [key, mebibytes(size), str(sources.get(f"{key}_bytes", DASH))]
        for key in ("parameters", "optimizer", "activations", "peak")
        if (size := memory.get(f"{key}_bytes")) is not None
    ]
    if sizes:
        yield Table("Memory", ["of", "size", "source"], sizes)


def _tabulate_layers(run):
    layers = run.efficiency["layers"]
    total = max(sum(layer["macs"] for layer in layers), 1)
    rows = [
        [layer["name"], layer["kind"], " x ".join(map(str, layer["output_shape"]))]
        + [amount(layer["parameters"]), amount(layer["macs"])]
        + [f"{100 * layer['macs'] / total:.1f} %"]
        for layer in layers
    ]
    columns = ["layer", "kind", "output", "parameters", "MACs", "share"]
    return [Table("Each layer", columns, rows, folded=True)]


def _show_command(run):
    blocks: list[Block] = []
    if run.config:
        blocks.append(Code(build_command(run.config["requested"])))
    blocks += describe_environment((run.evaluation or {}).get("environment"))
    return blocks or [Text("Left out: no config.json to derive the command from.")]


def build_command(
    requested: ConfigDict, kind: str = RUN, config: str = "configs/default.py"
) -> str:
    """Return the command that repeats a run, a comparison or a sweep elsewhere.

    Args:
      requested: the config, with fields unset.
      kind: `RUN`, `COMPARISON` or `SWEEP` of `config`.
      config: a config file of the repository, with its `:arg`; the command names only
        the fields that differ from it.
    """
    try:
        base = load_file(str(CONFIGS.parent / config))
    except ConfigError:
        base = {}  # Installed without the repository.
    mode = f" --mode={SECTIONS[kind]}" if SECTIONS[kind] else ""
    # With the same storage it would continue the same study.
    names = fields_of(kind) - CHANGE_NOTHING - {"sweep.storage", "sweep.study"}
    words = [f"python main.py{mode} --config={config}"]
    for name, value in flatten(requested).items():
        if value is not None and name in names and base.get(name) != value:
            words.append(f"--config.{name}={shlex.quote(format_value(value))}")
    return " \\\n  ".join([*words, "--workdir=runs/again"])


def describe_environment(environment: dict[str, Any] | None) -> list[Block]:
    """Return the device, the versions and the commit as a list."""
    if not environment:
        return []
    versions = environment.get("versions") or {}
    found = ", ".join(f"{k} {v}" for k, v in versions.items() if v)
    device = f"{environment.get('device_kind')} ({environment.get('platform')})"
    items = [
        f"Device: {environment.get('device_count')} x {device}; "
        f"{environment.get('machine', 'unknown machine')}.",
        f"Versions: Python {environment.get('python')}; {found}.",
        f"Dtype: {environment.get('dtype')}.",
        f"Commit: {environment.get('git_commit') or 'not from a git checkout'}.",
    ]
    return [Bullets(items)]
