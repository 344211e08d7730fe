"""The dense network: against a plain DenseNet of nn.Conv and nn.BatchNorm."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from benchmarks import plain
from configs import default, separable, standard
from dwsep_jax.errors import ConfigError
from dwsep_jax.nn import densenet, ops, shifted
from dwsep_jax.nn.layers import SeparableConv, StandardConv
from dwsep_jax.nn.summary import describe_network, summarize
from tests import tiny
from tests.nn.numerics import relative_error

KEY = jax.random.key(0)
TINY = dict(num_classes=3, growth_rate=4, block_sizes=(2, 1))


def train(model, params, stats, x):
    """Return the logits and the updated variables in training mode."""
    variables = {"params": params, "batch_stats": stats}
    options = dict(train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
    return model.apply(variables, x, **options)


@pytest.mark.parametrize(
    ("conv", "bottleneck"), [(SeparableConv, 0), (SeparableConv, 2), (StandardConv, 0)]
)
def test_shared_statistics_equal_those_of_each_consumer(conv, bottleneck, monkeypatch):
    if conv is SeparableConv:  # It takes chunks.
        monkeypatch.setattr(shifted, "_PIECE_SIZE", 2**9)
        monkeypatch.setattr(ops, "_CHUNK_SIZE", 2**12)
    model = densenet.DenseNet(conv, bottleneck=bottleneck, **TINY)
    theirs = plain.PlainDenseNet(model, conv is SeparableConv)
    x = jax.random.normal(KEY, (6, 16, 16, 3))
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    variables = jax.jit(model.init)(KEY, x)
    shift = lambda p: p + 0.1 * jax.random.normal(KEY, p.shape)  # noqa: E731
    variables["params"] = params = jax.tree.map(shift, variables["params"])
    stats = variables["batch_stats"]

    def loss(model, params, stats):
        logits, updated = train(model, params, stats, x)
        log_p = jax.nn.log_softmax(logits)
        losses = -jnp.take_along_axis(log_p, labels[:, None], axis=1)
        return losses.mean(), (logits, updated["batch_stats"])

    grad = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnames="model")
    with jax.numpy_dtype_promotion("strict"):
        our_grads, (our_logits, our_stats) = grad(model, params, stats)
    arguments = plain.plain_params(params), plain.consumer_stats(model, stats)
    plain_grads, (plain_logits, plain_stats) = grad(theirs, *arguments)
    assert relative_error(our_logits, plain_logits) < 1e-5

    our_grads = plain.plain_params(our_grads)
    assert our_grads.keys() == plain_grads.keys()
    got, want = (ravel_pytree(dict(g))[0] for g in (our_grads, plain_grads))
    assert relative_error(got, want) < 1e-5
    assert all(np.linalg.norm(g) > 0 for g in jax.tree.leaves(our_grads))

    our_stats = plain.consumer_stats(model, our_stats)
    assert our_stats.keys() == plain_stats.keys()
    for name in plain_stats:
        for key in ("mean", "var"):
            assert relative_error(our_stats[name][key], plain_stats[name][key]) < 1e-5

    # And in evaluation, with the running statistics that training left.
    got = jax.jit(model.apply)(variables, x)
    want = jax.jit(theirs.apply)(plain.plain_variables(model, variables), x)
    assert relative_error(got, want) < 1e-5


# Parameters and MACs, as counted from the paper's description, layer by layer.
COUNTS = [
    (separable, 0, 221_650, 62_501_064),
    (separable, 4, 542_698, 150_767_304),
    (standard, 0, 919_978, 243_802_824),
    (standard, 4, 964_330, 294_122_184),
]


@pytest.mark.parametrize(("file", "bottleneck", "parameters", "macs"), COUNTS)
def test_parameters_and_macs_equal_a_count_by_hand(file, bottleneck, parameters, macs):
    config = file.get_config()
    # What is counted does not depend on the lowering.
    config.update(bottleneck=bottleneck, lowering="shift")
    parts = summarize(config, 10, (32, 32, 3))
    assert sum(part.parameters for part in parts) == parameters
    assert sum(part.macs for part in parts) == macs
    assert f"{parameters:,} parameters" in describe_network(config, parts)
    shapes = {part.name: part.output_shape for part in parts}
    assert shapes["block3"] == (4, 4, 276)
    assert shapes["head"] == (10,)


def test_one_line_of_config_lies_between_the_two_networks():
    a, b = separable.get_config(), standard.get_config()
    assert {field for field in a if a[field] != b[field]} == {"conv"}


@pytest.mark.usefixtures("strict")
def test_a_gradient_reaches_every_parameter_and_bfloat16_ends_in_float32():
    changes = dict(bottleneck=2, inner_norm=True, inner_act=True, act=nn.gelu)
    changes |= dict(dropout_rate=0.5, dtype=jnp.bfloat16)
    model = densenet.DenseNet(**TINY, **changes)
    x = jax.random.normal(KEY, (4, 16, 16, 3))
    variables = jax.jit(model.init)(KEY, x)

    def loss(params):
        logits, _ = train(model, params, variables["batch_stats"], x)
        assert logits.dtype == jnp.float32
        return jnp.sum(jnp.sin(logits))

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert grad.dtype == jnp.float32, path
        assert np.isfinite(grad).all(), path
        assert np.any(grad), path


def program_of(**changes):
    """Return the traced training program of a small network, as text."""
    config = default.get_config()
    config.update({"growth_rate": 4, "block_sizes": (1, 1), **changes})
    model = densenet.create_model(config, 3)
    x = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(model.init, KEY, x)
    trace = jax.make_jaxpr(partial(train, model))
    return str(trace(variables["params"], variables["batch_stats"], x))


def test_every_choice_makes_another_program():
    changes = [{"activation": name} for name in ("leaky_relu", "swish", "gelu")]
    for conv in ("separable", "standard"):
        changes += [{"conv": conv, "lowering": n} for n in ("auto", "conv", "shift")]
    programs = [program_of(**change) for change in changes]
    assert programs[3] == program_of()
    assert len(set(programs)) == len(programs)


def test_a_network_that_cannot_be_is_refused():
    for changes, message in (
        (dict(conv="grouped"), "conv='grouped' is unknown; choose one of separable"),
        (dict(activation="tanh"), "one of relu, leaky_relu, swish, gelu"),
        (dict(dtype="float16"), "one of float32, bfloat16"),
        (dict(lowering="fft"), "one of auto, conv, shift"),
        (dict(conv="standard", inner_norm=True), "inner_norm=True needs conv="),
        (dict(conv="standard", inner_activation=True), "inner_activation=True needs"),
        (dict(block_sizes=(1,) * 5), "halves the image 4 times, more than 8x8"),
    ):
        with pytest.raises(ConfigError, match=message):
            program_of(**changes)


def test_the_convolution_may_be_any_module():
    class Convolution(nn.Module):
        features: int
        kernel_size: tuple[int, int]
        dtype: jnp.dtype

        @nn.compact
        def __call__(self, x):
            return nn.Conv(self.features, self.kernel_size, dtype=self.dtype)(x)

    model = densenet.DenseNet(Convolution, **TINY)
    variables = jax.eval_shape(model.init, KEY, jnp.zeros((1, 16, 16, 3)))
    assert "Conv_0" in variables["params"]["block0"]["layer0"]["conv"]


@pytest.mark.parametrize("conv", ["separable", "standard"])
def test_neither_halving_first_nor_remat_changes_parameters_or_gradients(conv):
    images = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype(np.float32)
    results = []
    for changes in ({}, {"lowering": "auto"}, {"remat": True}):
        config = tiny.make_config(**{"conv": conv, "lowering": "conv"} | changes)
        model = densenet.create_model(config, 3)
        variables = jax.jit(model.init)(jax.random.key(0), images)

        def loss(params, model=model, stats=variables["batch_stats"]):
            return (train(model, params, stats, images)[0] ** 2).sum()

        gradients = jax.jit(jax.grad(loss))(variables["params"])
        results.append((variables["params"], gradients))
    for a, *others in zip(*map(jax.tree.leaves, results), strict=True):
        assert max(relative_error(b, a) for b in others) < 1e-5


def test_large_batches_are_classified_in_parts(monkeypatch):
    make = partial(densenet.DenseNet, StandardConv, **TINY)
    model, images = make(), jax.random.normal(KEY, (48, 8, 8, 3))
    variables = model.init(KEY, images)
    whole = model.apply(variables, images)
    monkeypatch.setattr(ops, "_CHUNK_SIZE", 20 * 8 * 8 * 8)  # A stem of 20 images.
    assert relative_error(model.apply(variables, images), whole) < 1e-6

    def has_parts(num_images=48, lowering="auto", **options):
        apply = partial(make(lowering=lowering).apply, **options)
        return "length=3" in str(jax.make_jaxpr(apply)(variables, images[:num_images]))

    assert has_parts()
    for num_images in (20, 47):  # Parts of 47 would be single images.
        assert not has_parts(num_images)
    assert not has_parts(lowering="conv")
    assert not has_parts(capture_intermediates=True, mutable=["intermediates"])
    assert not has_parts(train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
