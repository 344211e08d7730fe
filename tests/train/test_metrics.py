"""Metrics: sums that count once, and reports against scikit-learn and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk_metrics

from dwsep_jax.train import metrics


def test_masked_sums_are_divided_once():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [5.0, 0.0], [0.0, 1.0]])
    labels = jnp.array([0, 0, 0, 1])
    total = metrics.Metrics.empty()
    for losses, mask in (
        ([1.0, 2.0, 4.0, 8.0], [True] * 4),
        ([16.0, 1e9, 1e9, 1e9], [True, False, False, False]),
    ):
        batch = metrics.measure(jnp.array(losses), logits, labels, jnp.array(mask))
        total = total.merge(batch)
    values = total.compute()
    assert float(values["loss"]) == pytest.approx(31 / 5)
    assert float(values["accuracy"]) == pytest.approx(4 / 5)


def test_classification_report_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)  # The last of four classes has no example.
    scores = rng.normal(size=(200, 4))
    scores[np.arange(200), labels] += 1
    scores[:, 1] -= 100  # The second class is never predicted.
    scores = np.pad(scores, ((0, 0), (0, 1)), constant_values=-100)
    names, predictions = ("a", "b", "c", "d", "absent"), scores.argmax(1)
    report = metrics.classification_report(labels, scores, names)
    for average in ("macro", "weighted", "micro"):
        options = {"average": average, "zero_division": 0}
        want = sk_metrics.precision_recall_fscore_support(
            labels, predictions, **options
        )
        for key, value in zip(("precision", "recall", "f1"), want, strict=False):
            assert report[key][average] == value
    accuracy = (predictions == labels).mean()
    assert report["f1"]["micro"] == pytest.approx(accuracy)
    matrix = np.array(report["confusion_matrix"])  # Rows are truth.
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(labels, minlength=5))
    np.testing.assert_array_equal(matrix.sum(0), np.bincount(predictions, minlength=5))
    rows = report["per_class"]
    assert [row["name"] for row in rows] == list(names)
    assert [row["support"] for row in rows] == matrix.sum(1).tolist()
    # Never predicted: precision 0. Without examples: recall 0.
    assert rows[1]["precision"] == 0
    assert rows[3]["recall"] == 0
    perfect = metrics.classification_report(labels, np.eye(5)[labels], names)
    assert perfect["f1"]["macro"] == 1  # Three of the five classes occur.
    assert rows[0]["recall"] == matrix[0, 0] / matrix[0].sum()


def test_calibration_by_hand():
    labels = np.array([0, 1, 1, 0])
    probabilities = np.array([[1.0, 0.0], [0.3, 0.7], [0.7, 0.3], [0.5, 0.5]])
    got = metrics.calibration(labels, probabilities)
    # Bins of 1/15: 0.5 alone, both 0.7 together, 1.0 alone.
    assert got["ece"] == pytest.approx((abs(1 - 0.5) + 2 * abs(0.5 - 0.7) + 0) / 4)
    assert got["nll"] == pytest.approx(-np.log([1.0, 0.7, 0.3, 0.5]).mean())
    squares = [0, 0.3**2 * 2, 0.7**2 * 2, 0.5**2 * 2]
    assert got["brier"] == pytest.approx(np.mean(squares))
    bins = got["bins"]
    assert [b["count"] for b in bins] == [0] * 7 + [1, 0, 0, 2, 0, 0, 0, 1]
    assert bins[0]["confidence"] is None
    edges = {"low": pytest.approx(10 / 15), "high": pytest.approx(11 / 15)}
    means = {"confidence": pytest.approx(0.7), "accuracy": 0.5}
    assert bins[10] == {"count": 2, **edges, **means}
    assert bins[14]["accuracy"] == 1.0
    # A confident mistake stays finite.
    got = metrics.calibration(np.array([1]), np.array([[1.0, 0.0]]))
    assert 80 < got["nll"] < 90
    assert (got["ece"], got["brier"]) == (1.0, 2.0)


def test_the_temperature_undoes_too_much_confidence():
    # Of ten such examples eight are right, but the odds are squared: T = 2.
    odds = np.array([[0.8, 0.2], [0.1, 0.9]]) ** 2
    probabilities = (odds / odds.sum(1, keepdims=True)).repeat(10, 0).astype(np.float32)
    labels = np.array([0] * 8 + [1] * 2 + [0] + [1] * 9)
    found = metrics.fit_temperature(labels, probabilities)
    assert found == pytest.approx(2, rel=1e-3)
    scaled = metrics.with_temperature(probabilities, found)
    np.testing.assert_allclose(scaled[::10], [[0.8, 0.2], [0.1, 0.9]], rtol=1e-3)
    before, after = (metrics.calibration(labels, p) for p in (probabilities, scaled))
    assert after["ece"] < 1e-3 < before["ece"]
    assert after["nll"] < before["nll"]
    unchanged = metrics.with_temperature(probabilities, 1.0)
    np.testing.assert_allclose(unchanged, probabilities, rtol=1e-6)


def test_the_temperature_has_limits():
    labels, certain = np.array([0, 1, 1]), np.eye(2, dtype=np.float32)
    assert metrics.fit_temperature(labels, certain[labels]) == 1
    # Always wrong: the less certain, the better.
    hottest = metrics.fit_temperature(labels, certain[1 - labels])
    assert hottest == pytest.approx(20, rel=1e-3)
