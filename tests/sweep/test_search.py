"""Sweeps that train nothing: their order, files and finals, and how they resume."""

import contextlib
import shutil
import time
from statistics import mean

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from dwsep_jax.errors import ConfigError, DivergedError, UserError
from dwsep_jax.lock import locked
from dwsep_jax.space import parse_space
from dwsep_jax.sweep import study, worker
from dwsep_jax.sweep.finals import choose_finals
from dwsep_jax.workdir import load_config
from tests.quick import diverge, read
from tests.sweep import sweeping
from tests.sweep.sweeping import SPACE, by_optimizer, read_trials, run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    return sweeping.Quick(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted sweep of six trials: workdir, what was trained, files."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        quick = sweeping.Quick(patch)
        quick.score = by_optimizer(adam=0.75, sgd=0.5)
        best = run(workdir, num_trials=6)
    return workdir, quick, best, read_trials(workdir)


def test_each_trial_is_a_run_in_its_own_directory(whole):
    workdir, quick, _, rows = whole
    assert [number for number, _ in quick.trials] == list(range(6))
    for (number, config), row in zip(quick.trials, rows, strict=True):
        stored = load_config(workdir / "trials" / str(number))
        assert stored.to_dict() == config.to_dict()
        assert not (workdir / "trials" / str(number) / "evaluation.json").exists()
        assert (row["number"], row["state"]) == (str(number), "complete")
        assert (row["epochs"], row["retry_of"], row["note"]) == ("2", "", "")
        assert row["optimizer"] == config.optimizer
        assert float(row["dropout_rate"]) == config.dropout_rate
        assert float(row["learning_rate"]) == config.learning_rate
        default = {"adam": 5e-3 * (8 / 128) ** 0.5, "sgd": 0.1 * 8 / 128}
        rate = float(row["learning_rate_factor"]) * default[config.optimizer]
        assert rate == pytest.approx(config.learning_rate)
        assert float(row["value"]) == {"adam": 0.75, "sgd": 0.5}[config.optimizer]
    assert len({(row["optimizer"], row["learning_rate"]) for row in rows}) == 6


def test_only_the_best_are_evaluated_on_test_with_new_seeds(whole):
    workdir, quick, best, rows = whole
    winner, other = (
        next(row for row in rows if row["optimizer"] == name)
        for name in ("adam", "sgd")
    )
    assert best["number"] == int(winner["number"])
    reasons = [["winner", "optimizer=adam"], ["optimizer=sgd"]]
    assert [final["reasons"] for final in best["finals"]] == reasons
    for final, row in zip(best["finals"], (winner, other), strict=True):
        directory = f"final/trial{row['number']}"
        assert final["directory"] == directory
        assert (final["number"], final["diverged"]) == (int(row["number"]), [])
        for seed, one in zip((1, 2), final["runs"], strict=True):
            evaluation = read(workdir / directory / f"seed{seed}" / "evaluation.json")
            assert one == {
                **{"seed": seed, "workdir": f"{directory}/seed{seed}", "epoch": 2},
                **{"accuracy": evaluation["accuracy"], "loss": 0.5},
                **{"f1": evaluation["f1"]["macro"], "val_accuracy": 0.9},
            }
            trained = load_config(workdir / one["workdir"])
            assert (trained.seed, trained.optimizer) == (seed, row["optimizer"])
            assert trained.learning_rate == float(row["learning_rate"])
        fields = ("optimizer", "learning_rate", "dropout_rate")
        assert final["overrides"] == {name: trained[name] for name in fields}
        accuracies = [one["accuracy"] for one in final["runs"]]
        assert final["summary"]["accuracy"]["mean"] == pytest.approx(mean(accuracies))
        assert final["summary"]["val_accuracy"]["n"] == 2
    # Only these, in this order.
    places = [one["workdir"] for final in best["finals"] for one in final["runs"]]
    trained = [(directory, on_test) for directory, _, on_test in quick.finals.runs]
    assert trained == [(workdir / place, True) for place in places]
    assert quick.reports == [[workdir]]


def test_the_seeds_of_a_final_may_share_a_program(tmp_path, quick):
    run(tmp_path, num_trials=1, num_seeds=3, members_at_once=2)
    (together,) = quick.finals.groups
    assert [directory.name for directory in together] == ["seed1", "seed2"]


def test_best_json_says_what_was_searched(whole):
    _, _, best, _ = whole
    assert best["num_trials"] == {"complete": 6, "pruned": 0, "failed": 0}
    assert best["space"] == list(SPACE)
    assert best["axes"][1] == {
        **{"name": "learning_rate_factor", "field": "learning_rate"},
        **{"kind": "float", "log": True, "low": 0.1, "high": 10.0, "choices": None},
    }
    assert best["validation"] == {"accuracy": 0.75, "epoch": 2}
    assert list(best["importance"]) == sorted(axis["name"] for axis in best["axes"])
    assert max(best["importance"], key=best["importance"].get) == "optimizer"
    words = best["command"].split()
    assert words[:3] == ["python", "main.py", "--config=configs/default.py"]
    assert f"--config.learning_rate={best['overrides']['learning_rate']}" in words
    assert "--config.optimizer=adam" in words
    assert not any("sweep" in word for word in words)


def test_a_person_sees_the_plan_the_trials_and_the_result(tmp_path, capsys):
    space = (*SPACE, "num_epochs=2|3")
    best = run(tmp_path, num_trials=3, space=space)
    said = capsys.readouterr().out
    assert "3 trials of up to 3 epochs on tiny, sampler tpe, pruner median; 3" in said
    assert "; space: optimizer=adam|sgd, learning_rate=x0.1..x10 log, " in said
    row = read_trials(tmp_path)[0]
    line = next(line for line in said.splitlines() if line.startswith("trial 1/3"))
    assert f"number 0, optimizer={row['optimizer']} learning_rate_factor=" in line
    assert f" learning_rate={float(row['learning_rate']):.3g}: " in line
    assert f"validation accuracy {float(row['value']):.2%}" in line
    assert line.endswith(" left")
    accuracy = 100 * best["finals"][0]["summary"]["accuracy"]["mean"]
    assert f"its test accuracy over 2 seeds: {accuracy:.2f}" in said
    assert best["command"] in said


def test_a_finished_sweep_is_left_alone_and_can_be_extended(tmp_path, quick):
    first = run(tmp_path, num_trials=1)
    quick.trials.clear()
    assert run(tmp_path, num_trials=1) == first
    assert quick.trials == []
    extended = run(tmp_path, num_trials=3, num_seeds=3)
    assert [number for number, _ in quick.trials] == [1, 2]
    assert [one["seed"] for one in extended["finals"][0]["runs"]] == [1, 2, 3]


def test_finals_may_have_more_epochs_than_their_trials(tmp_path, quick):
    short = run(tmp_path, num_trials=1)
    number = short["number"]
    quick.trials.clear()
    long = run(tmp_path, num_trials=1, refit_epochs=5)
    assert quick.trials == []
    assert (short["refit_epochs"], long["refit_epochs"]) == (None, 5)
    for best, epochs, name in (
        (short, 2, f"final/trial{number}"),
        (long, 5, f"final/trial{number}-epochs5"),
    ):
        assert f"--config.num_epochs={epochs} " in best["command"].replace("\\\n", "")
        (final,) = best["finals"]
        assert final["directory"] == name
        for one in final["runs"]:
            assert one["epoch"] == epochs
            assert load_config(tmp_path / one["workdir"]).num_epochs == epochs
    # Both are kept.
    quick.finals.runs.clear()
    assert run(tmp_path, num_trials=1) == short
    assert quick.finals.runs == []


class Killed(BaseException):
    """Stands for the death of the process."""


def stop(quick, error, *arguments, **changes):
    """Start a sweep whose first trial ends by an error; return its configuration."""

    def fail(config):
        raise error

    quick.score = fail
    with pytest.raises(type(error)):
        run(*arguments, **changes)
    ((_, stopped),) = quick.trials
    quick.score = by_optimizer(adam=0.75, sgd=0.5)
    return stopped


ERRORS = [Killed(), KeyboardInterrupt(), OSError("disk full")]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("storage", [None, "study.journal"])
def test_an_interrupted_trial_is_retried_in_its_place(tmp_path, quick, storage, error):
    workdir = tmp_path / "sweep"
    changes = {"storage": storage and str(tmp_path / storage), "num_trials": 2}
    stopped = stop(quick, error, workdir, **changes)
    best = run(workdir, **changes)
    rows = read_trials(workdir)
    assert [row["state"] for row in rows] == ["failed", "complete", "complete"]
    assert [row["retry_of"] for row in rows] == ["", "", "0"]
    assert rows[0]["note"] == "its worker was gone; tried again as 2"
    assert [number for number, _ in quick.trials] == [0, 1, 0]
    assert quick.trials[-1][1].to_dict() == stopped.to_dict()
    assert best["num_trials"] == {"complete": 2, "pruned": 0, "failed": 0}


def test_a_trial_in_another_process_is_waited_for(tmp_path, quick, capsys):
    stop(quick, Killed(), tmp_path, num_trials=1)
    sleeps = []

    def sleep(seconds, really=time.sleep):
        if seconds != study.POLL_SECONDS:  # Another module's, such as subprocess.
            return really(seconds)
        sleeps.append(seconds)
        if len(sleeps) == 3:
            held.close()

    held = contextlib.ExitStack()
    held.enter_context(locked(tmp_path / "trials" / "0"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.time, "sleep", sleep)
        run(tmp_path, num_trials=1)
    assert len(sleeps) == 3
    assert capsys.readouterr().out.count("waiting for other workers") == 1
    assert [row["retry_of"] for row in read_trials(tmp_path)] == ["", "0"]


def test_what_becomes_of_trials_that_cannot_end_well(tmp_path, quick, capsys):
    errors = {
        "gelu": DivergedError("val_loss is nan"),
        "swish": ConfigError("growth_rate=1: cannot be"),
        "leaky_relu": RuntimeError("RESOURCE_EXHAUSTED: out of memory allocating"),
    }

    def score(config):
        if error := errors.get(config.activation):
            raise error
        return [0.5, 0.6]

    quick.score = score
    space = ("activation=relu|gelu|swish|leaky_relu",)
    best = run(tmp_path, sampler="grid", space=space)
    keys = ("activation", "state", "value", "note")
    assert {tuple(row[key] for key in keys) for row in read_trials(tmp_path)} == {
        ("relu", "complete", "0.6", ""),
        ("gelu", "pruned", "", "diverged"),
        ("swish", "failed", "", "growth_rate=1: cannot be"),
        ("leaky_relu", "failed", "", "out of memory"),
    }
    assert best["num_trials"] == {"complete": 1, "pruned": 1, "failed": 2}
    (final,) = best["finals"]  # None of the others has a best.
    assert final["reasons"] == ["winner", "activation=relu"]
    assert ": pruned: diverged  " in capsys.readouterr().out


def test_without_a_complete_trial_there_is_no_best(tmp_path, quick):
    quick.score = diverge
    line = r"no trial was completed \(4 pruned; trials.*space and another --workdir,"
    with pytest.raises(UserError, match=line):
        run(tmp_path)
    assert len(read_trials(tmp_path)) == 4


def test_a_seed_that_diverges_is_left_out(tmp_path, quick, capsys):
    quick.finals.score = lambda c: diverge(c) if c.seed == 2 else [0.9, 0.9]
    best = run(tmp_path, num_trials=1, num_seeds=3)
    final = best["finals"][0]
    assert [one["seed"] for one in final["runs"]] == [1, 3]
    assert (final["diverged"], final["summary"]["accuracy"]["n"]) == ([2], 2)
    assert " seed 2: val_loss is nan  " in capsys.readouterr().out
    quick.finals.score = diverge
    shutil.rmtree(tmp_path / "final")
    with pytest.raises(UserError, match="the winner, trial 0, diverges with every new"):
        run(tmp_path, num_trials=1, num_seeds=3)


def test_of_two_workers_one_trains_the_finals(tmp_path, quick, capsys):
    run(tmp_path, num_trials=1)
    quick.finals.runs.clear()
    with locked(tmp_path / "final"):
        run(tmp_path, num_trials=1)
    assert quick.finals.runs == []
    assert "another worker is training the best" in capsys.readouterr().out


def test_the_best_has_the_least_loss_and_may_be_pruned_for_an_optimizer():
    axes = parse_space(["optimizer=adam|sgd", "mixup=0..1"])
    opened = optuna.create_study(direction="maximize")
    choices = {"optimizer": CategoricalDistribution(axes[0].choices)}
    states = {"adam": TrialState.COMPLETE, "sgd": TrialState.PRUNED}
    trials = [("adam", 0.8, 0.5), ("adam", 0.8, 0.4), ("adam", 0.7, 0.1)]
    trials += [("sgd", 0.3, 0.1), ("sgd", 0.4, 0.1)]
    for name, value, loss in trials:
        options = {"params": {"optimizer": name}, "distributions": choices}
        options["user_attrs"] = {"val_loss": loss, study._QUEUED: True}
        trial = optuna.create_trial(state=states[name], value=value, **options)
        opened.add_trial(trial)
    chosen = choose_finals(study.Sweep(None, axes, None, opened))
    numbers = {final.trial.number: final.reasons for final in chosen}
    assert numbers == {1: ["winner", "optimizer=adam"], 4: ["optimizer=sgd"]}


@pytest.mark.parametrize(
    ("pruner", "pruned"),
    [("median", ["5", "6", "7"]), ("halving", list("1234567")), ("none", [])],
)
def test_each_pruner_stops_hopeless_trials(tmp_path, quick, pruner, pruned):
    quick.score = lambda config: [0.9 - 0.1 * len(quick.trials)] * 4
    run(tmp_path, num_trials=8, num_epochs=4, pruner=pruner)
    rows = read_trials(tmp_path)
    assert [row["number"] for row in rows if row["state"] == "pruned"] == pruned


def test_a_trial_is_not_pruned_too_early_nor_at_its_end(tmp_path, quick):
    firsts = [0.5] * 5 + [0.4, 0.6]
    curves = [[first + 0.01 * i for i in range(8)] for first in firsts]
    curves.append([0.1, 0.1])
    quick.score = lambda config: curves[len(quick.trials) - 1]
    run(tmp_path, num_trials=8, num_epochs=8, early_stopping=1)
    rows = read_trials(tmp_path)
    # After a quarter of its epochs; the last stops early.
    ends = [(row["state"], row["epochs"]) for row in rows[5:]]
    assert ends == [("pruned", "2"), ("complete", "8"), ("complete", "2")]


def test_a_grid_takes_each_point_once(tmp_path):
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
