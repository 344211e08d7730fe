"""Reads a directory that TFDS prepared, in either of its formats, into arrays."""

import io
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dwsep_jax.errors import ConfigError, DataError

# Records are asked for in batches: one at a time takes twice as long.
BATCH_SIZE = 1000
# A dataset lives in the accelerator's memory.
MAX_BYTES = 4 << 30
_MODES = {1: "L", 3: "RGB"}


class Split(NamedTuple):
    """Examples of one split: images uint8 (N, H, W, C), labels int32 (N,), ids (N,)."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray


def find_data_dir(field: str | None) -> pathlib.Path:
    """Return the TFDS directory: the field, else the environment, else the default."""
    environment = os.environ.get("TFDS_DATA_DIR")
    what = "data_dir" if field else "TFDS_DATA_DIR"
    value = field or environment or "~/tensorflow_datasets"
    if "://" in value:
        raise ConfigError(f"{what}={value} is not on this machine; copy it to a disk")
    data_dir = pathlib.Path(value).expanduser().absolute()
    if data_dir.exists() and not data_dir.is_dir():
        raise ConfigError(f"{what}={value} is a file; name the directory that holds it")
    return data_dir


def find_version_dir(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
    """Return the newest version of a dataset that TFDS prepared here, or None."""
    versions = [
        path
        for path in (data_dir / name).glob("*.*.*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
        and (path / "dataset_info.json").is_file()
        and (path / "features.json").is_file()
    ]
    return max(
        versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None
    )


def read(version_dir: pathlib.Path) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Decode the train and test splits of a dataset, each sorted by id.

    Sets without ids keep the order of TFDS and get ids of the form `train_00000`.

    Returns the class names and the splits. Raises DataError where the dataset is not
    one of small images of one size with one label each, or is damaged: TFDS itself
    checks neither shapes nor counts.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(version_dir)
        shape, class_names = _check_kind(builder.info, version_dir)
        splits = {
            split: _read_split(builder, split, shape, len(class_names))
            for split in ("train", "test")
        }
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise DataError(
            f"{version_dir} cannot be read ({reason}): delete it and prepare it again"
        ) from error
    return class_names, splits


def _check_kind(info, version_dir: pathlib.Path):
    """Return image shape and class names of a dataset that this program can take."""
    import tensorflow_datasets as tfds

    features = dict(info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image):
        problem = "it has no feature `image`"
    elif not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        problem = "it has no feature `label` with a known number of classes"
    elif None in image.shape or image.shape[-1] not in _MODES:
        problem = f"its images have shape {image.shape}"
    elif image.np_dtype != np.uint8:
        problem = f"its images are {np.dtype(image.np_dtype).name}"
    elif missing := {"train", "test"} - set(info.splits):
        problem = f"it has no split {' and '.join(sorted(missing))}"
    elif (
        size := math.prod(image.shape)
        * sum(info.splits[split].num_examples for split in ("train", "test"))
    ) > MAX_BYTES:
        problem = (
            f"its images take {size / 2**30:.1f} GiB, of {MAX_BYTES >> 30} at most"
        )
    else:
        names = label.names or [str(i) for i in range(label.num_classes)]
        return image.shape, tuple(names)
    raise DataError(
        f"{version_dir} cannot be trained on: {problem}; choose a dataset of uint8 "
        "images of one size, grey or RGB, with `label`, `train` and `test`"
    )


def _read_split(builder, split: str, shape, num_classes: int) -> Split:
    """Decode one split and check every example of it."""
    # TFDS's own copy of the protocol buffer that TensorFlow calls tf.train.Example.
    from tensorflow_datasets.proto import tf_example_pb2

    where = f"{builder.data_path} {split}"
    num_examples = builder.info.splits[split].num_examples
    images = np.empty((num_examples, *shape), np.uint8)
    labels = np.empty(num_examples, np.int32)
    ids, count = [], 0
    for record in _records(builder, split):
        if count == num_examples:
            count += 1
            break
        feature = tf_example_pb2.Example.FromString(record).features.feature
        (label,) = feature["label"].int64_list.value
        if not 0 <= label < num_classes:
            raise DataError(
                f"{where}: example {count} has label {label}, of {num_classes} "
                "classes; take a dataset whose examples all have labels"
            )
        (encoded,) = feature["image"].bytes_list.value
        images[count] = _decode(encoded, shape, f"{where}: example {count}")
        labels[count] = label
        ids += [id_.decode() for id_ in feature["id"].bytes_list.value]
        count += 1
    if count != num_examples:
        raise DataError(
            f"{where} holds {'more' if count > num_examples else count} examples, and "
            f"dataset_info.json says {num_examples}: delete it and prepare it again"
        )
    if len(ids) != num_examples:
        width = max(5, len(str(num_examples - 1)))
        ids = [f"{split}_{i:0{width}d}" for i in range(num_examples)]
    ids = np.array(ids, np.str_)
    order = np.argsort(ids, kind="stable")
    return Split(images[order], labels[order], ids[order])


def _decode(encoded: bytes, shape, where: str) -> np.ndarray:
    """Decode one image; raise DataError where it is not what the features promise."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        height, width, channels = shape
        if (image.mode, image.size) != (_MODES[channels], (width, height)):
            raise DataError(
                f"{where} is {image.height}x{image.width} {image.mode}, not "
                f"{height}x{width} {_MODES[channels]}: write it anew and prepare again"
            )
        return np.asarray(image).reshape(shape)


def _records(builder, split: str) -> Iterator[bytes]:
    """Yield the serialized examples of a split, from array_record or tfrecord."""
    formats = {fmt.value for fmt in builder.info.available_file_formats()}
    formats.add(builder.info.file_format.value)
    if "array_record" in formats:
        from tensorflow_datasets.core import decode

        source = builder.as_data_source(
            split,
            deserialize_method=decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )
        for start in range(0, len(source), BATCH_SIZE):
            stop = min(start + BATCH_SIZE, len(source))
            yield from source.__getitems__(range(start, stop))
    elif "tfrecord" in formats:
        for path in builder.info.splits[split].filepaths:
            yield from _tfrecords(path)
    else:
        raise DataError(
            f"{builder.data_path} is in the format {', '.join(sorted(formats))}: "
            "prepare it as array_record or tfrecord"
        )


def _tfrecords(path: os.PathLike) -> Iterator[bytes]:
    """Yield the records of a file: length u64, its crc, bytes, their crc, and again.

    The crcs are not looked at: PNG has its own, and crc32c is slow without TensorFlow.
    """
    with open(path, "rb") as file:
        while header := file.read(12):
            length = int.from_bytes(header[:8], "little")
            record, crc = file.read(length), file.read(4)
            if len(record) < length or len(crc) < 4:
                raise DataError(f"{path} is cut short: delete it and prepare it again")
            yield record
