"""Sweeps that are refused before anything is written, and whose study it is."""

import contextlib
import re
import sqlite3

import optuna
import pytest

from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.sweep import search, study
from dwsep_jax.workdir import load_config
from tests import tiny
from tests.sweep import sweeping
from tests.sweep.sweeping import read_trials, run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    return sweeping.Quick(monkeypatch)


NOT_A_STORAGE = ": must be the URL of a database on disk, or an Optuna journal"
USER, HIDDEN = "me:secret@127.0.0.1", r"://me:\*\*\*@127\.0\.0\.1:1/x: "


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"space": ("growth=1|2",)}, "unknown field growth; did you mean growth_rate"),
        ({"sampler": "bayes"}, "sampler='bayes' is unknown; choose one of tpe, random"),
        ({"pruner": "hard"}, "pruner='hard' is unknown; choose one of median, halving"),
        ({"sampler": "grid"}, "sampler=grid: the space has any learning_rate from"),
        ({"storage": "study.sqlite"}, f"study.sqlite{NOT_A_STORAGE}"),
        ({"storage": "db://user@host/x"}, f"db://user@host/x{NOT_A_STORAGE}"),
        ({"storage": "sqlite://"}, f"sqlite://{NOT_A_STORAGE}"),
        ({"storage": "sqlite:///:memory:"}, f"memory.*{NOT_A_STORAGE}"),
        ({"storage": "sqlite:////no/where.db"}, "where.db: cannot be opened: unable"),
        ({"storage": "/no/where.journal"}, "where.journal: cannot be opened: No such"),
        ({"storage": f"oracle://{USER}:1/x"}, rf"oracle{HIDDEN}.*driver is missing \("),
        ({"storage": f"postgresql://{USER}:1/x"}, f"ql{HIDDEN}.* opened: .*refused"),
        ({"storage": f"postgresql://{USER}:port/x"}, rf"ql://\.\.\.{NOT_A_STORAGE}"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_leaves_no_workdir(tmp_path, changes, line):
    with pytest.raises(UserError, match=line) as error:
        run(tmp_path / "sweep", **changes)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_values_that_no_run_can_have_are_refused(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(search.data, "load", lambda config: tiny.make_dataset())
    storage = str(tmp_path / "study.journal")
    for text, line in (
        ("activation=relu|gellu", "activation='gellu' is unknown; choose one of relu"),
        ("optimizer=adam|adamm", "optimizer='adamm' is unknown; choose one of"),
        ("batch_size=4..45", "batch_size=45"),
        ("shift=1|9", "shift=9 leaves nothing of images of 8 pixels"),
        ("warmup_epochs=0..2", r"warmup_epochs=2\.0: must be less than"),
        ("warmup_epochs=0..1", r"1\.0: must be less than --config\.num_epochs=1 "),
        ("learning_rate=x1|x900000", "learning_rate=.*: must be"),
    ):
        with pytest.raises(ConfigError, match=line) as error:
            run(tmp_path / "sweep", space=(text,), storage=storage, refit_epochs=1)
        field, _, _ = text.partition("=")
        assert str(error.value).startswith(f"--config.sweep.space: {field}")
        assert list(tmp_path.iterdir()) == []


def test_files_of_other_programs_are_left_alone(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("epoch 1/3\n")
    with pytest.raises(UserError, match=f"train.log{NOT_A_STORAGE}"):
        run(tmp_path / "sweep", storage=str(log))
    assert log.read_text() == "epoch 1/3\n"
    assert list(tmp_path.iterdir()) == [log]
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("CREATE TABLE studies (a)")
    with pytest.raises(UserError) as error:
        run(tmp_path / "sweep", storage=f"sqlite:///{tmp_path}/other.db")
    assert str(error.value) == (
        "the storage of study sweep failed: no such column: studies.study_id; run the "
        "same command again once it is back"
    )


def test_a_workdir_keeps_its_study(tmp_path):
    right, other = (str(tmp_path / f"{name}.journal") for name in ("right", "other"))
    run(tmp_path / "sweep", storage=right, num_trials=1)
    run(tmp_path / "another", storage=other, study="other", num_trials=1)
    before = (tmp_path / "sweep" / "config.json").read_bytes()
    for storage in (other, None, "postgresql://127.0.0.1:1/x"):
        with pytest.raises(UserError, match=r"no study of them|cannot be opened"):
            run(tmp_path / "sweep", storage=storage)
        assert (tmp_path / "sweep" / "config.json").read_bytes() == before
    assert not (tmp_path / "sweep" / "study.db").exists()


def test_another_study_of_the_same_name_is_refused(tmp_path):
    storage = str(tmp_path / "study.journal")
    run(tmp_path / "a", storage=storage, num_trials=1)
    space = ("optimizer=adam|sgd", "mixup=0..1")
    with pytest.raises(ConfigError) as error:
        run(tmp_path / "b", storage=storage, space=space, growth_rate=6)
    assert str(error.value) == (
        "--config.sweep.study=sweep: the study of that name in the storage is another "
        f"one: growth_rate=4 there, 6 here; space={list(sweeping.SPACE)} there, "
        f"{list(space)} here; choose another --config.sweep.study"
    )
    assert not (tmp_path / "b").exists()
    opened = study.open_storage(storage, tmp_path)
    optuna.create_study(study_name="theirs", storage=opened).ask()
    with pytest.raises(ConfigError, match=r"study=theirs: .* another one: it is not"):
        run(tmp_path / "b", storage=storage, study="theirs")


def test_a_worker_in_another_workdir_joins_by_the_storage(tmp_path, quick):
    storage = str(tmp_path / "study.journal")
    run(tmp_path / "a", storage=storage, num_trials=1)
    run(tmp_path / "b", storage=storage, num_trials=3)
    assert [number for number, _ in quick.trials] == [0, 1, 2]
    assert len(read_trials(tmp_path / "b")) == 3
    # The storage may contain a password.
    assert load_config(tmp_path / "b" / "trials" / "1").sweep.storage is None


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2 + 7],
    "other": lambda content: b"something else " * 99,
    "middle": lambda content: content[:9000] + b"{\xff" * 4096 + content[17192:],
}


@pytest.mark.parametrize("name", ["study.db", "a.journal"])
def test_a_damaged_study_is_one_line_and_stays(tmp_path, name):
    workdir = tmp_path / "sweep"
    storage = str(tmp_path / name) if name == "a.journal" else None
    path = tmp_path / name if storage else workdir / name
    run(workdir, storage=storage)
    intact = path.read_bytes()
    for damage, change in DAMAGES.items():
        path.write_bytes(content := change(intact))
        with pytest.raises(UserError) as error:
            run(workdir, storage=storage, num_trials=5)
        line = str(error.value)
        assert "\n" not in line
        assert damage == "empty" or path.read_bytes() == content
        if storage is None:
            assert line.startswith(f"{path} ")
            assert line.endswith(
                "; restore it from a copy, or choose another --workdir"
            )
        elif damage in ("cut", "middle"):
            assert re.search(r"a\.journal: line \d+ is damaged; delete it and", line)
