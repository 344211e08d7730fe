"""The cache of decoded images: reused, and rebuilt whenever it cannot be trusted."""

import errno
import os
import re
from concurrent import futures

import numpy as np
import pytest

from dwsep_jax.data import cache, read
from dwsep_jax.lock import locked
from tests import tiny
from tests.data.picture_files import flip
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
    monkeypatch.setattr(read, "read", lambda *args: calls.append(args) or decode(*args))
    return calls


def assert_equal(a, b):
    assert a[0] == b[0]
    assert tiny.bits(a[1]) == tiny.bits(b[1])


def test_of_several_processes_the_first_alone_writes(version_dir, monkeypatch):
    (version_dir / "arrays.npz").unlink()
    monkeypatch.setattr(cache.launch, "is_first", lambda: False)
    assert_equal(cache.load(version_dir), read.read(version_dir))
    assert not (version_dir / "arrays.npz").exists()


def test_damaged_cache_is_rebuilt(version_dir, decodings, capsys):
    before, path = cache.load(version_dir), version_dir / "arrays.npz"
    assert not decodings
    assert_equal(before, read.read(version_dir))
    content, loads = path.read_bytes(), 0
    decodings.clear()
    starts = [i for i in range(len(content)) if content.startswith(b"\x93NUMPY", i)]
    assert len(starts) == 8  # Two lists and three arrays of each split.
    values = [start + 128 for start in starts]
    flips = [0, len(content) - 20, *range(30, len(content), len(content) // 40)]
    for damage in [*values, *flips, slice(0), slice(len(content) // 2)]:
        is_cut = isinstance(damage, slice)
        path.write_bytes(content[damage] if is_cut else flip(content, damage))
        assert_equal(cache.load(version_dir), before)
        loads += bool(decodings)
        assert bool(decodings) or damage not in values
        decodings.clear()
        cache.load(version_dir)
        assert not decodings
    # A flip of what numpy does not read, such as a time, changes nothing.
    assert loads > 40
    lines = capsys.readouterr().out.splitlines()
    assert all(
        re.match(r"decoding |warning: .* is damaged \(.*\); d", x) for x in lines
    )


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
    (version_dir / "arrays.npz").unlink()
    (version_dir / "arrays.npz.incomplete").mkdir()  # It cannot be written.
    for _ in range(2):
        cache.load(version_dir)
        assert len(decodings) == 1
    assert len(list((tmp_path / "cache/dwsep_jax").glob("*/arrays.npz"))) == 1


def test_full_disk_costs_the_cache_but_not_the_run(
    version_dir, decodings, monkeypatch, capsys, tmp_path
):
    before = cache.load(version_dir)
    (version_dir / "arrays.npz").unlink()

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", no_space)
    assert_equal(cache.load(version_dir), before)
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match("warning: cannot cache .*No space left", last)
    assert not list(tmp_path.rglob("*.incomplete"))


def test_what_a_killed_process_left_is_replaced(version_dir, decodings):
    (version_dir / "arrays.npz").rename(version_dir / "arrays.npz.incomplete")
    for _ in range(2):
        cache.load(version_dir)
        assert len(decodings) == 1
    assert not (version_dir / "arrays.npz.incomplete").exists()


def test_threads_that_start_together_decode_once(version_dir, decodings):
    (version_dir / "arrays.npz").unlink()
    with futures.ThreadPoolExecutor() as pool:
        with locked(version_dir):  # Both wait for it.
            loads = [pool.submit(cache.load, version_dir) for _ in range(2)]
        assert_equal(*(load.result() for load in loads))
    assert len(decodings) == 1
