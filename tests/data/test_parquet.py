"""Parquet files as Hugging Face's datasets have them."""

import json
import sys
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests import tiny
from tests.data import test_own
from tests.data.picture_files import encode

FEATURES = {"label": {"names": ["red", "green", "blue"], "_type": "ClassLabel"}}
SPLITS = {"train": tiny.make_split(12, 0), "test": tiny.make_split(5, 1)}


def write(path, split, pictures=None, names=True, labels=None):
    """Write a split as Hugging Face does, or with bare bytes and no names."""
    pictures = pictures or [encode(image) for image in split.images]
    images = [{"bytes": p, "path": None} for p in pictures] if names else pictures
    labels = split.labels if labels is None else labels
    table = pa.table({"width": [8] * len(images), "img": images, "label": labels})
    if names:
        stored = json.dumps({"info": {"features": FEATURES}})
        table = table.replace_schema_metadata({"huggingface": stored})
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(table, path)


load = partial(test_own.load, validation_size=3)


@pytest.mark.parametrize("names", [True, False])
def test_images_labels_and_names_are_those_stored(tmp_path, names):
    for split, content in SPLITS.items():
        path = tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet"
        write(path, content, names=names)
    for _ in range(2):  # From the files, then from the cache.
        dataset = load(tmp_path)
        want = ("red", "green", "blue") if names else ("0", "1", "2")
        assert dataset.class_names == want
        for split, found in test_own.official(dataset).items():
            images, labels, _ = SPLITS[split]
            np.testing.assert_array_equal(found.images, images)
            np.testing.assert_array_equal(found.labels, labels)
            ids = [f"{split}_{i:05d}" for i in range(len(labels))]
            assert found.ids.tolist() == ids
    assert load(tmp_path, image_size=4).image_shape == (4, 4, 3)


@pytest.mark.parametrize("names", [(-5, 7, 10**9), ("ant", "bee", "cow")])
def test_labels_may_have_gaps_or_be_texts(tmp_path, names):
    labels = [names[i] for i in SPLITS["train"].labels]
    write(tmp_path / "train.parquet", SPLITS["train"], names=False, labels=labels)
    dataset = load(tmp_path)
    assert dataset.class_names == tuple(map(str, names))
    there = [int(name.removeprefix("train_")) for name in dataset.train.ids]
    np.testing.assert_array_equal(dataset.train.labels, SPLITS["train"].labels[there])


def test_pandas_and_polars_labels_are_not_passed_over(tmp_path):
    names = pa.array(["ant", "bee", "cow"] * 4)
    for labels in (names.dictionary_encode(), names.cast(pa.large_string())):
        write(tmp_path / "train.parquet", SPLITS["train"], names=False, labels=labels)
        assert load(tmp_path).class_names == ("ant", "bee", "cow")
    labels = [0.0, 1.0, 2.0] * 4
    write(tmp_path / "train.parquet", SPLITS["train"], names=False, labels=labels)
    assert "has a label of double, not of integers or" in test_own.refuse(tmp_path)


def test_a_file_is_of_the_split_that_its_folder_or_its_name_says(tmp_path):
    place = tmp_path / "training"
    for split, content in SPLITS.items():
        write(place / f"{split}.parquet", content)
    np.testing.assert_array_equal(load(place).test.images, SPLITS["test"].images)
    (place / "test").mkdir()
    (place / "test.parquet").rename(place / "test" / "train-of-no-use.parquet")
    np.testing.assert_array_equal(load(place).test.images, SPLITS["test"].images)
    write(place / "b" / "train.parquet", SPLITS["train"])
    assert "train is in 2 folders (., b, ...); name one" in test_own.refuse(place)
    for path in place.rglob("train*.parquet"):
        path.unlink()
    write(place / "all.parquet", SPLITS["train"])
    assert "it has all.parquet, but no train-" in test_own.refuse(place)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(line):
        assert line in test_own.refuse(tmp_path, validation_size=3)

    train, test = SPLITS["train"], SPLITS["test"]
    path, other = (tmp_path / split / "0.parquet" for split in ("train", "test"))
    write(path, train, [b"no picture", *[encode(test.images[0])] * 11])
    refuse("1 of 12 pictures cannot be read: 0.parquet, row 0 (not a")
    write(path, train)
    write(other, test, labels=[0, 1, 2, 3, 0])
    refuse("test has labels that none of 3 names is")
    write(other, test, labels=[0, 1, None, 2, 0])
    refuse("0.parquet, row 2 has no label")
    with monkeypatch.context() as patch:
        patch.setitem(FEATURES, "label", {"names": ["green", "red", "blue"]})
        write(other, test)
    refuse("store other classes, or in another order")
    write(other, test, names=False)
    write(path, train, names=False, labels=[0, 1] * 6)
    refuse("test has the label 2, train has not")
    write(path, tiny.Split(*(array[:0] for array in train)))
    refuse("0.parquet has width, img, label, but not a column of images")
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "label": [0]}), path)
    refuse("has text, label, but not a column of images")
    path.write_bytes(path.read_bytes()[:-9])
    refuse("Parquet magic bytes not found")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuse("pip install 'dwsep_jax[parquet]'")
