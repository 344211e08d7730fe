"""Decodes a dataset that TFDS prepared as array_record or tfrecord into arrays."""

import io
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from dwsep_jax.data import pictures
from dwsep_jax.errors import ConfigError, DataError
from dwsep_jax.places import user_home

# A dataset has to fit in the accelerator's memory.
MAX_BYTES = 4 << 30
# What the features of CIFAR-100 are called elsewhere.
_LABELS = {"fine": "label", "coarse": "coarse_label"}
_SPLITS = ("train", "test")
# Pillow's names for pictures of one and of three channels, and for 8 bits at most.
_MODES = {1: "L", 3: "RGB"}
_CONVERTED = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


class Split(NamedTuple):
    """Examples of one split: images uint8 (N, H, W, C), labels int32 (N,), ids (N,)."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def take(self, indices: np.ndarray) -> "Split":
        """Return the examples with these indices."""
        return Split(*(array[indices] for array in self))


# The class names, and the splits `train` and `test`; of one's own data, `validation`
# may be there, and `test` may be missing.
Decoded = tuple[tuple[str, ...], dict[str, Split]]


def find_data_dir(field: str | None) -> pathlib.Path:
    """Return the TFDS directory: `field`, else $TFDS_DATA_DIR, else the default."""
    name = "data_dir" if field else "TFDS_DATA_DIR"
    value = field or os.environ.get("TFDS_DATA_DIR")
    value = value or str(user_home() / "tensorflow_datasets")
    if "://" in value:
        raise ConfigError(f"{name}={value} is not a local directory; copy it to a disk")
    data_dir = pathlib.Path(os.path.expanduser(value)).absolute()
    if data_dir.exists() and not data_dir.is_dir():
        raise ConfigError(f"{name}={value} is a file; choose its directory")
    return data_dir


def find_version_dir(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
    """Return the newest version of a dataset that TFDS prepared here, or None."""
    versions = {
        tuple(map(int, path.name.split("."))): path
        for path in (data_dir / name).glob("*.*.*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
        and (path / "dataset_info.json").is_file()
        and (path / "features.json").is_file()
    }
    return versions[max(versions)] if versions else None


def read(version_dir: pathlib.Path, label: str = "label") -> Decoded:
    """Decode the splits `train` and `test`, each sorted by id.

    Datasets without ids keep the order of TFDS and get ids such as `train_00000`. The
    class is the feature `label`; that of CIFAR-100 may also be called fine or coarse.

    Raises:
      DataError: if the dataset is damaged, or does not consist of labeled images of one
        small size. TFDS itself checks neither shapes nor counts.
    """
    label = _LABELS.get(label, label)
    try:
        info = _open(version_dir, label)
        splits = {split: _read_split(info, split, label) for split in _SPLITS}
        return tuple(map(without_controls, info.features[label].names)), splits
    except ConfigError:
        raise
    except Exception as error:
        raise DataError(
            f"{version_dir} cannot be used ({one_line(error)}): delete it and prepare "
            "it again, or choose a dataset of uint8 images of one size, gray or RGB, "
            f"with `{label}`, `train` and `test`, as {' or '.join(_READERS)}"
        ) from error


def without_controls(text: str) -> str:
    """Return a name without what is not for terminals, and crashes the charts."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", text)


def make_ids(split: str, num_examples: int) -> np.ndarray:
    """Return ids such as `train_00000` of examples that have none of their own."""
    width = max(5, len(str(num_examples - 1)))
    return np.array([f"{split}_{i:0{width}d}" for i in range(num_examples)], np.str_)


def index_labels(splits: dict[str, Split]) -> Decoded:
    """Return the names of the classes of `train`, and the splits with their indices.

    Labels may be numbers, also with gaps, or names; classes are sorted.

    Raises:
      DataError: if another split has a class that `train` has not.
    """
    classes, indexed = np.unique(splits["train"].labels), {}
    for name, split in splits.items():
        if len(others := np.setdiff1d(split.labels, classes)):
            raise DataError(f"{name} has the label {others[0]}, train has not")
        labels = np.searchsorted(classes, split.labels).astype(np.int32)
        indexed[name] = split._replace(labels=labels)
    return tuple(without_controls(str(label)) for label in classes), indexed


