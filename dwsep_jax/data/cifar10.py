"""CIFAR-10 for TFDS, from the official archive, without TensorFlow.

The builder that TFDS ships unpacks and reads with TensorFlow. This one writes the same
examples under the same ids in the same order: either reads what the other wrote.
"""

import hashlib
import os
import pathlib
import tarfile
import threading
import urllib.parse
import zlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums, resource

from dwsep_jax.console import say
from dwsep_jax.data import prepare as prepare_lib
from dwsep_jax.errors import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SIZE = 170_052_171
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE = "cifar-10-binary.tar.gz"

IMAGES_PER_FILE = 10_000
FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
NAMES_FILE = "batches.meta.txt"
RECORD_BYTES = 1 + 3 * 32 * 32

# Looking up a name can hang for minutes, whatever the timeouts of the connection.
PROBE_TIMEOUT_S = 5
PROBE_BOUND_S = 12


class Cifar10(tfds.image_classification.Cifar10, skip_registration=True):
    """The stock builder with another way to unpack; `archive` has been verified."""

    def __init__(self, *, archive: pathlib.Path, **kwargs):
        self._archive = archive
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        del dl_manager
        files = read_archive(self._archive)
        names = files[NAMES_FILE].decode().split()
        self.info.features["label"].names = names
        return {
            split: self._generate_examples(split, [files[name] for name in names_])
            for split, names_ in FILES.items()
        }

    def _generate_examples(self, split, blobs):
        records = np.frombuffer(b"".join(blobs), np.uint8).reshape(-1, RECORD_BYTES)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i, (label, image) in enumerate(zip(records[:, 0], images, strict=True)):
            # PIL: TFDS needs TensorFlow to encode an array.
            encoded = Image.fromarray(np.ascontiguousarray(image))
            yield (
                i,
                {"id": f"{split}_{i:05d}", "label": int(label), "image": encoded},
            )


def read_archive(archive: pathlib.Path) -> dict[str, bytes]:
    """Return the files by name; raise DataError where the archive is not whole."""
    wanted = {NAMES_FILE, *FILES["train"], *FILES["test"]}
    files = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = pathlib.PurePosixPath(member.name).name
                if member.isfile() and name in wanted:
                    files[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{archive} cannot be unpacked ({prepare_lib.one_line(error)}): delete it"
        ) from error
    if missing := wanted - set(files):
        raise DataError(f"{archive} lacks {', '.join(sorted(missing))}: delete it")
    if len(files[NAMES_FILE].split()) != 10:
        raise DataError(f"{archive}: {NAMES_FILE} does not list 10 names: delete it")
    for name in wanted - {NAMES_FILE}:
        expected = IMAGES_PER_FILE * RECORD_BYTES
        if len(files[name]) != expected:
            raise DataError(
                f"{archive}: {name} has {len(files[name])} bytes, not {expected}: "
                "delete it"
            )
    return files


def prepare(data_dir: pathlib.Path) -> pathlib.Path:
    """Prepare CIFAR-10 under `data_dir` and return its version directory.

    Raises DataError: no archive and no connection, a damaged archive, a full disk.
    """

    def make_builder(staging: pathlib.Path) -> Cifar10:
        archive = _find_archive(data_dir) or _download(data_dir, staging)
        return Cifar10(archive=archive, data_dir=staging, file_format="array_record")

    version = str(Cifar10.VERSION)
    try:
        return prepare_lib.prepare("cifar10", version, data_dir, make_builder)
    except OSError as error:
        raise DataError(
            f"cifar10 cannot be prepared in {data_dir} "
            f"({error.strerror or prepare_lib.one_line(error)}): make room or leave to "
            "write there, or name another directory by --config.data_dir"
        ) from error


def _find_archive(data_dir: pathlib.Path) -> pathlib.Path | None:
    """Return the archive from the manual directory or TFDS's cache of downloads."""
    manual = data_dir / "downloads" / "manual" / ARCHIVE
    if manual.is_file():
        if not _is_intact(manual):
            raise DataError(
                f"{manual} ({manual.stat().st_size} bytes) is not the official archive "
                f"({SIZE} bytes, sha256 {SHA256}): delete it or put it there again"
            )
        return manual
    name = resource.get_dl_fname(URL, SHA256)
    for directory in (data_dir / "downloads" / "cifar10", data_dir / "downloads"):
        # One that is not intact is downloaded again.
        if (directory / name).is_file() and _is_intact(directory / name):
            return directory / name
    return None


def _is_intact(archive: pathlib.Path) -> bool:
    with open(archive, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def _download(data_dir: pathlib.Path, staging: pathlib.Path) -> pathlib.Path:
    """Download the archive into TFDS's cache by way of `staging`; return its path."""
    host = urllib.parse.urlsplit(URL).hostname
    ways_out = (
        f"connect once; or put the archive at {data_dir}/downloads/manual/{ARCHIVE}; "
        "or train on digits, which need no download: --config=configs/digits.py"
    )
    if (answer := _probe(URL)) != "200":
        raise DataError(
            f"cifar10 is not prepared in {data_dir} and {host} cannot be reached "
            f"({answer}): {ways_out}"
        )
    say(f"downloading {URL} ({SIZE / 1e6:.0f} MB)")
    manager = tfds.download.DownloadManager(
        download_dir=staging / "downloads",
        dataset_name="cifar10",
        url_infos={URL: checksums.UrlInfo(SIZE, SHA256, ARCHIVE)},
    )
    try:
        path = pathlib.Path(manager.download(URL))
    except Exception as error:
        raise DataError(
            f"{URL} could not be downloaded ({prepare_lib.one_line(error)}): {ways_out}"
        ) from error
    # The archive last: TFDS takes it for cached when both are there.
    cached = data_dir / "downloads" / "cifar10" / path.name
    cached.parent.mkdir(parents=True, exist_ok=True)
    os.replace(resource.get_info_path(path), resource.get_info_path(cached))
    os.replace(path, cached)
    return cached


def _probe(url: str) -> str:
    """Return the status that a host answers with, or why it does not.

    TFDS tries for minutes before it gives up. The thread is left behind where not even
    the timeouts end it, as they do not while a name is looked up.
    """
    import requests

    answer = ["no answer"]

    def ask():
        try:
            with requests.get(url, stream=True, timeout=PROBE_TIMEOUT_S) as response:
                answer[0] = str(response.status_code)
        except (requests.RequestException, OSError) as error:
            answer[0] = type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_BOUND_S)
    return answer[0]
