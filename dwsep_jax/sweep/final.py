"""The best trials of a sweep: trained with new seeds, and described in best.json."""

import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import optuna
from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.config import to_dict
from dwsep_jax.environment import describe_environment
from dwsep_jax.errors import ConfigError, DivergedError, UserError
from dwsep_jax.lock import locked
from dwsep_jax.statistics import summarize_sample
from dwsep_jax.sweep.points import make_config_at
from dwsep_jax.sweep.space import Axis
from dwsep_jax.sweep.trials import (
    Choice,
    choose_best,
    count_states,
    describe_axes,
    measure_importance,
)
from dwsep_jax.train.runs import Progress, Run, Trainer
from dwsep_jax.workdir import read_rows, score, write_atomically


def train_best(
    config: ConfigDict,
    axes: Sequence[Axis],
    study: optuna.Study,
    workdir: pathlib.Path,
    dataset: data.Dataset,
) -> None:
    """Train the best trials of a sweep with new seeds, and write the results.

    Where another worker of the workdir is at it, it is left to that one.

    Raises:
      UserError: if no trial came to its end, or the winner diverges with every seed.
    """
    chosen = choose_best(study, axes)
    if not chosen:
        states = ", ".join(f"{n} {state}" for state, n in count_states(study).items())
        raise UserError(
            f"--workdir={workdir}: no trial came to its end ({states}; trials.csv says "
            "why); take lower rates in --config.sweep.space and another --workdir, or "
            "a greater --config.sweep.num_trials"
        )
    (workdir / "final").mkdir(exist_ok=True)
    try:
        with locked(workdir / "final", wait=False):
            trainer = Trainer(config.sweep.members_at_once, dataset)
            _train_chosen(chosen, config, axes, study, workdir, trainer)
    except BlockingIOError:
        console.say("all trials have ended; another worker trains the best of them")


def list_seeds(config: ConfigDict) -> list[int]:
    """Return the seeds of the best trials: none that a trial had.

    Raises:
      ConfigError: if there are none so large.
    """
    last = config.seed + config.sweep.num_seeds
    if last >= 2**32:
        raise ConfigError(
            f"--config.sweep.num_seeds={config.sweep.num_seeds}: after "
            f"--config.seed={config.seed} the last seed would be {last}; "
            f"the largest is {2**32 - 1}"
        )
    return list(range(config.seed + 1, last + 1))


