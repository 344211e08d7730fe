"""Checkpoints: the latest and the best survive, and damage is noticed."""

import jax
import jax.numpy as jnp
import pytest

from dwsep_jax.errors import UserError
from dwsep_jax.train.checkpoint import Checkpoints
from tests.tiny import bits


def make_tree(value=0.0):
    return {
        "weights": jnp.full((5, 7), value),
        "count": jnp.asarray(3, jnp.int32),
        "key": jax.random.key(int(value)),
    }


def save_all(workdir, scores, start=1):
    """Save epochs with these scores, from `start` on, and return the epochs kept."""
    checkpoints = Checkpoints(workdir)
    for i in range(start, len(scores) + 1):
        seen = dict(enumerate(scores[:i], start=1))
        checkpoints.save(i, make_tree(float(i)), {"history": [i]}, seen)
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def restore_latest(workdir, like=None):
    return Checkpoints(workdir).restore_latest(like or make_tree())


def empty_largest_file(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).write_bytes(b"")


def test_arrays_and_metadata_are_restored(tmp_path):
    assert restore_latest(tmp_path) is None
    save_all(tmp_path, [0.5])
    restored = restore_latest(tmp_path)
    assert (restored.epoch, restored.metadata) == (1, {"history": [1]})
    assert bits(restored.tree) == bits(make_tree(1.0))
    assert restored.tree["key"].dtype == make_tree()["key"].dtype


KEPT = {(0.1, 0.9, 0.3, 0.2): [2, 4], (0.0, 0.2, 0.1): [2, 3]}
KEPT |= {(0.5, 0.9, 0.9, 0.2): [2, 4], (0.5, 0.9, 0.1, 0.95): [4]}


@pytest.mark.parametrize(("scores", "kept"), KEPT.items())
def test_the_latest_and_the_first_best_are_kept(tmp_path, scores, kept):
    assert save_all(tmp_path, scores) == kept
    # The best is still known after a restart, or else the best of the rest is kept.
    assert save_all(tmp_path / "restarted", scores[:2])
    assert save_all(tmp_path / "restarted", scores, start=3) == kept


def test_damage_to_any_file_is_noticed(tmp_path, capsys):
    save_all(tmp_path, [0.9, 0.1])
    files = [p for p in (tmp_path / "checkpoints" / "2").rglob("*") if p.is_file()]
    assert len(files) > 5
    checkpoints = Checkpoints(tmp_path)
    for path in files:
        if not (content := path.read_bytes()):
            continue
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 1
        for changed in (damaged, content[:-1]):
            path.write_bytes(changed)
            assert checkpoints.restore_latest(make_tree()).epoch == 1, path
        assert restore_latest(tmp_path).epoch == 1, path
        path.write_bytes(content)
    shown = capsys.readouterr().out
    assert "passing over the damaged checkpoint checkpoints/2: ValueError" in shown
    assert "the checksum of arrays/" in shown
    assert checkpoints.restore_latest(make_tree()).epoch == 2


def test_a_save_that_was_killed_is_no_checkpoint(tmp_path):
    save_all(tmp_path, [0.9, 0.1])
    (tmp_path / "checkpoints" / "2" / "SHA256SUMS.json").unlink()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_latest(make_tree()).epoch == 1
    checkpoints.save(2, make_tree(5.0), {}, {})
    restored = checkpoints.restore_latest(make_tree())
    assert bits(restored.tree) == bits(make_tree(5.0))


def test_epochs_are_restored_in_order_of_preference(tmp_path):
    save_all(tmp_path, [0.9, 0.1])
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.epochs() == [1, 2]
    assert checkpoints.restore([1, 2], make_tree()).epoch == 1
    empty_largest_file(tmp_path / "checkpoints/1/arrays")
    assert checkpoints.restore([1, 2], make_tree()).epoch == 2
    empty_largest_file(tmp_path / "checkpoints/2/arrays")
    with pytest.raises(UserError, match=f"delete {tmp_path} to start over"):
        checkpoints.restore([1, 2], make_tree())
    assert checkpoints.restore([], make_tree()) is None
    save_all(tmp_path, [0.9, 0.1, 0.2], start=3)
    assert checkpoints.restore_latest(make_tree()).epoch == 3


def test_another_network_is_refused(tmp_path):
    save_all(tmp_path, [0.5])
    for change, message in (
        ({"weights": jnp.zeros((5, 8))}, r"'weights'\] is float32 5x7 .* 5x8 here"),
        ({"more": jnp.zeros(3)}, r"'more'\] is missing there, float32 3 here"),
        ({"weights": None}, r"'weights'\] is float32 5x7 there, missing here"),
    ):
        with pytest.raises(UserError, match=rf"another network: \['?.*{message}"):
            restore_latest(tmp_path, make_tree() | change)


def test_a_reader_changes_nothing_and_tolerates_a_running_writer(tmp_path, capsys):
    assert restore_latest(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    save_all(tmp_path, [0.5])
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "file").write_text("x")
    reader = Checkpoints(tmp_path)
    assert (epochs := reader.epochs()) == [1]
    assert reader.restore_latest(make_tree()).epoch == 1
    assert unfinished.exists()
    # The next save removes what a killed one left.
    Checkpoints(tmp_path).save(2, make_tree(7.0), {}, {1: 0.5, 2: 0.9})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    # A checkpoint that is gone is not damaged.
    assert reader.restore(epochs, make_tree()) is None
    assert capsys.readouterr().out == ""
