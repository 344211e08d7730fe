"""The report of a sweep, from its files."""

import math
from collections import Counter
from typing import Any

from dwsep_jax.console import format_setting
from dwsep_jax.fields import SWEEP
from dwsep_jax.report import charts, page
from dwsep_jax.report.files import Sweep
from dwsep_jax.report.format import (
    DASH,
    amount,
    difference,
    listing,
    mean_and_interval,
    percent,
)
from dwsep_jax.report.run import count_verdicts, show_command
from dwsep_jax.space import Axis
from dwsep_jax.statistics import MIN_SEEDS, compare_networks
from dwsep_jax.trials import ENDED, Trial, latest

# With fewer complete trials there is nothing to conclude, however small the space.
_MIN_COMPLETE = 4
# A setting this close to an end of its range, as a share of it, is at the edge.
_EDGE = 0.03
_RELATIONS = {"better": "behind", "worse": "ahead", "undecided": "undecided"}


def describe_sweep(sweep: Sweep) -> page.Section:
    """Return what the files of a sweep, finished or not, have to show."""
    name, dataset = sweep.directory.resolve().name, sweep.config["resolved"].dataset
    winner, best, duels, parts = _find_winner(sweep), sweep.best, {}, {}
    if best:
        duels = compare_finals(sweep)
        title = f"Which settings are best on {dataset}?"
        headline = _answer(sweep, winner, duels)
        accuracy = headline.figures[-1][0]
        parts["The winner"] = _show_winner(sweep, winner)
        parts["Finals"] = [_tabulate_finals(sweep, duels)]
    else:
        title, accuracy = f"Sweep {name} on {dataset}, in progress", DASH
        headline = _answer_so_far(sweep, winner)
    if winner:
        parts["Accuracy by setting"] = _show_slices(sweep, winner)
    command = show_command(sweep.config, best and best["environment"], SWEEP)
    parts |= {
        "All trials": [_tabulate_trials(sweep)],
        "What decided, and its limits": [_list_limits(sweep, winner, duels)],
        "How to reproduce it": command,
    }
    return page.Section(title, headline, parts, [name, dataset, "sweep", accuracy])


def _list_complete(sweep):
    return [trial for trial in sweep.trials if trial.state == "complete"]


def _find_winner(sweep):
    """Return the winner, or the best complete trial so far; None without one."""
    if sweep.best:
        return {t.number: t for t in sweep.trials}[sweep.best["number"]]
    return max(_list_complete(sweep), key=lambda trial: trial.value, default=None)


def compare_finals(sweep: Sweep) -> dict[int, dict[str, Any]]:
    """Return the winner against each other final, over the seeds that both have.

    By the number of the other's trial, as `compare_networks` returns it.
    """
    finals = {
        number: {
            run["seed"]: (run["accuracy"], files.predictions)
            for run, files in zip(final["runs"], sweep.runs[number], strict=True)
        }
        for number, final in sweep.finals.items()
    }
    ours, duels = finals.pop(sweep.best["number"]), {}
    for number, theirs in finals.items():
        if seeds := [seed for seed in ours if seed in theirs]:
            pair = [[runs[seed] for seed in seeds] for runs in (ours, theirs)]
            accuracies = [[accuracy for accuracy, _ in runs] for runs in pair]
            correct = None
            if all(found for runs in pair for _, found in runs):
                correct = [[found["correct"] for _, found in runs] for runs in pair]
            duels[number] = compare_networks(accuracies, correct, margin=0.0)
    return duels


def _answer(sweep, winner, duels):
    """Return which settings are best, and how sure that is."""
    best, final = sweep.best, sweep.finals[winner.number]
    reached, num_seeds = best["validation"], len(final["runs"])
    verdict, tone = _decide(sweep, num_seeds, duels)
    text = (
        f"Trial {winner.number} reached the highest validation accuracy of "
        f"{sum(best['num_trials'].values())} trials, at epoch {reached['epoch']}. It "
        "was retrained with new seeds and evaluated once on the test set."
    )
    figures = (
        (percent(reached["accuracy"]), "validation accuracy in the search"),
        (
            mean_and_interval(final["summary"]["accuracy"]),
            f"test accuracy, mean over seeds (n = {num_seeds}), 95 % interval",
        ),
    )
    return page.Headline(_name(winner) + verdict, tone, text, figures)


def _decide(sweep, num_seeds, duels):
    """Return what to say of the winner, and the tone."""
    named = {answer: [] for answer in _RELATIONS}
    for number, duel in duels.items():
        reasons = sweep.finals[number]["reasons"]
        named[duel["answer"]] += [reason.partition("=")[2] for reason in reasons]
    if not _is_enough(sweep):
        return ", but too few trials are complete", "open"
    if num_seeds < MIN_SEEDS:
        return ", not yet confirmed over seeds", "open"
    if named["worse"]:
        return f" on validation, but behind {listing(named['worse'])} on test", "bad"
    if named["undecided"]:
        return f", not clearly ahead of {listing(named['undecided'])}", "open"
    return ", clearly" if duels else "", "good"


def _is_enough(sweep):
    return len(_list_complete(sweep)) >= max(_MIN_COMPLETE, len(sweep.axes))


