"""The splits of a run, and the order in which training takes its examples."""

import errno
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from dwsep_jax import data, launch
from dwsep_jax.data import digits, order, read
from dwsep_jax.data.dataset import stratified_indices
from dwsep_jax.errors import ConfigError, DataError
from tests import tiny
from tests.data.tfds_files import write_dataset

PARTS = ("train", "validation", "train_eval", "test")


def load(data_dir=None, **fields):
    fields = {"dataset": "digits", "validation_size": 180, **fields}
    return data.load(tiny.make_config(data_dir=data_dir and str(data_dir), **fields))


@pytest.fixture(scope="module")
def dataset():
    return load()


def ids_of(dataset):
    return [getattr(dataset, part).ids.tolist() for part in PARTS]


def test_splits_of_digits(dataset):
    assert dataset.class_names == tuple("0123456789")
    sizes = dict(zip(PARTS, (1257, 180, 180, 360)))
    official = sklearn_datasets.load_digits()
    for name, size in sizes.items():
        images, labels, ids = getattr(dataset, name)
        assert (images.dtype, images.shape) == (np.uint8, (size, 32, 32, 3))
        assert (labels.dtype, labels.shape) == (np.int32, (size,))
        assert ids.tolist() == sorted(ids)
        index = [int(id_.removeprefix("digit_")) for id_ in ids]
        np.testing.assert_array_equal(labels, official.target[index])
        for channel in range(3):
            enlarged = digits.enlarge(official.images[index])
            np.testing.assert_array_equal(images[..., channel], enlarged)
    train, validation, train_eval, test = map(set, ids_of(dataset))
    assert len(train | validation | test) == 1797 == 1257 + 180 + 360
    assert train_eval < train
    held_out = np.bincount(dataset.validation.labels)
    counts = np.bincount(dataset.train.labels) + held_out
    assert np.all(np.abs(held_out - counts * 180 / 1437) < 1)
    test = np.bincount(dataset.test.labels)
    np.testing.assert_allclose(test / (counts + test), 0.2, atol=0.006)


def test_split_seed_and_not_seed_draws_the_splits(dataset):
    assert ids_of(load(seed=1)) == ids_of(dataset)
    other = load(split_seed=1)
    assert set(other.validation.ids) != set(dataset.validation.ids)
    assert set(other.train_eval.ids) != set(dataset.train_eval.ids)
    assert ids_of(other)[3] == ids_of(dataset)[3]


def test_train_eval_is_all_of_a_small_train():
    dataset = load(validation_size=1400)
    assert len(dataset.train.ids) == 37
    np.testing.assert_array_equal(dataset.train_eval.ids, dataset.train.ids)


def test_digits_are_enlarged_bilinearly():
    np.testing.assert_array_equal(digits.enlarge(np.full((8, 8), 16.0)), 255)
    ink = np.zeros((8, 8))
    ink[0, 7] = 16
    big = digits.enlarge(ink)
    # From center to center in steps of 1/4, the first half a step in; edges clamped.
    profile = np.array([1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0])
    np.testing.assert_array_equal(big[:8, 31], np.rint(255 * profile))
    np.testing.assert_array_equal(big[0, :-9:-1], np.rint(255 * profile))
    assert big[8:].max() == big[:, :24].max() == 0


def test_quotas_follow_the_largest_remainders():
    # Quotas 2.1, 1.4, 0.35, 0.35, 2.8: floors 2 1 0 0 2, the two left to 0.8 and 0.4.
    labels = np.repeat([0, 1, 2, 3, 4], [6, 4, 1, 1, 8])
    counts = np.bincount(labels[stratified_indices(labels, 7, 0)], minlength=5)
    np.testing.assert_array_equal(counts, [2, 2, 0, 0, 3])
    # Quotas 1.5 and 1.5: the tie goes to the first class.
    drawn = stratified_indices(np.array([5, 5, 9, 9]), 3, 0)
    np.testing.assert_array_equal(drawn[:2], [0, 1])
    labels = np.arange(1000) % 7
    drawn = stratified_indices(labels, 100, 3)
    assert len(drawn) == 100
    assert np.all(np.diff(drawn) > 0)
    assert drawn[-1] > 900  # From everywhere, not from the front of each class.
    assert not np.array_equal(drawn, stratified_indices(labels, 100, 4))


def test_each_epoch_has_every_example_once_in_its_own_order():
    key = jax.random.key(0)
    programs = order.epoch_permutation._cache_size()
    orders = [np.asarray(order.epoch_permutation(key, e, 103)) for e in range(20)]
    assert order.epoch_permutation._cache_size() == programs + 1
    for permutation in orders:
        assert permutation.dtype == np.int32
        np.testing.assert_array_equal(np.sort(permutation), np.arange(103))
    assert len({permutation.tobytes() for permutation in orders}) == 20
    other = order.epoch_permutation(jax.random.key(1), 1, 103)
    assert not np.array_equal(other, orders[1])
    # Batches tile the order without its tail, which those of another epoch take.
    batch = jax.jit(order.batch_indices, static_argnums=2)
    batches = [batch(orders[0], step, 10) for step in range(10)]
    np.testing.assert_array_equal(np.concatenate(batches), orders[0][:100])
    assert set(np.concatenate([o[:100] for o in orders])) == set(range(103))


