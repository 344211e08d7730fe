"""The report of a sweep, from its files."""

import numpy as np

from dwsep_jax.config import SWEEP
from dwsep_jax.report import charts, finals, sweep_charts, sweep_text
from dwsep_jax.report.files import Sweep
from dwsep_jax.report.format import (
    DASH,
    PLUS_MINUS,
    amount,
    interval,
    mean_and_interval,
    percent,
    points,
    share,
)
from dwsep_jax.report.page import (
    Block,
    Bullets,
    Chart,
    Code,
    Grid,
    Part,
    Section,
    Table,
    Text,
)
from dwsep_jax.report.parallel import parallel
from dwsep_jax.report.run import build_command, describe_environment
from dwsep_jax.report.trials import read_number, show_setting

_OPTUNA = (
    "T. Akiba et al., Optuna: A Next-generation Hyperparameter Optimization Framework, "
    "2019",
    "https://arxiv.org/abs/1907.10902",
)
_TPE = (
    "J. Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011: the "
    "tree-structured Parzen estimator (TPE)",
    "https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization",
)
_FANOVA = (
    "F. Hutter et al., An Efficient Approach for Assessing Hyperparameter Importance, "
    "2014: fANOVA",
    "https://proceedings.mlr.press/v32/hutter14.html",
)
_HALVING = (
    (
        "K. Jamieson and A. Talwalkar, Non-stochastic Best Arm Identification and "
        "Hyperparameter Optimization, 2016: successive halving",
        "https://arxiv.org/abs/1502.07943",
    ),
    (
        "L. Li et al., A System for Massively Parallel Hyperparameter Tuning, 2018: "
        "asynchronous successive halving",
        "https://arxiv.org/abs/1810.05934",
    ),
)
_MAX_CURVES = 6
_ANSWER_WORDS = {"better": "behind", "worse": "ahead", "undecided": "undecided"}


def describe_sweep(sweep: Sweep) -> Section:
    """Return what the files of a sweep, finished or not, have to show."""
    pairs, rivals = _list_pairs(sweep), finals.find_rivals(sweep)
    shown = [
        Part("History", _show_history(sweep, pairs)),
        Part("All settings together", _show_parallel(sweep, pairs)),
        Part("Which settings matter", _show_importance(sweep)),
        Part("Setting by setting", _show_slices(sweep, pairs)),
        Part("Every trial", [_tabulate_trials(sweep)]),
        Part("Discussion", [Bullets(sweep_text.discuss(sweep, rivals))]),
        Part("What to try next", [Bullets(sweep_text.list_next_steps(sweep, rivals))]),
        Part("How to reproduce it", _show_command(sweep)),
        Part("References", [_list_references(sweep)]),
    ]
    name = sweep.directory.resolve().name
    if sweep.best is None:
        headline = sweep_text.answer_unfinished(sweep)
        dataset = sweep.config["resolved"]["dataset"]
        title = f"Sweep {name} on {dataset}, under way"
        summary = [name, dataset, "sweep", DASH, headline.verdict]
        return Section(title, [headline], shown, summary)
    headline = sweep_text.answer(sweep, rivals)
    parts = [
        Part("The winner", _show_winner(sweep)),
        Part("Finals over seeds", _show_finals(sweep, rivals)),
        *shown,
    ]
    dataset = sweep.best["dataset"]
    final = finals.find_final(sweep, sweep.best["number"])
    accuracy = mean_and_interval(final["summary"]["accuracy"]) if final else DASH
    summary = [name, dataset, "sweep", accuracy, headline.verdict]
    return Section(f"Which settings are best on {dataset}?", [headline], parts, summary)


