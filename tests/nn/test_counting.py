"""Multiply-adds by formula, by hand; other operations as XLA counts them."""

import types

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from dwsep_jax.nn.counting import (
    count_macs,
    itemize_flops,
    list_layers,
    list_operations,
    read_cost,
    xla_flops,
)


def total(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return sum(operation.macs for operation in count_macs(function, *args))


def test_matrix_products():
    assert total(jnp.matmul, (2, 3), (3, 5)) == 2 * 3 * 5
    assert total(jnp.matmul, (7, 2, 3), (7, 3, 5)) == 7 * 2 * 3 * 5
    assert total(
        lambda a, b: jnp.einsum("abc,dcb->ad", a, b), (2, 3, 4), (5, 4, 3)
    ) == (2 * 3 * 4 * 5)


def convolve(groups=1, strides=(1, 1), padding="SAME"):
    def function(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return function


def test_convolutions():
    x = (2, 8, 8, 6)
    assert total(convolve(), x, (3, 3, 6, 4)) == 2 * 64 * 9 * 6 * 4
    assert total(convolve(6), x, (3, 3, 1, 6)) == 2 * 64 * 9 * 6
    assert total(convolve(2), x, (3, 3, 3, 4)) == 2 * 64 * 9 * 3 * 4
    assert total(convolve(strides=(2, 2)), x, (3, 3, 6, 4)) == 2 * 16 * 9 * 6 * 4
    assert total(convolve(padding="VALID"), x, (3, 5, 6, 4)) == 2 * 6 * 4 * 15 * 6 * 4


def test_nested_calls_and_loops_count_as_often_as_they_run():
    def looped(x, w):
        def body(x, _):
            return jax.jit(jnp.matmul)(x, w), None

        x, _ = lax.scan(body, x, None, length=5)
        return jax.checkpoint(lambda x: jnp.tanh(x @ w))(x)

    assert total(looped, (2, 3), (3, 3)) == 6 * 2 * 3 * 3


def test_one_branch_of_several_counts():
    def either(p, x, w):
        return lax.cond(p[0] > 0, lambda: x @ w, lambda: w @ x)

    assert total(either, (1,), (3, 3), (3, 3)) == 27


def test_operations_carry_the_names_of_their_modules():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="head")(nn.Conv(2, (3, 3), name="stem")(x))

    net = Net()
    x = jnp.zeros((1, 5, 5, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    stem, head = count_macs(net.apply, variables, x)
    assert stem.scope.split("/") == ["Net", "stem"]
    assert head.scope.split("/") == ["Net", "head"]
    assert stem.output_shape == (1, 5, 5, 2)
    assert head.macs == 25 * 2 * 4


IMAGES, KERNEL = (2, 9, 8, 6), (3, 2, 6, 4)
# Convolutions: groups, strides, padding, dilation of the image and of the kernel.
GEOMETRIES = {
    "same": {},
    "valid": {"padding": "VALID"},
    "strides": {"window_strides": (2, 3)},
    "one side": {"padding": ((0, 2), (3, 0))},
    "kernel dilation": {"rhs_dilation": (2, 1)},
    "image dilation": {"lhs_dilation": (1, 3), "padding": ((1, 1), (2, 2))},
    "cropped": {"padding": ((-1, 1), (0, -2))},
    "depthwise": {"feature_group_count": 6, "kernel": (3, 2, 1, 6)},
    "groups of the batch": {"batch_group_count": 2},
}


def geometry(kernel=KERNEL, **changes):
    options = {"window_strides": (1, 1), "padding": "SAME", **changes}

    def function(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    shapes = (IMAGES, kernel)
    return function, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_taps_on_padding_are_those_that_xla_leaves_out(name):
    function, args = geometry(**GEOMETRIES[name])
    [operation] = count_macs(function, *args)
    assert operation.flops == xla_flops(function, *args)
    assert operation.flops == 2 * (operation.macs - operation.padding_macs)
    assert (operation.padding_macs == 0) == (name == "valid")


@pytest.mark.parametrize("name", ["same", "valid", "strides", "depthwise"])
def test_gradients_of_convolutions_count_what_xla_counts(name):
    function, args = geometry(**GEOMETRIES[name])
    both = jax.value_and_grad(lambda x, k: function(x, k).sum(), (0, 1))
    operations = list_operations(both, *args)
    assert sum(o.flops for o in operations) == xla_flops(both, *args)


def test_a_same_convolution_has_its_corners_on_padding():
    x = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 1, 1), jnp.float32)
    [operation] = count_macs(convolve(), x, kernel)
    assert operation.macs - operation.padding_macs == 94**2


ELEMENTWISE = {
    "arithmetic": lambda x: -x / 2 + x * abs(x) - jnp.sign(x),
    "rounding": lambda x: jnp.floor(x) + jnp.ceil(x) + jnp.round(x),
    "comparison": lambda x: jnp.where((x > 0) & (x <= 2) | (x == 1), x, 0),
    "extremes": lambda x: jnp.minimum(jnp.maximum(x, 0), 6) + lax.clamp(0.0, x, 1.0),
    "powers": lambda x: x**2 + x**3 + x**5 + x**8 + jnp.square(x),
    "reductions": lambda x: x.sum(0) + x.max(0) + x.min(0) + x.mean(0),
    "casts": lambda x: x.astype(jnp.bfloat16),
    "transcendental": lambda x: jnp.exp(x) + jnp.tanh(x) + lax.rsqrt(x),
    "relu": nn.relu,
    "leaky relu": nn.leaky_relu,
    "swish": nn.swish,
    "gelu": nn.gelu,
    "integers": lambda x: x.astype(jnp.int32) % 7 >> 1 << 2 ^ 3,
    "finite": lambda x: jnp.isfinite(x) | ~(x < 0),
    "bits": lambda x: jax.random.bits(jax.random.key(0), x.shape, jnp.uint32),
    "8 bits": lambda x: jax.random.bits(jax.random.key(0), x.shape, jnp.uint8),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operations_count_what_xla_counts(name):
    x = jax.ShapeDtypeStruct((50, 40), jnp.float32)
    function = ELEMENTWISE[name]
    got = sum(operation.flops for operation in list_operations(function, x))
    # A scalar here or there goes uncounted.
    assert got == pytest.approx(xla_flops(function, x), rel=0, abs=160)
    assert got > 1900


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), padding="VALID", name="stem")(x)
        x = nn.BatchNorm(not train, name="norm")(x)
        x = x.mean((1, 2))
        return nn.Dense(4, name="head")(x)


def traced():
    net, x = Net(), jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    return net.apply, variables, x


def test_layers_are_modules_with_parameters_or_macs():
    apply, variables, x = traced()
    layers = list_layers(list_operations(apply, variables, x), variables["params"])
    assert [tuple(layer) for layer in layers] == [
        ("stem", "convolution", (2, 10, 10, 6), 27 * 6 + 6, 2 * 100 * 27 * 6),
        ("norm", "elementwise", (2, 10, 10, 6), 12, 0),
        ("head", "matrix product", (2, 4), 6 * 4 + 4, 2 * 6 * 4),
    ]


def test_macs_outside_of_any_module_are_a_layer_of_their_own():
    with_scope = jax.named_scope("net")(jax.named_scope("loose")(jnp.matmul))
    x = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    [layer] = list_layers(list_operations(with_scope, x, x), {})
    assert layer == ("loose", "matrix product", (3, 3), 0, 27)
    [layer] = list_layers(list_operations(jnp.matmul, x, x), {})
    assert layer.macs == 27


def test_items_add_up_to_what_xla_counts():
    apply, variables, x = traced()
    operations = list_operations(apply, variables, x)
    items = itemize_flops(operations, lambda operation: operation.scope.split("/")[-1])
    assert items["conv_and_dense"] == 2 * (2 * 100 * 27 * 6 + 2 * 6 * 4)
    assert items["padding"] == 0
    assert items["stem"] == 2 * 100 * 6
    assert items["head"] == 2 * 4
    assert sum(items.values()) == xla_flops(apply, variables, x)


def test_xla_counts_convolutions_and_dense_as_the_formula_does():
    def network(x, stem, conv, head):
        x = convolve(padding="VALID")(x, stem)
        x = convolve(8, padding="VALID")(x, conv)
        return x.reshape(len(x), -1) @ head

    shapes = [(4, 16, 16, 3), (3, 3, 3, 8), (3, 3, 1, 8), (12 * 12 * 8, 10)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    macs = 4 * (14**2 * 27 * 8 + 12**2 * 9 * 8 + 12**2 * 8 * 10)
    assert sum(operation.macs for operation in count_macs(network, *args)) == macs
    assert xla_flops(network, *args) == pytest.approx(2 * macs, rel=0.01)


def test_random_bits_are_counted_to_the_last_round():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    per_number = xla_flops(ELEMENTWISE["bits"], x) / 1000
    # Threefry has 20 rounds of an addition, a rotation (three operations) and an xor.
    assert 100 < per_number < 125


@pytest.mark.parametrize(
    ("costs", "flops"),
    [
        ({"flops": 3.0}, 3.0),
        ([{"flops": 3.0}], 3.0),
        ({"bytes accessed": 1.0}, None),
        ({"flops": -1.0}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_cost_analysis_may_be_a_dict_a_list_or_none(costs, flops):
    stage = types.SimpleNamespace(cost_analysis=lambda: costs)
    assert read_cost(stage, "flops") == flops


def test_without_a_cpu_xla_is_not_asked(monkeypatch):
    def refuse(backend):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", refuse)
    assert xla_flops(jnp.sin, jax.ShapeDtypeStruct((), jnp.float32)) is None
