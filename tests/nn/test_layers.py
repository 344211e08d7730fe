"""Each layer alone, against its counterpart in flax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from dwsep_jax.nn import layers

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)


def images(shape=(2, 6, 6, 4), seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


class Flax(nn.Module):
    """What a convolution of ours is made of, by `nn.Conv`, with the same parameters."""

    kind: str
    options: dict

    @nn.compact
    def __call__(self, x):
        options = {"kernel_size": (3, 3), "use_bias": False, **self.options}
        options["kernel_init"] = layers.he_normal
        if options["kernel_size"] == 3:
            options["kernel_size"] = (3, 3)
        if self.kind == "standard":
            return nn.Conv(5, **options, name="conv")(x)
        bare = options | {"use_bias": False}
        bare["features"] = 4 * bare.pop("channel_multiplier", 1)
        x = nn.Conv(feature_group_count=4, **bare, name="depthwise")(x)
        own = ("kernel_size", "strides", "padding", "kernel_dilation")
        for name in (*own, "channel_multiplier"):
            options.pop(name, None)
        return nn.Conv(5, (1, 1), **options, name="pointwise")(x)


def halved(*arrays, dtype):
    return [a if a is None else a.astype(dtype or jnp.float16) for a in arrays]


ARGUMENTS = [
    dict(strides=(2, 1), padding="VALID", kernel_dilation=(1, 2), use_bias=True),
    dict(kernel_size=3, strides=2, padding=1, kernel_dilation=2),
    dict(kernel_size=(3, 2), padding=((1, 0), 2)),
    dict(kernel_size=(4, 3), padding="SAME_LOWER", strides=(1, 2)),
    dict(kernel_size=(3, 2), padding="CIRCULAR", kernel_dilation=(2, 1)),
    dict(kernel_size=(2, 5), padding="REFLECT", strides=2),
    dict(use_bias=True, bias_init=nn.initializers.constant(3.0)),
    dict(use_bias=True, dtype=jnp.bfloat16),
    dict(use_bias=True, dtype=jnp.bfloat16, param_dtype=jnp.float16),
    dict(promote_dtype=halved),
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids="-".join)
@pytest.mark.parametrize("kind", ["separable", "standard"])
def test_convolutions_take_the_arguments_of_nn_conv(kind, arguments):
    x = images()
    make = {"separable": layers.SeparableConv, "standard": layers.StandardConv}[kind]
    check_equal(make(5, **arguments), Flax(kind, arguments), x)
    if kind == "standard" and "promote_dtype" not in arguments:
        for lowering in ("conv", "shift"):
            ours = make(5, **arguments, lowering=lowering)
            check_equal(ours, Flax(kind, arguments), x)


def check_equal(ours, theirs, x):
    """Compare initial parameters, bit by bit, and results."""
    variables = theirs.init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(KEY, x), variables)
    want, got = theirs.apply(variables, x), ours.apply(variables, x)
    assert got.dtype == want.dtype
    wide = want.dtype == jnp.float32
    tolerance = dict(rtol=1e-5, atol=1e-5) if wide else dict(atol=0.05, rtol=0.05)
    np.testing.assert_allclose(got.astype(float), want.astype(float), **tolerance)


def sum_of_sines(x, variables, module):
    return jnp.sum(jnp.sin(module.apply(variables, x)))


@pytest.mark.parametrize("lowering", ["conv", "shift"])
def test_a_channel_may_have_several_depthwise_kernels(lowering):
    x, several = images(), dict(channel_multiplier=3)
    options = dict(feature_group_count=4, use_bias=False, kernel_init=layers.he_normal)
    ours = layers.DepthwiseConv(lowering=lowering, **several)
    check_equal(ours, nn.Conv(12, (3, 3), **options), x)
    theirs = Flax("separable", several)
    ours = layers.SeparableConv(5, lowering=lowering, **several)
    check_equal(ours, theirs, x)
    variables = theirs.init(KEY, x)
    gradient = jax.grad(sum_of_sines, (0, 1))
    got, want = (gradient(x, variables, module) for module in (ours, theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)


def test_layers_run_op_by_op():
    module, x = layers.SeparableConv(5, lowering="shift"), images()
    arguments = (x, module.init(KEY, x), module)
    want = jax.grad(sum_of_sines)(*arguments)
    with jax.disable_jit():
        got = jax.grad(sum_of_sines)(*arguments)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_shape", [(2,), (), (2, 1), (0,)])
def test_any_number_of_batch_axes(batch_shape):
    x = images((*batch_shape, 6, 6, 4))
    init = dict(kernel_init=layers.he_normal)
    theirs = nn.Conv(4, (3, 3), feature_group_count=4, **init)
    check_equal(layers.DepthwiseConv(3, use_bias=True), theirs, x)
    check_equal(layers.PointwiseConv(5, use_bias=True), nn.Conv(5, (1, 1), **init), x)
    theirs = Flax("separable", circular := {"padding": "CIRCULAR"})
    check_equal(layers.SeparableConv(5, **circular), theirs, x)
    check_equal(layers.StandardConv(5), Flax("standard", {}), x)


def test_conv_local_is_a_convolution_where_there_is_one_pixel():
    x, options = images((2, 3, 3, 4)), dict(padding="VALID", use_bias=True)
    local = nn.ConvLocal(5, (3, 3), **options)
    params = local.init(KEY, x)["params"]
    # Of patches whose channels come first; a bias for each pixel.
    kernel = params["kernel"].reshape(4, 3, 3, 5).transpose(1, 2, 0, 3)
    ours = {"conv": {"kernel": kernel, "bias": params["bias"].reshape(5)}}
    got = layers.StandardConv(5, **options).apply({"params": ours}, x)
    np.testing.assert_allclose(got, local.apply({"params": params}, x), rtol=1e-5)


@pytest.mark.parametrize("precision", ["highest", lax.Precision.HIGHEST])
def test_precision_reaches_every_product(precision):
    x = images()
    for make in (layers.SeparableConv, layers.StandardConv):
        module = make(5, precision=precision, lowering="conv")
        init = partial(module.init_with_output, KEY)
        program = str(jax.make_jaxpr(init)(x))
        names = ("conv_general_dilated[", "dot_general[")
        products = sum(program.count(name) for name in names)
        assert program.count("precision=(Precision.HIGHEST") >= products > 0


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


# Arguments, and how images become those that are normalized.
NORMS = {
    "default": ({}, lambda x: 3 + 2 * x),
    "epsilon": (dict(epsilon=0.1, momentum=0.99), lambda x: x),
    "far from zero": (dict(use_fast_variance=False), lambda x: x + 1e4),
    "bfloat16": (dict(dtype=jnp.bfloat16), lambda x: x.astype(jnp.bfloat16)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_batch_norm_equals_nn_batch_norm(name, masked, average):
    arguments, make = NORMS[name]
    check_norms(arguments, make(images()), masked, average)


def check_norms(arguments, x, masked=False, average=False, transform=lambda f: f):
    affine = {"scale": jnp.arange(1.0, 5.0), "bias": jnp.array([0.0, -1.0, 1.0, 2.0])}
    stats = {"mean": jnp.arange(4.0), "var": jnp.array([3.0, 2, 1, 4])}
    mask = jnp.arange(x.shape[-4])[:, None, None, None] > 0 if masked else None

    def run(module, params, stats):
        def apply(x):
            variables = {"params": params, "batch_stats": stats}
            options = dict(mask=mask, mutable=["batch_stats"])
            return module.apply(variables, x, average, **options)

        return transform(apply)(x)

    arguments = {"momentum": 0.8, **arguments}
    ours = {"normalize": affine}, {"statistics": stats}
    got, updated = run(layers.BatchNorm(**arguments), *ours)
    with jax.numpy_dtype_promotion("standard"):
        want, expected = run(nn.BatchNorm(**arguments), affine, stats)
    assert got.dtype == want.dtype
    tolerance = 1e-5 if want.dtype == jnp.float32 else 0.02
    got, want = got.astype(jnp.float32), want.astype(jnp.float32)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    updated = updated["batch_stats"]["statistics"]
    for key, value in expected["batch_stats"].items():
        np.testing.assert_allclose(updated[key], value, rtol=1e-6)


@pytest.mark.parametrize("groups", [None, [[0], [1]]])
def test_batch_norm_over_devices_equals_nn_batch_norm(groups):
    arguments = dict(axis_name="devices", axis_index_groups=groups)
    x = images((2, 3, 6, 6, 4)) + jnp.arange(2.0).reshape(2, 1, 1, 1, 1)
    check_norms(arguments, x, transform=partial(jax.pmap, axis_name="devices"))


def test_initialization_leaves_running_statistics_alone():
    x = 3 + images()
    module = layers.BatchNorm(use_running_average=False)
    stats = module.init(KEY, x)["batch_stats"]["statistics"]
    np.testing.assert_array_equal(stats["mean"], jnp.zeros(4))
    np.testing.assert_array_equal(stats["var"], jnp.ones(4))


def dropped(rate, shape=(64, 64, 64)):
    options = {"deterministic": False, "rngs": {"dropout": KEY}}
    return layers.Dropout(rate).apply({}, jnp.ones(shape), **options)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    y = dropped(rate)
    rounded, y = round(256 * rate) / 256, np.asarray(y)
    spread = np.sqrt(rounded * (1 - rounded) / y.size)
    assert abs(np.mean(y == 0) - rounded) < 5 * spread
    kept = np.unique(y[y != 0])
    np.testing.assert_allclose(kept, [1 / (1 - rounded)], rtol=1e-6)


def test_dropout_decides_on_each_element_by_bits_of_its_own():
    # An odd size: the last word has bytes to spare.
    quarters = np.asarray(dropped(0.5, shape=(4 * 9999 + 3,)))[: 4 * 9999] == 0
    shares = np.corrcoef(quarters.reshape(4, -1))
    assert np.abs(shares - np.eye(4)).max() < 5 / np.sqrt(9999)


def test_dropout_at_its_ends():
    # Below 1/512 nothing is dropped, and nothing is scaled.
    for rate, left in ((0.0, 1.0), (0.001, 1.0), (1.0, 0.0)):
        np.testing.assert_array_equal(np.unique(dropped(rate)), [left])
    x = images()
    y = layers.Dropout(0.5).apply({}, x, deterministic=True)
    np.testing.assert_array_equal(x, y)


def test_dropout_rate_may_be_traced():
    share, rates = lambda rate: jnp.mean(dropped(rate) == 0), jnp.array([0.25, 0.75])
    for rate in (0.25, 0.75):
        assert float(jax.jit(share)(rate)) == float(share(rate))
    np.testing.assert_allclose(jax.vmap(share)(rates), rates, atol=0.01)
