"""Parquet files of images and labels, as Hugging Face's datasets have them."""

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from dwsep_jax.data import cache, folder
from dwsep_jax.data.read import Decoded, Split, index_labels, make_ids, without_controls
from dwsep_jax.errors import DataError

# Of each split.
Files = dict[str, list[pathlib.Path]]


class _Stored(io.BytesIO):
    """The bytes of a picture, and where they are."""

    def __init__(self, content: bytes, place: str):
        super().__init__(content)
        self._place = place

    def __str__(self):
        return self._place


def find(directory: pathlib.Path) -> Files:
    """Return the Parquet files of each split: train-*.parquet, or train/*.parquet.

    They may be in a folder of the directory, as in `plain_text/train-*.parquet`.

    Raises:
      DataError: if a split is in several folders, or files are there, but no `train`.
    """
    found: Files = {}
    paths = sorted(directory.rglob("*.parquet"))
    for path in paths:
        # The directory's own name says nothing, as in `training/test.parquet`.
        place = path.parent.name if path.parent != directory else ""
        name = place if place in {"val", *folder.SHORT_NAMES} else path.name
        for split, short in folder.SHORT_NAMES.items():
            if name.startswith(short):
                found.setdefault(split, []).append(path)
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


def load(directory: pathlib.Path, files: Files, image_size: int | None) -> Decoded:
    """Return class names and splits of Parquet files, from the cache if it is fresh.

    Raises:
      DataError: if a file or a picture cannot be read, or has no images and labels.
    """
    facts = [
        (split, str(path), *cache.state_of(path))
        for split, paths in files.items()
        for path in paths
    ]
    source = hashlib.sha256(repr(facts).encode()).hexdigest()

    def decode():
        splits, stored = {}, set()
        for split, paths in files.items():
            pictures, labels, names = _read(paths)
            splits[split] = Split(pictures, labels, make_ids(split, len(labels)))
            stored |= names
        if len(stored) > 1:
            raise DataError("its files store other classes, or in another order")
        if stored:
            (names,) = stored
            for split, some in splits.items():
                if not np.isin(some.labels, range(len(names))).all():
                    raise DataError(
                        f"{split} has labels that none of {len(names)} names is"
                    )
                splits[split] = some._replace(labels=some.labels.astype(np.int32))
        else:
            names, splits = index_labels(splits)
        return names, folder.decode_splits(splits, image_size)

    return cache.cached(directory, ["parquet", image_size], [source], decode)


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

    kinds = {}
    for field in schema:
        is_category = types.is_dictionary(field.type)  # Of pandas.
        kinds[field.name] = field.type.value_type if is_category else field.type

    def find(*tests):
        return [n for n, kind in kinds.items() if any(test(kind) for test in tests)]

    def has_bytes(kind):
        return types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    images = find(has_bytes) + find(types.is_binary, types.is_large_binary)
    labels = find(types.is_integer, types.is_string, types.is_large_string)
    if not images or not labels:
        raise DataError(
            f"{path.name} has {', '.join(kinds)}, but not a column of images "
            "({bytes} or binary, PNG, JPEG or WebP) and one of labels (label, or the "
            "first of integers or texts)"
        )
    if "label" in kinds and "label" not in labels:  # Another is not meant.
        kind = schema.field("label").type
        raise DataError(f"{path.name} has a label of {kind}, not of integers or texts")
    return images[0], "label" if "label" in labels else labels[0]


def _find_names(schema, column):
    """Return the names of the classes that Hugging Face writes beside the columns."""
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features", {})
    names = features.get(column, {}).get("names", [])
    return tuple(without_controls(name) for name in names)
