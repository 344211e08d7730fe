"""Decoding what TFDS prepared, and refusing what cannot be trained on."""

import numpy as np
import pytest
from tensorflow_datasets import features

from dwsep_jax.data import cache, read
from dwsep_jax.errors import ConfigError, DataError
from tests.data.picture_files import encode, flip, plain
from tests.data.tfds_files import write_dataset


@pytest.mark.parametrize("shape", [(8, 6, 3), (7, 7, 1)])
def test_examples_without_ids_keep_their_order(tmp_path, shape):
    arrays = write_dataset(tmp_path / "toy/1.2.0", image=features.Image(shape=shape))
    class_names, splits = read.read(tmp_path / "toy/1.2.0")
    assert class_names == tuple("0123")
    np.testing.assert_array_equal(splits["train"].images, arrays)
    np.testing.assert_array_equal(splits["train"].labels, np.arange(6) % 4)
    assert splits["train"].labels.dtype == np.int32
    assert list(splits["test"].ids) == [f"test_{i:05d}" for i in range(6)]


def test_examples_with_ids_are_sorted_by_them(tmp_path):
    ids = [f"x_{i}" for i in (5, 3, 8, 1, 2, 7)]
    label = features.ClassLabel(names=[*"abcd"])
    arrays = write_dataset(tmp_path / "toy/1.0.0", ids=ids, label=label)
    class_names, splits = read.read(tmp_path / "toy/1.0.0")
    assert class_names == (*"abcd",)
    order = np.argsort(ids)
    np.testing.assert_array_equal(splits["train"].ids, np.sort(ids))
    np.testing.assert_array_equal(splits["train"].images, arrays[order])
    np.testing.assert_array_equal(splits["train"].labels, order % 4)


# Colors of each mode that are white on white.
WHITE = {"1": 1, "L": 255, "LA": (9, 0), "P": 0, "RGB": "white", "RGBA": (9, 9, 9, 0)}


@pytest.mark.parametrize("shape", [(8, 6, 3), (7, 7, 1)])
@pytest.mark.parametrize("mode", WHITE)
def test_pictures_of_any_mode_are_converted(tmp_path, shape, mode):
    options = {"transparency": 0} if mode == "P" else {}
    edit = {"image": plain(mode, WHITE[mode], shape[1::-1], **options)}
    write_dataset(tmp_path / "toy/1.0.0", image=features.Image(shape=shape), edit=edit)
    _, splits = read.read(tmp_path / "toy/1.0.0")
    assert (splits["train"].images[4] == 255).all()


def with_image(shape, dtype=np.uint8):
    return {"edit": {"image": encode(np.zeros(shape, dtype))}}


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        (with_image((16, 16, 3)), "train example 4 is 16x16 RGB, not 8x6 RGB"),
        (with_image((6, 8, 3)), "train example 4 is 6x8 RGB, not"),
        (with_image((8, 6), np.uint16), "train example 4 is 8x6 I;16, not"),
        ({"edit": {"image": b"no image"}}, "UnidentifiedImageError"),
        ({"edit": {"label": -1}}, "train example 4 has label -1, of 4 classes"),
        ({"edit": {"label": 4}}, "train example 4 has label 4, of 4 classes"),
        ({"counts": (2, 5)}, "train has 6 examples, not 7"),
        ({"counts": (2, 3)}, "train has 6 examples, not 5"),
        ({"label": None}, "no feature `label`"),
        ({"label": features.Text()}, "no feature `label`"),
        ({"image": None}, "no feature `image`"),
        ({"image": features.Image(shape=(None, None, 3))}, "shape (None, None, 3)"),
        ({"image": features.Image(shape=(8, 6, 4))}, "shape (8, 6, 4)"),
        ({"image": features.Image(dtype=np.uint16, shape=(8, 6, 3))}, "are uint16"),
        ({"image": features.Image(shape=(40000, 40000, 3))}, "53.6 GiB"),
        ({"splits": ("train", "validation")}, "no split test"),
        ({"file_format": "riegeli"}, "its format is riegeli"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsuitable_dataset(tmp_path, dataset, problem):
    write_dataset(tmp_path / "toy/1.0.0", **dataset)
    assert_refused(tmp_path / "toy/1.0.0", problem)


def test_damaged_dataset(tmp_path):
    write_dataset(tmp_path / "toy/1.0.0")
    path = tmp_path / "toy/1.0.0/toy-train.tfrecord-00000-of-00002"
    content = path.read_bytes()
    for damaged, problem in (
        (content[:-6], "is truncated"),
        (b"\xff" * 8 + content[8:], "Error"),
        (flip(content, len(content) // 4), "Error"),  # In the middle of an image.
    ):
        path.write_bytes(damaged)
        assert_refused(tmp_path / "toy/1.0.0", problem)
    path.unlink()
    assert_refused(tmp_path / "toy/1.0.0", "FileNotFoundError")


def assert_refused(version_dir, problem):
    with pytest.raises(DataError) as info:
        read.read(version_dir)
    message = str(info.value)
    assert message.startswith(f"{version_dir} cannot be used (")
    assert problem in message
    assert "prepare it again, or choose a dataset of uint8 images" in message
    assert "\n" not in message


def test_newest_complete_version_is_found(tmp_path):
    for version in ("9.0.0", "10.0.0", "11.0.0", "1.0.0.old"):
        path = tmp_path / "toy" / version
        path.mkdir(parents=True)
        (path / "features.json").touch()
        if version != "11.0.0":
            (path / "dataset_info.json").touch()
    assert read.find_version_dir(tmp_path, "toy") == tmp_path / "toy/10.0.0"
    assert read.find_version_dir(tmp_path, "absent") is None


def test_the_label_is_chosen(tmp_path):
    label, coarse = (
        features.ClassLabel(names=[*"wxyz"]),
        features.ClassLabel(names=[*"ab"]),
    )
    write_dataset(tmp_path / "toy/1.0.0", label=label, coarse=coarse)
    values = dict(label="wxyz", fine="wxyz", coarse_label="ab", coarse="ab")
    for value, names in [*values.items()] * 2:  # Then each from a cache of its own.
        class_names, splits = cache.load(tmp_path / "toy/1.0.0", value)
        assert class_names == (*names,)
        want = np.arange(6) % len(names)
        np.testing.assert_array_equal(splits["test"].labels, want)
    with pytest.raises(ConfigError, match=r"^label=x: choose coarse_label or label$"):
        read.read(tmp_path / "toy/1.0.0", "x")
