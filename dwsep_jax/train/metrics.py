"""Metrics: sums on the device, and reports that the host makes of predictions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

NUM_CALIBRATION_BINS = 15
# Beyond, probabilities are as good as certain, or all the same.
_TEMPERATURES = (0.05, 20.0)


class Metrics(struct.PyTreeNode):
    """Mean loss and accuracy: summed on the device, divided once, on the host.

    Attributes:
      loss: sum over examples, float32 scalar.
      correct: number of examples, float32 scalar.
      count: number of examples, int32 scalar.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    @classmethod
    def empty(cls) -> "Metrics":
        """Return the sums over no examples."""
        return cls(jnp.float32(0), jnp.float32(0), jnp.int32(0))

    def merge(self, other: "Metrics") -> "Metrics":
        """Return the sums over the examples of both."""
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> dict[str, jax.Array]:
        """Return the means."""
        count = self.count.astype(jnp.float32)
        return {"loss": self.loss / count, "accuracy": self.correct / count}


def measure(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> Metrics:
    """Return the sums over a batch.

    Args:
      losses: the loss of each example, (N,).
      logits: (N, K).
      labels: classes, int (N,).
      mask: bool (N,); examples where it is False are not counted.
    """
    correct = jnp.argmax(logits, axis=-1) == labels
    return Metrics(
        loss=jnp.where(mask, losses, 0).sum(),
        correct=(mask & correct).astype(jnp.float32).sum(),
        count=mask.sum(dtype=jnp.int32),
    )


def classification_report(
    labels: np.ndarray, probabilities: np.ndarray, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Return accuracy, precision, recall, F1 and the confusion matrix.

    Args:
      labels: true classes, int (N,).
      probabilities: (N, K); the prediction is the first of the largest.
      class_names: K names.

    Returns:
      `accuracy`. `precision`, `recall`, `f1`: each {macro, weighted, micro}.
      `per_class`: a list of {name, precision, recall, f1, support}.
      `confusion_matrix`: K rows (truth) of K counts. A class that is never predicted
      has precision 0, a class without examples recall 0, as in scikit-learn with
      `zero_division=0`. The averages are, as there, over the classes that occur among
      labels or predictions.
    """
    from sklearn import metrics as sk_metrics

    predictions = probabilities.argmax(axis=-1)
    classes = np.arange(len(class_names))
    names = ("precision", "recall", "f1")

    def scores(average, classes=None):
        return sk_metrics.precision_recall_fscore_support(
            labels, predictions, labels=classes, average=average, zero_division=0
        )

    report: dict[str, Any] = {name: {} for name in names}
    report["accuracy"] = float((predictions == labels).mean())
    for average in ("macro", "weighted", "micro"):
        for name, value in zip(names, scores(average)[:3], strict=True):
            report[name][average] = float(value)
    keys, columns = ("name", *names, "support"), scores(None, classes)
    report["per_class"] = [
        dict(zip(keys, row, strict=True))
        for row in zip(class_names, *(c.tolist() for c in columns), strict=True)
    ]
    matrix = sk_metrics.confusion_matrix(labels, predictions, labels=classes)
    report["confusion_matrix"] = matrix.tolist()
    return report


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Return how well calibrated the probabilities are (Guo et al. 2017).

    Args:
      labels: true classes, int (N,).
      probabilities: (N, K).

    Returns:
      `ece`: expected calibration error over 15 equal-width bins of the top
      probability. `nll`: mean negative log likelihood, in nats. `brier`: squared error
      of the probabilities, summed over classes, mean over examples. `bins`: a list of
      {low, high, count, confidence, accuracy}, the last two null in an empty bin.
    """
    probabilities = probabilities.astype(np.float64)
    n = len(labels)
    true_probability = probabilities[np.arange(n), labels]
    one_hot = np.eye(probabilities.shape[1])[labels]
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels

    # Bins are (low, high], the first one closed.
    edges = np.linspace(0, 1, NUM_CALIBRATION_BINS + 1)
    index = np.clip(np.searchsorted(edges, confidence) - 1, 0, NUM_CALIBRATION_BINS - 1)
    bins, ece = [], 0.0
    for b in range(NUM_CALIBRATION_BINS):
        inside = index == b
        count = int(inside.sum())
        mean = float(confidence[inside].mean()) if count else None
        accuracy = float(correct[inside].mean()) if count else None
        if count:
            ece += count / n * abs(accuracy - mean)
        bins.append(
            {"low": float(edges[b]), "high": float(edges[b + 1]), "count": count}
            | {"confidence": mean, "accuracy": accuracy}
        )
    tiny = np.finfo(np.float32).tiny
    return {
        "ece": ece,
        "nll": float(-np.log(np.maximum(true_probability, tiny)).mean()),
        "brier": float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        "bins": bins,
    }


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature of the least negative log likelihood (Guo et al. 2017).

    Args:
      labels: true classes, int (N,), of examples that are not those of the test.
      probabilities: (N, K), as for `with_temperature`.

    Returns:
      From 0.05 to 20; 1 where all predictions are right, as then less is ever better.
    """
    from scipy.optimize import minimize_scalar

    if (probabilities.argmax(axis=1) == labels).all():
        return 1.0

    def nll(log_temperature):
        scaled = with_temperature(probabilities, np.exp(log_temperature))
        return calibration(labels, scaled)["nll"]

    found = minimize_scalar(nll, bounds=np.log(_TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature), float64, of softmax(logits), (N, K)."""
    from scipy.special import softmax

    tiny = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(probabilities.astype(np.float64), tiny))
    return softmax(logits / temperature, axis=1)
