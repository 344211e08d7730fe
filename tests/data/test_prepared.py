"""Preparing CIFAR-10 and digits, and reading what TFDS prepared, without TensorFlow."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums, downloader

from dwsep_jax.data import cifar10, digits, prepare, read
from dwsep_jax.errors import DataError

NAMES = [*"abcdefghij"]
PER_FILE = 20


def make_archive(path, *, per_file=PER_FILE, without=(), names=NAMES):
    """Write an archive of the official form with few images; return its records."""
    rng = np.random.default_rng(0)
    records = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:

        def add(name, content):
            if name not in without:
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

        add("batches.meta.txt", "\n".join([*names, ""]).encode())
        add("readme.html", b"not wanted")
        for name in (*cifar10.FILES["train"], *cifar10.FILES["test"]):
            batch = rng.integers(0, 256, (per_file, 3073), np.uint8)
            batch[:, 0] = rng.integers(0, 10, per_file)
            records[name] = batch
            add(name, batch.tobytes())
    return records


def accept(monkeypatch, path):
    """Take this archive for the official one."""
    monkeypatch.setattr(cifar10, "SIZE", path.stat().st_size)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "SHA256", digest)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, *args, **kwargs):
        raise AssertionError(f"asked for {url}")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setattr(downloader, "_open_url", refuse)


@pytest.fixture
def small(monkeypatch):
    """Archives have 20 images a file."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", PER_FILE)


@pytest.fixture
def manual(tmp_path, monkeypatch, small):
    path = tmp_path / "downloads/manual/cifar-10-binary.tar.gz"
    records = make_archive(path)
    accept(monkeypatch, path)
    return path, records


def leftovers(data_dir):
    pattern = re.compile(r"incomplete|\.tmp|preparing")
    return [str(path) for path in data_dir.rglob("*") if pattern.search(path.name)]


def test_cifar10_from_the_manual_directory(tmp_path, manual):
    _, records = manual
    version_dir = cifar10.prepare(tmp_path)
    assert version_dir == tmp_path / "cifar10/3.0.2"
    class_names, splits = read.read(version_dir)
    assert list(class_names) == NAMES
    for split, names in cifar10.FILES.items():
        expected = np.concatenate([records[name] for name in names])
        images = expected[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(splits[split].images, images)
        np.testing.assert_array_equal(splits[split].labels, expected[:, 0])
        ids = [f"{split}_{i:05d}" for i in range(len(expected))]
        np.testing.assert_array_equal(splits[split].ids, ids)
    assert not leftovers(tmp_path)


def test_tfds_itself_reads_what_we_prepared(tmp_path, manual):
    _, records = manual
    cifar10.prepare(tmp_path)
    builder = tfds.builder("cifar10", data_dir=tmp_path)
    assert builder.info.features["label"].names == NAMES
    source = builder.as_data_source("test")
    assert len(source) == PER_FILE
    example = source[0]
    record = records["test_batch.bin"][int(example["id"].decode()[-5:])]
    assert example["label"] == record[0]


def test_prepared_once(tmp_path, manual):
    path, _ = manual
    version_dir = cifar10.prepare(tmp_path)
    path.unlink()
    before = (version_dir / "dataset_info.json").stat().st_mtime_ns
    assert cifar10.prepare(tmp_path) == version_dir
    assert (version_dir / "dataset_info.json").stat().st_mtime_ns == before


def test_wrong_archive_in_the_manual_directory(tmp_path, manual):
    path, _ = manual
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not the official archive .* delete it"):
        cifar10.prepare(tmp_path)
    assert not leftovers(tmp_path)
    make_archive(path)
    # gzip notes the time, so the checksum is taken anew.
    with pytest.MonkeyPatch.context() as patch:
        accept(patch, path)
        assert len(read.read(cifar10.prepare(tmp_path))[1]["train"].ids) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_file": PER_FILE - 1}, r"has 58387 bytes, not 61460: delete"),
        ({"without": ["data_batch_3.bin"]}, "lacks data_batch_3.bin: delete"),
        ({"without": ["batches.meta.txt"]}, "lacks batches.meta.txt: delete"),
        ({"names": NAMES[:9]}, "does not list 10 names: delete"),
    ],
)
def test_archive_with_other_content(tmp_path, monkeypatch, small, options, message):
    path = tmp_path / "downloads/manual/cifar-10-binary.tar.gz"
    make_archive(path, **options)
    accept(monkeypatch, path)
    with pytest.raises(DataError, match=f"^{path}:? .*{message}"):
        cifar10.prepare(tmp_path)
    assert not leftovers(tmp_path)
    assert read.find_version_dir(tmp_path, "cifar10") is None


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_archive(tmp_path, manual, monkeypatch, keep):
    path, _ = manual
    size = path.stat().st_size
    os.truncate(path, int(keep * size) if keep < 1 else keep)
    accept(monkeypatch, path)  # The checksum alone would not show what follows.
    with pytest.raises(DataError, match=rf"^{path} (cannot be unpacked|lacks)"):
        cifar10.prepare(tmp_path)
    assert not leftovers(tmp_path)


