"""The report of a sweep, from its files."""

from collections import Counter

import jinja2
import numpy as np

from dwsep_jax.fields import SWEEP
from dwsep_jax.report import sweep_charts
from dwsep_jax.report.files import Sweep
from dwsep_jax.report.format import (
    DASH,
    PLUS_MINUS,
    TIMES,
    amount,
    interval,
    listing,
    mean_and_interval,
    percent,
    points,
    share,
)
from dwsep_jax.report.page import (
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
from dwsep_jax.report.run import build_command, describe_environment
from dwsep_jax.report.trials import Axis, compare_finals, read_number
from dwsep_jax.statistics import MIN_SEEDS

# With fewer complete trials there is nothing to conclude, however small the space.
_MIN_COMPLETE = 4
_RELATIONS = {"better": "behind", "worse": "ahead", "undecided": "undecided"}
_PAPERS = {
    "tpe": "https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization",
    "halving": "https://arxiv.org/abs/1810.05934",
    "fANOVA": "https://proceedings.mlr.press/v32/hutter14.html",
    "Optuna": "https://arxiv.org/abs/1907.10902",
}


def describe_sweep(sweep: Sweep) -> Section:
    """Return what the files of a sweep, finished or not, have to show."""
    name, best = sweep.directory.resolve().name, sweep.best
    duels = compare_finals(best["finals"], sweep.correct) if best else {}
    facts = _find_facts(sweep, duels)
    if best:
        dataset, title = (
            best["dataset"],
            f"Which settings are best on {best['dataset']}?",
        )
        headline, reached = _answer(sweep, duels, facts), best["finals"][0]["summary"]
        parts = [
            Part("The winner", _show_winner(sweep)),
            Part("Finals", _show_finals(sweep, duels)),
        ]
    else:
        dataset, reached = sweep.config["resolved"]["dataset"], {}
        title, parts = f"Sweep {name} on {dataset}, in progress", []
        headline = _answer_so_far(sweep, facts)
    parts += [*_show_search(sweep), Part("All trials", [_tabulate_trials(sweep)])]
    limits = _write("sweep.jinja", **facts)
    parts.append(Part("What decided, and its limits", [Bullets(limits)]))
    parts.append(Part("How to reproduce it", _show_command(sweep)))
    accuracy = mean_and_interval(reached.get("accuracy"))
    summary = [name, dataset, "sweep", accuracy, headline.verdict]
    return Section(title, [headline], parts, summary)


def _find_facts(sweep, duels):
    """Return what the limits are decided by, as their template takes it."""
    # Of a lost trial, the last that repeats it.
    attempts = {t.number if t.retry_of is None else t.retry_of: t for t in sweep.trials}
    counts = Counter(trial.state for trial in attempts.values())
    failed = [t.note or "unknown" for t in attempts.values() if t.state == "failed"]
    failures = [f"{note} ({n})" for note, n in Counter(failed).most_common(3)]
    winner, best = _find_winner(sweep), sweep.best
    edges = [(a, winner and a.find_edge(winner)) for a in sweep.axes]
    facts = {
        "states": listing([f"{n} {s}" for s, n in counts.most_common()]) or "no trials",
        "num_ended": sum(counts[state] for state in ("complete", "pruned", "failed")),
        "num_complete": counts["complete"],
        "num_pruned": counts["pruned"],
        "num_axes": len(sweep.axes),
        "is_enough": counts["complete"] >= max(_MIN_COMPLETE, len(sweep.axes)),
        "failures": ", ".join(failures),
        "retries": sum(trial.retry_of is not None for trial in sweep.trials),
        "edges": [(axis, side) for axis, side in edges if side],
        "answers": [duel.answer for duel in duels.values()],
        "is_without_images": any(d.over_images is None for d in duels.values()),
    }
    if not best:
        return facts
    again = best["finals"][0]["summary"].get("val_accuracy") or {}
    verdicts = Counter(d["verdict"] for d in sweep.diagnoses[best["number"]])
    fields = [a.field for a in sweep.axes if a.field in ("optimizer", "activation")]
    tried = {f: Counter(t.settings[f] for t in sweep.trials) for f in fields}
    numbers = [
        f"{field}: {', '.join(f'{value} {n}' for value, n in found.most_common())}"
        for field, found in tried.items()
    ]
    return facts | {
        "later": max(0, counts.total() - sum(best["num_trials"].values())),
        "found": best["validation"]["accuracy"],
        "retrained": again.get("mean"),
        "tried": "; ".join(numbers),
        "fit": listing(
            [f"{v.replace('_', ' ')} in {n}" for v, n in verdicts.most_common()]
        ),
    }


def _write(template, **values):
    """Return the lines of a template that are not empty."""
    loader = jinja2.PackageLoader("dwsep_jax.report", "templates")
    environment = jinja2.Environment(loader=loader)
    environment.filters |= {"percent": percent, "points": points}
    lines = environment.get_template(template).render(**values).splitlines()
    return [line for line in lines if line]


def _find_winner(sweep):
    """Return the winner, or the best complete trial so far; None without one."""
    found = [t for t in sweep.trials if t.state == "complete"]
    if sweep.best:
        found = [t for t in sweep.trials if t.number == sweep.best["number"]]
    return max(found, key=lambda trial: trial.value, default=None)


def _shorten(setting):
    """Return a setting with three significant digits unless it is a whole number."""
    value = read_number(setting)
    is_whole = value is None or setting.lstrip("-").isdigit()
    return setting if is_whole else f"{value:.3g}"


def _describe_setting(axis, trial):
    text = _shorten(trial.settings[axis.name])
    if not axis.is_factor:
        return text
    rate = _shorten(trial.settings.get(axis.field, ""))
    return f"{rate} ({text} {TIMES} default)"


def _describe_settings(sweep, trial):
    return ", ".join(f"{a.field} {_describe_setting(a, trial)}" for a in sweep.axes)


def _name(trial):
    """Return `adam with swish`: what tells the finals apart."""
    found = (trial.settings.get(field) for field in ("optimizer", "activation"))
    return " with ".join(filter(None, found)) or "trial"


def _answer(sweep, duels, facts):
    """Return which settings are best, and how sure that is."""
    best, winner = sweep.best, _find_winner(sweep)
    named = {answer: [] for answer in _RELATIONS}
    for final in best["finals"]:
        if duel := duels.get(final["number"]):
            values = [reason.partition("=")[2] for reason in final["reasons"]]
            named[duel.answer] += values
    name, seeds = _name(winner), len(best["finals"][0]["runs"])
    ahead, level = listing(named["worse"]), listing(named["undecided"])
    verdicts = [
        (not facts["is_enough"], ", but too few trials are complete", "open"),
        (seeds < MIN_SEEDS, ", not yet confirmed over seeds", "open"),
        (ahead, f" on validation, but behind {ahead} on test", "bad"),
        (level, f", not clearly ahead of {level}", "open"),
        (duels, ", clearly", "good"),
        (True, "", "good"),
    ]
    words, tone = next((words, tone) for holds, words, tone in verdicts if holds)
    verdict = name + words
    reached = best["validation"]
    tested = mean_and_interval(best["finals"][0]["summary"]["accuracy"])
    text = (
        f"Trial {winner.number} reached the highest validation accuracy of "
        f"{sum(best['num_trials'].values())} trials, at epoch {reached['epoch']}. It "
        "was retrained with new seeds and evaluated once on the test set."
    )
    over = f"{seeds} seeds, 95 % interval" if seeds > 1 else "1 seed"
    figures = [
        (percent(reached["accuracy"]), "validation accuracy in the search"),
        (tested, f"test accuracy over {over}"),
    ]
    return Headline(verdict, tone, text, tuple(figures))


def _answer_so_far(sweep, facts):
    wanted = sweep.config["resolved"]["sweep"].get("num_trials")
    total = f" of {wanted}" if wanted else ""
    text = f"{facts['num_ended']}{total} trials have ended."
    if winner := _find_winner(sweep):
        text += (
            f" The best so far is trial {winner.number}, with {percent(winner.value)} "
            f"on validation: {_describe_settings(sweep, winner)}."
        )
    if sweep.num_evaluated:
        text += f" The search is over; finals evaluated on test: {sweep.num_evaluated}."
    return Headline("In progress", "open", f"{text} Run the same command to continue.")


def _show_winner(sweep):
    winner, rows = _find_winner(sweep), []
    for axis in sweep.axes:
        ends = f"{axis.low:g} to {axis.high:g}{', log' if axis.log else ''}"
        unit = f", {TIMES} default" if axis.is_factor else ""
        searched = ", ".join(axis.choices) or ends
        rows.append([axis.field, _describe_setting(axis, winner), searched + unit])
    table = Table("Settings", ["field", "value", "searched"], rows)
    return [table, Code(sweep.best["command"])]


def _show_finals(sweep, duels):
    trials = {trial.number: trial for trial in sweep.trials}
    rows, means, seeds = [], [], []
    for final in sweep.best["finals"]:
        number, summary = final["number"], final["summary"]
        name, accuracy = f"{_name(trials[number])} ({number})", summary["accuracy"]
        ends, lost = accuracy.get("ci95"), len(final.get("diverged") or [])
        row = [name, mean_and_interval(summary.get("val_accuracy"))]
        row += [mean_and_interval(accuracy)]
        row += [f"{accuracy['n']}" + (f" ({lost} diverged)" if lost else "")]
        if duel := duels.get(number):
            row += [points(duel.over_seeds["mean"]), interval(duel.over_seeds["ci95"])]
            row += [interval(duel.over_images), _RELATIONS[duel.answer]]
        rows.append(row if duel else [*row, DASH, DASH, DASH, DASH])
        low, high = [100 * end for end in ends] if ends else (None, None)
        mean = {"name": name, "mean": 100 * accuracy["mean"], "low": low, "high": high}
        mean["interval"] = interval(ends, percent)
        means.append(mean | {"is_winner": not means})
        for run in final["runs"]:
            seed = {"seed": run["seed"], "accuracy": 100 * run["accuracy"]}
            seeds.append(seed | {"name": name})
    columns = ["trial", "validation accuracy", "test accuracy", "seeds"]
    columns += ["winner's lead", "95 % over seeds", "95 % over images", "it is"]
    note = (
        "The best trial with each optimizer and each activation, its number in "
        f"brackets. {PLUS_MINUS} is half a 95 % interval (Student's t over seeds). "
        "Leads are in points of test accuracy, paired by seed; a trial is behind or "
        "ahead only where both intervals exclude 0."
    )
    title = "Test accuracy of the finals: mean, 95 % interval and each seed"
    chart = Chart("finals", title, sweep_charts.finals(means, seeds))
    return [
        chart,
        Table("The winner against the other finals", columns, rows, note=note),
    ]


def _show_search(sweep):
    """Return the parts that draw all trials with a validation accuracy."""
    found = [t for t in sweep.trials if t.value is not None and t.state != "failed"]
    if not found:
        return [Part("Search", [Text("No trial has a validation accuracy yet.")])]
    complete = [trial.value for trial in found if trial.state == "complete"]
    values = 100 * np.array(complete or [trial.value for trial in found])
    # A few hopeless trials would flatten all the others.
    top, reach = values.max(), 3 * max(values.max() - np.median(values), 0.5)
    scope = Axis("accuracy", "validation, accuracy (%)", "")
    scope = scope._replace(low=max(values.min(), top - reach) - 1e-3, high=top)
    trials = [
        {"number": t.number, "state": t.state, "accuracy": 100 * t.value}
        | {"settings": _describe_settings(sweep, t)}
        | {"is_winner": t is _find_winner(sweep)}
        | {axis.name: axis.read(t) for axis in sweep.axes}
        for t in found
    ]
    slices = [
        Chart(f"slice_{axis.name}", f"Validation accuracy by {axis.label}", spec)
        for axis in sweep.axes
        for spec in [sweep_charts.by_setting(trials, axis, scope)]
    ]
    title = "Validation accuracy of each trial, and the best so far"
    history = Chart("history", title, sweep_charts.history(trials, scope))
    title = "Each trial as a line through its settings to its validation accuracy"
    spec = sweep_charts.parallel(trials, [*sweep.axes, scope])
    parallel = Chart("parallel", title, spec)
    marks = (
        "A ring marks the winner. A pruned trial is drawn at the last accuracy that it "
        f"had, and one below {scope.low:.2f} % at the lower end of the axis."
    )
    lines = (
        "Orange is the winner; dotted lines are not complete. A setting matters where "
        "the darkest lines, the best quarter, come together."
    )
    return [
        Part("Search", [history, Text(marks)]),
        Part("Importance of each setting", _show_importance(sweep, len(complete))),
        Part("Accuracy by setting", [Grid(slices)]),
        Part("All settings together", [parallel, Text(lines)]),
    ]


def _show_importance(sweep, num_complete):
    shares = sweep.best and sweep.best["importance"]
    if not shares:
        return [Text("Known once the search has ended with 4 trials that differ.")]
    rows = [
        {"name": a.label, "share": 100 * shares[a.name], "text": share(shares[a.name])}
        for a in sorted(sweep.axes, key=lambda axis: -shares[axis.name])
    ]
    title = "Share of the variance of the accuracy that each setting explains (fANOVA)"
    words = (
        f"Estimated from {num_complete} complete trials over the whole space: a high "
        "share means that a bad value does harm, not that the best value is known."
    )
    chart = Chart("importance", title, sweep_charts.importance(rows))
    return [chart, Text(words)]


def _tabulate_trials(sweep):
    labels = {axis.name: axis.label for axis in sweep.axes}
    settings = list(sweep.trials[0].settings) if sweep.trials else []
    rows = [
        [str(t.number), t.state, percent(t.value), amount(t.epochs)]
        + [_shorten(t.settings[name]) or DASH for name in settings]
        + [amount(t.seconds), amount(t.retry_of), t.note or ""]
        for t in sweep.trials
    ]
    columns = ["trial", "state", "validation accuracy", "epochs"]
    columns += [labels.get(name, name) for name in settings]
    return Table("trials.csv", [*columns, "seconds", "retry of", "note"], rows)


def _show_command(sweep):
    blocks, used = [], sweep.best or sweep.config["resolved"]["sweep"]
    if sweep.config:
        on_digits = sweep.config["resolved"]["dataset"] == "digits"
        file = f"configs/sweep.py{':digits' if on_digits else ''}"
        blocks.append(Code(build_command(sweep.config["requested"], SWEEP, file)))
    words = (
        f"Sampler {used['sampler']}, pruner {used['pruner']}. A sweep that several "
        "workers share, or that was interrupted, draws other trials."
    )
    cited = ["Optuna", used["sampler"], used["pruner"]]
    cited += ["fANOVA"] if sweep.best and sweep.best["importance"] else []
    names = [name for name in cited if name in _PAPERS]
    papers = Bullets(names, [_PAPERS[name] for name in names])
    environment = describe_environment(used.get("environment"))
    return [*blocks, Text(words), *environment, papers]
