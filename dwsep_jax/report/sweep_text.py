"""The sentences of a sweep, generated from its numbers."""

from collections import Counter

from dwsep_jax.report import finals
from dwsep_jax.report.files import Sweep
from dwsep_jax.report.finals import Rival, Rivals
from dwsep_jax.report.format import (
    TIMES,
    interval,
    listing,
    mean_and_interval,
    percent,
    points,
)
from dwsep_jax.report.page import Headline
from dwsep_jax.report.trials import Trial, read_number
from dwsep_jax.statistics import MIN_SEEDS


def answer(sweep: Sweep, rivals: Rivals) -> Headline:
    """Return the answer: which settings are best, what they reach, and how sure.

    Args:
      sweep: a finished one.
      rivals: as `find_rivals` returns them.
    """
    winner = finals.find_winner(sweep)
    final = finals.find_final(sweep, winner.number)
    verdict, tone = _decide(sweep, winner, final, rivals)
    reached, counts = sweep.best["validation"], finals.count_states(sweep)
    total = counts.total()
    # Those that a greater num_trials added since best.json was written.
    later = max(0, total - sum(sweep.best["num_trials"].values()))
    sentences = [
        f"On {sweep.best['dataset']}, the best of {total - later} trials is number "
        f"{winner.number}: {describe_settings(sweep, winner)}. It reaches "
        f"{percent(reached['accuracy'])} on validation, after epoch "
        f"{reached['epoch']}."
    ]
    if final and final["runs"]:
        sentences.append(_describe_final(final))
    else:
        sentences.append("It has no finals: it was not read on test.")
    if later:
        sentences.append(
            f"{_count(later, 'more trial')} came after that: give the command of the "
            "sweep again, and they are judged as well."
        )
    more = [_describe_rivals(field, rivals[field], final) for field in rivals]
    more += [_describe_edge(*edge) for edge in finals.find_edges(sweep)]
    figures = [(percent(reached["accuracy"]), "validation accuracy, in the search")]
    if final and final["runs"]:
        reached_on_test = mean_and_interval(final["summary"]["accuracy"])
        words = f"test accuracy over {_count(len(final['runs']), 'seed')}"
        figures.append((reached_on_test, words))
    figures.append((f"{counts['complete']} of {total}", "trials went to their end"))
    text, more = " ".join(sentences), " ".join(filter(None, more))
    return Headline(verdict, tone, text, tuple(figures), more)


def answer_unfinished(sweep: Sweep) -> Headline:
    """Return how far a sweep has come that has no best.json yet."""
    counts = finals.count_states(sweep)
    wanted = (
        ((sweep.config or {}).get("resolved") or {}).get("sweep", {}).get("num_trials")
    )
    of_all = f" of {wanted}" if wanted else ""
    ended = sum(counts[state] for state in ("complete", "pruned", "failed"))
    states = listing([f"{n} {state}" for state, n in counts.most_common()])
    sentences = [
        f"There is no best.json yet: {ended}{of_all} trials have ended"
        + (f" ({states})." if states else ".")
    ]
    if winner := finals.find_winner(sweep):
        sentences.append(
            f"The best so far is number {winner.number}, with {percent(winner.value)} "
            f"on validation: {describe_settings(sweep, winner)}."
        )
    if sweep.num_evaluated:
        runs = _count(sweep.num_evaluated, "final run")
        sentences.append(f"The search is over; {runs} evaluated on test so far.")
    sentences.append("Give the command of the sweep again to go on.")
    return Headline("Under way", "open", " ".join(sentences))


def describe_settings(sweep: Sweep, trial: Trial) -> str:
    """Return the settings of a trial, axis by axis."""
    found = []
    for axis in sweep.axes:
        words = shorten(trial.settings[axis.name])
        if axis.name != axis.field:
            words += f" {TIMES} the default"
            if rate := trial.settings.get(axis.field):
                words = f"{shorten(rate)} ({words})"
        found.append(f"{axis.field} {words}")
    return ", ".join(found)


def shorten(setting: str) -> str:
    """Return a setting with three significant digits, where it is no whole number."""
    value = read_number(setting)
    is_whole = value is None or setting.lstrip("-").isdigit()
    return setting if is_whole else f"{value:.3g}"


