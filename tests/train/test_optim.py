"""Schedules by hand, optimizers against optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from dwsep_jax.train import optim


def make_config(**changes):
    config = default.get_config()
    config.update(changes)
    return optim.resolve(config)


# At the end of the warm-up, and after each quarter of the rest.
SHAPES = {
    "cosine": [0.5 * (1 + np.cos(np.pi * quarter / 4)) for quarter in range(5)],
    "onecycle": [1.0, 0.75, 0.5, 0.25, 0.0],
    "step": [1.0, 1.0, 0.1, 0.01, 0.01],
    "exponential": [1.0, 0.01**0.25, 0.1, 0.01**0.75, 0.01],
    "constant": [1.0] * 5,
    "plateau": [1.0] * 5,
}


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_schedules_rise_then_take_their_shape(name):
    config = make_config(schedule=name, num_epochs=10, warmup_epochs=2.0)
    schedule = optim.make_schedule(config, 10)
    warmup = [float(schedule(step)) for step in (0, 9, 19)]
    np.testing.assert_allclose(warmup, [0.05, 0.5, 1.0], rtol=1e-6)
    got = [float(schedule(20 + quarter * 20)) for quarter in range(5)]
    np.testing.assert_allclose(got, SHAPES[name], rtol=1e-5, atol=1e-7)
    assert float(schedule(10**6)) == pytest.approx(SHAPES[name][-1])
    if name == "step":
        assert float(schedule(79)) == pytest.approx(0.1)
    # Without a warm-up, the first step has the full rate.
    config.warmup_epochs = 0.0
    assert float(optim.make_schedule(config, 10)(0)) == 1.0


# 1.99999 is less than 2.0 by too little to count.
STALLED, SMALL = [3.0, 2.0, 2.5, 1.99999, *[1.0] * 5], [0.5] * 3 + [0.25] * 2 + [0.125]
UNKNOWN = [1.0, float("nan"), 0.5]


@pytest.mark.parametrize(
    ("losses", "patience", "multipliers"),
    [(STALLED, 2, [1, 1, 1, *SMALL]), (UNKNOWN, 1, [1, 0.5, 0.5])],
)
def test_the_plateau_lowers_the_rate(losses, patience, multipliers):
    config = make_config(schedule="plateau", plateau_factor=0.5)
    config.plateau_patience = patience
    plateau, got = optim.make_plateau(), []
    for loss in losses:
        before = plateau
        plateau = optim.update_plateau(config, before, loss)
        got.append(float(plateau.multiplier))
        for a, b in zip(before, plateau, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert got == multipliers


def test_gradients_are_clipped_by_their_global_norm():
    changes = {"clip_norm": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    config = make_config(learning_rate=1.0, **changes)
    tx = optim.make_optimizer(config, lambda step: 1.0)
    for scale, norm in ((10.0, 1.0), (0.01, 0.05)):
        grads = {"a": jnp.array([3.0]) * scale, "b": jnp.array([[4.0]]) * scale}
        updates, _ = tx.update(grads, tx.init(grads), grads)
        assert float(optax.tree.norm(updates)) == pytest.approx(norm)


def run(tx, steps=8):
    params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([1.0])}
    state = tx.init(params)

    @jax.jit
    def step(params, state, i):
        # The signs must change for Lion's momentum to matter.
        grads = jax.tree.map(lambda p: jnp.sin(3 * p + 2.0 * i), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, i)
    return params


MASK = {"kernel": True, "bias": False}
RMS = optax.scale_by_rms(decay=0.99, eps=1e-8, bias_correction=True)


def decayed(rate, *transformations):
    decay = optax.add_decayed_weights(0.1, MASK)
    return optax.chain(*transformations, decay, optax.scale_by_learning_rate(rate))


THEIRS = {
    "sgd": lambda rate: decayed(rate, optax.trace(decay=0.8, nesterov=True)),
    "adam": lambda rate: optax.adamw(rate, b1=0.8, weight_decay=0.1, mask=MASK),
    "adamw": lambda rate: optax.adamw(rate, b1=0.8, weight_decay=0.1, mask=MASK),
    "rmsprop": lambda rate: decayed(rate, RMS, optax.trace(decay=0.8)),
    "lion": lambda rate: optax.lion(rate, b1=0.8, weight_decay=0.1, mask=MASK),
}


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_optimizers_are_those_of_optax_with_decoupled_decay(name):
    changes = {"learning_rate": 0.05, "weight_decay": 0.1, "momentum": 0.8}
    config = make_config(optimizer=name, **changes)
    schedule = optim.make_schedule(config, 1)
    got = run(optim.make_optimizer(config, schedule))
    want = run(THEIRS[name](lambda count: 0.05 * schedule(count)))
    for key in got:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-5)


def test_unset_values_are_resolved_and_set_ones_kept():
    def rate(name, size):
        return make_config(optimizer=name, batch_size=size).learning_rate

    for name, growth in zip(optim.OPTIMIZERS, (4, 2, 2, 2, 2), strict=True):
        assert rate(name, 512) == pytest.approx(growth * rate(name, 128))
    assert make_config(learning_rate=0.3).learning_rate == 0.3
    assert make_config(weight_decay=0.0).weight_decay == 0.0
    assert make_config().weight_decay > 0
    # Plain Adam has no decay; that is what AdamW is for.
    assert make_config(optimizer="adam").weight_decay == 0
    assert make_config(num_epochs=40).warmup_epochs == 2.0
    assert make_config(num_epochs=40, warmup_epochs=0.0).warmup_epochs == 0.0
    assert make_config(num_epochs=40, schedule="onecycle").warmup_epochs == 10.0
    requested = default.get_config()
    optim.resolve(requested)
    assert requested.learning_rate is None
