"""The numbers that a sweep's conclusion is made of: finals, rivals, edges, counts."""

from collections import Counter
from typing import Any, NamedTuple

from dwsep_jax.report.files import Sweep
from dwsep_jax.report.trials import Axis, Trial, read_number
from dwsep_jax.statistics import answer, bootstrap_images, compare_pairs

# Fewer complete trials say little of any space.
_MIN_COMPLETE = 4
# A setting this near the end of its range, as a share of it, is at the edge.
_EDGE = 0.03


class Rival(NamedTuple):
    """The best trial of another value than the winner's, against the winner.

    Attributes:
      value: of the field, as a text.
      number: of the trial.
      over_seeds: the winner's test accuracy minus the rival's, paired by seed: {n,
        mean, std, ci95}.
      over_images: the 95 % interval over test images; None without predictions.
      answer: `better` where the winner is, `worse`, or `undecided`.
    """

    value: str
    number: int
    over_seeds: dict[str, Any]
    over_images: list[float] | None
    answer: str


# By field.
Rivals = dict[str, list[Rival]]


def find_winner(sweep: Sweep) -> Trial | None:
    """Return the winner, or the best of the complete trials so far."""
    if sweep.best:
        return next(t for t in sweep.trials if t.number == sweep.best["number"])
    complete = list_complete(sweep)
    return max(complete, key=lambda trial: trial.value, default=None)


def list_complete(sweep: Sweep) -> list[Trial]:
    """Return the complete trials."""
    found = [t for t in sweep.trials if t.state == "complete"]
    return [trial for trial in found if trial.value is not None]


def list_attempts(sweep: Sweep) -> list[Trial]:
    """Return each trial, or the last that did it again."""
    last = {}
    for trial in sweep.trials:
        last[trial.number if trial.retry_of is None else trial.retry_of] = trial
    return list(last.values())


def count_states(sweep: Sweep) -> Counter:
    """Return how many of the attempts are in each state."""
    return Counter(trial.state for trial in list_attempts(sweep))


def enough_complete(sweep: Sweep) -> int:
    """Return how many complete trials it takes to say anything: one for each axis."""
    return max(_MIN_COMPLETE, len(sweep.axes))


def find_final(sweep: Sweep, number: int) -> dict[str, Any] | None:
    """Return the final runs of a trial."""
    finals = sweep.best["finals"] if sweep.best else []
    return next((final for final in finals if final["number"] == number), None)


def find_rivals(sweep: Sweep) -> Rivals:
    """Return, by field, the best trials of its other values, against the winner.

    The fields are those of the finals' reasons: `optimizer=adam`.
    """
    best = sweep.best or {"finals": []}
    winner = find_final(sweep, best["number"]) if sweep.best else None
    if winner is None:
        return {}
    rivals: Rivals = {}
    compared = {}
    for final in best["finals"]:
        for reason in final["reasons"]:
            field, equals, value = reason.partition("=")
            if not equals:
                continue
            found = rivals.setdefault(field, [])
            number = final["number"]
            if number == winner["number"]:
                continue
            if number not in compared:
                compared[number] = _compare(sweep, winner, final)
            if compared[number]:
                found.append(Rival(value, number, *compared[number]))
    return rivals


def _compare(sweep, winner, rival):
    """Return difference over seeds, interval over images and the answer, or None."""
    ours, theirs = (
        {run["seed"]: run["accuracy"] for run in final["runs"]}
        for final in (winner, rival)
    )
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    over_seeds = compare_pairs([ours[s] for s in seeds], [theirs[s] for s in seeds])
    right, wrong = (sweep.correct[final["number"]] for final in (winner, rival))
    images = None
    is_whole = list(ours) == list(theirs) and right is not None and wrong is not None
    if is_whole and right.shape == wrong.shape:
        images = bootstrap_images(right, wrong)
    decision = answer(over_seeds, images or over_seeds, margin=0.0)
    return over_seeds, images and images["ci95"], decision.answer


def find_edges(sweep: Sweep) -> list[tuple[Axis, str]]:
    """Return the axes at whose edge the winner sits, each with `below` or `above`.

    A range that begins at 0 has nothing below; of a choice, only numbers have an order,
    and two of them are nothing but edges.
    """
    winner = find_winner(sweep)
    edges = []
    for axis in sweep.axes if winner else []:
        value = read_number(winner.settings[axis.name])
        numbers = [read_number(choice) for choice in axis.choices]
        if value is None or None in numbers or len(numbers) in (1, 2):
            continue
        low = min(numbers) if numbers else axis.low
        high = max(numbers) if numbers else axis.high
        slack = 0.0 if axis.kind != "float" else _EDGE
        if axis.log and slack:
            near_low = value <= low * (high / low) ** slack
            near_high = value >= high * (low / high) ** slack
        else:
            near_low = value <= low + slack * (high - low)
            near_high = value >= high - slack * (high - low)
        if near_low and low > 0:
            edges.append((axis, "below"))
        elif near_high:
            edges.append((axis, "above"))
    return edges
