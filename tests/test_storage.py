"""Spaces and storages of a sweep that are refused before anything is written."""

import pytest

from dwsep_jax import study, sweep, worker
from dwsep_jax.errors import ConfigError, UserError
from tests import sweeping, tiny
from tests.sweeping import run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.05)
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
    monkeypatch.setattr(sweep.data, "load", lambda config: tiny.make_dataset())
    with pytest.raises(ConfigError, match=line):
        run(tmp_path / "sweep", space=(text,))
    assert list(tmp_path.iterdir()) == []
