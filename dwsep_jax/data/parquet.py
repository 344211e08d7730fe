"""Parquet files of images and labels, as Hugging Face's datasets have them."""

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from dwsep_jax.data import cache, folder
from dwsep_jax.data.read import Decoded, Split, make_ids, without_controls
from dwsep_jax.errors import DataError

_COLUMNS = (
    "a column of images ({bytes} or binary, PNG, JPEG or WebP) and one of labels "
    "(label, or the first of integers)"
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
        names = tables["train"][2]
        size = image_size and (image_size, image_size)
        images = folder.decode([p for t in tables.values() for p in t[0]], size)
        splits = {}
        for split, (_, labels, _) in tables.items():
            if others := {*labels}.difference(range(len(names))):
                raise DataError(f"{split} has the label {min(others)}, train has not")
            ids = make_ids(split, len(labels))
            splits[split] = Split(images[: len(labels)], labels, ids)
            images = images[len(labels) :]
        return names, splits

    variant = f"-parquet-{image_size}" if image_size else "-parquet"
    return cache.cached(directory, variant, describe, decode)


def _read(paths):
    """Return pictures, labels int32 and class names of the files of a split."""
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
        labels += table[label_column].to_pylist()
    labels = np.array(labels, np.int32)
    return pictures, labels, names or tuple(map(str, range(labels.max() + 1)))


def _find_columns(schema: Any, path: pathlib.Path) -> tuple[str, str]:
    from pyarrow import types

    def is_image(kind):
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return types.is_binary(kind) or types.is_large_binary(kind)

    images = [field.name for field in schema if is_image(field.type)]
    labels = [field.name for field in schema if types.is_integer(field.type)]
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
