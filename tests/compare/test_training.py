"""A comparison of tiny networks: its order, its files, and how it resumes."""

import json
import os
import shutil

import numpy as np
import pytest

from dwsep_jax.compare import training
from dwsep_jax.compare.result import choose_rate
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.report.figures import LAST_FIGURE
from dwsep_jax.train import evaluation, loop, programs, running
from dwsep_jax.workdir import load_config
from tests.compare.comparing import TWO, run
from tests.quick import Quick, diverge, draw, read, stand_in


@pytest.fixture(autouse=True)
def written(monkeypatch):
    return stand_in(monkeypatch)


@pytest.fixture
def quick(monkeypatch):
    return Quick(monkeypatch)


class Killed(BaseException):
    """The end of a process."""


def kill_at(patch, module, name, nth):
    """Let the nth call of a function end the process."""
    function, calls = getattr(module, name), []

    def call(*args, **options):
        calls.append(args)
        if len(calls) == nth:
            raise Killed
        return function(*args, **options)

    patch.setattr(module, name, call)


def record_epochs(patch):
    """Skip the figures; return the (conv, rate, seed, number) of the epochs to come."""
    epochs, evaluate_epoch = [], running.evaluate_epoch

    def evaluate(config, dataset, state):
        number = int(state.step) // 5
        rate = round(config.learning_rate, 3)
        epochs.append((config.conv, rate, config.seed, number))
        return evaluate_epoch(config, dataset, state)

    patch.setattr(running, "evaluate_epoch", evaluate)
    patch.setattr(loop, "draw_run", draw)
    return epochs


class Whole:
    """A comparison that was never interrupted."""

    changes = {"rate_factors": (1.0, 3.0), "num_epochs": 2, "margin": 2.0}  # noqa: RUF012

    def __init__(self, workdir):
        self.workdir, said = workdir, []
        with pytest.MonkeyPatch.context() as patch:
            self.written = stand_in(patch)
            self.epochs = record_epochs(patch)
            say = training.console.say
            patch.setattr(training.console, "say", lambda t: (said.append(t), say(t)))
            programs._compile.cache_clear()
            self.comparison = run(workdir, **self.changes)
            self.num_programs = programs._compile.cache_info().misses
        self.said = "\n".join(said)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Whole(tmp_path_factory.mktemp("whole"))


def test_all_rates_come_first_and_then_seed_by_seed(whole):
    variants = whole.comparison["variants"]
    chosen = {name: round(v["learning_rate"], 3) for name, v in variants.items()}
    # The runs of the first seed are the chosen trials, not trained again.
    assert whole.epochs == [
        *[(conv, r, 0, i) for r in (0.1, 0.3) for conv in TWO for i in (1, 2)],
        *[(conv, chosen[conv], 1, i) for conv in TWO for i in (1, 2)],
    ]
    assert whole.written == [
        *[(conv, 0, whole.workdir / conv / "seed0") for conv in TWO],
        [whole.workdir],
    ]
    assert whole.num_programs == len(TWO)


def test_the_content_is_that_of_the_runs_files(whole):
    comparison = whole.comparison
    assert comparison.keys() == {
        *("schema", "dataset", "split", "num_examples", "class_names", "margin"),
        *("baseline", "main", "seeds", "num_epochs", "variants", "paired"),
        *("per_class", "answer", "reason", "environment"),
    }
    assert (comparison["margin"], comparison["seeds"]) == (0.02, [0, 1])
    assert (comparison["num_examples"], comparison["num_epochs"]) == (13, 2)
    for name, entry in comparison["variants"].items():
        assert entry["conv"] == name
        assert entry["efficiency"] == f"{name}/seed0/efficiency.json"
        f1 = []
        for run_, seed in zip(entry["runs"], (0, 1), strict=True):
            directory = whole.workdir / run_["workdir"]
            assert directory == whole.workdir / name / f"seed{seed}"
            evaluation = read(directory / "evaluation.json")
            assert run_["accuracy"] == evaluation["accuracy"]
            assert run_["f1"] == evaluation["f1"]["macro"]
            f1.append(evaluation["per_class"][1]["f1"])
            config = load_config(directory)
            assert (config.seed, run_["seed"]) == (seed, seed)
            assert config.learning_rate == entry["learning_rate"]
        row = comparison["per_class"][name][1]
        assert row == row | {"name": "green", "f1_mean": pytest.approx(np.mean(f1))}
        for rate in entry["rates"]:
            trial = whole.workdir / rate["workdir"]
            # No decision reads test.
            assert not (trial / "evaluation.json").exists()
            last_row = (trial / "metrics.jsonl").read_text().splitlines()[-1]
            assert json.loads(last_row)["val_loss"] == rate["val_loss"]


