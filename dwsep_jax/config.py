"""The place of a configuration in a workdir: written once, and gone on with."""

import contextlib
import copy
import fnmatch
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable

from ml_collections import ConfigDict

from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.fields import FIELDS, format_value, from_dict, to_dict, validate
from dwsep_jax.files import write_atomically

_SCHEMA = 1

# They change no result, but for the last bits of an evaluation's sums.
CHANGE_NOTHING = frozenset({"data_dir", "progress", "eval_batch_size", "tensorboard"})
# What a workdir may hold.
RUN, COMPARISON, SWEEP = "run", "comparison", "sweep"
# These may change: a comparison has more seeds then, or another answer, a sweep more
# trials and seeds; trained in other programs, both have the same numbers but for the
# last digits.
_MAY_CHANGE = {
    RUN: frozenset(),
    COMPARISON: frozenset({"num_seeds", "margin", "members_at_once"}),
    SWEEP: frozenset({"num_trials", "num_seeds", "storage", "members_at_once"}),
}
_OF_BOTH = frozenset({"num_seeds", "members_at_once"})
_OF_A_COMPARISON = _OF_BOTH | {"variants", "rate_factors", "margin"}
_OF_A_SWEEP = _OF_BOTH | {
    *("space", "sampler", "pruner", "num_trials", "storage", "study")
}
# The fields that are free to differ when a workdir goes on, and no part of its name: a
# single run reads no field of a comparison or a sweep, and neither the other's.
EXEMPT = {
    RUN: CHANGE_NOTHING | _OF_A_COMPARISON | _OF_A_SWEEP,
    COMPARISON: CHANGE_NOTHING
    | _MAY_CHANGE[COMPARISON]
    | (_OF_A_SWEEP - _OF_A_COMPARISON),
    SWEEP: CHANGE_NOTHING | _MAY_CHANGE[SWEEP] | (_OF_A_COMPARISON - _OF_A_SWEEP),
}
# What the names of their default workdirs begin with.
_PREFIXES = {RUN: "", COMPARISON: "compare", SWEEP: "sweep"}
# What to do where a workdir holds another of the three.
_REMEDIES = {
    RUN: "choose another --workdir, or --mode=train",
    COMPARISON: "name one of the runs below it, or give --mode=compare",
    SWEEP: "name one of the runs below it, or give --mode=sweep",
}


def default_workdir(
    config_path: str, config: ConfigDict, base: ConfigDict, kind: str = RUN
) -> str:
    """Return `runs/<config name>[@<arg>][-<field>=<value>...]`.

    A comparison's name begins with `compare`, that of a sweep with `sweep`.

    Args:
      config_path: the config file as given, with its `:arg` if it has one.
      config: the config of the run.
      base: what the file alone says; a field that keeps that value is not named.
      kind: `RUN`, `COMPARISON` or `SWEEP`.
    """
    path, colon, argument = config_path.partition(":")
    stem = pathlib.Path(path).stem
    prefix = _PREFIXES[kind]
    pieces = [stem if prefix in ("", stem) else f"{prefix}-{stem}"]
    pieces += ["@", argument] if colon else []
    for name in sorted(FIELDS.keys() - EXEMPT[kind]):
        if config[name] != base[name]:
            pieces += [f"-{name}=", format_value(config[name]).replace(",", "_")]
    # Without "=" and "@" in the file's name, the argument and the values, one name can
    # be read in one way only. A name that is not so, or is long, carries a hash.
    text = "".join(pieces)
    is_plain = all(re.fullmatch(r"[\w.+-]*", piece, re.ASCII) for piece in pieces[::2])
    if not is_plain or len(text) > 120:
        digest = hashlib.sha256(repr(pieces).encode()).hexdigest()[:10]
        text = re.sub(r"[^\w.=@+-]", "_", text, flags=re.ASCII)[:100] + f"-{digest}"
    return os.path.join("runs", text)


