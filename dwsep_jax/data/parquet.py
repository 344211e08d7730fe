"""Parquet files of images and labels, as Hugging Face's datasets have them."""

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from dwsep_jax.data import cache, folder
from dwsep_jax.data.read import (
    Decoded,
    Split,
    index_labels,
    make_ids,
    without_controls,
)
from dwsep_jax.errors import DataError

_COLUMNS = (
    "a column of images ({bytes} or binary, PNG, JPEG or WebP) and one of labels "
    "(label, or the first of integers or texts)"
)


class _Stored(io.BytesIO):
    """The bytes of a picture, and where they are."""

    def __init__(self, content: bytes, place: str):
        super().__init__(content)
        self._place = place

    def __str__(self):
        return self._place


def find(directory: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Return the Parquet files of each split: train-*.parquet, or train/*.parquet.

    They may be in a folder of the directory, as in `plain_text/train-*.parquet`.
    """
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(directory.rglob("*.parquet")):
        names = (path.name, path.parent.name)
        for split, short in folder.SHORT_NAMES.items():
            if any(name.startswith((split, short)) for name in names):
                found.setdefault(split, []).append(path)
                break
    return found if "train" in found else {}


def load(
    directory: pathlib.Path,
    files: dict[str, list[pathlib.Path]],
    image_size: int | None,
) -> Decoded:
    """Return class names and splits of Parquet files, from the cache if it is fresh.

    Raises:
      DataError: if a file or a picture cannot be read, or has no images and labels.
    """

    def describe():
        facts = [
            (split, str(path), path.stat().st_size, path.stat().st_mtime_ns)
            for split, paths in files.items()
            for path in paths
        ]
        return [hashlib.sha256(repr(facts).encode()).hexdigest()]

    def decode():
        tables = {split: _read(paths) for split, paths in files.items()}
        labels, names = {s: table[1] for s, table in tables.items()}, tables["train"][2]
        if not names:
            names, labels = index_labels(labels)
        size = image_size and (image_size, image_size)
        images = folder.decode([p for t in tables.values() for p in t[0]], size)
        splits = {}
        for split, some in labels.items():
            if not (some.min() >= 0 and some.max() < len(names)):
                raise DataError(
                    f"{split} has labels that none of {len(names)} names is"
                )
            ids = make_ids(split, len(some))
            splits[split] = Split(images[: len(some)], some.astype(np.int32), ids)
            images = images[len(some) :]
        return names, splits

    variant = f"-parquet-{image_size}" if image_size else "-parquet"
    return cache.cached(directory, variant, describe, decode)


def _read(paths):
    """Return pictures, labels and stored class names of the files of a split."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(f"{error}; pip install 'dwsep_jax[parquet]'") from error
    pictures, labels, names = [], [], ()
    for path in paths:
        table = parquet.read_table(path)
        image_column, label_column = _find_columns(table.schema, path)
        names = _find_names(table.schema, label_column) or names
        for i, value in enumerate(table[image_column].to_pylist()):
            content = value["bytes"] if isinstance(value, dict) else value
            pictures.append(_Stored(content or b"", f"{path.name}, row {i}"))
        some = table[label_column].to_pylist()
        if None in some:
            raise DataError(f"{path.name}, row {some.index(None)} has no label")
        labels += some
    if not labels:
        raise DataError(f"{', '.join(path.name for path in paths)} has no rows")
    return pictures, np.array(labels), names


def _find_columns(schema: Any, path: pathlib.Path) -> tuple[str, str]:
    from pyarrow import types

    structs, binaries, labels = [], [], []
    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            structs.append(field.name)
        elif types.is_binary(field.type) or types.is_large_binary(field.type):
            binaries.append(field.name)
        elif types.is_integer(field.type) or types.is_string(field.type):
            labels.append(field.name)
    images = structs + binaries
    if not images or not labels:
        raise DataError(
            f"{path.name} has {', '.join(schema.names)}, but not {_COLUMNS}"
        )
    return images[0], "label" if "label" in labels else labels[0]


def _find_names(schema, column):
    """Return the names of the classes that Hugging Face writes beside the columns."""
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features", {})
    names = features.get(column, {}).get("names", [])
    return tuple(without_controls(name) for name in names)
