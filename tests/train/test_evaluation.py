"""Evaluation: every example once, whatever the batch size."""

import os

import jax
import numpy as np
import pytest

from dwsep_jax.data.augment import normalize
from dwsep_jax.errors import UserError
from dwsep_jax.train import evaluation
from dwsep_jax.train.metrics import calibration, fit_temperature, with_temperature
from dwsep_jax.workdir import read_json
from tests import tiny


@pytest.fixture(scope="module")
def state():
    return tiny.make_state(block_sizes=(1,))


def test_every_example_counts_once_whatever_the_batch_size(state, dataset):
    split = dataset.test
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, normalize(split.images))
    log_p = np.asarray(jax.nn.log_softmax(logits))
    loss = -log_p[np.arange(13), split.labels].mean()
    accuracy = (log_p.argmax(1) == split.labels).mean()
    for batch_size in (1, 5, 13, 20):
        values, probabilities = evaluation.evaluate(state, split, batch_size)
        assert probabilities.shape == (13, 3)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, np.exp(log_p), rtol=1e-4, atol=1e-6)
        assert values["loss"] == pytest.approx(loss, rel=1e-5)
        assert values["accuracy"] == pytest.approx(accuracy, rel=1e-6)
    # All splits share the compiled step of a batch size.
    jitted = evaluation._jit_eval_step(False, None)
    before = jitted._cache_size()
    for other in (dataset.train, dataset.validation):
        evaluation.evaluate(state, other, 5)
    assert jitted._cache_size() == before


def test_files_hold_what_the_contract_says(state, dataset, tmp_path):
    config = tiny.make_config(seed=5)

    for name, suffix in (("test", ""), ("train", "-train")):
        arguments = (config, tmp_path, dataset, state, name, "the network")
        returned = evaluation.evaluate_and_write(*arguments)
        written = read_json(tmp_path, f"evaluation{suffix}")
        assert written == returned
        split = getattr(dataset, name)
        want = {"schema": 1, "split": name, "weights": "raw", "epoch": 0}
        want["num_examples"] = len(split.labels)
        assert written.items() >= want.items()
        for key in ("precision", "recall", "f1"):
            assert written[key].keys() == {"macro", "weighted", "micro"}
        assert [c["name"] for c in written["per_class"]] == ["red", "green", "blue"]
        assert np.sum(written["confusion_matrix"]) == len(split.labels)
        assert written["calibration"].keys() == {"ece", "nll", "brier", "bins"}
        with np.load(tmp_path / f"predictions{suffix}.npz") as arrays:
            assert set(arrays) == {"id", "label", "probabilities"}
            np.testing.assert_array_equal(arrays["id"], split.ids)
            np.testing.assert_array_equal(arrays["label"], split.labels)
            probabilities = arrays["probabilities"]
        assert written["accuracy"] == (probabilities.argmax(1) == split.labels).mean()
        # Two ways to the same number: on the device, and from the predictions.
        nll = written["calibration"]["nll"]
        assert nll == pytest.approx(written["loss"], rel=1e-5)
        assert written["image_shape"] == [8, 8, 3]
        # Fitted on validation, whatever is evaluated.
        _, on_validation = evaluation.evaluate(state, dataset.validation, 8)
        want = fit_temperature(dataset.validation.labels, on_validation)
        assert written["temperature"] == want
        assert want != fit_temperature(split.labels, probabilities)
        want = calibration(split.labels, with_temperature(probabilities, want))
        assert written["calibrated"] == {key: want[key] for key in ("ece", "nll")}
        environment = written["environment"]
        assert (environment["seed"], environment["device_count"]) == (5, 2)
        assert environment["versions"]["jax"] == jax.__version__
    assert not list(tmp_path.glob("*.tmp"))


def test_an_unwritable_result_is_shown(state, dataset, tmp_path, monkeypatch, capsys):
    def deny(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", deny)
    arguments = (tiny.make_config(), tmp_path, dataset, state, "test", "the network")
    with pytest.raises(UserError, match=r"above cannot .* \(Permission denied\)"):
        evaluation.evaluate_and_write(*arguments)
    assert "test accuracy" in capsys.readouterr().out