def open_workdir(
    workdir: str | os.PathLike,
    requested: ConfigDict,
    resolve: Callable[[ConfigDict], ConfigDict],
    kind: str = RUN,
) -> ConfigDict:
    """Make the workdir, or go on in it, and return the resolved config.

    The first start resolves the config and writes config.json; a later one reuses what
    was resolved then, with the exempt fields as they are requested now. What may
    change of a comparison or a sweep is stored anew where it has.

    Args:
      workdir: the directory of a run, a comparison or a sweep.
      requested: the config, with fields unset.
      resolve: sets them.
      kind: `RUN`, `COMPARISON` or `SWEEP`.

    Raises:
      ConfigError: if the config is invalid, or the workdir belongs to another one.
      UserError: if the workdir cannot be written, is damaged or holds other files.
    """
    validate(requested)
    path = pathlib.Path(workdir) / "config.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            stored, resolved = _go_on(workdir, requested, kind, EXEMPT[kind])
            if any(stored[name] != requested[name] for name in _MAY_CHANGE[kind]):
                _write(path, requested, resolved, kind)
            return resolved
        _refuse_other_files(path.parent)
    except OSError as error:
        raise _cannot_use(workdir, error) from error
    try:
        resolved = resolve(copy.deepcopy(requested))
    except UserError:
        with contextlib.suppress(OSError):  # Others' files may lie there.
            path.parent.rmdir()
        raise
    try:
        _write(path, requested, resolved, kind)
    except OSError as error:
        raise _cannot_use(workdir, error) from error
    return from_dict(to_dict(resolved))


def load_config(
    workdir: str | os.PathLike, requested: ConfigDict | None = None
) -> ConfigDict:
    """Return the resolved config of a run that was started in `workdir`.

    Args:
      workdir: where `open_workdir` wrote config.json.
      requested: refused where it differs; its exempt fields, and its platform, count.

    Raises:
      ConfigError: if the run was another one than `requested`.
      UserError: if there is no config.json, or it is damaged.
    """
    if requested is None:
        return _read(workdir, RUN)[1]
    # Another platform may read a run that it may not continue.
    return _go_on(workdir, requested, RUN, EXEMPT[RUN] | {"platform"})[1]


def load_requested(workdir: str | os.PathLike, kind: str = RUN) -> ConfigDict:
    """Return the config that was started in `workdir`, before resolution."""
    return _read(workdir, kind)[0]


def _write(
    path: pathlib.Path, requested: ConfigDict, resolved: ConfigDict, kind: str
) -> None:
    content = {
        "schema": _SCHEMA,
        "requested": to_dict(requested),
        "resolved": to_dict(resolved),
    }
    content |= {} if kind == RUN else {"kind": kind}
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(path, text + "\n")


def _go_on(
    workdir: str | os.PathLike,
    requested: ConfigDict,
    kind: str,
    exempt: frozenset[str],
) -> tuple[ConfigDict, ConfigDict]:
    stored, resolved = _read(workdir, kind)
    if differences := [
        f"{name}={format_value(stored[name])} there, {format_value(value)} here"
        for name, value in requested.items()
        if name not in exempt and value != stored[name]
    ]:
        raise ConfigError(
            f"--workdir={workdir} belongs to another {kind}: {'; '.join(differences)}; "
            "choose another --workdir, or delete this one"
        )
    for name in exempt:
        resolved[name] = requested[name]
    return stored, resolved


def _read(workdir: str | os.PathLike, kind: str) -> tuple[ConfigDict, ConfigDict]:
    """Return the requested and the resolved config of config.json."""
    path = pathlib.Path(workdir) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != _SCHEMA:
            raise ValueError(f"schema {content['schema']} instead of {_SCHEMA}")
        found = content.get("kind", RUN)
        remedy = _REMEDIES[found]
        requested = from_dict(content["requested"])
        resolved = from_dict(content["resolved"])
        validate(requested)
        # What was resolved may have more fields than were asked for.
        validate(ConfigDict({name: resolved[name] for name in FIELDS}))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"--workdir={workdir}: no run was started there (no config.json); give "
            "--config=FILE, or another --workdir"
        ) from None
    except OSError as error:
        raise _cannot_use(workdir, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--workdir={workdir}: config.json is damaged or of another version "
            f"({error}); choose another --workdir, or delete this one"
        ) from error
    if found != kind:
        raise ConfigError(
            f"--workdir={workdir}: holds a {found}, and a {kind} is asked for; {remedy}"
        )
    return requested, resolved


def _refuse_other_files(directory: pathlib.Path) -> None:
    """Raise `UserError` where something lies that a first start does not expect."""
    expected = ("config.json.*.tmp", ".*", "*.log", "*.out", "*.err", "*.txt")
    names = sorted(entry.name for entry in directory.iterdir())
    others = [n for n in names if not any(fnmatch.fnmatch(n, e) for e in expected)]
    if others:
        more = ", ..." if len(others) > 3 else ""
        raise UserError(
            f"--workdir={directory}: holds {', '.join(others[:3])}{more} but no "
            "config.json, so it is no run's; choose another --workdir"
        )


def _cannot_use(workdir: str | os.PathLike, error: OSError) -> UserError:
    is_file = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "not a directory" if is_file else error.strerror or str(error)
    return UserError(
        f"--workdir={workdir}: cannot be used: {reason}; choose another --workdir"
    )
