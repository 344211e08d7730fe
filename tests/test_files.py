"""Files that are never half-written."""

import os

import pytest

from dwsep_jax.workdir import write_atomically


def test_text_and_bytes_are_written_and_nothing_else_is_left(tmp_path):
    write_atomically(tmp_path / "a", "grün\n")
    write_atomically(str(tmp_path / "b"), b"\0")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "grün\n"
    assert (tmp_path / "b").read_bytes() == b"\0"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, "old")

    def fail(*args):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_two_processes_write_under_different_names(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "replace", lambda old, new: seen.append(str(old)))
    for pid in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        write_atomically(tmp_path / "a", "x")
    assert len(set(seen)) == 2
