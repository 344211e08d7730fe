"""The command line: flags to a command, errors to one line and an exit code."""

import copy
import difflib
import importlib.util
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from errno import EDQUOT, ENOSPC
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from dwsep_jax.config import (
    COMPARISON,
    FIELDS,
    RUN,
    SWEEP,
    check_fields,
    default_workdir,
    describe,
    flatten,
    set_field,
    unknown_field,
    validate,
)
from dwsep_jax.errors import ConfigError, UserError, choose, is_out_of_memory
from dwsep_jax.workdir import load_requested

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

# What the workdir of a mode holds, where that is no single run.
_KINDS = {"compare": COMPARISON, "sweep": SWEEP}

# What JAX_PLATFORMS becomes. "" leaves the choice to jax, which prefers accelerators
# and keeps the CPU beside them; "gpu" would demand every maker's GPUs at once.
_PLATFORMS = {"cpu": "cpu", "gpu": "", "tpu": ""}


class Command(NamedTuple):
    """What the command line asks for.

    `config` is None where --mode=report reads a workdir alone, `split` where it is not
    given.
    """

    mode: str
    config: ConfigDict | None
    workdir: str
    split: str | None


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
    try:
        rest = _parse(values, argv, known_only=True)
        if values.help:
            print(help_text.strip())
            return 0
        command = make_command(values, rest)
        if command.mode != "report":  # It reads files, and computes nothing.
            select_platform(command.config.platform)
            prepare_process()
        modes[command.mode](command)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, values)
    except flags.Error as error:
        return _fail(f"error: {str(error).removeprefix('flag ')}", 2, values)
    except UserError as error:
        return _fail(f"error: {error}", error.exit_code, values)
    except Exception as error:
        return _fail(f"error: {_describe_error(error)}", 1, values)
    return 0


def make_command(values: flags.FlagValues, rest: list[str]) -> Command:
    """Return the command that the parsed flags and the config's overrides make.

    Raises:
      ConfigError: for a flag or a field that cannot be meant.
      UserError: if the config is to come from a workdir that has none.
    """
    check_names(rest[1:], values)
    if values.split is not None and values.mode != "evaluate":
        raise ConfigError(
            f"--split={values.split}: is read by --mode=evaluate alone; leave it out"
        )
    if values.workdir is not None and not values.workdir.strip():
        raise ConfigError("--workdir=: is empty; name a directory, or leave it out")
    workdir = values.workdir and os.path.expanduser(values.workdir)
    if values.mode == "report" and values.config is None:
        return _make_report_command(workdir, rest)
    kind = _KINDS.get(values.mode, RUN)
    if values.config is not None:
        base = load_file(values.config)
    elif workdir is not None:
        base = load_requested(workdir, kind)
    else:
        raise ConfigError(f"--config is missing{_list_configs()}")
    config = override(base, rest)
    validate(config)
    workdir = workdir or default_workdir(values.config, config, base, kind)
    return Command(values.mode, config, workdir, values.split)


def _make_report_command(workdir: str | None, rest: list[str]) -> Command:
    """Return the command to report workdirs, whose configs, if any, do not count."""
    if workdir is None:
        raise ConfigError(
            "--workdir is missing: name the workdir to report, or several with commas"
        )
    if rest[1:]:
        raise ConfigError(f"{rest[1]}: --mode=report reads files alone; leave it out")
    return Command("report", None, workdir, None)


