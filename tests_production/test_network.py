"""Whole training steps and evaluations, against plain Flax in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from benchmarks import plain
from dwsep_jax.nn.densenet import DenseNet
from dwsep_jax.nn.layers import SeparableConv, StandardConv
from dwsep_jax.train import step
from dwsep_jax.train.optim import make_plateau

# Images, and pixels a side: 40,960 and 32,768 pixels in the first block.
CASES = [
    (SeparableConv, 40, 32, dict(act=nn.swish)),
    (SeparableConv, 128, 16, dict(act=nn.swish, bottleneck=2)),
    (StandardConv, 40, 32, dict(act=nn.swish)),
    (SeparableConv, 40, 32, dict(act=nn.relu)),
]


def distance(got, want):
    """Return the norm of the difference of two trees, relative to that of `want`."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b)) for a, b in pairs]
    assert all(a.shape == b.shape and b.dtype == np.float64 for a, b in pairs)
    error = np.linalg.norm([np.linalg.norm(a - b) for a, b in pairs])
    return error / np.linalg.norm([np.linalg.norm(b) for _, b in pairs])


def make_state(model, tx, image_shape):
    """Return a state whose parameters NumPy draws: jax's draws take long to compile."""
    keys, rng = step.make_run_keys(0), np.random.default_rng(1)
    make = partial(step.create_train_state, model, tx, image_shape, keys)
    state = jax.eval_shape(make)

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1])
        center = 1 if path[-1].key in ("scale", "var") else 0
        draws = rng.normal(center, 1 / fan_in**0.5 if fan_in > 1 else 0.1, leaf.shape)
        return jnp.asarray(draws, leaf.dtype)

    parts = {"params": state.params, "batch_stats": state.batch_stats}
    parts = jax.tree.map_with_path(draw, parts)
    parts |= {"step": jnp.int32(0), "opt_state": tx.init(parts["params"])}
    return state.replace(**parts, key=keys.steps, plateau=make_plateau())


@pytest.mark.parametrize(("conv", "n", "size", "changes"), CASES)
def test_a_training_step_and_evaluation_are_those_of_plain_flax(conv, n, size, changes):
    model = DenseNet(conv, num_classes=5, growth_rate=8, block_sizes=(2, 2), **changes)
    tx = optax.sgd(0.1, momentum=0.9)
    state = make_state(model, tx, (size, size, 3))
    rng = np.random.default_rng(0)
    images = rng.normal(0.2, 1, (n, size, size, 3)).astype(np.float32)
    batch = {"image": images, "label": np.arange(n) % 5, "mask": np.ones(n, bool)}
    after, metrics = jax.jit(step.train_step)(state, batch)
    _, probabilities = jax.jit(step.eval_step)(state, batch)

    with jax.enable_x64(True):
        like = model.clone(dtype=jnp.float64)
        theirs = plain.PlainDenseNet(like, conv is SeparableConv)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        arrays = plain.plain_variables(like, variables), images
        wide, images = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), arrays)

        def loss(params):
            options = {"train": True, "mutable": ["batch_stats"]}
            logits, updated = theirs.apply(wide | {"params": params}, images, **options)
            log_p = jax.nn.log_softmax(logits)
            return -log_p[np.arange(n), batch["label"]].mean(), updated["batch_stats"]

        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (want_loss, want_stats), want_gradients = run(wide["params"])
        want_probabilities = jax.nn.softmax(jax.jit(theirs.apply)(wide, images))

    # The first momentum is the gradient.
    gradients = plain.plain_params(after.opt_state[0].trace)
    stats = plain.consumer_stats(model, after.batch_stats)
    # A ReLU's gradient jumps where float32 sees the other side of zero.
    tolerance = 1e-3 if model.act is nn.relu else 1e-5
    assert distance(gradients, want_gradients) < tolerance
    assert distance(stats, want_stats) < 1e-6
    assert distance(metrics.compute()["loss"], want_loss) < 1e-6
    assert distance(probabilities, want_probabilities) < 1e-6
