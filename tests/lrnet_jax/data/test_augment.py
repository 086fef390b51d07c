"""Normalisation and augmentation on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrnet_jax.data.augment import augment, normalize

BATCH, HEIGHT, WIDTH = 64, 5, 6
IMAGES = np.random.default_rng(0).integers(1, 256, (BATCH, HEIGHT, WIDTH, 3), np.uint8)
INDEX = np.arange(BATCH, dtype=np.int32)
KEY = jax.random.key(7)

augmented = jax.jit(augment, static_argnames=("flip", "shift"))


def candidates(image, flip, shift):
    """Every result the augmentation of one image may have, by NumPy alone."""
    found = {}
    padded = np.pad(image, ((shift, shift), (shift, shift), (0, 0)))
    for mirrored in (False, True)[: 1 + flip]:
        source = padded[:, ::-1] if mirrored else padded
        for dy in range(2 * shift + 1):
            for dx in range(2 * shift + 1):
                result = source[dy : dy + HEIGHT, dx : dx + WIDTH]
                found[result.tobytes()] = (mirrored, dy, dx)
    return found


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1), (True, 2)])
def test_each_result_is_a_mirror_and_a_move(flip, shift):
    result = augmented(IMAGES, INDEX, KEY, flip=flip, shift=shift)
    assert (result.shape, result.dtype) == (IMAGES.shape, IMAGES.dtype)
    draws = []
    for image, out in zip(IMAGES, np.asarray(result), strict=True):
        found = candidates(image, flip, shift)
        assert out.tobytes() in found
        draws.append(found[out.tobytes()])
    mirrored, dy, dx = zip(*draws, strict=True)
    if flip:
        assert 16 < sum(mirrored) < 48
    if shift:
        assert set(dy) == set(dx) == set(range(2 * shift + 1))
        assert dy != dx


def test_any_split_over_devices_gives_the_same_images():
    whole = augmented(IMAGES, INDEX, KEY, flip=True, shift=2)
    split = (4, BATCH // 4)
    mapped = jax.pmap(
        lambda images, index: augment(images, index, KEY, flip=True, shift=2), axis_name="batch"
    )(IMAGES.reshape(*split, *IMAGES.shape[1:]), INDEX.reshape(split))
    np.testing.assert_array_equal(np.asarray(mapped).reshape(IMAGES.shape), whole)


def test_other_steps_draw_anew():
    one, other = (
        augmented(IMAGES, INDEX, jax.random.fold_in(KEY, step), flip=True, shift=2)
        for step in range(2)
    )
    changed = (np.asarray(one) != np.asarray(other)).any((1, 2, 3)).mean()
    assert changed > 0.8


def test_nothing_asked_nothing_done():
    assert augment(IMAGES, INDEX, KEY, flip=False, shift=0) is IMAGES
    with pytest.raises(ValueError, match="shift must be at least 0, got -1"):
        augment(IMAGES, INDEX, KEY, flip=False, shift=-1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normalize(dtype):
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    got = normalize(jnp.asarray(IMAGES), mean, std, dtype)
    assert got.dtype == dtype
    want = (IMAGES.astype(np.float64) - mean) / std
    tolerance = {"float32": 2**-22, "bfloat16": 2**-8}[dtype]  # relative to |x - mean| <= 256
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=tolerance, atol=1e-5)
