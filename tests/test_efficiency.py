"""Multiply-adds by formula, by hand."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from dwsep_jax.efficiency import count_macs


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
