"""The study of a sweep: its queue, sampler and pruner, and whose it is."""

import optuna
import pytest

from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.sweep import study
from dwsep_jax.workdir import load_config
from tests.sweep import sweeping
from tests.sweep.sweeping import read_trials, run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    return sweeping.train_quickly(monkeypatch)


def test_hopeless_trials_are_pruned_but_not_too_soon_nor_at_their_end(tmp_path, quick):
    curves = [[0.5] * 7 + [0.9]] * 5 + [[0.4] * 8, [0.6] * 8]

    def score(config):
        return curves[len(quick.runs) - 1]

    quick.score = score
    run(tmp_path, num_trials=7, num_epochs=8)
    rows = read_trials(tmp_path)
    assert [row["state"] for row in rows] == [*["complete"] * 5, "pruned", "complete"]
    # At a quarter of its epochs.
    assert (rows[5]["epochs"], rows[5]["value"]) == ("2", "0.4")


def test_a_trial_that_stops_early_is_complete_however_good(tmp_path, quick):
    def score(config):
        return [0.5] * 8 if len(quick.runs) < 6 else [0.1, 0.1]

    quick.score = score
    run(tmp_path, num_trials=6, num_epochs=8, early_stopping=1)
    last = read_trials(tmp_path)[-1]
    assert (last["state"], last["epochs"], last["value"]) == ("complete", "2", "0.1")


@pytest.mark.parametrize("pruner", study.PRUNERS)
def test_each_pruner_prunes_as_it_should(tmp_path, quick, pruner):
    seen = []

    def score(config):
        seen.append(config)
        return [0.9 - 0.1 * len(seen)] * 4

    quick.score = score
    run(tmp_path, num_trials=8, num_epochs=4, pruner=pruner)
    pruned = [
        row["number"] for row in read_trials(tmp_path) if row["state"] == "pruned"
    ]
    assert (
        pruned
        == {
            "median": ["5", "6", "7"],
            "halving": list("1234567"),
            "none": [],
        }[pruner]
    )


def test_a_grid_takes_each_point_once(tmp_path, quick):
    space = ("optimizer=adam|sgd", "kernel_size=3..4", "flip=true|false")
    changes = {"space": space, "sampler": "grid", "num_trials": None}
    run(tmp_path, **changes)
    rows = read_trials(tmp_path)
    points = {(row["optimizer"], row["kernel_size"], row["flip"]) for row in rows}
    assert (len(rows), len(points)) == (8, 8)
    with pytest.raises(ConfigError, match="num_trials=9: the grid has 8 points"):
        run(tmp_path, **changes | {"num_trials": 9})


def test_trials_are_a_function_of_the_seed_and_their_number(tmp_path):
    def rates(name, **changes):
        run(tmp_path / name, num_trials=3, **changes)
        return [row["learning_rate"] for row in read_trials(tmp_path / name)]

    first = rates("a")
    assert len(set(first)) == 3
    assert rates("b") == first
    assert not set(rates("c", seed=1)) & set(first)


def test_another_study_of_the_same_name_is_refused(tmp_path, quick):
    storage = str(tmp_path / "study.journal")
    run(tmp_path / "a", storage=storage)
    space = ("optimizer=adam|sgd", "mixup=0..1")
    with pytest.raises(ConfigError) as error:
        run(tmp_path / "b", storage=storage, space=space, growth_rate=6)
    assert str(error.value) == (
        "--config.study=sweep: that study in the storage is of another sweep: "
        f"growth_rate=4 there, 6 here; space={','.join(sweeping.SPACE)} there, "
        f"{','.join(space)} here; choose another --config.study"
    )
    assert not (tmp_path / "b").exists()
    run(tmp_path / "b", storage=storage, space=space, study="other")
    optuna.create_study(
        study_name="theirs", storage=study.open_storage(storage, tmp_path)
    ).ask()
    with pytest.raises(
        ConfigError, match="study=theirs: that study in the storage is no"
    ):
        run(tmp_path / "c", storage=storage, study="theirs")


def test_trials_of_a_study_that_is_gone_are_refused(tmp_path, quick):
    run(tmp_path, num_trials=1)
    (tmp_path / "study.db").unlink()
    with pytest.raises(UserError, match="has trials, and the storage no study of them"):
        run(tmp_path, num_trials=1)


def test_a_worker_elsewhere_joins_by_the_storage(tmp_path, quick):
    storage = str(tmp_path / "study.journal")
    run(tmp_path / "a", storage=storage, num_trials=3)
    quick.runs.clear()
    run(tmp_path / "b", storage=storage, num_trials=5)
    assert [number for number, _ in quick.runs] == [3, 4]
    assert len(read_trials(tmp_path / "b")) == 5
    # It may hold a password.
    assert load_config(tmp_path / "b" / "trials" / "3").storage is None
