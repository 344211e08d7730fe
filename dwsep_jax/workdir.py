"""The directory of a run, a comparison or a sweep, and the files in it.

Files are replaced whole, so none is left half-written, and a damaged one is one clear
line. Without jax.
"""

import contextlib
import copy
import hashlib
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax.config import STEADY_SCHEDULES, from_dict, validate
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.fields import FIELDS, MAY_CHANGE, RUN, SECTIONS, fields_of, format_value
from dwsep_jax.lock import locked
from dwsep_jax.schema import damaged, parse

Row = dict[str, float]


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a file in one step: a reader sees the old content or the new."""
    path = pathlib.Path(path)
    # Each process writes to a name of its own before it renames.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write a JSON file with a checksum; `ValueError` for NaN or infinity."""
    content = content | {"sha256": _checksum(content)}
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(path, text + "\n")


def read_json(directory: str | os.PathLike, name: str) -> dict[str, Any] | None:
    """Return `<name>.json` of a workdir, checked; None where there is no such file.

    A file without a checksum is of an earlier version. The `requested` and `resolved`
    of a config.json are valid configs of today, whatever version wrote it.

    Raises:
      UserError: if it is damaged.
    """
    path = pathlib.Path(directory) / f"{name}.json"
    if (found := _read_bytes(path)) is None:
        return None
    content = parse(found, path)
    if content.pop("sha256", None) not in (None, _checksum(content)):
        raise damaged(path, "it is not as it was written: its checksum differs")
    if content.get("schema") != 1:
        raise damaged(path, f"its schema is {content.get('schema')}, not 1")
    return _check_config(content, path) if name == "config" else content


def _read_bytes(path):
    """Return what a file holds, or None where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise damaged(path, error.strerror) from error


def _check_config(content: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Return what config.json holds, with configs; raise `UserError` if damaged."""
    content.setdefault("kind", RUN)
    try:
        for part in ("requested", "resolved"):
            content[part] = from_dict(content[part])
    except ConfigError as error:
        raise damaged(path, str(error)) from error
    for name in FIELDS:
        requested, resolved = content["requested"][name], content["resolved"][name]
        if requested not in (None, resolved):
            values = f"{format_value(resolved)}, not {format_value(requested)}"
            raise damaged(path, f"{name} is resolved as {values}, as requested")
    return content


def _checksum(content):
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_intact(directory: str | os.PathLike, name: str) -> dict[str, Any] | None:
    """Return what `read_json` returns, or None where the file is damaged."""
    with contextlib.suppress(UserError):
        return read_json(directory, name)
    return None


def open_workdir(
    workdir: str | os.PathLike,
    requested: ConfigDict,
    resolve: Callable[[ConfigDict], ConfigDict],
    kind: str = RUN,
) -> ConfigDict:
    """Create a workdir, or continue in it, and return the resolved config.

    The first start resolves the config and writes config.json; a later one reuses those
    values, except for fields that may change, which are as requested now. A run whose
    schedule does not depend on its length may also get longer. Where the length or the
    fields of a comparison or a sweep have changed, config.json is written again.

    Args:
      workdir: the directory of a run, a comparison or a sweep.
      requested: the config, with fields unset.
      resolve: returns the config with these fields set.
      kind: `RUN`, `COMPARISON` or `SWEEP`.

    Raises:
      ConfigError: if the config is invalid, or the workdir belongs to another one.
      UserError: if the workdir cannot be written, is damaged or holds other files.
    """
    validate(requested)
    directory = pathlib.Path(workdir)
    _check_name(directory)
    with _usable(workdir):
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / "manifest.json").exists():
            raise UserError(
                f"--workdir={workdir}: holds an export, which cannot be continued; "
                "name the run's own, or give its weights to --config.init_from"
            )
        if (directory / "config.json").exists():
            stored, resolved = _continue(workdir, requested, kind, MAY_CHANGE)
            of_this_kind = MAY_CHANGE & fields_of(kind) - fields_of(RUN)
            may_change = of_this_kind | {"num_epochs"}
            if any(stored[name] != requested[name] for name in may_change):
                _write_config(directory, requested, resolved, kind)
            return resolved
        _refuse_other_files(directory)
    try:
        resolved = resolve(copy.deepcopy(requested))
    except UserError:
        with contextlib.suppress(OSError):  # It may hold files of others.
            directory.rmdir()
        raise
    with _usable(workdir):
        _write_config(directory, requested, resolved, kind)
    return from_dict(resolved.to_dict())


