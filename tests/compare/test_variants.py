"""The networks of a comparison: what they differ in, and how wide they are."""

import numpy as np
import pytest

from configs import cpu, digits, separable
from dwsep_jax.compare.result import compare_with_baseline
from dwsep_jax.compare.variants import make_variants
from dwsep_jax.compare.widths import match_size, measure_size
from tests import tiny

SHAPES = (10, (32, 32, 3))


def make(**changes):
    config = tiny.make_config(**changes)
    return {v.name: v for v in make_variants(config, tiny.make_dataset())}


def test_variants_differ_in_their_overrides_and_in_nothing_else():
    variants = make()
    names = ["separable", "standard", "separable_parameters", "separable_macs"]
    assert list(variants) == names
    assert variants["separable"].overrides == {}
    assert variants["standard"].overrides == {"conv": "standard"}
    for name in ("separable_parameters", "separable_macs"):
        assert variants[name].overrides.keys() <= {"growth_rate", "stem_width"}
        assert variants[name].overrides["growth_rate"] > 4
    for variant in variants.values():
        want = tiny.make_config().to_dict() | variant.overrides
        assert variant.config.to_dict() == want


def test_order_and_inside_of_the_convolutions():
    variants = make(inner_norm=True, variants=("standard", "separable"))
    assert list(variants) == ["standard", "separable"]
    # A standard convolution has no inside.
    assert variants["standard"].overrides == {"conv": "standard", "inner_norm": False}
    assert variants["separable"].config.inner_norm


@pytest.mark.parametrize(
    ("file", "bottleneck", "quantity"),
    [(separable, 0, "macs"), (digits, 4, "parameters"), (cpu, 0, "parameters")],
)
def test_a_widened_network_comes_within_two_percent(file, bottleneck, quantity):
    config = file.get_config()
    config.bottleneck = bottleneck
    target = getattr(measure_size(config, *SHAPES, conv="standard"), quantity)
    fields = match_size(config, quantity, target, *SHAPES)
    assert fields["growth_rate"] > config.growth_rate
    size = measure_size(config, *SHAPES, **fields)
    assert getattr(size, quantity) == pytest.approx(target, rel=0.02)


def test_the_closest_width_is_found():
    config = digits.get_config()
    assert measure_size(config, *SHAPES) == (23_466, 2_418_368)  # As documented.
    config.block_sizes = (1, 1)

    def macs(rate):
        return measure_size(config, *SHAPES, growth_rate=rate).macs

    targets = {macs(16): 16, macs(5): 5, macs(1) // 2: 1}
    targets |= {round(0.6 * macs(40) + 0.4 * macs(41)): 40}
    targets |= {round(0.4 * macs(40) + 0.6 * macs(41)): 41}
    for target, rate in targets.items():
        assert match_size(config, "macs", target, *SHAPES)["growth_rate"] == rate


def test_where_no_growth_rate_is_near_the_stem_is_widened_too():
    config = digits.get_config()
    sizes = [measure_size(config, *SHAPES, growth_rate=rate) for rate in (16, 17)]
    low, high = (size.parameters for size in sizes)
    target = (low + high) // 2
    assert high / low > 1.05
    fields = match_size(config, "parameters", target, *SHAPES)
    assert fields.keys() == {"growth_rate", "stem_width"}
    size = measure_size(config, *SHAPES, **fields)
    assert size.parameters == pytest.approx(target, rel=0.01)


def test_the_bootstrap_pairs_images_by_id(tmp_path):
    ids, labels = np.array(["a", "b", "c", "d"]), np.array([0, 1, 0, 1])
    right = {"standard": [1, 1, 1, 0], "separable": [1, 1, 0, 0]}
    entries = {}
    for name, correct in right.items():
        (tmp_path / name).mkdir()
        predicted = np.where(correct, labels, 1 - labels)
        order = np.array([3, 1, 0, 2]) if name == "standard" else np.arange(4)
        arrays = {"id": ids, "label": labels, "probabilities": np.eye(2)[predicted]}
        arrays = {key: array[order] for key, array in arrays.items()}
        np.savez(tmp_path / name / "predictions.npz", **arrays)
        entries[name] = {"runs": [{"accuracy": np.mean(correct), "workdir": name}]}
    paired = compare_with_baseline(entries, tmp_path, 0.005)
    # They differ in one image of four. Paired wrongly, they would differ in three.
    bootstrap = paired["separable"]["bootstrap"]
    assert bootstrap["mean"] == -0.25
    assert bootstrap["ci95"] == [-0.75, 0.0]