def _decide(sweep, winner, final, rivals):
    """Return verdict and tone."""
    named = [winner.settings.get(name) for name in ("optimizer", "activation")]
    name = " with ".join(filter(None, named)) or f"Trial {winner.number}"
    complete = len(finals.list_complete(sweep))
    if complete < finals.enough_complete(sweep):
        return f"{name}, of too few trials to tell", "open"
    if not final or len(final["runs"]) < MIN_SEEDS:
        return f"{name}, not yet confirmed over seeds", "open"
    found = [rival for field in rivals.values() for rival in field]
    if better := [rival.value for rival in found if rival.answer == "worse"]:
        verb = "does" if len(better) == 1 else "do"
        return f"{name} on validation, but {listing(better)} {verb} better on test", (
            "bad"
        )
    if level := [rival.value for rival in found if rival.answer == "undecided"]:
        return f"{name}, not clearly ahead of {listing(level)}", "open"
    return f"{name}{', clearly' if found else ''}", "good"


def _describe_final(final):
    summary, n = final["summary"], len(final["runs"])
    reached = mean_and_interval(summary["accuracy"])
    if n < MIN_SEEDS:
        return (
            f"Trained anew over {_count(n, 'seed')}, it reaches {reached} on test: too "
            f"few seeds for an interval to trust, it takes {MIN_SEEDS}."
        )
    again = mean_and_interval(summary.get("val_accuracy"))
    return (
        f"Trained anew over {n} seeds that the search has not seen, it reaches "
        f"{reached} on test (95 % interval over seeds), and {again} on validation."
    )


def _describe_rivals(field, rivals, final):
    """Return which values of a field the winner's is told from, and which not."""
    if not rivals:
        return f"{field.capitalize()}: no other value has a final to compare with."
    own = next(
        (r.partition("=")[2] for r in final["reasons"] if r.startswith(f"{field}=")),
        "the winner's",
    )
    words = {"better": "ahead of", "worse": "behind"}
    words["undecided"] = "not distinguishable from"
    parts = []
    for decision, relation in words.items():
        found = [r for r in rivals if r.answer == decision]
        if found:
            parts.append(f"{relation} {listing([_describe(r) for r in found])}")
    return f"{field.capitalize()}: {own} is {'; '.join(parts)}."


def _describe(rival: Rival):
    ends = rival.over_seeds.get("ci95")
    inside = f", {interval(ends)} over seeds" if ends else ""
    return f"{rival.value} ({points(rival.over_seeds['mean'])} points{inside})"


def _describe_edge(axis, side):
    return (
        f"The winner sits at the edge of {axis.label}: better settings may lie {side}."
    )


def discuss(sweep: Sweep, rivals: Rivals) -> list[str]:
    """Return what the evidence shows, and what it does not; see `answer`."""
    return [
        *_discuss_trials(sweep),
        *_discuss_pruning(sweep),
        *_discuss_luck(sweep),
        *_discuss_finals(sweep, rivals),
        *_discuss_fit(sweep),
    ]


def _discuss_trials(sweep):
    counts = finals.count_states(sweep)
    states = listing([f"{n} {state}" for state, n in counts.most_common()])
    diverged = sum(1 for t in sweep.trials if t.note == "diverged")
    retries = sum(1 for t in sweep.trials if t.retry_of is not None)
    more = f" {_count(diverged, 'trial')} diverged." if diverged else ""
    more += f" {_count(retries, 'trial')} did a lost one again." if retries else ""
    yield f"Of {_count(counts.total(), 'trial')}, {states}.{more}"
    complete, enough = len(finals.list_complete(sweep)), finals.enough_complete(sweep)
    if complete < enough:
        yield (
            f"{_count(complete, 'complete trial')} of a space of "
            f"{_count(len(sweep.axes), 'axis', 'axes')} are few: it takes {enough} to "
            "say anything, and some tens to say it well."
        )
    failed = [t for t in finals.list_attempts(sweep) if t.state == "failed"]
    failed = [trial for trial in failed if trial.note != "diverged"]
    if failed:
        notes = Counter(t.note or "no reason is known" for t in failed).most_common(3)
        yield f"Failed: {'; '.join(f'{note} ({n})' for note, n in notes)}."


