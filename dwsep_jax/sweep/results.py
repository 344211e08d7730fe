"""The results of a sweep: trials.csv, the finals of the best trials, and best.json.

In the finals, the best trials are trained with new seeds and evaluated on test.
"""

import csv
import io
import json
import time
from collections import Counter
from typing import Any, NamedTuple

import optuna
from ml_collections import ConfigDict
from optuna.trial import FrozenTrial, TrialState

from dwsep_jax import console, data
from dwsep_jax.environment import describe_environment
from dwsep_jax.errors import ConfigError, DivergedError, UserError
from dwsep_jax.lock import locked
from dwsep_jax.statistics import summarize_sample
from dwsep_jax.sweep.space import make_config_at
from dwsep_jax.sweep.study import Retry, Sweep, get_original, list_trials
from dwsep_jax.train.runs import Progress, Run, Trainer
from dwsep_jax.workdir import read_rows, score, write_atomically, write_json

# Axes for each of whose choices the best trial is trained with new seeds.
COMPARED = ("optimizer", "activation")
DIVERGED = "diverged"
# With fewer complete trials, importances are noise.
_MIN_TRIALS = 4


class Choice(NamedTuple):
    """A trial to be trained with new seeds, and why."""

    trial: FrozenTrial
    reasons: list[str]


def describe_state(trial: FrozenTrial) -> str:
    """Return complete, pruned, failed, waiting or running."""
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def count_states(sweep: Sweep) -> Counter[str]:
    """Return how many trials are in each state, a retry in place of what it retries."""
    latest = {get_original(trial): trial for trial in list_trials(sweep.study)}
    return Counter(map(describe_state, latest.values()))


def write_trials(sweep: Sweep) -> None:
    """Write trials.csv: one row per trial, waiting and retried ones included."""
    columns = ["number", "state", "value", "epochs"]
    for axis in sweep.axes:
        columns += [axis.field, axis.name] if axis.is_factor else [axis.name]
    columns += ["seconds", "retry_of", "note"]
    trials = list_trials(sweep.study)
    retries = {}
    for trial in trials:
        if history := Retry.retry_history(trial):
            retries[history[-1]] = trial.number
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(_make_row(trial, retries) for trial in trials)
    write_atomically(sweep.workdir / "trials.csv", text.getvalue())


def _make_row(trial, retries):
    original, is_finished = get_original(trial), trial.state.is_finished()
    note = trial.user_attrs.get("note")
    if trial.number in retries:
        note = f"its worker was gone; tried again as {retries[trial.number]}"
    return {
        "number": trial.number,
        "state": describe_state(trial),
        "value": trial.value if is_finished else None,
        "epochs": trial.last_step or 0,
        "learning_rate": trial.user_attrs.get("learning_rate"),
        **trial.params,
        "seconds": round(trial.duration.total_seconds(), 3) if is_finished else None,
        "retry_of": None if original == trial.number else original,
        "note": note,
    }


def choose_best(sweep: Sweep) -> list[Choice]:
    """Return the winner, then the best trial of each optimizer and each activation.

    The best is the complete trial of the highest validation accuracy, ties broken by
    the lowest validation loss. Where all trials of an optimizer or an activation were
    pruned, it is the best of those: being pruned early proves little. A trial that is
    the best twice is listed once. Without a complete trial there is none.
    """
    trials = list_trials(sweep.study)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    pruned = [
        trial
        for trial in trials
        if trial.state == TrialState.PRUNED
        and trial.value is not None
        and trial.user_attrs.get("note") != DIVERGED
    ]
    candidates = {"winner": complete}
    for axis in sweep.axes if complete else []:
        for value in axis.choices or () if axis.name in COMPARED else ():
            candidates[f"{axis.name}={value}"] = [
                t for t in complete if t.params[axis.name] == value
            ] or [t for t in pruned if t.params[axis.name] == value]
    choices: dict[int, Choice] = {}
    for reason, some in candidates.items():
        if some:
            best = max(some, key=_rank)
            choices.setdefault(best.number, Choice(best, [])).reasons.append(reason)
    return list(choices.values())


def _rank(trial):
    # Of equal values, Optuna's `best_trial` is the first, whatever its loss.
    return trial.value, -trial.user_attrs.get("val_loss", 0.0), -trial.number


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


def list_seeds(config: ConfigDict) -> list[int]:
    """Return the seeds of the finals, none of which a trial has.

    Raises:
      ConfigError: if there are none so large.
    """
    num_seeds = config.sweep.num_seeds
    last = config.seed + num_seeds
    if last >= 2**32:
        raise ConfigError(
            f"--config.sweep.num_seeds={num_seeds}: after --config.seed={config.seed} "
            f"the last seed would be {last}; the largest is {2**32 - 1}"
        )
    return list(range(config.seed + 1, last + 1))


def train_finals(sweep: Sweep, dataset: data.Dataset) -> None:
    """Train the best trials with new seeds, evaluate them on test, write best.json.

    If another worker of the workdir is doing so, it is left to that worker.

    Raises:
      UserError: if no trial was completed, or the winner diverges with every seed.
    """
    chosen = choose_best(sweep)
    if not chosen:
        states = ", ".join(f"{n} {state}" for state, n in count_states(sweep).items())
        raise UserError(
            f"--workdir={sweep.workdir}: no trial was completed ({states}; trials.csv "
            "says why); use lower rates in --config.sweep.space and another --workdir, "
            "or a greater --config.sweep.num_trials"
        )
    (sweep.workdir / "final").mkdir(exist_ok=True)
    try:
        with locked(sweep.workdir / "final", wait=False):
            best = _train_all(sweep, chosen, dataset)
    except BlockingIOError:
        console.say("all trials have ended; another worker is training the best")
        return
    print_result(best)
    from dwsep_jax.report.write import write_report

    console.say(f"report: {write_report([sweep.workdir])}")
    console.say(f"files: {sweep.workdir}")


