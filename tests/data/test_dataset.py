"""The splits of a run, the cache they come from, and the order of their examples."""

import collections
import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from dwsep_jax import data
from dwsep_jax.data import dataset, order, read
from dwsep_jax.data.prepare import locked
from dwsep_jax.errors import ConfigError, DataError


def make_config(data_dir, **fields):
    defaults = {"dataset": "digits", "validation_size": 180, "split_seed": 0}
    return ml_collections.ConfigDict(
        {**defaults, "data_dir": data_dir and str(data_dir), **fields}
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Digits as a first start leaves them, with their cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        data_dir = tmp_path_factory.mktemp("data")
        data.load(make_config(data_dir))
    return data_dir


@pytest.fixture
def data_dir(prepared, tmp_path, monkeypatch):
    """A copy of the prepared digits, for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data/digits").mkdir(parents=True)
    target = tmp_path / "data/digits/1.0.0"
    subprocess.run(["cp", "-a", prepared / "digits/1.0.0", target], check=True)
    return tmp_path / "data"


@pytest.fixture
def decodings(monkeypatch):
    """The directories that were decoded, rather than restored, during this test."""
    calls = []

    def counting(version_dir):
        calls.append(version_dir)
        return read.read(version_dir)

    monkeypatch.setattr(dataset, "read", counting)
    return calls


def run_python(code, **environment):
    root = pathlib.Path(data.__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
    )


def assert_equal_splits(a, b):
    for split in ("train", "validation", "train_eval", "test"):
        for x, y in zip(getattr(a, split), getattr(b, split), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_splits_are_four_and_typed(data_dir):
    dataset = data.load(make_config(data_dir))
    assert dataset.name == "digits"
    assert dataset.class_names == tuple("0123456789")
    sizes = {"train": 1257, "validation": 180, "train_eval": 180, "test": 360}
    for name, size in sizes.items():
        split = getattr(dataset, name)
        assert split.images.shape == (size, 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert split.labels.shape == (size,)
        assert split.labels.dtype == np.int32
        assert split.ids.shape == (size,)
        assert list(split.ids) == sorted(split.ids)


def test_train_validation_and_test_share_nothing(data_dir):
    dataset = data.load(make_config(data_dir))
    train, validation, test = (
        set(getattr(dataset, name).ids) for name in ("train", "validation", "test")
    )
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train | validation | test) == 1797
    assert set(dataset.train_eval.ids) < train


def test_images_and_labels_follow_their_ids(data_dir):
    digits = sklearn_datasets.load_digits()
    dataset = data.load(make_config(data_dir))
    for split in (dataset.train, dataset.validation, dataset.train_eval, dataset.test):
        index = np.array([int(id_.removeprefix("digit_")) for id_ in split.ids])
        np.testing.assert_array_equal(split.labels, digits.target[index])
        # Enlarging keeps the mean ink, up to the clamped edges and the rounding.
        ink = digits.images[index].mean((1, 2)) * 255 / 16
        np.testing.assert_allclose(split.images.mean((1, 2, 3)), ink, atol=0.5)


def test_validation_is_stratified(data_dir):
    dataset = data.load(make_config(data_dir))
    counts = np.bincount(dataset.train.labels) + np.bincount(dataset.validation.labels)
    held_out = np.bincount(dataset.validation.labels)
    assert np.all(np.abs(held_out - counts * 180 / 1437) < 1)


def test_seed_moves_nothing_and_split_seed_moves_validation(data_dir):
    a = data.load(make_config(data_dir, seed=0))
    b = data.load(make_config(data_dir, seed=1))
    other = data.load(make_config(data_dir, split_seed=1))
    assert_equal_splits(a, b)
    assert set(a.validation.ids) != set(other.validation.ids)
    assert set(a.train_eval.ids) != set(other.train_eval.ids)
    np.testing.assert_array_equal(a.test.ids, other.test.ids)


def test_train_eval_is_all_of_train_where_that_is_smaller(data_dir):
    dataset = data.load(make_config(data_dir, validation_size=1400))
    assert len(dataset.train.ids) == 37
    np.testing.assert_array_equal(dataset.train_eval.ids, dataset.train.ids)


@pytest.mark.parametrize("size", [-1, 0, 9, 1437, 5000])
def test_bad_validation_size_names_the_range(data_dir, size):
    with pytest.raises(ConfigError, match=rf"validation_size={size} .* 10 to 1436$"):
        data.load(make_config(data_dir, validation_size=size))


def test_negative_split_seed(data_dir):
    with pytest.raises(ConfigError, match=r"split_seed=-1 .*0 or more"):
        data.load(make_config(data_dir, split_seed=-1))


def test_largest_remainder_by_hand():
    # Quotas 2.1, 1.4, 0.35, 0.35, 2.8: floors 2 1 0 0 2, the two left to 0.8 and 0.4.
    labels = np.repeat([0, 1, 2, 3, 4], [6, 4, 1, 1, 8])
    drawn = dataset.stratified_indices(labels, 7, 0)
    counts = np.bincount(labels[drawn], minlength=5)
    np.testing.assert_array_equal(counts, [2, 2, 0, 0, 3])
    # Quotas 1.5 and 1.5: the first class first.
    drawn = dataset.stratified_indices(np.array([5, 5, 9, 9]), 3, 0)
    np.testing.assert_array_equal(drawn[:2], [0, 1])


def test_stratified_indices_are_a_sorted_function_of_the_seed():
    labels = np.arange(1000) % 7
    a, b = (dataset.stratified_indices(labels, 100, 3) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert np.all(np.diff(a) > 0)
    assert len(a) == 100
    assert not np.array_equal(a, dataset.stratified_indices(labels, 100, 4))
    # Drawn from everywhere, not from the front of each class.
    assert a[-1] > 900


def test_each_epoch_has_every_example_once_in_its_own_order():
    key = jax.random.key(0)
    orders = [np.asarray(order.epoch_permutation(key, e, 1000)) for e in range(3)]
    for permutation in orders:
        assert permutation.dtype == np.int32
        np.testing.assert_array_equal(np.sort(permutation), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 3
    again = order.epoch_permutation(jax.random.key(0), 1, 1000)
    np.testing.assert_array_equal(again, orders[1])
    other = order.epoch_permutation(jax.random.key(1), 1, 1000)
    assert not np.array_equal(other, orders[1])


def test_permutations_of_all_epochs_share_one_program():
    key = jax.random.key(0)
    order.epoch_permutation(key, 0, 17)
    programs = order.epoch_permutation._cache_size()
    for epoch in range(1, 4):
        order.epoch_permutation(key, epoch, 17)
    assert order.epoch_permutation._cache_size() == programs


def test_batches_tile_the_permutation_without_its_tail():
    permutation = order.epoch_permutation(jax.random.key(0), 0, 103)
    batch = jax.jit(order.batch_indices, static_argnums=2)
    batches = [batch(permutation, step, 10) for step in range(10)]
    np.testing.assert_array_equal(np.concatenate(batches), permutation[:100])
    np.testing.assert_array_equal(order.batch_indices(permutation, 3, 10), batches[3])


def test_the_tail_is_another_one_each_epoch():
    key = jax.random.key(0)
    seen = collections.Counter()
    for epoch in range(20):
        seen.update(np.asarray(order.epoch_permutation(key, epoch, 103))[:100].tolist())
    assert set(seen) == set(range(103))


def test_second_start_restores(data_dir, decodings):
    again = data.load(make_config(data_dir))
    assert not decodings
    # Mapped, not read: nothing of the test images is copied.
    base = again.test.images
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    (data_dir / "digits/1.0.0/decoded/manifest.json").unlink()
    assert_equal_splits(data.load(make_config(data_dir)), again)
    assert len(decodings) == 1
    assert_equal_splits(data.load(make_config(data_dir)), again)
    assert len(decodings) == 1


def damage_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["train_images", "train_labels", "train_ids", "test_images"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_cache_is_decoded_again(data_dir, decodings, caplog, name, damage):
    before = data.load(make_config(data_dir))
    path = data_dir / f"digits/1.0.0/decoded/{name}.npy"
    # The file that `before` maps stays as it is.
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    os.replace(copy, path)
    if damage == "flip":
        damage_byte(path)
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "truncate" else 0)
    assert_equal_splits(data.load(make_config(data_dir)), before)
    assert len(decodings) == 1
    notes = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert len(notes) == 1
    assert "\n" not in notes[0]
    data.load(make_config(data_dir))
    assert len(decodings) == 1


def test_damaged_manifest_is_noticed(data_dir, decodings):
    path = data_dir / "digits/1.0.0/decoded/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["class_names"][0] = "O"
    path.write_text(json.dumps(manifest))
    assert data.load(make_config(data_dir)).class_names[0] == "0"
    path.write_text("{")
    data.load(make_config(data_dir))
    assert len(decodings) == 2


def test_changed_source_is_decoded_again_also_behind_a_link(data_dir, decodings):
    shard = next((data_dir / "digits/1.0.0").glob("*train*"))
    target = data_dir / "elsewhere"
    shard.rename(target)
    shard.symlink_to(target)
    data.load(make_config(data_dir))
    assert not decodings  # A link to the same file: same size, same time.
    os.utime(target, ns=(0, 0))
    data.load(make_config(data_dir))
    assert len(decodings) == 1


def test_cache_goes_to_the_user_where_the_data_cannot_be_written(
    data_dir, decodings, tmp_path
):
    version_dir = data_dir / "digits/1.0.0"
    (version_dir / "decoded/manifest.json").unlink()
    (version_dir / "decoded.incomplete").touch()  # Not a directory: mkdir fails.
    data.load(make_config(data_dir))
    data.load(make_config(data_dir))
    assert len(decodings) == 1
    assert len(list((tmp_path / "cache/dwsep_jax").glob("decoded-*/*.npy"))) == 6


def test_full_disk_costs_the_cache_not_the_run(
    data_dir, decodings, monkeypatch, caplog, tmp_path
):
    before = data.load(make_config(data_dir))
    decoded = data_dir / "digits/1.0.0/decoded"
    (decoded / "manifest.json").unlink()

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", no_space)
        assert_equal_splits(data.load(make_config(data_dir)), before)
    assert "No space left" in caplog.records[-1].getMessage()
    assert not list(tmp_path.rglob("*.incomplete"))
    assert len(decodings) == 1


def test_killed_while_caching(data_dir, decodings):
    (data_dir / "digits/1.0.0/decoded/manifest.json").unlink()
    code = f"""
import os, numpy as np, ml_collections
from dwsep_jax import data
from dwsep_jax.data import dataset
save, saved = np.save, []
def save_two(*args, **kwargs):
    if len(saved) == 2:
        os._exit(9)
    saved.append(save(*args, **kwargs))
np.save = save_two
data.load(ml_collections.ConfigDict(dict(
    dataset="digits", data_dir={str(data_dir)!r}, validation_size=180, split_seed=0)))
"""
    assert run_python(code).returncode == 9
    incomplete = data_dir / "digits/1.0.0/decoded.incomplete"
    assert len(list(incomplete.iterdir())) == 2
    data.load(make_config(data_dir))
    assert not incomplete.exists()
    assert (data_dir / "digits/1.0.0/decoded/manifest.json").exists()
    data.load(make_config(data_dir))
    assert len(decodings) == 1


def test_import_and_second_start_need_neither_tfds_nor_tensorflow(data_dir):
    code = f"""
import sys
sys.modules["tensorflow_datasets"] = None  # And so TensorFlow neither.
import ml_collections
from dwsep_jax import data
from dwsep_jax.data import dataset
print(len(data.load(ml_collections.ConfigDict(dict(
    dataset="digits", data_dir={str(data_dir)!r}, validation_size=180, split_seed=0
))).train.ids))
"""
    result = run_python(code)
    assert result.stdout == "1257\n", result.stderr


def test_first_start_never_imports_tensorflow(tmp_path):
    code = f"""
import importlib.machinery, sys
class Refuse:  # TFDS may ask whether TensorFlow is there; importing it ends the run.
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        sys.exit("import of " + spec.name)
sys.meta_path.insert(0, Refuse())
import ml_collections
from dwsep_jax import data
from dwsep_jax.data import dataset
print(len(data.load(ml_collections.ConfigDict(dict(
    dataset="digits", data_dir={str(tmp_path)!r}, validation_size=180, split_seed=0
))).train.ids))
"""
    result = run_python(code, XDG_CACHE_HOME=str(tmp_path))
    assert result.stdout.endswith("decoded\n1257\n"), result.stderr


def test_data_dir_field_then_environment_then_default(data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(data.load(make_config(None)).test.ids) == 360
    assert not (tmp_path / "home").exists()
    with pytest.raises(DataError, match=f"not prepared in {tmp_path / 'other'}"):
        data.load(make_config(tmp_path / "other", dataset="mnist"))
    monkeypatch.delenv("TFDS_DATA_DIR")
    with pytest.raises(DataError, match=f"in {tmp_path}/home/tensorflow_datasets:"):
        data.load(make_config(None, dataset="mnist"))


def test_data_dir_that_is_no_directory(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^data_dir=.*file is a file"):
        data.load(make_config(tmp_path / "file"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"^TFDS_DATA_DIR=.*file is a file"):
        data.load(make_config(None))
    with pytest.raises(ConfigError, match="gs://bucket is not on this machine"):
        data.load(make_config("gs://bucket"))


@pytest.mark.parametrize("name", ["cifar", "digit", ""])
def test_unknown_dataset_names_the_nearest(tmp_path, name):
    with pytest.raises(ConfigError, match=r"dataset=.*unknown.*nearest are \w+, \w+"):
        data.load(make_config(tmp_path, dataset=name))
    assert not list(tmp_path.iterdir())


def test_dataset_is_looked_for_below_data_dir_alone(data_dir):
    (data_dir / "below").mkdir()
    with pytest.raises(ConfigError, match=r"dataset='\.\./digits' is unknown"):
        data.load(make_config(data_dir / "below", dataset="../digits"))


def test_unreadable_directory_is_one_line(data_dir, monkeypatch):
    def refuse(path, flags):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with monkeypatch.context() as patch:  # The superuser may read everything.
        patch.setattr(os, "open", refuse)
        with pytest.raises(DataError, match=r"digits/1\.0\.0 may not be read: change"):
            data.load(make_config(data_dir))


def test_unprepared_dataset_says_how(tmp_path):
    with pytest.raises(DataError, match=r"tfds build svhn_cropped .*TensorFlow"):
        data.load(make_config(tmp_path, dataset="svhn_cropped"))


def test_real_cifar10(tmp_path, monkeypatch, decodings):
    source = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "/nonexistent"))
    found = read.find_version_dir(source, "cifar10")
    if found is None:
        pytest.skip("no prepared cifar10 in $TFDS_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Links: the cache lands here, whoever may write there.
    version_dir = tmp_path / "cifar10" / found.name
    version_dir.mkdir(parents=True)
    for path in filter(pathlib.Path.is_file, found.iterdir()):
        (version_dir / path.name).symlink_to(path)
    config = make_config(tmp_path, dataset="cifar10", validation_size=5000)
    first, second = data.load(config), data.load(config)
    assert len(decodings) == 1
    assert_equal_splits(first, second)
    assert " ".join(second.class_names) == (
        "airplane automobile bird cat deer dog frog horse ship truck"
    )
    counts = {"train": 4500, "validation": 500, "train_eval": 500, "test": 1000}
    for name, count in counts.items():
        split = getattr(second, name)
        assert split.images.shape[1:] == (32, 32, 3)
        np.testing.assert_array_equal(np.bincount(split.labels), [count] * 10)
    ids = np.sort(np.concatenate([second.train.ids, second.validation.ids]))
    np.testing.assert_array_equal(ids, [f"train_{i:05d}" for i in range(50_000)])
    np.testing.assert_array_equal(
        second.test.ids, [f"test_{i:05d}" for i in range(10_000)]
    )
    # The published means of the channels; the order of the ids is not looked at, as
    # there are copies of CIFAR-10 in other orders than the official one.
    pixels = [
        second.train.images.sum((0, 1, 2)),
        second.validation.images.sum((0, 1, 2)),
    ]
    means = np.sum(pixels, axis=0) / (255 * 50_000 * 32 * 32)
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)


def test_processes_that_start_together_decode_once(data_dir):
    (data_dir / "digits/1.0.0/decoded/manifest.json").unlink()
    code = f"""
import ml_collections
from dwsep_jax import data
from dwsep_jax.data import dataset
from dwsep_jax.data import read
def announcing(version_dir):
    print("read here", flush=True)
    return read.read(version_dir)
data.read = announcing
data.load(ml_collections.ConfigDict(dict(
    dataset="digits", data_dir={str(data_dir)!r}, validation_size=180, split_seed=0)))
"""
    root = pathlib.Path(data.__file__).parents[2]
    with contextlib.ExitStack() as stack:
        # Both wait at the lock until it is let go.
        with locked(data_dir / "digits/1.0.0"):
            processes = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", code],
                        env={**os.environ, "PYTHONPATH": str(root)},
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        text=True,
                    )
                )
                for _ in range(2)
            ]
        output = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(text.count("read here") for text in output) == [0, 1]
