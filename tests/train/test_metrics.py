"""Metrics: sums that count once; reports against scikit-learn and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk_metrics

from dwsep_jax.train import metrics


def test_masked_sums_are_divided_once():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [5.0, 0.0], [0.0, 1.0]])
    labels = jnp.array([0, 0, 0, 1])
    first = metrics.measure(
        jnp.array([1.0, 2.0, 4.0, 8.0]), logits, labels, jnp.ones(4, bool)
    )
    second = metrics.measure(
        jnp.array([16.0, 1e9, 1e9, 1e9]),
        logits,
        labels,
        jnp.array([True, False, False, False]),
    )
    values = metrics.Metrics.empty().merge(first).merge(second).compute()
    assert float(values["loss"]) == pytest.approx(31 / 5)
    assert float(values["accuracy"]) == pytest.approx(4 / 5)


def make_predictions(num_classes=4, n=200):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes - 1, n)  # the last class has no example
    scores = rng.normal(size=(n, num_classes))
    scores[np.arange(n), labels] += 1
    scores[:, 1] -= 100  # the second class is never predicted
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return labels, probabilities.astype(np.float32)


def test_classification_report_equals_scikit_learn():
    labels, probabilities = make_predictions()
    names = ("a", "b", "c", "d")
    report = metrics.classification_report(labels, probabilities, names)
    predictions = probabilities.argmax(1)
    for average in ("macro", "weighted", "micro"):
        want = sk_metrics.precision_recall_fscore_support(
            labels, predictions, labels=range(4), average=average, zero_division=0
        )
        for key, value in zip(("precision", "recall", "f1"), want, strict=False):
            assert report[key][average] == value
    accuracy = (predictions == labels).mean()
    assert report["f1"]["micro"] == pytest.approx(accuracy)
    matrix = np.array(report["confusion_matrix"])
    assert matrix.sum() == 200
    # Rows are truth.
    assert matrix[0].sum() == (labels == 0).sum()
    assert matrix[:, 0].sum() == (predictions == 0).sum()
    rows = report["per_class"]
    assert [row["name"] for row in rows] == list(names)
    assert [row["support"] for row in rows] == [*np.bincount(labels), 0]
    # Never predicted: precision 0. Without an example: recall 0.
    assert rows[1]["precision"] == 0
    assert rows[3]["recall"] == 0
    assert rows[0]["recall"] == matrix[0, 0] / matrix[0].sum()


def test_calibration_by_hand():
    labels = np.array([0, 1, 1, 0])
    probabilities = np.array([[1.0, 0.0], [0.3, 0.7], [0.7, 0.3], [0.5, 0.5]])
    got = metrics.calibration(labels, probabilities)
    # Bins of 1/15: 0.5 alone, both 0.7 together, 1.0 alone.
    want = (abs(1 - 0.5) + 2 * abs(0.5 - 0.7) + 0) / 4
    assert got["ece"] == pytest.approx(want)
    assert got["nll"] == pytest.approx(-np.log([1.0, 0.7, 0.3, 0.5]).mean())
    squares = [0, 0.3**2 * 2, 0.7**2 * 2, 0.5**2 * 2]
    assert got["brier"] == pytest.approx(np.mean(squares))
    bins = got["bins"]
    assert len(bins) == 15
    assert sum(b["count"] for b in bins) == 4
    assert bins[0]["confidence"] is None
    assert bins[10] == {
        "low": pytest.approx(10 / 15),
        "high": pytest.approx(11 / 15),
        "count": 2,
        "confidence": pytest.approx(0.7),
        "accuracy": 0.5,
    }
    assert bins[14]["accuracy"] == 1.0


def test_calibration_of_a_sure_mistake_stays_finite():
    got = metrics.calibration(np.array([1]), np.array([[1.0, 0.0]]))
    assert 80 < got["nll"] < 90
    assert got["ece"] == 1.0
    assert got["brier"] == 2.0
