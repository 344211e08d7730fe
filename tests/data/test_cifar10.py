"""Preparing CIFAR-10 from an archive on disk, or on a server of this machine."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dwsep_jax.data import cifar10, read
from dwsep_jax.errors import DataError
from dwsep_jax.lock import locked

NAMES = [*"abcdefghij"]
MANUAL = "downloads/manual/cifar-10-binary.tar.gz"


@pytest.fixture(scope="module")
def archive():
    """An archive of the official form, with 20 images per file, and its records."""
    rng, buffer, records = np.random.default_rng(0), io.BytesIO(), {}
    content = {"batches.meta.txt": "\n".join([*NAMES, ""]).encode(), "readme.html": b""}
    for split, names in cifar10.FILES.items():
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
def host(archive, monkeypatch):
    """The official host: what it answers with, and how often it was asked."""
    host = types.SimpleNamespace(status=200, content=archive[0], missing=0, requests=0)
    host.may_answer = threading.Event()
    host.may_answer.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            host.requests += 1
            host.may_answer.wait(10)
            self.send_response(host.status)
            self.send_header("Content-Length", str(len(host.content) + host.missing))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # The client has given up.
                self.wfile.write(host.content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        url = f"http://127.0.0.1:{server.server_port}/{os.path.basename(MANUAL)}"
        monkeypatch.setattr(cifar10, "URL", url)
        digest = hashlib.sha256(archive[0]).hexdigest()
        monkeypatch.setattr(cifar10, "SHA256", digest)
        yield host
        host.may_answer.set()
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


def test_manual_archive_is_prepared_once(tmp_path, archive, manual, host):
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
    assert host.requests == 0


def test_wrong_manual_archive_is_refused(tmp_path, manual):
    os.truncate(manual, 1000)
    with pytest.raises(DataError, match=rf"^{manual} is not the official .* delete it"):
        cifar10.prepare(tmp_path)
    assert files(tmp_path) == [manual]


def test_archive_is_downloaded_once(tmp_path, archive, host):
    assert_prepared(tmp_path, archive)
    shutil.rmtree(tmp_path / "cifar10")
    assert_prepared(tmp_path, archive)
    assert host.requests == 1
    # A damaged download is replaced.
    shutil.rmtree(tmp_path / "cifar10")
    (cached,) = files(tmp_path / "downloads")
    os.truncate(cached, 100)
    assert_prepared(tmp_path, archive)
    assert host.requests == 2


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"status": 503}, "503"),
        ({"content": b"something else"}, "wrong checksum"),
        ({"missing": 1}, "ChunkedEncodingError"),
        ({"may_answer": threading.Event()}, "ReadTimeout"),
        ({"url": "http://127.0.0.1:9/"}, "ConnectionError"),
        ({"url": "http://nowhere.invalid/"}, "ConnectionError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failed_download_names_three_ways_out(
    tmp_path, archive, host, monkeypatch, answer, problem
):
    with monkeypatch.context() as patch:
        patch.setattr(cifar10, "TIMEOUT_S", 0.3)
        for name, value in answer.items():
            patch.setattr(*((cifar10, "URL") if name == "url" else (host, name)), value)
        with pytest.raises(DataError) as info:
            cifar10.prepare(tmp_path)
    message = str(info.value)
    assert "\n" not in message
    assert f"cannot be downloaded ({problem}): connect to the network; or" in message
    assert f"put the archive at {tmp_path / MANUAL}; or" in message
    assert "--config=configs/digits.py" in message
    assert not files(tmp_path)
    assert_prepared(tmp_path, archive)


# The process dies at the first call of a function.
KILLED = """
import os, pathlib, sys
from dwsep_jax.data import cifar10
cifar10.URL, cifar10.SHA256, moment = sys.argv[2:]
rename = os.rename
if moment == "download":
    cifar10.checksum = lambda path: os._exit(9)
if moment == "prepare":
    cifar10.Image.fromarray = lambda array: os._exit(9)
if moment == "rename":  # The last one: TFDS renames too, within the staging directory.
    os.rename = lambda a, b: (
        rename(a, b) if "preparing" in os.fspath(b) else os._exit(9))
cifar10.prepare(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["download", "prepare", "rename"])
def test_killed_then_started_again(tmp_path, archive, host, moment):
    arguments = [str(tmp_path), cifar10.URL, cifar10.SHA256, moment]
    process = subprocess.run([sys.executable, "-c", KILLED, *arguments])
    assert process.returncode == 9
    assert (tmp_path / "cifar10/.preparing").exists()
    assert read.find_version_dir(tmp_path, "cifar10") is None
    assert_prepared(tmp_path, archive)
    # A complete download outlives a preparation that was killed.
    assert host.requests == (2 if moment == "download" else 1)


def test_second_process_waits_and_finds_it_done(tmp_path, manual):
    done, ready = [], tmp_path / "cifar10/3.0.2"
    ready.parent.mkdir()
    with locked(tmp_path / "cifar10"):
        thread = threading.Thread(target=lambda: done.append(cifar10.prepare(tmp_path)))
        thread.start()
        thread.join(0.2)
        assert not list(ready.parent.iterdir())
        ready.mkdir()
        for name in ("dataset_info.json", "features.json"):
            (ready / name).touch()
    thread.join()
    assert done == [ready]
    assert len(files(ready)) == 2


def test_files_of_others_are_left_alone(tmp_path, manual):
    # A TFDS process that is alive works in directories with such names.
    theirs = tmp_path / "cifar10/incomplete.ABCDEF_3.0.2/shard"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    cifar10.prepare(tmp_path)
    assert theirs.exists()


def test_version_directory_that_is_no_dataset(tmp_path, manual):
    (tmp_path / "cifar10/3.0.2").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cifar10/3\.0\.2 is not a TFDS dataset: del"):
        cifar10.prepare(tmp_path)


def test_full_disk_while_preparing(tmp_path, archive, monkeypatch, manual):
    def no_space(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", no_space)
        message = r"^cifar10 cannot be prepared.*No space left.*--config\.data_dir"
        with pytest.raises(DataError, match=message):
            cifar10.prepare(tmp_path)
    assert_prepared(tmp_path, archive)
