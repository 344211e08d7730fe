"""One's own data: pictures in folders, an .npz, Parquet, CIFAR-10's binary files."""

import os
import pathlib
import re
import zipfile
from collections.abc import Callable

import numpy as np

from dwsep_jax.data import folder, parquet, read
from dwsep_jax.data.read import Decoded, Split, make_ids, without_controls
from dwsep_jax.errors import ConfigError, DataError

# Names of TFDS: `name` or `name/config`.
TFDS_NAME = re.compile(r"\w+(/[\w.-]+)?")

# The official binary files of CIFAR-10.
FILES = {
    "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["test_batch.bin"],
}
_RECORD_BYTES = 1 + 3 * 32 * 32

_NPZ = (
    "; an .npz has x_train, y_train, x_test and y_test, as np.savez writes them: "
    "images uint8 (N, H, W) or (N, H, W, 1 or 3), labels (N,) of numbers or names"
)


def is_path(name: str, data_dir: pathlib.Path) -> bool:
    """Return whether `config.dataset` is a path, and not a name of TFDS.

    A path has a slash, begins with `.` or `~`, or ends in .npz. `a/b` may be both: it
    is TFDS's where that has prepared it, else a path where there is one.
    """
    if name.endswith(".npz") or name.startswith((".", "~")):
        return True
    if "/" not in name or not TFDS_NAME.fullmatch(name):
        return "/" in name
    return os.path.exists(name) and not read.find_version_dir(data_dir, name)


def load(name: str, image_size: int | None) -> Decoded:
    """Return class names and splits: `train`, and `validation` and `test` if there.

    Pictures of a folder are decoded at `image_size`; arrays keep their own size.

    Raises:
      ConfigError: if there is no such folder or file.
      DataError: if it is damaged, or not laid out as it must be.
    """
    path = pathlib.Path(os.path.expanduser(name))
    is_npz = path.suffix == ".npz" and path.is_file()
    if not is_npz and not path.is_dir():
        problem = "is no folder and no .npz" if path.exists() else "is not there"
        raise ConfigError(
            f"dataset={name}: {path.absolute()} {problem}; name a folder with "
            "train/<class>/*.png, an .npz, or a dataset of TFDS"
        )
    try:
        if is_npz:
            names, splits = _read_npz(path)
        elif (path / "data_batch_1").exists():
            raise DataError(
                "its files are pickles, which may run any code; take the binary "
                "version, cifar-10-batches-bin, or --config.dataset=cifar10"
            )
        elif (path / FILES["train"][0]).exists():
            names, splits = read_binary(lambda file: (path / file).read_bytes())
        elif files := parquet.find(path):
            names, splits = parquet.load(path, files, image_size)
        else:
            names, splits = folder.load(path, image_size)
        if len(names) < 2:
            raise DataError(f"all images are of class {names[0]}; add another class")
    except Exception as error:
        reason = read.one_line(error) + (_NPZ if is_npz else "")
        raise DataError(f"dataset={name}: {without_controls(reason)}") from error
    return names, splits


def _read_npz(path):
    if not zipfile.is_zipfile(path):
        raise DataError("it is no .npz, or a part of one")
    splits = {}
    with np.load(path) as arrays:  # Without pickles.
        for split, short in folder.SHORT_NAMES.items():
            if pair := _find_arrays(arrays, short):
                splits[split] = Split(*pair, make_ids(split, len(pair[0])))
        if "train" not in splits:
            raise DataError(f"it has {', '.join(arrays)}, but no x_train")
    shape = splits["train"].images.shape[1:]
    for split, (images, *_) in splits.items():
        if images.shape[1:] != shape:
            raise DataError(f"{split} has images of {images.shape[1:]}, train {shape}")
    return read.index_labels(splits)


def _find_arrays(arrays, short):
    """Return images (N, H, W, C) and labels (N,) of a split; None if it has none."""
    keys = (f"x_{short}", f"y_{short}")  # Keras
    if not any(key in arrays for key in keys):
        keys = (f"{short}_images", f"{short}_labels")  # MedMNIST
    if not any(key in arrays for key in keys):
        return None
    images, labels = (arrays[key] for key in keys)
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    is_uint8 = images.dtype == np.uint8 and images.size
    if not is_uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"{keys[0]} is {images.dtype} {shape}")
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),) or labels.dtype.kind not in "biuU":
        raise DataError(f"{keys[1]} is {labels.dtype} {labels.shape}")
    return images, labels


def read_binary(read_file: Callable[[str], bytes]) -> Decoded:
    """Return class names and splits of the official binary files of CIFAR-10.

    Args:
      read_file: returns the content of the file of a name.

    Raises:
      DataError: if they are damaged.
    """
    names = read_file("batches.meta.txt").decode().split()
    splits = {}
    for split, files in FILES.items():
        content = b"".join(map(read_file, files))
        if len(content) % _RECORD_BYTES or not content:
            raise DataError(f"{' or '.join(files)} is cut off; unpack them again")
        records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES)
        labels = records[:, 0].astype(np.int32)
        if labels.max() >= len(names):
            raise DataError(f"{split} has a label {labels.max()}; unpack it again")
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        ids = make_ids(split, len(labels))
        splits[split] = Split(np.ascontiguousarray(images), labels, ids)
    return tuple(names), splits