def _discuss_pruning(sweep):
    if not finals.count_states(sweep)["pruned"]:
        return
    yield (
        "A pruned trial was behind at the epoch at which it was stopped, under this "
        "sampler and pruner; that proves little of what it would have reached. "
        "Therefore the best trial of each optimizer and of each activation is trained "
        "at full length in the finals, and conclusions rest on these."
    )


def _discuss_luck(sweep):
    if not sweep.best:
        return
    final = finals.find_final(sweep, sweep.best["number"])
    again = ((final or {}).get("summary", {}).get("val_accuracy") or {}).get("mean")
    if again is None:
        return
    first = sweep.best["validation"]["accuracy"]
    count = len(finals.list_complete(sweep))
    yield (
        f"On validation the winner reached {percent(first)} in the search and "
        f"{percent(again)} on the mean of its finals ({points(again - first)} points): "
        f"the best of {count} is partly the luckiest of {count}, and its finals are "
        "the figure to expect."
    )


def _discuss_finals(sweep, rivals):
    found = [rival for field in rivals.values() for rival in field]
    if not found:
        return
    for field in rivals:
        tried = Counter(t.settings.get(field) for t in sweep.trials if t.value)
        tried = [f"{value} {n}" for value, n in tried.most_common() if value]
        yield (
            f"The finals hold the best trial of each {field}, not the {field} by "
            f"itself: what was tried less often had fewer chances "
            f"({', '.join(tried)} trials)."
        )
    yield (
        f"The winner is set against {_count(len(found), 'other final')}, at 95 % each: "
        "where there is no difference, one in twenty such comparisons finds one."
    )
    if any(rival.over_images is None for rival in found):
        yield (
            "Some finals have no predictions.npz of the same images any more: their "
            "differences are judged over seeds alone."
        )


def _discuss_fit(sweep):
    if not sweep.best:
        return
    verdicts = [d["verdict"] for d in sweep.diagnoses.get(sweep.best["number"], [])]
    counts = Counter(verdict.replace("_", " ") for verdict in verdicts).most_common()
    if counts:
        found = [f"{words} in {n} of {len(verdicts)} runs" for words, n in counts]
        yield f"How the winner's loss curves read: {listing(found)}."


def list_next_steps(sweep: Sweep, rivals: Rivals) -> list[str]:
    """Return what to try next, by what was found; see `answer`."""
    steps = []
    for axis, side in finals.find_edges(sweep):
        end = axis.low if side == "below" else axis.high
        numbers = [read_number(choice) for choice in axis.choices]
        if numbers:
            end = min(numbers) if side == "below" else max(numbers)
        steps.append(f"Widen {axis.label} in space: {side} {end:g}, where it ends now.")
    complete, enough = len(finals.list_complete(sweep)), finals.enough_complete(sweep)
    if complete < max(enough, 4 * len(sweep.axes)):
        steps.append(
            "More trials: the same command with a higher sweep.num_trials goes on "
            "with this study."
        )
    final = finals.find_final(sweep, sweep.best["number"]) if sweep.best else None
    found = [rival for field in rivals.values() for rival in field]
    if any(rival.answer == "undecided" for rival in found):
        steps.append(
            "More seeds (sweep.num_seeds) for the finals, if a difference as small as "
            "these matters to you; else take whichever is cheaper."
        )
    elif final is None or len(final["runs"]) < MIN_SEEDS:
        steps.append(f"Finals over {MIN_SEEDS} seeds at least (sweep.num_seeds).")
    verdicts = [
        d["verdict"] for d in sweep.diagnoses.get(final and final["number"], [])
    ]
    if "still_improving" in verdicts:
        steps.append(
            "More epochs (num_epochs): the winner was still improving, and a short run "
            "favours what learns fast."
        )
    steps.append("The winner over more epochs, by the command above.")
    return steps


def _count(n, one, many=None):
    return f"{n} {one if n == 1 else many or f'{one}s'}"
