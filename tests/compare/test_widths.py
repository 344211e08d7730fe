"""Widths that are solved for: how near they come, and by which fields."""

import pytest

from configs import cpu, digits, separable
from dwsep_jax.compare.widths import match_size, measure_size

IMAGE_SHAPE = (32, 32, 3)


def sizes(config, **changes):
    changed = config.copy_and_resolve_references()
    changed.update(changes)
    return measure_size(changed, 10, IMAGE_SHAPE)


@pytest.mark.parametrize("quantity", ["parameters", "macs"])
@pytest.mark.parametrize("bottleneck", [0, 4])
@pytest.mark.parametrize("file", [separable, digits, cpu])
def test_a_widened_network_comes_within_two_percent(file, bottleneck, quantity):
    config = file.get_config()
    config.bottleneck = bottleneck
    target = getattr(sizes(config, conv="standard"), quantity)
    fields = match_size(config, quantity, target, 10, IMAGE_SHAPE)
    assert fields["growth_rate"] > config.growth_rate
    assert getattr(sizes(config, **fields), quantity) == pytest.approx(target, rel=0.02)


def test_the_size_is_that_of_the_summary():
    # As the README has it.
    assert sizes(digits.get_config()) == (23_466, 2_418_368)


def test_a_network_is_its_own_match():
    config = digits.get_config()
    target = sizes(config).macs
    assert match_size(config, "macs", target, 10, IMAGE_SHAPE) == {"growth_rate": 16}


def test_the_closest_growth_rate_is_taken_from_both_sides():
    config = digits.get_config()
    low, high = (sizes(config, growth_rate=rate).macs for rate in (40, 41))
    for share, rate in ((0.4, 40), (0.6, 41)):
        target = round(low + share * (high - low))
        assert match_size(config, "macs", target, 10, IMAGE_SHAPE) == {
            "growth_rate": rate
        }


def test_where_no_growth_rate_is_near_the_stem_is_widened_too():
    config = digits.get_config()
    low, high = (sizes(config, growth_rate=rate).parameters for rate in (16, 17))
    target = (low + high) // 2
    assert high / low > 1.05
    fields = match_size(config, "parameters", target, 10, IMAGE_SHAPE)
    assert fields.keys() == {"growth_rate", "stem_width"}
    assert sizes(config, **fields).parameters == pytest.approx(target, rel=0.01)


def test_a_target_below_narrows_the_network():
    config = digits.get_config()
    target = sizes(config, growth_rate=5).parameters
    fields = match_size(config, "parameters", target, 10, IMAGE_SHAPE)
    assert fields == {"growth_rate": 5}
