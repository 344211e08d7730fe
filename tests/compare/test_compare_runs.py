"""A comparison on a tiny network: its order, its files, and how it goes on."""

import json
import shutil

import numpy as np
import pytest

from dwsep_jax.compare import runs
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.report.figures import LAST_FIGURE
from dwsep_jax.train import loop, programs
from dwsep_jax.workdir import load_config
from tests.compare.comparing import TWO, draw, read, run, stand_in, train_quickly


@pytest.fixture(autouse=True)
def written(monkeypatch):
    return stand_in(monkeypatch)


@pytest.fixture
def quick(monkeypatch):
    return train_quickly(monkeypatch)


def without_times(value):
    """Return the content without what no two processes have alike."""
    times = ("train_seconds", "images_per_second")
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in times}
    return [without_times(v) for v in value] if isinstance(value, list) else value


class Killed(BaseException):
    """Stands for a process that is gone."""


class Whole:
    """A comparison that was never broken off."""

    changes = {"rate_factors": (1.0, 3.0), "num_epochs": 2, "margin": 2.0}  # noqa: RUF012

    def __init__(self, workdir):
        self.workdir, self.epochs, said = workdir, [], []
        with pytest.MonkeyPatch.context() as patch:
            self.written = stand_in(patch)
            count_epochs(patch, self.epochs)
            patch.setattr(loop, "draw_run", draw)
            say = runs.console.say
            patch.setattr(runs.console, "say", lambda t: (said.append(t), say(t)))
            programs._compile.cache_clear()
            self.comparison = run(workdir, **self.changes)
            self.num_programs = programs._compile.cache_info().misses
        self.said = "\n".join(said)


def count_epochs(patch, epochs):
    """Note the convolution, rate, seed and number of each epoch that is trained."""
    evaluate_epoch = loop.evaluate_epoch

    def note(config, dataset, state):
        number = int(state.step) // 5
        rate = round(config.learning_rate, 3)
        epochs.append((config.conv, rate, config.seed, number))
        return evaluate_epoch(config, dataset, state)

    patch.setattr(loop, "evaluate_epoch", note)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Whole(tmp_path_factory.mktemp("whole"))


def test_all_rates_come_first_and_then_seed_by_seed(whole):
    variants = whole.comparison["variants"]
    chosen = {name: round(v["learning_rate"], 3) for name, v in variants.items()}
    # The first seed's runs are the chosen trials, and not trained again.
    assert whole.epochs == [
        *[(conv, r, 0, i) for r in (0.1, 0.3) for conv in TWO for i in (1, 2)],
        *[(conv, chosen[conv], 1, i) for conv in TWO for i in (1, 2)],
    ]
    assert whole.written == [
        *[(conv, 0, whole.workdir / conv / "seed0") for conv in TWO],
        [whole.workdir],
    ]
    assert whole.num_programs == len(TWO)