def test_mistakes_are_one_line_with_a_remedy(tmp_path):
    (tmp_path / "data").mkdir()
    write_dataset(tmp_path / "toy/1.0.0")
    for fields, error, message in (
        ({"validation_size": 9}, ConfigError, r"size=9 is .* 10 to 1436$"),
        ({"validation_size": 1437}, ConfigError, r"size=1437 is .* 10 to 1436$"),
        ({"dataset": "cifar"}, ConfigError, r"'cifar' is unknown.*you mean cifar1"),
        ({"dataset": "CIFAR10"}, ConfigError, r"'CIFAR10' is unk.* mean cifar10\?$"),
        ({"dataset": "digit"}, ConfigError, r"dataset='digit' is.*you mean digits or"),
        ({"dataset": ""}, ConfigError, r"dataset='' is unknown .* mean \w+ or \w"),
        ({"dataset": "mnist"}, DataError, r"in /\S+/data: .*tfds build mnist .*Tensor"),
        ({"data_dir": "gs://bucket"}, ConfigError, "gs://bucket is not a local dir"),
        ({"data_dir": __file__}, ConfigError, r"^data_dir=.*\.py is a file; choose"),
    ):
        with pytest.raises(error, match=message) as info:
            load(**{"data_dir": tmp_path / "data", **fields})
        assert "\n" not in str(info.value)
        assert not list((tmp_path / "data").iterdir())


def test_other_spellings_and_configs_of_what_is_prepared_are_named(tmp_path):
    for name in ("Toy", "corrupted/fog", "corrupted/snow"):
        write_dataset(tmp_path / name / "1.0.0")
    (tmp_path / "corrupted" / "1.0.0").mkdir()
    for name, message in {
        "toy": r"^dataset='toy' is not in .*; choose Toy$",
        "corrupted": r"; choose corrupted/fog or corrupted/snow$",
        "corrupted/Snow": r"; choose corrupted/snow$",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, dataset=name)
    assert load(tmp_path, dataset="corrupted/fog", validation_size=4).class_names


def test_unreadable_directory(tmp_path, monkeypatch):
    write_dataset(tmp_path / "toy/1.0.0")

    def refuse(path, flags):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    message = r"toy/1\.0\.0 cannot be read \(Permission denied\): check"
    with monkeypatch.context() as patch:  # The superuser may read everything.
        patch.setattr(os, "open", refuse)
        with pytest.raises(DataError, match=message):
            load(tmp_path, dataset="toy")


def test_data_dir_then_environment_then_default(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    home = pathlib.Path.home()
    assert read.find_data_dir(None) == home / "tensorflow_datasets"
    assert read.find_data_dir("~/field") == home / "field"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert read.find_data_dir(None) == tmp_path
    assert read.find_data_dir(str(tmp_path / "field")) == tmp_path / "field"
    monkeypatch.setenv("TFDS_DATA_DIR", __file__)
    with pytest.raises(ConfigError, match=r"^TFDS_DATA_DIR=.*\.py is a file"):
        read.find_data_dir(None)


def test_only_the_first_start_imports_tfds(tmp_path):
    write_dataset(tmp_path / "toy/1.0.0")
    load(tmp_path, dataset="toy", validation_size=4)
    path = tmp_path / "tensorflow_datasets.py"
    path.write_text("raise SystemExit('it was imported')")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from configs import default
from dwsep_jax import data
for name, size in {"digits": 180, "toy": 4}.items():
    config = default.get_config()
    config.update(dataset=name, data_dir=sys.argv[1], validation_size=size)
    data.load(config)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_of_several_processes_the_first_alone_prepares(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "is_first", lambda: False)
    with pytest.raises(DataError, match="cifar10 is not prepared in"):
        load(tmp_path, dataset="cifar10")
    assert list(tmp_path.iterdir()) == []


def test_real_cifar10(tmp_path):
    source = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "/nonexistent"))
    found = read.find_version_dir(source, "cifar10")
    if found is None:
        pytest.skip("no prepared cifar10 in $TFDS_DATA_DIR")
    # Links: the cache is written here, whoever may write there.
    version_dir = tmp_path / "cifar10" / found.name
    version_dir.mkdir(parents=True)
    for path in filter(pathlib.Path.is_file, found.iterdir()):
        (version_dir / path.name).symlink_to(path)
    dataset = load(tmp_path, dataset="cifar10", validation_size=5000)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(dataset.class_names) == names
    for name, count in zip(PARTS, (4500, 500, 500, 1000)):
        counts = np.bincount(getattr(dataset, name).labels)
        np.testing.assert_array_equal(counts, [count] * 10)
    train, validation, _, test = ids_of(dataset)
    assert sorted(train + validation) == [f"train_{i:05d}" for i in range(50_000)]
    assert test == [f"test_{i:05d}" for i in range(10_000)]
    # The published means of the channels; the order of the ids is not checked, as
    # there are copies of CIFAR-10 in other orders than the official one.
    pixels = (s.images.sum((0, 1, 2)) for s in (dataset.train, dataset.validation))
    means = sum(pixels) / (255 * 50_000 * 32 * 32)
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
