"""The command line: flags to a command, errors to one line and an exit code."""

import copy
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from errno import EDQUOT, EFBIG, ENOSPC
from signal import SIGINT, SIGTERM
from typing import NamedTuple

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dwsep_jax import launch, signals
from dwsep_jax.config import (
    PRETRAINED,
    default_workdir,
    list_configs,
    load_file,
    validate,
)
from dwsep_jax.errors import ConfigError, UserError, choose, is_out_of_memory
from dwsep_jax.fields import FIELDS, RUN, SECTIONS, describe, unknown_field
from dwsep_jax.workdir import load_requested

# The kind of workdir of --mode=compare and --mode=sweep; the other modes have runs.
_KINDS = {mode: kind for kind, mode in SECTIONS.items()}

# The flags that only some modes read.
_READ_BY = {"split": ["evaluate"], "output": ["report", "predict", "export"]}
_READ_BY |= {"images": ["predict"], "top": ["predict"], "format": ["export"]}

# What JAX_PLATFORMS becomes. "" leaves the choice to jax, which prefers accelerators
# and keeps the CPU beside them; "gpu" would demand the GPUs of every maker at once.
_PLATFORMS = {"cpu": "cpu", "gpu": "", "tpu": ""}


class Command(NamedTuple):
    """What the command line asks for.

    `config` is None where --mode=report has only a workdir; the last five are None
    where they are not given.
    """

    mode: str
    config: ConfigDict | None
    workdir: str
    split: str | None
    output: str | None
    images: str | None = None
    top: int | None = None
    formats: str | None = None


