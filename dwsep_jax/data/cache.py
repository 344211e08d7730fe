"""Caches the decoded arrays of a dataset on disk, in one file with checksums."""

import hashlib
import os
import pathlib
from collections.abc import Callable

import numpy as np

from dwsep_jax import launch
from dwsep_jax.console import say
from dwsep_jax.data import read
from dwsep_jax.data.read import Decoded, Split
from dwsep_jax.lock import locked
from dwsep_jax.places import user_cache

_STEM = "arrays"


def load(version_dir: pathlib.Path, label: str = "label") -> Decoded:
    """Return `read.read(version_dir, label)`, from the cache if there is one."""
    source = [
        " ".join(map(str, (path.name, *state_of(path))))
        for path in sorted(version_dir.iterdir())
        if path.is_file() and not path.name.startswith((".", _STEM))
    ]
    variant = [None if label == "label" else label]
    return cached(version_dir, variant, source, lambda: read.read(version_dir, label))


def state_of(path: str | os.PathLike) -> tuple[int, ...]:
    """Return size and modification time of a file, following links; () without one."""
    if not os.path.exists(path):
        return ()
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def cached(
    directory: pathlib.Path,
    variant: list[str | int | None],
    source: list[str],
    decode: Callable[[], Decoded],
) -> Decoded:
    """Return what `decode` returns, from the cache if the files have not changed.

    The cache is in the directory, or in the user's cache directory if that is
    read-only. A damaged cache is rebuilt; if none can be written, a warning says so.

    Args:
      directory: that is decoded.
      variant: tells different ways to decode it apart, in the name of the cache; None
        is left out.
      source: differs once a file has changed.
      decode: returns class names and splits.
    """
    key = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
    name = "-".join(str(part) for part in (_STEM, *variant) if part) + ".npz"
    places = [directory / name, user_cache() / key / name]
    # Of processes that start together, one decodes and the others wait for its cache.
    with locked(directory):
        for path in places:
            if decoded := _restore(path, source):
                return decoded
        say(f"decoding {directory}; later starts will load the decoded images")
        decoded = decode()
        if not launch.is_first():
            return decoded
        for path in places:
            try:
                _store(path, source, decoded)
                return decoded
            except OSError as error:
                reason = error
    say(
        f"warning: cannot cache the decoded images ({reason}); the next start decodes "
        f"{directory} again"
    )
    return decoded


def _restore(path: pathlib.Path, source: list[str]) -> Decoded | None:
    """Read the arrays; return None, and say why, if they cannot be trusted."""
    try:
        # Each array has a checksum of its own.
        with path.open("rb") as file, np.load(file) as arrays:
            if arrays["source"].tolist() != source:
                say(f"{path} was decoded from other files; decoding again")
                return None
            splits = {
                split: Split(*(arrays[f"{split}_{field}"] for field in Split._fields))
                for split in ("train", "validation", "test")
                if f"{split}_ids" in arrays
            }
            return tuple(arrays["class_names"].tolist()), splits
    except FileNotFoundError:
        return None
    # A damaged zip file raises any of half a dozen types.
    except Exception as error:
        reason = " ".join(str(error).split())
        say(f"warning: {path} is damaged ({reason}); decoding again")
        return None


def _store(path: pathlib.Path, source: list[str], decoded: Decoded) -> None:
    """Write the arrays to a temporary file, then rename it."""
    class_names, splits = decoded
    arrays = {"source": np.array(source), "class_names": np.array(class_names)}
    for name, split in splits.items():
        arrays |= {f"{name}_{field}": array for field, array in split._asdict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    incomplete = path.with_name(f"{path.name}.incomplete")
    try:
        with open(incomplete, "wb") as file:
            np.savez(file, **arrays)
        os.replace(incomplete, path)
    except OSError:
        incomplete.unlink(missing_ok=True)
        raise
