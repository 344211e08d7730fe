"""Preparing CIFAR-10 from an archive on disk, or on a server of this machine."""

import errno
import hashlib
import http.server
import io
import os
import shutil
import socket
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dwsep_jax.data import cifar10, read
from dwsep_jax.data.own import FILES
from dwsep_jax.errors import DataError

NAMES = [*"abcdefghij"]
MANUAL = "downloads/manual/cifar-10-binary.tar.gz"


@pytest.fixture(scope="module")
def archive():
    """An archive of the official form, with 20 images per file, and its records."""
    rng, buffer, records = np.random.default_rng(0), io.BytesIO(), {}
    content = {"batches.meta.txt": "\n".join([*NAMES, ""]).encode(), "readme.html": b""}
    for split, names in FILES.items():
        records[split] = rng.integers(0, 256, (20 * len(names), 3073), np.uint8)
        records[split][:, 0] %= 10
        parts = np.split(records[split], len(names))
        content |= {name: part.tobytes() for name, part in zip(names, parts)}
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, part in content.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(part)
            tar.addfile(member, io.BytesIO(part))
    return buffer.getvalue(), records


@pytest.fixture(autouse=True)
def served(archive, monkeypatch, tmp_path_factory):
    """The file that the official host serves."""
    path = tmp_path_factory.mktemp("host") / os.path.basename(MANUAL)
    path.write_bytes(archive[0])
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=path.parent)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    digest = hashlib.sha256(archive[0]).hexdigest()
    monkeypatch.setattr(cifar10, "SHA256", digest)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        monkeypatch.setattr(cifar10, "URL", url)
        yield path
        server.shutdown()


@pytest.fixture
def manual(tmp_path, archive):
    path = tmp_path / MANUAL
    path.parent.mkdir(parents=True)
    path.write_bytes(archive[0])
    return path


def files(directory):
    return [path for path in directory.rglob("*") if path.is_file()]


def assert_prepared(data_dir, archive):
    """Prepare, and check the result; nothing else may have been left behind."""
    version_dir = cifar10.prepare(data_dir)
    assert version_dir == data_dir / "cifar10/3.0.2"
    class_names, splits = read.read(version_dir)
    assert list(class_names) == NAMES
    for name, records in archive[1].items():
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(splits[name].images, images)
        np.testing.assert_array_equal(splits[name].labels, records[:, 0])
        ids = [f"{name}_{i:05d}" for i in range(len(records))]
        np.testing.assert_array_equal(splits[name].ids, ids)
    assert list((data_dir / "cifar10").iterdir()) == [version_dir]


def test_manual_archive_is_prepared_once(tmp_path, archive, manual, served):
    served.unlink()
    # A killed process has left this.
    (tmp_path / "cifar10/.preparing/cifar10").mkdir(parents=True)
    assert_prepared(tmp_path, archive)
    # TFDS itself reads it too.
    builder = tfds.builder("cifar10", data_dir=tmp_path)
    assert builder.info.features["label"].names == NAMES
    example = builder.as_data_source("test")[0]
    record = archive[1]["test"][int(example["id"].decode()[-5:])]
    assert example["label"] == record[0]
    manual.unlink()
    before = (tmp_path / "cifar10/3.0.2").stat().st_mtime_ns
    cifar10.prepare(tmp_path)
    assert (tmp_path / "cifar10/3.0.2").stat().st_mtime_ns == before


def test_archive_is_downloaded_once(tmp_path, archive, served):
    assert_prepared(tmp_path, archive)
    shutil.rmtree(tmp_path / "cifar10")
    hidden = served.rename(served.with_name("hidden"))
    assert_prepared(tmp_path, archive)
    shutil.rmtree(tmp_path / "cifar10")
    # A damaged download is replaced.
    hidden.rename(served)
    (cached,) = files(tmp_path / "downloads")
    os.truncate(cached, 100)
    assert_prepared(tmp_path, archive)


@pytest.mark.parametrize("problem", ["404", "wrong checksum", "ReadTimeout"])
def test_failed_download_names_ways_out(
    tmp_path, archive, served, monkeypatch, problem
):
    hidden = served.rename(served.with_name("hidden"))
    if problem == "wrong checksum":
        served.write_bytes(b"something else")
    with monkeypatch.context() as patch, socket.create_server(("", 0)) as silent:
        if problem == "ReadTimeout":
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            patch.setattr(cifar10, "URL", url)
            patch.setattr(cifar10, "TIMEOUT_S", 0.3)
        with pytest.raises(DataError) as info:
            cifar10.prepare(tmp_path)
    message = str(info.value)
    assert "\n" not in message
    assert f"cannot be downloaded ({problem}): connect to the network; or" in message
    assert f"put the archive at {tmp_path / MANUAL}; or" in message
    assert "--config=configs/digits.py" in message
    assert not files(tmp_path)
    hidden.replace(served)
    assert_prepared(tmp_path, archive)


def test_what_cannot_be_prepared_is_refused(tmp_path, archive, monkeypatch, manual):
    def no_space(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", no_space)
        message = r"^cifar10 cannot be prepared.*No space left.*--config\.data_dir"
        with pytest.raises(DataError, match=message):
            cifar10.prepare(tmp_path)
    assert_prepared(tmp_path, archive)
    (tmp_path / "cifar10/3.0.2/features.json").unlink()
    with pytest.raises(DataError, match=r"cifar10/3\.0\.2 is not a TFDS dataset: del"):
        cifar10.prepare(tmp_path)
    shutil.rmtree(tmp_path / "cifar10")
    os.truncate(manual, 1000)
    with pytest.raises(DataError, match=rf"^{manual} is not the official .* delete it"):
        cifar10.prepare(tmp_path)
