"""The cache of decoded images: reused, and rebuilt whenever it cannot be trusted."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dwsep_jax.data import cache, read
from dwsep_jax.lock import locked
from tests.data.tfds_files import write_dataset


@pytest.fixture
def version_dir(tmp_path):
    """A dataset whose cache has been written."""
    directory = tmp_path / "data/toy/1.0.0"
    write_dataset(directory)
    cache.load(directory)
    return directory


@pytest.fixture
def decodings(version_dir, monkeypatch):
    """The directories decoded, rather than restored, since the cache was written."""
    calls, decode = [], read.read

    def count(directory):
        calls.append(directory)
        return decode(directory)

    monkeypatch.setattr(read, "read", count)
    return calls


def assert_equal(a, b):
    assert a[0] == b[0]
    for split in ("train", "test"):
        for x, y in zip(a[1][split], b[1][split], strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_cache_is_mapped_into_memory(version_dir, decodings):
    restored = cache.load(version_dir)
    assert not decodings
    assert isinstance(restored[1]["test"].images.base, np.memmap)
    assert_equal(restored, read.read(version_dir))


NAMES = [f"{s}_{f}.npy" for s in ("train", "test") for f in ("images", "labels", "ids")]


@pytest.mark.parametrize("name", [*NAMES, "class_names.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damaged_cache_is_rebuilt(version_dir, decodings, caplog, name, damage):
    before = cache.load(version_dir)
    path = version_dir / "arrays" / name
    content = bytearray(path.read_bytes())
    path.unlink()  # `before` still maps it.
    content[len(content) // 2] ^= 1
    size = {"flip": len(content), "truncate": len(content) // 2, "empty": 0}
    if damage != "remove":
        path.write_bytes(content[: size[damage]])
    for _ in range(2):
        assert_equal(cache.load(version_dir), before)
        assert len(decodings) == 1
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_cache_of_other_files_is_rebuilt(version_dir, decodings):
    shard = next(version_dir.glob("*train*"))
    target = version_dir.parent / "elsewhere"
    shard.rename(target)
    shard.symlink_to(target)
    cache.load(version_dir)
    assert not decodings  # A link to the same file: same size, same time.
    os.utime(target, ns=(0, 0))
    cache.load(version_dir)
    assert len(decodings) == 1


def test_read_only_data_is_cached_for_the_user(version_dir, decodings, tmp_path):
    shutil.rmtree(version_dir / "arrays")
    (version_dir / "arrays.incomplete").touch()  # Not a directory: mkdir fails.
    for _ in range(2):
        cache.load(version_dir)
        assert len(decodings) == 1
    assert len(list((tmp_path / "cache/dwsep_jax").glob("arrays-*/*.npy"))) == 7


def test_full_disk_costs_the_cache_but_not_the_run(
    version_dir, decodings, monkeypatch, caplog, tmp_path
):
    before = cache.load(version_dir)
    shutil.rmtree(version_dir / "arrays")

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", no_space)
    assert_equal(cache.load(version_dir), before)
    assert "No space left" in caplog.records[-1].getMessage()
    assert not list(tmp_path.rglob("*.incomplete"))


# Stops at the third array, or announces what it decodes.
LOAD = """
import os, pathlib, sys
import numpy as np
from dwsep_jax.data import cache, read
directory, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
save, saved, decode = np.save, [], read.read
def save_two(*args, **kwargs):
    if len(saved) == 2:
        os._exit(9)
    saved.append(save(*args, **kwargs))
def announce(directory):
    print("decoding here")
    return decode(directory)
if mode == "killed":
    np.save = save_two
read.read = announce
cache.load(directory)
"""


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_while_caching(version_dir, decodings):
    shutil.rmtree(version_dir / "arrays")
    process = start(version_dir, "killed")
    process.communicate()
    assert process.returncode == 9
    incomplete = version_dir / "arrays.incomplete"
    assert len(list(incomplete.iterdir())) == 2
    for _ in range(2):
        cache.load(version_dir)
        assert len(decodings) == 1
    assert not incomplete.exists()


def test_processes_that_start_together_decode_once(version_dir):
    shutil.rmtree(version_dir / "arrays")
    with locked(version_dir):  # Both wait for it.
        processes = [start(version_dir, "whole") for _ in range(2)]
    output = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(text.count("decoding here") for text in output) == [0, 1]
