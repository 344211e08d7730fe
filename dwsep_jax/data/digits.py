"""The 1,797 handwritten digits that ship with scikit-learn; nothing to download.

Optical recognition of handwritten digits (UCI, 1998): 8x8 pixels in 17 shades of gray.
"""

import numpy as np

from dwsep_jax.data.read import Decoded, Split, make_ids

SIZE = 32


def read() -> Decoded:
    """Return the digits as 32x32 RGB: 1,437 in `train` and 360 in `test`.

    Every fifth image of each class is a test image.
    """
    from sklearn import datasets  # Takes a second to import.

    digits = datasets.load_digits()
    images = np.repeat(enlarge(digits.images)[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    every = Split(images, labels, make_ids("digit", len(labels)))
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    splits = {"train": every.take(~is_test), "test": every.take(is_test)}
    return tuple(map(str, digits.target_names)), splits


def enlarge(ink: np.ndarray) -> np.ndarray:
    """Resize digits (..., 8, 8) of 0..16 to uint8 (..., 32, 32) of 0..255, bilinearly.

    The weights are multiples of 1/8, so the result is exact on every machine.
    """
    length = ink.shape[-1]
    centers = (np.arange(SIZE) + 0.5) * length / SIZE - 0.5
    # weights[i, j]: the share of source pixel j in pixel i; edges are clamped.
    units = np.eye(length)
    weights = np.stack([np.interp(centers, range(length), unit) for unit in units], 1)
    return np.rint(weights @ ink @ weights.T * 255 / 16).astype(np.uint8)