def _list_pairs(sweep):
    """Return the trials that have a value, each with what the charts take of it."""
    winner = finals.find_winner(sweep)
    found = [t for t in sweep.trials if t.value is not None and t.state != "failed"]
    complete = [trial.value for trial in finals.list_complete(sweep)]
    floor = _choose_floor(complete or [trial.value for trial in found])
    return [
        (
            t,
            {"number": t.number, "state": t.state, "value": 100 * t.value}
            | {"y": 100 * max(t.value, floor), "is_winner": t is winner}
            | {"settings": sweep_text.describe_settings(sweep, t)},
        )
        for t in found
    ]


def _choose_floor(values):
    """Return what to show from on: a few hopeless trials would flatten all others."""
    if not values:
        return 0.0
    best, middle = max(values), float(np.median(values))
    return max(min(values), best - 3 * max(best - middle, 0.005))


def _show_winner(sweep):
    winner = finals.find_winner(sweep)
    rows, searched = [], {axis.field: axis for axis in sweep.axes}
    overrides = sweep.best["overrides"]
    for field in sorted(overrides, key=lambda field: field not in searched):
        value = overrides[field]
        axis, given = searched.get(field), sweep_text.shorten(show_setting(value))
        if axis is None:
            rows.append([field, given, "not searched"])
            continue
        if axis.name != field:
            factor = sweep_text.shorten(winner.settings[axis.name])
            given += f" ({factor} \N{MULTIPLICATION SIGN} default)"
        rows.append([field, given, _describe_range(axis)])
    words = (
        "This trains it; the numbers in it are exact, those above have three digits."
    )
    return [
        Table("Its settings", ["field", "value", "searched"], rows),
        Text(words),
        Code(sweep.best["command"]),
    ]


def _describe_range(axis):
    if axis.kind == "choice":
        return ", ".join(axis.choices)
    unit = " \N{MULTIPLICATION SIGN} default" if axis.name != axis.field else ""
    return f"{axis.low:.3g} to {axis.high:.3g}{unit}{', log' if axis.log else ''}"


def _name_finals(sweep, entries):
    """Return, by number, what tells one final from another: adam, swish (17)."""
    reasons = [reason for final in entries for reason in final["reasons"]]
    fields = [reason.partition("=")[0] for reason in reasons if "=" in reason]
    columns = [
        axis.name
        for field in dict.fromkeys(["optimizer", "activation", *fields])
        for axis in sweep.axes
        if axis.field == field
    ]
    settings = {trial.number: trial.settings for trial in sweep.trials}
    return {
        n: f"{', '.join(settings[n][name] for name in columns) or 'trial'} ({n})"
        for n in (final["number"] for final in entries)
    }


def _show_finals(sweep, rivals):
    entries = [final for final in sweep.best["finals"] if final["runs"]]
    if not entries:
        return [Text("Left out: best.json has no finals.")]
    number = sweep.best["number"]
    names = _name_finals(sweep, entries)
    rows, values, seeds = [], [], []
    for final in entries:
        accuracy = final["summary"]["accuracy"]
        name, ends = names[final["number"]], accuracy.get("ci95")
        row = [name, percent(accuracy["mean"])]
        row += [percent(accuracy.get("std")), interval(ends, percent)]
        row += [mean_and_interval(final["summary"].get("val_accuracy"))]
        lost = final.get("diverged") or []
        row += [f"{accuracy['n']}" + (f" ({len(lost)} diverged)" if lost else "")]
        rows.append([*row, ", ".join(final["reasons"])])
        value = {"name": name, "mean": 100 * accuracy["mean"]}
        value |= {"low": 100 * ends[0] if ends else None}
        value |= {"high": 100 * ends[1] if ends else None}
        value |= {"interval": interval(ends, percent)}
        values.append(value | {"is_winner": final["number"] == number})
        seeds += [
            {"name": name, "seed": run["seed"], "accuracy": 100 * run["accuracy"]}
            for run in final["runs"]
        ]
    title = "Test accuracy of the finals: mean, 95 % interval, and each seed"
    spec = sweep_charts.finals(values, seeds)
    columns = ["trial", "test accuracy", "std", "95 % interval"]
    columns += ["validation accuracy", "seeds", "best of"]
    note = (
        "Each is the best trial of its optimizer or activation (of complete ones, if "
        "there are any), its number in brackets, trained anew at full length with "
        "seeds that the search has not seen, and read on test once. Intervals: "
        f"Student's t over seeds; {PLUS_MINUS} is half of one."
    )
    return [
        Chart("finals", title, spec),
        Table("The finals", columns, rows, note=note),
        *_show_differences(rivals, names),
        *_show_curves(sweep, names),
    ]