class FakeHost:
    """Stands for the two ways out to the network: our probe, and TFDS's download."""

    def __init__(self, monkeypatch, content):
        self.content, self.downloads = content, 0
        monkeypatch.setattr(cifar10, "_probe", lambda url: "200")
        monkeypatch.setattr(downloader, "_open_url", self.open)

    def open(self, url, **kwargs):
        self.downloads += 1

        class Response:
            headers = {}  # noqa: RUF012

        Response.url = url

        def blocks():
            for start in range(0, len(self.content), 1000):
                yield self.content[start : start + 1000]

        return contextlib.nullcontext((Response, blocks()))


@pytest.fixture
def official(tmp_path, monkeypatch, small):
    """The bytes of what the host would serve, and their records."""
    path = tmp_path / "official.tar.gz"
    records = make_archive(path)
    accept(monkeypatch, path)
    return path.read_bytes(), records


def test_cifar10_downloaded(tmp_path, monkeypatch, official):
    content, records = official
    host = FakeHost(monkeypatch, content)
    _, splits = read.read(cifar10.prepare(tmp_path / "data"))
    labels = records["test_batch.bin"][:, 0]
    np.testing.assert_array_equal(splits["test"].labels, labels)
    assert host.downloads == 1
    assert not leftovers(tmp_path)
    # What was downloaded is where TFDS looks for it: no second download.
    subprocess.run(["rm", "-r", tmp_path / "data/cifar10"], check=True)
    cifar10.prepare(tmp_path / "data")
    assert host.downloads == 1
    manager = tfds.download.DownloadManager(
        download_dir=tmp_path / "data/downloads",
        dataset_name="cifar10",
        url_infos={
            cifar10.URL: checksums.UrlInfo(
                cifar10.SIZE, cifar10.SHA256, cifar10.ARCHIVE
            )
        },
    )
    assert pathlib.Path(manager.download(cifar10.URL)).read_bytes() == content
    assert host.downloads == 1


def test_cached_download_that_rotted_is_downloaded_again(
    tmp_path, monkeypatch, official
):
    host = FakeHost(monkeypatch, official[0])
    cifar10.prepare(tmp_path)
    subprocess.run(["rm", "-r", tmp_path / "cifar10"], check=True)
    (cached,) = (tmp_path / "downloads/cifar10").glob("*.gz")
    os.truncate(cached, 100)
    cifar10.prepare(tmp_path)
    assert host.downloads == 2
    assert cached.read_bytes() == official[0]


def test_corrupt_download_leaves_nothing_and_the_next_start_works(
    tmp_path, monkeypatch, official
):
    host = FakeHost(monkeypatch, official[0][:-1] + b"?")
    with pytest.raises(DataError, match=r"could not be downloaded .*Checksum") as info:
        cifar10.prepare(tmp_path / "data")
    assert "\n" not in str(info.value)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    host.content = official[0]
    assert cifar10.prepare(tmp_path / "data").is_dir()


