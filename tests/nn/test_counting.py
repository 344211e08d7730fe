"""Multiply-adds by formula, by hand; other operations as XLA counts them."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from dwsep_jax.nn import counting
from dwsep_jax.nn.counting import count_macs, list_operations, xla_flops


def shapes_of(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def total(function, *shapes):
    operations = count_macs(function, *shapes_of(*shapes))
    return sum(operation.macs for operation in operations)


def convolve(**changes):
    options = {"window_strides": (1, 1), "padding": "SAME", **changes}
    options["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    return lambda x, kernel: lax.conv_general_dilated(x, kernel, **options)


def test_matrix_products_and_convolutions_by_hand():
    assert total(jnp.matmul, (7, 2, 3), (7, 3, 5)) == 7 * 2 * 3 * 5
    einsum = partial(jnp.einsum, "abc,dcb->ad")
    assert total(einsum, (2, 3, 4), (5, 4, 3)) == 2 * 3 * 4 * 5
    x = (2, 8, 8, 6)
    assert total(convolve(), x, (3, 3, 6, 4)) == 2 * 64 * 9 * 6 * 4
    depthwise, grouped = (convolve(feature_group_count=n) for n in (6, 2))
    assert total(depthwise, x, (3, 3, 1, 6)) == 2 * 64 * 9 * 6
    assert total(grouped, x, (3, 3, 3, 4)) == 2 * 64 * 9 * 3 * 4
    for function, kernel, kind in (
        (depthwise, (3, 3, 1, 6), "depthwise convolution"),
        (depthwise, (3, 3, 1, 12), "depthwise convolution"),
        (grouped, (3, 3, 3, 4), "grouped convolution"),
        (convolve(), (3, 3, 6, 4), "convolution"),
    ):
        [operation] = count_macs(function, *shapes_of(x, kernel))
        assert operation.kind == kind
    strided, valid = convolve(window_strides=(2, 2)), convolve(padding="VALID")
    assert total(strided, x, (3, 3, 6, 4)) == 2 * 16 * 9 * 6 * 4
    assert total(valid, x, (3, 5, 6, 4)) == 2 * 6 * 4 * 15 * 6 * 4


def test_nested_calls_and_loops_count_as_often_as_they_run():
    def looped(x, w):
        def body(x, _):
            return jax.jit(jnp.matmul)(x, w), None

        x, _ = lax.scan(body, x, None, length=5)
        return jax.checkpoint(lambda x: jnp.tanh(x @ w))(x)

    def either(p, x, w):
        return lax.cond(p[0] > 0, lambda: x @ w, lambda: w @ x)

    assert total(looped, (2, 3), (3, 3)) == 6 * 2 * 3 * 3

    def bounded(n, x):
        return lax.fori_loop(0, n, lambda i, x: x @ x, x)

    def counted(x):
        return lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + 1, x)

    assert total(either, (1,), (3, 3), (3, 3)) == 27
    assert total(partial(bounded, 4), (3, 3)) == 4 * 27
    assert total(counted, (3, 3)) == 0
    with pytest.raises(ValueError, match="an unknown number of times; use scan"):
        count_macs(bounded, jax.ShapeDtypeStruct((), jnp.int32), *shapes_of((3, 3)))


# Kernel and options of a convolution of images (2, 9, 8, 6).
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


@pytest.mark.parametrize("name", GEOMETRIES)
def test_taps_on_padding_are_those_that_xla_leaves_out(name):
    options = {"kernel": (3, 2, 6, 4), **GEOMETRIES[name]}
    args = shapes_of((2, 9, 8, 6), options.pop("kernel"))
    function = convolve(**options)
    [operation] = list_operations(function, *args)
    assert operation.flops == xla_flops(function, *args)
    assert operation.flops == 2 * (operation.macs - operation.padding_macs)
    assert (operation.padding_macs == 0) == (name == "valid")
    if name in ("same", "valid", "strides", "depthwise"):
        both = jax.value_and_grad(lambda x, k: function(x, k).sum(), (0, 1))
        counted = sum(operation.flops for operation in list_operations(both, *args))
        assert counted == xla_flops(both, *args)


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
    [x] = shapes_of((50, 40))
    function = ELEMENTWISE[name]
    got = sum(operation.flops for operation in list_operations(function, x))
    # A few scalar operations are not counted.
    assert got == pytest.approx(xla_flops(function, x), rel=0, abs=160)
    assert got > 1900


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), padding="VALID", name="stem")(x)
        x = nn.BatchNorm(not train, name="norm")(x)
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def test_layers_and_items_of_a_network():
    net, [x] = Net(), shapes_of((2, 12, 12, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    operations = list_operations(net.apply, variables, x)
    # Modules with parameters or MACs.
    layers = counting.list_layers(operations, variables["params"])
    assert [tuple(layer) for layer in layers] == [
        ("stem", "convolution", (2, 10, 10, 6), 27 * 6 + 6, 2 * 100 * 27 * 6),
        ("norm", "elementwise", (2, 10, 10, 6), 12, 0),
        ("head", "matrix product", (2, 4), 6 * 4 + 4, 2 * 6 * 4),
    ]
    items = counting.itemize_flops(operations, lambda one: one.scope.split("/")[-1])
    products = 2 * (2 * 100 * 27 * 6 + 2 * 6 * 4)
    expected = {"conv_and_dense": products, "padding": 0, "stem": 1200, "head": 2 * 4}
    assert items.items() >= expected.items()
    assert sum(items.values()) == xla_flops(net.apply, variables, x)


def test_macs_outside_of_any_module_are_a_layer_of_their_own():
    with_scope = jax.named_scope("net")(jax.named_scope("loose")(jnp.matmul))
    args = shapes_of((3, 3), (3, 3))
    [layer] = counting.list_layers(list_operations(with_scope, *args), {})
    assert layer == ("loose", "matrix product", (3, 3), 0, 27)
    [layer] = counting.list_layers(list_operations(jnp.matmul, *args), {})
    assert layer.macs == 27


def test_a_cost_analysis_may_be_a_dict_a_list_or_none():
    unknown = {"bytes accessed": 1.0}, {"flops": -1.0}, [], None
    pairs = [({"flops": 3.0}, 3.0), ([{"flops": 3.0}], 3.0)]
    for costs, flops in pairs + [(costs, None) for costs in unknown]:
        stage = types.SimpleNamespace(cost_analysis=lambda costs=costs: costs)
        assert counting.read_cost(stage, "flops") == flops


def test_without_a_cpu_there_is_no_count_by_xla(monkeypatch):
    def refuse(backend):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", refuse)
    assert xla_flops(jnp.sin, jax.ShapeDtypeStruct((), jnp.float32)) is None
