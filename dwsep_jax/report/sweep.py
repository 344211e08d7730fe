"""The report of a sweep, from its files."""

import math
from collections import Counter
from typing import Any

from dwsep_jax.fields import SWEEP
from dwsep_jax.report import page, sweep_charts
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
from dwsep_jax.report.run import build_command, describe_environment
from dwsep_jax.space import Axis
from dwsep_jax.statistics import MIN_SEEDS, compare_networks
from dwsep_jax.trials import ENDED, Trial, latest

# With fewer complete trials there is nothing to conclude, however small the space.
_MIN_COMPLETE = 4
# A setting this close to an end of its range, as a share of it, is at the edge.
_EDGE = 0.03
_RELATIONS = {"better": "behind", "worse": "ahead", "undecided": "undecided"}
_PAPERS = {
    "Optuna": "https://arxiv.org/abs/1907.10902",
    "TPE": "https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization",
    "Successive halving": "https://arxiv.org/abs/1810.05934",
    "fANOVA": "https://proceedings.mlr.press/v32/hutter14.html",
}


def describe_sweep(sweep: Sweep) -> page.Section:
    """Return what the files of a sweep, finished or not, have to show."""
    name, best, winner = sweep.directory.resolve().name, sweep.best, _find_winner(sweep)
    if best:
        dataset, reached = best["dataset"], best["finals"][0]["summary"]
        title = f"Which settings are best on {dataset}?"
        duels = compare_finals(sweep)
        headline = _answer(sweep, winner, duels)
        parts = [
            page.Part("The winner", _show_winner(sweep, winner)),
            page.Part("Finals", [_show_finals(sweep, duels)]),
        ]
    else:
        dataset, reached = sweep.config["resolved"].dataset, {}
        title, parts, duels = f"Sweep {name} on {dataset}, in progress", [], {}
        headline = _answer_so_far(sweep, winner)
    parts += [
        *_show_search(sweep, winner),
        page.Part("All trials", [_tabulate_trials(sweep)]),
        page.Part(
            "What decided, and its limits",
            [page.Bullets(_list_limits(sweep, winner, duels))],
        ),
        page.Part("How to reproduce it", _show_command(sweep)),
    ]
    accuracy = mean_and_interval(reached.get("accuracy"))
    summary = [name, dataset, "sweep", accuracy, headline.verdict]
    return page.Section(title, [headline], parts, summary)


def _find_winner(sweep):
    """Return the winner, or the best complete trial so far; None without one."""
    found = [t for t in sweep.trials if t.state == "complete"]
    if sweep.best:
        found = [t for t in sweep.trials if t.number == sweep.best["number"]]
    return max(found, key=lambda trial: trial.value, default=None)


def compare_finals(sweep: Sweep) -> dict[int, dict[str, Any]]:
    """Return the winner against each other final that shares seeds with it.

    By the number of the other's trial, as `compare_networks` returns it.
    """
    (winner, ours), *others = [
        (final["number"], {run["seed"]: run["accuracy"] for run in final["runs"]})
        for final in sweep.best["finals"]
    ]
    right, duels = sweep.correct[winner], {}
    for number, theirs in others:
        other, correct = sweep.correct[number], None
        is_known = right is not None and other is not None
        if is_known and list(ours) == list(theirs) and right.shape == other.shape:
            correct = right, other
        if seeds := [seed for seed in ours if seed in theirs]:
            accuracies = [ours[s] for s in seeds], [theirs[s] for s in seeds]
            duels[number] = compare_networks(accuracies, correct, margin=0.0)
    return duels


def _list_limits(sweep, winner, duels):
    """Return what decided the sweep, and what the answer does not show."""
    attempts = latest(sweep.trials)
    counts = Counter(trial.state for trial in attempts)
    states = listing([f"{n} {state}" for state, n in counts.most_common()])
    limits = [f"Trials: {states or 'none'}."]
    notes = Counter(t.note or "unknown" for t in attempts if t.state == "failed")
    if notes:
        told = [f"{note} ({n})" for note, n in notes.most_common(3)]
        limits.append(f"Failures: {', '.join(told)}.")
    if repeated := len(sweep.trials) - len(attempts):
        limits.append(f"Trials repeated because their worker was lost: {repeated}.")
    if not _is_enough(sweep):
        limits.append(
            f"Too few trials are complete for a space of {len(sweep.axes)} settings. "
            "The same command with a higher sweep.num_trials continues the search."
        )
    for axis in sweep.axes if winner else []:
        if side := find_edge(axis, winner):
            limits.append(
                f"The winner's {axis.field} is at the edge of the space "
                f"({_describe_axis(axis)}). Better values may lie {side}: widen the "
                "axis."
            )
    return limits + (_list_limits_of_finals(sweep, counts, duels) if sweep.best else [])


