"""A trial of each field, and the configuration of a trial."""

import optuna
import pytest

from dwsep_jax.fields import CHANGE_NOTHING, FIELDS, format_value
from dwsep_jax.space import parse_space
from dwsep_jax.sweep.study import Sweep
from dwsep_jax.sweep.trial import make_config, run_trial
from dwsep_jax.train import loop
from dwsep_jax.workdir import load_config
from tests import tiny
from tests.sweep.sweeping import Quick

NOT_AXES = {"dataset", "validation_size", "split_seed", "seed", "platform"}
NOT_AXES |= {"num_devices", "remat", "image_size", "label"}
AXES = sorted({name for name in FIELDS if "." not in name} - NOT_AXES - CHANGE_NOTHING)
# Where the default and the example will not do.
CHOICES = {"batch_size": "4|8", "block_sizes": "1,1|2", "warmup_epochs": "0.5|1"}
CHOICES |= {"conv": "separable|standard", "activation": "relu|swish"}
CHOICES |= {"dtype": "float32|bfloat16", "lowering": "auto|conv"}
CHOICES |= {"optimizer": "sgd|adam", "schedule": "cosine|constant"}
CHOICES |= {"init_from": "one|other", "freeze": "stem/*|block0/*"}


@pytest.mark.parametrize("name", AXES)
def test_every_field_that_changes_results_can_be_an_axis(name, tmp_path, monkeypatch):
    resolve = loop.resolve
    Quick(monkeypatch)
    monkeypatch.setattr(loop, "resolve", resolve)
    monkeypatch.setattr(loop, "load_weights", lambda config, state: state)
    config, field = tiny.make_config("sweep"), FIELDS[name]
    other = format_value(2 if config[name] is None else config[name])
    example = field.example if field.example != other else f"{other}1"
    axes = parse_space([f"{name}={CHOICES.get(name, f'{example}|{other}')}"])
    study = optuna.create_study(direction="maximize")
    sweep = Sweep(config, axes, tmp_path, study)
    for number, value in enumerate(axes[0].choices):
        study.enqueue_trial({name: value})
        directory = tmp_path / str(number)
        reached = run_trial(sweep, tiny.make_dataset(), study.ask(), directory)
        assert reached == 0.5, study.trials[-1].user_attrs
        stored = load_config(directory)[name]
        assert format_value(stored) == str(value)
        like = field.read("2") if config[name] is None else config[name]
        assert type(stored) is type(like)


def test_multiples_are_of_the_rate_that_suits_the_other_values():
    config = tiny.make_config("sweep", storage="postgresql://me:secret@host/database")
    space = "learning_rate=x0.5|x2", "optimizer=adam|sgd", "batch_size=64|128"
    axes = parse_space(space)
    params = {"learning_rate_factor": 2, "optimizer": "adam", "batch_size": 64}
    made = make_config(params, config, axes)
    assert made.learning_rate == pytest.approx(2 * 5e-3 * 0.5**0.5)
    assert made.sweep.storage is None