def test_a_comparison_leaves_its_files(whole):
    comparison = whole.comparison
    assert comparison.keys() == {
        *("schema", "dataset", "split", "num_examples", "class_names", "margin"),
        *("baseline", "main", "seeds", "num_epochs", "recipe", "variants", "paired"),
        *("per_class", "answer", "reason", "environment"),
    }
    assert (comparison["margin"], comparison["seeds"]) == (0.02, [0, 1])
    assert (comparison["num_examples"], comparison["num_epochs"]) == (13, 2)
    assert comparison["recipe"]["batch_size"] == 8
    for name, entry in comparison["variants"].items():
        assert entry["conv"] == name
        assert entry["efficiency"] == f"{name}/seed0/efficiency.json"
        best = max(entry["rates"], key=lambda r: (r["val_accuracy"], -r["val_loss"]))
        assert entry["learning_rate"] == best["learning_rate"]
        for run_, seed in zip(entry["runs"], (0, 1)):
            directory = whole.workdir / run_["workdir"]
            assert directory == whole.workdir / name / f"seed{seed}"
            evaluation = read(directory / "evaluation.json")
            assert run_["accuracy"] == evaluation["accuracy"]
            assert run_["f1"] == evaluation["f1"]["macro"]
            assert load_config(directory).seed == run_["seed"] == seed
            assert load_config(directory).learning_rate == entry["learning_rate"]
            assert (directory / "checkpoints").is_dir()
        for rate in entry["rates"]:
            trial = whole.workdir / rate["workdir"]
            # Test was not read for a decision.
            assert not (trial / "evaluation.json").exists()
            last_row = (trial / "metrics.jsonl").read_text().splitlines()[-1]
            assert json.loads(last_row)["val_loss"] == rate["val_loss"]
        values = [run_["accuracy"] for run_ in entry["runs"]]
        assert entry["summary"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
        f1 = np.mean(
            [
                read(whole.workdir / run_["workdir"] / "evaluation.json")["per_class"][
                    1
                ]["f1"]
                for run_ in entry["runs"]
            ]
        )
        row = comparison["per_class"][name][1]
        assert row["name"] == "green"
        assert row["f1_mean"] == pytest.approx(f1)


def test_differences_are_those_of_the_runs(whole):
    ours, theirs = (
        [run_["accuracy"] for run_ in whole.comparison["variants"][name]["runs"]]
        for name in TWO
    )
    paired = whole.comparison["paired"]
    assert paired.keys() == {"separable"}
    paired = paired["separable"]
    assert paired["against"] == "standard"
    assert paired["differences"] == pytest.approx(np.subtract(ours, theirs))
    assert paired["bootstrap"]["mean"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert paired["bootstrap"]["num_images"] == 13
    # Two seeds are too few, whatever they show.
    assert (whole.comparison["answer"], paired["answer"]) == ("undecided", "undecided")


def test_a_person_sees_the_plan_the_runs_and_the_answer(whole):
    assert "6 runs of 2 epochs on tiny: each variant at 1, 3 times the rate" in (
        whole.said
    )
    assert "run 1/6  separable at rate 0.1: validation accuracy" in whole.said
    assert "run 6/6  standard seed 1: test accuracy" in whole.said
    answer = "answer: whether separable is worse than standard is undecided. 2 seeds"
    assert answer in whole.said
    # What a run says of itself stands beside it.
    log = (whole.workdir / "standard" / "seed1" / "train.log").read_text()
    assert "MACs per image" in log
    assert "epoch 2/2" in log
    assert "epoch 2/2" not in whole.said.splitlines()[0]


PLACES = [
    (loop, "append_row", 1),
    (loop, "append_row", 3),
    (shutil, "copytree", 2),
    (runs.os, "replace", 1),
    (loop, "evaluate_and_write", 1),
    (loop, "draw_run", 1),
    (runs, "measure_costs", 1),
    (loop, "append_row", 2),
    (runs, "build_comparison", 2),
    (runs, "print_result", 1),
]


def test_killed_anywhere_it_goes_on_to_the_same_numbers(whole, tmp_path, monkeypatch):
    epochs = []
    count_epochs(monkeypatch, epochs)
    monkeypatch.setattr(loop, "draw_run", draw)
    for module, name, nth in PLACES:
        function, calls = getattr(module, name), []

        def kill(*args, function=function, calls=calls, nth=nth, **options):
            calls.append(args)
            if len(calls) == nth:
                raise Killed
            return function(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, kill)
            with pytest.raises(Killed):
                run(tmp_path, **whole.changes)
    comparison = run(tmp_path, **whole.changes)
    assert without_times(comparison) == without_times(whole.comparison)
    # Every row was on its way when the process was gone: no epoch is trained twice.
    assert sorted(epochs) == sorted(whole.epochs)


def assert_near(value, other):
    """Compare two contents whose numbers may differ in their last digits."""
    assert type(value) is type(other)
    if isinstance(value, dict):
        assert value.keys() == other.keys()
        for name in value:
            assert_near(value[name], other[name])
    elif isinstance(value, list):
        for one, two in zip(value, other, strict=True):
            assert_near(one, two)
    else:
        is_number = isinstance(value, float)
        assert value == (pytest.approx(other, rel=1e-3) if is_number else other)


def test_runs_trained_together_and_killed_come_to_the_same(
    whole, tmp_path, monkeypatch, capsys
):
    epochs = []
    count_epochs(monkeypatch, epochs)
    monkeypatch.setattr(loop, "draw_run", draw)
    changes = whole.changes | {"num_seeds": 3, "members_at_once": 2}
    append_row, rows = loop.append_row, []

    def kill(workdir, row):
        rows.append(row)
        if len(rows) == 2:
            raise Killed
        append_row(workdir, row)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "append_row", kill)
        with pytest.raises(Killed):
            run(tmp_path, **changes)
    comparison = run(tmp_path, **changes)
    assert "training separable together: rate1, rate3" in capsys.readouterr().out
    assert [epoch for epoch in epochs if epoch[2] < 2] == [
        *[(conv, r, 0, i) for conv in TWO for i in (1, 2) for r in (0.1, 0.3)],
        *[(*e[:3], i) for e in whole.epochs if e[2] == 1 and e[3] == 1 for i in (1, 2)],
    ]
    two_seeds = run(tmp_path, **changes | {"num_seeds": 2})
    assert_near(without_times(two_seeds), without_times(whole.comparison))
    assert comparison["seeds"] == [0, 1, 2]
    for path in whole.workdir.rglob("*"):
        if "checkpoints" not in path.parts:
            assert (tmp_path / path.relative_to(whole.workdir)).exists(), path


def test_runs_of_a_variant_are_trained_together_so_many_at_once(
    tmp_path, quick, capsys
):
    quick.scores[0.3] = (None, None)
    changes = {"rate_factors": (1.0, 2.0, 3.0, 4.0), "num_seeds": 4}
    comparison = run(tmp_path, members_at_once=2, **changes)
    assert quick.groups == [
        *[["rate1", "rate2"], ["rate3", "rate4"]] * 2,
        *[["seed1", "seed2"]] * 2,
    ]
    # What diverges among others is not trained again; the last seed is alone.
    assert [run for run in quick.runs if run[1] == 0.3] == [
        (conv, 0.3, 0, False) for conv in TWO
    ]
    assert quick.runs[-2:] == [(conv, 0.1, 3, True) for conv in TWO]
    shown = capsys.readouterr().out
    assert "separable at rate 0.3: val_loss is nan  0 s, 0 s left" in shown
    assert "was trained before" not in shown
    assert comparison["variants"]["standard"]["learning_rate"] == 0.1
    quick.groups.clear()
    assert run(tmp_path, members_at_once=4, **changes) == comparison
    assert quick.groups == []


def test_a_finished_comparison_is_left_alone_and_gains_seeds(
    tmp_path, quick, capsys, written
):
    changes = {"rate_factors": (1.0,), "num_seeds": 1}
    first = run(tmp_path, **changes)
    assert first["answer"] == "undecided"
    assert first["paired"]["separable"]["ci95"] is None
    assert first["reason"] == "1 seed is too few to tell: it takes at least 3."
    quick.runs.clear()
    written.clear()
    capsys.readouterr()
    assert run(tmp_path, **changes) == first
    assert quick.runs == []
    assert written == [[tmp_path]]
    assert "validation accuracy 90.00%, loss 0.1000  was trained before" in (
        capsys.readouterr().out
    )
    more = run(tmp_path, **changes | {"num_seeds": 3, "margin": 9.0})
    assert quick.runs == [(conv, 0.1, seed, True) for seed in (1, 2) for conv in TWO]
    assert more["margin"] == 0.09
    # Both networks were made to err alike.
    assert (more["answer"], more["seeds"]) == ("not_worse", [0, 1, 2])
    requested = read(tmp_path / "config.json")["requested"]
    assert (requested["compare"]["num_seeds"], requested["compare"]["margin"]) == (
        3,
        9.0,
    )


@pytest.mark.parametrize(
    "name",
    [
        *("evaluation.json", "predictions.npz", "diagnosis.json", "metrics.jsonl"),
        LAST_FIGURE,
    ],
)
def test_a_run_that_lacks_a_file_is_gone_on_with(tmp_path, quick, name):
    run(tmp_path, num_seeds=1, rate_factors=(1.0,))
    quick.runs.clear()
    (tmp_path / "standard" / "seed0" / name).unlink()
    run(tmp_path, num_seeds=1, rate_factors=(1.0,))
    assert quick.runs == [("standard", 0.1, 0, True)]


def test_half_a_row_is_gone_on_with(tmp_path, quick):
    run(tmp_path, num_seeds=1, rate_factors=(1.0,))
    quick.runs.clear()
    path = tmp_path / "standard" / "seed0" / "metrics.jsonl"
    path.write_text(path.read_text()[:30])
    run(tmp_path, num_seeds=1, rate_factors=(1.0,))
    assert quick.runs == [("standard", 0.1, 0, True)]


def test_an_evaluation_of_other_weights_does_not_count(tmp_path, quick):
    run(tmp_path, num_seeds=1, rate_factors=(1.0,))
    quick.runs.clear()
    path = tmp_path / "standard" / "seed0" / "evaluation.json"
    path.write_text(json.dumps(read(path) | {"epoch": 7}))
    run(tmp_path, num_seeds=1, rate_factors=(1.0,))
    assert quick.runs == [("standard", 0.1, 0, True)]


def test_what_was_compared_otherwise_is_refused(tmp_path, quick):
    run(tmp_path, rate_factors=(1.0,))
    with pytest.raises(ConfigError) as error:
        run(tmp_path, rate_factors=(1.0, 2.0), num_epochs=3)
    assert str(error.value) == (
        f"--workdir={tmp_path} belongs to another comparison: "
        "compare.rate_factors=1.0 there, 1.0,2.0 here; num_epochs=1 there, 3 here; "
        "choose another --workdir, or delete this one"
    )


def test_runs_and_comparisons_do_not_take_each_others_workdir(tmp_path, quick):
    run(tmp_path, rate_factors=(1.0,))
    with pytest.raises(ConfigError, match="holds a comparison, and a run is asked for"):
        load_config(tmp_path)
    directory = tmp_path / "standard" / "seed0"
    with pytest.raises(ConfigError, match="seed0: holds a run, and a comparison is"):
        run(directory)
    # A run of another configuration in a run's place.
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "separable" / "seed0", directory)
    with pytest.raises(ConfigError, match="conv=separable there, standard here"):
        run(tmp_path, rate_factors=(1.0,))


