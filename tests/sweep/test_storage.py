"""Spaces and storages of a sweep that are refused before anything is written."""

import contextlib
import sqlite3

import optuna
import pytest

from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.sweep import search
from tests import tiny
from tests.sweep import sweeping
from tests.sweep.sweeping import run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    return sweeping.train_quickly(monkeypatch)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"space": ("growth=1|2",)}, "unknown field growth; did you mean growth_rate"),
        ({"sampler": "bayes"}, "sampler='bayes' is unknown; choose one of tpe, random"),
        ({"pruner": "hard"}, "pruner='hard' is unknown; choose one of median, halving"),
        ({"sampler": "grid"}, "sampler=grid: learning_rate is any number"),
        ({"seed": 2**32 - 1}, "num_seeds=2: after --config.seed=4294967295 the last"),
        ({"storage": "study.sqlite"}, "storage=study.sqlite: must be a database's URL"),
        ({"storage": "db://user@host/x"}, "storage=db://user@host/x: is no URL of a"),
        (
            {"storage": "sqlite:////no/where.db"},
            "no/where.db: cannot be reached: unable",
        ),
        (
            {"storage": "/no/where.journal"},
            "where.journal: cannot be used: No such file",
        ),
        (
            {"storage": "postgresql://me:secret@127.0.0.1:1/x"},
            r"postgresql://me:\*\*\*@127\.0\.0\.1:1/x: cannot be reached: .*refused",
        ),
        (
            {"storage": "oracle://me:secret@127.0.0.1:1/x"},
            r"oracle://me:\*\*\*@127.*: the driver of that database is missing",
        ),
        (
            {"storage": "postgresql://me:secret@127.0.0.1:port/x"},
            r"storage=postgresql://\.\.\.: is no URL of a database",
        ),
        ({"storage": "sqlite://"}, "sqlite://: would be lost with the process"),
        ({"storage": "sqlite:///:memory:"}, "would be lost with the process"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_leaves_no_workdir(tmp_path, changes, line):
    with pytest.raises(UserError, match=line) as error:
        run(tmp_path / "sweep", **changes)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_driver_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sweeping.sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'dwsep_jax\[postgresql\]'"):
        run(tmp_path / "sweep", storage="postgresql://127.0.0.1:1/x")


def test_only_the_driver_that_is_ours_is_an_extra(tmp_path):
    with pytest.raises(UserError, match=r"SQLAlchemy knows for postgresql\+pg8000$"):
        run(tmp_path / "sweep", storage="postgresql+pg8000://127.0.0.1:1/x")


def test_a_log_of_something_else_is_left_alone(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("epoch 1/3\n")
    with pytest.raises(UserError, match=r"train\.log: is no journal of Optuna"):
        run(tmp_path / "sweep", storage=str(log))
    assert log.read_text() == "epoch 1/3\n"
    assert list(tmp_path.iterdir()) == [log]


def test_a_database_with_other_tables_is_one_line(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("CREATE TABLE studies (a)")
    with pytest.raises(UserError) as error:
        run(tmp_path / "sweep", storage=f"sqlite:///{tmp_path}/other.db")
    assert str(error.value) == (
        "the storage of study sweep is lost: no such column: studies.study_id; give "
        "the same command again when it can be reached"
    )


def test_a_storage_that_is_refused_is_not_noted(tmp_path):
    right, other = (str(tmp_path / f"{name}.journal") for name in ("right", "other"))
    run(tmp_path / "sweep", storage=right)
    run(tmp_path / "another", storage=other, study="other")
    before = (tmp_path / "sweep" / "config.json").read_bytes()
    for storage in (other, None, "postgresql://127.0.0.1:1/x"):
        with pytest.raises(UserError, match=r"no study of them|cannot be reached"):
            run(tmp_path / "sweep", storage=storage)
        assert (tmp_path / "sweep" / "config.json").read_bytes() == before
    assert not (tmp_path / "sweep" / "study.db").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("activation=relu|gellu", "activation='gellu' is unknown; choose one of relu"),
        ("optimizer=adam|adamm", "optimizer='adamm' is unknown; choose one of"),
        ("batch_size=4..45", "batch_size=45"),
        ("shift=1|9", "shift=9 leaves nothing of images of 8 pixels"),
        ("warmup_epochs=0..2", r"warmup_epochs=2\.0: must be less than"),
        ("learning_rate=x1|x900000", "learning_rate=.*: must be"),
    ],
)
def test_values_that_no_run_can_have_are_refused_first(
    tmp_path, text, line, monkeypatch
):
    monkeypatch.undo()
    monkeypatch.setattr(search.data, "load", lambda config: tiny.make_dataset())
    storage = str(tmp_path / "study.journal")
    with pytest.raises(ConfigError, match=line) as error:
        run(tmp_path / "sweep", space=(text,), storage=storage)
    assert str(error.value).startswith(f"--config.space: {text.partition('=')[0]}")
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_is_lost_is_one_line(tmp_path, quick):
    def lose(config):
        raise optuna.exceptions.StorageInternalError("gone away\n(background on ...)")

    quick.score = lose
    with pytest.raises(UserError) as error:
        run(tmp_path)
    assert str(error.value) == (
        "the storage of study sweep is lost: gone away; give the same command again "
        "when it can be reached"
    )