def test_differences_are_those_of_the_runs(whole):
    ours, theirs = (
        [run_["accuracy"] for run_ in whole.comparison["variants"][name]["runs"]]
        for name in TWO
    )
    [paired] = whole.comparison["paired"].values()
    assert paired["against"] == "standard"
    assert paired["differences"] == pytest.approx(np.subtract(ours, theirs))
    assert paired["bootstrap"]["mean"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert paired["bootstrap"]["num_images"] == 13
    # Two seeds are too few, whatever they show.
    assert (whole.comparison["answer"], paired["answer"]) == ("undecided", "undecided")


def test_the_plan_the_runs_and_the_answer_are_printed(whole):
    for text in (
        "6 runs of 2 epochs on tiny: each variant at 1, 3 times the learning rate 0.1",
        "run 1/6  separable at rate 0.1: validation accuracy",
        "run 6/6  standard seed 1: test accuracy",
        "answer: whether separable is worse than standard is undecided. 2 seeds",
    ):
        assert text in whole.said
    # What a run prints goes to its log.
    log = (whole.workdir / "standard" / "seed1" / "train.log").read_text()
    assert "MACs per image" in log
    assert "epoch 2/2" in log


def assert_same(value, other, rel=0.0):
    """Compare contents, except for times; floats to a relative tolerance."""
    if isinstance(value, dict):
        assert value.keys() == other.keys()
        for name in value.keys() - {"train_seconds", "images_per_second"}:
            assert_same(value[name], other[name], rel)
    elif isinstance(value, list):
        for one, two in zip(value, other, strict=True):
            assert_same(one, two, rel)
    elif isinstance(value, float):
        assert value == pytest.approx(other, rel=rel, abs=0)
    else:
        assert value == other


PLACES = [
    (running, "append_row", 1),
    (running, "append_row", 3),
    (shutil, "copytree", 2),
    (os, "replace", 1),
    (evaluation, "evaluate_and_write", 1),
    (loop, "draw_run", 1),
    (training, "measure_cost", 2),
    (running, "append_row", 2),
    (training, "build_comparison", 2),
    (training, "print_result", 1),
]


def test_killed_anywhere_it_resumes_to_the_same_numbers(whole, tmp_path, monkeypatch):
    epochs = record_epochs(monkeypatch)
    for place in PLACES:
        with monkeypatch.context() as patch:
            kill_at(patch, *place)
            with pytest.raises(Killed):
                run(tmp_path, **whole.changes)
    assert_same(run(tmp_path, **whole.changes), whole.comparison)
    # Each row was about to be written when the process ended: no epoch is repeated.
    assert sorted(epochs) == sorted(whole.epochs)


def test_runs_trained_together_and_killed_have_the_same_result(
    whole, tmp_path, monkeypatch, capsys
):
    epochs = record_epochs(monkeypatch)
    changes = whole.changes | {"num_seeds": 3, "members_at_once": 2}
    with monkeypatch.context() as patch:
        kill_at(patch, running, "append_row", 2)
        with pytest.raises(Killed):
            run(tmp_path, **changes)
    assert run(tmp_path, **changes)["seeds"] == [0, 1, 2]
    assert "training separable together: rate1, rate3" in capsys.readouterr().out
    assert [epoch for epoch in epochs if epoch[2] < 2] == [
        *[(conv, r, 0, i) for conv in TWO for i in (1, 2) for r in (0.1, 0.3)],
        *[(*e[:3], i) for e in whole.epochs if e[2] == 1 and e[3] == 1 for i in (1, 2)],
    ]
    two_seeds = run(tmp_path, **changes | {"num_seeds": 2})
    assert_same(two_seeds, whole.comparison, rel=1e-3)
    for path in whole.workdir.rglob("*"):
        if "checkpoints" not in path.parts:
            assert (tmp_path / path.relative_to(whole.workdir)).exists(), path


def trained(quick):
    """Return (conv, rate, seed, on_test) of each run, and forget them."""
    runs = [
        (config.conv, round(config.learning_rate, 3), config.seed, on_test)
        for _, config, on_test in quick.runs
    ]
    quick.runs.clear()
    return runs


def diverge_at(*rates):
    def score(config):
        if round(config.learning_rate, 3) in rates:
            diverge(config)
        return [0.9] * config.num_epochs

    return score


def test_members_at_once_limits_the_runs_of_a_program(tmp_path, quick, capsys):
    quick.score = diverge_at(0.3)
    changes = {"rate_factors": (1.0, 2.0, 3.0, 4.0), "num_seeds": 4}
    comparison = run(tmp_path, members_at_once=2, **changes)
    assert [[directory.name for directory in group] for group in quick.groups] == [
        *[["rate1", "rate2"], ["rate3", "rate4"]] * 2,
        *[["seed1", "seed2"]] * 2,
    ]
    # A member that diverged is not trained again; the last seed is alone.
    runs = trained(quick)
    diverged = [run_ for run_ in runs if run_[1] == 0.3]
    assert diverged == [(conv, 0.3, 0, False) for conv in TWO]
    assert runs[-2:] == [(conv, 0.1, 3, True) for conv in TWO]
    shown = capsys.readouterr().out
    assert "separable at rate 0.3: val_loss is nan  0 s, 0 s left" in shown
    assert "was trained before" not in shown
    entry = comparison["variants"]["standard"]
    assert entry["learning_rate"] == 0.1
    rate = {"factor": 3.0, "learning_rate": pytest.approx(0.3), "val_accuracy": None}
    rate |= {"val_loss": None, "workdir": "standard/rate3"}
    assert entry["rates"][2] == rate
    quick.groups.clear()
    assert run(tmp_path, members_at_once=4, **changes) == comparison
    assert quick.groups == []


def test_a_finished_comparison_is_kept_or_gains_seeds(tmp_path, quick, capsys, written):
    changes = {"rate_factors": (1.0,), "num_seeds": 1}
    first = run(tmp_path, **changes)
    assert first["answer"] == "undecided"
    assert first["paired"]["separable"]["ci95"] is None
    quick.runs.clear()
    written.clear()
    capsys.readouterr()
    assert run(tmp_path, **changes) == first
    assert quick.runs == []
    assert written == [[tmp_path]]
    shown = capsys.readouterr().out
    assert "validation accuracy 90.00%, loss 0.1000  was trained before" in shown
    more = run(tmp_path, **changes | {"num_seeds": 3, "margin": 9.0})
    assert trained(quick) == [(conv, 0.1, s, True) for s in (1, 2) for conv in TWO]
    # Both networks were made to err alike.
    expected = {"answer": "not_worse", "seeds": [0, 1, 2], "margin": 0.09}
    assert more.items() >= expected.items()
    requested = read(tmp_path / "config.json")["requested"]["compare"]
    assert (requested["num_seeds"], requested["margin"]) == (3, 9.0)


FILES = ("evaluation.json", "predictions.npz", "diagnosis.json", "metrics.jsonl")


@pytest.mark.parametrize("name", [*FILES, LAST_FIGURE, "half a row", "other weights"])
def test_a_damaged_run_is_resumed(tmp_path, quick, name):
    run(tmp_path, num_seeds=1, rate_factors=(1.0,))
    quick.runs.clear()
    directory = tmp_path / "standard" / "seed0"
    if name == "half a row":
        path = directory / "metrics.jsonl"
        path.write_text(path.read_text()[:30])
    elif name == "other weights":
        path = directory / "evaluation.json"
        path.write_text(json.dumps(read(path) | {"epoch": 7}))
    else:
        (directory / name).unlink()
    run(tmp_path, num_seeds=1, rate_factors=(1.0,))
    assert trained(quick) == [("standard", 0.1, 0, True)]


def test_a_workdir_of_something_else_is_refused(tmp_path, quick):
    run(tmp_path, rate_factors=(1.0,))
    with pytest.raises(ConfigError, match="another comparison: num_epochs=1 there, 3"):
        run(tmp_path, rate_factors=(1.0,), num_epochs=3)
    with pytest.raises(ConfigError, match="holds a comparison"):
        load_config(tmp_path)
    directory = tmp_path / "standard" / "seed0"
    with pytest.raises(ConfigError, match="seed0: holds a run"):
        run(directory)
    # A run of another configuration in the place of one.
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "separable" / "seed0", directory)
    with pytest.raises(ConfigError, match="conv=separable there, standard here"):
        run(tmp_path, rate_factors=(1.0,))


