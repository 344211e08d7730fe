"""Is it worth it? Variants of a network, trained alike over several seeds.

All variants share recipe, data order, seeds and splits. Each has its own learning rate,
the one that is best on validation; test is read only after that. The runs are in
<variant>/seed<k>, the trials of a learning rate in <variant>/rate<factor>, and each
resumes after its last complete epoch. Runs of a variant that are trained together are
merely trained ahead of their turn, and found finished when it comes.
"""

import os
import pathlib
import shutil
import time
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.compare.result import Trial, build_comparison, choose_rate
from dwsep_jax.compare.variants import BASELINE, MAIN, Variant, make_variants
from dwsep_jax.config import validate
from dwsep_jax.errors import ConfigError, DivergedError
from dwsep_jax.fields import COMPARISON
from dwsep_jax.train import loop
from dwsep_jax.train.runs import Progress, Run, Trainer
from dwsep_jax.workdir import (
    claimed,
    evaluated_row,
    load_config,
    open_workdir,
    read_json,
    read_rows,
    score,
    write_json,
)

_SENTENCES = {
    "better": f"{MAIN} is better than {BASELINE}",
    "not_worse": f"{MAIN} is not worse than {BASELINE} by more than {{:g}} points",
    "worse": f"{MAIN} is worse than {BASELINE}",
    "undecided": f"whether {MAIN} is worse than {BASELINE} is undecided",
}


