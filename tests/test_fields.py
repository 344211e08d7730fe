"""Every field of the configuration changes what it says: a program, a state, a file."""

import jax
import numpy as np
import pytest

from dwsep_jax import data
from dwsep_jax.fields import FIELDS
from dwsep_jax.train import evaluation, loop, optim, programs, running
from dwsep_jax.train.metrics import Metrics
from tests import quick, tiny
from tests.compare import comparing
from tests.sweep import sweeping
from tests.train.test_programs import arrays_of, make_steps


@pytest.fixture(scope="module")
def dataset():
    return tiny.make_dataset()


def program(dataset, **changes):
    """Return the program of a training step as text; its inputs hold no values."""
    config = tiny.make_resolved(**changes)
    state = loop.make_state(config, dataset, abstract=True)
    rest = Metrics.empty(), arrays_of(dataset), np.arange(44, dtype=np.int32)
    return str(jax.make_jaxpr(make_steps(config, num_steps=1))(state, *rest))


IN_THE_PROGRAM = {
    "flip": False,
    "shift": 2,
    "cutout": 2,
    "mixup": 0.1,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "conv": "standard",
    "growth_rate": 6,
    "block_sizes": (1, 2),
    "bottleneck": 2,
    "reduction": 0.25,
    "stem_width": 1.0,
    "stem_stride": 2,
    "kernel_size": 5,
    "activation": "swish",
    "inner_norm": True,
    "inner_activation": True,
    "dropout_rate": 0.0,
    "norm_momentum": 0.5,
    "dtype": "bfloat16",
    "lowering": "conv",
    "remat": True,
    "accumulate": 2,
    "optimizer": "adam",
    "momentum": 0.5,
    "schedule": "step",
    "warmup_epochs": 1.0,
    "clip_norm": 1.0,
    "ema_decay": 0.5,
    "freeze": "stem/*",
    "batch_size": 4,
    "num_epochs": 3,
}


@pytest.mark.parametrize("field", IN_THE_PROGRAM)
def test_the_program_of_a_step_changes(dataset, field):
    assert program(dataset, **{field: IN_THE_PROGRAM[field]}) != program(dataset)


IN_THE_STATE = {"seed": 1, "learning_rate": 0.2, "weight_decay": 0.1}
# 0 is another program; beyond it there is one.
IN_THE_STATE_ABOVE_0 = {"dropout_rate": 0.1, "label_smoothing": 0.1}


@pytest.mark.parametrize("field", [*IN_THE_STATE, *IN_THE_STATE_ABOVE_0])
def test_the_state_before_the_first_step_changes(dataset, field):
    def values(**changes):
        changes = {"label_smoothing": 0.2} | changes
        state = loop.make_state(tiny.make_resolved(**changes), dataset)
        state = state.replace(key=jax.random.key_data(state.key))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state)])

    change = {field: (IN_THE_STATE | IN_THE_STATE_ABOVE_0)[field]}
    assert not np.array_equal(values(**change), values())
    above_0 = {"label_smoothing": 0.2}
    assert program(dataset, **above_0 | change) == program(dataset, **above_0)


IN_THE_DATA = dict(dataset="other", label="coarse", image_size=16, split_seed=1)
IN_THE_DATA |= dict(data_dir="/elsewhere", validation_size=6)


@pytest.mark.parametrize("field", IN_THE_DATA)
def test_the_data_change(monkeypatch, field):
    splits = {"train": tiny.make_split(30, 0), "test": tiny.make_split(9, 1)}
    loaded = (("red", "green", "blue"), splits)

    def load(**changes):
        seen = []

        def find_official(*args):
            seen.append(args)
            return loaded

        monkeypatch.setattr(data.dataset, "find_official", find_official)
        config = tiny.make_config(**{"validation_size": 3} | changes)
        return seen, data.load(config).validation.ids.tolist()

    assert load(**{field: IN_THE_DATA[field]}) != load()


def finished(dataset, rows, **changes):
    return running.is_finished(tiny.make_resolved(num_epochs=9, **changes), rows)


def test_early_stopping_and_min_change_end_a_run(dataset):
    rows = [{"val_accuracy": accuracy} for accuracy in (0.5, 0.502, 0.504)]
    assert not finished(dataset, rows)
    assert not finished(dataset, rows, early_stopping=2)
    assert finished(dataset, rows, early_stopping=2, min_change=0.01)
    assert not finished(dataset, rows, early_stopping=3, min_change=0.01)


def test_the_plateau_waits_and_lowers_as_it_is_told():
    def multipliers(**changes):
        config = tiny.make_resolved(schedule="plateau", **changes)
        plateau = optim.make_plateau()
        for _ in range(6):
            plateau = optim.update_plateau(config, plateau, 1.0)
            yield float(plateau.multiplier)

    default = list(multipliers())
    assert default == pytest.approx([1, 1, 1, 1, 1, 0.2])
    changed = list(multipliers(plateau_factor=0.5))
    assert changed == pytest.approx([1, 1, 1, 1, 1, 0.5])
    changed = list(multipliers(plateau_patience=2))
    assert changed == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


