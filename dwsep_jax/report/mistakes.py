"""The most confident mistakes of a run, and their pictures."""

import base64
import io

import numpy as np
from PIL import Image

from dwsep_jax.data.dataset import find_test
from dwsep_jax.data.read import find_data_dir
from dwsep_jax.errors import UserError
from dwsep_jax.report import charts, page
from dwsep_jax.report.files import Run
from dwsep_jax.report.format import percent

MAX_MISTAKES = 12
_PICTURE_SIZE = 96


def show_mistakes(run: Run) -> list[page.Block]:
    """Return the pictures of an evaluated run's mistakes, or why there are none."""
    if run.predictions is None:
        return ["Left out: no predictions.npz; --mode=evaluate writes it."]
    mistakes = find_mistakes(run)
    if not mistakes:
        return ["None: every test image was classified correctly."]
    try:
        images = find_images(run, [mistake["id"] for mistake in mistakes])
    except UserError as error:
        return [f"Left out: {error}."]
    shown = [
        mistake | {"uri": to_data_uri(image)}
        for mistake, image in zip(mistakes, images, strict=True)
    ]
    title = "Test images, each with its true class, the prediction and its confidence"
    return [page.Chart("mistakes", title, charts.pictures(shown), 560)]


def find_mistakes(run: Run) -> list[dict[str, str]]:
    """Return {id, caption} of at most `MAX_MISTAKES`, the most confident ones first."""
    ids, labels, probabilities = (
        run.predictions[key] for key in ("id", "label", "probabilities")
    )
    names = [row["name"] for row in run.evaluation["per_class"]]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    mistakes = []
    for i in order:
        lines = [names[labels[i]], f"as {names[predicted[i]]}", percent(confidence[i])]
        mistakes.append({"id": str(ids[i]), "caption": "\n".join(lines)})
    return mistakes


def find_images(run: Run, ids: list[str]) -> list[np.ndarray]:
    """Return the test images with these ids, uint8 (H, W, C) each.

    Raises:
      UserError: if they are not available; the message completes a sentence.
    """
    if run.config is None:
        raise UserError("there is no config.json to name the dataset")
    config = run.config["resolved"]
    data_dir = find_data_dir(config.data_dir)
    if (test := find_test(config)) is None:
        raise UserError(f"{config.dataset} is not in {data_dir}")
    places = np.minimum(np.searchsorted(test.ids, ids), len(test.ids) - 1)
    if not np.array_equal(test.ids[places], ids):
        raise UserError(f"{config.dataset} in {data_dir} has other test images")
    return list(test.images[places])


def to_data_uri(image: np.ndarray) -> str:
    """Return an image, uint8 (H, W, C), as the data URI of an enlarged PNG."""
    factor = max(1, _PICTURE_SIZE // max(image.shape[:2]))
    enlarged = np.squeeze(image.repeat(factor, axis=0).repeat(factor, axis=1))
    content = io.BytesIO()
    Image.fromarray(enlarged).save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
