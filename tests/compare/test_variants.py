"""What each name stands for, and which configurations no comparison can have."""

import dataclasses

import pytest

from dwsep_jax.compare.variants import VARIANTS, make_variants
from dwsep_jax.errors import ConfigError
from tests import tiny


def make(**changes):
    config = tiny.make_config(**changes)
    return {v.name: v for v in make_variants(config, tiny.make_dataset())}


def test_variants_differ_in_what_they_say_and_in_nothing_else():
    variants = make()
    assert list(variants) == [
        *("separable", "standard", "separable_parameters", "separable_macs")
    ]
    assert variants["separable"].overrides == {}
    assert variants["standard"].overrides == {"conv": "standard"}
    for name in ("separable_parameters", "separable_macs"):
        assert variants[name].overrides.keys() <= {"growth_rate", "stem_width"}
        assert variants[name].overrides["growth_rate"] > 4
        assert variants[name].config.conv == "separable"
    for variant in variants.values():
        want = tiny.make_config().to_dict() | variant.overrides
        assert variant.config.to_dict() == want


def test_sizes_are_matched():
    variants = make(growth_rate=8)
    standard = variants["standard"].size
    parameters = variants["separable_parameters"].size.parameters
    assert parameters == pytest.approx(standard.parameters, rel=0.02)
    macs = variants["separable_macs"].size.macs
    assert macs == pytest.approx(standard.macs, rel=0.02)


def test_a_standard_convolution_has_no_inside():
    variants = make(inner_norm=True, variants=("separable", "standard"))
    assert variants["standard"].overrides == {"conv": "standard", "inner_norm": False}
    assert variants["separable"].config.inner_norm


def test_the_order_is_that_of_the_config():
    assert list(make(variants=("standard", "separable"))) == ["standard", "separable"]


MISTAKES = {
    "unknown": (
        {"variants": ("separable", "standard", "wide")},
        r"variants='wide' is unknown; choose one of separable, standard, separable_p",
    ),
    "no baseline": (
        {"variants": ("separable", "separable_macs")},
        r"--config\.compare\.variants=separable,separable_macs: lacks standard, and",
    ),
    "neither": ({"variants": ("separable_macs",)}, "lacks separable and standard, and"),
    "conv": (
        {"conv": "standard"},
        r"--config\.conv=standard: a comparison starts from separable, and",
    ),
}


@pytest.mark.parametrize(("changes", "line"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_compared_is_one_line(changes, line):
    with pytest.raises(ConfigError, match=line):
        make(**changes)


def test_images_and_classes_of_the_data_count():
    config = tiny.make_config(variants=("separable", "standard"))
    dataset = tiny.make_dataset()
    more = dataclasses.replace(dataset, class_names=tuple("abcdefgh"))
    few, many = (make_variants(config, d)[0].size for d in (dataset, more))
    assert many.parameters > few.parameters
    assert set(VARIANTS) > {"separable", "standard"}
