"""The grammar of a space, and what it refuses."""

import pytest

from configs import default
from dwsep_jax.errors import ConfigError
from dwsep_jax.fields import CHANGE_NOTHING
from dwsep_jax.space import Axis, count_points, parse_space


def parse(*space):
    return parse_space(space)


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
    axes = parse_space(default.get_config().sweep.space)
    assert [axis.field for axis in axes] == fields


DATA = {"dataset", "label", "image_size"}


@pytest.mark.parametrize("name", sorted(CHANGE_NOTHING | {"platform", *DATA}))
def test_a_field_that_changes_no_result_or_all_is_no_axis(name):
    with pytest.raises(ConfigError, match=f"{name} cannot be an axis"):
        parse(f"{name}=a|b")


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
