"""A sweep whose trials train nothing: its order, files, resume, and what it refuses."""

import json

import optuna
import pytest

from dwsep_jax import final, study, sweep, train, worker
from dwsep_jax.config import load_config
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.space import parse_space
from tests import sweeping, tiny
from tests.sweeping import diverge, make_config, read_trials, run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.05)
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

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:
            held.close()

    quick.score = by_optimizer(adam=0.75, sgd=0.5)
    held = train.contextlib.ExitStack()
    held.enter_context(train.claimed(tmp_path / "trials" / "0"))
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


def test_without_a_whole_trial_there_is_no_best(tmp_path, quick):
    quick.score = diverge
    with pytest.raises(UserError, match=r"no trial came to its end \(4 pruned; trials"):
        run(tmp_path)
    assert len(read_trials(tmp_path)) == 4


def test_hopeless_trials_are_pruned_before_their_end(tmp_path, quick):
    """After five whole ones the median prunes what is below it, but not at its end."""
    seen = []

    def score(config):
        seen.append(config)
        if len(seen) <= 5:
            return [0.5] * 4
        return [0.6, 0.6, 0.4, 0.4] if len(seen) == 6 else [0.6, 0.6, 0.6, 0.4]

    quick.score = score
    run(tmp_path, num_trials=7, num_epochs=4)
    rows = read_trials(tmp_path)
    assert [row["state"] for row in rows] == [*["complete"] * 5, "pruned", "complete"]
    assert (rows[5]["epochs"], rows[5]["value"]) == ("3", "0.4")


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
    train_seed = train.train_and_evaluate

    def train_and_evaluate(config, workdir, on_test):
        if config.seed == 2:
            diverge(config)
        train_seed(config, workdir, on_test)

    monkeypatch.setattr(train, "train_and_evaluate", train_and_evaluate)
    best = run(tmp_path, num_seeds=3)
    entry = best["finals"][0]
    assert [run_["seed"] for run_ in entry["runs"]] == [1, 3]
    assert entry["diverged"] == [2]
    assert entry["summary"]["accuracy"]["n"] == 2
    assert " seed 2: val_loss is nan  " in capsys.readouterr().out


def test_of_two_workers_one_trains_the_best(tmp_path, quick, capsys):
    config = make_config(num_trials=1)
    (tmp_path / "final").mkdir()
    (tmp_path / "trials").mkdir()
    axes = parse_space(config)
    search = study.open_study(config, tmp_path, 1)
    search.tell(search.ask(), 0.5)
    with pytest.MonkeyPatch.context() as patch, train.claimed(tmp_path / "final"):
        patch.setattr(final, "choose_best", lambda *args: ["some"])
        final.train_best(config, axes, search, tmp_path)
    assert quick.finals == []
    assert "another worker trains the best of them" in capsys.readouterr().out


def test_a_grid_takes_each_point_once(tmp_path, quick):
    space = ("optimizer=adam|sgd", "kernel_size=3..5", "flip=true|false")
    changes = {"space": space, "sampler": "grid", "num_trials": None}
    run(tmp_path, **changes)
    rows = read_trials(tmp_path)
    points = {(row["optimizer"], row["kernel_size"], row["flip"]) for row in rows}
    assert (len(rows), len(points)) == (12, 12)
    with pytest.raises(ConfigError, match="num_trials=13: the grid has 12 points"):
        run(tmp_path, **changes | {"num_trials": 13})


def test_samplers_differ_and_trials_are_a_function_of_the_seed(tmp_path):
    def rates(name, **changes):
        run(tmp_path / name, **changes)
        return [row["learning_rate"] for row in read_trials(tmp_path / name)]

    first = rates("a", num_trials=12)
    assert rates("b", num_trials=12) == first
    assert rates("c", num_trials=12, seed=1) != first
    drawn = rates("d", num_trials=12, sampler="random")
    # The first ten of tpe are drawn at random, too.
    assert drawn != first


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
        ("learning_rate=x1|x90000", "learning_rate=.*: must be"),
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
