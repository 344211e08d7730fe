"""The finals of a sweep, and best.json.

The winner and the best trial of each optimizer and each activation are trained with new
seeds, and these runs alone are evaluated on test.
"""

from collections import Counter
from typing import Any, NamedTuple

import optuna
from ml_collections import ConfigDict
from optuna.trial import FrozenTrial, TrialState

from dwsep_jax import console, data
from dwsep_jax.environment import describe_environment
from dwsep_jax.errors import UserError
from dwsep_jax.lock import locked
from dwsep_jax.statistics import summarize_sample
from dwsep_jax.sweep.study import Sweep, list_trials
from dwsep_jax.sweep.trial import DIVERGED, make_config, tabulate
from dwsep_jax.train.runs import Run, RunQueue, describe_result
from dwsep_jax.trials import ENDED, latest
from dwsep_jax.workdir import write_json

# Axes for each of whose choices the best trial is trained with new seeds.
COMPARED = ("optimizer", "activation")
# With fewer complete trials, importances are noise.
_MIN_TRIALS = 4


class Final(NamedTuple):
    """A trial to be trained with new seeds, and why."""

    trial: FrozenTrial
    reasons: list[str]


def choose_finals(sweep: Sweep) -> list[Final]:
    """Return the winner, then the best trial of each optimizer and each activation.

    The best is the complete trial of the highest validation accuracy, ties broken by
    the lowest validation loss. Where all trials of an optimizer or an activation were
    pruned, it is the best of those: being pruned early proves little. A trial that is
    the best twice is listed once. Without a complete trial there is none.
    """
    ranked = sorted(filter(_may_be_best, list_trials(sweep.study)), key=_rank)
    if not ranked or not _is_complete(ranked[-1]):
        return []
    best = {"winner": ranked[-1]}
    for axis in sweep.axes:
        if axis.name in COMPARED:
            by_choice = {trial.params[axis.name]: trial for trial in ranked}
            for choice in filter(by_choice.get, axis.choices):
                best[f"{axis.name}={choice}"] = by_choice[choice]
    finals: dict[int, Final] = {}
    for reason, trial in best.items():
        finals.setdefault(trial.number, Final(trial, [])).reasons.append(reason)
    return list(finals.values())


def _is_complete(trial):
    return trial.state == TrialState.COMPLETE


def _may_be_best(trial):
    # Trials that were completed or pruned have a value.
    has_diverged = trial.user_attrs.get("note") == DIVERGED
    return trial.value is not None and (_is_complete(trial) or not has_diverged)


def _rank(trial):
    # Of equal values, Optuna's `best_trial` is the first, whatever its loss.
    loss = trial.user_attrs.get("val_loss", 0.0)
    return _is_complete(trial), trial.value, -loss, -trial.number


def train_finals(sweep: Sweep, dataset: data.Dataset) -> None:
    """Train the best trials with new seeds, evaluate them on test, write best.json.

    If another worker of the workdir is doing so, it is left to that worker.

    Raises:
      UserError: if no trial was completed, or the winner diverges with every seed.
    """
    counts = Counter(trial.state for trial in latest(tabulate(sweep)))
    finals = choose_finals(sweep)
    if not finals:
        states = ", ".join(f"{n} {state}" for state, n in counts.items())
        raise UserError(
            f"--workdir={sweep.workdir}: no trial was completed ({states}; trials.csv "
            "says why); use lower rates in --config.sweep.space and another --workdir, "
            "or a greater --config.sweep.num_trials"
        )
    (sweep.workdir / "final").mkdir(exist_ok=True)
    try:
        with locked(sweep.workdir / "final", wait=False):
            best = describe_search(sweep, finals[0].trial, counts)
            best["finals"] = _train_all(sweep, finals, dataset)
            write_json(sweep.workdir / "best.json", best)
    except BlockingIOError:
        console.say("all trials have ended; another worker is training the best")
        return
    print_result(best)
    from dwsep_jax.report.write import write_report

    console.say(f"report: {write_report([sweep.workdir])}")
    console.say(f"files: {sweep.workdir}")


