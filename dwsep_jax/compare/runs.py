"""Is it worth it: variants of a network trained alike over several seeds.

All variants share recipe, order of the data, seeds and splits. Each has the learning
rate that validation finds the best for it; test is read only then. A run's place is
<variant>/seed<k>, that of a trial of a rate <variant>/rate<factor>, and every one goes
on by itself after its last whole epoch. Where runs of a variant are trained together,
they only come ahead of their turn, which then finds them trained.
"""

import json
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.compare.result import Trial, build_comparison, seed_directory
from dwsep_jax.compare.variants import BASELINE, MAIN, Variant, make_variants
from dwsep_jax.config import COMPARISON, validate
from dwsep_jax.errors import ConfigError, DivergedError, UserError
from dwsep_jax.train import loop
from dwsep_jax.train.runs import Progress, Run, Trainer
from dwsep_jax.workdir import (
    evaluated_row,
    load_config,
    open_workdir,
    read_rows,
    score,
    write_atomically,
)

_SENTENCES = {
    "better": f"{MAIN} is better than {BASELINE}",
    "not_worse": f"{MAIN} is not worse than {BASELINE} by more than {{:g}} points",
    "worse": f"{MAIN} is worse than {BASELINE}",
    "undecided": f"whether {MAIN} is worse than {BASELINE} is undecided",
}