def _list_limits_of_finals(sweep, counts, duels):
    best, limits = sweep.best, []
    if (later := counts.total() - sum(best["num_trials"].values())) > 0:
        limits.append(
            f"Trials that ended after the finals: {later}. Run the command of the "
            "sweep again to include them."
        )
    found = best["validation"]["accuracy"]
    if again := best["finals"][0]["summary"].get("val_accuracy"):
        epochs = best.get("refit_epochs")
        text = (
            f"The winner reached {percent(found)} on validation in the search and "
            f"{percent(again['mean'])} when retrained"
            f"{f' for {epochs} epochs' if epochs else ''} "
            f"({points(again['mean'] - found)} points)"
        )
        if not epochs:
            text += f": the best of {counts['complete']} trials is partly the luckiest"
        limits.append(f"{text}. Expect what the finals show.")
    if any(duel["answer"] == "undecided" for duel in duels.values()):
        limits.append(
            "More seeds (sweep.num_seeds) may settle what is undecided. If a "
            "difference this small does not matter, take the cheaper setting."
        )
    verdicts = [
        fit["verdict"].replace("_", " ") for fit in sweep.diagnoses[best["number"]]
    ]
    fits = [f"{verdict} in {n}" for verdict, n in Counter(verdicts).most_common()]
    limits.append(f"The winner's loss curves: {listing(fits)} of its runs.")
    if "still improving" in verdicts:
        limits.append(
            "With more epochs (num_epochs) the order may change: a short run favors "
            "what learns fast."
        )
    return limits


def _is_enough(sweep):
    num_complete = sum(trial.state == "complete" for trial in sweep.trials)
    return num_complete >= max(_MIN_COMPLETE, len(sweep.axes))


def find_edge(axis: Axis, trial: Trial) -> str | None:
    """Return `below` or `above` where a trial is at an end of the axis, else None.

    Only numbers have ends. There is nothing below 0, and of two choices each is an end.
    """
    value, ends = trial.settings[axis.name], axis.extremes
    is_ordered = all(type(end) in (int, float) for end in ends)
    if not is_ordered or (axis.choices and len(ends) < 3):
        return None
    scale = math.log if axis.log else float
    low, high = scale(min(ends)), scale(max(ends))
    place = (scale(value) - low) / (high - low)
    if place >= 1 - _EDGE:
        return "above"
    return "below" if place <= _EDGE and min(ends) > 0 else None


def _describe_axis(axis):
    """Return the values that were searched."""
    text = ", ".join(map(str, axis.choices or ()))
    if axis.choices is None:
        text = f"{_shorten(axis.low)} to {_shorten(axis.high)}"
    text += ", log" if axis.log else ""
    return text + (f", {TIMES} default" if axis.is_factor else "")


def _shorten(setting):
    """Return a setting, a float with three significant digits."""
    if setting is None:
        return DASH
    return f"{setting:.3g}" if isinstance(setting, float) else str(setting)


def _describe_setting(axis, trial):
    text = _shorten(trial.settings[axis.name])
    if not axis.is_factor or text == DASH:
        return text
    return f"{_shorten(trial.settings[axis.field])} ({text} {TIMES} default)"


def _describe_settings(sweep, trial):
    return ", ".join(f"{a.field} {_describe_setting(a, trial)}" for a in sweep.axes)


def _name(trial):
    """Return `adam with swish`: what tells the finals apart."""
    found = (trial.settings.get(field) for field in ("optimizer", "activation"))
    return " with ".join(filter(None, found)) or "trial"


def _answer(sweep, winner, duels):
    """Return which settings are best, and how sure that is."""
    best, finals = sweep.best, sweep.best["finals"]
    seeds, reached = len(finals[0]["runs"]), best["validation"]
    verdict, tone = _decide(sweep, seeds, duels)
    text = (
        f"Trial {winner.number} reached the highest validation accuracy of "
        f"{sum(best['num_trials'].values())} trials, at epoch {reached['epoch']}. It "
        "was retrained with new seeds and evaluated once on the test set."
    )
    over = f"{seeds} seeds, 95 % interval" if seeds > 1 else "1 seed"
    tested = mean_and_interval(finals[0]["summary"]["accuracy"])
    figures = [
        (percent(reached["accuracy"]), "validation accuracy in the search"),
        (tested, f"test accuracy over {over}"),
    ]
    return page.Headline(_name(winner) + verdict, tone, text, tuple(figures))


def _decide(sweep, num_seeds, duels):
    """Return what to say of the winner, and the tone."""
    named = {answer: [] for answer in _RELATIONS}
    for final in sweep.best["finals"]:
        if duel := duels.get(final["number"]):
            values = [reason.partition("=")[2] for reason in final["reasons"]]
            named[duel["answer"]] += values
    if not _is_enough(sweep):
        return ", but too few trials are complete", "open"
    if num_seeds < MIN_SEEDS:
        return ", not yet confirmed over seeds", "open"
    if named["worse"]:
        return f" on validation, but behind {listing(named['worse'])} on test", "bad"
    if named["undecided"]:
        return f", not clearly ahead of {listing(named['undecided'])}", "open"
    return ", clearly" if duels else "", "good"


