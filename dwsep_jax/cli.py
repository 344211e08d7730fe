"""The command line: flags to a command, errors to one line and an exit code."""

import difflib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from errno import EDQUOT, EFBIG, ENOSPC
from signal import SIGINT, SIGTERM

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from dwsep_jax import launch, signals
from dwsep_jax.config import PRETRAINED, flatten, from_dict, list_configs, load_file
from dwsep_jax.errors import ConfigError, UserError, choose, is_out_of_memory
from dwsep_jax.fields import FIELDS, RUN, SECTIONS, format_value, unknown_field
from dwsep_jax.workdir import default_workdir, load_requested

# The kind of workdir of --mode=compare and --mode=sweep; the other modes have runs.
_KINDS = {mode: kind for kind, mode in SECTIONS.items()}

# The flags that only some modes read.
_READ_BY = {"split": ["evaluate"], "output": ["report", "predict", "export"]}
_READ_BY |= {"images": ["predict"], "top": ["predict"], "format": ["export"]}

# What JAX_PLATFORMS becomes. "" leaves the choice to jax, which prefers accelerators
# and keeps the CPU beside them; "gpu" would demand the GPUs of every maker at once.
_PLATFORMS = {"cpu": "cpu", "gpu": "", "tpu": ""}


def run(
    argv: list[str],
    values: flags.FlagValues,
    run_mode: Callable[[ConfigDict | None, str, flags.FlagValues], None],
    help_text: str,
) -> int:
    """Run the mode that the command line names, and return the exit code.

    An error becomes one line on stderr, after its traceback with --debug.

    Args:
      argv: the program and its arguments.
      values: the flags, unparsed.
      run_mode: does what is asked for, given `read_flags` and the parsed flags.
      help_text: what --help prints.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # What a terminal lacks, it shows as \xb1.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            rest = values(argv, known_only=True)
        except ValueError as error:  # absl raises it only for --noflag=value.
            raise ConfigError(f"{error}; leave =... out") from None
        if values.help:
            print(help_text.strip())
            return 0
        if not values["debug"].value:
            # Threads of orbax log or print a traceback each when a save fails.
            absl_logging.set_verbosity(absl_logging.FATAL)
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            sys.unraisablehook = lambda error: None
        config, workdir = read_flags(values, rest)
        if values.mode != "report":  # It reads files, and computes nothing.
            launch.start(config, values.mode, values.debug)
            prepare_process(config.platform)
        with signals.handled():
            run_mode(config, workdir, values)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if values["debug"].value:
            traceback.print_exc()
        text, exit_code = _describe_error(error)
        return launch.end(error, " ".join(text.split()), exit_code)


def read_flags(
    values: flags.FlagValues, rest: list[str]
) -> tuple[ConfigDict | None, str]:
    """Return the config and the workdir that the flags ask for.

    Args:
      values: the flags, parsed.
      rest: the program, and the arguments that are none of the flags.

    Returns:
      The config, locked; None where --mode=report has only workdirs.

    Raises:
      ConfigError: for a flag or a field that does not exist or cannot have its value.
      UserError: if the config is to come from a workdir that has none.
    """
    _check_flags(values, rest[1:])
    workdir = values.workdir and os.path.expanduser(values.workdir)
    given = {name: values[f"config.{name}"] for name in FIELDS}
    changes = {name: flag.value for name, flag in given.items() if flag.present}
    mode, kind = values.mode, _KINDS.get(values.mode, RUN)
    if values.config is not None:
        base = load_file(values.config)
    elif mode == "report":
        if workdir is None:
            raise ConfigError(
                "--workdir is missing: name the workdir to report, or several with "
                "commas"
            )
        if changes:
            name, value = next(iter(changes.items()))
            raise ConfigError(
                f"--config.{name}={format_value(value)}: --mode=report only reads "
                "files; leave it out"
            )
        return None, workdir
    elif workdir is not None:
        base = load_requested(workdir, kind)
    else:
        raise ConfigError(f"--config is missing{list_configs()}")
    config = from_dict(flatten(base) | changes)
    if workdir is None:
        workdir = default_workdir(values.config, config, base, kind)
        shipped = PRETRAINED / os.path.basename(workdir)
        if mode == "predict" and shipped.is_dir() and not os.path.exists(workdir):
            workdir = str(shipped)
    return config, workdir


def _check_flags(values: flags.FlagValues, rest: list[str]) -> None:
    """Raise `ConfigError` for flags that do not exist, or not with this mode."""
    unknown = [argument for argument in rest if argument != "--"]
    if unknown:
        raise ConfigError(_describe_unknown(unknown[0], values))
    for flag, modes in _READ_BY.items():
        value = values[flag].value
        if value is not None and values.mode not in modes:
            raise ConfigError(
                f"--{flag}={value}: only --mode={' or '.join(modes)} reads it; leave "
                "it out"
            )
    if values.mode == "predict" and not values.images:
        raise ConfigError(
            "--images is missing: name a picture, a folder, or a .txt file of paths"
        )
    if values.workdir is not None and not values.workdir.strip():
        raise ConfigError("--workdir=: is empty; name a directory, or leave it out")


def _describe_unknown(argument: str, values: flags.FlagValues) -> str:
    """Return the line for an argument that is none of the flags."""
    if match := re.match(r"--?(no)?config\.([^=]*)", argument):
        if match[2] not in FIELDS:
            return unknown_field(match[2])
        if match[1]:
            return f"{argument}: only a field that is true or false can be negated"
    elif match := re.match(r"--?([a-zA-Z][^=]*)", argument):
        meant = {name: f"config.{name}" for name in FIELDS}
        meant |= {name: name for name in values}
        near = difflib.get_close_matches(match[1], meant, n=1)
        remedy = f"did you mean --{meant[near[0]]}?" if near else "--help lists all"
        return f"unknown flag {match[0]}; {remedy}"
    return f"unexpected argument {argument}; write every flag as --flag=value"


def prepare_process(platform: str | None) -> None:
    """Choose jax's platform, and keep compiled programs and freed memory for reuse.

    Args:
      platform: cpu, gpu or tpu; None leaves the choice to jax.

    Raises:
      ConfigError: for an unknown platform.
      UserError: if jax does not find it, or that of JAX_PLATFORMS, on this machine, or
        may not compile.
    """
    import jax

    from dwsep_jax import environment

    if jax.config.jax_disable_jit:
        raise UserError(
            "JAX_DISABLE_JIT=1: the training step is compiled in advance; unset it, or "
            "call dwsep_jax.train_step"
        )
    setting = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}"
    if platform is not None:
        setting = f"--config.platform={platform}"
        jax_platforms = choose("--config.platform", platform, _PLATFORMS)
        jax.config.update("jax_platforms", jax_platforms)
    environment.keep_freed_memory()  # Before jax starts its threads.
    try:
        found = jax.default_backend()
    except Exception:  # Of many types, some without a message.
        found = None
    if found is None or platform not in (None, found):
        available = " or ".join(sorted({found or "cpu", "cpu"}))
        raise UserError(
            f"{setting}: jax finds none on this machine; choose {available}, or "
            "install jax with support for it"
        )
    environment.use_compilation_cache()


def _describe_error(error: BaseException) -> tuple[str, int]:
    """Return the line for an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        number = error.args[0] if isinstance(error, signals.Stopped) else SIGINT
        return "terminated" if number == SIGTERM else "interrupted", 128 + number
    if isinstance(error, UserError):
        return f"error: {error}", error.exit_code
    if isinstance(error, flags.Error):
        return f"error: {str(error).removeprefix('flag ')}", 2
    message = str(error).strip()
    text = type(error).__name__ + (f": {message.splitlines()[0]}" if message else "")
    # Orbax and XLA wrap what the system reports in errors of their own.
    numbers = (ENOSPC, EDQUOT, EFBIG)
    if any(os.strerror(number) in message for number in numbers):
        text += "; free some space and repeat the command"
    elif is_out_of_memory(error):
        text += (
            "; out of memory: take a smaller --config.batch_size, "
            "--config.eval_batch_size or network, and another --workdir"
        )
    return f"error: {text} (--debug shows the traceback)", 1