def compare(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Train every variant with every seed, and say whether separable is worth it.

    A comparison that was broken off goes on with the run and the epoch it was at. A
    finished one gains the seeds that a greater `num_seeds` adds.

    Raises:
      ConfigError: for a field that no comparison can have.
      UserError: as `loop.train_and_evaluate`.
    """
    dataset = data.load(config)
    check = partial(resolve, dataset=dataset)
    config = open_workdir(workdir, config, check, COMPARISON)
    with loop.claimed(workdir):
        run(config, pathlib.Path(workdir), dataset)


def resolve(config: ConfigDict, dataset: data.Dataset) -> ConfigDict:
    """Return the configuration with every unset value set.

    Raises:
      ConfigError: if one of the runs cannot be made.
    """
    list_seeds(config)
    config = loop.resolve(config, dataset)
    for variant in make_variants(config, dataset):
        for factor in config.compare.rate_factors:
            run_config = make_run_config(variant, factor, config.seed)
            validate(run_config)
            loop.resolve(run_config, dataset)
    return config


def make_run_config(variant: Variant, factor: float, seed: int) -> ConfigDict:
    """Return the configuration of one run: a variant, at a rate, with a seed."""
    config = variant.config.copy_and_resolve_references()
    config.learning_rate *= factor
    config.seed = seed
    return config


def run(config: ConfigDict, workdir: pathlib.Path, dataset: data.Dataset) -> None:
    """Train what is left to train of a resolved configuration, and write the results.

    First every trial of a rate, then seed by seed, so that the variants are level
    wherever a comparison is broken off.
    """
    variants = make_variants(config, dataset)
    names = [variant.name for variant in variants]
    seeds = list_seeds(config)
    print_plan(config, variants, seeds)
    # The first seed's runs are the trials that were chosen.
    progress = Progress(names * (len(config.compare.rate_factors) + len(seeds) - 1))
    trials = {name: [] for name in names}
    trainer = Trainer(config.compare.members_at_once, dataset)
    at_once = trainer.num_members
    for variant in variants:
        make_run = partial(make_rate_run, variant, seed=seeds[0], workdir=workdir)
        trainer.train_ahead(
            [make_run(factor) for factor in config.compare.rate_factors]
        )
    for factor in config.compare.rate_factors:
        for variant in variants:
            trial = try_rate(variant, factor, seeds[0], workdir, progress, trainer)
            trials[variant.name].append(trial)
    chosen = {name: choose_rate(name, trials[name]) for name in names}
    for i, seed in enumerate(seeds):
        # So many seeds of one variant, then of the next.
        together = seeds[i : i + at_once] if i % at_once == 1 else []
        for variant in variants:
            make_run = partial(make_seed_run, variant, chosen[variant.name].factor)
            trainer.train_ahead([make_run(seed, workdir) for seed in together])
        for variant in variants:
            train_seed(variant, chosen[variant.name], seed, workdir, progress, trainer)
        if i == 0:
            measure_costs([seed_directory(workdir, name, seed) for name in names])
        comparison = build_comparison(
            config, variants, trials, chosen, seeds[: i + 1], workdir
        )
        text = json.dumps(comparison, indent=2, sort_keys=True, allow_nan=False)
        write_atomically(workdir / "comparison.json", text + "\n")
    print_result(comparison)
    from dwsep_jax.report import write_report  # It takes a second to import.

    console.say(f"report: {write_report([workdir])}")
    console.say(f"files: {workdir}")


def list_seeds(config: ConfigDict) -> list[int]:
    """Return the seeds that every variant is trained with.

    Raises:
      ConfigError: if there are none so large.
    """
    last = config.seed + config.compare.num_seeds - 1
    if last >= 2**32:
        raise ConfigError(
            f"--config.compare.num_seeds={config.compare.num_seeds}: with "
            f"--config.seed={config.seed} the last seed would be {last}; "
            f"the largest is {2**32 - 1}"
        )
    return list(range(config.seed, last + 1))


def make_rate_run(
    variant: Variant, factor: float, seed: int, workdir: pathlib.Path
) -> Run:
    """Return the trial of a multiple of a variant's learning rate."""
    directory = workdir / variant.name / f"rate{factor:.3g}"
    return Run(make_run_config(variant, factor, seed), directory)


def make_seed_run(
    variant: Variant, factor: float, seed: int, workdir: pathlib.Path
) -> Run:
    """Return the run of a variant with a seed, at a multiple of its learning rate."""
    directory = seed_directory(workdir, variant.name, seed)
    return Run(make_run_config(variant, factor, seed), directory)


def try_rate(
    variant: Variant,
    factor: float,
    seed: int,
    workdir: pathlib.Path,
    progress: Progress,
    trainer: Trainer,
) -> Trial:
    """Train a variant at a multiple of the learning rate, and score it on validation.

    Test is not read. A rate at which the run diverges is a bad one, and no error.
    """
    run = make_rate_run(variant, factor, seed, workdir)
    config, directory = run
    trial = Trial(factor, config.learning_rate, None, None, directory)
    text = f"{variant.name} at rate {config.learning_rate:.3g}: "
    start = time.perf_counter()
    try:
        seconds = trainer.train(run, on_test=False)
    except DivergedError as error:
        text += str(error).partition(";")[0]
        progress.finish(variant.name, time.perf_counter() - start, text)
        return trial
    row = evaluated_row(read_rows(directory), config.early_stopping)
    loss = row.get("ema_val_loss", row["val_loss"])
    text += f"validation accuracy {score(row):.2%}, loss {loss:.4f}"
    progress.finish(variant.name, seconds, text)
    return trial._replace(val_accuracy=score(row), val_loss=loss)


def choose_rate(name: str, trials: Sequence[Trial]) -> Trial:
    """Return the trial of the best validation accuracy; of equals, the least loss.

    Raises:
      UserError: if all have diverged.
    """
    finite = [trial for trial in trials if trial.val_accuracy is not None]
    if not finite:
        rates = ", ".join(f"{trial.learning_rate:.3g}" for trial in trials)
        raise UserError(
            f"{name} diverges at every rate, {rates}; take a lower "
            "--config.learning_rate, or --config.clip_norm=1, and another --workdir"
        )
    return max(finite, key=lambda trial: (trial.val_accuracy, -trial.val_loss))


def train_seed(
    variant: Variant,
    trial: Trial,
    seed: int,
    workdir: pathlib.Path,
    progress: Progress,
    trainer: Trainer,
) -> None:
    """Train a variant with a seed at the rate of a trial, and evaluate it on test."""
    run = make_seed_run(variant, trial.factor, seed, workdir)
    config, directory = run
    is_trial = seed == variant.config.seed
    if is_trial and not directory.exists():
        # The same run as the trial: copied, not trained again.
        unfinished = directory.with_name(f"{directory.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(trial.directory, unfinished)
        os.replace(unfinished, directory)
    seconds = trainer.train(run, on_test=True)
    accuracy = json.loads((directory / "evaluation.json").read_bytes())["accuracy"]
    text = f"{variant.name} seed {seed}: test accuracy {accuracy:.2%}"
    if is_trial:
        console.say(f"{text} (the trial at rate {config.learning_rate:.3g})")
    else:
        progress.finish(variant.name, seconds, text)


def measure_costs(directories: Sequence[pathlib.Path]) -> None:
    """Write the efficiency.json of runs that have none."""
    from dwsep_jax.efficiency.cost import write_efficiency

    for directory in directories:
        if not (directory / "efficiency.json").exists():
            console.say(f"measuring what {directory.parent.name} costs")
            with console.logged(directory / "train.log"):
                write_efficiency(load_config(directory), directory)


def print_plan(
    config: ConfigDict, variants: Sequence[Variant], seeds: Sequence[int]
) -> None:
    """Print what will be compared, and how many runs that takes."""
    rows = []
    for variant in variants:
        # Widths of a stem that was solved for have many digits.
        fields = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in variant.overrides.items()
        )
        rows.append([variant.name, fields, *variant.size])
    columns = ["variant", "differs in", "parameters", "MACs per image"]
    console.print_table("Comparison", columns, rows)
    num_rates = len(config.compare.rate_factors)
    num_runs = len(variants) * (num_rates + len(seeds) - 1)
    factors = ", ".join(f"{factor:.3g}" for factor in config.compare.rate_factors)
    console.say(
        f"{num_runs} runs of {config.num_epochs} epochs on {config.dataset}: each "
        f"variant at {factors} times the rate {config.learning_rate:.3g}, then at the "
        f"best on validation with {len(seeds)} seeds in all"
    )


def print_result(comparison: dict[str, Any]) -> None:
    """Print a table of the variants, and the answer in one line."""
    rows = []
    for name, entry in comparison["variants"].items():
        paired = comparison["paired"].get(name)
        accuracy = entry["summary"]["accuracy"]
        difference = ("", "")
        if paired is not None:
            difference = (
                console.format_points(paired, "+"),
                paired["answer"].replace("_", " "),
            )
        pace = entry["summary"]["images_per_second"]["mean"]
        rate = f"{entry['learning_rate']:.3g}"
        rows.append([name, entry["parameters"], entry["macs"], rate])
        rows[-1] += [console.format_points(accuracy), *difference, f"{pace:,.0f}"]
    columns = ["variant", "parameters", "MACs per image", "rate", "test accuracy, %"]
    columns += [f"against {BASELINE}, points", "", "images/s"]
    n = len(comparison["seeds"])
    title = f"Result on {comparison['num_examples']:,} test images, {n} seeds"
    console.print_table(title, columns, rows)
    verdict = _SENTENCES[comparison["answer"]].format(100 * comparison["margin"])
    console.say(f"answer: {verdict}. {comparison['reason']}")