def identity(config: ConfigDict, kind: str) -> dict[str, Any]:
    """Return the fields that a workdir of this kind must keep, sorted by name.

    The names are without the section: `variants`, not `compare.variants`.
    """
    names = fields_of(kind) - MAY_CHANGE
    return dict(sorted((name.rpartition(".")[2], config[name]) for name in names))


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
    prefix = SECTIONS[kind]
    pieces = [stem if prefix in ("", stem) else f"{prefix}-{stem}"]
    pieces += ["@", argument] if colon else []
    unchanged = identity(base, kind)
    for name, value in identity(config, kind).items():
        if value != unchanged[name]:
            pieces += [f"-{name}=", format_value(value).replace(",", "_")]
    # A name is unambiguous without "=" and "@" in the file's name, the argument and the
    # values. Any other name, and a long one, gets a hash.
    text = "".join(pieces)
    is_plain = all(re.fullmatch(r"[\w.+-]*", piece, re.ASCII) for piece in pieces[::2])
    if not is_plain or len(text) > 120:
        digest = hashlib.sha256(repr(pieces).encode()).hexdigest()[:10]
        text = re.sub(r"[^\w.=@+-]", "_", text, flags=re.ASCII)[:100] + f"-{digest}"
    return os.path.join("runs", text)


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike) -> Iterator[None]:
    """Hold a workdir exclusively; raise `UserError` if another process holds it."""
    try:
        with locked(workdir, wait=False):
            yield
    except BlockingIOError:
        raise UserError(
            f"another process is at work in {workdir}; wait for it, or choose another "
            "--workdir"
        ) from None


def load_config(
    workdir: str | os.PathLike, requested: ConfigDict | None = None
) -> ConfigDict:
    """Return the resolved config of the run in `workdir`.

    Args:
      workdir: where `open_workdir` wrote config.json.
      requested: a config that must be the run's, except for fields that may change and
        the platform, which then are as requested.

    Raises:
      ConfigError: if the run is another one than `requested`.
      UserError: if there is no config.json, or it is damaged.
    """
    if requested is None:
        return _read_config(workdir, RUN)[1]
    # A run may be read on another platform, but not continued.
    return _continue(workdir, requested, RUN, MAY_CHANGE | {"platform"})[1]


def load_requested(workdir: str | os.PathLike, kind: str = RUN) -> ConfigDict:
    """Return the config that was started in `workdir`, before resolution."""
    return _read_config(workdir, kind)[0]


def _write_config(directory, requested, resolved, kind):
    content = {"schema": 1, "requested": requested.to_dict()}
    content["resolved"] = resolved.to_dict()
    if kind != RUN:
        content["kind"] = kind
    write_json(directory / "config.json", content)


def _continue(
    workdir: str | os.PathLike, requested: ConfigDict, kind: str, free: set[str]
) -> tuple[ConfigDict, ConfigDict]:
    """Return the stored and the resolved config, with the free fields as requested."""
    stored, resolved = _read_config(workdir, kind)
    kept = fields_of(kind) - free
    if (
        kind == RUN
        and stored.schedule in STEADY_SCHEDULES
        and stored.num_epochs < requested.num_epochs
    ):
        kept -= {"num_epochs"}
    if differences := [
        f"{name}={format_value(stored[name])} there, "
        f"{format_value(requested[name])} here"
        for name in sorted(kept)
        if stored[name] != requested[name]
    ]:
        raise ConfigError(
            f"--workdir={workdir} belongs to another {kind}: {'; '.join(differences)}; "
            "choose another --workdir, or delete this one"
        )
    resolved.update_from_flattened_dict(
        {name: requested[name] for name in FIELDS.keys() - kept}
    )
    return stored, resolved


def _read_config(workdir: str | os.PathLike, kind: str) -> list[ConfigDict]:
    """Return the requested and the resolved config of config.json."""
    content = read_json(workdir, "config")
    if content is None:
        raise UserError(
            f"--workdir={workdir}: no run was started there (no config.json); give "
            "--config=FILE, or another --workdir"
        )
    if content["kind"] != kind:
        remedy = "choose another --workdir, or --mode=train"
        if mode := SECTIONS[content["kind"]]:
            remedy = f"name one of the runs below it, or give --mode={mode}"
        raise ConfigError(
            f"--workdir={workdir}: holds a {content['kind']}, and a {kind} is asked "
            f"for; {remedy}"
        )
    return [content["requested"], content["resolved"]]