def test_connection_that_breaks_leaves_nothing(tmp_path, monkeypatch, official):
    host = FakeHost(monkeypatch, official[0])
    whole = host.open

    def breaking(url, **kwargs):
        def blocks():
            yield official[0][:1000]
            raise requests.exceptions.ChunkedEncodingError("Connection broken")

        context = whole(url)
        context.enter_result = (context.enter_result[0], blocks())
        return context

    monkeypatch.setattr(downloader, "_open_url", breaking)
    with pytest.raises(DataError, match=r"Connection broken.*connect once"):
        cifar10.prepare(tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


@pytest.mark.parametrize("moment", ["download", "prepare", "rename"])
def test_killed_then_started_again(tmp_path, monkeypatch, official, moment):
    archive = tmp_path / "official.tar.gz"
    code = f"""
import contextlib, os, pathlib
from PIL import Image
from tensorflow_datasets.core.download import downloader
from dwsep_jax.data import cifar10
content = pathlib.Path({str(archive)!r}).read_bytes()
cifar10.IMAGES_PER_FILE = {PER_FILE}
cifar10.SIZE, cifar10.SHA256 = {cifar10.SIZE}, {cifar10.SHA256!r}
cifar10._probe = lambda url: "200"
class Response:
    headers, url = {{}}, cifar10.URL
def blocks():
    yield content[:1000]
    if {moment!r} == "download":
        os._exit(9)
    yield content[1000:]
downloader._open_url = (
    lambda url, **kwargs: contextlib.nullcontext((Response, blocks())))
if {moment!r} == "prepare":
    encode, seen = Image.fromarray, []
    def fromarray(array):
        if len(seen) == 30:
            os._exit(9)
        seen.append(array)
        return encode(array)
    Image.fromarray = fromarray
if {moment!r} == "rename":
    # The last one: TFDS renames too, within the staging directory.
    rename = os.rename
    os.rename = lambda a, b: (
        rename(a, b) if "preparing" in os.fspath(b) else os._exit(9))
cifar10.prepare(pathlib.Path({str(tmp_path)!r}))
"""
    root = pathlib.Path(cifar10.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 9, result.stderr
    assert leftovers(tmp_path)
    assert read.find_version_dir(tmp_path, "cifar10") is None
    host = FakeHost(monkeypatch, official[0])
    _, splits = read.read(cifar10.prepare(tmp_path))
    assert len(splits["train"].ids) == 5 * PER_FILE
    assert not leftovers(tmp_path)
    # A whole download outlives a preparation that was killed.
    assert host.downloads == (1 if moment == "download" else 0)


def test_debris_of_others_is_left_alone(tmp_path, manual):
    # A TFDS process that is alive works in directories named so.
    theirs = [
        tmp_path / "cifar10/incomplete.ABCDEF_3.0.2/shard",
        tmp_path / "downloads/cifar10/cs.toronto.edu.tmp.0123/part",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.touch()
    cifar10.prepare(tmp_path)
    assert all(path.exists() for path in theirs)


def test_second_process_waits_and_finds_it_done(tmp_path, manual):
    (tmp_path / "cifar10").mkdir()
    done = []
    with prepare.locked(tmp_path / "cifar10"):
        thread = threading.Thread(target=lambda: done.append(cifar10.prepare(tmp_path)))
        thread.start()
        # Without the lock it would be through with this before long.
        thread.join(0.2)
        assert not (tmp_path / "cifar10/.preparing").exists()
        ready = tmp_path / "cifar10/3.0.2"
        ready.mkdir()
        for name in ("dataset_info.json", "features.json"):
            (ready / name).touch()
    thread.join()
    assert done == [ready]
    assert len(list(ready.iterdir())) == 2


def test_directory_that_is_no_dataset(tmp_path, manual):
    (tmp_path / "cifar10/3.0.2").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cifar10/3\.0\.2 is not what TFDS writes"):
        cifar10.prepare(tmp_path)


def test_offline_names_three_ways_out(tmp_path, monkeypatch):
    def unresolved(*args, **kwargs):
        raise requests.ConnectionError("a long story\nin many lines")

    monkeypatch.setattr(requests, "get", unresolved)
    with pytest.raises(DataError) as info:
        cifar10.prepare(tmp_path)
    message = str(info.value)
    assert "\n" not in message
    assert "www.cs.toronto.edu cannot be reached" in message
    assert "connect once" in message
    assert f"{tmp_path}/downloads/manual/cifar-10-binary.tar.gz" in message
    assert "--config=configs/digits.py" in message
    assert not leftovers(tmp_path)


def test_a_host_that_never_answers_is_left_waiting(tmp_path, monkeypatch):
    asked, never = threading.Event(), threading.Event()

    def silent(url, *, timeout, stream):
        assert timeout == cifar10.PROBE_TIMEOUT_S
        asked.set()
        never.wait(10)
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", silent)
    assert cifar10.PROBE_BOUND_S < 20
    monkeypatch.setattr(cifar10, "PROBE_BOUND_S", 0.05)
    try:
        with pytest.raises(DataError, match=r"cannot be reached \(no answer\)"):
            cifar10.prepare(tmp_path)
        assert asked.is_set()
    finally:
        never.set()


def test_a_host_that_answers_with_an_error(tmp_path, monkeypatch):
    class Unavailable:
        status_code = 503

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: Unavailable())
    with pytest.raises(DataError, match=r"cannot be reached \(503\)"):
        cifar10.prepare(tmp_path)


def test_full_disk_while_preparing(tmp_path, monkeypatch, manual):
    def no_space(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", no_space)
        with pytest.raises(
            DataError,
            match=r"^cifar10 cannot be prepared.*No space left.*--config\.data_dir",
        ):
            cifar10.prepare(tmp_path)
    assert not leftovers(tmp_path)
    assert cifar10.prepare(tmp_path).is_dir()


def test_digits_are_those_of_scikit_learn(tmp_path):
    from sklearn import datasets

    version_dir = digits.prepare(tmp_path, tmp_path / "unused")
    assert version_dir == tmp_path / "digits/1.0.0"
    class_names, splits = read.read(version_dir)
    assert class_names == tuple("0123456789")
    official = datasets.load_digits()
    assert [len(splits[name].ids) for name in ("train", "test")] == [1437, 360]
    ids = np.concatenate([splits["train"].ids, splits["test"].ids])
    assert set(ids) == {f"digit_{i:05d}" for i in range(1797)}
    share = np.bincount(splits["test"].labels) / np.bincount(official.target)
    np.testing.assert_allclose(share, 0.2, atol=0.006)
    for split in splits.values():
        assert split.images.shape[1:] == (32, 32, 3)
        for i in range(0, len(split.ids), 50):
            k = int(split.ids[i].removeprefix("digit_"))
            assert split.labels[i] == official.target[k]
            for channel in range(3):
                np.testing.assert_array_equal(
                    split.images[i, :, :, channel], digits.enlarge(official.images[k])
                )
    assert not leftovers(tmp_path)
    assert not (tmp_path / "unused").exists()


def test_enlarging_by_hand():
    np.testing.assert_array_equal(digits.enlarge(np.full((8, 8), 16.0)), 255)
    ink = np.zeros((8, 8))
    ink[0, 7] = 16
    big = digits.enlarge(ink)
    # From centre to centre in steps of 1/4, the first half a step in; edges clamped.
    profile = np.array([1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0])
    np.testing.assert_array_equal(big[:8, 31], np.rint(255 * profile))
    np.testing.assert_array_equal(big[0, :-9:-1], np.rint(255 * profile))
    assert big[8:].max() == big[:, :24].max() == 0


def test_digits_go_to_the_cache_where_data_dir_cannot_be_written(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/digits").touch()  # Not a directory: mkdir fails.
    version_dir = digits.prepare(tmp_path / "data", tmp_path / "cache")
    assert version_dir == tmp_path / "cache/digits/1.0.0"


# What other programs wrote: directories as TFDS lays them out, written by hand.


def encode_image(array, image_format="PNG", mode=None):
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, image_format)
    return buffer.getvalue()


def encode_example(features):
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    return example.SerializeToString()


def write_tfrecord(path, examples):
    with open(path, "wb") as file:
        for record in map(encode_example, examples):
            # Length, crc, bytes, crc; nobody here looks at a crc.
            file.write(struct.pack("<QI", len(record), 0) + record + b"\0\0\0\0")


def write_dataset(
    version_dir,
    splits,
    *,
    shape=(8, 6, 3),
    features=None,
    file_format="tfrecord",
    counts=None,
):
    """Write a TFDS directory with two shards a split; `splits` maps to examples."""
    version_dir.mkdir(parents=True)
    name, version = version_dir.parent.name, version_dir.name
    features = features or {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=4),
    }
    config = tfds.features.FeaturesDict(features)
    config.save_config(version_dir)
    infos = []
    for split, examples in splits.items():
        shards = [examples[: len(examples) // 3], examples[len(examples) // 3 :]]
        for i, shard in enumerate(shards):
            shard_name = f"{name}-{split}.{file_format}-{i:05d}-of-00002"
            write_tfrecord(version_dir / shard_name, shard)
        lengths = (counts or {}).get(split) or [str(len(shard)) for shard in shards]
        infos.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": lengths,
            }
        )
    info = {
        "name": name,
        "version": version,
        "fileFormat": file_format,
        "splits": infos,
    }
    (version_dir / "dataset_info.json").write_text(json.dumps(info))


def make_examples(count, shape=(8, 6, 3), ids=None):
    rng = np.random.default_rng(len(ids or "") + count)
    arrays = rng.integers(0, 256, (count, *shape), np.uint8)
    examples = []
    for i, array in enumerate(arrays):
        plain = array[:, :, 0] if shape[-1] == 1 else array
        example = {"image": encode_image(plain), "label": i % 4}
        if ids:
            example["id"] = ids[i].encode()
        examples.append(example)
    return arrays, examples


@pytest.mark.parametrize("shape", [(8, 6, 3), (7, 7, 1)])
def test_tfrecords_without_ids_keep_their_order(tmp_path, shape):
    arrays, examples = make_examples(9, shape)
    version_dir = tmp_path / "toy/1.2.0"
    splits = {"train": examples, "test": examples[:3]}
    write_dataset(version_dir, splits, shape=shape)
    class_names, splits = read.read(version_dir)
    assert class_names == tuple("0123")
    np.testing.assert_array_equal(splits["train"].images, arrays)
    np.testing.assert_array_equal(splits["train"].labels, np.arange(9) % 4)
    assert splits["train"].labels.dtype == np.int32
    assert list(splits["test"].ids) == ["test_00000", "test_00001", "test_00002"]


def test_tfrecords_with_ids_are_sorted_by_them(tmp_path):
    ids = [f"x_{i}" for i in (5, 3, 8, 1, 2, 7)]
    arrays, examples = make_examples(6, ids=ids)
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(8, 6, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b", "c", "d"]),
    }
    version_dir = tmp_path / "toy/1.0.0"
    write_dataset(version_dir, {"train": examples, "test": examples}, features=features)
    class_names, splits = read.read(version_dir)
    assert class_names == ("a", "b", "c", "d")
    order = np.argsort(ids)
    np.testing.assert_array_equal(splits["train"].ids, np.sort(ids))
    np.testing.assert_array_equal(splits["train"].images, arrays[order])
    np.testing.assert_array_equal(splits["train"].labels, order % 4)


def image_of(shape, mode):
    return encode_image(np.zeros(shape, np.uint8), mode=mode)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (image_of((8, 6, 4), None), "8x6 RGBA"),
        (image_of((16, 16, 3), None), "16x16 RGB"),
        (image_of((6, 8, 3), None), "6x8 RGB"),
        (image_of((8, 6, 3), "P"), "8x6 P"),
        (image_of((8, 6), None), "8x6 L"),
    ],
    ids=["rgba", "large", "turned", "palette", "grey"],
)
def test_image_that_is_not_as_promised(tmp_path, image, found):
    _, examples = make_examples(6)
    examples[4]["image"] = image
    version_dir = tmp_path / "toy/1.0.0"
    write_dataset(version_dir, {"train": examples, "test": examples[:3]})
    with pytest.raises(DataError, match=f"train: example 4 is {found}, not 8x6 RGB"):
        read.read(version_dir)