def _train_all(sweep, finals, dataset):
    """Return the `finals` of best.json."""
    first, num_seeds = sweep.config.seed + 1, sweep.config.sweep.num_seeds
    seeds = range(first, first + num_seeds)
    names = "; ".join(f"trial {t.number}, {' and '.join(r)}" for t, r in finals)
    console.say(f"best: {names}; each is trained with {len(seeds)} new seeds")
    groups = [str(final.trial.number) for final in finals for _ in seeds]
    queue = RunQueue(sweep.config.sweep.members_at_once, dataset, groups)
    entries = []
    for final in finals:
        entry = _train_final(sweep, final, seeds, queue)
        if entry is not None:
            entries.append(entry)
        elif final is finals[0]:
            raise UserError(
                f"the winner, trial {final.trial.number}, diverges with every new "
                "seed; use lower rates in --config.sweep.space, or "
                "--config.clip_norm=1, and another --workdir"
            )
    return entries


def _train_final(sweep, final, seeds, queue):
    """Return an entry of `finals`, or None if all of its runs diverge."""
    number, place = final.trial.number, f"final/trial{final.trial.number}"
    if epochs := sweep.config.sweep.refit_epochs:
        place += f"-epochs{epochs}"
    config = make_config(final.trial.params, sweep.config, sweep.axes, is_final=True)
    runs = []
    for seed in seeds:
        its_config = ConfigDict({**config, "seed": seed})
        directory = sweep.workdir / place / f"seed{seed}"
        label = f"trial {number} seed {seed}"
        runs.append(Run(its_config, directory, label, group=str(number)))
    queue.train_ahead(runs)
    diverged = [run.config.seed for run in runs if queue.finish(run, on_test=True)]
    trained = [seed for seed in seeds if seed not in diverged]
    if not trained:
        return None
    results = [describe_result(sweep.workdir, f"{place}/seed{s}", s) for s in trained]
    return {
        "number": number,
        "overrides": _list_overrides(config, sweep.axes),
        "directory": place,
        "reasons": final.reasons,
        "runs": results,
        "diverged": diverged,
        "summary": {
            metric: summarize_sample([result[metric] for result in results])
            for metric in ("accuracy", "val_accuracy")
        },
    }


def describe_search(
    sweep: Sweep, winner: FrozenTrial, counts: Counter[str]
) -> dict[str, Any]:
    """Return the content of best.json, except for the finals."""
    from dwsep_jax.report.run import build_command

    config = sweep.config
    run_config = make_config(winner.params, config, sweep.axes, is_final=True)
    return {
        "schema": 1,
        "dataset": config.dataset,
        "study": config.sweep.study,
        "sampler": config.sweep.sampler,
        "pruner": config.sweep.pruner,
        "refit_epochs": config.sweep.refit_epochs,
        "space": list(config.sweep.space),
        "axes": [axis._asdict() | {"kind": axis.kind} for axis in sweep.axes],
        "num_trials": {name: counts[name] for name in ENDED},
        "number": winner.number,
        "overrides": _list_overrides(run_config, sweep.axes),
        "command": build_command(run_config),
        "validation": {"accuracy": winner.value, "epoch": winner.user_attrs["epoch"]},
        "importance": measure_importance(sweep),
        "environment": describe_environment(config.dtype, config.seed),
    }


def measure_importance(sweep: Sweep) -> dict[str, float] | None:
    """Return each axis's share of the variance in accuracy, by fANOVA.

    Over the complete trials (Hutter et al. 2014); None where they are too few or all
    equal.
    """
    complete = sweep.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _MIN_TRIALS or len({trial.value for trial in complete}) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=sweep.config.seed)
    found = optuna.importance.get_param_importances(sweep.study, evaluator=evaluator)
    return {axis.name: float(found.get(axis.name, 0.0)) for axis in sweep.axes}


def _list_overrides(config, axes):
    return {axis.field: config[axis.field] for axis in axes}


def print_result(best: dict[str, Any]) -> None:
    """Print the winner's values, its accuracy on test, and its command."""
    settings = best["overrides"].items()
    values = ", ".join(f"{k} {console.format_setting(v)}" for k, v in settings)
    winner = best["finals"][0]
    accuracy = console.format_points(winner["summary"]["accuracy"])
    console.say(f"best on validation: {values} (trial {best['number']})")
    console.say(f"its test accuracy over {len(winner['runs'])} seeds: {accuracy} %")
    console.say(f"train it with:\n{best['command']}")
