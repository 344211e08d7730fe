"""The grammar of a space, and each space that is refused."""

import pytest

from configs import default
from dwsep_jax.config import CHANGE_NOTHING
from dwsep_jax.errors import ConfigError
from dwsep_jax.sweep.space import (
    Axis,
    count_points,
    list_trials_to_check,
    parse_space,
    set_value,
)


def parse(*space):
    config = default.get_config()
    config.sweep.space = space
    return parse_space(config)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("activation=relu|swish", ("activation", "activation", ("relu", "swish"))),
        (
            " activation = relu | swish ",
            ("activation", "activation", ("relu", "swish")),
        ),
        ("batch_size=32|64", ("batch_size", "batch_size", (32, 64))),
        ("reduction=0.5|1", ("reduction", "reduction", (0.5, 1.0))),
        ("flip=true|False", ("flip", "flip", (True, False))),
        ("block_sizes=6,6|3", ("block_sizes", "block_sizes", ("6,6", "3"))),
        (
            "learning_rate=x0.3|x1",
            ("learning_rate_factor", "learning_rate", (0.3, 1.0)),
        ),
        ("learning_rate=0.1|1", ("learning_rate", "learning_rate", (0.1, 1.0))),
        ("growth_rate=8..24", ("growth_rate", "growth_rate", None, 8, 24)),
        ("batch_size=16..256 log", ("batch_size", "batch_size", None, 16, 256, True)),
        ("mixup=0..1", ("mixup", "mixup", None, 0.0, 1.0)),
        (
            "learning_rate=x0.1..x10 log",
            ("learning_rate_factor", "learning_rate", None, 0.1, 10.0, True),
        ),
        ("mixup=0.1 .. 1\tlog ", ("mixup", "mixup", None, 0.1, 1.0, True)),
        (
            "weight_decay=1e-5..1e-2 log",
            ("weight_decay", "weight_decay", None, 1e-5, 1e-2, True),
        ),
    ],
)
def test_an_axis_is_what_its_text_says(text, axis):
    (parsed,) = parse(text)
    assert parsed == Axis(*axis)
    bounds = parsed.list_extremes()
    assert [type(b) for b in bounds] == [type(b) for b in axis[2] or axis[3:5]]


def test_kinds_and_values():
    choice, whole, real = parse("flip=true|false", "kernel_size=3..5", "mixup=0..1")
    assert [axis.kind for axis in (choice, whole, real)] == ["choice", "int", "float"]
    assert choice.list_values() == [True, False]
    assert whole.list_values() == [3, 4, 5]
    assert real.list_values() is None
    assert list(list_trials_to_check([choice, whole])) == [
        *({"flip": True}, {"flip": False}),
        *({"kernel_size": 3}, {"kernel_size": 5}),
    ]


def test_dropout_takes_the_values_that_it_is_rounded_to():
    (axis,) = parse("dropout_rate=0..0.3")
    assert (axis.step, axis.low, axis.high) == (1 / 256, 0.0, 76 / 256)
    (axis,) = parse("dropout_rate=0.1..0.3 log")
    assert (axis.step, axis.high) == (None, 0.3)


def test_values_are_set_with_the_type_of_the_field():
    config = default.get_config()
    space = ("block_sizes=6,6|3", "flip=true|false", "mixup=0..1")
    for axis, value in zip(parse(*space), ("3", False, 0.25), strict=True):
        set_value(config, axis, value)
    assert (config.block_sizes, config.flip, config.mixup) == ((3,), False, 0.25)


def test_the_default_space_has_all_five_axes():
    fields = ["activation", "optimizer", "learning_rate", "batch_size", "dropout_rate"]
    assert [axis.field for axis in parse_space(default.get_config())] == fields


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("growth=8|16", "unknown field growth; did you mean growth_rate?"),
        ("xyz=8|16", r"unknown field xyz; configs/default\.py describes them all"),
        ("activation", r"an axis is FIELD=A\|B"),
        ("=1|2", r"an axis is FIELD=A\|B"),
        ("growth_rate=8..8", "the range is empty: 8 is not below 8"),
        ("mixup=0.5..0.25", r"the range is empty: 0\.5 is not below 0\.25"),
        ("dropout_rate=0.1..0.101", "the range is empty: dropout_rate is rounded to 0"),
        ("mixup=0..1 log", "log needs bounds above zero, and 0 is not"),
        ("learning_rate=x0..x1 log", "x0 is no multiple: write a number above zero"),
        ("learning_rate=x1|xy", "xy is no multiple"),
        ("learning_rate=xinf|x1", "xinf is no multiple"),
        ("learning_rate=0..1", "learning_rate=0: must be a finite number above 0"),
        ("learning_rate=x1..2", "an x stands before all numbers, or before none"),
        ("mixup=0..1 lin", "'lin' after a range can only be log"),
        ("dropout_rate=0..1", "dropout_rate=1: must be a finite number that is 0, or"),
        ("batch_size=32|0", "batch_size=0: must be an integer of at least 1"),
        ("batch_size=1.5..3", r"batch_size=1\.5: must be an integer"),
        ("mixup=x1..x2", "mixup=x1: must be a finite number from 0 to 100"),
        ("activation=relu|", "activation=: must be a name"),
        ("block_sizes=6,6|0", "block_sizes=0: must be a tuple of integers"),
        ("block_sizes=6..8", "block_sizes has no order"),
        ("activation=relu..swish", r"activation has no order; write FIELD=A\|B"),
        ("flip=maybe|true", "flip=maybe: must be true or false"),
        ("activation=relu|relu", "a choice stands there twice"),
        (
            "activation=relu",
            r"one choice is no axis; .* give --config\.activation=relu",
        ),
        ("seed=1|2", "seed cannot be an axis: the best are trained with other seeds"),
        ("split_seed=1|2", "split_seed cannot be an axis: all trials are scored on"),
        ("platform=cpu|gpu", "platform cannot be an axis: it changes no result"),
        *[
            (f"{name}=1|2", f"{name} cannot be an axis: it changes no result")
            for name in sorted(CHANGE_NOTHING)
        ],
        *[
            (f"{name}=1|2", f"{name} cannot be an axis: no single run reads it")
            for name in ("sweep.num_trials", "sweep.space", "compare.margin")
        ],
    ],
)
def test_what_cannot_be_searched_is_one_line(text, problem):
    with pytest.raises(ConfigError, match=problem) as error:
        parse(text)
    assert str(error.value).startswith(f"--config.sweep.space: {text}: ")
    assert "\n" not in str(error.value)


def test_two_axes_of_one_field_are_refused():
    with pytest.raises(ConfigError, match="x2: learning_rate has an axis already"):
        parse("learning_rate=0.1..1", "learning_rate=x1..x2")


def test_a_grid_needs_values_that_can_be_counted():
    assert count_points(parse("flip=true|false", "kernel_size=3..5")) == 6
    with pytest.raises(ConfigError) as error:
        count_points(parse("flip=true|false", "learning_rate=x0.1..x10 log"))
    assert str(error.value) == (
        "--config.sweep.sampler=grid: learning_rate is any number from 0.1 to 10 "
        "(space); write choices, e.g. learning_rate=x0.1|x10, or take "
        "--config.sweep.sampler=tpe"
    )