@pytest.mark.parametrize("label", [-1, 4])
def test_label_out_of_range(tmp_path, label):
    _, examples = make_examples(6)
    examples[5]["label"] = label
    version_dir = tmp_path / "toy/1.0.0"
    write_dataset(version_dir, {"train": examples, "test": examples[:3]})
    with pytest.raises(DataError, match=f"example 5 has label {label}, of 4 classes"):
        read.read(version_dir)


@pytest.mark.parametrize(
    ("counts", "found"), [(["2", "5"], "6 examples"), (["2", "3"], "more examples")]
)
def test_count_that_is_not_as_promised(tmp_path, counts, found):
    _, examples = make_examples(6)
    version_dir = tmp_path / "toy/1.0.0"
    splits = {"train": examples, "test": examples[:3]}
    write_dataset(version_dir, splits, counts={"train": counts})
    with pytest.raises(DataError, match=f"train holds {found}"):
        read.read(version_dir)


IMAGE = tfds.features.Image(shape=(8, 6, 3))
LABEL = tfds.features.ClassLabel(num_classes=4)


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        ({"image": IMAGE, "text": tfds.features.Text()}, "no feature `label`"),
        ({"image": IMAGE, "label": tfds.features.Text()}, "no feature `label`"),
        ({"text": tfds.features.Text(), "label": LABEL}, "no feature `image`"),
        (
            {"image": tfds.features.Image(shape=(None, None, 3)), "label": LABEL},
            r"shape \(None, None, 3\)",
        ),
        (
            {"image": tfds.features.Image(shape=(8, 6, 4)), "label": LABEL},
            r"shape \(8, 6, 4\)",
        ),
        (
            {
                "image": tfds.features.Image(shape=(8, 6, 3), dtype=np.uint16),
                "label": LABEL,
            },
            "images are uint16",
        ),
        (
            {"image": tfds.features.Image(shape=(40000, 40000, 3)), "label": LABEL},
            "53.6 GiB",
        ),
    ],
)
def test_dataset_of_another_kind(tmp_path, features, problem):
    _, examples = make_examples(6)
    version_dir = tmp_path / "toy/1.0.0"
    splits = {"train": examples, "test": examples}
    write_dataset(version_dir, splits, features=features)
    with pytest.raises(DataError, match=f"{problem}.*; choose a dataset of uint8"):
        read.read(version_dir)


