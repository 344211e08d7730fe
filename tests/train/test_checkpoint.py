"""Checkpoints: the latest and the best survive, and damage is noticed."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwsep_jax.errors import UserError
from dwsep_jax.train.checkpoint import Checkpoints, checksums, describe_leaves


def make_tree(value=0.0):
    return {
        "weights": jnp.full((5, 7), value),
        "count": jnp.asarray(3, jnp.int32),
        "key": jax.random.key(int(value)),
    }


def save_all(workdir, scores):
    with Checkpoints(workdir) as checkpoints:
        for i in range(len(scores)):
            seen = dict(enumerate(scores[: i + 1], start=1))
            checkpoints.save(i + 1, make_tree(i + 1.0), {"history": [i]}, seen)


def epochs_on_disk(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_restored_arrays_and_metadata_are_those_saved(tmp_path):
    save_all(tmp_path, [0.5])
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(make_tree())
    assert restored.epoch == 1
    assert restored.metadata == {"history": [0]}
    assert checksums(restored.tree) == checksums(make_tree(1.0))
    assert restored.tree["key"].dtype == make_tree()["key"].dtype


def test_a_new_workdir_has_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_tree()) is None


def test_the_latest_and_the_best_are_kept_and_nan_is_no_best(tmp_path):
    save_all(tmp_path, [0.1, 0.9, float("nan"), 0.3, 0.2])
    assert epochs_on_disk(tmp_path) == [2, 5]
    save_all(tmp_path / "nan first", [float("nan"), 0.2, 0.1])
    assert epochs_on_disk(tmp_path / "nan first") == [2, 3]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_tree()).epoch == 5


def largest_file(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    save_all(tmp_path, [0.9, 0.1])
    path = largest_file(tmp_path / "checkpoints" / "2" / "arrays")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_tree()).epoch == 1


def test_an_array_that_changed_is_noticed(tmp_path):
    save_all(tmp_path, [0.9, 0.1])
    (tmp_path / "checkpoints" / "2" / "SHA256SUMS.json").unlink()
    (metadata,) = (tmp_path / "checkpoints" / "2" / "metadata").rglob("metadata")
    content = json.loads(metadata.read_text())
    content["checksums"]["['weights']"] = checksums(make_tree(5.0))["['weights']"]
    metadata.write_text(json.dumps(content))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_tree()).epoch == 1


def test_when_none_is_whole_it_says_so(tmp_path):
    save_all(tmp_path, [0.5])
    for path in pathlib.Path(tmp_path, "checkpoints", "1", "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    message = f"delete {tmp_path} to start over"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_latest(make_tree())


def test_a_tree_of_another_shape_is_refused(tmp_path):
    save_all(tmp_path, [0.5])
    other = make_tree() | {"weights": jnp.zeros((5, 8))}
    message = r"another network: \['weights'\] is float32 \d.* there, float32 5x8 here"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_latest(other)


def test_a_tree_of_other_leaves_is_refused_by_the_first(tmp_path):
    save_all(tmp_path, [0.5])
    more = make_tree() | {"more": jnp.zeros(3)}
    fewer = make_tree()
    del fewer["weights"]
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            UserError, match=r"'more'. is missing there, float32 3 here"
        ):
            checkpoints.restore_latest(more)
        with pytest.raises(UserError, match=r"'weights'. is float32 .* missing here"):
            checkpoints.restore_latest(fewer)


def test_epochs_are_restored_in_the_order_asked_for(tmp_path):
    save_all(tmp_path, [0.9, 0.1])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.epochs() == [1, 2]
        assert checkpoints.restore([1, 2], make_tree()).epoch == 1
        path = largest_file(tmp_path / "checkpoints" / "1" / "arrays")
        path.write_bytes(path.read_bytes()[:-1])
        assert checkpoints.restore([1, 2], make_tree()).epoch == 2
        assert checkpoints.restore([], make_tree()) is None


def test_to_read_makes_no_directory(tmp_path):
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.epochs() == []
        assert checkpoints.restore_latest(make_tree()) is None
    assert list(tmp_path.iterdir()) == []
    save_all(tmp_path, [0.5])
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore_latest(make_tree()).epoch == 1


def test_a_flipped_bit_in_any_file_is_noticed(tmp_path):
    save_all(tmp_path, [0.9, 0.1])
    files = [p for p in (tmp_path / "checkpoints" / "2").rglob("*") if p.is_file()]
    assert len(files) > 5
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_tree()).epoch == 2
        for path in files:
            content = path.read_bytes()
            if not content:
                continue
            damaged = bytearray(content)
            damaged[len(content) // 2] ^= 1
            path.write_bytes(damaged)
            assert checkpoints.restore_latest(make_tree()).epoch == 1, path
            with Checkpoints(tmp_path) as opened_later:
                assert opened_later.restore_latest(make_tree()).epoch == 1, path
            path.write_bytes(content)
        assert checkpoints.restore_latest(make_tree()).epoch == 2


def test_without_sums_of_its_files_the_leaves_vouch_for_a_checkpoint(tmp_path):
    save_all(tmp_path, [0.9, 0.1])
    (tmp_path / "checkpoints" / "2" / "SHA256SUMS.json").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_tree()).epoch == 2


def test_descriptions_and_checksums_tell_dtype_shape_and_value_apart():
    arrays = [
        jnp.zeros(4),
        jnp.zeros((2, 2)),
        jnp.zeros(4, jnp.int32),
        jnp.zeros(4).at[2].set(np.finfo(np.float32).smallest_subnormal),
        jax.random.key(0),
        jax.random.key(1),
    ]
    seen = {describe_leaves([a])["[0]"] + checksums([a])["[0]"] for a in arrays}
    assert len(seen) == len(arrays)


def test_a_reader_is_told_of_no_damage_where_a_run_replaced_a_checkpoint(
    tmp_path, capsys
):
    save_all(tmp_path, [0.5])
    with Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.epochs() == [1]
        with Checkpoints(tmp_path) as writer:
            writer.save(2, make_tree(7.0), {}, {1: 0.5, 2: 0.9})
        assert epochs_on_disk(tmp_path) == [2]
        # What is gone is not damaged.
        assert reader.restore_latest(make_tree()) is None
    assert capsys.readouterr().out == ""


def test_what_a_killed_save_left_is_removed_by_a_writer_alone(tmp_path):
    save_all(tmp_path, [0.5])
    rest = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    rest.mkdir()
    (rest / "file").write_text("x")
    with Checkpoints(tmp_path, read_only=True):
        assert rest.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert not rest.exists()
        assert checkpoints.epochs() == [1]


def test_a_damaged_checkpoint_is_reported(tmp_path, capsys):
    save_all(tmp_path, [0.9, 0.1])
    path = largest_file(tmp_path / "checkpoints" / "2" / "arrays")
    path.write_bytes(path.read_bytes()[:-1])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore_latest(make_tree())
    shown = capsys.readouterr().out
    assert "passing over the damaged checkpoint of epoch 2: ValueError: the" in shown
    assert path.name in shown


def test_the_best_is_known_after_a_restart(tmp_path):
    scores = {1: 0.5, 2: 0.9}
    save_all(tmp_path, list(scores.values()))
    for epoch, score in ((3, 0.1), (4, 0.2)):
        scores[epoch] = score
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(epoch, make_tree(), {}, scores)
    assert epochs_on_disk(tmp_path) == [2, 4]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, make_tree(), {}, scores | {5: 0.95})
    assert epochs_on_disk(tmp_path) == [5]


def test_of_equal_epochs_the_first_is_the_best(tmp_path):
    save_all(tmp_path, [0.5, 0.9, 0.9, 0.2])
    assert epochs_on_disk(tmp_path) == [2, 4]


def test_where_the_best_is_lost_the_best_of_the_rest_is_kept(tmp_path):
    save_all(tmp_path, [0.9, 0.5])
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_tree(), {}, {1: 0.9, 2: 0.5, 3: 0.1})
    assert epochs_on_disk(tmp_path) == [2, 3]
