"""Load the splits of a dataset."""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
import zlib

import ml_collections
import numpy as np

from dwsep_jax import launch
from dwsep_jax.console import say
from dwsep_jax.data import cache, digits, own, pictures
from dwsep_jax.data.read import Decoded, Split, find_data_dir, find_version_dir
from dwsep_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a dataset; disjoint but for `train_eval`, which is part of `train`.

    Decisions are based on `validation`; `test` is used once, at the end.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    train_eval: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of every image, (H, W, C)."""
        return self.train.images.shape[1:]

    @functools.cached_property
    def checksum(self) -> int:
        """The CRC-32 of what a run trains and decides on: `train` and `validation`."""
        crc = 0
        for images, labels, _ in (self.train, self.validation):
            crc = zlib.crc32(labels.tobytes(), zlib.crc32(images.tobytes(), crc))
        return crc

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches in `train`."""
        return len(self.train.labels) // batch_size


def load(config: ml_collections.ConfigDict) -> Dataset:
    """Load the dataset of a run; prepare and decode it first if necessary.

    Validation examples are drawn from the official training split, and as many for
    `train_eval` from those that remain. Both are stratified and depend on `split_seed`,
    not on `seed`.

    Raises:
      ConfigError: if a field has an invalid value.
      DataError: if the dataset is missing, damaged or of an unsupported kind.
    """
    data_dir = find_data_dir(config.data_dir)
    source = (config.dataset, data_dir, config.image_size, config.label)
    official = find_official(*source)
    if official is None and config.dataset == "cifar10" and launch.is_first():
        # TFDS takes a second to import, and is not needed once data are prepared.
        from dwsep_jax.data import cifar10

        cifar10.prepare(data_dir)
        official = find_official(*source)
    if official is None:
        raise _explain_absence(config.dataset, data_dir)
    if own.is_path(config.dataset, data_dir):
        missing = [name for name in ("validation", "test") if name not in official[1]]
        held_out = " and ".join(missing) or "nothing"
        say(f"{config.dataset}: held out of train by split_seed: {held_out}")
    return _make_dataset(config, *official)


def find_test(config: ml_collections.ConfigDict) -> Split | None:
    """Return the test images of a run, or None if its dataset is not prepared."""
    data_dir = find_data_dir(config.data_dir)
    official = find_official(config.dataset, data_dir, config.image_size, config.label)
    return official and _make_dataset(config, *official).test


def _make_dataset(config, class_names, splits) -> Dataset:
    splits, seed = dict(splits), config.split_seed
    for name, stream in (("test", 2), ("validation", 0)):
        if name not in splits:
            held_out, rest = _hold_out(class_names, splits["train"], config, stream)
            splits |= {name: held_out, "train": rest}
    train, size = splits["train"], len(splits["validation"].labels)
    train_eval = train.take(stratified_indices(train.labels, size, (seed, 1)))
    return Dataset(config.dataset, class_names, train_eval=train_eval, **splits)


def _hold_out(class_names, train, config, stream):
    """Return `validation_size` examples of each class in proportion, and the others."""
    num_train, num_classes = len(train.labels), len(class_names)
    size = config.validation_size
    if not num_classes <= size < num_train:
        remedy = f"choose {num_classes} to {num_train - 1}"
        if num_classes >= num_train:
            remedy = "add some, of which to hold out"
        raise ConfigError(
            f"validation_size={size} is out of range: there are {num_train} training "
            f"images of {num_classes} classes; {remedy}"
        )
    held_out = stratified_indices(train.labels, size, (config.split_seed, stream))
    rest = np.setdiff1d(np.arange(num_train), held_out)
    return train.take(held_out), train.take(rest)


def stratified_indices(
    labels: np.ndarray, size: int, seed: int | tuple[int, ...]
) -> np.ndarray:
    """Draw `size` examples, in proportion to the sizes of the classes.

    Quotas are rounded by the largest-remainder method; ties go to the first class, and
    the last example of a class is drawn last. If there are fewer than `size` examples,
    all are drawn.

    Returns:
      Sorted indices into `labels` (N,), int64 (size,).
    """
    classes, counts = np.unique(labels, return_counts=True)
    # Integer arithmetic keeps the quotas, counts * size / N, exact.
    quotas, behind = np.divmod(counts * size, len(labels))
    for _ in range(size - quotas.sum()):
        used_up = (quotas + 1 >= counts) * 1 + (quotas >= counts)
        i = np.argmax(behind - used_up * len(labels) * (size + 1))
        quotas[i] += 1
        behind[i] -= len(labels)
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def find_official(
    name: str, data_dir: pathlib.Path, image_size: int | None, label: str
) -> Decoded | None:
    """Return class names and official splits, or None if they are not prepared."""
    is_path = own.is_path(name, data_dir)
    if (is_path or name == "digits") and label != "label":
        raise ConfigError(
            f"label={label}: {name} has one label for each image; leave it out"
        )
    try:
        if is_path:
            names, splits = own.load(name, image_size)
        elif name == "digits":
            names, splits = digits.read()
        elif not own.TFDS_NAME.fullmatch(name):
            return None
        elif version_dir := find_version_dir(data_dir, name):
            names, splits = cache.load(version_dir, label)
        else:
            return None
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}): check its "
            "permissions, or choose another --config.data_dir"
        ) from error
    for part, split in splits.items() if image_size else ():
        resized = pictures.resize(split.images, image_size)
        splits[part] = split._replace(images=resized)
    return names, splits


def _explain_absence(name, data_dir) -> DataError | ConfigError:
    """Return the error for a dataset that is not prepared."""
    import tensorflow_datasets as tfds

    # Prepared under another spelling, or in a config, whose name follows the slash.
    meant = re.compile(re.escape(name) + "(/.*)?", re.IGNORECASE)
    places = (*data_dir.glob("*"), *data_dir.glob("*/*"))
    names = filter(meant.fullmatch, (str(p.relative_to(data_dir)) for p in places))
    others = sorted(other for other in names if find_version_dir(data_dir, other))
    known = ["digits", *tfds.list_builders(with_community_datasets=False)]
    is_name = own.TFDS_NAME.fullmatch(name)
    if is_name and os.path.exists(name):
        problem = f"not prepared in {data_dir}; to name what is here, write ./{name}"
    elif others:
        problem = f"not in {data_dir}; choose {' or '.join(others)}"
    elif not is_name or name.partition("/")[0] not in known:
        count = 1 if name.lower() in known else 3
        nearest = difflib.get_close_matches(name.lower(), known, count, cutoff=0)
        problem = f"unknown to TFDS; did you mean {' or '.join(nearest)}?"
    else:
        return DataError(
            f"{name} is not prepared in {data_dir}: choose a --config.data_dir that "
            f"has it, or run `tfds build {name} --data_dir={data_dir}` once, which "
            "needs TensorFlow"
        )
    return ConfigError(f"dataset={name!r} is {problem}")