@pytest.mark.usefixtures("recompiled")
def test_steps_per_dispatch_and_deterministic_reach_the_programs(dataset, monkeypatch):
    seen, jit = [], jax.jit

    def spy(*args, compiler_options=None, **options):
        seen.append(compiler_options)
        return jit(*args, **options)

    def sizes(**changes):
        config = tiny.make_resolved(**changes)
        state = loop.make_state(config, dataset)
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(jax, "jit", spy)
            compiled = programs.EpochPrograms(config, dataset, [state])
        return [num_steps for num_steps, _ in compiled.programs]

    assert sizes(steps_per_dispatch=3) == [3, 2]
    assert seen == [None, None]
    assert sizes(deterministic=True) == [1, 1, 1, 1, 1]
    assert seen == [{"xla_gpu_deterministic_ops": True}]


def test_eval_batch_size_and_deterministic_reach_the_evaluation(dataset, monkeypatch):
    seen = set()

    def fake(state, split, batch_size, deterministic):
        seen.add((batch_size, deterministic))
        return {"loss": 1.0, "accuracy": 1.0}, None

    monkeypatch.setattr(evaluation, "evaluate", fake)
    state = loop.make_state(tiny.make_resolved(), dataset)
    for changes in ({}, {"eval_batch_size": 5}, {"deterministic": True}):
        running.evaluate_epoch(tiny.make_resolved(**changes), dataset, state)
    assert seen == {(8, False), (5, False), (8, True)}


def test_deterministic_reaches_the_last_evaluation(dataset, monkeypatch, tmp_path):
    seen, jit_eval_step = [], evaluation._jit_eval_step

    def spy(deterministic, mesh):
        seen.append(deterministic)
        return jit_eval_step(deterministic, mesh)

    monkeypatch.setattr(evaluation, "_jit_eval_step", spy)
    state = loop.make_state(tiny.make_resolved(), dataset)
    for deterministic in (False, True):
        config = tiny.make_resolved(deterministic=deterministic)
        arguments = (config, tmp_path, dataset, state, "validation", "the network")
        evaluation.evaluate_and_write(*arguments)
    assert seen == [False, True]


IN_THE_COMPARISON = dict(variants=("separable", "standard", "separable_macs"))
IN_THE_COMPARISON |= dict(num_seeds=3, rate_factors=(1.0, 2.0), margin=60.0)
IN_THE_COMPARISON |= dict(members_at_once=2)


@pytest.mark.parametrize("field", IN_THE_COMPARISON)
def test_a_comparison_changes(monkeypatch, tmp_path, field):
    quick.stand_in(monkeypatch)
    trained = quick.Quick(monkeypatch)

    def compare(name, **changes):
        trained.runs.clear()
        trained.groups.clear()
        comparison = comparing.run(tmp_path / name, **changes)
        runs = [(config.to_dict(), on_test) for _, config, on_test in trained.runs]
        return comparison["margin"], runs, len(trained.groups)

    default = compare("default")
    assert compare("changed", **{field: IN_THE_COMPARISON[field]}) != default


IN_THE_SWEEP = dict(space=("optimizer=adam|sgd", "mixup=0..1"), sampler="grid")
IN_THE_SWEEP |= dict(pruner="none", num_trials=5, storage="kept.journal", study="other")
IN_THE_SWEEP |= dict(num_seeds=3, refit_epochs=3)


@pytest.mark.parametrize("field", IN_THE_SWEEP)
def test_a_sweep_changes(monkeypatch, tmp_path, field):
    trained = sweeping.Quick(monkeypatch)
    # Ever worse, so that the pruner has something to do.
    trained.score = lambda config: [1 - 0.1 * len(trained.trials)] * 2
    monkeypatch.chdir(tmp_path)

    def sweep(name, **changes):
        trained.trials.clear()
        changes = {"space": ("optimizer=adam|sgd", "kernel_size=3..5")} | changes
        best = sweeping.run(tmp_path / name, **{"num_trials": 6} | changes)
        drawn = [config.to_dict() for _, config in trained.trials]
        states = [row["state"] for row in sweeping.read_trials(tmp_path / name)]
        final = best["finals"][0]
        epochs = [run["epoch"] for run in final["runs"]]
        return drawn, states, best["study"], epochs

    changed = sweep("changed", **{field: IN_THE_SWEEP[field]})
    if field == "storage":
        assert (tmp_path / "kept.journal").exists()
        assert not (tmp_path / "changed" / "study.db").exists()
    else:
        assert changed != sweep("default")


IN_THE_LOOP = {
    *("early_stopping", "min_change", "plateau_factor", "plateau_patience"),
    *("steps_per_dispatch", "deterministic", "eval_batch_size"),
    "platform",  # tests/test_main.py
    "progress",  # tests/test_console.py
    *("tensorboard", "wandb", "mlflow"),  # tests/train/test_loggers.py
    "checkpoint_minutes",  # tests/train/test_stopping.py
    "num_devices",  # tests/train/test_devices.py
    # tests/train/test_processes.py
    *("coordinator_address", "num_processes", "process_id"),
    "init_from",  # tests/train/test_weights.py
    "sweep.members_at_once",  # tests/sweep/test_search.py
}


def test_no_field_is_left_out():
    tested = [*IN_THE_PROGRAM, *IN_THE_STATE, *IN_THE_DATA, *IN_THE_LOOP]
    tested += [f"compare.{field}" for field in IN_THE_COMPARISON]
    tested += [f"sweep.{field}" for field in IN_THE_SWEEP]
    assert sorted(tested) == sorted(FIELDS)
