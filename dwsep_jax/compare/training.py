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
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax import console, data
from dwsep_jax.compare.result import Rate, build_comparison, choose_rate
from dwsep_jax.compare.variants import BASELINE, MAIN, Variant, make_variants
from dwsep_jax.config import validate
from dwsep_jax.fields import COMPARISON
from dwsep_jax.train import loop
from dwsep_jax.train.runs import Run, RunQueue, read_score
from dwsep_jax.workdir import claimed, load_config, open_workdir, write_json

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
    config = loop.resolve(config, dataset)
    for variant in make_variants(config, dataset):
        for factor in config.compare.rate_factors:
            run_config = make_run_config(variant, factor, config.seed)
            validate(run_config)
            loop.resolve(run_config, dataset)
    return config


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
        self._factors = config.compare.rate_factors
        self._seeds = range(config.seed, config.seed + config.compare.num_seeds)
        # The runs of the first seed are those of the chosen rates.
        num_runs = len(self._factors) + len(self._seeds) - 1
        self._groups = [variant.name for variant in self._variants] * num_runs
        at_once = config.compare.members_at_once
        self._queue = RunQueue(at_once, dataset, self._groups)

    def print_plan(self) -> None:
        """Print what will be compared, and how many runs that takes."""
        rows = []
        for variant in self._variants:
            # Widths of a stem that was solved for have many digits.
            fields = ", ".join(
                f"{name}={console.format_setting(value, 4)}"
                for name, value in variant.overrides.items()
            )
            rows.append([variant.name, fields, *variant.size])
        columns = ["variant", "differs in", "parameters", "MACs per image"]
        console.print_table("Comparison", columns, rows)
        config, factors = self._config, ", ".join(f"{f:.3g}" for f in self._factors)
        console.say(
            f"{len(self._groups)} runs of {config.num_epochs} epochs on "
            f"{config.dataset}: each variant at {factors} times the learning rate "
            f"{config.learning_rate:.3g}, then at the best on validation with "
            f"{len(self._seeds)} seeds in all"
        )

    def run(self) -> dict[str, Any]:
        """Train the remaining runs; write and return comparison.json.

        All rates are tried first. Then the variants take turns, seed by seed, so that
        they have equally many wherever the comparison is interrupted.
        """
        rates = self._try_rates()
        chosen = {name: choose_rate(name, tried) for name, tried in rates.items()}
        at_once = self._queue.num_members
        for i, seed in enumerate(self._seeds):
            if i % at_once == 1:
                seeds = self._seeds[i : i + at_once]
                for variant in self._variants:
                    rate = chosen[variant.name]
                    runs = [self._plan_seed(variant, rate, seed) for seed in seeds]
                    self._queue.train_ahead(runs)
            for variant in self._variants:
                self._train_seed(variant, chosen[variant.name], seed)
            if i == 0:
                for variant in self._variants:
                    measure_cost(self._workdir / variant.name / f"seed{seed}")
            trained = self._seeds[: i + 1]
            comparison = build_comparison(
                self._config, self._variants, rates, trained, self._workdir
            )
            write_json(self._workdir / "comparison.json", comparison)
        return comparison

    def _try_rates(self) -> dict[str, list[Rate]]:
        """Return what each variant reaches on validation at each rate."""
        runs = {
            (variant.name, factor): self._plan_rate(variant, factor)
            for factor in self._factors
            for variant in self._variants
        }
        for variant in self._variants:
            names = [(variant.name, factor) for factor in self._factors]
            self._queue.train_ahead([runs[name] for name in names])
        rates = {variant.name: [] for variant in self._variants}
        for (name, factor), run in runs.items():
            # A rate at which a run diverges is a bad one, not an error.
            error = self._queue.finish(run, on_test=False)
            accuracy, loss = (None, None) if error else read_score(run)
            rates[name].append(
                {
                    "factor": factor,
                    "learning_rate": run.config.learning_rate,
                    "val_accuracy": accuracy,
                    "val_loss": loss,
                    "workdir": run.directory.relative_to(self._workdir).as_posix(),
                }
            )
        return rates

    def _plan_rate(self, variant: Variant, factor: float) -> Run:
        """Return the run of a variant at a multiple of its rate."""
        config = make_run_config(variant, factor, self._config.seed)
        directory = self._workdir / variant.name / f"rate{factor:.3g}"
        label = f"{variant.name} at rate {config.learning_rate:.3g}"
        return Run(config, directory, label, variant.name)

    def _plan_seed(self, variant: Variant, rate: Rate, seed: int) -> Run:
        """Return the run of a variant with a seed, at the rate that was chosen."""
        config = make_run_config(variant, rate["factor"], seed)
        directory = self._workdir / variant.name / f"seed{seed}"
        label = f"{variant.name} seed {seed}"
        if seed == self._config.seed:
            label += f" (at the chosen rate {config.learning_rate:.3g})"
            return Run(config, directory, label, None)
        return Run(config, directory, label, variant.name)

    def _train_seed(self, variant: Variant, rate: Rate, seed: int) -> None:
        """Train with a seed at the chosen rate, and evaluate on test."""
        run = self._plan_seed(variant, rate, seed)
        if seed == self._config.seed and not run.directory.exists():
            # Copied rather than trained again.
            unfinished = run.directory.with_name(f"{run.directory.name}.tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(self._workdir / rate["workdir"], unfinished)
            os.replace(unfinished, run.directory)
        if error := self._queue.finish(run, on_test=True):
            raise error


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
