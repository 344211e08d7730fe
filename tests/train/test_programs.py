"""The programs of an epoch: which examples, what is read when, what is refused."""

import types

import jax
import numpy as np
import pytest

from dwsep_jax.errors import UserError
from dwsep_jax.train import loop, programs
from dwsep_jax.train import step as step_lib
from dwsep_jax.train.checkpoint import checksums
from dwsep_jax.train.metrics import Metrics
from dwsep_jax.train.step import make_run_keys, make_train_state
from tests import tiny


@pytest.fixture(scope="module")
def dataset():
    return tiny.make_dataset()


@pytest.mark.usefixtures("recompiled")
def test_every_example_is_trained_on_once_an_epoch(monkeypatch, dataset):
    seen = []

    def record(state, arrays, indices, augment):
        jax.debug.callback(lambda i: seen.append(np.asarray(i)), indices)
        return train_on_indices(state, arrays, indices, augment)

    train_on_indices = step_lib.train_on_indices
    monkeypatch.setattr(step_lib, "train_on_indices", record)
    config = tiny.make_resolved(num_epochs=2, batch_size=11)
    state = make_train_state(config, dataset)
    for _ in loop.train_epochs(config, dataset, state, []):
        pass
    jax.effects_barrier()
    epochs = np.concatenate(seen).reshape(2, 44)
    for i, order in enumerate(epochs):
        assert sorted(order) == list(range(44))
        want = order.epoch_permutation(make_run_keys(0).order, i, 44)
        np.testing.assert_array_equal(order, want)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_step_that_does_not_fit_into_the_memory_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(programs, "memory_bytes", lambda: 1000)
    message = r"a training step needs .* GiB .* a smaller --config\.batch_size than 8 "
    config = tiny.make_resolved()
    state = make_train_state(config, dataset)
    arrays = {"image": dataset.train.images, "label": dataset.train.labels}
    with pytest.raises(UserError, match=message):
        programs.compile_programs(config, dataset, state, arrays)
    # Temporary memory counts as well, which XLA's own peak leaves out on a CPU.
    num_bytes = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves((state, arrays)))
    monkeypatch.setattr(programs, "memory_bytes", lambda: num_bytes)
    with pytest.raises(UserError, match=message):
        programs.compile_programs(config, dataset, state, arrays)


def test_losses_are_read_while_later_steps_run(dataset, monkeypatch):
    config = tiny.make_resolved(num_epochs=1, batch_size=1)
    state = make_train_state(config, dataset)
    arrays = {"image": dataset.train.images, "label": dataset.train.labels}
    compiled = programs.compile_programs(config, dataset, state, arrays)
    assert len(compiled) == 44
    dispatched, read = [], []

    def dispatch(state, total, arrays, permutation):
        dispatched.append(len(dispatched))
        return state, total, np.full(1, np.nan if len(dispatched) == 3 else 0.0)

    def advance(num_steps):
        read.append(num_steps)

    progress = types.SimpleNamespace(advance=advance)
    fake = [programs.Program(1, dispatch)] * 44
    with pytest.raises(UserError, match=r"^step 3 left"):
        programs.train_epoch(fake, state, arrays, np.arange(44), progress)
    # Not at once, but long before the end of the epoch.
    assert len(dispatched) == 3 + 32


def test_the_training_step_lowers_for_tpu(dataset):
    config = tiny.make_resolved(mixup=0.2, cutout=2)
    state = make_train_state(config, dataset)
    steps = programs.make_steps(config, tiny.NUM_CLASSES)
    arrays = {"image": dataset.train.images, "label": dataset.train.labels}

    def take(params, batch_stats, opt_state, key_data, arrays, permutation):
        new, total, _ = steps(
            state.replace(
                params=params,
                batch_stats=batch_stats,
                opt_state=opt_state,
                key=jax.random.wrap_key_data(key_data),
            ),
            Metrics.empty(),
            arrays,
            permutation,
            num_steps=2,
        )
        return new.params, new.opt_state, total.compute()

    exported = jax.export.export(jax.jit(take), platforms=["tpu"])(
        state.params,
        state.batch_stats,
        state.opt_state,
        jax.random.key_data(state.key),
        arrays,
        np.arange(44, dtype=np.int32),
    )
    assert exported.platforms == ("tpu",)
    assert "stablehlo.convolution" in exported.mlir_module()


def test_seeds_rates_and_decays_share_programs_and_other_recipes_do_not(dataset):
    programs._compile.cache_clear()

    def last_bits(**changes):
        config = tiny.make_resolved(num_epochs=1, **changes)
        state = make_train_state(config, dataset)
        ((last, _),) = loop.train_epochs(config, dataset, state, [])
        return checksums(last.params)

    changes = {"seed": 1, "learning_rate": 0.2, "weight_decay": 0.1}
    changes |= {"dropout_rate": 0.5}
    first, shared = last_bits(), last_bits(**changes)
    assert first != shared
    assert programs._compile.cache_info().misses == 1
    last_bits(momentum=0.5)
    assert programs._compile.cache_info().misses == 2
    # It was not the program of the first that was run with what was baked into it.
    programs._compile.cache_clear()
    step_lib._share_maker.cache_clear()
    assert last_bits(**changes) == shared
