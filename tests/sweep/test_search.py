"""A sweep whose trials train nothing: its order, its files, and how it goes on."""

import json
import time

import pytest

from dwsep_jax.errors import ConfigError
from dwsep_jax.sweep import study, worker
from dwsep_jax.train import loop
from dwsep_jax.workdir import load_config
from tests.sweep import sweeping
from tests.sweep.sweeping import diverge, make_config, read_trials, run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    return sweeping.train_quickly(monkeypatch)


def by_optimizer(**scores):
    """Return a score by the optimizer, the same in each epoch."""
    return lambda config: [scores[config.optimizer]] * config.num_epochs


class Whole:
    """A sweep of six trials, never broken off."""

    def __init__(self, workdir):
        self.workdir = workdir
        with pytest.MonkeyPatch.context() as patch:
            self.quick = sweeping.train_quickly(patch)
            self.quick.score = by_optimizer(adam=0.75, sgd=0.5)
            self.best = run(workdir, num_trials=6)
        self.rows = read_trials(workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Whole(tmp_path_factory.mktemp("whole"))


def test_each_trial_is_a_run_in_a_directory_of_its_own(whole):
    assert [number for number, _ in whole.quick.runs] == list(range(6))
    assert len(whole.rows) == 6
    for (number, config), row in zip(whole.quick.runs, whole.rows, strict=True):
        stored = load_config(whole.workdir / "trials" / str(number))
        assert stored.to_dict() == config.to_dict()
        assert (row["number"], row["state"]) == (str(number), "complete")
        assert (row["epochs"], row["retry_of"], row["note"]) == ("2", "", "")
        assert row["optimizer"] == config.optimizer
        assert float(row["dropout_rate"]) == config.dropout_rate
        assert float(row["learning_rate"]) == config.learning_rate
        default = {"adam": 5e-3 * (8 / 128) ** 0.5, "sgd": 0.1 * 8 / 128}
        rate = float(row["learning_rate_factor"]) * default[config.optimizer]
        assert rate == pytest.approx(config.learning_rate)
        assert config.seed == 0
        assert config.dropout_rate * 256 == int(config.dropout_rate * 256)
        value = {"adam": 0.75, "sgd": 0.5}[config.optimizer]
        assert float(row["value"]) == value
        assert float(row["seconds"]) >= 0
    points = {(row["optimizer"], row["learning_rate"]) for row in whole.rows}
    assert len(points) == 6


def test_the_columns_of_trials_csv(whole):
    assert list(whole.rows[0]) == [
        *("number", "state", "value", "epochs", "optimizer", "learning_rate"),
        *("learning_rate_factor", "dropout_rate", "seconds", "retry_of", "note"),
    ]


def test_the_best_are_trained_with_new_seeds_and_evaluated_on_test(whole):
    best, rows = whole.best, whole.rows
    firsts = {
        name: next(row for row in rows if row["optimizer"] == name)
        for name in ("adam", "sgd")
    }
    winner, other = firsts["adam"], firsts["sgd"]
    assert best["number"] == int(winner["number"])
    assert [final["reasons"] for final in best["finals"]] == [
        ["winner", "optimizer=adam"],
        ["optimizer=sgd"],
    ]
    for entry, row in zip(best["finals"], (winner, other), strict=True):
        place = f"final/trial{row['number']}"
        assert entry["directory"] == place
        assert entry["number"] == int(row["number"])
        assert [(r["seed"], r["workdir"]) for r in entry["runs"]] == [
            (seed, f"{place}/seed{seed}") for seed in (1, 2)
        ]
        trained = load_config(whole.workdir / entry["runs"][0]["workdir"])
        assert trained.learning_rate == float(row["learning_rate"])
        assert trained.optimizer == row["optimizer"] == entry["overrides"]["optimizer"]
        for run_ in entry["runs"]:
            path = whole.workdir / run_["workdir"] / "evaluation.json"
            evaluation = json.loads(path.read_text())
            assert run_["accuracy"] == evaluation["accuracy"]
            assert run_["f1"] == evaluation["f1"]["macro"]
        accuracy = [run_["accuracy"] for run_ in entry["runs"]]
        assert entry["summary"]["accuracy"]["mean"] == pytest.approx(sum(accuracy) / 2)
        assert entry["summary"]["val_accuracy"]["n"] == 2
    trials = whole.workdir / "trials"
    assert not list(trials.glob("*/evaluation.json"))
    assert whole.quick.reports == [[whole.workdir]]


def test_best_json_says_what_was_searched(whole):
    best = whole.best
    assert best.keys() == {
        *("schema", "dataset", "study", "sampler", "pruner", "space", "axes"),
        *("num_trials", "number", "overrides", "command", "validation", "importance"),
        *("finals", "environment"),
    }
    assert best["num_trials"] == {"complete": 6, "pruned": 0, "failed": 0}
    assert best["space"] == list(sweeping.SPACE)
    assert best["axes"][1] == {
        **{"name": "learning_rate_factor", "field": "learning_rate"},
        **{"kind": "float", "log": True, "low": 0.1, "high": 10.0, "choices": None},
    }
    assert best["axes"][0]["choices"] == ["adam", "sgd"]
    assert best["validation"] == {"accuracy": 0.75, "epoch": 2}
    names = {"optimizer", "learning_rate_factor", "dropout_rate"}
    assert best["importance"].keys() == names
    assert sum(best["importance"].values()) == pytest.approx(1)
    assert max(best["importance"], key=best["importance"].get) == "optimizer"
    words = best["command"].split()
    assert words[:3] == ["python", "main.py", "--config=configs/default.py"]
    rate = best["overrides"]["learning_rate"]
    assert f"--config.learning_rate={rate}" in words
    assert "--config.optimizer=adam" in words
    assert not any("space" in word or "num_trials" in word for word in words)


def test_a_person_sees_the_trials_and_the_result(tmp_path, quick, capsys):
    quick.score = by_optimizer(adam=0.75, sgd=0.5)
    best = run(tmp_path, num_trials=3)
    said = capsys.readouterr().out
    assert "3 trials of up to 2 epochs on tiny, sampler tpe, pruner median; 3 wait" in (
        said
    )
    row = read_trials(tmp_path)[0]
    line = next(line for line in said.splitlines() if line.startswith("trial 1/3"))
    assert f"number 0, optimizer={row['optimizer']} learning_rate=" in line
    assert f"validation accuracy {float(row['value']):.2%}" in line
    assert line.endswith(" left")
    assert "its test accuracy over 2 seeds: " in said
    assert best["command"] in said


def test_the_plan_tells_the_longest_trial(tmp_path, capsys):
    run(tmp_path, num_trials=1, space=("num_epochs=2|3", "flip=true|false"))
    assert "1 trials of up to 3 epochs on tiny" in capsys.readouterr().out


def test_a_finished_sweep_is_left_alone_and_gains_trials(tmp_path, quick):
    first = run(tmp_path)
    quick.runs.clear()
    quick.finals.clear()
    assert run(tmp_path) == first
    assert (quick.runs, quick.finals) == ([], [])
    run(tmp_path, num_trials=6, num_seeds=3)
    assert [number for number, _ in quick.runs] == [4, 5]
    assert {seed for _, seed in quick.finals} >= {3}


class Killed(BaseException):
    """Stands for a process that is gone."""


@pytest.mark.parametrize("storage", [None, "study.journal"])
def test_a_trial_of_a_process_that_is_gone_is_gone_on_with(tmp_path, quick, storage):
    storage = storage and str(tmp_path / storage)
    workdir = tmp_path / "sweep"

    def kill(config):
        raise Killed

    quick.score = kill
    with pytest.raises(Killed):
        run(workdir, storage=storage)
    ((_, killed),) = quick.runs
    quick.score = by_optimizer(adam=0.75, sgd=0.5)
    quick.runs.clear()
    run(workdir, storage=storage)
    rows = read_trials(workdir)
    assert [row["state"] for row in rows] == ["failed", *["complete"] * 4]
    assert [row["retry_of"] for row in rows] == ["", "", "", "", "0"]
    assert rows[0]["note"] == "its worker was gone; tried again as 4"
    # In the same place, with the same values.
    assert [number for number, _ in quick.runs] == [1, 2, 3, 0]
    assert quick.runs[-1][1].to_dict() == killed.to_dict()


def test_a_trial_that_somebody_holds_is_waited_for(tmp_path, quick, capsys):
    def kill(config):
        raise Killed

    quick.score = kill
    with pytest.raises(Killed):
        run(tmp_path, num_trials=1)
    opened = study.open_study(make_config(), tmp_path, 1)
    sleeps = []

    def sleep(seconds, really=time.sleep):
        if seconds != worker.POLL_SECONDS:  # Somebody else's, as of subprocess.
            return really(seconds)
        sleeps.append(seconds)
        if len(sleeps) == 3:
            held.close()

    quick.score = by_optimizer(adam=0.75, sgd=0.5)
    held = loop.contextlib.ExitStack()
    held.enter_context(loop.claimed(tmp_path / "trials" / "0"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.time, "sleep", sleep)
        run(tmp_path, num_trials=1)
    assert len(sleeps) == 3
    said = capsys.readouterr().out
    assert said.count("waiting for other workers with trial 0 (") == 1
    assert len(opened.trials) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left")])
def test_what_stops_a_sweep_leaves_the_trial_to_be_gone_on_with(tmp_path, quick, error):
    def stop(config):
        raise error

    quick.score = stop
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        run(tmp_path)
    assert [number for number, _ in quick.runs] == [0]
    quick.score = by_optimizer(adam=0.75, sgd=0.5)
    best = run(tmp_path)
    assert best["num_trials"] == {"complete": 4, "pruned": 0, "failed": 0}
    assert [number for number, _ in quick.runs] == [0, 1, 2, 3, 0]


def test_rates_that_diverge_are_pruned(tmp_path, quick, capsys):
    def score(config):
        return diverge(config) if config.optimizer == "sgd" else [0.5, 0.6]

    quick.score = score
    best = run(tmp_path, num_trials=6)
    rows = read_trials(tmp_path)
    for row in rows:
        diverged = row["optimizer"] == "sgd"
        assert row["state"] == ("pruned" if diverged else "complete")
        assert row["note"] == ("diverged" if diverged else "")
        assert row["value"] == ("" if diverged else "0.6")
    assert {row["optimizer"] for row in rows} == {"adam", "sgd"}
    # There is no best of those.
    assert [final["reasons"] for final in best["finals"]] == [
        ["winner", "optimizer=adam"]
    ]
    assert ": pruned: diverged  " in capsys.readouterr().out


def test_a_combination_that_cannot_be_is_failed_and_the_sweep_goes_on(tmp_path, quick):
    def score(config):
        if config.optimizer == "sgd":
            raise ConfigError("growth_rate=1: cannot be")
        if config.dropout_rate > 0.25:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory allocating")
        return [0.5, 0.6]

    quick.score = score
    best = run(tmp_path, num_trials=8)
    notes = {"": 0, "growth_rate=1: cannot be": 0, "out of memory": 0}
    for row in read_trials(tmp_path):
        assert row["state"] == ("failed" if row["note"] else "complete")
        notes[row["note"]] += 1
    assert best["num_trials"]["failed"] == 8 - notes[""]
    assert min(notes.values()) > 0
