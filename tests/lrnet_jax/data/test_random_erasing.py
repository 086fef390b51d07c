"""Random erasing, judged by its pixels against the algorithm of its paper in NumPy."""

import functools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from lrnet_jax.data.random_erasing import erase

BATCH, HEIGHT, WIDTH = 4000, 24, 32
INDEX = np.arange(BATCH, dtype=np.int32)
KEY = jax.random.key(2)
FILL = (17.4, 0.0, 254.6)


@functools.cache
def erased(probability=1.0, devices=1, key=0):
    """(BATCH, H, W) bool where a pixel is erased, of images of another colour."""
    draw = functools.partial(erase, probability=probability, fill=FILL)
    images = np.full((devices, BATCH // devices, HEIGHT, WIDTH, 3), 99, np.uint8)
    got = jax.pmap(draw, in_axes=(0, 0, None))(
        images, INDEX.reshape(devices, -1), jax.random.fold_in(KEY, key)
    )
    got = np.asarray(got).reshape(BATCH, HEIGHT, WIDTH, 3)
    is_fill, is_own = (got == [17, 0, 255]).all(-1), (got == 99).all(-1)
    assert (is_fill ^ is_own).all()
    return is_fill


def boxes(mask):
    """Height, width, top and left of each box; all its pixels are erased, and no others."""
    found = []
    for image in mask[mask.any((1, 2))]:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert image.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        found.append((len(rows), len(columns), rows[0], columns[0]))
    return np.array(found)


def by_numpy(count, rng):
    found = []
    for _ in range(count):
        for _ in range(10):
            area = HEIGHT * WIDTH * rng.uniform(0.02, 0.33)
            ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < HEIGHT and w < WIDTH:
                found.append((h, w, rng.integers(HEIGHT - h + 1), rng.integers(WIDTH - w + 1)))
                break
    return np.array(found)


def test_boxes_are_those_of_the_algorithm():
    got, want = boxes(erased()), by_numpy(BATCH, np.random.default_rng(3))
    assert len(got) > 0.99 * BATCH
    for name, x, y in (
        ("area", got[:, 0] * got[:, 1], want[:, 0] * want[:, 1]),
        ("aspect", got[:, 0] / got[:, 1], want[:, 0] / want[:, 1]),
        *((str(i), got[:, i], want[:, i]) for i in range(4)),
    ):
        assert stats.ks_2samp(x, y).pvalue > 1e-3, name


@pytest.mark.parametrize("probability", [0.25, 0.0])
def test_the_share_of_erased_images(probability):
    share = erased(probability).any((1, 2)).mean()
    assert abs(share - probability) <= 5 * math.sqrt(probability * (1 - probability) / BATCH)


def test_any_split_over_devices_erases_the_same_and_steps_draw_anew():
    np.testing.assert_array_equal(erased(devices=4), erased())
    assert (erased(key=1) != erased()).any((1, 2)).mean() > 0.9


def test_a_probability_that_is_none():
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got 1.5"):
        erase(np.zeros((1, 4, 4, 3), np.uint8), INDEX[:1], KEY, probability=1.5, fill=FILL)