def _train_chosen(chosen, config, axes, study, workdir, trainer):
    seeds = list_seeds(config)
    names = [choice.trial.number for choice in chosen for _ in seeds]
    console.say(
        f"the best: {'; '.join(map(_describe_choice, chosen))}; each is trained with "
        f"{len(seeds)} new seeds"
    )
    progress = Progress(names)
    best = describe_search(config, axes, study, chosen[0])
    for choice in chosen:
        runs = _make_runs(choice, config, axes, seeds, workdir)
        entry = _train_choice(choice, runs, axes, workdir, trainer, progress)
        if entry["runs"]:
            best["finals"].append(entry)
        elif choice is chosen[0]:
            raise UserError(
                f"the winner, trial {choice.trial.number}, diverges with every new "
                "seed; take lower rates in --config.sweep.space, or "
                "--config.clip_norm=1, and another --workdir"
            )
    text = json.dumps(best, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(workdir / "best.json", text + "\n")
    print_result(best)
    from dwsep_jax.report import write_report  # It takes a second to import.

    console.say(f"report: {write_report([workdir])}")
    console.say(f"files: {workdir}")


def _make_runs(choice, config, axes, seeds, workdir):
    run_config = make_config_at(choice.trial.params, config, axes)
    runs = []
    for seed in seeds:
        seed_config = run_config.copy_and_resolve_references()
        seed_config.seed = seed
        name = f"trial{choice.trial.number}"
        runs.append(Run(seed_config, workdir / "final" / name / f"seed{seed}"))
    return runs


def _train_choice(choice, runs, axes, workdir, trainer, progress):
    """Return the entry of a trial in the `finals` of best.json."""
    number = choice.trial.number
    trained, diverged = [], []
    trainer.train_ahead(runs)
    for run in runs:
        seed = run.config.seed
        text = f"trial {number} seed {seed}: "
        start = time.perf_counter()
        try:
            seconds = trainer.train(run, on_test=True)
        except DivergedError as error:
            diverged.append(seed)
            text += str(error).partition(";")[0]
            progress.finish(number, time.perf_counter() - start, text)
            continue
        trained.append(_describe_run(run.directory, seed, workdir))
        text += f"test accuracy {trained[-1]['accuracy']:.2%}"
        progress.finish(number, seconds, text)
    return {
        "number": number,
        "overrides": _list_overrides(runs[0].config, axes),
        "directory": runs[0].directory.parent.relative_to(workdir).as_posix(),
        "reasons": choice.reasons,
        "runs": trained,
        "diverged": diverged,
        "summary": {
            metric: summarize_sample([run[metric] for run in trained])
            for metric in ("accuracy", "val_accuracy")
            if trained
        },
    }


def _describe_run(directory, seed, workdir):
    evaluation = json.loads((directory / "evaluation.json").read_bytes())
    epoch = evaluation["epoch"]
    return {
        "seed": seed,
        "workdir": directory.relative_to(workdir).as_posix(),
        "epoch": epoch,
        "accuracy": evaluation["accuracy"],
        "loss": evaluation["loss"],
        "f1": evaluation["f1"]["macro"],
        "val_accuracy": score(read_rows(directory)[epoch - 1]),
    }


def describe_search(
    config: ConfigDict, axes: Sequence[Axis], study: optuna.Study, winner: Choice
) -> dict[str, Any]:
    """Return the content of best.json before any of the best has been trained anew."""
    from dwsep_jax.report.run import build_command

    trial, states = winner.trial, count_states(study)
    run_config = make_config_at(trial.params, config, axes)
    return {
        "schema": 1,
        "dataset": config.dataset,
        "study": config.sweep.study,
        "sampler": config.sweep.sampler,
        "pruner": config.sweep.pruner,
        "space": list(config.sweep.space),
        "axes": describe_axes(axes),
        "num_trials": {name: states[name] for name in ("complete", "pruned", "failed")},
        "number": trial.number,
        "overrides": _list_overrides(run_config, axes),
        "command": build_command(to_dict(run_config)),
        "validation": {"accuracy": trial.value, "epoch": trial.user_attrs["epoch"]},
        "importance": measure_importance(study, axes, config.seed),
        "finals": [],
        "environment": describe_environment(config.dtype, config.seed),
    }


def _list_overrides(run_config, axes):
    values = to_dict(run_config)
    return {axis.field: values[axis.field] for axis in axes}


def _describe_choice(choice):
    return f"trial {choice.trial.number}, {' and '.join(choice.reasons)}"


def print_result(best: dict[str, Any]) -> None:
    """Print a table of the best trials, the winner's values, accuracy and command."""
    fields = list(best["overrides"])
    rows = []
    for entry in best["finals"]:
        values = [_format(entry["overrides"][field]) for field in fields]
        figures = [
            console.format_points(entry["summary"][metric])
            for metric in ("val_accuracy", "accuracy")
        ]
        best_of = ", ".join(entry["reasons"])
        rows.append([str(entry["number"]), best_of, *values, *figures])
    columns = [
        "trial",
        "best of",
        *fields,
        "validation accuracy, %",
        "test accuracy, %",
    ]
    seeds = len(best["finals"][0]["runs"])
    console.print_table(f"Result over {seeds} seeds", columns, rows, (0, 1))
    values = ", ".join(f"{k} {_format(v)}" for k, v in best["overrides"].items())
    console.say(f"best on validation: {values} (trial {best['number']})")
    accuracy = console.format_points(best["finals"][0]["summary"]["accuracy"])
    console.say(f"its test accuracy over {seeds} seeds: {accuracy} %")
    console.say(f"train it with:\n{best['command']}")


def _format(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)
