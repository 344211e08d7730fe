"""The training and evaluation step as pure functions."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from dwsep_jax.data.augment import Augment, normalize
from dwsep_jax.errors import ConfigError
from dwsep_jax.nn import ops
from dwsep_jax.nn.densenet import create_model
from dwsep_jax.train import optim, step
from dwsep_jax.train.class_weights import make_class_weights
from dwsep_jax.train.metrics import Metrics
from tests import tiny


def make_state(**changes):
    """Return the state of a network that compiles quickly: one layer, all parts."""
    return tiny.make_state(**{"conv": "standard", "block_sizes": (1,)} | changes)


@pytest.fixture(scope="module")
def state():
    return make_state()


@pytest.fixture(scope="module")
def train_step():
    return jax.jit(step.train_step)


@pytest.fixture(scope="module")
def arrays(dataset):
    images, labels, _ = dataset.train
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels)}


@pytest.fixture(scope="module")
def batch(arrays):
    return {"image": normalize(arrays["image"][:8]), "label": arrays["label"][:8]}


def assert_equal(a, b):
    assert tiny.bits(a) == tiny.bits(b)


def assert_near(a, b, rtol=1e-4, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def loss_of(metrics):
    return float(metrics.compute()["loss"])


def test_loss_falls_and_every_part_of_the_state_moves(state, batch):
    # `jit` shares what it has compiled of one function, so this needs its own.
    train_step = jax.jit(lambda state, batch: step.train_step(state, batch))
    new, first = train_step(state, batch)
    assert_equal(train_step(state, batch)[0], new)
    for _ in range(20):
        new, last = train_step(new, batch)
    assert train_step._cache_size() == 1
    assert loss_of(last) < 0.5 * loss_of(first)
    assert int(new.step) == 21
    for name in ("params", "batch_stats", "opt_state"):
        pairs = zip(*(jax.tree.leaves(getattr(s, name)) for s in (state, new)))
        assert not any(np.array_equal(a, b) for a, b in pairs if a.ndim), name


def test_the_step_follows_the_gradient_of_the_mean_cross_entropy(state, batch):
    plain = state.replace(tx=optax.sgd(0.5))
    plain = plain.replace(opt_state=plain.tx.init(state.params))
    new, metrics = jax.jit(step.train_step)(plain, batch)
    _, dropout_key = jax.random.split(jax.random.fold_in(state.key, 0))

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        options = dict(train=True, mutable=["batch_stats"], dropout_rate=0.2)
        options["rngs"] = {"dropout": dropout_key}
        logits, _ = state.apply_fn(variables, batch["image"], **options)
        log_p = jax.nn.log_softmax(logits)
        return -log_p[jnp.arange(8), batch["label"]].mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    np.testing.assert_allclose(loss_of(metrics), value, rtol=1e-5)
    want = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
    assert_near(new.params, want)


def test_labels_may_be_probabilities_and_are_smoothed(state, train_step, batch):
    one_hot = jax.nn.one_hot(batch["label"], tiny.NUM_CLASSES)
    smooth = state.replace(label_smoothing=jnp.float32(0.3))
    hard, metrics = train_step(state, batch)
    accuracy = metrics.compute()["accuracy"]
    smoothed, _ = train_step(state, batch | {"label": 0.7 * one_hot + 0.1})
    cases = [(state, one_hot, hard), (smooth, one_hot, smoothed)]
    for before, label, want in [*cases, (smooth, batch["label"], smoothed)]:
        got, metrics = train_step(before, batch | {"label": label})
        assert_near(got.params, want.params)
        assert metrics.compute()["accuracy"] == accuracy


def test_class_weights_multiply_the_terms_of_the_loss():
    weights, rng = np.array([0.5, 1.0, 3.0], np.float32), np.random.default_rng(0)
    logits, labels = rng.normal(size=(8, 3)).astype(np.float32), np.arange(8) % 3
    log_p = jax.nn.log_softmax(logits)
    hard = step.cross_entropy(logits, labels, None, weights)
    want = log_loss(labels, np.exp(log_p), sample_weight=weights[labels])
    np.testing.assert_allclose(hard.mean(), want * weights[labels].mean(), rtol=1e-6)
    np.testing.assert_allclose(hard, -weights[labels] * log_p[np.arange(8), labels])
    mixed = 0.75 * np.eye(3)[labels] + 0.25 * np.eye(3)[labels[::-1]]
    soft = step.cross_entropy(logits, jnp.float32(mixed), jnp.float32(0.3), weights)
    want = -(weights[None] * (0.7 * mixed + 0.1) * log_p).sum(1)
    np.testing.assert_allclose(soft, want, rtol=1e-6)


def test_class_weights_change_training_and_no_other_metric(state, train_step, batch):
    weighted = state.replace(class_weights=(0.5, 1, 3))
    one, two = (train_step(s, batch) for s in (state, weighted))
    plain, heavier = (metrics.compute() for _, metrics in (one, two))
    assert plain["accuracy"] == heavier["accuracy"]
    assert plain["loss"] != heavier["loss"]
    assert tiny.bits(one[0].params) != tiny.bits(two[0].params)
    batch = batch | {"mask": jnp.ones(8, bool)}
    assert_equal(step.eval_step(state, batch), step.eval_step(weighted, batch))


def test_class_weights_are_those_of_the_training_images(dataset):
    names, labels = (*"abc", "d, e=f"), np.array([0, 0, 0, 2, 2, 3], np.int32)
    split = tiny.make_split(6, 0)._replace(labels=labels)
    dataset = dataclasses.replace(dataset, class_names=names, train=split)
    want = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=labels)
    got = make_class_weights("balanced", dataset)
    np.testing.assert_allclose(got, np.insert(want, 1, 1), rtol=1e-6)
    got = make_class_weights("c=2.5, d, e=f=0.5,a=1e3", dataset)
    assert got == (1000, 1, 2.5, 0.5)
    with pytest.raises(ConfigError, match="'reed' is no class of tiny; did you"):
        tiny.make_resolved(class_weights="reed=2")


def test_other_shapes_and_dtypes_are_refused(state, batch):
    for shape, dtype, message in (
        ((8, 1), int, r"int32\[8,1\] do not fit logits .*\[8,3\]"),
        ((8, 1), float, r"labels float32\[8,1\] do not fit"),
        ((8, 2), float, r"labels float32\[8,2\] do not fit"),
        ((8, 3), int, r"labels int32\[8,3\] do not fit"),
        (8, float, r"labels float32\[8\] do not fit"),
        (7, int, r"labels int32\[7\] do not fit"),
        ((8, 8, 8, 3), np.uint8, "must be floating point in"),
    ):
        changes = {"image" if dtype == np.uint8 else "label": jnp.zeros(shape, dtype)}
        masked = batch | {"mask": jnp.ones(8, bool)} | changes
        for before in (state, state.replace(label_smoothing=jnp.float32(0.3))):
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(step.train_step, before, masked)
        with pytest.raises(ValueError, match=r"labels|images"):
            jax.eval_shape(step.eval_step, state, masked)


@pytest.mark.parametrize(("shape", "dtype"), [((8, 1), bool), ((8,), float)])
def test_another_mask_is_refused(state, batch, shape, dtype):
    with pytest.raises(ValueError, match=r"\] must be int \(N,\) and bool"):
        jax.eval_shape(step.eval_step, state, batch | {"mask": jnp.zeros(shape, dtype)})


def test_an_epoch_of_other_arrays_is_refused(state, arrays):
    options = {"augment": make_augment(), "num_steps": 1}
    for changes, batch_size, message in (
        ({"image": jnp.zeros((44, 8, 8, 3))}, 8, "must be uint8"),
        ({"label": jnp.zeros((44, 1), int)}, 8, "must be uint8"),
        ({"label": jnp.zeros(43, int)}, 8, "must be uint8"),
        ({}, 45, "=45 must be 1 to 44"),
    ):
        arguments = (state, Metrics.empty(), arrays | changes, jnp.arange(44))
        with pytest.raises(ValueError, match=message):
            step.train_many(*arguments, batch_size=batch_size, **options)


def test_the_dropout_rate_is_that_of_the_state(state, train_step, batch):
    losses = [
        loss_of(train_step(state.replace(dropout_rate=jnp.float32(rate)), batch)[1])
        for rate in (0.2, 0.4)
    ]
    assert state.dropout_rate == jnp.float32(0.2)
    assert losses[0] != losses[1]
    # Without a rate in the state, the network has its own.
    config = tiny.make_config(conv="standard", block_sizes=(1,))
    model = create_model(config, tiny.NUM_CLASSES)
    own = state.replace(dropout_rate=None, apply_fn=model.apply)
    want, got = (train_step(s, batch)[0] for s in (own, state))
    assert_near(got.params, want.params)
    # A rate of 0 draws no random bits.
    for before, draws in ((make_state(dropout_rate=0.0), 0), (state, 1)):
        program = str(jax.make_jaxpr(step.train_step)(before, batch))
        assert program.count("random_bits") == draws


def make_augment(**options):
    off = dict(flip=False, shift=0, cutout=0, mixup=0.0)
    return Augment(**off | options, num_classes=tiny.NUM_CLASSES)


def take_many(state, arrays, augment, num_steps=1, total=None):
    order = jnp.flip(jnp.arange(44))
    options = dict(augment=augment, batch_size=8, num_steps=num_steps)
    return step.train_many(state, total or Metrics.empty(), arrays, order, **options)


def test_images_are_gathered_and_augmented_anew_each_step(state, arrays):
    seen, keys = [], []

    def spy_augment(key, images, labels):
        plain = make_augment(flip=True, shift=1)(key, images, labels)
        jax.debug.callback(seen.append, plain[0])
        jax.debug.callback(keys.append, jax.random.key_data(key))
        return make_augment(mixup=0.5)(key, images, labels)

    def spy_apply(*args, rngs, **options):
        jax.debug.callback(keys.append, jax.random.key_data(rngs["dropout"]))
        return state.apply_fn(*args, rngs=rngs, **options)

    spied = state.replace(apply_fn=spy_apply)
    take = jax.jit(partial(take_many, augment=spy_augment))
    new, _, first = take(spied, arrays)
    _, _, again = take(spied, arrays)
    take(new.replace(params=state.params, step=new.step + 4), arrays)
    jax.effects_barrier()
    assert first == again
    np.testing.assert_array_equal(seen[0], seen[1])
    # The next epoch has the same order here, but other flips and shifts.
    assert not np.array_equal(seen[0], seen[2])
    # Those of the indices, up to flip and shift: their brightest channel is the same.
    brightest = np.asarray(seen[0]).mean((1, 2)).argmax(1)
    np.testing.assert_array_equal(brightest, arrays["label"][::-1][:8])
    # Augmentation and dropout each have a key of their own in every step.
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == 4


def test_several_steps_a_dispatch_are_the_steps_one_by_one(state, arrays):
    augment = make_augment(flip=True)
    take = jax.jit(partial(take_many, augment=augment), static_argnames="num_steps")

    def take_epoch(sizes):
        new, total, losses = state, Metrics.empty(), []
        for num_steps in sizes:
            new, total, some = take(new, arrays, num_steps=num_steps, total=total)
            losses.append(some)
        return new, total, np.concatenate(losses)

    one_by_one, total, losses = take_epoch([1] * 5)
    many, many_total, many_losses = take_epoch([2, 2, 1])
    np.testing.assert_allclose(many_losses, losses, rtol=1e-4)
    assert int(many.step) == 5
    assert_near(one_by_one.params, many.params, rtol=1e-3, atol=1e-5)
    assert many_total.compute()["accuracy"] == total.compute()["accuracy"]
    np.testing.assert_allclose(loss_of(total), losses.mean(), rtol=1e-6)
    # A parameter that is not finite shows, although the step's loss precedes it.
    plateau = optim.make_plateau()._replace(multiplier=jnp.float32(jnp.inf))
    _, _, broken = take(state.replace(plateau=plateau), arrays, total=Metrics.empty())
    assert np.isnan(broken).all()
    assert np.isfinite(losses).all()


def test_a_run_has_three_keys():
    keys = step.make_run_keys(0)
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


PLATEAU = optax.contrib.reduce_on_plateau(factor=0.5)


@pytest.mark.parametrize("tx", [optax.lbfgs(), optax.chain(optax.sgd(0.1), PLATEAU)])
def test_a_model_without_batch_statistics_or_dropout_can_be_trained(batch, tx):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(x.reshape(len(x), -1))

    arguments = (Linear(), tx, (8, 8, 3), step.make_run_keys(0))
    state = step.create_train_state(*arguments, ema_decay=0.5)
    # The weights and their average are not one buffer, which could be donated once.
    train_step = jax.jit(step.train_step, donate_argnums=0)
    new, first = train_step(state, batch)
    _, second = train_step(new, batch)
    assert loss_of(second) < loss_of(first)


@pytest.mark.parametrize("has_classes", [True, False])
def test_a_batch_in_parts_is_the_whole_but_for_batch_norm(has_classes, batch):
    class Network(nn.Module):
        has_norm: bool

        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(4, (3, 3))(x)
            if self.has_norm:
                x = nn.BatchNorm(not train, momentum=0.5)(x)
            return nn.Dense(3)(nn.relu(x).mean((1, 2)))

    def take(has_norm, accumulate):
        tx = optax.sgd(0.5)
        arguments = (Network(has_norm), tx, (8, 8, 3), step.make_run_keys(0))
        state = step.create_train_state(*arguments)
        return jax.jit(step.train_step)(state.replace(accumulate=accumulate), batch)

    if not has_classes:
        batch = batch | {"label": jax.nn.one_hot(batch["label"], 3)}
    (whole, metrics), (parts, same_metrics) = take(False, 1), take(False, 4)
    assert_near(parts.params, whole.params, rtol=1e-5)
    assert_near(same_metrics, metrics, rtol=1e-5)
    state, _ = take(True, 4)
    # Each part has a mean of its own, the last of which counts half.
    image, kernel = batch["image"], step.make_run_keys(0).init
    kernel = Network(True).init(kernel, image, train=False)["params"]["Conv_0"]
    means = nn.Conv(4, (3, 3)).apply({"params": kernel}, image).mean((1, 2))
    want = jnp.zeros(4)
    for part in range(4):  # Of examples 0 and 4, 1 and 5, ...
        want = 0.5 * want + 0.5 * means[part::4].mean(0)
    assert_near(state.batch_stats["BatchNorm_0"]["mean"], want, atol=1e-5)


def test_parts_have_dropout_of_their_own(state, batch):
    """Two parts of equal examples differ in nothing else."""
    half = jax.tree.map(lambda x: jnp.repeat(x[:4], 2, axis=0), batch)
    state = state.replace(accumulate=2, dropout_rate=jnp.float32(0.5))
    (_, (losses, *_)), _ = jax.jit(step._gradients)(state, half, state.params)
    assert not np.allclose(losses[:4], losses[4:])


def test_the_average_follows_weights_and_statistics_by_decay(state, train_step, batch):
    assert state.ema is None
    new = make_state(ema_decay=0.15)
    want = new.params, new.batch_stats
    # (1 + 0) / (10 + 0) = 0.1, then 2 / 11 = 0.18, which is above the decay.
    for decay in (0.1, 0.15):
        new, _ = train_step(new, batch)
        mix = lambda a, b, d=decay: d * a + (1 - d) * b  # noqa: E731
        want = jax.tree.map(mix, want, (new.params, new.batch_stats))
        state, _ = train_step(state, batch)
    got = step.averaged(new)
    assert_near((got.params, got.batch_stats), want, rtol=1e-5, atol=1e-7)
    # It does not change the training.
    assert_equal(new.params, state.params)


def test_the_plateau_multiplier_scales_the_step(state, train_step, batch):
    plateau = state.plateau._replace(multiplier=jnp.float32(0.25))
    states = [train_step(s, batch)[0] for s in (state, state.replace(plateau=plateau))]
    move = partial(jax.tree.map, lambda a, b: b - a, state.params)
    whole, quarter = (move(after.params) for after in states)
    assert_near(quarter, jax.tree.map(lambda u: 0.25 * u, whole), rtol=1e-3)


@pytest.mark.parametrize("lowering", ["conv", "shift"])
def test_a_batch_may_be_sharded(lowering, batch, monkeypatch):
    monkeypatch.setattr(ops, "_CHUNK_SIZE", 2000)  # The separable layers take chunks.

    def train_step(*arguments):  # `jit` shares what it has compiled of one function.
        return step.train_step(*arguments)

    state = tiny.make_state(lowering=lowering)
    want, _ = jax.jit(train_step)(state, batch)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            whole = jax.device_put(state, jax.NamedSharding(mesh, jax.P()))
            sharded = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
            compiled = jax.jit(train_step).lower(whole, sharded).compile()
            got, _ = compiled(whole, sharded)
        assert_near(got.params, want.params, rtol=1e-3, atol=1e-5)
        if kind == AxisType.Auto:  # Dropout gathers random bytes, but no activations.
            assert not re.search(r"= f32\S* all-gather", compiled.as_text())
