"""The 1,797 handwritten digits that ship inside scikit-learn, as a TFDS dataset."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dwsep_jax.console import say
from dwsep_jax.data import prepare as prepare_lib

SIZE = 32


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Optical recognition of handwritten digits (UCI, 1998): 8x8 in 17 greys.

    Enlarged to 32x32 RGB. Every fifth image, counted within the classes, is in `test`:
    360 of them, 1,437 in `train`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn, enlarged from 8x8.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # Nothing to download.
        from sklearn import datasets

        digits = datasets.load_digits()
        by_class = np.argsort(digits.target, kind="stable")
        test = np.zeros(len(by_class), bool)
        test[by_class[::5]] = True
        return {
            "train": self._generate_examples(digits, np.flatnonzero(~test)),
            "test": self._generate_examples(digits, np.flatnonzero(test)),
        }

    def _generate_examples(self, digits, indices):
        for i in indices.tolist():
            image = np.repeat(enlarge(digits.images[i])[:, :, None], 3, axis=2)
            yield (
                i,
                {
                    "id": f"digit_{i:05d}",
                    # PIL: TFDS needs TensorFlow to encode an array.
                    "image": Image.fromarray(image),
                    "label": int(digits.target[i]),
                },
            )


def enlarge(ink: np.ndarray) -> np.ndarray:
    """Return a digit of 0..16 (8, 8) as uint8 0..255 (32, 32), bilinear.

    The weights are eighths, so every machine computes the same bytes.
    """
    factor = SIZE // len(ink)
    centers = (np.arange(SIZE) + 0.5) / factor - 0.5
    # Row i: how much each of the 8 source pixels weighs in pixel i; edges are clamped.
    weights = np.stack(
        [np.interp(centers, np.arange(len(ink)), unit) for unit in np.eye(len(ink))],
        axis=1,
    )
    return np.rint(weights @ ink @ weights.T * 255 / 16).astype(np.uint8)


def prepare(data_dir: pathlib.Path, fallback_dir: pathlib.Path) -> pathlib.Path:
    """Write the digits under `data_dir`, else under `fallback_dir`; return where."""

    def make_builder(staging: pathlib.Path) -> Digits:
        return Digits(data_dir=staging, file_format="array_record")

    version = str(Digits.VERSION)
    try:
        return prepare_lib.prepare("digits", version, data_dir, make_builder)
    except OSError as error:
        say(f"{error}: preparing digits in {fallback_dir} instead")
        return prepare_lib.prepare("digits", version, fallback_dir, make_builder)
