"""Keeps the decoded arrays of a dataset on disk: memory-mapped, checked when loaded."""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
from absl import logging

from dwsep_jax.console import say
from dwsep_jax.data.prepare import locked
from dwsep_jax.data.read import Split

SCHEMA = 1

_Decoded = tuple[tuple[str, ...], dict[str, Split]]


def user_cache() -> pathlib.Path:
    """Return this program's directory in the user's cache (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base, "dwsep_jax")


def load(
    version_dir: pathlib.Path, read: Callable[[pathlib.Path], _Decoded]
) -> _Decoded:
    """Return `read(version_dir)`, from the cache where one stands for the same files.

    It lies in the version directory, or in the user's cache where that is read-only.
    One that is damaged is decoded again; where none can be written the run goes on.
    """
    key = hashlib.sha256(os.fsencode(version_dir.resolve())).hexdigest()[:16]
    places = [version_dir / "decoded", user_cache() / f"decoded-{key}"]
    # Processes that start together decode once: the others wait here, then restore.
    with locked(version_dir):
        source = _fingerprint(version_dir)
        for directory in places:
            if (decoded := _restore(directory, source)) is not None:
                return decoded
        say(f"decoding {version_dir}; the next start finds it decoded")
        decoded = read(version_dir)
        for directory in places:
            try:
                _store(directory, source, decoded)
                return decoded
            except OSError as error:
                reason = error
    logging.warning(
        "Going on without a cache: the next start decodes %s again (%s)",
        version_dir,
        reason,
    )
    return decoded


def _fingerprint(version_dir: pathlib.Path) -> dict[str, list[int]]:
    """Return size and modification time of the files, followed through links."""
    return {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(version_dir.iterdir())
        if path.is_file() and not path.name.startswith(".")
    }


def _restore(directory: pathlib.Path, source: dict) -> _Decoded | None:
    """Map the arrays; return None, with a note, where they are not to be trusted."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        checksum = manifest.pop("sha256")
        if manifest["schema"] != SCHEMA or manifest["source"] != source:
            say(f"{directory} was decoded from other files; decoding again")
            return None
        if checksum != _digest(_canonical(manifest)):
            raise ValueError("manifest.json has changed")
        splits = {}
        for split, specs in manifest["splits"].items():
            arrays = {}
            for field, spec in specs.items():
                name = f"{split}_{field}.npy"
                # np.asarray: a plain array over the same mapping.
                array = np.asarray(np.load(directory / name, mmap_mode="r"))
                if spec != _describe(array):
                    raise ValueError(f"{name} has changed")
                arrays[field] = array
            splits[split] = Split(**arrays)
        return tuple(manifest["class_names"]), splits
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        logging.warning("%s is damaged (%s); decoding again", directory, error)
        return None


def _store(directory: pathlib.Path, source: dict, decoded: _Decoded) -> None:
    """Write the arrays and their manifest under another name, then rename."""
    class_names, splits = decoded
    manifest = {
        "schema": SCHEMA,
        "source": source,
        "class_names": list(class_names),
        "splits": {
            name: {field: _describe(a) for field, a in split._asdict().items()}
            for name, split in splits.items()
        },
    }
    manifest["sha256"] = _digest(_canonical(manifest))
    directory.parent.mkdir(parents=True, exist_ok=True)
    incomplete = directory.with_name(directory.name + ".incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)  # A killed start left it.
    try:
        incomplete.mkdir()
        for name, split in splits.items():
            for field, array in split._asdict().items():
                path = incomplete / f"{name}_{field}.npy"
                np.save(path, array, allow_pickle=False)
        (incomplete / "manifest.json").write_bytes(_canonical(manifest))
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(incomplete, directory)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def _describe(array: np.ndarray) -> dict:
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.str,
        "sha256": _digest(np.ascontiguousarray(array).view(np.uint8)),
    }


def _digest(data) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(manifest: dict) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()
