"""One's own data: folders of pictures, .npz files, CIFAR-10's binary files."""

import os

import numpy as np
import pytest

from dwsep_jax import data
from dwsep_jax.data import folder, own, pictures
from dwsep_jax.errors import ConfigError, DataError
from tests import tiny
from tests.data import picture_files
from tests.data.picture_files import READABLE, UNREADABLE, encode, plain, write
from tests.data.tfds_files import write_dataset

PARTS = ("train", "validation", "train_eval", "test")
PICTURE = plain("RGB", (1, 2, 3))


def load(name, **fields):
    fields = {"validation_size": 2, "data_dir": "/nonexistent", **fields}
    return data.load(tiny.make_config(dataset=str(name), **fields))


def write_folder(folder, files):
    """Write {path: content} below a folder; None stands for a picture."""
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            write(path, PICTURE if content is None else content)
    return folder


def refuse(name, error=DataError, **fields):
    """Return the line that data get."""
    with pytest.raises(error) as info:
        load(name, **fields)
    assert type(info.value) is error
    assert "\n" not in str(info.value)
    assert str(info.value).startswith(f"dataset={name}: ")
    return str(info.value)


def assert_equal(a, b, but=()):
    assert a.class_names == b.class_names
    for part in PARTS:
        for field in set(data.Split._fields).difference(but):
            x, y = (getattr(getattr(d, part), field) for d in (a, b))
            np.testing.assert_array_equal(x, y, strict=True)


@pytest.fixture(scope="module")
def digits():
    return load("digits", validation_size=100)


def official(dataset):
    """Return {split: images, labels, ids} as they were before validation was drawn."""
    order = np.argsort(np.concatenate([dataset.train.ids, dataset.validation.ids]))
    pairs = zip(dataset.train, dataset.validation)
    train = data.Split(*(np.concatenate(pair)[order] for pair in pairs))
    return {"train": train, "test": dataset.test}


def test_digits_as_pictures_are_the_digits(digits, tmp_path, capsys):
    for split, examples in official(digits).items():
        for image, label, id_ in zip(*examples):
            write(tmp_path / split / str(label) / f"{id_}.png", encode(image))
    for _ in range(2):  # The second time from the cache.
        assert_equal(load(tmp_path, validation_size=100), digits)
    assert capsys.readouterr().out.count("decoding") == 1
    small = load(tmp_path, image_size=16, validation_size=100)
    assert_equal(small, load("digits", validation_size=100, image_size=16))
    assert small.image_shape == (16, 16, 3)
    # Both caches stay.
    assert len(list(tmp_path.glob("arrays*.npz"))) == 2


@pytest.mark.parametrize("names", ["x_{} y_{}", "{}_images {}_labels"])
def test_digits_as_arrays_are_the_digits(digits, tmp_path, names):
    train, test = official(digits).values()
    keys = " ".join(names.format(split, split) for split in ("train", "test"))
    arrays = (train.images, train.labels[:, None], test.images, test.labels)
    np.savez(tmp_path / "a.npz", **dict(zip(keys.split(), arrays)))
    dataset = load(tmp_path / "a.npz", validation_size=100)
    assert_equal(dataset, digits, but=["ids"])
    assert dataset.test.ids[7] == "test_00007"


@pytest.mark.parametrize("name", READABLE)
def test_a_picture_comes_out_right(tmp_path, name):
    content, color = READABLE[name]
    write_folder(tmp_path, {f"train/a/{name}": content, "train/b/x.png": None})
    dataset = own.load(str(tmp_path), 4)[1]["train"]
    images = dict(zip(dataset.ids.tolist(), dataset.images))
    image = images[os.path.splitext(name)[0]]
    assert image.shape == (4, 4, 3)
    np.testing.assert_allclose(image[-1, 0].astype(int), color, atol=1)


