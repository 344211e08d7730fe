"""The training and evaluation step as pure functions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dwsep_jax.data import augment as augment_lib
from dwsep_jax.data.augment import normalize
from dwsep_jax.errors import ConfigError
from dwsep_jax.nn.densenet import create_model
from dwsep_jax.train import optim, step
from dwsep_jax.train.metrics import Metrics
from tests import tiny


@pytest.fixture(scope="module")
def state():
    return step.make_train_state(tiny.make_config(), tiny.make_dataset())


@pytest.fixture(scope="module")
def train_step():
    return jax.jit(step.train_step)


@pytest.fixture(scope="module")
def batch():
    split = tiny.make_dataset().train
    images = normalize(jnp.asarray(split.images[:8]))
    return {"image": images, "label": jnp.asarray(split.labels[:8])}


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_loss_falls_and_every_part_of_the_state_moves(state, train_step, batch):
    new, first = train_step(state, batch)
    for _ in range(20):
        new, last = train_step(new, batch)
    assert float(last.compute()["loss"]) < 0.5 * float(first.compute()["loss"])
    assert int(new.step) == 21
    for name in ("params", "batch_stats", "opt_state"):
        before, after = getattr(state, name), getattr(new, name)
        moved = [
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))
            if a.ndim
        ]
        assert all(moved), name


def test_a_step_is_a_pure_function_compiled_once(state, batch):
    # A function of its own: `jit` shares what it has compiled of the same one.
    jitted = jax.jit(lambda state, batch: step.train_step(state, batch))
    once, _ = jitted(state, batch)
    again, _ = jitted(state, batch)
    assert_equal(once, again)
    jitted(once, batch)
    assert jitted._cache_size() == 1


def test_the_step_follows_the_gradient_of_the_mean_cross_entropy(state, batch):
    plain = state.replace(tx=optax.sgd(0.5))
    plain = plain.replace(opt_state=plain.tx.init(state.params))
    new, metrics = jax.jit(step.train_step)(plain, batch)
    _, dropout_key = jax.random.split(jax.random.fold_in(state.key, 0))

    def loss(params):
        logits, _ = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
            dropout_rate=0.2,
        )
        log_p = jax.nn.log_softmax(logits)
        return -log_p[jnp.arange(8), batch["label"]].mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    np.testing.assert_allclose(metrics.compute()["loss"], value, rtol=1e-5)
    for before, after, grad in zip(
        *map(jax.tree.leaves, (state.params, new.params, grads))
    ):
        np.testing.assert_allclose(after, before - 0.5 * grad, rtol=1e-4, atol=1e-6)


def test_labels_may_be_probabilities(state, train_step, batch):
    one_hot = batch | {"label": jax.nn.one_hot(batch["label"], tiny.NUM_CLASSES)}
    hard, hard_metrics = train_step(state, batch)
    soft, soft_metrics = train_step(state, one_hot)
    for a, b in zip(jax.tree.leaves(hard.params), jax.tree.leaves(soft.params)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert hard_metrics.compute()["accuracy"] == soft_metrics.compute()["accuracy"]


def test_labels_are_smoothed_by_what_the_state_says(state, train_step, batch):
    one_hot = jax.nn.one_hot(batch["label"], tiny.NUM_CLASSES)
    mixed = batch | {"label": 0.75 * one_hot + 0.25 * one_hot[::-1]}
    smooth = state.replace(label_smoothing=jnp.float32(0.3))
    for before in (batch | {"label": one_hot}, mixed):
        want, _ = train_step(state, batch | {"label": 0.7 * before["label"] + 0.1})
        got, _ = train_step(smooth, before)
        for a, b in zip(jax.tree.leaves(want.params), jax.tree.leaves(got.params)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    hard, hard_metrics = train_step(smooth, batch)
    soft, soft_metrics = train_step(smooth, batch | {"label": one_hot})
    assert_equal(hard.params, soft.params)
    assert hard_metrics.compute()["accuracy"] == soft_metrics.compute()["accuracy"]


def test_the_dropout_rate_is_what_the_state_says(state, train_step, batch):
    def loss(rate):
        _, metrics = train_step(state.replace(dropout_rate=rate), batch)
        return float(metrics.compute()["loss"])

    assert state.dropout_rate == jnp.float32(0.2)
    assert loss(jnp.float32(0.2)) != loss(jnp.float32(0.4))
    # Without a rate of the state, the network has its own.
    model = create_model(tiny.make_config(), tiny.NUM_CLASSES)
    own = state.replace(dropout_rate=None, apply_fn=model.apply)
    want, _ = train_step(own, batch)
    got, _ = train_step(state, batch)
    for a, b in zip(jax.tree.leaves(want.params), jax.tree.leaves(got.params)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_nothing_is_drawn_for_a_rate_of_0(batch):
    def count_draws(**changes):
        config = tiny.make_config(flip=False, shift=0, **changes)
        state = step.make_train_state(config, tiny.make_dataset())
        return str(jax.make_jaxpr(step.train_step)(state, batch)).count("random_bits")

    assert count_draws(dropout_rate=0.0) == 0
    assert count_draws(dropout_rate=0.2) == 2


def test_dropout_differs_from_step_to_step(state, train_step, batch):
    _, first = train_step(state, batch)
    _, second = train_step(state.replace(step=state.step + 1), batch)
    assert first.compute()["loss"] != second.compute()["loss"]


def make_augment(**options):
    off = dict(flip=False, shift=0, cutout_size=0, mixup_alpha=0.0)
    return augment_lib.make_augment(**off | options, num_classes=tiny.NUM_CLASSES)


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.5])
def test_train_on_indices_gathers_and_augments_anew_each_step(state, mixup_alpha):
    split = tiny.make_dataset().train
    arrays = {"image": jnp.asarray(split.images), "label": jnp.asarray(split.labels)}
    seen = []

    def spy(key, images, labels):
        plain = make_augment(flip=True, shift=1)(key, images, labels)
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), plain[0])
        return make_augment(mixup_alpha=mixup_alpha)(key, images, labels)

    take_step = jax.jit(partial(step.train_on_indices, augment=spy))
    indices = jnp.arange(8, 16)
    new, first = take_step(state, arrays, indices)
    _, again = take_step(state, arrays, indices)
    take_step(new.replace(params=state.params), arrays, indices)
    jax.effects_barrier()
    assert first.compute()["loss"] == again.compute()["loss"]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])
    # The images are those of the indices, up to flip and shift: same brightest channel.
    np.testing.assert_array_equal(seen[0].mean((1, 2)).argmax(1), split.labels[8:16])


def test_mixup_changes_the_labels_that_are_trained_on(state):
    split = tiny.make_dataset().train
    arrays = {"image": jnp.asarray(split.images), "label": jnp.asarray(split.labels)}
    losses = []
    for alpha in (0.0, 1.0):
        augment = make_augment(mixup_alpha=alpha)
        take = jax.jit(partial(step.train_on_indices, augment=augment))
        _, metrics = take(state, arrays, jnp.arange(8))
        losses.append(float(metrics.compute()["loss"]))
    assert losses[0] != losses[1]


def test_eval_step_uses_running_statistics_and_counts_what_the_mask_says(state, batch):
    masked = batch | {"mask": jnp.arange(8) < 5}
    metrics, probabilities = jax.jit(step.eval_step)(state, masked)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, batch["image"])
    np.testing.assert_allclose(
        probabilities, jax.nn.softmax(logits), rtol=1e-4, atol=1e-6
    )
    log_p = jax.nn.log_softmax(logits)
    want = -log_p[jnp.arange(5), batch["label"][:5]].mean()
    np.testing.assert_allclose(metrics.compute()["loss"], want, rtol=1e-5)
    correct = (logits.argmax(1) == batch["label"])[:5]
    np.testing.assert_allclose(metrics.compute()["accuracy"], correct.mean())


def test_a_seed_decides_on_everything(state):
    dataset = tiny.make_dataset()
    same = step.make_train_state(tiny.make_config(), dataset)
    other = step.make_train_state(tiny.make_config(seed=1), dataset)
    assert_equal(state, same)
    assert not np.array_equal(
        jax.random.key_data(state.key), jax.random.key_data(other.key)
    )
    kernel = lambda s: s.params["stem"]["conv"]["kernel"]  # noqa: E731
    assert not np.array_equal(kernel(state), kernel(other))
    keys = step.make_run_keys(0)
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(ConfigError, match="batch_size=45 is more than the 44 training"):
        step.make_train_state(tiny.make_config(batch_size=45), tiny.make_dataset())


def test_a_sharded_batch_gives_the_step_of_a_whole_one(state, train_step, batch):
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
    whole, _ = train_step(state, batch)
    sharded, _ = train_step(state, jax.device_put(batch, sharding))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(sharded.params)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_augmentation_and_dropout_draw_by_keys_of_their_own(state):
    keys = []
    split = tiny.make_dataset().train
    arrays = {"image": jnp.asarray(split.images), "label": jnp.asarray(split.labels)}

    def spy_augment(key, images, labels):
        keys.append(key)
        return normalize(images), labels

    def spy_apply(*args, rngs, **options):
        keys.append(rngs["dropout"])
        return state.apply_fn(*args, rngs=rngs, **options)

    def collect(state):
        keys.clear()
        spied = state.replace(apply_fn=spy_apply)
        step.train_on_indices(spied, arrays, jnp.arange(8), augment=spy_augment)
        return [jax.random.key_data(key) for key in keys]

    drawn = [tuple(key.tolist()) for key in jax.jit(collect)(state)]
    assert len(drawn) == 2
    assert len(set(drawn)) == 2


def test_a_model_without_batch_statistics_or_dropout_can_be_trained(batch):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.reshape(len(x), -1))

    state = step.create_train_state(
        Linear(), optax.sgd(0.1), (8, 8, 3), step.make_run_keys(0)
    )
    new, first = step.train_step(state, batch)
    _, second = step.train_step(new, batch)
    assert second.compute()["loss"] < first.compute()["loss"]


@pytest.fixture(scope="module")
def averaging():
    """Return the state of a run with a running average that forgets fast."""
    config = tiny.make_config(ema_decay=0.15)
    return step.make_train_state(config, tiny.make_dataset())


def test_the_average_follows_weights_and_statistics_by_its_decay(
    averaging, train_step, batch
):
    params, stats = averaging.params, averaging.batch_stats
    state = averaging
    # (1 + 0) / (10 + 0) = 0.1, then 2 / 11 = 0.18, which is above the decay.
    for decay in (0.1, 0.15):
        state, _ = train_step(state, batch)
        mix = lambda a, b, d=decay: d * a + (1 - d) * b  # noqa: E731
        params = jax.tree.map(mix, params, state.params)
        stats = jax.tree.map(mix, stats, state.batch_stats)
    got = step.averaged(state)
    for a, b in zip(
        jax.tree.leaves((got.params, got.batch_stats)), jax.tree.leaves((params, stats))
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_state_with_an_average_can_be_given_up(batch):
    config = tiny.make_config(ema_decay=0.5)
    model = create_model(config, tiny.NUM_CLASSES)
    keys = step.make_run_keys(0)
    state = step.create_train_state(
        model, optax.sgd(0.1), (8, 8, 3), keys, ema_decay=0.5
    )
    jax.jit(step.train_step, donate_argnums=0)(state, batch)


@pytest.mark.parametrize(
    "change", [{"shift": 8}, {"cutout": 9}, {"shift": 64, "cutout": 4}], ids=str
)
def test_augmentation_that_leaves_nothing_of_an_image_is_refused(change):
    dataset = tiny.make_dataset()
    step.check_train_state(tiny.make_config(shift=7, cutout=8), dataset, 10**9)
    field, value = next(iter(change.items()))
    message = f"^{field}={value} leaves nothing of images of 8 pixels; take at most"
    with pytest.raises(ConfigError, match=message):
        step.check_train_state(tiny.make_config(**change), dataset, 10**9)


def test_the_average_does_not_change_the_training(averaging, state, train_step, batch):
    assert state.ema is None
    with_average, _ = train_step(averaging, batch)
    without, _ = train_step(state, batch)
    assert_equal(with_average.params, without.params)


def test_the_plateau_multiplier_scales_the_step(state, train_step, batch):
    whole, _ = train_step(state, batch)
    plateau = state.plateau._replace(multiplier=jnp.float32(0.25))
    quarter, _ = train_step(state.replace(plateau=plateau), batch)
    for old, a, b in zip(
        *map(jax.tree.leaves, (state.params, whole.params, quarter.params))
    ):
        np.testing.assert_allclose(b - old, 0.25 * (a - old), rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def epoch_of_steps(state):
    """Return a function that takes the five steps of an epoch in some programs."""
    split = tiny.make_dataset().train
    arrays = {"image": jnp.asarray(split.images), "label": jnp.asarray(split.labels)}
    permutation = jnp.flip(jnp.arange(44))
    augment = make_augment(flip=True)

    @partial(jax.jit, static_argnames="num_steps")
    def run(state, total, num_steps):
        return step.train_many(
            state,
            total,
            arrays,
            permutation,
            augment=augment,
            batch_size=8,
            num_steps=num_steps,
        )

    def take(state, sizes):
        total, losses = Metrics.empty(), []
        for num_steps in sizes:
            state, total, some = run(state, total, num_steps)
            losses.append(some)
        return state, total, np.concatenate(losses)

    return take


def test_several_steps_a_dispatch_are_the_steps_one_by_one(state, epoch_of_steps):
    one_by_one, total, losses = epoch_of_steps(state, [1] * 5)
    for sizes in ([5], [2, 2, 1]):
        many, many_total, many_losses = epoch_of_steps(state, sizes)
        np.testing.assert_allclose(many_losses, losses, rtol=1e-4)
        assert int(many.step) == 5
        for a, b in zip(
            jax.tree.leaves(one_by_one.params), jax.tree.leaves(many.params)
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        assert many_total.compute()["accuracy"] == total.compute()["accuracy"]
    np.testing.assert_allclose(total.compute()["loss"], losses.mean(), rtol=1e-6)


def test_a_parameter_that_is_not_finite_shows_in_the_loss(state, epoch_of_steps):
    # The loss of the first step is of the parameters before it.
    broken = state.replace(
        plateau=optim.make_plateau()._replace(multiplier=jnp.float32(jnp.inf))
    )
    _, _, losses = epoch_of_steps(broken, [1])
    assert np.isnan(losses).all()
    _, _, losses = epoch_of_steps(state, [1])
    assert np.isfinite(losses).all()
