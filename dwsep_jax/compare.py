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
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dwsep_jax import console, data, population, train
from dwsep_jax.comparison import Trial, build_comparison, seed_directory
from dwsep_jax.config import COMPARISON, load_config, open_workdir, validate
from dwsep_jax.errors import ConfigError, DivergedError, UserError
from dwsep_jax.evaluate import read_evaluation
from dwsep_jax.figures import LAST_FIGURE
from dwsep_jax.files import write_atomically
from dwsep_jax.history import score
from dwsep_jax.reading import read_rows
from dwsep_jax.variants import BASELINE, MAIN, Variant, make_variants

# Of a run that has nothing left to do.
_FILES = ("evaluation.json", "predictions.npz", LAST_FIGURE, "diagnosis.json")
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
      UserError: as `train.train_and_evaluate`.
    """
    dataset = data.load(config)
    check = partial(resolve, dataset=dataset)
    config = open_workdir(workdir, config, check, COMPARISON)
    with train.claimed(workdir):
        run(config, pathlib.Path(workdir), dataset)


def resolve(config: ConfigDict, dataset: data.Dataset) -> ConfigDict:
    """Return the configuration with every unset value set.

    Raises:
      ConfigError: if one of the runs cannot be made.
    """
    list_seeds(config)
    config = train.resolve(config, dataset)
    for variant in make_variants(config, dataset):
        for factor in config.rate_factors:
            run_config = make_run_config(variant, factor, config.seed)
            validate(run_config)
            train.resolve(run_config, dataset)
    return config


def make_run_config(variant: Variant, factor: float, seed: int) -> ConfigDict:
    """Return the configuration of one run: a variant, at a rate, with a seed."""
    config = variant.config.copy_and_resolve_references()
    config.learning_rate *= factor
    config.seed = seed
    return config


class Run(NamedTuple):
    """A run of a comparison: its configuration and its place."""

    config: ConfigDict
    directory: pathlib.Path


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
    progress = Progress(names * (len(config.rate_factors) + len(seeds) - 1))
    trials = {name: [] for name in names}
    at_once = population.limit_members(config)
    ahead = Ahead(dataset, at_once)
    for variant in variants:
        make_run = partial(make_rate_run, variant, seed=seeds[0], workdir=workdir)
        ahead.train([make_run(factor) for factor in config.rate_factors])
    for factor in config.rate_factors:
        for variant in variants:
            trial = try_rate(variant, factor, seeds[0], workdir, progress, ahead)
            trials[variant.name].append(trial)
    chosen = {name: choose_rate(name, trials[name]) for name in names}
    for i, seed in enumerate(seeds):
        # So many seeds of one variant, then of the next.
        together = seeds[i : i + at_once] if i % at_once == 1 else []
        for variant in variants:
            make_run = partial(make_seed_run, variant, chosen[variant.name].factor)
            ahead.train([make_run(seed, workdir) for seed in together])
        for variant in variants:
            train_seed(variant, chosen[variant.name], seed, workdir, progress, ahead)
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
    last = config.seed + config.num_seeds - 1
    if last >= 2**32:
        raise ConfigError(
            f"--config.num_seeds={config.num_seeds}: with --config.seed={config.seed} "
            f"the last seed would be {last}; the largest is {2**32 - 1}"
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


class Ahead:
    """Trains runs of a variant together, ahead of their turn.

    What is left for their turn is to say what came of it: the seconds of each, or why
    it diverged.
    """

    def __init__(self, dataset: data.Dataset, num_members: int):
        """With one member at once nothing is trained ahead."""
        self._dataset = dataset
        self._num_members = num_members
        self._outcomes = {}

    def train(self, runs: Sequence[Run]) -> None:
        """Train what is left to train of some runs, so many at once."""
        runs = [run for run in runs if not _is_done(run, on_test=False)]
        for i in range(0, len(runs), self._num_members):
            some = runs[i : i + self._num_members]
            if len(some) > 1:
                self._train(some)

    def _train(self, runs):
        configs, directories = zip(*runs, strict=True)
        names = ", ".join(directory.name for directory in directories)
        console.say(f"training {directories[0].parent.name} together: {names}")
        start = time.perf_counter()
        outcomes = population.train_members(configs, directories, self._dataset)
        seconds = (time.perf_counter() - start) / len(runs)
        for directory, outcome in zip(directories, outcomes, strict=True):
            self._outcomes[directory] = (seconds, outcome.error)

    def take(self, directory: pathlib.Path) -> float | None:
        """Return the seconds that a run's training took; None if it was not ahead.

        Raises:
          DivergedError: if it diverged.
        """
        seconds, error = self._outcomes.get(directory, (None, None))
        if error is not None:
            raise error
        return seconds


class Progress:
    """How many of the runs are trained, and how long the rest will take."""

    def __init__(self, names: Sequence[str]):
        """Plan a run for each of these names of variants, in any order."""
        self._total = len(names)
        self._left = list(names)
        self._seconds = defaultdict(list)

    def finish(self, name: str, seconds: float | None, text: str) -> None:
        """Note and print that a run is done; None: an earlier process trained it."""
        self._left.remove(name)
        done = self._total - len(self._left)
        if seconds is None:
            took = "was trained before"
        else:
            self._seconds[name].append(seconds)
            took = f"{console.format_seconds(seconds)}, {self._format_left()} left"
        count = f"run {done:>{len(str(self._total))}}/{self._total}"
        console.say(f"{count}  {text}  {took}")

    def _format_left(self):
        means = {name: statistics.mean(s) for name, s in self._seconds.items()}
        unseen = statistics.mean(means.values())
        left = sum(means.get(name, unseen) for name in self._left)
        return console.format_seconds(left)


def try_rate(
    variant: Variant,
    factor: float,
    seed: int,
    workdir: pathlib.Path,
    progress: Progress,
    ahead: Ahead,
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
        seconds = _train(run, False, ahead)
    except DivergedError as error:
        text += str(error).partition(";")[0]
        progress.finish(variant.name, time.perf_counter() - start, text)
        return trial
    row = _evaluated_row(config, read_rows(directory))
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
    ahead: Ahead,
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
    seconds = _train(run, True, ahead)
    accuracy = json.loads((directory / "evaluation.json").read_bytes())["accuracy"]
    text = f"{variant.name} seed {seed}: test accuracy {accuracy:.2%}"
    if is_trial:
        console.say(f"{text} (the trial at rate {config.learning_rate:.3g})")
    else:
        progress.finish(variant.name, seconds, text)


def _train(run, on_test, ahead):
    """Train what is left; return the seconds that took, None if nothing was left."""
    seconds = ahead.take(run.directory)
    if _is_done(run, on_test):
        return seconds
    start = time.perf_counter()
    run.directory.mkdir(parents=True, exist_ok=True)
    with console.logged(run.directory / "train.log"):
        train.train_and_evaluate(run.config, run.directory, on_test)
    return time.perf_counter() - start + (seconds or 0.0)


def _is_done(run, on_test):
    config, directory = run
    if not (directory / "config.json").exists():
        return False
    load_config(directory, config)  # Another's run is refused.
    try:
        rows = read_rows(directory)
    except UserError:  # A process that was killed has left half a row.
        return False
    if not train.is_finished(config, rows):
        return False
    epoch = _evaluated_row(config, rows)["epoch"]
    return not on_test or (
        read_evaluation(directory, epoch) is not None
        and all((directory / name).exists() for name in _FILES)
    )


def measure_costs(directories: Sequence[pathlib.Path]) -> None:
    """Write the efficiency.json of runs that have none."""
    from dwsep_jax.cost import write_efficiency

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
    num_rates = len(config.rate_factors)
    num_runs = len(variants) * (num_rates + len(seeds) - 1)
    factors = ", ".join(f"{factor:.3g}" for factor in config.rate_factors)
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
                _format_points(paired, "+"),
                paired["answer"].replace("_", " "),
            )
        pace = entry["summary"]["images_per_second"]["mean"]
        rate = f"{entry['learning_rate']:.3g}"
        rows.append([name, entry["parameters"], entry["macs"], rate])
        rows[-1] += [_format_points(accuracy), *difference, f"{pace:,.0f}"]
    columns = ["variant", "parameters", "MACs per image", "rate", "test accuracy, %"]
    columns += [f"against {BASELINE}, points", "", "images/s"]
    n = len(comparison["seeds"])
    title = f"Result on {comparison['num_examples']:,} test images, {n} seeds"
    console.print_table(title, columns, rows)
    verdict = _SENTENCES[comparison["answer"]].format(100 * comparison["margin"])
    console.say(f"answer: {verdict}. {comparison['reason']}")


def _format_points(summary, sign=""):
    """Return mean and 95 % interval of shares of 1, in points."""
    if summary["ci95"] is None:
        return f"{100 * summary['mean']:{sign}.2f}"
    half = (summary["ci95"][1] - summary["ci95"][0]) / 2
    return f"{100 * summary['mean']:{sign}.2f} ± {100 * half:.2f}"


def _evaluated_row(config, rows):
    """Return the row of the epoch that is evaluated at the end."""
    return max(rows, key=score) if config.early_stopping else rows[-1]
