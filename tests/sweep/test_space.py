"""The grammar of a space, what it refuses, and the configurations of its points."""

import pytest

from configs import default
from dwsep_jax.errors import ConfigError
from dwsep_jax.fields import CHANGE_NOTHING, FIELDS, format_value
from dwsep_jax.sweep.space import Axis, count_points, make_config_at, parse_space


def parse(*space):
    config = default.get_config()
    config.sweep.space = space
    return parse_space(config)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("activation=relu|swish", (("relu", "swish"),)),
        (" activation = relu | swish ", (("relu", "swish"),)),
        ("batch_size=32|64", ((32, 64),)),
        ("reduction=0.5|1", ((0.5, 1.0),)),
        ("flip=true|False", ((True, False),)),
        ("block_sizes=6,6|3", (("6,6", "3"),)),
        ("learning_rate=x0.3|x1", ((0.3, 1.0),)),
        ("learning_rate=0.1|1", ((0.1, 1.0),)),
        ("growth_rate=8..24", (None, 8, 24)),
        ("batch_size=16..256 log", (None, 16, 256, True)),
        ("mixup=0..1", (None, 0.0, 1.0)),
        ("learning_rate=x0.1..x10 log", (None, 0.1, 10.0, True)),
        ("mixup=0.1 .. 1\tlog ", (None, 0.1, 1.0, True)),
        ("weight_decay=1e-5..1e-2 log", (None, 1e-5, 1e-2, True)),
        # Rounded as the network does.
        ("dropout_rate=0..0.3", (None, 0.0, 76 / 256)),
        ("dropout_rate=0.1..0.3 log", (None, 0.1, 0.3, True)),
    ],
)
def test_an_axis_is_what_its_text_says(text, axis):
    (parsed,) = parse(text)
    field = text.partition("=")[0].strip()
    name = f"{field}_factor" if "=x" in text else field
    assert parsed == Axis(name, field, *axis)
    types = [type(value) for value in axis[0] or axis[1:3]]
    assert [type(value) for value in parsed.extremes] == types


def test_kinds_and_values():
    axes = parse("flip=true|false", "kernel_size=3..5", "mixup=0..1")
    assert [axis.kind for axis in axes] == ["choice", "int", "float"]
    assert [axis.values for axis in axes] == [(True, False), range(3, 6), None]
    assert count_points(axes[:2]) == 6
    with pytest.raises(ConfigError, match=r"=grid: the space has any mixup from 0 to"):
        count_points(axes)


def test_the_default_space_has_five_axes():
    fields = ["activation", "optimizer", "learning_rate", "batch_size", "dropout_rate"]
    assert [axis.field for axis in parse_space(default.get_config())] == fields


NOT_AXES = {"dataset", "validation_size", "split_seed", "seed", "platform"}


@pytest.mark.parametrize("name", [n for n in FIELDS if "." not in n])
def test_every_field_of_a_run_can_be_an_axis_if_it_changes_the_result(name):
    config = default.get_config()
    example = FIELDS[name].example
    other = format_value(2 if config[name] is None else config[name])
    if name in NOT_AXES | CHANGE_NOTHING:
        with pytest.raises(ConfigError, match=f"{name} cannot be an axis"):
            parse(f"{name}={example}|{other}")
        return
    if example == other:
        example = f"{other}1"
    axes = parse(f"{name}={example}|{other}")
    for value in axes[0].choices:
        made = make_config_at({name: value}, config, axes)
        assert format_value(made[name]) == str(value)
        kind = FIELDS[name].unset_type or config.get_type(name)
        assert type(made[name]) is kind


def test_multiples_are_of_the_rate_that_suits_the_other_values():
    config = default.get_config()
    config.sweep.storage = "postgresql://me:secret@host/database"
    axes = parse("learning_rate=x0.5|x2", "optimizer=adam|sgd", "batch_size=64|128")
    params = {"learning_rate_factor": 2, "optimizer": "adam", "batch_size": 64}
    made = make_config_at(params, config, axes)
    assert made.learning_rate == pytest.approx(2 * 5e-3 * 0.5**0.5)
    assert made.sweep.storage is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("growth=8|16", "unknown field growth; did you mean growth_rate?"),
        ("xyz=8|16", r"unknown field xyz; configs/default\.py describes them all"),
        ("activation", r"an axis is FIELD=A\|B"),
        ("=1|2", r"an axis is FIELD=A\|B"),
        ("growth_rate=8..8", "the range needs at least two values"),
        ("mixup=0.5..0.25", "the range needs at least two values"),
        ("dropout_rate=0.1..0.101", "the range needs at least two values"),
        ("mixup=0..1 log", "a log range needs bounds above zero, not 0"),
        ("learning_rate=x0..x1 log", "learning_rate=0: must be a finite number above"),
        ("learning_rate=x1|xy", "learning_rate=y: must be a finite number above 0"),
        ("learning_rate=xinf|x1", "learning_rate=inf: must be a finite number"),
        ("learning_rate=0..1", "learning_rate=0: must be a finite number above 0"),
        ("learning_rate=x1..2", "learning_rate=x1: must be a finite number above 0"),
        ("mixup=0..1 lin", r"mixup=0\.\.1 lin: must be a finite number"),
        ("dropout_rate=0..1", "dropout_rate=1: must be a finite number that is 0, or"),
        ("batch_size=32|0", "batch_size=0: must be an integer of at least 1"),
        ("batch_size=1.5..3", r"batch_size=1\.5: must be an integer"),
        ("mixup=x1..x2", "mixup=x1: must be a finite number"),
        ("activation=relu|", "activation=: must be a name"),
        ("block_sizes=6,6|0", "block_sizes=0: must be a tuple of integers"),
        ("block_sizes=6..8", "block_sizes has no order"),
        ("activation=relu..swish", r"activation has no order; write FIELD=A\|B"),
        ("flip=maybe|true", "flip=maybe: must be true or false"),
        ("activation=relu|relu", "a choice is repeated"),
        ("activation=relu", r"two choices; .* set --config\.activation=relu"),
        ("seed=1|2", "seed cannot be an axis: the best trials are trained with"),
        ("split_seed=1|2", "split_seed cannot be an axis: all trials are scored on"),
        ("platform=cpu|gpu", "platform cannot be an axis: it changes no result"),
        ("sweep.space=1|2", "sweep.space cannot be an axis: no single run reads it"),
        ("compare.margin=1|2", "compare.margin cannot be an axis: no single run reads"),
    ],
)
def test_what_cannot_be_searched_is_one_line(text, problem):
    with pytest.raises(ConfigError, match=problem) as error:
        parse(text)
    assert str(error.value).startswith(f"--config.sweep.space: {text}: ")
    assert "\n" not in str(error.value)


def test_two_axes_of_one_field_are_refused():
    with pytest.raises(ConfigError, match="x2: learning_rate already has an axis"):
        parse("learning_rate=0.1..1", "learning_rate=x1..x2")
