"""Schedules by hand, optimizers against optax's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from dwsep_jax.errors import ConfigError
from dwsep_jax.train import optim


def make_config(**changes):
    config = default.get_config()
    config.update(changes)
    return optim.resolve(config)


def test_cosine_schedule_rises_then_falls_to_zero():
    config = make_config(num_epochs=10, warmup_epochs=2.0)
    schedule = optim.make_schedule(config, 5)
    got = [float(schedule(step)) for step in range(51)]
    warmup = [(step + 1) / 10 for step in range(10)]
    decay = [0.5 * (1 + np.cos(np.pi * step / 40)) for step in range(41)]
    np.testing.assert_allclose(got, warmup + decay, atol=1e-6)
    assert float(schedule(1000)) == 0.0


def test_constant_schedule_rises_then_stays():
    config = make_config(schedule="constant", num_epochs=4, warmup_epochs=0.5)
    schedule = optim.make_schedule(config, 4)
    got = [float(schedule(step)) for step in range(16)]
    np.testing.assert_allclose(got, [0.5] + [1.0] * 15)


SHAPES = {
    "onecycle": [1.0, 0.75, 0.5, 0.25, 0.0],
    "step": [1.0, 1.0, 0.1, 0.01, 0.01],
    "exponential": [1.0, 0.01**0.25, 0.1, 0.01**0.75, 0.01],
    "plateau": [1.0] * 5,
}


@pytest.mark.parametrize("name", SHAPES)
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


def follow(losses, **options):
    plateau, multipliers = optim.make_plateau(), []
    for loss in losses:
        plateau = optim.update_plateau(plateau, loss, **options)
        multipliers.append(float(plateau.multiplier))
    return multipliers


def test_the_plateau_lowers_the_rate_when_the_loss_no_longer_falls():
    losses = [3.0, 2.0, 2.5, 1.99999, 1.0, 1.0, 1.0, 1.0, 1.0]
    got = follow(losses, factor=0.5, patience=2)
    # 1.99999 is less than 2.0 by too little to count.
    assert got == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_the_plateau_takes_a_loss_that_is_no_number_for_no_progress():
    assert follow([1.0, float("nan"), 0.5], factor=0.5, patience=1) == [1, 0.5, 0.5]


def test_the_plateau_is_a_pure_function_of_scalars():
    before = optim.make_plateau()
    update = partial(optim.update_plateau, factor=0.5, patience=1)
    after = jax.jit(update)(before, 2.0)
    assert before.best_loss == jnp.inf
    assert after.best_loss == 2.0
    for a, b in zip(before, after):
        assert a.dtype == b.dtype
        assert a.shape == b.shape == ()


def test_gradients_are_clipped_by_their_global_norm():
    config = make_config(
        clip_norm=1.0, momentum=0.0, weight_decay=0.0, learning_rate=1.0
    )
    tx = optim.make_optimizer(config, lambda step: 1.0)
    for scale, norm in ((10.0, 1.0), (0.01, 0.05)):
        grads = {"a": jnp.array([3.0]) * scale, "b": jnp.array([[4.0]]) * scale}
        updates, _ = tx.update(grads, tx.init(grads), grads)
        assert float(optax.tree.norm(updates)) == pytest.approx(norm)


def test_without_warmup_the_first_step_has_the_full_rate():
    schedule = optim.make_schedule(make_config(warmup_epochs=0.0), 5)
    assert float(schedule(0)) == 1.0


def run(tx, steps=8):
    params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([1.0])}
    state = tx.init(params)

    @jax.jit
    def step(params, state, i):
        # They change their signs, or Lion would see no difference in its momentum.
        grads = jax.tree.map(lambda p: jnp.sin(3 * p + 2.0 * i), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, i)
    return params


def mask(params):
    return {"kernel": True, "bias": False}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        (
            "sgd",
            lambda rate: optax.chain(
                optax.trace(decay=0.8, nesterov=True),
                optax.add_decayed_weights(0.1, mask),
                optax.scale_by_learning_rate(rate),
            ),
        ),
        (
            "adam",
            lambda rate: optax.adamw(rate, b1=0.8, weight_decay=0.1, mask=mask),
        ),
        (
            "adamw",
            lambda rate: optax.adamw(rate, b1=0.8, weight_decay=0.1, mask=mask),
        ),
        (
            "lion",
            lambda rate: optax.lion(rate, b1=0.8, weight_decay=0.1, mask=mask),
        ),
        (
            "rmsprop",
            lambda rate: optax.chain(
                optax.scale_by_rms(decay=0.99, eps=1e-8, bias_correction=True),
                optax.trace(decay=0.8),
                optax.add_decayed_weights(0.1, mask),
                optax.scale_by_learning_rate(rate),
            ),
        ),
    ],
)
def test_optimizers_equal_those_of_optax_with_decoupled_decay(name, theirs):
    config = make_config(
        optimizer=name, learning_rate=0.05, weight_decay=0.1, momentum=0.8
    )
    schedule = optim.make_schedule(config, 1)
    got = run(optim.make_optimizer(config, schedule))
    want = run(theirs(lambda count: 0.05 * schedule(count)))
    for key in got:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-5)


def test_rate_and_decay_are_leaves_of_the_state():
    config = make_config(learning_rate=0.25, weight_decay=0.5)
    tx = optim.make_optimizer(config, optim.make_schedule(config, 1))
    descent = tx.init({"w": jnp.zeros((2, 2))})[-1]
    assert descent.learning_rate == 0.25
    assert descent.weight_decay == 0.5
    # With both at zero, the same program leaves the parameters alone.
    zero = descent._replace(learning_rate=jnp.zeros(()))
    params = {"w": jnp.ones((2, 2))}
    updates, _ = tx.update(params, (tx.init(params)[0], zero), params)
    np.testing.assert_array_equal(updates["w"], jnp.zeros((2, 2)))


def test_a_rate_left_unset_follows_the_optimizer_and_the_batch_size():
    rates = {
        (name, size): make_config(optimizer=name, batch_size=size).learning_rate
        for name in optim.OPTIMIZERS
        for size in (128, 512)
    }
    assert all(rates[name, 128] < rates[name, 512] for name in optim.OPTIMIZERS)
    assert rates["sgd", 512] == pytest.approx(4 * rates["sgd", 128])
    assert rates["adam", 512] == pytest.approx(2 * rates["adam", 128])
    assert make_config(learning_rate=0.3).learning_rate == 0.3
    assert make_config(weight_decay=0.0).weight_decay == 0.0
    assert make_config().weight_decay > 0
    # Plain Adam has no decay; that is what AdamW is for.
    assert make_config(optimizer="adam").weight_decay == 0


def test_warmup_left_unset_is_a_twentieth_of_the_run():
    assert make_config(num_epochs=40).warmup_epochs == 2.0
    assert make_config(num_epochs=40, warmup_epochs=0.0).warmup_epochs == 0.0
    assert make_config(num_epochs=40, schedule="onecycle").warmup_epochs == 10.0


def test_resolve_leaves_the_requested_configuration_alone():
    config = default.get_config()
    optim.resolve(config)
    assert config.learning_rate is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(optimizer="lbfgs"), "optimizer='lbfgs' is unknown; choose one of sgd"),
        (dict(schedule="linear"), "schedule='linear' is unknown; choose one of cosine"),
    ],
    ids=str,
)
def test_unknown_names_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        optim.make_schedule(make_config(**changes), 1)