def run(
    argv: list[str],
    values: flags.FlagValues,
    modes: Mapping[str, Callable[[Command], None]],
    help_text: str,
) -> int:
    """Run the mode that the command line names, and return the exit code.

    An error becomes one line on stderr, after its traceback with --debug.

    Args:
      argv: the program and its arguments.
      values: the flags, unparsed.
      modes: what each value of --mode runs.
      help_text: what --help prints.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # What a terminal lacks, it shows as \xb1.
            stream.reconfigure(errors="backslashreplace")
    try:
        rest = _parse(values, argv, known_only=True)
        if values.help:
            print(help_text.strip())
            return 0
        if not values["debug"].value:
            # Threads of orbax log or print a traceback each when a save fails.
            logging.set_verbosity(logging.FATAL)
            sys.unraisablehook = lambda error: None
        command = make_command(values, rest)
        if command.mode != "report":  # It reads files, and computes nothing.
            launch.start(command.config, command.mode, values.debug)
            prepare_process(command.config.platform)
        with signals.handled():
            modes[command.mode](command)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if values["debug"].value:
            traceback.print_exc()
        text, exit_code = _describe_error(error)
        return launch.end(error, " ".join(text.split()), exit_code)


def make_command(values: flags.FlagValues, rest: list[str]) -> Command:
    """Return the command of the parsed flags and of the config's overrides.

    Raises:
      ConfigError: for a flag or a field that does not exist or cannot have its value.
      UserError: if the config is to come from a workdir that has none.
    """
    check_names(rest[1:], values)
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
    workdir = values.workdir and os.path.expanduser(values.workdir)
    kind = _KINDS.get(values.mode, RUN)
    if values.config is not None:
        base = load_file(values.config)
    elif values.mode == "report":
        return _make_report_command(workdir, values.output, rest)
    elif workdir is not None:
        base = load_requested(workdir, kind)
    else:
        raise ConfigError(f"--config is missing{list_configs()}")
    config = override(base, rest)
    validate(config)
    if workdir is None:
        workdir = default_workdir(values.config, config, base, kind)
        shipped = PRETRAINED / os.path.basename(workdir)
        if (
            values.mode == "predict"
            and shipped.is_dir()
            and not os.path.exists(workdir)
        ):
            workdir = str(shipped)
    flags_of_modes = (values[flag].value for flag in _READ_BY)
    return Command(values.mode, config, workdir, *flags_of_modes)


def _make_report_command(
    workdir: str | None, output: str | None, rest: list[str]
) -> Command:
    """Return the command to report workdirs, which needs no config."""
    if workdir is None:
        raise ConfigError(
            "--workdir is missing: name the workdir to report, or several with commas"
        )
    if rest[1:]:
        raise ConfigError(f"{rest[1]}: --mode=report only reads files; leave it out")
    return Command("report", None, workdir, None, output)


def check_names(arguments: list[str], known: Iterable[str]) -> None:
    """Raise `ConfigError` for a field or a flag that does not exist.

    Args:
      arguments: those that are not flags of the program itself.
      known: the program's own flags, to suggest where one is mistyped.
    """
    for argument in arguments:
        if match := re.match(r"--?(no)?config\.([^=]*)", argument):
            negated, name = match.groups()
            if name not in FIELDS:
                raise ConfigError(unknown_field(name))
            if negated and not FIELDS[name].is_valid(False):
                raise ConfigError(
                    f"{argument}: only a field that is true or false can be negated"
                )
        elif match := re.match(r"--?([a-zA-Z][^=]*)", argument):
            meant = {name: f"config.{name}" for name in FIELDS}
            meant |= {name: name for name in [*known, *meant.values()]}
            near = difflib.get_close_matches(match[1], meant, n=1)
            remedy = f"did you mean --{meant[near[0]]}?" if near else "--help lists all"
            raise ConfigError(f"unknown flag {match[0]}; {remedy}")


def override(base: ConfigDict, rest: list[str]) -> ConfigDict:
    """Return a locked copy of the config with the fields that `rest` replaces.

    Args:
      base: the config to start from.
      rest: the program, and arguments like --config.field=value.

    Raises:
      ConfigError: for a value of the wrong type, or an argument that is not a flag.
    """
    values = flags.FlagValues()
    rest = [_quote_names(argument, base) for argument in rest]
    config_flags.DEFINE_config_dict(
        "config", copy.deepcopy(base), flag_values=values, sys_argv=rest
    )
    try:
        positional = _parse(values, rest)[1:]
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        raise ConfigError(describe(*match.groups())) from None
    if positional:
        raise ConfigError(
            f"unexpected argument {positional[0]}; write every flag as --flag=value"
        )
    return values.config


def _quote_names(argument: str, base: ConfigDict) -> str:
    """Return --config.FIELD=A,B as a tuple of texts, which absl reads as Python.

    A comma before a digit, as in block_sizes=3,3|6,6 of a space, does not separate.
    """
    flag, equals, value = argument.partition("=")
    field = base.get(flag.lstrip("-").removeprefix("config."))
    has_names = isinstance(field, tuple) and field and isinstance(field[0], str)
    if not (equals and has_names) or value.lstrip().startswith("("):
        return argument
    names = tuple(name.strip() for name in re.split(r",(?!\s*\d)", value))
    return f"{flag}={names!r}"


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
    from dwsep_jax import environment

    environment.use_compilation_cache()
    environment.keep_freed_memory()


def _parse(
    values: flags.FlagValues, argv: list[str], known_only: bool = False
) -> list[str]:
    """Parse the flags in any position, and return what is left."""
    try:
        return values(argv, known_only=known_only)
    except ValueError as error:  # absl raises it only for --noflag=value.
        raise ConfigError(f"{error}; leave =... out") from None


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
    signs = [sign for n in numbers for sign in (os.strerror(n), f"os_error_code='{n}'")]
    if any(sign in message for sign in signs):
        text += "; free some space and repeat the command"
    elif is_out_of_memory(error):
        text += (
            "; out of memory: take a smaller --config.batch_size, "
            "--config.eval_batch_size or network, and another --workdir"
        )
    return f"error: {text} (--debug shows the traceback)", 1
