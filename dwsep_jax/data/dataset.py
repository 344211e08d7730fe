"""Load the splits of a dataset."""

import dataclasses
import difflib
import pathlib
import re

import ml_collections
import numpy as np

from dwsep_jax.data import cache
from dwsep_jax.data.read import Split, find_data_dir, find_version_dir, read
from dwsep_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset in four parts, of which `train_eval` alone is part of another, `train`.

    Decisions are taken on `validation`; `test` is read once, at the end.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    train_eval: Split
    test: Split

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of whole batches in `train`."""
        return len(self.train.labels) // batch_size


def load(config: ml_collections.ConfigDict) -> Dataset:
    """Load the dataset of a run, preparing and decoding it where that was not yet done.

    Validation is held out of the official `train`, and `train_eval` drawn from the rest
    as large as it, both stratified and by `split_seed`: all seeds share them.

    Raises ConfigError for fields that cannot be meant, DataError where the dataset is
    missing, damaged or of another kind.
    """
    try:
        version_dir = _find_or_prepare(config.dataset, find_data_dir(config.data_dir))
        class_names, splits = cache.load(version_dir, read)
    except PermissionError as error:
        raise DataError(
            f"{error.filename} may not be read: change its permissions, or name "
            "another directory by --config.data_dir"
        ) from error
    labels = splits["train"].labels
    size, seed = config.validation_size, config.split_seed
    _check_draw(size, seed, len(labels), len(class_names))
    held_out = stratified_indices(labels, size, (seed, 0))
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    return Dataset(
        name=config.dataset,
        class_names=class_names,
        train=_take(splits["train"], rest),
        validation=_take(splits["train"], held_out),
        train_eval=_take(
            splits["train"], rest[stratified_indices(labels[rest], size, (seed, 1))]
        ),
        test=splits["test"],
    )


def stratified_indices(
    labels: np.ndarray, size: int, seed: int | tuple[int, ...]
) -> np.ndarray:
    """Draw `size` examples so that each class has its share of them.

    Shares are rounded down, and what is left goes to the largest remainders, the first
    class first among equals. All examples where there are fewer than `size`.

    Returns sorted indices into `labels` (N,), int64 (size,).
    """
    classes, counts = np.unique(labels, return_counts=True)
    # In integers: quotas are shares * size / N, exactly.
    quotas, remainders = np.divmod(counts * size, len(labels))
    most = np.argsort(-remainders, kind="stable")[: size - quotas.sum()]
    quotas[most] += 1
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def _take(split: Split, indices: np.ndarray) -> Split:
    return Split(*(array[indices] for array in split))


def _check_draw(size: int, seed: int, num_train: int, num_classes: int) -> None:
    """Raise ConfigError where validation cannot be drawn as asked."""
    if not num_classes <= size < num_train:
        raise ConfigError(
            f"validation_size={size} cannot be: the dataset has {num_train} training "
            f"images of {num_classes} classes; choose {num_classes} to {num_train - 1}"
        )
    if seed < 0:
        raise ConfigError(f"split_seed={seed} is negative; choose 0 or more")


def _find_or_prepare(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    """Return the version directory of a dataset; prepare those that we know how to."""
    if not re.fullmatch(r"\w+(/[\w.-]+)?", name):
        raise _unknown(name)
    if (version_dir := find_version_dir(data_dir, name)) is not None:
        return version_dir
    # TFDS takes a second to import, and a start that finds its data has no need of it.
    if name == "cifar10":
        from dwsep_jax.data import cifar10

        return cifar10.prepare(data_dir)
    if name == "digits":
        from dwsep_jax.data import digits

        fallback_dir = cache.user_cache() / "tensorflow_datasets"
        found = find_version_dir(fallback_dir, name)
        return found or digits.prepare(data_dir, fallback_dir)
    if name.partition("/")[0] not in _known_names():
        raise _unknown(name)
    raise DataError(
        f"{name} is not prepared in {data_dir}: name a directory that has it by "
        f"--config.data_dir, or run `tfds build {name} --data_dir={data_dir}` once, "
        "which needs TensorFlow"
    )


def _known_names() -> list[str]:
    import tensorflow_datasets as tfds

    return ["digits", *tfds.list_builders(with_community_datasets=False)]


def _unknown(name: str) -> ConfigError:
    nearest = difflib.get_close_matches(name, _known_names(), n=3, cutoff=0)
    return ConfigError(
        f"dataset={name!r} is unknown to TFDS; the nearest are {', '.join(nearest)}"
    )
