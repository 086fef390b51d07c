"""Decoding and the two crops."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from lrnet_jax.data import decode
from tests.lrnet_jax.data import torchvision_golden


def photo(width, height, seed=0):
    """Smooth colours plus some noise, as an RGB image."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), int)
    noisy = large + random.integers(-8, 9, large.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def assert_equal_pixels(got, want):
    assert (got.shape, got.dtype) == (want.shape, np.uint8)
    # Releases of Pillow may round differently.
    assert np.abs(got.astype(int) - want).mean() < 0.01


@pytest.mark.parametrize("case", range(len(torchvision_golden.CASES)))
def test_evaluation_is_resize_and_centre_crop_of_torchvision(case):
    name, size, image_size = torchvision_golden.CASES[case]
    with np.load(torchvision_golden.FILE) as file:
        want = file[f"arr_{case}"]
    assert_equal_pixels(
        decode.central_crop(torchvision_golden.photograph(name, size), image_size), want
    )


def test_evaluation_beside_torchvision():
    """Every photograph whole, and cut to sizes that the committed crops do not have."""
    pytest.importorskip("torchvision")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        for size in ((477, 403), (470, 352), (352, 403), (300, 400), (33, 99)):
            image = torchvision_golden.photograph(name, size)
            want = torchvision_golden.by_torchvision(image, 224)
            assert_equal_pixels(decode.central_crop(image, 224), want)


def test_crop_takes_the_box():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:20, 30:50] = (200, 100, 50)
    got = decode.crop(Image.fromarray(pixels), (30, 10, 50, 20), 8)
    np.testing.assert_array_equal(got[2:-2, 2:-2], np.full((4, 4, 3), (200, 100, 50)))


def test_random_boxes():
    random = np.random.default_rng(0)
    width, height = 500, 375
    boxes = np.array([decode.random_resized_box(width, height, random) for _ in range(4000)])
    assert (boxes == boxes.astype(int)).all()
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2].max() == width
    assert boxes[:, 3].max() == height
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    area, ratio = w * h / (width * height), np.log(w / h)
    assert 0.079 < area.min() < 0.09
    assert 0.95 < area.max() <= 1
    assert abs(ratio).max() < math.log(4 / 3) + 0.02
    # Boxes that do not fit are drawn again, which favours the small.
    drawn = random.uniform(0.08, 1, 100_000) * width * height
    ratios = np.exp(random.uniform(math.log(3 / 4), math.log(4 / 3), len(drawn)))
    fits = (np.sqrt(drawn * ratios) < width + 0.5) & (np.sqrt(drawn / ratios) < height + 0.5)
    assert area.mean() == pytest.approx(drawn[fits].mean() / (width * height), abs=0.015)
    assert abs(np.mean(ratio)) < 0.05
    small = area < 0.5  # all places fit these, so they lie evenly
    centre = (boxes[small, 0] + boxes[small, 2]) / 2
    assert abs(centre.mean() / width - 0.5) < 0.02


@pytest.mark.parametrize(("width", "height"), [(1000, 20), (20, 1000)])
def test_a_very_long_image_gives_its_centre(width, height):
    """No area of 8 % and more fits with an allowed ratio: 1000 x 20 allows 26.7 x 20 at most."""
    box = decode.random_resized_box(width, height, np.random.default_rng(0))
    want = (486, 0, 513, 20) if width > height else (0, 486, 20, 513)
    assert box == want


def test_a_tiny_image():
    image = photo(1, 1)
    box = decode.random_resized_box(1, 1, np.random.default_rng(0))
    assert box == (0, 0, 1, 1)
    got = decode.crop(image, box, 4)
    np.testing.assert_array_equal(got, np.broadcast_to(np.asarray(image), (4, 4, 3)))
    assert decode.central_crop(image, 4).shape == (4, 4, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_every_kind_becomes_rgb(mode, format):
    source = photo(120, 100).convert(mode)
    buffer = io.BytesIO()
    try:
        source.save(buffer, format, quality=95)
    except OSError:
        pytest.skip(f"{format} has no mode {mode}")
    image = decode.decode(buffer.getvalue())
    assert (image.mode, image.size) == ("RGB", (120, 100))
    assert np.asarray(image).shape == (100, 120, 3)  # the pixels are here, the file is not needed
    if mode in ("RGB", "CMYK"):
        error = np.asarray(image, int) - np.asarray(source.convert("RGB"), int)
        assert np.abs(error).mean() < 12


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.9])
def test_a_truncated_image_raises(keep):
    buffer = io.BytesIO()
    photo(120, 100).save(buffer, "JPEG")
    data = buffer.getvalue()
    with pytest.raises(OSError, match=r"(?i)cannot identify|truncated"):
        decode.decode(data[: keep if isinstance(keep, int) else int(keep * len(data))])
