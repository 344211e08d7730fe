"""The programs of an epoch: what is trained, compiled, read and refused."""

import re
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dwsep_jax.data import order
from dwsep_jax.data.augment import make_augment
from dwsep_jax.errors import UserError
from dwsep_jax.nn.counting import peak_bytes
from dwsep_jax.train import loop, programs, step
from dwsep_jax.train.metrics import Metrics
from tests import tiny

SMALLEST = {"conv": "standard", "block_sizes": (1,)}


def arrays_of(dataset):
    return {"image": dataset.train.images, "label": dataset.train.labels}


def make_steps(config, num_steps=2):
    augment = make_augment(config, tiny.NUM_CLASSES)
    options = {"batch_size": config.batch_size, "num_steps": num_steps}
    return partial(step.train_many, augment=augment, **options)


def train_epoch(compiled, state):
    silent = types.SimpleNamespace(advance_steps=lambda num_steps: None)
    order = np.arange(44, dtype=np.int32)
    some = [state], [Metrics.empty()], [True], [order], silent
    return compiled.train_epoch(*some)[0]


@pytest.mark.usefixtures("recompiled")
def test_every_example_is_trained_on_once_an_epoch(monkeypatch, dataset, tmp_path):
    seen, batch_indices = [], step.batch_indices

    def record(*args):
        indices = batch_indices(*args)
        jax.debug.callback(lambda i: seen.append(np.asarray(i)), indices)
        return indices

    monkeypatch.setattr(step, "batch_indices", record)
    config = tiny.make_resolved(batch_size=11, **SMALLEST)
    with loop.Member(config, tmp_path, dataset) as member:
        loop.train([member])
    jax.effects_barrier()
    epochs = np.concatenate(seen).reshape(2, 44)
    for i, indices in enumerate(epochs):
        assert sorted(indices) == list(range(44))
        want = order.epoch_permutation(step.make_run_keys(0).order, i, 44)
        np.testing.assert_array_equal(indices, want)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_step_that_does_not_fit_into_the_memory_is_refused(dataset, monkeypatch):
    config = tiny.make_resolved()
    state = loop.make_state(config, dataset)
    arrays = (dataset.train.images, dataset.train.labels)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((state, arrays)))
    message = r"a training step needs .* GiB .* take a smaller network{}, and another"
    size = r" or, by this estimate, --config\.batch_size=(\d)"
    # Temporary memory counts as well, which XLA's own peak leaves out on a CPU.
    needed = peak_bytes(programs.EpochPrograms(config, dataset, [state]).programs[0][1])
    assert needed > 2 * num_bytes
    for available, remedy in ((1000, ""), ((needed + num_bytes) // 2 + 500, size)):
        monkeypatch.setattr(programs, "memory_bytes", lambda n=available: n)
        with pytest.raises(UserError, match=message.format(remedy)) as error:
            programs.EpochPrograms(config, dataset, [state])
    assert re.search(size, str(error.value))[1] == "4"


def test_losses_are_read_while_later_steps_run(dataset):
    config = tiny.make_resolved()
    state = loop.make_state(config, dataset)
    compiled = programs.EpochPrograms(config, dataset, [state])
    dispatched = []

    def dispatch(state, total, arrays, order):
        dispatched.append(len(dispatched))
        return state, total, np.full(1, np.nan if len(dispatched) == 3 else 0.0)

    compiled.programs = [(1, dispatch)] * 44
    assert str(train_epoch(compiled, state).error).startswith("step 3 left")
    # Not at once, but long before the end of the epoch.
    assert len(dispatched) == 3 + 1


def test_the_training_step_lowers_for_tpu(dataset):
    config = tiny.make_resolved(mixup=0.2, cutout=2)
    state = loop.make_state(config, dataset)
    steps = make_steps(config)
    arrays = {"image": dataset.train.images, "label": dataset.train.labels}

    def take(params, batch_stats, opt_state, key_data, arrays, permutation):
        key = jax.random.wrap_key_data(key_data)
        parts = dict(params=params, batch_stats=batch_stats, opt_state=opt_state)
        before = (state.replace(key=key, **parts), Metrics.empty())
        new, total, _ = steps(*before, arrays, permutation)
        return new.params, new.opt_state, total.compute()

    exported = jax.export.export(jax.jit(take), platforms=["tpu"])(
        *(state.params, state.batch_stats, state.opt_state),
        *(jax.random.key_data(state.key), arrays, np.arange(44, dtype=np.int32)),
    )
    assert exported.platforms == ("tpu",)
    assert "stablehlo.convolution" in exported.mlir_module()


def test_steps_keep_their_dtypes_in_64_bits(dataset):
    config = tiny.make_resolved()
    with jax.enable_x64(True):
        state = loop.make_state(config, dataset, abstract=True)
        rest = Metrics.empty(), arrays_of(dataset), np.arange(44, dtype=np.int32)
        after, _, losses = jax.eval_shape(make_steps(config), state, *rest)
    got, want = (jax.tree.map(lambda x: x.dtype, s) for s in (after, state))
    assert got == want
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {losses.dtype}
    assert losses.dtype == np.float32


@pytest.mark.usefixtures("recompiled")
def test_runs_share_a_program_unless_a_static_field_differs(dataset):
    def last_bits(**changes):
        config = tiny.make_resolved(**SMALLEST | changes)
        state = loop.make_state(config, dataset)
        compiled = programs.EpochPrograms(config, dataset, [state])
        return tiny.bits(train_epoch(compiled, state).state.params)

    changes = {"seed": 1, "learning_rate": 0.2, "weight_decay": 0.1}
    changes |= {"dropout_rate": 0.5}
    first, shared = last_bits(), last_bits(**changes)
    for field, value in changes.items():
        assert last_bits(**{field: value}) != first, field
    assert programs._compile.cache_info().misses == 1
    last_bits(momentum=0.5)
    assert programs._compile.cache_info().misses == 2
    # The shared program had none of the first run's values baked into it.
    programs._compile.cache_clear()
    step._make_init.cache_clear()
    assert last_bits(**changes) == shared


def make_member(i, **changes):
    """Return a config that differs from all others in every field that may differ."""
    varied = {"seed": i, "learning_rate": 0.05 * (i + 1), "weight_decay": 0.01 * i}
    varied |= {"dropout_rate": 0.1 * (i + 1), "label_smoothing": 0.05 * (i + 1)}
    return tiny.make_config(**{"num_epochs": 4} | varied | changes)


def assert_near(tree, other, tolerance):
    """Compare by the norm of the difference, relative to that of the other tree."""
    a, b = (ravel_pytree(part)[0] for part in (tree, other))
    assert jnp.linalg.norm(a - b) <= tolerance * jnp.linalg.norm(b)


def parts(state):
    return state.params, state.batch_stats, state.opt_state


@pytest.mark.parametrize(("network", "num_devices"), [({}, 2), (SMALLEST, 1)])
def test_members_are_their_lone_runs_while_active(dataset, network, num_devices):
    configs = [loop.resolve(make_member(i, **network), dataset) for i in range(4)]
    states = [loop.make_state(config, dataset) for config in configs]
    keys = [step.make_run_keys(config.seed).order for config in configs]
    orders = [order.epoch_permutation(key, 0, 44) for key in keys]
    arrays = jax.tree.map(jnp.asarray, arrays_of(dataset))
    steps = make_steps(configs[0], num_steps=1)
    take = jax.jit(steps)
    mesh = jax.sharding.Mesh(jax.devices()[:num_devices], "members")
    take_all = jax.jit(programs.vmap_steps(steps, mesh))
    active = [True, False, True, True]
    together = (states, [Metrics.empty()] * 4, orders, active)
    members, totals, some_orders, mask = map(programs.stack, together)
    members, totals, losses = take_all(members, totals, arrays, some_orders, mask)
    assert losses.shape == (4, 1)
    assert len(members.step.sharding.device_set) == num_devices
    assert [int(total.count) for total in programs.unstack(totals)] == [8, 0, 8, 8]
    members = programs.unstack(members)
    for i, (member, before) in enumerate(zip(members, states)):
        if active[i]:
            alone, _, _ = take(before, Metrics.empty(), arrays, orders[i])
            assert_near(parts(member), parts(alone), 1e-3)
            # After one step, sgd's momentum is the gradient.
            assert_near(member.opt_state[0].trace, alone.opt_state[0].trace, 1e-5)
        else:
            assert tiny.bits(member) == tiny.bits(before)
    assert take._cache_size() == 1
    with pytest.raises(AssertionError):  # They differ from each other.
        assert_near(parts(members[0]), parts(members[2]), 1e-1)


def test_members_are_spread_over_all_devices_or_none():
    assert [programs.make_mesh(n).size for n in (2, 3, 4)] == [2, 1, 2]
