"""The directory of a run, a comparison or a sweep: every file is written and read here.

Nothing is left half-written, and a damaged file is one clear line. Without jax.
"""

import contextlib
import copy
import fnmatch
import json
import os
import pathlib
from collections.abc import Callable, Set
from typing import Any

from ml_collections import ConfigDict

from dwsep_jax.config import (
    CHANGE_NOTHING,
    COMPARISON,
    FIELDS,
    MAY_CHANGE,
    RUN,
    SWEEP,
    fields_of,
    format_value,
    from_dict,
    set_field,
    to_dict,
    upgrade,
    validate,
)
from dwsep_jax.errors import ConfigError, UserError

Row = dict[str, float]

_SCHEMA = 1
_ROW_KEYS = {"epoch", "learning_rate"} | {
    f"{prefix}_{name}"
    for prefix in ("train", "train_eval", "val")
    for name in ("loss", "accuracy")
}
_EVALUATION_KEYS = {"split", "weights", "epoch", "num_examples", "accuracy"}
_EVALUATION_KEYS |= {"per_class", "confusion_matrix", "calibration"}
# What to do where a workdir holds another of the three.
_REMEDIES = {
    RUN: "choose another --workdir, or --mode=train",
    COMPARISON: "name one of the runs below it, or give --mode=compare",
    SWEEP: "name one of the runs below it, or give --mode=sweep",
}


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Write under another name, then rename: a reader sees the old file or the new."""
    path = pathlib.Path(path)
    # Two processes may write one file, but not under one other name.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


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
            stored, resolved = _go_on(workdir, requested, kind, MAY_CHANGE)
            may_change = MAY_CHANGE & fields_of(kind) - CHANGE_NOTHING
            if any(stored[name] != requested[name] for name in may_change):
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
    return _go_on(workdir, requested, RUN, MAY_CHANGE | {"platform"})[1]


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
    kept = fields_of(kind) - exempt
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
    for name in FIELDS.keys() - kept:
        set_field(resolved, name, requested[name])
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
        requested = from_dict(upgrade(content["requested"]))
        resolved = from_dict(upgrade(content["resolved"]))
        validate(requested)
        validate(resolved)
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


def write_rows(workdir: str | os.PathLike, rows: list[Row]) -> None:
    """Make metrics.jsonl hold just these rows.

    Raises:
      UserError: if it has rows and there are none to go on from.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    old = path.read_text() if path.exists() else None
    if old and not rows:
        raise UserError(
            f"{workdir} has results in metrics.jsonl but no checkpoint to go on from; "
            "choose another --workdir, or delete this one to start over"
        )
    new = "".join(_json_line(row) for row in rows)
    if old != new:
        write_atomically(path, new)


def append_row(workdir: str | os.PathLike, row: Row) -> None:
    """Add a row to metrics.jsonl."""
    with (pathlib.Path(workdir) / "metrics.jsonl").open("a") as file:
        file.write(_json_line(row))


def score(row: Row) -> float:
    """Return the validation accuracy of the weights that are to be evaluated."""
    return row.get("ema_val_accuracy", row["val_accuracy"])


def evaluated_row(rows: list[Row], early_stopping: int) -> Row:
    """Return the row of the epoch that is evaluated at the end of a run."""
    return max(rows, key=score) if early_stopping else rows[-1]


def is_settled(rows: list[Row], patience: int, min_change: float) -> bool:
    """Return whether the last `patience` epochs brought no better validation accuracy.

    Better is what exceeds the best accuracy before by more than `min_change`, a share
    of 1. A patience of 0 waits for ever.
    """
    best, waited = -1.0, 0
    for row in rows:
        if score(row) > best + min_change:
            best, waited = score(row), 0
        else:
            waited += 1
    return 0 < patience <= waited


def seconds_left(rows: list[Row], num_before: int, num_epochs: int) -> float:
    """Return how long the rest of the epochs will take at the pace of these rows.

    Args:
      rows: of all epochs so far.
      num_before: how many of them an earlier process trained, at a pace of its own.
      num_epochs: of the whole run.
    """
    before = rows[num_before - 1]["elapsed_seconds"] if num_before else 0.0
    pace = (rows[-1]["elapsed_seconds"] - before) / (len(rows) - num_before)
    return pace * (num_epochs - len(rows))


def _json_line(row):
    return json.dumps({"schema": 1, **row}, allow_nan=False) + "\n"


def read_rows(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl; none where there is no such file.

    Raises:
      UserError: if a row is damaged.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    remedy = "--mode=train on this workdir writes it again from the checkpoint"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [
        parse(line, _ROW_KEYS, f"{path}, line {number}", remedy)
        for number, line in enumerate(lines, start=1)
    ]


def read_evaluation(path: str | os.PathLike) -> dict[str, Any]:
    """Return an evaluation.json or evaluation-<split>.json; `UserError` if damaged."""
    path = pathlib.Path(path)
    split = path.stem.removeprefix("evaluation").removeprefix("-") or "test"
    remedy = f"write it again with --mode=evaluate --split={split}"
    return parse(path.read_bytes(), _EVALUATION_KEYS, str(path), remedy)


def parse(content: bytes, keys: Set[str], where: str, remedy: str) -> dict[str, Any]:
    """Return a JSON object that has the keys.

    Args:
      content: what was read.
      keys: that the object must have.
      where: the file, or its line, for the message.
      remedy: what the user can do about it.

    Raises:
      UserError: if the content is no JSON, no object, or lacks keys.
    """
    try:
        value = json.loads(content, parse_constant=_refuse)
    except ValueError as error:
        raise UserError(f"{where} is damaged ({error}); {remedy}") from error
    missing = keys - value.keys() if isinstance(value, dict) else keys
    if missing:
        names = ", ".join(sorted(missing))
        raise UserError(f"{where} is damaged (it lacks {names}); {remedy}")
    return value


def _refuse(constant):
    raise ValueError(f"{constant} is no number")
