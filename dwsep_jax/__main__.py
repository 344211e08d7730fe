"""Train and evaluate CNNs of dense blocks, depthwise-separable or standard.

Usage:
  python main.py --config=FILE[:ARG] [--config.FIELD=VALUE ...] [--mode=MODE]
                 [--workdir=DIR] [--split=SPLIT] [--images=PATH] [--top=N]
                 [--output=PATH] [--format=NAME,...] [--debug]
  Installed, it is also `dwsep-jax` or `python -m dwsep_jax` in place of
  `python main.py`.

Examples:
  python main.py --config=configs/separable.py
  python main.py --config=configs/separable.py --config.seed=1 --config.growth_rate=12
  python main.py --config=configs/digits.py --config.block_sizes=3,3 --noconfig.progress
  python main.py --mode=evaluate --workdir=runs/separable --split=validation
  python main.py --mode=predict --workdir=runs/separable --images=cat.jpg
  python main.py --mode=export --workdir=runs/separable --format=stablehlo,onnx
  python main.py --mode=compare --config=configs/compare.py:digits
  python main.py --mode=sweep --config=configs/sweep.py:digits
  python main.py --mode=report --workdir=runs/separable,runs/digits

Flags:
  --config    Python file whose get_config(), or get_config(ARG), returns the config;
              without it, the config that --workdir was started with.
  --config.FIELD
              Replaces one field. configs/default.py describes every field.
  --mode      train (the default): train, or resume an interrupted run, and evaluate on
              test.
              evaluate: evaluate a run, finished or in progress, on --split, with its
              latest weights, or its best ones with early stopping.
              predict: classify the pictures of --images with a run's weights, as
              evaluate takes them, and the temperature of its evaluation; or with an
              export; or, without --workdir, with the weights shipped for --config.
              export: write a run's weights, as evaluate takes them, as programs for
              JAX (StableHLO) or ONNX and as safetensors, with a model card; they need
              none of this package.
              efficiency: count parameters, MACs and FLOPs, and measure time and memory,
              without training.
              compare: train several variants over several seeds, and report whether
              separable convolutions are worth it; resumes where it was interrupted.
              sweep: search hyperparameters on validation, then retrain the best with
              new seeds and evaluate them on test; resumes where it was interrupted, and
              further processes join the search.
              report: write report.html, report.md and figures/ into --output, from the
              files of one workdir or of several separated by commas; needs no jax.
  --workdir   Directory of the run's files; by default runs/ and a name made of the
              config file and the fields replaced.
  --output    Directory for the files of --mode=report, by default the (first) workdir;
              file for --mode=predict, .csv or .jsonl, in place of the screen; directory
              for --mode=export, by default export/ in the workdir.
  --images    Pictures for --mode=predict: a file, a folder, or a .txt file with a path
              on each line.
  --top       Classes that --mode=predict shows of each picture: 5 by default.
  --format    What --mode=export writes: stablehlo,safetensors (the default), or others
              of stablehlo, safetensors and onnx, which needs the extra `onnx`.
  --split     Split for --mode=evaluate: test (the default), validation or train.
  --debug     Show the traceback of an error.

Exit codes: 0; 1 failure; 2 usage; 130 interrupted (SIGINT), 143 terminated (SIGTERM).
Both save what is being trained first; the same command resumes it.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from dwsep_jax import cli


def define_flags() -> flags.FlagValues:
    """Return the flags, unparsed; `cli` adds those of the config's fields."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "Config file.", flag_values=values)
    flags.DEFINE_enum("mode", "train", list(MODES), "What to do.", flag_values=values)
    flags.DEFINE_string("workdir", None, "The run's files.", flag_values=values)
    splits = ["train", "validation", "test"]
    flags.DEFINE_string("output", None, "The report's files.", flag_values=values)
    flags.DEFINE_enum("split", None, splits, "For evaluate.", flag_values=values)
    flags.DEFINE_string("images", None, "For predict.", flag_values=values)
    flags.DEFINE_integer("top", None, "For predict.", 1, flag_values=values)
    flags.DEFINE_string("format", None, "For export.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Show tracebacks.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show help.", short_name="h", flag_values=values)
    flags.DEFINE_alias("helpfull", "help", flag_values=values)
    flags.DEFINE_alias("helpshort", "help", flag_values=values)
    return values


def run_train(command: cli.Command) -> None:
    """Train a run, or resume it, and evaluate it on test."""
    from dwsep_jax.train import loop

    loop.train_and_evaluate(command.config, command.workdir)


def run_evaluate(command: cli.Command) -> None:
    """Evaluate a run on a split."""
    from dwsep_jax import evaluate, workdir

    resolved = workdir.load_config(command.workdir, command.config)
    evaluate.evaluate_workdir(resolved, command.workdir, command.split or "test")


def run_predict(command: cli.Command) -> None:
    """Classify pictures with a run."""
    from dwsep_jax import predict, workdir

    resolved = workdir.load_config(command.workdir, command.config)
    paths = (command.workdir, command.images, command.output)
    predict.predict_workdir(resolved, *paths, command.top or 5)


def run_export(command: cli.Command) -> None:
    """Write a run's network in files that need none of this package."""
    from dwsep_jax import workdir
    from dwsep_jax.export import write

    resolved = workdir.load_config(command.workdir, command.config)
    formats = (command.formats or "stablehlo,safetensors").replace(" ", "").split(",")
    write.export_workdir(resolved, command.workdir, formats, command.output)


def run_efficiency(command: cli.Command) -> None:
    """Count and measure the cost of a network."""
    from dwsep_jax.efficiency import cost

    cost.measure_workdir(command.config, command.workdir)


def run_compare(command: cli.Command) -> None:
    """Train variants over several seeds, and compare them."""
    from dwsep_jax.compare import training

    training.compare(command.config, command.workdir)


def run_sweep(command: cli.Command) -> None:
    """Search hyperparameters, and evaluate the best."""
    from dwsep_jax.sweep import search

    search.sweep(command.config, command.workdir)


def run_report(command: cli.Command) -> None:
    """Report the files of one or several workdirs."""
    from dwsep_jax import console
    from dwsep_jax.report import write

    workdirs = [command.workdir]
    if not os.path.isdir(command.workdir):  # A name may have commas.
        workdirs = [workdir for workdir in command.workdir.split(",") if workdir]
    path = write.write_report(workdirs, command.output)
    console.say(f"report: {path}")


MODES = {
    "train": run_train,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "export": run_export,
    "efficiency": run_efficiency,
    "compare": run_compare,
    "sweep": run_sweep,
    "report": run_report,
}


def main(argv: Sequence[str] = sys.argv) -> int:
    """Run a command line, its first word the program; return the exit code."""
    return cli.run(list(argv), define_flags(), MODES, __doc__)


if __name__ == "__main__":
    sys.exit(main())
