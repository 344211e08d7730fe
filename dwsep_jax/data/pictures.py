"""Picture files: PNG, JPEG or WebP of any mode, turned as their EXIF says."""

import os
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
# Pillow's names for gray, also with alpha and with 16 bits.
_GRAY = ("1", "L", "LA", "I", "I;16", "I;16B")


def read(
    path: str | os.PathLike | IO[bytes],
    size: tuple[int, int] | None = None,
    mode: str | None = None,
) -> Image.Image | str:
    """Return a picture, or the reason why it cannot be read.

    Args:
      path: of the file; or the file itself, open.
      size: (width, height); the picture is resized to cover it, and its center is cut
        out. None keeps the picture's own.
      mode: `L` or `RGB`; None for `L` where the file is gray.
    """
    is_open = hasattr(path, "read")
    if not is_open and not os.path.isfile(path):  # Nor a pipe: it would wait for ever.
        return "no such file"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            ImageOps.exif_transpose(image, in_place=True)
            picture = convert(image, mode or ("L" if image.mode in _GRAY else "RGB"))
        return fit(picture, size) if size else picture
    except UnidentifiedImageError:
        return "not a PNG, JPEG or WebP picture"
    except Exception as error:  # Damage raises any of a dozen types.
        reason = getattr(error, "strerror", None) or str(error)
        return next(iter(reason.splitlines()), type(error).__name__)


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Return a picture as `L` or `RGB`; what is transparent shows white."""
    if image.mode.startswith("I"):  # 16 bits; Pillow itself takes the high byte of RGB.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the center of a picture, resized to cover (width, height)."""
    return image if image.size == size else ImageOps.fit(image, size)


def resize(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resize and crop images, uint8 (N, H, W, C), to squares of `image_size` pixels."""
    size = (image_size, image_size)
    if images.shape[1:3] == size:
        return images
    resized = np.empty((len(images), *size, images.shape[-1]), np.uint8)
    for i, image in enumerate(images):
        channels = image if image.shape[-1] == 3 else image[..., 0]
        resized[i] = np.atleast_3d(fit(Image.fromarray(channels), size))
    return resized
