"""Parquet files as Hugging Face's datasets have them."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from dwsep_jax import data
from dwsep_jax.errors import DataError
from tests import tiny
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


def load(directory, **fields):
    fields = {"validation_size": 3, "data_dir": "/nonexistent", **fields}
    return data.load(tiny.make_config(dataset=str(directory), **fields))


@pytest.mark.parametrize("names", [True, False])
def test_images_labels_and_names_are_those_stored(tmp_path, names):
    for split, content in SPLITS.items():
        path = tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet"
        write(path, content, names=names)
    for _ in range(2):  # From the files, then from the cache.
        dataset = load(tmp_path)
        want = ("red", "green", "blue") if names else ("0", "1", "2")
        assert dataset.class_names == want
        np.testing.assert_array_equal(dataset.test.images, SPLITS["test"].images)
        np.testing.assert_array_equal(dataset.test.labels, SPLITS["test"].labels)
        both = np.concatenate([dataset.train.ids, dataset.validation.ids])
        assert sorted(both) == [f"train_{i:05d}" for i in range(12)]
        for part in (dataset.train, dataset.validation):
            there = [int(name.removeprefix("train_")) for name in part.ids]
            np.testing.assert_array_equal(part.images, SPLITS["train"].images[there])
            np.testing.assert_array_equal(part.labels, SPLITS["train"].labels[there])
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
    with pytest.raises(DataError, match="has a label of double, not of integers or"):
        load(tmp_path)


def test_a_file_is_of_the_split_that_its_folder_or_its_name_says(tmp_path):
    place = tmp_path / "training"
    for split, content in SPLITS.items():
        write(place / f"{split}.parquet", content)
    np.testing.assert_array_equal(load(place).test.images, SPLITS["test"].images)
    (place / "test").mkdir()
    (place / "test.parquet").rename(place / "test" / "train-of-no-use.parquet")
    np.testing.assert_array_equal(load(place).test.images, SPLITS["test"].images)
    write(place / "b" / "train.parquet", SPLITS["train"])
    with pytest.raises(
        DataError, match=r"train is in 2 folders \(\., b, \.\.\.\); name one"
    ):
        load(place)
    for path in place.rglob("train*.parquet"):
        path.unlink()
    write(place / "all.parquet", SPLITS["train"])
    with pytest.raises(DataError, match=r"it has all\.parquet, but no train-.*rename"):
        load(place)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "train" / "0.parquet"
    write(
        path, SPLITS["train"], [b"no picture", *[encode(SPLITS["test"].images[0])] * 11]
    )
    with pytest.raises(
        DataError, match=r"1 of 12 pictures .* 0.parquet, row 0 \(not a"
    ):
        load(tmp_path)
    write(path, SPLITS["train"])
    write(tmp_path / "test" / "0.parquet", SPLITS["test"], labels=[0, 1, 2, 3, 0])
    with pytest.raises(DataError, match="test has labels that none of 3 names is"):
        load(tmp_path)
    write(tmp_path / "test" / "0.parquet", SPLITS["test"], labels=[0, 1, None, 2, 0])
    with pytest.raises(DataError, match=r"0.parquet, row 2 has no label"):
        load(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(FEATURES, "label", {"names": ["green", "red", "blue"]})
        write(tmp_path / "test" / "0.parquet", SPLITS["test"])
    with pytest.raises(DataError, match="store other classes, or in another order"):
        load(tmp_path)
    write(tmp_path / "test" / "0.parquet", SPLITS["test"], names=False)
    write(path, SPLITS["train"], names=False, labels=[0, 1] * 6)
    with pytest.raises(DataError, match="test has the label 2, train has not"):
        load(tmp_path)
    write(path, tiny.Split(*(array[:0] for array in SPLITS["train"])))
    with pytest.raises(DataError, match=r"0.parquet has no rows|not a column of ima"):
        load(tmp_path)
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "label": [0]}), path)
    with pytest.raises(DataError, match="has text, label, but not a column of images"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="Parquet magic bytes not found"):
        load(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'dwsep_jax\[parquet\]'"):
        load(tmp_path)
