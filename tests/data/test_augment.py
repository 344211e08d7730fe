"""Augmentation: every position, both sides, and a pure function of the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwsep_jax.data import augment

KEY = jax.random.key(0)


def test_random_flip_mirrors_about_half_and_nothing_else():
    images = jax.random.randint(KEY, (2000, 2, 3, 1), 0, 256).astype(jnp.uint8)
    y = np.asarray(augment.random_flip(KEY, images))
    same = (y == images).all((1, 2, 3))
    mirrored = (y == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 900 < mirrored.sum() < 1100


def test_random_shift_takes_all_81_positions_about_equally():
    n = 81 * 200
    image = jnp.arange(1, 101, dtype=jnp.uint8).reshape(1, 10, 10, 1)
    y = np.asarray(augment.random_shift(KEY, jnp.tile(image, (n, 1, 1, 1)), 4))
    padded = np.pad(np.asarray(image[0]), ((4, 4), (4, 4), (0, 0)))
    counts = []
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + 10, left : left + 10]
            counts.append((y == crop).all((1, 2, 3)).sum())
    assert sum(counts) == n
    # 200 expected; 5 standard deviations are 71.
    assert min(counts) > 129
    assert max(counts) < 271


def test_cutout_zeroes_a_square_whose_center_is_any_pixel():
    y = np.asarray(augment.cutout(KEY, jnp.ones((4000, 6, 5, 2)), 3))
    holes = y[..., 0] == 0
    np.testing.assert_array_equal(y[..., 0], y[..., 1])
    sizes, counts = np.unique(holes.sum((1, 2)), return_counts=True)
    # A corner leaves 2x2, an edge 2x3, the inside 3x3.
    assert sizes.tolist() == [4, 6, 9]
    np.testing.assert_allclose(counts / 4000, [4 / 30, 14 / 30, 12 / 30], atol=0.04)


def test_mixup_blends_images_and_labels_by_the_same_share():
    images = jnp.arange(8.0).reshape(8, 1, 1, 1)
    labels = jax.nn.one_hot(jnp.arange(8), 8)
    x, y = augment.mixup(KEY, images, labels, 1.0)
    np.testing.assert_allclose(y.sum(1), np.ones(8), rtol=1e-6)
    np.testing.assert_allclose(x[:, 0, 0, 0], y @ jnp.arange(8.0), rtol=1e-5)
    share = np.asarray(y)[np.arange(8), np.arange(8)]
    assert len(np.unique(share.round(5))) <= 2
    assert 0 < share.min() < 1


OFF = dict(flip=False, shift=0, cutout=0, mixup=0.0, num_classes=4)
LABELS = jnp.arange(16) % 4


@pytest.mark.parametrize(
    "option", [{"flip": True}, {"shift": 2}, {"cutout": 4}, {"mixup": 1.0}], ids=str
)
def test_each_option_acts_alone(option):
    images = jax.random.randint(KEY, (16, 8, 8, 3), 0, 256).astype(jnp.uint8)
    plain, labels = augment.Augment(**OFF)(KEY, images, LABELS)
    np.testing.assert_allclose(plain, images / 127.5 - 1, atol=1e-6)
    assert labels is LABELS
    on = augment.Augment(**OFF | option)
    y, labels = on(KEY, images, LABELS)
    if "mixup" in option:
        # The images obey the shares that show in the labels.
        key = jax.random.split(KEY, 4)[3]
        want = augment.mixup(key, plain, jax.nn.one_hot(LABELS, 4), 1.0)
        np.testing.assert_array_equal(y, want[0])
        np.testing.assert_array_equal(labels, want[1])
    else:
        assert labels is LABELS
    assert y.shape == images.shape
    assert y.dtype == jnp.float32
    assert not np.array_equal(y, plain)
    np.testing.assert_array_equal(y, on(KEY, images, LABELS)[0])
    assert not np.array_equal(y, on(jax.random.key(1), images, LABELS)[0])


def test_options_draw_by_keys_of_their_own(monkeypatch):
    keys = []

    def record(function):
        def spy(key, *args):
            keys.append(tuple(jax.random.key_data(key).tolist()))
            return function(key, *args)

        return spy

    for name in ("random_flip", "random_shift", "cutout", "mixup"):
        monkeypatch.setattr(augment, name, record(getattr(augment, name)))
    on = OFF | dict(flip=True, shift=1, cutout=2, mixup=0.5)
    augment.Augment(**on)(KEY, jnp.zeros((16, 8, 8, 3), jnp.uint8), LABELS)
    assert len(set(keys)) == len(keys) == 4