def _show_differences(rivals, names):
    rows = []
    for field, found in rivals.items():
        for rival in found:
            over_seeds, images = rival.over_seeds, rival.over_images
            row = [f"{field}={rival.value}"]
            row += [points(over_seeds["mean"]), interval(over_seeds.get("ci95"))]
            row += [interval(images), str(over_seeds["n"])]
            rows.append([*row, _ANSWER_WORDS[rival.answer], names[rival.number]])
    if not rows:
        return
    columns = ["best of", "winner minus it", "95 % over seeds", "95 % over images"]
    columns += ["seeds", "it is", "trial"]
    note = (
        "In points of test accuracy, paired by seed. Behind or ahead: both intervals "
        "are on one side of 0; undecided: anything else."
    )
    yield Table("The winner against the others", columns, rows, note=note)


def _show_curves(sweep, names):
    curves = {names[n]: rows for n, rows in sweep.curves.items() if rows and n in names}
    curves = dict(list(curves.items())[:_MAX_CURVES])
    if not curves:
        return
    series = {
        name: charts.band_of(rows, lambda row: 100 * row["val_accuracy"])
        for name, rows in curves.items()
    }
    words = "validation accuracy (%)"
    title = "The finals over the epochs: validation accuracy"
    spec = charts.lines(series, list(series), words, ".2f")
    yield Chart("finals_curves", title, spec)


def _show_history(sweep, pairs):
    if not pairs:
        return [_no_values()]
    points = [point for _, point in pairs]
    best: list[dict] = []
    for point in points:
        top = best[-1]["y"] if best else -1.0
        if point["state"] == "complete" and point["y"] > top:
            best.append({"number": point["number"], "y": point["y"]})
    if best:  # Level from the last step on.
        best.append({"number": points[-1]["number"], "y": best[-1]["y"]})
    title = "Validation accuracy of each trial, and the best so far"
    spec = sweep_charts.history(points, best)
    low = sum(1 for point in points if point["value"] < point["y"])
    words = (
        "A pruned trial is shown with the last accuracy that it had, after fewer "
        "epochs. The line is the best complete trial so far, the ring the winner."
    )
    if low:
        verb = "lies lower and is" if low == 1 else "lie lower and are"
        words += f" Of the trials, {low} {verb} drawn at the lower end of the axis."
    return [Chart("history", title, spec), Text(words)]


def _show_parallel(sweep, pairs):
    if not pairs:
        return [_no_values()]
    title = "Each trial as a line from setting to setting, to its validation accuracy"
    spec = parallel(pairs, sweep.axes)
    words = (
        "Where the lines of the best quarter come together, the setting matters and "
        "its best value is there; where they spread, it hardly does. Point at a line "
        "to read its trial."
    )
    return [Chart("parallel", title, spec), Text(words)]


def _show_importance(sweep):
    shares = sweep.best and sweep.best["importance"]
    if not shares:
        words = "Not known: it takes at least 4 complete trials of different accuracy"
        words += ", and a finished sweep." if sweep.best is None else "."
        return [Text(words)]
    labels = {axis.name: axis.label for axis in sweep.axes}
    values = [
        {"name": labels.get(name, name), "share": 100 * part, "shown": share(part)}
        for name, part in sorted(shares.items(), key=lambda item: -item[1])
    ]
    title = "Share of the variance of the accuracy that a setting explains (fANOVA)"
    complete = len(finals.list_complete(sweep))
    words = (
        f"Estimated from {complete} complete trials over the whole space, bad regions "
        "included: a high share says that the setting can do harm, not that its best "
        "value is known. From few trials it is rough."
    )
    return [
        Chart("importance", title, sweep_charts.importance(values)),
        Text(words),
    ]