def compare(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Train every variant with every seed, and say whether separable is worth it.

    An interrupted comparison resumes in the run and the epoch where it was. A finished
    one gains the seeds that a greater `num_seeds` adds.

    Raises:
      ConfigError: for a field that no comparison can have.
      UserError: as `loop.train_and_evaluate`.
    """
    workdir, dataset = pathlib.Path(workdir), data.load(config)
    check = partial(resolve, dataset=dataset)
    config = open_workdir(workdir, config, check, COMPARISON)
    with claimed(workdir):
        comparison = Comparison(config, workdir, dataset)
        comparison.print_plan()
        print_result(comparison.run())
        from dwsep_jax.report.write import write_report

        console.say(f"report: {write_report([workdir])}")
        console.say(f"files: {workdir}")


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


def list_seeds(config: ConfigDict) -> list[int]:
    """Return the seeds that every variant is trained with.

    Raises:
      ConfigError: if the last of them is too large.
    """
    last = config.seed + config.compare.num_seeds - 1
    if last >= 2**32:
        raise ConfigError(
            f"--config.compare.num_seeds={config.compare.num_seeds}: with "
            f"--config.seed={config.seed} the last seed would be {last}; "
            f"the largest is {2**32 - 1}"
        )
    return list(range(config.seed, last + 1))


def make_run_config(variant: Variant, factor: float, seed: int) -> ConfigDict:
    """Return the configuration of a variant's run at a multiple of its rate."""
    config = variant.config.copy_and_resolve_references()
    config.learning_rate *= factor
    config.seed = seed
    return config


class Comparison:
    """The runs of a comparison, in the order in which they are trained."""

    def __init__(
        self, config: ConfigDict, workdir: pathlib.Path, dataset: data.Dataset
    ):
        """Plan the runs of a resolved configuration."""
        self._config, self._workdir = config, workdir
        self._variants = make_variants(config, dataset)
        self._factors, self._seeds = config.compare.rate_factors, list_seeds(config)
        self._trainer = Trainer(config.compare.members_at_once, dataset)
        # The runs of the first seed are those of the chosen rates.
        num_runs = len(self._factors) + len(self._seeds) - 1
        self._names = [variant.name for variant in self._variants] * num_runs
        self._progress = Progress(self._names)

    def print_plan(self) -> None:
        """Print what will be compared, and how many runs that takes."""
        rows = []
        for variant in self._variants:
            # Widths of a stem that was solved for have many digits.
            fields = ", ".join(
                f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in variant.overrides.items()
            )
            rows.append([variant.name, fields, *variant.size])
        columns = ["variant", "differs in", "parameters", "MACs per image"]
        console.print_table("Comparison", columns, rows)
        config, factors = self._config, ", ".join(f"{f:.3g}" for f in self._factors)
        console.say(
            f"{len(self._names)} runs of {config.num_epochs} epochs on "
            f"{config.dataset}: each variant at {factors} times the learning rate "
            f"{config.learning_rate:.3g}, then at the best on validation with "
            f"{len(self._seeds)} seeds in all"
        )

    def run(self) -> dict[str, Any]:
        """Train the remaining runs; write and return comparison.json.

        All rates are tried first. Then the variants take turns, seed by seed, so that
        they have equally many wherever the comparison is interrupted.
        """
        trials = self._try_rates()
        chosen = {name: choose_rate(name, found) for name, found in trials.items()}
        at_once = self._trainer.num_members
        for i, seed in enumerate(self._seeds):
            if i % at_once == 1:
                seeds = self._seeds[i : i + at_once]
                for variant in self._variants:
                    factor = chosen[variant.name]["factor"]
                    runs = [self._make_run(variant, factor, seed) for seed in seeds]
                    self._trainer.train_ahead(runs)
            for variant in self._variants:
                self._train_seed(variant, chosen[variant.name], seed)
            if i == 0:
                for variant in self._variants:
                    measure_cost(self._workdir / variant.name / f"seed{seed}")
            trained = self._seeds[: i + 1]
            comparison = build_comparison(
                self._config, self._variants, trials, trained, self._workdir
            )
            write_json(self._workdir / "comparison.json", comparison)
        return comparison

    def _try_rates(self) -> dict[str, list[Trial]]:
        for variant in self._variants:
            runs = [self._make_run(variant, factor) for factor in self._factors]
            self._trainer.train_ahead(runs)
        trials = {variant.name: [] for variant in self._variants}
        for factor in self._factors:
            for variant in self._variants:
                trials[variant.name].append(self._try_rate(variant, factor))
        return trials

    def _make_run(
        self, variant: Variant, factor: float, seed: int | None = None
    ) -> Run:
        """Return the run of a variant with a seed, or the trial of its rate."""
        name = f"rate{factor:.3g}" if seed is None else f"seed{seed}"
        seed = self._config.seed if seed is None else seed
        directory = self._workdir / variant.name / name
        return Run(make_run_config(variant, factor, seed), directory)

    def _try_rate(self, variant: Variant, factor: float) -> Trial:
        """Train at a multiple of the learning rate, and return the validation score.

        Test is not read. A rate at which the run diverges is a bad one, not an error.
        """
        run = self._make_run(variant, factor)
        config, directory = run
        trial = {
            "factor": factor,
            "learning_rate": config.learning_rate,
            "val_accuracy": None,
            "val_loss": None,
            "workdir": directory.relative_to(self._workdir).as_posix(),
        }
        start = time.perf_counter()
        try:
            seconds = self._trainer.train(run, on_test=False)
        except DivergedError as error:
            seconds = time.perf_counter() - start
            text = str(error).partition(";")[0]
        else:
            row = evaluated_row(read_rows(directory), config.early_stopping)
            accuracy, loss = score(row), row.get("ema_val_loss", row["val_loss"])
            trial |= {"val_accuracy": accuracy, "val_loss": loss}
            text = f"validation accuracy {accuracy:.2%}, loss {loss:.4f}"
        text = f"{variant.name} at rate {config.learning_rate:.3g}: {text}"
        self._progress.finish(variant.name, seconds, text)
        return trial

    def _train_seed(self, variant: Variant, trial: Trial, seed: int) -> None:
        """Train with a seed at the rate of a trial, and evaluate on test."""
        run = self._make_run(variant, trial["factor"], seed)
        is_trial = seed == self._config.seed
        if is_trial and not run.directory.exists():
            # The same run as the trial: copied rather than trained again.
            unfinished = run.directory.with_name(f"{run.directory.name}.tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(self._workdir / trial["workdir"], unfinished)
            os.replace(unfinished, run.directory)
        seconds = self._trainer.train(run, on_test=True)
        accuracy = read_json(run.directory, "evaluation")["accuracy"]
        text = f"{variant.name} seed {seed}: test accuracy {accuracy:.2%}"
        if is_trial:
            console.say(f"{text} (the trial at rate {trial['learning_rate']:.3g})")
        else:
            self._progress.finish(variant.name, seconds, text)


def measure_cost(directory: pathlib.Path) -> None:
    """Write the efficiency.json of a run that has none."""
    from dwsep_jax.efficiency.cost import write_efficiency

    if not (directory / "efficiency.json").exists():
        console.say(f"measuring the cost of {directory.parent.name}")
        with console.logged(directory / "train.log"):
            write_efficiency(load_config(directory), directory)


def print_result(comparison: dict[str, Any]) -> None:
    """Print a table of the variants, and the answer in one line."""
    rows = []
    for name, entry in comparison["variants"].items():
        summary, paired = entry["summary"], comparison["paired"].get(name)
        rows.append(
            [
                name,
                entry["parameters"],
                entry["macs"],
                f"{entry['learning_rate']:.3g}",
                console.format_points(summary["accuracy"]),
                console.format_points(paired, "+") if paired else "",
                paired["answer"].replace("_", " ") if paired else "",
                f"{summary['images_per_second']['mean']:,.0f}",
            ]
        )
    columns = ["variant", "parameters", "MACs per image", "rate", "test accuracy, %"]
    columns += [f"against {BASELINE}, points", "", "images/s"]
    n = len(comparison["seeds"])
    title = f"Result on {comparison['num_examples']:,} test images, {n} seeds"
    console.print_table(title, columns, rows)
    verdict = _SENTENCES[comparison["answer"]].format(100 * comparison["margin"])
    console.say(f"answer: {verdict}. {comparison['reason']}")