def _answer_so_far(sweep, winner):
    wanted = sweep.config["resolved"].sweep.num_trials
    num_ended = sum(trial.state in ENDED for trial in latest(sweep.trials))
    text = f"{num_ended}{f' of {wanted}' if wanted else ''} trials have ended."
    if winner:
        text += (
            f" The best so far is trial {winner.number}, with {percent(winner.value)} "
            "on validation."
        )
    text += " Run the same command to continue."
    return page.Headline("In progress", "open", text)


def _name(trial):
    """Return `adam with swish`: what tells the finals apart."""
    found = (trial.settings.get(field) for field in ("optimizer", "activation"))
    return " with ".join(filter(None, found)) or "trial"


def _show_winner(sweep, winner):
    settings, shares = winner.settings, sweep.best["importance"] or {}
    rows = [
        [name, format_setting(settings[name]), text, percent(shares.get(name), 0)]
        for name, text in _list_searched(sweep).items()
    ]
    note = (
        "Importance is the share of the variance of the accuracy that a setting "
        "explains, by fANOVA over the complete trials. A factor multiplies the default "
        "learning rate of the optimizer and batch size."
    )
    columns = ["field", "value", "searched", "importance"]
    table = page.Table("Settings", columns, rows, note)
    return [table, page.Code(sweep.best["command"])]


def _list_searched(sweep):
    """Return the values that were searched, as they were written, by axis."""
    space = sweep.config["resolved"].sweep.space
    return {
        axis.name: text.partition("=")[2].replace("|", ", ")
        for axis, text in zip(sweep.axes, space, strict=True)
    }


def _tabulate_finals(sweep, duels):
    trials, rows = {trial.number: trial for trial in sweep.trials}, []
    for number, final in sweep.finals.items():
        summary, duel = final["summary"], duels.get(number)
        lost = len(final.get("diverged") or [])
        row = [f"{_name(trials[number])} ({number})"]
        row += [mean_and_interval(summary.get("val_accuracy"))]
        row += [mean_and_interval(summary["accuracy"])]
        row += [f"{len(final['runs'])}" + (f" ({lost} diverged)" if lost else "")]
        relation = _RELATIONS[duel["answer"]] if duel else DASH
        rows.append([*row, *difference(duel), relation])
    columns = ["trial", "validation accuracy", "test accuracy", "seeds"]
    columns += ["winner's lead", "95 % over seeds", "95 % over images", "it is"]
    note = (
        "The best trial found with each optimizer and each activation, its number in "
        "brackets. ± is half a 95 % interval (Student's t over seeds). "
        "Leads are in points of test accuracy, paired by seed. A trial is behind or "
        "ahead only where both intervals exclude 0; by chance alone, one in twenty "
        "would be."
    )
    return page.Table("The winner against the other finals", columns, rows, note)


def _show_slices(sweep, winner):
    """Return a chart of the complete trials for each axis."""
    rows = [
        {"trial": trial.number, charts.VALIDATION_ACCURACY: round(100 * trial.value, 2)}
        | trial.settings
        for trial in _list_complete(sweep)
    ]
    blocks = ["Each point is a complete trial; a ring marks the best on validation."]
    for axis in sweep.axes:
        title = f"Validation accuracy by {axis.name}"
        spec = charts.by_setting(axis, rows, winner.number)
        blocks.append(page.Chart(f"slice_{axis.name}", title, spec))
    return blocks


def _tabulate_trials(sweep):
    names = list(sweep.trials[0].settings) if sweep.trials else []
    rows = [
        [str(trial.number), trial.state, percent(trial.value), amount(trial.epochs)]
        + [DASH if s is None else format_setting(s) for s in trial.settings.values()]
        + [amount(trial.seconds), amount(trial.retry_of), trial.note or ""]
        for trial in sweep.trials
    ]
    columns = ["trial", "state", "validation accuracy", "epochs", *names]
    return page.Table("trials.csv", [*columns, "seconds", "retry of", "note"], rows)


def _list_limits(sweep, winner, duels):
    """Return what decided the sweep, and what the answer does not show."""
    counts = Counter(trial.state for trial in latest(sweep.trials))
    states = listing([f"{n} {state}" for state, n in counts.most_common()])
    limits = [f"Trials: {states or 'none'}."]
    if not _is_enough(sweep):
        limits.append(
            f"Too few trials are complete for a space of {len(sweep.axes)} settings. "
            "The same command with a higher sweep.num_trials continues the search."
        )
    searched = _list_searched(sweep)
    for axis in sweep.axes if winner else []:
        if side := find_edge(axis, winner):
            limits.append(
                f"The winner's {axis.name} is at the edge of the space, "
                f"{searched[axis.name]}. Better values may lie {side}."
            )
    if any(duel["answer"] == "undecided" for duel in duels.values()):
        limits.append(
            "More seeds (sweep.num_seeds) may settle what is undecided. If a "
            "difference this small does not matter, take the cheaper setting."
        )
    runs = sweep.runs[winner.number] if sweep.best else []
    if verdicts := count_verdicts(runs):
        limits.append(f"The winner's loss curves: {verdicts}.")
    return limits


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