def test_all_unreadable_pictures_are_named(tmp_path):
    files = {f"train/a/{name}": content for name, (content, _) in UNREADABLE.items()}
    write_folder(tmp_path, files | {"train/b/x.png": None, "train/a/x.png": None})
    line = refuse(tmp_path)
    for name, (_, reason) in UNREADABLE.items():
        _, _, told = line.partition(f"{tmp_path}/train/a/{name} (")
        assert told
        assert reason in told.partition("), ")[0]
    count = f"{len(UNREADABLE)} of {len(UNREADABLE) + 2} pictures cannot be read: "
    assert count in line
    assert line.endswith("; repair or delete them")
    for i in range(30):
        write(tmp_path / f"train/b/{i}.png", b"")
    line = refuse(tmp_path)
    assert f"... ({len(UNREADABLE) + 30} in all)" in line
    assert line.count(".png (") < 20 + 1


def test_gray_stays_gray_where_all_are(tmp_path):
    gray = {"train/a/a.png": plain("L", 7), "train/b/b.png": plain("LA", (9, 255))}
    _, splits = own.load(str(write_folder(tmp_path, gray)), None)
    assert splits["train"].images.shape == (2, 4, 4, 1)
    assert splits["train"].images[:, 0, 0, 0].tolist() == [7, 9]


FOUR = {f"train/{label}/{i}.png": None for label in "ab" for i in range(4)}


@pytest.mark.parametrize(
    ("others", "sizes", "line"),
    [
        ([], (4, 2, 2, 2), "validation and test"),
        (["test/a/t.png"], (6, 2, 2, 1), "validation"),
        (["val/a/v.png"], (6, 1, 1, 2), "test"),
        (["validation/b/v.png", "test/a/t.png"], (8, 1, 1, 1), "nothing"),
    ],
)
def test_splits_that_are_missing_are_held_out(tmp_path, others, sizes, line, capsys):
    write_folder(tmp_path, FOUR | dict.fromkeys(others))
    for _ in range(2):  # The second time from the cache.
        dataset = load(tmp_path)
        assert tuple(len(getattr(dataset, part).ids) for part in PARTS) == sizes
    said = f"{tmp_path}: held out of train by split_seed: {line}\n"
    assert said in capsys.readouterr().out
    ids = [set(getattr(dataset, part).ids) for part in ("train", "validation", "test")]
    assert len(set.union(*ids)) == sum(map(len, ids))
    held_out = [set(load(tmp_path, split_seed=s).test.ids) for s in range(9)]
    assert (len({*map(frozenset, held_out)}) > 1) == ("test" in line)


UNEQUAL = FOUR | {"train/b/x.png": plain("L", 0, (9, 5))}


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"x.png": None}, "it has no folder train/; put pictures into train/<class>/"),
        (FOUR | {"val/a/x.png": None, "validation/": 0}, "validation/ and val/; keep"),
        (FOUR | {"train/c/": 0, "train/d/a.txt": b""}, "has no picture (.png, .jpg, "),
        (FOUR | {"train/c/": 0, "train/d/a.txt": b""}, ".webp) in c, d; add some, or"),
        (FOUR | {"test/": 0}, ".webp) in any class; add some"),
        (FOUR | {"test/c/x.png": None}, "test/ has the class c, and train/ has not"),
        (FOUR | {"train/x.png": None}, "/train/x.png is in no class; move it to /"),
        (UNEQUAL, "train/a/0.png is 4x4"),
        (UNEQUAL, "x.png 9x5 (1 of 9 differ from the first); set --config.image_size="),
        (FOUR | {"train/b/x\udcff.png": None}, r"x\udcff.png' is not text in UTF-8"),
        ({"train/a/x.png": None}, "all images are of class a; add another class"),
        ({"data_batch_1": b"x"}, "its files are pickles, which may run any code; take"),
        ({"data_batch_1.bin": b"x"}, "No such file"),
    ],
)
def test_a_folder_that_is_not_laid_out_so_is_one_line(tmp_path, files, line):
    assert line in refuse(write_folder(tmp_path, files))


def test_too_many_pictures_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("dwsep_jax.data.read.MAX_BYTES", 8 * 16 * 16 * 3 - 1)
    write_folder(tmp_path, FOUR)
    assert "; take a smaller --config.image_size" in refuse(tmp_path, image_size=16)
    load(tmp_path, image_size=15)


def test_threads_leave_each_picture_at_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(folder, "_BLOCK", 3)
    for i in range(100):
        write(tmp_path / f"train/{i % 7}/{i:02d}.png", plain("L", i, (80, 60)))
    names, splits = own.load(str(tmp_path), None)
    images, labels, ids = splits["train"]
    assert images.shape == (100, 60, 80, 1)
    for i in range(100):
        assert (names[labels[i]], ids[i]) == (str(i % 7), f"{i:02d}")
        assert (images[i] == i).all()


