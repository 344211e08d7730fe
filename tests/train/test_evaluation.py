"""Evaluation: every example once, whatever the batch size."""

import json

import jax
import numpy as np
import pytest

from dwsep_jax.data.augment import normalize
from dwsep_jax.errors import ConfigError
from dwsep_jax.train import evaluation as evaluate_lib
from tests import tiny


@pytest.fixture(scope="module")
def state():
    return tiny.make_state()


@pytest.fixture(scope="module")
def dataset():
    return tiny.make_dataset()


@pytest.mark.parametrize("batch_size", [1, 5, 13, 20])
def test_every_example_counts_once(state, dataset, batch_size):
    split = dataset.test
    values, probabilities = evaluate_lib.evaluate(state, split, batch_size)
    assert probabilities.shape == (13, 3)
    assert probabilities.dtype == np.float32
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, normalize(split.images))
    log_p = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(probabilities, np.exp(log_p), rtol=1e-4, atol=1e-6)
    loss = -log_p[np.arange(13), split.labels].mean()
    assert values["loss"] == pytest.approx(loss, rel=1e-5)
    accuracy = (log_p.argmax(1) == split.labels).mean()
    assert values["accuracy"] == pytest.approx(accuracy, rel=1e-6)


def test_the_step_is_compiled_once_for_all_splits(state, dataset):
    jitted = evaluate_lib._jit_eval_step(False)
    before = jitted._cache_size()
    for split in (dataset.train, dataset.validation, dataset.test):
        evaluate_lib.evaluate(state, split, 7)
    assert jitted._cache_size() == before + 1


def test_files_hold_what_the_contract_says(state, dataset, tmp_path):
    config = tiny.make_config(seed=5)
    for name, suffix in [("test", ""), ("validation", "-validation")]:
        returned = evaluate_lib.evaluate_and_write(
            config, tmp_path, dataset, state, name
        )
        path = tmp_path / f"evaluation{suffix}.json"
        evaluation = json.loads(path.read_text())
        assert evaluation == returned
        assert evaluation["schema"] == 1
        assert evaluation["split"] == name
        assert evaluation["weights"] == "raw"
        assert evaluation["epoch"] == 0
        split = {"test": dataset.test, "validation": dataset.validation}[name]
        assert evaluation["num_examples"] == len(split.labels)
        for key in ("precision", "recall", "f1"):
            assert evaluation[key].keys() == {"macro", "weighted", "micro"}
        assert [row["name"] for row in evaluation["per_class"]] == [
            "red",
            "green",
            "blue",
        ]
        assert np.sum(evaluation["confusion_matrix"]) == len(split.labels)
        assert evaluation["calibration"].keys() == {"ece", "nll", "brier", "bins"}
        # Two ways to the same number: on the device, and from the predictions.
        assert evaluation["calibration"]["nll"] == pytest.approx(
            evaluation["loss"], rel=1e-5
        )
        assert evaluation["environment"]["seed"] == 5
        assert evaluation["environment"]["device_count"] == 2
        assert evaluation["environment"]["versions"]["jax"] == jax.__version__

        with np.load(tmp_path / f"predictions{suffix}.npz") as arrays:
            assert set(arrays) == {"id", "label", "probabilities"}
            np.testing.assert_array_equal(arrays["id"], split.ids)
            np.testing.assert_array_equal(arrays["label"], split.labels)
            accuracy = (arrays["probabilities"].argmax(1) == split.labels).mean()
        assert evaluation["accuracy"] == pytest.approx(accuracy, rel=1e-6)
    assert not list(tmp_path.glob("*.tmp"))


def test_the_train_split_is_all_that_is_trained_on(state, dataset, tmp_path):
    config = tiny.make_config()
    evaluation = evaluate_lib.evaluate_and_write(
        config, tmp_path, dataset, state, "train"
    )
    assert evaluation["num_examples"] == 44


def test_an_unknown_split_is_refused(state, dataset, tmp_path):
    with pytest.raises(ConfigError, match="one of train, validation, test"):
        evaluate_lib.evaluate_and_write(
            tiny.make_config(), tmp_path, dataset, state, "val"
        )