def _train_all(sweep, chosen, dataset):
    seeds = list_seeds(sweep.config)
    names = "; ".join(
        f"trial {c.trial.number}, {' and '.join(c.reasons)}" for c in chosen
    )
    console.say(f"best: {names}; each is trained with {len(seeds)} new seeds")
    progress = Progress([c.trial.number for c in chosen for _ in seeds])
    trainer = Trainer(sweep.config.sweep.members_at_once, dataset)
    best = describe_search(sweep, chosen[0])
    for choice in chosen:
        final = _train_choice(sweep, choice, seeds, trainer, progress)
        if final["runs"]:
            best["finals"].append(final)
        elif choice is chosen[0]:
            raise UserError(
                f"the winner, trial {choice.trial.number}, diverges with every new "
                "seed; use lower rates in --config.sweep.space, or "
                "--config.clip_norm=1, and another --workdir"
            )
    write_json(sweep.workdir / "best.json", best)
    return best


def _train_choice(sweep, choice, seeds, trainer, progress):
    """Return the entry of a trial in the `finals` of best.json."""
    number = choice.trial.number
    config = make_config_at(choice.trial.params, sweep.config, sweep.axes)
    directory = sweep.workdir / "final" / f"trial{number}"
    runs = [
        Run(ConfigDict({**config, "seed": seed}), directory / f"seed{seed}")
        for seed in seeds
    ]
    trained, diverged = [], []
    trainer.train_ahead(runs)
    for seed, run in zip(seeds, runs, strict=True):
        start = time.perf_counter()
        try:
            seconds = trainer.train(run, on_test=True)
            trained.append(_describe_run(sweep, run))
            text = f"test accuracy {trained[-1]['accuracy']:.2%}"
        except DivergedError as error:
            seconds = time.perf_counter() - start
            diverged.append(seed)
            text = str(error).partition(";")[0]
        progress.finish(number, seconds, f"trial {number} seed {seed}: {text}")
    return {
        "number": number,
        "overrides": _list_overrides(config, sweep.axes),
        "directory": directory.relative_to(sweep.workdir).as_posix(),
        "reasons": choice.reasons,
        "runs": trained,
        "diverged": diverged,
        "summary": {
            metric: summarize_sample([run[metric] for run in trained])
            for metric in ("accuracy", "val_accuracy")
            if trained
        },
    }


def _describe_run(sweep, run):
    evaluation = json.loads((run.directory / "evaluation.json").read_bytes())
    epoch = evaluation["epoch"]
    return {
        "seed": run.config.seed,
        "workdir": run.directory.relative_to(sweep.workdir).as_posix(),
        "epoch": epoch,
        "accuracy": evaluation["accuracy"],
        "loss": evaluation["loss"],
        "f1": evaluation["f1"]["macro"],
        "val_accuracy": score(read_rows(run.directory)[epoch - 1]),
    }


def describe_search(sweep: Sweep, winner: Choice) -> dict[str, Any]:
    """Return the content of best.json before the finals."""
    from dwsep_jax.report.run import build_command

    config, trial, states = sweep.config, winner.trial, count_states(sweep)
    run_config = make_config_at(trial.params, config, sweep.axes)
    return {
        "schema": 1,
        "dataset": config.dataset,
        "study": config.sweep.study,
        "sampler": config.sweep.sampler,
        "pruner": config.sweep.pruner,
        "space": list(config.sweep.space),
        "axes": [axis._asdict() | {"kind": axis.kind} for axis in sweep.axes],
        "num_trials": {name: states[name] for name in ("complete", "pruned", "failed")},
        "number": trial.number,
        "overrides": _list_overrides(run_config, sweep.axes),
        "command": build_command(run_config),
        "validation": {"accuracy": trial.value, "epoch": trial.user_attrs["epoch"]},
        "importance": measure_importance(sweep),
        "finals": [],
        "environment": describe_environment(config.dtype, config.seed),
    }


def _list_overrides(config, axes):
    return {axis.field: config[axis.field] for axis in axes}


def print_result(best: dict[str, Any]) -> None:
    """Print a table of the finals, and the winner's values, accuracy and command."""
    columns = ["trial", "best of", *best["overrides"]]
    columns += ["validation accuracy, %", "test accuracy, %"]
    rows = [
        [
            str(final["number"]),
            ", ".join(final["reasons"]),
            *map(format_setting, final["overrides"].values()),
            console.format_points(final["summary"]["val_accuracy"]),
            console.format_points(final["summary"]["accuracy"]),
        ]
        for final in best["finals"]
    ]
    num_seeds = len(best["finals"][0]["runs"])
    console.print_table(f"Result over {num_seeds} seeds", columns, rows, (0, 1))
    values = ", ".join(f"{k} {format_setting(v)}" for k, v in best["overrides"].items())
    console.say(f"best on validation: {values} (trial {best['number']})")
    console.say(f"its test accuracy over {num_seeds} seeds: {rows[0][-1]} %")
    console.say(f"train it with:\n{best['command']}")


def format_setting(value: Any) -> str:
    """Return the value of a field, a float to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