def check_size(num_images: int, shape: tuple[int, ...], remedy: str = "") -> None:
    """Raise `DataError` where decoded images are too many."""
    if (size := num_images * math.prod(shape)) > MAX_BYTES:
        raise DataError(
            f"its images take {size / 2**30:.1f} GiB; the limit is {MAX_BYTES >> 30}"
            f"{remedy}"
        )


def one_line(error: BaseException) -> str:
    """Return an error as part of a message: its type and first line, if not our own."""
    if isinstance(error, DataError):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ")


def _open(version_dir, label):
    """Return TFDS's description of a dataset, on which this program can train."""
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(version_dir).info
    features = dict(info.features.items())
    kind = tfds.features.ClassLabel
    labels = sorted(name for name in features if isinstance(features[name], kind))
    if labels and label not in labels:
        raise ConfigError(f"label={label}: choose {' or '.join(labels)}")
    if info.file_format.value not in _READERS:
        raise DataError(f"its format is {info.file_format.value}")
    image = features.get("image")
    if not isinstance(image, tfds.features.Image):
        raise DataError("it has no feature `image`")
    if not labels or not features[label].num_classes:
        raise DataError(f"it has no feature `{label}` with a known number of classes")
    if None in image.shape or image.shape[-1] not in _MODES:
        raise DataError(f"its images have shape {image.shape}")
    if image.np_dtype != np.uint8:
        raise DataError(f"its images are {np.dtype(image.np_dtype).name}")
    if missing := sorted({*_SPLITS} - set(info.splits)):
        raise DataError(f"it has no split {' and '.join(missing)}")
    check_size(sum(info.splits[s].num_examples for s in _SPLITS), image.shape)
    return info


def _read_split(info, split: str, label: str) -> Split:
    """Decode one split and check every example."""
    # TFDS's own copy of the protocol buffer that TensorFlow calls tf.train.Example.
    from tensorflow_datasets.proto import tf_example_pb2

    files, features = info.splits[split], info.features
    read_file = _READERS[info.file_format.value]
    records = [r for path in files.filepaths for r in read_file(os.fspath(path))]
    if len(records) != files.num_examples:
        raise DataError(
            f"{split} has {len(records)} examples, not {files.num_examples} as "
            "dataset_info.json says"
        )
    images = np.empty((len(records), *features["image"].shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    ids = []
    for i, record in enumerate(records):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        (labels[i],) = feature[label].int64_list.value
        if not 0 <= labels[i] < (num_classes := features[label].num_classes):
            raise DataError(
                f"{split} example {i} has label {labels[i]}, of {num_classes} classes"
            )
        (encoded,) = feature["image"].bytes_list.value
        images[i] = _decode(encoded, images.shape[1:], f"{split} example {i}")
        ids += [id_.decode() for id_ in feature["id"].bytes_list.value]
    has_ids = len(ids) == len(records)
    ids = np.array(ids, np.str_) if has_ids else make_ids(split, len(records))
    return Split(images, labels, ids).take(np.argsort(ids, kind="stable"))


def _decode(encoded: bytes, shape: tuple[int, int, int], name: str) -> np.ndarray:
    """Return a picture, converted to gray or RGB; what is transparent shows white."""
    height, width, channels = shape
    with Image.open(io.BytesIO(encoded)) as image:
        is_converted = image.mode in _CONVERTED
        if (image.height, image.width) != (height, width) or not is_converted:
            found = f"{image.height}x{image.width} {image.mode}"
            expected = f"{height}x{width} {_MODES[channels]}"
            raise DataError(f"{name} is {found}, not {expected}")
        return np.asarray(pictures.convert(image, _MODES[channels])).reshape(shape)


def _read_array_record(path: str) -> list[bytes]:
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordReader(path).read_all()


def _read_tfrecord(path: str) -> Iterator[bytes]:
    """Yield records; each is stored as length (uint64), crc, content and crc.

    The crcs are not checked: PNG has its own, and crc32c is slow without TensorFlow.
    """
    with open(path, "rb") as file:
        while header := file.read(12):
            length = int.from_bytes(header[:8], "little")
            record, crc = file.read(length), file.read(4)
            if len(record) < length or len(crc) < 4:
                raise DataError(f"{path} is truncated")
            yield record


_READERS = {"array_record": _read_array_record, "tfrecord": _read_tfrecord}