def load_file(config_path: str) -> ConfigDict:
    """Return what `get_config` of a `file[:arg]` returns, its fields checked by name.

    Raises:
      ConfigError: if there is no such file, it raises, or it returns something else.
    """
    path, colon, argument = config_path.partition(":")
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise ConfigError(f"--config={path}: no such file{_list_configs()}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None:
        raise ConfigError(f"--config={path}: must be a Python file, *.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([argument] if colon else []))
    except Exception as error:
        raise ConfigError(
            f"--config={config_path}: {type(error).__name__}: {error}"
            f"{_find_line(error, path)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"--config={config_path}: get_config() must return a ConfigDict, "
            f"not {type(config).__name__}"
        )
    check_fields(config, f"--config={config_path}")
    return config


def check_names(arguments: list[str], known: Iterable[str]) -> None:
    """Raise `ConfigError` for a field or a flag that does not exist.

    Args:
      arguments: those that are none of the program's own flags.
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
            names = {name: name for name in known}
            names |= {f"config.{name}": f"config.{name}" for name in FIELDS}
            names |= {name: f"config.{name}" for name in FIELDS}
            near = difflib.get_close_matches(match[1], names, n=1)
            remedy = f"did you mean --{names[near[0]]}?" if near else "--help lists all"
            raise ConfigError(f"unknown flag {match[0]}; {remedy}")


def override(base: ConfigDict, rest: list[str]) -> ConfigDict:
    """Return a locked copy of the config with the fields that `rest` replaces.

    Args:
      base: the config to start from.
      rest: the program, and arguments like --config.field=value.

    Raises:
      ConfigError: for a value of the wrong type, or an argument that is no flag.
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
    _split_names(values.config)
    return values.config


def _quote_names(argument: str, base: ConfigDict) -> str:
    """Return --config.FIELD=A,B with the names quoted: absl parses values as Python."""
    flag, equals, value = argument.partition("=")
    field = base.get(flag.lstrip("-").removeprefix("config."))
    is_of_names = isinstance(field, tuple) and field and isinstance(field[0], str)
    if not (equals and is_of_names) or value.lstrip().startswith("("):
        return argument
    return f"{flag}={_split(value)!r}"


def _split_names(config: ConfigDict) -> None:
    """Take apart names with commas between, which absl takes for one text."""
    for name, value in flatten(config).items():
        if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str):
            set_field(config, name, _split(value[0]))


def _split(text: str) -> tuple[str, ...]:
    """Return the names; block_sizes=3,3|6,6 of a space is one, and none is a number."""
    return tuple(part.strip() for part in re.split(r",(?!\s*\d)", text))


def select_platform(platform: str | None) -> None:
    """Have jax compute on `platform`; None leaves the choice to it.

    Raises:
      ConfigError: for an unknown platform.
      UserError: if jax does not find it on this machine.
    """
    if platform is None:
        return
    jax_platforms = choose("--config.platform", platform, _PLATFORMS)

    import jax

    jax.config.update("jax_platforms", jax_platforms)
    found = jax.default_backend()
    if found != platform:
        available = " or ".join(sorted({found, "cpu"}))
        raise UserError(
            f"--config.platform={platform}: jax finds none on this machine; choose "
            f"{available}, or install jax with support for it"
        )


def prepare_process() -> None:
    """Keep compiled programs for the next start, and memory for the next step."""
    from dwsep_jax import environment

    environment.use_compilation_cache()
    environment.keep_freed_memory()


def _parse(
    values: flags.FlagValues, argv: list[str], known_only: bool = False
) -> list[str]:
    """Parse the flags, wherever they stand, and return what is left."""
    try:
        return values(argv, known_only=known_only)
    except ValueError as error:  # absl's, of --noflag=value alone.
        raise ConfigError(f"{error}; leave =... out") from None


def _list_configs() -> str:
    paths = sorted(os.path.relpath(path) for path in CONFIGS.glob("[!_]*.py"))
    return f"; there are {', '.join(paths)}" if paths else ""


def _find_line(error: Exception, path: str) -> str:
    """Return ` (line N)` of the config file, where the traceback passes through it."""
    path = os.path.abspath(path)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if os.path.abspath(f.filename) == path]
    return f" (line {lines[-1]})" if lines else ""


def _describe_error(error: Exception) -> str:
    """Return type and first line of an error that nobody foresaw."""
    message = str(error).strip()
    text = type(error).__name__ + (f": {message.splitlines()[0]}" if message else "")
    # Orbax and XLA have errors of their own for what the system reports.
    is_os_error = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)
    if is_os_error or os.strerror(ENOSPC) in message or os.strerror(EDQUOT) in message:
        text += "; free some space and give the same command again"
    elif is_out_of_memory(error):
        text += (
            "; out of memory: take a smaller --config.batch_size, "
            "--config.eval_batch_size or network, and another --workdir"
        )
    return f"{text} (--debug shows the traceback)"


def _fail(text: str, exit_code: int, values: flags.FlagValues) -> int:
    if values["debug"].value:
        traceback.print_exc()
    print(" ".join(text.split()), file=sys.stderr)
    return exit_code
