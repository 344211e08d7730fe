"""Which trials of a sweep are trained with new seeds, and how."""

import types

import optuna
import pytest

from dwsep_jax.errors import UserError
from dwsep_jax.sweep import final, study
from dwsep_jax.sweep.space import parse_space
from dwsep_jax.train import loop
from tests import tiny
from tests.sweep import sweeping
from tests.sweep.sweeping import diverge, make_config, read_trials, run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    return sweeping.train_quickly(monkeypatch)


def test_without_a_whole_trial_there_is_no_best(tmp_path, quick):
    quick.score = diverge
    line = r"no trial came to its end \(4 pruned; trials.*space and another --workdir,"
    with pytest.raises(UserError, match=line):
        run(tmp_path)
    assert len(read_trials(tmp_path)) == 4


def test_where_all_of_an_optimizer_were_pruned_the_best_of_them_is_trained():
    axes = parse_space(make_config(space=("optimizer=adam|sgd", "mixup=0..1")))
    search = optuna.create_study(direction="maximize")
    states = {"adam": optuna.trial.TrialState.COMPLETE}
    for optimizer, mixup, value, loss in [
        ("adam", 0.1, 0.8, 0.5),
        ("adam", 0.2, 0.8, 0.4),
        ("adam", 0.3, 0.7, 0.1),
        ("sgd", 0.4, 0.3, 0.1),
        ("sgd", 0.5, 0.4, 0.1),
    ]:
        trial = optuna.create_trial(
            state=states.get(optimizer, optuna.trial.TrialState.PRUNED),
            params={"optimizer": optimizer, "mixup": mixup},
            distributions={
                "optimizer": optuna.distributions.CategoricalDistribution(
                    axes[0].choices
                ),
                "mixup": optuna.distributions.FloatDistribution(0, 1),
            },
            value=value,
            user_attrs={"val_loss": loss},
        )
        search.add_trial(trial)
    chosen = final.choose_best(search, axes)
    assert [(choice.trial.number, choice.reasons) for choice in chosen] == [
        (1, ["winner", "optimizer=adam"]),
        (4, ["optimizer=sgd"]),
    ]


def test_a_seed_that_diverges_is_left_out(tmp_path, quick, monkeypatch, capsys):
    train_seed = loop.train_and_evaluate

    def train_and_evaluate(config, workdir, on_test):
        if config.seed == 2:
            diverge(config)
        train_seed(config, workdir, on_test)

    monkeypatch.setattr(loop, "train_and_evaluate", train_and_evaluate)
    best = run(tmp_path, num_seeds=3)
    entry = best["finals"][0]
    assert [run_["seed"] for run_ in entry["runs"]] == [1, 3]
    assert entry["diverged"] == [2]
    assert entry["summary"]["accuracy"]["n"] == 2
    assert " seed 2: val_loss is nan  " in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_of_two_workers_one_trains_the_best(tmp_path, quick, capsys):
    config = make_config(num_trials=1)
    (tmp_path / "final").mkdir()
    (tmp_path / "trials").mkdir()
    axes = parse_space(config)
    search = study.open_study(config, tmp_path, 1)
    search.tell(search.ask(), 0.5)
    with pytest.MonkeyPatch.context() as patch, loop.claimed(tmp_path / "final"):
        patch.setattr(final, "choose_best", lambda *args: ["some"])
        final.train_best(config, axes, search, tmp_path, tiny.make_dataset())
    assert quick.finals == []
    assert "another worker trains the best of them" in capsys.readouterr().out


def test_the_seeds_of_a_trial_may_be_trained_together(tmp_path, quick, monkeypatch):
    groups = []

    def train_members(configs, workdirs, dataset):
        groups.append(
            [(w.parent.name, config.seed) for config, w in zip(configs, workdirs)]
        )
        return [types.SimpleNamespace(error=None) for _ in configs]

    monkeypatch.setattr(loop, "train_members", train_members)
    best = run(tmp_path, num_seeds=3, members_at_once=2)
    names = [entry["directory"].rpartition("/")[2] for entry in best["finals"]]
    assert groups == [[(name, 1), (name, 2)] for name in names]
    # Each has its turn, which evaluates it.
    assert quick.finals == [(name, seed) for name in names for seed in (1, 2, 3)]
