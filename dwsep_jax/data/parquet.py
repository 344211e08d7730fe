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

    Raises:
      DataError: if a split is in several folders, or files are there, but no `train`.
    """
    found: dict[str, list[pathlib.Path]] = {}
    paths, splits = sorted(directory.rglob("*.parquet")), folder.SHORT_NAMES.items()
    for path in paths:
        # The directory's own name says nothing, as in `training/test.parquet`.
        place = path.parent.name if path.parent != directory else ""
        name = place if any(place in names for names in splits) else path.name
        for split, short in splits:
            if name.startswith((split, short)):
                found.setdefault(split, []).append(path)
                break
    if "train" in found:
        for split, some in found.items():
            places = sorted({path.parent.relative_to(directory) for path in some})
            if len(places) > 1:
                names = ", ".join(map(str, places[:3]))
                raise DataError(
                    f"{split} is in {len(places)} folders ({names}, ...); name one"
                )
        return found
    if paths and not (directory / "train").is_dir():
        raise DataError(
            f"it has {paths[0].name}, but no train-*.parquet or train/*.parquet; "
            "rename its files"
        )
    return {}


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
        labels = {split: table[1] for split, table in tables.items()}
        stored = set().union(*(table[2] for table in tables.values()))
        if len(stored) > 1:
            raise DataError("its files store other classes, or in another order")
        names = stored.pop() if stored else ()
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
    """Return pictures, labels and the stored tuples of class names of a split."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(f"{error}; pip install 'dwsep_jax[parquet]'") from error
    pictures, labels, names = [], [], set()
    for path in paths:
        table = parquet.read_table(path)
        image_column, label_column = _find_columns(table.schema, path)
        names |= {_find_names(table.schema, label_column)} - {()}
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

    is_label = (types.is_integer, types.is_string, types.is_large_string)
    structs, binaries, labels = [], [], []
    for field in schema:
        kind = field.type
        if types.is_dictionary(kind):  # Categories of pandas.
            kind = kind.value_type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            structs.append(field.name)
        elif types.is_binary(kind) or types.is_large_binary(kind):
            binaries.append(field.name)
        elif any(is_kind(kind) for is_kind in is_label):
            labels.append(field.name)
    images = structs + binaries
    if not images or not labels:
        raise DataError(
            f"{path.name} has {', '.join(schema.names)}, but not {_COLUMNS}"
        )
    if "label" in schema.names and "label" not in labels:  # Another is not meant.
        kind = schema.field("label").type
        raise DataError(f"{path.name} has a label of {kind}, not of integers or texts")
    return images[0], "label" if "label" in labels else labels[0]


def _find_names(schema, column):
    """Return the names of the classes that Hugging Face writes beside the columns."""
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features", {})
    names = features.get(column, {}).get("names", [])
    return tuple(without_controls(name) for name in names)