def _answer_so_far(sweep, winner):
    wanted = sweep.config["resolved"].sweep.num_trials
    num_ended = sum(trial.state in ENDED for trial in latest(sweep.trials))
    text = f"{num_ended}{f' of {wanted}' if wanted else ''} trials have ended."
    if winner:
        text += (
            f" The best so far is trial {winner.number}, with {percent(winner.value)} "
            f"on validation: {_describe_settings(sweep, winner)}."
        )
    if sweep.num_evaluated:
        text += f" The search is over; finals evaluated on test: {sweep.num_evaluated}."
    return page.Headline(
        "In progress", "open", f"{text} Run the same command to continue."
    )


def _show_winner(sweep, winner):
    shares = sweep.best["importance"] or {}
    rows = [
        [axis.field, _describe_setting(axis, winner), _describe_axis(axis)]
        + [share(shares.get(axis.name))]
        for axis in sweep.axes
    ]
    note = (
        "Importance is the share of the variance of the accuracy that a setting "
        "explains, by fANOVA over the complete trials: where it is high, a bad value "
        "does harm, which does not mean that the best value is known."
    )
    columns = ["field", "value", "searched", "importance"]
    return [
        page.Table("Settings", columns, rows, note=note),
        page.Code(sweep.best["command"]),
    ]


def _show_finals(sweep, duels):
    trials, rows = {trial.number: trial for trial in sweep.trials}, []
    for final in sweep.best["finals"]:
        number, summary = final["number"], final["summary"]
        accuracy, lost = summary["accuracy"], len(final.get("diverged") or [])
        row = [f"{_name(trials[number])} ({number})"]
        row += [mean_and_interval(summary.get("val_accuracy"))]
        row += [mean_and_interval(accuracy)]
        row += [f"{accuracy['n']}" + (f" ({lost} diverged)" if lost else "")]
        if duel := duels.get(number):
            row += [points(duel["mean"]), interval(duel["ci95"])]
            row += [interval((duel["bootstrap"] or {}).get("ci95"))]
            row += [_RELATIONS[duel["answer"]]]
        rows.append(row if duel else [*row, DASH, DASH, DASH, DASH])
    columns = ["trial", "validation accuracy", "test accuracy", "seeds"]
    columns += ["winner's lead", "95 % over seeds", "95 % over images", "it is"]
    note = (
        "The best trial found with each optimizer and each activation, its number in "
        "brackets: the less often one was tried, the fewer chances it had. "
        f"{PLUS_MINUS} is half a 95 % interval (Student's t over seeds). Leads are in "
        "points of test accuracy, paired by seed. A trial is behind or ahead only "
        "where both intervals exclude 0 (that over seeds alone, where predictions of "
        "the same images are missing); without any real difference, one in twenty "
        "would still be."
    )
    return page.Table("The winner against the other finals", columns, rows, note=note)


def _show_search(sweep, winner):
    """Return the parts that draw all trials with a validation accuracy."""
    found = [t for t in sweep.trials if t.value is not None and t.state != "failed"]
    if not found:
        return [
            page.Part("Search", [page.Text("No trial has a validation accuracy yet.")])
        ]
    rows = [
        {"number": t.number, "state": t.state, "accuracy": 100 * t.value}
        | {"settings": _describe_settings(sweep, t), "is_winner": t is winner}
        | t.settings
        for t in found
    ]
    scope = sweep_charts.find_scope(rows)
    slices = []
    for axis in sweep.axes:
        label = axis.field + (f", {TIMES} default" if axis.is_factor else "")
        spec = sweep_charts.by_setting(rows, axis, label, scope)
        title = f"Validation accuracy by {label}"
        slices.append(page.Chart(f"slice_{axis.name}", title, spec))
    title = "Validation accuracy of each trial, and the best so far"
    history = page.Chart("history", title, sweep_charts.history(rows, scope))
    marks = (
        "A ring marks the winner. A pruned trial is drawn at the last accuracy that it "
        "had, which says little about where it would have ended, and one below "
        f"{scope[0]:.2f} % at the lower end of the axis."
    )
    return [
        page.Part("Accuracy by setting", [page.Grid(slices), page.Text(marks)]),
        page.Part("Search", [history]),
    ]


def _tabulate_trials(sweep):
    rows = [
        [str(t.number), t.state, percent(t.value), amount(t.epochs)]
        + [_describe_setting(axis, t) for axis in sweep.axes]
        + [amount(t.seconds), amount(t.retry_of), t.note or ""]
        for t in sweep.trials
    ]
    columns = ["trial", "state", "validation accuracy", "epochs"]
    columns += [axis.field for axis in sweep.axes]
    return page.Table("trials.csv", [*columns, "seconds", "retry of", "note"], rows)


def _show_command(sweep):
    blocks, used = [], sweep.best or sweep.config["resolved"]["sweep"]
    if sweep.config:
        on_digits = sweep.config["resolved"].dataset == "digits"
        file = f"configs/sweep.py{':digits' if on_digits else ''}"
        blocks.append(page.Code(build_command(sweep.config["requested"], SWEEP, file)))
    words = (
        f"Sampler {used['sampler']}, pruner {used['pruner']}. A sweep that several "
        "workers share, or that was interrupted, draws other trials."
    )
    papers = page.Bullets(list(_PAPERS), list(_PAPERS.values()))
    environment = describe_environment(used.get("environment"))
    return [*blocks, page.Text(words), *environment, papers]
