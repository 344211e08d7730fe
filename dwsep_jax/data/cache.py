"""Caches the decoded arrays of a dataset on disk: memory-mapped, with checksums."""

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
from absl import logging

from dwsep_jax.console import say
from dwsep_jax.data import read
from dwsep_jax.data.read import Decoded, Split
from dwsep_jax.lock import locked
from dwsep_jax.places import user_cache


def load(version_dir: pathlib.Path) -> Decoded:
    """Return `read.read(version_dir)`, from the cache if the files have not changed.

    The cache is in `version_dir`, or in the user's cache directory if that is
    read-only. A damaged cache is rebuilt; if none can be written, a warning says so.
    """
    key = hashlib.sha256(os.fsencode(version_dir.resolve())).hexdigest()[:16]
    places = [version_dir / "arrays", user_cache() / f"arrays-{key}"]
    # Of processes that start together, one decodes and the others wait for its cache.
    with locked(version_dir):
        source = _fingerprint(version_dir)
        for directory in places:
            if (decoded := _restore(directory, source)) is not None:
                return decoded
        say(f"decoding {version_dir}; later starts will load the decoded images")
        decoded = read.read(version_dir)
        for directory in places:
            try:
                _store(directory, source, decoded)
                return decoded
            except OSError as error:
                reason = error
    logging.warning(
        "cannot cache the decoded images (%s); the next start decodes %s again",
        reason,
        version_dir,
    )
    return decoded


def _fingerprint(version_dir: pathlib.Path) -> dict[str, list[int]]:
    """Return the size and modification time of each file, following links."""
    return {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(version_dir.iterdir())
        if path.is_file() and not path.name.startswith(".")
    }


def _restore(directory: pathlib.Path, source: dict) -> Decoded | None:
    """Memory-map the arrays; return None, and say why, if they cannot be trusted."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        if manifest["source"] != source:
            say(f"{directory} was decoded from other files; decoding again")
            return None
        arrays = {}
        for name, expected in manifest["sha256"].items():
            path = directory / f"{name}.npy"
            if checksum(path) != expected:
                raise ValueError(f"{path.name} has changed")
            # np.asarray drops the subclass np.memmap but keeps the mapping.
            arrays[name] = np.asarray(np.load(path, mmap_mode="r"))
        splits = {
            split: Split(*(arrays[f"{split}_{field}"] for field in Split._fields))
            for split in ("train", "test")
        }
        return tuple(arrays["class_names"].tolist()), splits
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logging.warning("%s is damaged (%s); decoding again", directory, error)
        return None


def _store(directory: pathlib.Path, source: dict, decoded: Decoded) -> None:
    """Write arrays and manifest to a temporary directory, then rename it."""
    class_names, splits = decoded
    arrays = {"class_names": np.array(class_names)}
    for name, split in splits.items():
        arrays |= {f"{name}_{field}": array for field, array in split._asdict().items()}
    incomplete = directory.with_name(f"{directory.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)  # Left by a start that was killed.
    try:
        incomplete.mkdir(parents=True)
        checksums = {}
        for name, array in arrays.items():
            path = incomplete / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            checksums[name] = checksum(path)
        manifest = {"source": source, "sha256": checksums}
        (incomplete / "manifest.json").write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(incomplete, directory)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def checksum(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