def _check_name(directory: pathlib.Path) -> None:
    """Refuse a name below which orbax would not find a checkpoint again."""
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"--workdir={str(directory)!r}: is not text in this locale; set "
            "PYTHONUTF8=1, or choose another --workdir"
        ) from None
    if re.search(r"[\[*?\\]", str(directory.absolute())):
        raise ConfigError(
            f"--workdir={directory}: checkpoints could not be read below a name with "
            "[, *, ? or \\; choose another --workdir"
        )


def _refuse_other_files(directory: pathlib.Path) -> None:
    """Raise `UserError` where a directory holds what a first start does not expect."""
    expected = r"(?s)config\.json\..*\.tmp|\..*|.*\.(log|out|err|txt)"
    others = [n for n in sorted(os.listdir(directory)) if not re.fullmatch(expected, n)]
    if others:
        more = ", ..." if len(others) > 3 else ""
        raise UserError(
            f"--workdir={directory}: holds {', '.join(others[:3])}{more} but no "
            "config.json, so it is not a run's; choose another --workdir"
        )


@contextlib.contextmanager
def _usable(workdir):
    """Turn an error of the file system into one line."""
    try:
        yield
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "not a directory" if is_file else error.strerror or str(error)
        raise UserError(
            f"--workdir={workdir}: cannot be used: {reason}; choose another --workdir"
        ) from error


def write_rows(workdir: str | os.PathLike, rows: list[Row]) -> None:
    """Make metrics.jsonl hold exactly these rows.

    Raises:
      UserError: if it has rows already, and there are none to continue from.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    old = _read_bytes(path)
    if old and not rows:
        raise UserError(
            f"{workdir} has results in metrics.jsonl but no checkpoint to continue "
            "from; choose another --workdir, or delete this one to start over"
        )
    new = "".join(_json_line(row) for row in rows).encode()
    if old != new:
        write_atomically(path, new)


def append_row(workdir: str | os.PathLike, row: Row) -> None:
    """Add a row to metrics.jsonl."""
    with (pathlib.Path(workdir) / "metrics.jsonl").open("a") as file:
        file.write(_json_line(row))


def score(row: Row) -> float:
    """Return the validation accuracy of the weights that will be evaluated."""
    return row.get("ema_val_accuracy", row["val_accuracy"])


def evaluated_row(rows: list[Row], early_stopping: int) -> Row:
    """Return the row of the epoch that is evaluated at the end of a run."""
    return max(rows, key=score) if early_stopping else rows[-1]


def is_settled(rows: list[Row], patience: int, min_change: float) -> bool:
    """Return whether validation accuracy has not improved for `patience` epochs.

    An improvement exceeds the best accuracy before it by more than `min_change`, a
    share of 1. A patience of 0 waits for ever.
    """
    best, waited = -1.0, 0
    for row in rows:
        waited += 1
        if score(row) > best + min_change:
            best, waited = score(row), 0
    return 0 < patience <= waited


def seconds_left(rows: list[Row], num_before: int, num_epochs: int) -> float:
    """Return the seconds that the remaining epochs take at the pace of these rows.

    Args:
      rows: of all epochs so far.
      num_before: how many of them an earlier process trained, at its own pace.
      num_epochs: of the whole run.
    """
    before = rows[num_before - 1]["elapsed_seconds"] if num_before else 0.0
    pace = (rows[-1]["elapsed_seconds"] - before) / (len(rows) - num_before)
    return pace * (num_epochs - len(rows))


def _json_line(row):
    content = {"schema": 1, **row}
    content["crc32"] = _crc32(content)
    return json.dumps(content, allow_nan=False) + "\n"


def _crc32(content):
    return zlib.crc32(json.dumps(content).encode())


def read_rows(workdir: str | os.PathLike) -> list[Row]:
    """Return the rows of metrics.jsonl; none where there is no such file.

    Raises:
      UserError: if a row is damaged, or one before the last is missing.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = (_read_bytes(path) or b"").splitlines()
    rows = [parse(line, path, number) for number, line in enumerate(lines, start=1)]
    for number, row in enumerate(rows, start=1):
        if row.pop("crc32", None) not in (None, _crc32(row)):
            raise damaged(path, f"the checksum of row {number} differs")
        if row["epoch"] > number:
            raise damaged(path, f"the row of epoch {number} is missing")
    return rows
