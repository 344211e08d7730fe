"""Runs a TFDS builder so that a dataset appears whole or not at all."""

import contextlib
import fcntl
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator

from dwsep_jax.data import read
from dwsep_jax.errors import DataError


@contextlib.contextmanager
def locked(directory: str | os.PathLike, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a directory; it goes when the process does.

    It locks nothing on file systems that have no locks (some network ones). Raises
    BlockingIOError where another process holds it and this one is not to wait.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def prepare(
    name: str,
    version: str,
    data_dir: pathlib.Path,
    make_builder: Callable[[pathlib.Path], object],
) -> pathlib.Path:
    """Prepare `data_dir/name/version` in array_record and return that directory.

    `make_builder(staging)` returns a TFDS builder whose data_dir is `staging`, a
    directory beside the version that is cleared at the start and at the end: under the
    lock, what lies in it was left by a start that was killed, and is nobody else's.

    Raises OSError where the disk refuses, DataError for all else that goes wrong.
    """
    import tensorflow_datasets as tfds

    home = data_dir / name
    home.mkdir(parents=True, exist_ok=True)
    with locked(home):
        if (version_dir := read.find_version_dir(data_dir, name)) is not None:
            return version_dir  # Another process did it while this one waited.
        target = home / version
        if target.exists():
            raise DataError(f"{target} is not what TFDS writes: delete it, start again")
        staging = home / ".preparing"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            builder = make_builder(staging)
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            # The progress goes to stderr; stdout would name the staging directory.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(
                    download_dir=staging / "downloads",
                    download_config=tfds.download.DownloadConfig(
                        try_download_gcs=False
                    ),
                    file_format="array_record",
                )
            os.rename(builder.data_path, target)
        except (DataError, OSError):
            raise
        except Exception as error:
            raise DataError(
                f"{name} could not be prepared in {data_dir}: {one_line(error)}; "
                "start again, or name another directory by --config.data_dir"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def one_line(error: BaseException) -> str:
    """Return the type and the first line of an error, as part of a message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ")
