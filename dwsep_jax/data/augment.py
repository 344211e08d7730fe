"""Augmentation inside the jitted step: a key and a batch in, a batch out."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


def normalize(images: jax.Array) -> jax.Array:
    """Map uint8 images from [0, 255] to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each of the images (N, H, W, C) left to right with probability 1/2."""
    mirrored = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def random_shift(key: jax.Array, images: jax.Array, max_shift: int) -> jax.Array:
    """Move each of the images (N, H, W, C) by up to `max_shift` pixels each way.

    All (2 max_shift + 1)^2 positions are equally likely; what comes in from outside
    is zero. Equal to padding by `max_shift` and cropping at random.
    """
    n, height, width, channels = images.shape
    pad = (max_shift, max_shift)
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    offsets = jax.random.randint(key, (n, 2), 0, 2 * max_shift + 1)

    def crop(image, offset):
        start = (offset[0], offset[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, offsets)


def cutout(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Zero a square of each of the images (N, H, W, C) (DeVries and Taylor 2017).

    The center is any pixel, so a part of the square, `size` pixels wide, may lie
    outside. After `normalize`, zero is middle gray.
    """
    n, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)

    def inside(key, length):
        first = jax.random.randint(key, (n, 1), 0, length) - size // 2
        distance = jnp.arange(length)[None] - first
        return (distance >= 0) & (distance < size)

    rows, columns = inside(row_key, height), inside(column_key, width)
    hole = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Blend each example with another one of the batch (Zhang et al. 2018).

    Args:
      key: a random key.
      images: (N, H, W, C), floating point.
      labels: probabilities of the classes, (N, K).
      alpha: the share of the first example is drawn from Beta(alpha, alpha), once for
        the batch.

    Returns:
      Blended images and labels of the same shapes.
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, dtype=images.dtype)
    other = jax.random.permutation(order_key, images.shape[0])
    blended = share * images + (1 - share) * images[other]
    return blended, share * labels + (1 - share) * labels[other]


@dataclasses.dataclass(frozen=True)
class Augment:
    """(key, images, labels) -> (images, labels), changed at random.

    uint8 images (N, H, W, C) become float32 in [-1, 1]: flip, shift, normalize, cutout,
    mixup. Classes, int (N,), become probabilities (N, num_classes) with mixup. Equal
    ones are one program.
    """

    flip: bool
    shift: int
    cutout: int
    mixup: float
    num_classes: int

    def __call__(
        self, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        flip_key, shift_key, cutout_key, mixup_key = jax.random.split(key, 4)
        if self.flip:
            images = random_flip(flip_key, images)
        if self.shift:
            images = random_shift(shift_key, images, self.shift)
        images = normalize(images)
        if self.cutout:
            images = cutout(cutout_key, images, self.cutout)
        if self.mixup:
            labels = jax.nn.one_hot(labels, self.num_classes)
            images, labels = mixup(mixup_key, images, labels, self.mixup)
        return images, labels


def make_augment(config: ConfigDict, num_classes: int) -> Augment:
    """Return the augmentation of a configuration."""
    return Augment(config.flip, config.shift, config.cutout, config.mixup, num_classes)