def test_names_of_any_script_hidden_files_and_gaps_work(tmp_path, capsys):
    other = "\u4e2d\u6587 \N{GRINNING FACE}"
    hidden = "train/.DS_Store", "train/\u00e9/._x.png", "train/.x/y.png"
    no_pictures = dict.fromkeys((*hidden, "train/\u00e9/Thumbs.db", "README"), b"")
    # The same letter, composed and not, as archives from macOS have it.
    files = "train/\u00e9/1.png", "train/\u00e9/deep/2.png", "test/e\u0301/1.png"
    files = dict.fromkeys((*files, f"train/{other}/1.png"))
    write_folder(tmp_path, files | no_pictures)
    names, splits = own.load(str(tmp_path), None)
    assert names == ("\u00e9", other)
    # 1.png is there twice: then folders and suffixes are parts of the ids.
    ids = ["\u00e9/1.png", "\u00e9/deep/2.png", f"{names[1]}/1.png"]
    assert splits["train"].ids.tolist() == ids
    assert splits["train"].labels.tolist() == [0, 0, 1]
    assert splits["test"].ids.tolist() == ["1"]
    left_out = f"1 other files are left out: {tmp_path}/train/\u00e9/Thumbs.db\n"
    assert f"/train: {left_out}" in capsys.readouterr().out
    numbers = {f"train/{name}/x.png": None for name in ("2", "10", "02")}
    numbers = write_folder(tmp_path / "numbers", numbers)
    assert own.load(str(numbers), None)[0] == ("02", "2", "10")


def test_the_only_picture_of_a_class_is_trained_on(tmp_path):
    files = {f"train/{label}/x.png": None for label in "abcde"}
    write_folder(tmp_path, files | {f"train/f/{i}.png": None for i in range(20)})
    dataset = load(tmp_path, validation_size=8)
    assert set(dataset.train.labels) == set(range(6))
    assert len(dataset.validation.labels) == 8


def test_a_picture_that_changes_is_decoded_again(tmp_path, capsys):
    write_folder(tmp_path, FOUR)
    before = load(tmp_path).class_names
    (tmp_path / "train/b").rename(tmp_path / "train/c")
    assert (before, load(tmp_path).class_names) == (("a", "b"), ("a", "c"))
    write(tmp_path / "train/a/0.png", plain("RGB", (255, 255, 255)))
    images = own.load(str(tmp_path), None)[1]["train"].images
    assert images.max() == 255
    assert capsys.readouterr().out.count("was decoded from other files") == 2


IMAGES, LABELS = np.zeros((6, 5, 4), np.uint8), np.array([0, 5, 9] * 2)
GOOD = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS}


def test_labels_of_arrays_are_names_or_numbers_with_gaps(tmp_path):
    for labels, names in (
        (LABELS, ("0", "5", "9")),
        (LABELS[:, None].astype(np.uint8), ("0", "5", "9")),
        (np.array(["\u4e2d", "a\x1b", "b"] * 2), ("a ", "b", "\u4e2d")),
        (LABELS > 3, ("False", "True")),
    ):
        arrays = GOOD | {"y_train": labels, "y_test": labels}
        np.savez(tmp_path / "a.npz", **arrays, x_val=IMAGES, y_val=labels)
        found, splits = own.load(f"{tmp_path}/a.npz", None)
        assert found == names
        assert set(splits) == {"train", "validation", "test"}
        assert splits["validation"].images.shape == (6, 5, 4, 1)
        _, want = np.unique(labels.ravel(), return_inverse=True)
        np.testing.assert_array_equal(splits["train"].labels, want)


