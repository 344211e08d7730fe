"""Each layer alone, against its counterpart in flax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dwsep_jax.nn import layers

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)


def images(shape=(2, 6, 6, 4), seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


OPTIONS = dict(strides=(2, 1), padding="VALID", kernel_dilation=(1, 2))
STRIDES = dict(strides=(2, 2))
# Ours, its counterpart, and the name of the child that has the parameters.
COUNTERPARTS = {
    "depthwise": (
        layers.DepthwiseConv((3, 2), use_bias=True, **OPTIONS),
        nn.Conv(4, (3, 2), feature_group_count=4, **OPTIONS),
        None,
    ),
    "pointwise": (layers.PointwiseConv(5, use_bias=True), nn.Conv(5, (1, 1)), None),
    **{
        f"standard, {lowering}": (
            layers.StandardConv(5, use_bias=True, lowering=lowering, **STRIDES),
            nn.Conv(5, (3, 3), **STRIDES),
            "conv",
        )
        for lowering in ("conv", "shift", "auto")
    },
}


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_convolutions_take_the_parameters_of_nn_conv(name):
    x = images()
    ours, theirs, child = COUNTERPARTS[name]
    params = theirs.init(KEY, x)["params"]
    params["bias"] += 0.5
    nested = {"params": {child: params} if child else params}
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(ours.init, KEY, x))
    assert shapes == jax.tree.map(jnp.shape, nested)
    want = theirs.apply({"params": params}, x)
    np.testing.assert_allclose(ours.apply(nested, x), want, rtol=1e-5, atol=1e-5)


def test_separable_conv_is_depthwise_then_pointwise():
    x = images()
    module = layers.SeparableConv(5, (3, 3), (2, 2))
    variables = module.init(KEY, x)
    kernels = variables["params"]
    grouped = nn.Conv(4, (3, 3), (2, 2), feature_group_count=4, use_bias=False)
    want = grouped.apply({"params": kernels["depthwise"]}, x)
    want = nn.Conv(5, (1, 1), use_bias=False).apply(
        {"params": kernels["pointwise"]}, want
    )
    np.testing.assert_allclose(module.apply(variables, x), want, rtol=1e-5, atol=1e-5)
    assert sum(p.size for p in jax.tree.leaves(kernels)) == 9 * 4 + 4 * 5


def test_separable_conv_with_norm_and_activation_between():
    def norm(name):
        return layers.BatchNorm(use_running_average=True, name=name)

    x = images()
    module = layers.SeparableConv(5, norm=norm, activation=nn.relu)
    variables = module.init(KEY, x)
    params = variables["params"]
    variables["batch_stats"]["norm"]["statistics"]["mean"] += 0.5
    y = layers.DepthwiseConv().apply({"params": params["depthwise"]}, x)
    y = nn.relu((y - 0.5) / jnp.sqrt(jnp.float32(1 + 1e-5)))
    want = layers.PointwiseConv(5).apply({"params": params["pointwise"]}, y)
    np.testing.assert_allclose(module.apply(variables, x), want, rtol=1e-5, atol=1e-5)


def test_a_norm_in_between_may_be_of_another_dtype():
    x = images()
    norm = lambda name: lambda x: x.astype(jnp.float32)  # noqa: E731
    module = layers.SeparableConv(5, norm=norm, dtype=jnp.bfloat16)
    assert module.init_with_output(KEY, x)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "make",
    [
        layers.DepthwiseConv,
        partial(layers.PointwiseConv, 3),
        partial(layers.SeparableConv, 3),
        partial(layers.StandardConv, 3),
    ],
)
def test_bfloat16_is_computed_with_float32_parameters(make):
    x, module = images(), make(use_bias=True, dtype=jnp.bfloat16)
    variables = module.init(KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y = module.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    exact = module.clone(dtype=jnp.float32).apply(variables, x)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.1)


def test_batch_norm_equals_nn_batch_norm():
    x = 3 + 2 * images((4, 5, 5, 3))
    ours = layers.BatchNorm(use_running_average=False, momentum=0.8)
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.8)
    scale, bias = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, -1.0, 1.0])
    affine = {"scale": scale, "bias": bias}
    stats = {"mean": jnp.array([1.0, 2, 3]), "var": jnp.array([3.0, 2, 1])}
    our_variables = {
        "params": {"normalize": affine},
        "batch_stats": {"statistics": stats},
    }
    their_variables = {"params": affine, "batch_stats": stats}
    got, updated = ours.apply(our_variables, x, mutable=["batch_stats"])
    want, expected = theirs.apply(their_variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for name, value in expected["batch_stats"].items():
        found = updated["batch_stats"]["statistics"][name]
        np.testing.assert_allclose(found, value, rtol=1e-6)
    # In evaluation both use the running statistics that they are given.
    evaluate = dict(use_running_average=True)
    got = ours.clone(**evaluate).apply(our_variables, x)
    want = theirs.clone(**evaluate).apply(their_variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_initialization_leaves_running_statistics_alone():
    x = 3 + images()
    module = layers.BatchNorm(use_running_average=False)
    stats = module.init(KEY, x)["batch_stats"]["statistics"]
    np.testing.assert_array_equal(stats["mean"], jnp.zeros(4))
    np.testing.assert_array_equal(stats["var"], jnp.ones(4))


def dropped(rate, shape=(64, 64, 64), dtype=jnp.float32):
    module = layers.Dropout(rate)
    return module.apply(
        {}, jnp.ones(shape, dtype), deterministic=False, rngs={"dropout": KEY}
    )


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    y = dropped(rate)
    rounded = round(256 * rate) / 256
    n = y.size
    share = float(jnp.mean((y == 0).astype(jnp.float32)))
    assert abs(share - rounded) < 5 * np.sqrt(rounded * (1 - rounded) / n)
    kept = np.unique(np.asarray(y)[np.asarray(y) != 0])
    np.testing.assert_allclose(kept, [1 / (1 - rounded)], rtol=1e-6)


def test_dropout_decides_on_each_element_by_bits_of_its_own():
    # An odd size: the last word has bytes to spare.
    quarters = np.asarray(dropped(0.5, shape=(4 * 9999 + 3,)))[: 4 * 9999] == 0
    shares = np.corrcoef(quarters.reshape(4, -1))
    assert np.abs(shares - np.eye(4)).max() < 5 / np.sqrt(9999)


def test_dropout_at_its_ends():
    np.testing.assert_array_equal(dropped(0.0), jnp.ones((64, 64, 64)))
    np.testing.assert_array_equal(dropped(1.0), jnp.zeros((64, 64, 64)))
    # Below 1/512 nothing is dropped, and nothing is scaled.
    np.testing.assert_array_equal(dropped(0.001), jnp.ones((64, 64, 64)))
    x = images()
    y = layers.Dropout(0.5).apply({}, x, deterministic=True)
    np.testing.assert_array_equal(x, y)


def test_dropout_rate_may_be_traced():
    shares = jax.jit(lambda rate: jnp.mean(dropped(rate) == 0))
    assert float(shares(0.25)) == float(jnp.mean(dropped(0.25) == 0))
    assert float(shares(0.75)) == float(jnp.mean(dropped(0.75) == 0))
    rates = jnp.array([0.25, 0.75])
    each = jax.vmap(lambda rate: jnp.mean(dropped(rate) == 0))(rates)
    np.testing.assert_allclose(each, rates, atol=0.01)
