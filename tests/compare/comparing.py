"""Comparisons of two tiny networks, for tests."""

from dwsep_jax.compare import training
from tests import tiny
from tests.quick import read

TWO = ("separable", "standard")


def run(workdir, **changes):
    """Run a comparison, and return the content of comparison.json."""
    changes = {"num_epochs": 1, "num_seeds": 2, "variants": TWO} | changes
    training.compare(tiny.make_config(**changes), workdir)
    return read(workdir / "comparison.json")
