"""Decodes a dataset that TFDS prepared as array_record or tfrecord into arrays."""

import io
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dwsep_jax.errors import ConfigError, DataError
from dwsep_jax.places import user_home

# A dataset has to fit in the accelerator's memory.
MAX_BYTES = 4 << 30
# Pillow's names for pictures of one and of three channels, and for 8 bits at most.
_MODES = {1: "L", 3: "RGB"}
_CONVERTED = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


class Split(NamedTuple):
    """Examples of one split: images uint8 (N, H, W, C), labels int32 (N,), ids (N,)."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray


# The class names, and the splits `train` and `test`.
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


def read(version_dir: pathlib.Path) -> Decoded:
    """Decode the splits `train` and `test`, each sorted by id.

    Datasets without ids keep the order of TFDS and get ids such as `train_00000`.

    Raises:
      DataError: if the dataset is damaged, or does not consist of labeled images of one
        small size. TFDS itself checks neither shapes nor counts.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(version_dir)
        if problem := _find_problem(builder.info):
            raise DataError(problem)
        label = builder.info.features["label"]
        names = label.names or map(str, range(label.num_classes))
        # Control characters are not for terminals, and crash what draws the charts.
        names = tuple(re.sub(r"[\x00-\x1f\x7f]", " ", name) for name in names)
        return names, {s: _read_split(builder, s) for s in ("train", "test")}
    except Exception as error:
        reason = error if isinstance(error, DataError) else one_line(error)
        raise DataError(
            f"{version_dir} cannot be used ({reason}): delete it and prepare it again, "
            "or choose a dataset of uint8 images of one size, gray or RGB, with "
            f"`label`, `train` and `test`, as {' or '.join(_READERS)}"
        ) from error


def one_line(error: BaseException) -> str:
    """Return the type and the first line of an error, to be part of a message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ")


def _find_problem(info) -> str | None:
    """Return why this program cannot train on a dataset, or None if it can."""
    from tensorflow_datasets import features as tfds_features

    if info.file_format.value not in _READERS:
        return f"its format is {info.file_format.value}"
    features = dict(info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds_features.Image):
        return "it has no feature `image`"
    if not isinstance(label, tfds_features.ClassLabel) or not label.num_classes:
        return "it has no feature `label` with a known number of classes"
    if None in image.shape or image.shape[-1] not in _MODES:
        return f"its images have shape {image.shape}"
    if image.np_dtype != np.uint8:
        return f"its images are {np.dtype(image.np_dtype).name}"
    if missing := {"train", "test"} - set(info.splits):
        return f"it has no split {' and '.join(sorted(missing))}"
    num_images = sum(info.splits[split].num_examples for split in ("train", "test"))
    if (size := num_images * math.prod(image.shape)) > MAX_BYTES:
        return f"its images take {size / 2**30:.1f} GiB; the limit is {MAX_BYTES >> 30}"
    return None


def _read_split(builder, split: str) -> Split:
    """Decode one split and check every example."""
    # TFDS's own copy of the protocol buffer that TensorFlow calls tf.train.Example.
    from tensorflow_datasets.proto import tf_example_pb2

    info, features = builder.info.splits[split], builder.info.features
    read_file = _READERS[builder.info.file_format.value]
    records = [r for path in info.filepaths for r in read_file(os.fspath(path))]
    if len(records) != info.num_examples:
        raise DataError(
            f"{split} has {len(records)} examples, not {info.num_examples} as "
            "dataset_info.json says"
        )
    images = np.empty((len(records), *features["image"].shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    ids = []
    for i, record in enumerate(records):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        (labels[i],) = feature["label"].int64_list.value
        if not 0 <= labels[i] < (num_classes := features["label"].num_classes):
            raise DataError(
                f"{split} example {i} has label {labels[i]}, of {num_classes} classes"
            )
        (encoded,) = feature["image"].bytes_list.value
        images[i] = _decode(encoded, images.shape[1:], f"{split} example {i}")
        ids += [id_.decode() for id_ in feature["id"].bytes_list.value]
    if len(ids) != len(records):
        width = max(5, len(str(len(records) - 1)))
        ids = [f"{split}_{i:0{width}d}" for i in range(len(records))]
    ids = np.array(ids, np.str_)
    order = np.argsort(ids, kind="stable")
    return Split(images[order], labels[order], ids[order])


def _decode(encoded: bytes, shape: tuple[int, int, int], name: str) -> np.ndarray:
    """Return a picture, converted to gray or RGB; what is transparent shows white."""
    from PIL import Image

    height, width, channels = shape
    with Image.open(io.BytesIO(encoded)) as image:
        is_converted = image.mode in _CONVERTED
        if (image.height, image.width) != (height, width) or not is_converted:
            found = f"{image.height}x{image.width} {image.mode}"
            expected = f"{height}x{width} {_MODES[channels]}"
            raise DataError(f"{name} is {found}, not {expected}")
        if "A" in image.getbands() or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.asarray(image.convert(_MODES[channels])).reshape(shape)


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
