"""Prepares CIFAR-10 for TFDS from the official archive, without TensorFlow.

TFDS's own builder needs TensorFlow to unpack and read the archive. This one writes the
same examples, with the same ids, in the same order.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import shutil
import sys
import tarfile

import requests
import tensorflow_datasets as tfds
from PIL import Image
from rich.progress import track
from tensorflow_datasets.core.download import resource

from dwsep_jax.console import say
from dwsep_jax.data import read
from dwsep_jax.data.own import read_binary
from dwsep_jax.errors import DataError
from dwsep_jax.lock import locked

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SIZE = 170_052_171
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
# Between two blocks, as well as to connect.
TIMEOUT_S = 10
BLOCK_BYTES = 1 << 20


class Cifar10(tfds.image_classification.Cifar10, skip_registration=True):
    """TFDS's builder; reads an archive whose checksum has been verified."""

    def __init__(self, archive: pathlib.Path, **kwargs):
        self._archive = archive
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        del dl_manager
        with tarfile.open(self._archive) as tar:
            files = {
                os.path.basename(member.name): tar.extractfile(member).read()
                for member in tar
                if member.isfile()
            }
        names, splits = read_binary(files.__getitem__)
        self.info.features["label"].names = list(names)
        return {name: self._generate_examples(*splits[name]) for name in splits}

    def _generate_examples(self, images, labels, ids):
        for i, (image, label, id_) in enumerate(zip(images, labels, ids, strict=True)):
            # TFDS needs TensorFlow to encode an array, but not a PIL image.
            image = Image.fromarray(image)
            yield i, {"id": str(id_), "label": int(label), "image": image}


def prepare(data_dir: pathlib.Path) -> pathlib.Path:
    """Prepare CIFAR-10 under `data_dir` and return its version directory.

    The archive is the one in `downloads/manual`, else an earlier download, else it is
    downloaded. The version directory appears complete or not at all.

    Raises:
      DataError: if the archive is damaged or cannot be downloaded, or if the dataset
        cannot be written.
    """
    home = data_dir / "cifar10"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with locked(home):
            # Another process may have prepared it while this one waited.
            return read.find_version_dir(data_dir, "cifar10") or _build(data_dir, home)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"cifar10 cannot be prepared in {data_dir} ({read.one_line(error)}): check "
            "free space and permissions, or choose another --config.data_dir"
        ) from error


def _build(data_dir: pathlib.Path, home: pathlib.Path) -> pathlib.Path:
    version_dir = home / str(Cifar10.VERSION)
    if version_dir.exists():
        raise DataError(f"{version_dir} is not a TFDS dataset: delete it")
    staging = home / ".preparing"
    shutil.rmtree(staging, ignore_errors=True)  # Left by a start that was killed.
    staging.mkdir()
    try:
        archive = _get_archive(data_dir, staging)
        builder = Cifar10(archive, data_dir=staging, file_format="array_record")
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        # Progress is on stderr; what TFDS prints names the staging directory.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        os.rename(builder.data_path, version_dir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return version_dir


def _get_archive(data_dir: pathlib.Path, staging: pathlib.Path) -> pathlib.Path:
    """Return the path of the archive; download it by way of `staging` if necessary."""
    manual = data_dir / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    if manual.is_file():
        if not _is_official(manual):
            raise DataError(
                f"{manual} is not the official archive ({SIZE} bytes, sha256 {SHA256}):"
                " delete it or replace it"
            )
        return manual
    # Where TFDS keeps its downloads. A damaged one is downloaded again.
    path = data_dir / "downloads" / "cifar10" / resource.get_dl_fname(URL, SHA256)
    if path.is_file() and _is_official(path):
        return path
    if problem := _download(staging / path.name):
        raise DataError(
            f"cifar10 is not prepared in {data_dir} and {URL} cannot be downloaded "
            f"({problem}): connect to the network; or put the archive at {manual}; or "
            "train on digits, which need no download: --config=configs/digits.py"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staging / path.name, path)
    return path


def _download(path: pathlib.Path) -> str | None:
    """Download the archive; return what went wrong, or None."""
    say(f"downloading {URL} ({SIZE / 1e6:.0f} MB)")
    try:
        with (
            requests.get(URL, stream=True, timeout=TIMEOUT_S) as response,
            open(path, "wb") as file,
        ):
            response.raise_for_status()
            blocks = response.iter_content(BLOCK_BYTES)
            show = {"disable": not sys.stdout.isatty(), "transient": True}
            file.writelines(track(blocks, "MiB", SIZE / BLOCK_BYTES, **show))
    except requests.RequestException as error:
        # The messages of failed connections are long; their types say enough.
        return str(getattr(error.response, "status_code", type(error).__name__))
    return None if _is_official(path) else "wrong checksum"


def _is_official(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256
