"""The most confident mistakes of a run, and their pictures."""

import base64
import io

import numpy as np
from PIL import Image

from dwsep_jax.data.dataset import find_test
from dwsep_jax.data.read import find_data_dir
from dwsep_jax.errors import UserError
from dwsep_jax.report.files import Run
from dwsep_jax.report.format import percent

MAX_MISTAKES = 12
_PICTURE_SIZE = 96


def find_mistakes(
    predictions: dict[str, np.ndarray], names: list[str]
) -> list[dict[str, str]]:
    """Return at most `MAX_MISTAKES` mistakes, those of the highest confidence first.

    Args:
      predictions: id, label and probabilities, as predictions.npz holds them.
      names: of the classes.

    Returns:
      {id, true, predicted, confidence} of each, for people to read.
    """
    probabilities, labels = predictions["probabilities"], predictions["label"]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    return [
        {"id": str(predictions["id"][i]), "true": names[labels[i]]}
        | {"predicted": names[predicted[i]], "confidence": percent(confidence[i])}
        for i in order
    ]


def find_images(run: Run, ids: list[str]) -> list[np.ndarray]:
    """Return the test images with these ids, uint8 (H, W, C) each.

    Raises:
      UserError: if they are not available; the message completes a sentence.
    """
    config = (run.config or {}).get("resolved")
    if not config:
        raise UserError("there is no config.json to name the dataset")
    name, data_dir = config.dataset, find_data_dir(config.data_dir)
    if (test := find_test(config)) is None:
        raise UserError(f"{name} is not in {data_dir}")
    places = np.minimum(np.searchsorted(test.ids, ids), len(test.ids) - 1)
    if not np.array_equal(test.ids[places], ids):
        raise UserError(f"{data_dir} holds other images of {name} than the run had")
    return list(test.images[places])


def to_data_uri(image: np.ndarray) -> str:
    """Return an image, uint8 (H, W, C), as the data URI of an enlarged PNG."""
    factor = max(1, _PICTURE_SIZE // max(image.shape[:2]))
    enlarged = np.squeeze(image.repeat(factor, axis=0).repeat(factor, axis=1))
    content = io.BytesIO()
    Image.fromarray(enlarged).save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