def test_validation_accuracy_decides_and_then_the_loss():
    scores = [(0.9, 0.3), (0.9, 0.2), (0.8, 0.1), (None, None)]
    rates = [{"val_accuracy": a, "val_loss": loss} for a, loss in scores]
    assert choose_rate("it", rates) is rates[1]
    rates[2]["val_accuracy"] = 0.95
    assert choose_rate("it", rates) is rates[2]
    with pytest.raises(UserError, match=r"it diverges at every rate, 0\.1;"):
        choose_rate("it", [rates[-1] | {"learning_rate": 0.1}])


def test_a_mistake_is_one_line_and_leaves_no_workdir(tmp_path):
    rates = {"rate_factors": (1.0, 1000.0), "learning_rate": 2.0}
    variants, choices = ("separable", "separable_macs"), "separable, standard, separabl"
    for changes, line in (
        ({"variants": ("separable", "x")}, f"variants='x' is unk.* one of {choices}"),
        ({"variants": variants}, r"re\.variants=\w+,\w+ lacks standard; the"),
        ({"conv": "standard"}, r"--config\.conv=standard: a comparison starts"),
        (rates, r"--config\.learning_rate=2000\.0: must be"),
    ):
        with pytest.raises(ConfigError, match=line):
            run(tmp_path / "run", **changes)
        assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_share_a_comparison(tmp_path):
    with loop.claimed(tmp_path), pytest.raises(UserError, match="another process is"):
        run(tmp_path)
