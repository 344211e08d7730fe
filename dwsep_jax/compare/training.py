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
from collections.abc import Sequence
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
        variants = make_variants(config, dataset)
        # The runs of the first seed are those of the chosen rates.
        num_of_each = len(config.compare.rate_factors) + config.compare.num_seeds - 1
        groups = [variant.name for variant in variants] * num_of_each
        print_plan(config, variants, len(groups))
        queue = RunQueue(config.compare.members_at_once, dataset, groups)
        rates = try_rates(config, variants, workdir, queue)
        print_result(train_seeds(config, variants, workdir, queue, rates))
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
            run_config = make_run_config(variant, factor)
            validate(run_config)
            loop.resolve(run_config, dataset)
    return config


def make_run_config(variant: Variant, factor: float) -> ConfigDict:
    """Return the configuration of a variant at a multiple of its rate."""
    config = variant.config.copy_and_resolve_references()
    config.learning_rate *= factor
    return config


def print_plan(config: ConfigDict, variants: Sequence[Variant], num_runs: int) -> None:
    """Print what will be compared, and how many runs that takes."""
    rows = []
    for variant in variants:
        # Widths of a stem that was solved for have many digits.
        fields = ", ".join(
            f"{name}={console.format_setting(value, 4)}"
            for name, value in variant.overrides.items()
        )
        rows.append([variant.name, fields, *variant.size])
    columns = ["variant", "differs in", "parameters", "MACs per image"]
    console.print_table("Comparison", columns, rows)
    factors = ", ".join(f"{factor:.3g}" for factor in config.compare.rate_factors)
    console.say(
        f"{num_runs} runs of {config.num_epochs} epochs on {config.dataset}: each "
        f"variant at {factors} times the learning rate {config.learning_rate:.3g}, "
        f"then at the best on validation with {config.compare.num_seeds} seeds in all"
    )


def try_rates(
    config: ConfigDict,
    variants: Sequence[Variant],
    workdir: pathlib.Path,
    queue: RunQueue,
) -> dict[str, list[Rate]]:
    """Return what each variant reaches on validation at each rate."""
    runs = {}
    for factor in config.compare.rate_factors:
        for variant in variants:
            name, run_config = variant.name, make_run_config(variant, factor)
            label = f"{name} at rate {run_config.learning_rate:.3g}"
            directory = workdir / name / f"rate{factor:.3g}"
            runs[name, factor] = Run(run_config, directory, label, group=name)
    rates = {variant.name: [] for variant in variants}
    for name in rates:
        queue.train_ahead([run for run in runs.values() if run.group == name])
    for (name, factor), run in runs.items():
        # A rate at which a run diverges is a bad one, not an error.
        error = queue.finish(run, on_test=False)
        accuracy, loss = (None, None) if error else read_score(run)
        rates[name].append(
            {
                "factor": factor,
                "learning_rate": run.config.learning_rate,
                "val_accuracy": accuracy,
                "val_loss": loss,
                "workdir": run.directory.relative_to(workdir).as_posix(),
            }
        )
    return rates


def train_seeds(
    config: ConfigDict,
    variants: Sequence[Variant],
    workdir: pathlib.Path,
    queue: RunQueue,
    rates: dict[str, list[Rate]],
) -> dict[str, Any]:
    """Train with each seed at the best rate; write and return comparison.json.

    The variants take turns, seed by seed, so that they have equally many wherever the
    comparison is interrupted.
    """
    chosen = {name: choose_rate(name, tried) for name, tried in rates.items()}
    seeds = range(config.seed, config.seed + config.compare.num_seeds)

    def plan(variant, seed):
        name, rate = variant.name, chosen[variant.name]
        run_config = make_run_config(variant, rate["factor"])
        run_config.seed = seed
        label, directory = f"{name} seed {seed}", workdir / name / f"seed{seed}"
        if seed != seeds[0]:
            return Run(run_config, directory, label, group=name)
        label += f" (at the chosen rate {rate['learning_rate']:.3g})"
        return Run(run_config, directory, label, group=None)

    for variant in variants:
        trial = workdir / chosen[variant.name]["workdir"]
        _copy_run(trial, plan(variant, seeds[0]).directory)
    for i, seed in enumerate(seeds):
        if i % queue.num_members == 1:
            some = seeds[i : i + queue.num_members]
            for variant in variants:
                queue.train_ahead([plan(variant, seed) for seed in some])
        for variant in variants:
            if error := queue.finish(plan(variant, seed), on_test=True):
                raise error
        if i == 0:
            for variant in variants:
                measure_cost(workdir / variant.name / f"seed{seed}")
        comparison = build_comparison(config, variants, rates, seeds[: i + 1], workdir)
        write_json(workdir / "comparison.json", comparison)
    return comparison


def _copy_run(source, target):
    """Copy a run rather than train it again, unless that has been done."""
    if not target.exists():
        unfinished = target.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        os.replace(unfinished, target)


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
        rate, summary = f"{entry['learning_rate']:.3g}", entry["summary"]
        accuracy = console.format_points(summary["accuracy"])
        difference = answer = ""
        if paired := comparison["paired"].get(name):
            difference = console.format_points(paired, "+")
            answer = paired["answer"].replace("_", " ")
        speed = f"{summary['images_per_second']['mean']:,.0f}"
        row = [name, entry["parameters"], entry["macs"], rate, accuracy]
        rows.append([*row, difference, answer, speed])
    columns = ["variant", "parameters", "MACs per image", "rate", "test accuracy, %"]
    columns += [f"against {BASELINE}, points", "", "images/s"]
    n = len(comparison["seeds"])
    title = f"Result on {comparison['num_examples']:,} test images, {n} seeds"
    console.print_table(title, columns, rows)
    verdict = _SENTENCES[comparison["answer"]].format(100 * comparison["margin"])
    console.say(f"answer: {verdict}. {comparison['reason']}")
