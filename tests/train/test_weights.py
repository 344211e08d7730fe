"""Runs that start from the weights of others."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.flax import save_file

from dwsep_jax.errors import UserError
from dwsep_jax.train import loop
from dwsep_jax.train.weights import load_weights
from dwsep_jax.workdir import load_config
from tests import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return the workdir and the state of a run with averaged weights."""
    workdir = tmp_path_factory.mktemp("source")
    loop.train_and_evaluate(tiny.make_config(ema_decay=0.9), workdir, on_test=False)
    with loop.Member(load_config(workdir), workdir, tiny.make_dataset()) as member:
        return workdir, member.state


def test_a_run_starts_from_averaged_weights_and_freezes_some(source, dataset, tmp_path):
    workdir, trained = source
    changes = {"init_from": str(workdir), "freeze": "stem/*, */norm/*", "seed": 1}
    config = tiny.make_resolved(**changes)
    with loop.Member(config, tmp_path, dataset) as member:
        want = {"params": trained.ema.params, "batch_stats": trained.ema.batch_stats}
        start = member.state
        got = {"params": start.params, "batch_stats": start.batch_stats}
        assert tiny.bits(got) == tiny.bits(want)
        before = tiny.bits(start.params)
        loop.train([member])
        after = tiny.bits(member.state.params)
    same = {name for name in after if after[name] == before[name]}
    frozen = {n for n in after if "'stem'" in n or "'norm'" in n[9:]}
    assert same == frozen - {"['norm']['bias']", "['norm']['scale']"}
    with loop.Member(config, tmp_path, dataset) as member:  # Resumed, not started anew.
        assert tiny.bits(member.state.params) == after


def test_averages_start_there_and_a_head_of_other_classes_at_random(source, dataset):
    workdir, trained = source
    four = dataclasses.replace(dataset, class_names=tuple("abcd"))
    config = tiny.make_resolved(init_from=str(workdir), ema_decay=0.5)
    initial = loop.make_state(config, four)
    state = load_weights(config, initial)
    for weights in (state, state.ema):
        head, trained_head = weights.params["head"], trained.params["head"]
        assert head["kernel"].shape[1] == trained_head["kernel"].shape[1] + 1
        assert tiny.bits(head) == tiny.bits(initial.params["head"])
        stems = weights.params["stem"], trained.ema.params["stem"]
        np.testing.assert_array_equal(*(stem["conv"]["kernel"] for stem in stems))


@pytest.fixture
def arrays(source):
    """Return {name: array} of the trained weights, as a file has them."""
    _, trained = source
    trees = {"params": trained.params, "batch_stats": trained.batch_stats}
    return flatten_dict(trees, sep="/")


def test_a_run_starts_from_a_file(arrays, dataset, tmp_path):
    path = tmp_path / "weights"
    halves = {name: a.astype(jnp.bfloat16) for name, a in arrays.items()}
    want = tiny.bits({name: a.astype(jnp.float32) for name, a in halves.items()})
    for separator in "./":
        save_file({n.replace("/", separator): a for n, a in halves.items()}, path)
        config = tiny.make_resolved(init_from=str(path))
        state = load_weights(config, loop.make_state(config, dataset))
        got = {"params": state.params, "batch_stats": state.batch_stats}
        assert tiny.bits(flatten_dict(got, sep="/")) == want


def test_a_file_that_does_not_fit_is_refused(arrays, tmp_path):
    path, kernel = tmp_path / "weights", "params/head/kernel"
    rest = {name: a for name, a in arrays.items() if name != kernel}
    for content, message in (
        (rest, f"{kernel} is missing there, "),
        (arrays | {"params/head/x": arrays[kernel]}, "head/x is .* there, missing"),
        ({"conv1.weight": jnp.ones(3)}, r"batch_stats/\S* is missing there, \("),
    ):
        save_file(content, path)
        with pytest.raises(UserError, match=f"init_from={path}: .*{message}"):
            tiny.make_resolved(init_from=str(path))
    path.write_bytes(b"PK\3\4, as torch.save writes it")
    with pytest.raises(UserError, match="weights: is not a safetensors file that can"):
        tiny.make_resolved(init_from=str(path))


def test_what_does_not_fit_is_refused(source, tmp_path):
    workdir, _ = source
    loop.open_workdir(tmp_path / "new", tiny.make_config(), lambda c: c)
    for changes, message in (
        ({"growth_rate": 6}, r"another network: .* is \(.*\) there, \("),
        ({"block_sizes": (1, 2)}, r"block1/.* is missing there, \("),
        ({"init_from": str(tmp_path)}, "no run was started there"),
        ({"init_from": str(tmp_path / "new")}, "has no checkpoint yet"),
        ({"freeze": "stem/*,block9/*"}, "no parameter is called block9/"),
    ):
        with pytest.raises(UserError, match=message):
            tiny.make_resolved(**{"init_from": str(workdir)} | changes)
