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
from ml_collections import ConfigDict

from dwsep_jax import cli, fields
from dwsep_jax.workdir import load_config

MODES = ["train", "evaluate", "predict", "export"]
MODES += ["efficiency", "compare", "sweep", "report"]


def define_flags() -> flags.FlagValues:
    """Return the flags, unparsed."""
    values = flags.FlagValues()
    for name in ("config", "workdir", "output", "images", "format"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "", flag_values=values)
    splits = ["train", "validation", "test"]
    flags.DEFINE_enum("split", None, splits, "", flag_values=values)
    flags.DEFINE_integer("top", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("debug", False, "", flag_values=values)
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    for name in ("helpfull", "helpshort"):
        flags.DEFINE_alias(name, "help", flag_values=values)
    fields.define_flags(values)
    return values


def run_mode(config: ConfigDict | None, workdir: str, values: flags.FlagValues) -> None:
    """Do what the flags ask for; each mode imports what it needs."""
    if values.mode in ("evaluate", "predict", "export"):
        config = load_config(workdir, config)
    match values.mode:
        case "train":
            from dwsep_jax.train import loop

            loop.train_and_evaluate(config, workdir)
        case "evaluate":
            from dwsep_jax import evaluate

            evaluate.evaluate_workdir(config, workdir, values.split or "test")
        case "predict":
            from dwsep_jax import predict

            paths = (workdir, values.images, values.output)
            predict.predict_workdir(config, *paths, values.top or 5)
        case "export":
            from dwsep_jax.export import write

            formats = (values.format or "stablehlo,safetensors").replace(" ", "")
            write.export_workdir(config, workdir, formats.split(","), values.output)
        case "efficiency":
            from dwsep_jax.efficiency import cost

            cost.measure_workdir(config, workdir)
        case "compare":
            from dwsep_jax.compare import training

            training.compare(config, workdir)
        case "sweep":
            from dwsep_jax.sweep import search

            search.sweep(config, workdir)
        case "report":
            from dwsep_jax import console
            from dwsep_jax.report import write

            is_one = os.path.isdir(workdir)  # A name may have commas.
            workdirs = [workdir] if is_one else list(filter(None, workdir.split(",")))
            path = write.write_report(workdirs, values.output)
            console.say(f"report: {path}")


def main(argv: Sequence[str] = sys.argv) -> int:
    """Run a command line, its first word the program; return the exit code."""
    return cli.run(list(argv), define_flags(), run_mode, __doc__)


if __name__ == "__main__":
    sys.exit(main())
