"""The probe of the compiler, and what hides constants from it."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import dwsep_jax
from dwsep_jax.nn import compiler
from dwsep_jax.nn.layers import SeparableConv


def test_without_the_fusion_nothing_is_computed_wrongly():
    code = "import dwsep_jax; assert not dwsep_jax.check_compiler()"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    env["XLA_FLAGS"] = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


@pytest.mark.parametrize("factor", [1.1, np.nan])
def test_what_is_computed_wrongly_is_named_with_the_remedy(factor, monkeypatch):
    right = ("right", (2, 3), lambda xp, x: x + 1, "leave it")
    wrong = lambda xp, x: x if xp is np else x * factor  # noqa: E731
    cases = (right, ("sums", (2, 3), wrong, "write products"))
    monkeypatch.setattr(compiler, "_MISCOMPILED", cases)
    [line] = dwsep_jax.check_compiler()
    assert f"jax {jax.__version__} computes sums wrongly" in line
    assert "write products, or set XLA_FLAGS=--xla_cpu_exp" in line


def test_hidden_constants_keep_value_and_derivatives():
    x = jax.random.normal(jax.random.key(0), (2, 1, 3, 4))
    hide = compiler.hide_constant
    for transform in (lambda f: f, jax.jit, jax.vmap):
        np.testing.assert_array_equal(transform(hide)(x), x)
    _, tangent = jax.jvp(hide, (x,), (2 * x,))
    np.testing.assert_array_equal(tangent, 2 * x)
    np.testing.assert_array_equal(jax.grad(lambda x: (hide(x) ** 2).sum())(x), 2 * x)


def test_modules_initialize_under_vmap_and_are_exported():
    module = SeparableConv(4, kernel_init=nn.initializers.ones)
    x = jnp.ones((1, 4, 4, 3))
    keys = jax.random.split(jax.random.key(0), 2)
    variables = jax.vmap(module.init, (0, None))(keys, x)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(variables)} == {2}
    initialize = jax.jit(lambda x: module.init_with_output(keys[0], x)[0])
    exported = jax.export.deserialize(jax.export.export(initialize)(x).serialize())
    np.testing.assert_allclose(exported.call(x), initialize(x), rtol=1e-6)
