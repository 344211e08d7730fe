"""What the compiler is known to compute wrongly does not reach our modules."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from dwsep_jax.nn import layers
from tests.nn.numerics import relative_error

ONES = nn.initializers.ones


@pytest.mark.parametrize(
    "module",
    [
        layers.PointwiseConv(64, kernel_init=ONES),
        layers.SeparableConv(64, kernel_init=ONES),
        layers.StandardConv(64, (1, 1), kernel_init=ONES),
        layers.StandardConv(64, (3, 3), kernel_init=ONES),
    ],
    ids=lambda module: type(module).__name__,
)
def test_constant_kernels_that_are_made_and_used_in_one_program(module):
    x = np.random.default_rng(0).normal(1, 1, (2, 8, 8, 64)).astype(np.float32)
    variables = module.init(jax.random.key(0), x)
    key = jax.random.key(0)
    # One sum a program: with two, the product is computed apart, and rightly.
    for total in (lambda y: y.mean((1, 2)), lambda y: (y * y).mean((0, 1, 2))):
        with jax.enable_x64(True):
            want = total(module.apply(variables, x.astype(np.float64)))
        run = jax.jit(lambda x, total=total: total(module.init_with_output(key, x)[0]))
        assert relative_error(run(x), np.asarray(want)) < 1e-5