def test_dataset_without_test(tmp_path):
    _, examples = make_examples(6)
    version_dir = tmp_path / "toy/1.0.0"
    write_dataset(version_dir, {"train": examples, "validation": examples})
    with pytest.raises(DataError, match="no split test"):
        read.read(version_dir)


@pytest.mark.parametrize("damage", ["truncate", "length", "missing", "image", "format"])
def test_damaged_dataset_is_one_line(tmp_path, damage):
    _, examples = make_examples(6)
    if damage == "image":
        content = bytearray(examples[1]["image"])
        content[len(content) // 2] ^= 1
        examples[1]["image"] = bytes(content)
    version_dir = tmp_path / "toy/1.0.0"
    write_dataset(version_dir, {"train": examples, "test": examples})
    shard = version_dir / "toy-train.tfrecord-00000-of-00002"
    if damage == "truncate":
        os.truncate(shard, shard.stat().st_size - 6)
    elif damage == "length":
        shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    elif damage == "missing":
        shard.unlink()
    elif damage == "format":
        path = version_dir / "dataset_info.json"
        path.write_text(path.read_text().replace("tfrecord", "riegeli"))
    expected = (
        "is cut short.*again" if damage == "truncate" else "prepare it (again|as)"
    )
    with pytest.raises(DataError, match=expected) as info:
        read.read(version_dir)
    assert "\n" not in str(info.value)
    assert str(version_dir) in str(info.value)


def test_newest_version_is_found(tmp_path):
    for version in ("9.0.0", "10.0.0", "11.0.0", "1.0.0.old"):
        path = tmp_path / "toy" / version
        path.mkdir(parents=True)
        (path / "features.json").touch()
        if version != "11.0.0":  # Not whole.
            (path / "dataset_info.json").touch()
    assert read.find_version_dir(tmp_path, "toy") == tmp_path / "toy/10.0.0"
    assert read.find_version_dir(tmp_path, "absent") is None