def test_arrays_that_are_not_so_are_one_line(tmp_path):
    for changes, line in (
        ({"x_train": None, "y_train": None}, "it has x_test, y_test, but no x_train"),
        ({"y_train": None}, "y_train"),
        ({"x_train": IMAGES / 255}, "x_train is float64 (6, 5, 4)"),
        ({"x_train": IMAGES[0]}, "x_train is uint8 (5, 4)"),
        ({"x_train": IMAGES[:, :3, None]}, "x_train is uint8 (6, 3, 1, 4)"),
        ({"y_train": LABELS[:4]}, "y_train is int64 (4,)"),
        ({"y_train": np.eye(6)}, "y_train is float64 (6, 6)"),
        ({"y_train": LABELS.astype(object)}, "Object arrays cannot be loaded"),
        ({"y_test": LABELS + 1}, "test has the label 1, train has not"),
        ({"x_test": IMAGES[:, 1:]}, "test has images of (4, 4, 1), train (5, 4, 1)"),
        ({"x_test": IMAGES[:0], "y_test": LABELS[:0]}, "x_test is uint8 (0, 5, 4)"),
        ({"y_train": 0 * LABELS, "y_test": 0 * LABELS}, "all images are of class 0"),
    ):
        arrays = {k: v for k, v in (GOOD | changes).items() if v is not None}
        np.savez(tmp_path / "a.npz", **arrays)
        said = refuse(tmp_path / "a.npz")
        assert line in said
        assert "; an .npz has x_train, y_train, x_test and y_test, as np.savez" in said


def test_damaged_arrays_are_one_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **GOOD)
    content = path.read_bytes()
    for damaged in (b"", b"hello", content[:-30]):
        path.write_bytes(damaged)
        assert ": it is no .npz, or a part of one; an .npz has" in refuse(path)
    path.write_bytes(content.replace(bytes(9), b"x" * 9, 1))
    assert "BadZipFile: Bad CRC-32" in refuse(path)


def test_binary_files_of_cifar10_are_read(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3, 32, 32), np.uint8)
    records = [bytes([i % 2]) + image.tobytes() for i, image in enumerate(images)]
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        write(tmp_path / f"{name}.bin", b"".join(records[2 * i : 2 * i + 2]))
    write(tmp_path / "batches.meta.txt", b"cat\ndog\n\n")
    names, splits = own.load(str(tmp_path), None)
    assert names == ("cat", "dog")
    both = [splits[split].images for split in ("train", "test")]
    np.testing.assert_array_equal(np.concatenate(both), images.transpose(0, 2, 3, 1))
    assert splits["train"].labels.tolist() == [0, 1] * 5
    assert splits["train"].ids[9] == "train_00009"
    write(tmp_path / "test_batch.bin", records[0][:-1])
    assert "test_batch.bin is cut off" in refuse(tmp_path)
    write(tmp_path / "test_batch.bin", b"\x07" + records[0][1:])
    assert "test has a label 7" in refuse(tmp_path)


def test_what_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b", "flowers", "toy/1.0.0"):
        (tmp_path / name).mkdir(parents=True)
    write_dataset(tmp_path / "tfds/toy/1.0.0/2.0.0")
    paths = ["./x", "../x", "/x/y", "x/y/z", "a/b", "x.npz", ".", "~/x"]
    names = ["cifar10", "flowers", "x/y", "toy/1.0.0", "x.png"]
    for name in paths + names:
        assert own.is_path(name, tmp_path / "tfds") == (name in paths), name
    message = r"'flowers' is not prepared in .*; to name what .* write \./flowers"
    with pytest.raises(ConfigError, match=f"^dataset={message}"):
        load("flowers")
    assert f"{tmp_path}/x is not there; name a folder" in refuse("./x", ConfigError)
    write(tmp_path / "x.tar.gz", b"")
    assert "x.tar.gz is no folder and no .npz; na" in refuse("./x.tar.gz", ConfigError)


@pytest.mark.parametrize("name", ["digits", "./x"])
def test_the_label_is_of_tfds(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"^label=fine: {name} has one label for"):
        load(name, label="fine")


def test_pictures_keep_their_pixels_where_the_size_fits():
    images = picture_files.NOISE[None]
    assert pictures.resize(images, 16) is images
    gray = pictures.resize(images[:, :8, :, :1], 8)
    np.testing.assert_array_equal(gray, images[:, :8, 4:12, :1])


def test_too_few_images_are_told_to_become_more(tmp_path):
    write_folder(tmp_path, {f"train/{c}/{i}.png": None for c in "ab" for i in (0, 1)})
    with pytest.raises(ConfigError, match=r"there are 2 training .* classes; add some"):
        load(tmp_path)