def _show_slices(sweep, pairs):
    if not pairs:
        return [_no_values()]
    grid, sentences = [], []
    for axis in sweep.axes:
        values = []
        for trial, point in pairs:
            setting = trial.settings[axis.name]
            x = setting if axis.kind == "choice" else read_number(setting)
            if x not in (None, ""):
                values.append(point | {"x": x})
        if not values:
            continue
        title = f"Validation accuracy by {axis.label}"
        spec = sweep_charts.slices(values, axis)
        grid.append(Chart(f"slice_{axis.name}", title, spec))
        sentences += _describe_choices(axis, values)
    return [Grid(grid), Bullets(sentences)] if sentences else [Grid(grid)]


def _describe_choices(axis, values):
    """Say what the complete trials of each choice reached, and how many there are."""
    found = {}
    for value in values:
        if axis.kind == "choice" and value["state"] == "complete":
            found.setdefault(value["x"], []).append(value["value"])
    parts = [
        f"{choice}: {max(found[choice]):.2f} % (median {np.median(found[choice]):.2f} %"
        f", {len(found[choice])} complete)"
        for choice in axis.choices
        if choice in found
    ]
    if parts:
        yield f"Best of each {axis.label}. {'; '.join(parts)}."


def _tabulate_trials(sweep):
    rows = []
    factors = [axis for axis in sweep.axes if axis.name != axis.field]
    labels = {axis.name: axis.label for axis in factors}
    columns = list(sweep.trials[0].settings) if sweep.trials else []
    for t in sweep.trials:
        row = [str(t.number), t.state, percent(t.value)]
        row += [DASH if t.epochs is None else f"{t.epochs:g}"]
        row += [sweep_text.shorten(t.settings[name]) or DASH for name in columns]
        row += [amount(t.seconds)]
        row += [DASH if t.retry_of is None else str(t.retry_of), t.note]
        rows.append(row)
    columns = [labels.get(name, name) for name in columns]
    columns = ["trial", "state", "validation accuracy", "epochs", *columns]
    columns += ["seconds", "retry of", "note"]
    return Table("trials.csv", columns, rows)


def _show_command(sweep):
    blocks: list[Block] = []
    resolved = (sweep.config or {}).get("resolved") or {}
    if sweep.config:
        argument = ":digits" if resolved["dataset"] == "digits" else ""
        file = f"configs/sweep.py{argument}"
        command = build_command(sweep.config["requested"], SWEEP, file)
        redraw = "python main.py --mode=report --workdir=runs/again"
        blocks.append(Code(f"{command}\n{redraw}"))
    best = sweep.best or resolved.get("sweep", {})
    if best.get("sampler") and best.get("pruner"):
        words = f"Sampler {best['sampler']}, pruner {best['pruner']}."
        if sweep.best:
            words += " Several workers, or one that was resumed, draw other trials."
        blocks.append(Text(words))
    return [*blocks, *describe_environment((sweep.best or {}).get("environment"))]


def _list_references(sweep):
    resolved = (sweep.config or {}).get("resolved") or {}
    used = sweep.best or resolved.get("sweep", {})
    references = [_OPTUNA]
    references += [_TPE] if used.get("sampler") == "tpe" else []
    references += _HALVING if used.get("pruner") == "halving" else []
    references += [_FANOVA] if used.get("importance") else []
    items, urls = zip(*references, strict=True)
    return Bullets(list(items), list(urls))


def _no_values():
    return Text("Left out: no trial has a value yet.")