def test_a_rate_that_diverges_is_not_chosen(tmp_path, quick, capsys):
    quick.scores[0.3] = (None, None)
    changes = {"num_seeds": 1, "rate_factors": (3.0, 1.0)}
    entry = run(tmp_path / "a", **changes)["variants"]["standard"]
    assert entry["rates"][0] == {
        "factor": 3.0,
        "learning_rate": pytest.approx(0.3),
        "val_accuracy": None,
        "val_loss": None,
        "workdir": "standard/rate3",
    }
    assert entry["learning_rate"] == 0.1
    assert "standard at rate 0.3: val_loss is nan  " in capsys.readouterr().out
    quick.scores[0.1] = (None, None)
    with pytest.raises(
        UserError, match=r"separable diverges at every rate, 0\.3, 0\.1"
    ):
        run(tmp_path / "b", **changes)


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ({0.1: (0.9, 0.3), 0.2: (0.9, 0.2), 0.3: (0.8, 0.1)}, 0.2),
        ({0.1: (0.9, 0.1), 0.2: (0.8, 0.1), 0.3: (0.95, 0.9)}, 0.3),
    ],
)
def test_accuracy_on_validation_decides_and_then_the_loss(
    tmp_path, quick, scores, rate
):
    quick.scores |= scores
    entry = run(tmp_path, rate_factors=(1.0, 2.0, 3.0))["variants"]["standard"]
    assert entry["learning_rate"] == pytest.approx(rate)
    directory = tmp_path / "standard" / "seed1"
    assert load_config(directory).learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"variants": ("separable", "x")}, "variants='x' is unknown; choose one of"),
        ({"conv": "standard"}, r"--config\.conv=standard: a comparison starts"),
        (
            {"margin": -0.1},
            r"--config\.compare\.margin=-0\.1: must be .* from 0 to 100",
        ),
        (
            {"rate_factors": (1, 1e4)},
            r"--config\.compare\.rate_factors=1,10000\.0: must be",
        ),
        (
            {"rate_factors": (1.0, 1000.0), "learning_rate": 2.0},
            r"--config\.learning_rate=2000\.0: must be",
        ),
        (
            {"seed": 2**32 - 1},
            r"compare\.num_seeds=2: with --config\.seed=4294967295 the last seed",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_compared_leaves_no_workdir(tmp_path, changes, line):
    with pytest.raises(ConfigError, match=line):
        run(tmp_path / "run", **changes)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_share_a_comparison(tmp_path):
    with (
        loop.claimed(tmp_path),
        pytest.raises(UserError, match="another process is at work"),
    ):
        run(tmp_path)
