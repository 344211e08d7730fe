"""The most confident mistakes of a run, with their pictures where the data are."""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dwsep_jax.data import cache
from dwsep_jax.data.read import find_data_dir, find_version_dir, read
from dwsep_jax.errors import UserError
from dwsep_jax.report.files import Run

MAX_MISTAKES = 12


class Mistake(NamedTuple):
    """An image that was taken for another class.

    Attributes:
      id: of the example.
      truth: the name of its class.
      prediction: the name of the class that it was taken for.
      confidence: the probability of the prediction.
    """

    id: str
    truth: str
    prediction: str
    confidence: float


def find_mistakes(
    predictions: dict[str, np.ndarray], names: list[str]
) -> list[Mistake]:
    """Return the mistakes of the highest confidence first, at most `MAX_MISTAKES`."""
    probabilities, labels = predictions["probabilities"], predictions["label"]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    return [
        Mistake(
            str(predictions["id"][i]),
            names[labels[i]],
            names[predicted[i]],
            float(confidence[i]),
        )
        for i in order
    ]


def find_images(run: Run, ids: list[str]) -> list[np.ndarray]:
    """Return the test images of these ids, uint8 (H, W, C) each.

    Raises:
      UserError: that says why there are none, as the end of a sentence.
    """
    config: dict[str, Any] = (run.config or {}).get("resolved", {})
    if not config:
        raise UserError("there is no config.json to name the dataset")
    name = config["dataset"]
    data_dir = find_data_dir(config.get("data_dir"))
    version_dir = find_version_dir(data_dir, name) or find_version_dir(
        cache.user_cache() / "tensorflow_datasets", name
    )
    if version_dir is None:
        raise UserError(f"{name} is not in {data_dir}")
    try:
        _, splits = cache.load(version_dir, read)
    except OSError as error:
        raise UserError(f"{version_dir} cannot be read ({error.strerror})") from error
    test = splits["test"]
    places = np.minimum(np.searchsorted(test.ids, ids), len(test.ids) - 1)
    if not np.array_equal(test.ids[places], ids):
        raise UserError(f"{version_dir} holds other images than those of the run")
    return list(test.images[places])


def to_data_uri(image: np.ndarray) -> str:
    """Return an image, uint8 (H, W, C), as a PNG inside an address."""
    content = io.BytesIO()
    Image.fromarray(np.squeeze(image)).save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
