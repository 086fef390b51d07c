"""From files, images and arrays to pixels: the same in every form, and bad ones are named."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lrnet_jax.data import BadImageError, fashion_mnist_subset
from lrnet_jax.data.on_disk import MEAN, STD
from lrnet_jax.preprocessing import Preprocessing, class_names
from tests.lrnet_jax.data import torchvision_golden

IMAGENET = Preprocessing(224, 256, MEAN, STD)
SMALL = Preprocessing(12, 12, (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
METADATA = {"num_classes": 10, "image_size": 28, "mean": [73.0] * 3, "std": [90.0] * 3}


def photo(height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("case", range(len(torchvision_golden.CASES)))
def test_a_file_becomes_the_pixels_of_torchvision(case, tmp_path):
    name, size, image_size = torchvision_golden.CASES[case]
    file = tmp_path / "photo.png"
    torchvision_golden.photograph(name, size).save(file)
    preprocessing = Preprocessing(image_size, round(image_size * 256 / 224), MEAN, STD)
    with np.load(torchvision_golden.FILE) as golden:
        want = golden[f"arr_{case}"]
    (got,) = preprocessing.pixels(file)
    assert np.abs(got.astype(int) - want).mean() < 0.01  # releases of Pillow round differently


def test_one_image_in_every_form_has_the_same_pixels(tmp_path):
    array = photo()
    file = tmp_path / "photo.png"
    Image.fromarray(array).save(file)
    want = SMALL.pixels(array)
    assert (want.shape, want.dtype) == ((1, 12, 12, 3), np.uint8)
    for form in (str(file), file, Image.fromarray(array), jnp.asarray(array)):
        np.testing.assert_array_equal(SMALL.pixels(form), want)
    for several in ([file, array], (array, Image.fromarray(array)), np.stack([array, array])):
        np.testing.assert_array_equal(SMALL.pixels(several), np.concatenate([want, want]))


def test_grey_images_have_three_equal_channels():
    grey = photo()[..., 0]
    want = SMALL.pixels(np.repeat(grey[..., None], 3, axis=2))
    for form in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(SMALL.pixels(form), want)


def test_images_of_the_right_size_are_taken_as_they_are():
    images = fashion_mnist_subset().eval_images[:3]
    size = Preprocessing.from_metadata({**METADATA, "resize": 28})
    np.testing.assert_array_equal(size.pixels(images), np.repeat(images, 3, axis=3))


def test_photographs_are_turned_upright(tmp_path):
    file = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees to the right
    Image.fromarray(photo(12, 12)).save(file, exif=exif)
    (got,) = SMALL.pixels(file)
    np.testing.assert_array_equal(got, np.rot90(photo(12, 12), -1))


def test_normalized_pixels():
    pixels = photo(12, 12)[None]
    want = (pixels.astype(np.float64) - SMALL.mean) / SMALL.std
    np.testing.assert_allclose(SMALL.normalize(pixels), want, rtol=1e-6, atol=1e-6)
    assert SMALL.normalize(pixels, "bfloat16").dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("metadata", "resize"),
    [
        ({"image_size": 224}, 256),
        ({"image_size": 224, "config": {"data": {"name": "imagenet2012"}}}, 256),
        ({"config": {"data": {"name": "fashion_mnist_subset"}}}, 28),
        ({"image_size": 224, "resize": 240}, 240),
    ],
)
def test_older_metadata_follow_the_data_set(metadata, resize):
    assert Preprocessing.from_metadata({**METADATA, **metadata}).resize == resize


def test_class_names_are_those_of_the_metadata_or_of_the_data_set():
    names = tuple("abcdefghij")
    fashion = {**METADATA, "config": {"data": {"name": "fashion_mnist_subset"}}}
    assert class_names({**fashion, "class_names": names}) == names
    known = class_names({**fashion, "class_names": None})
    assert known is not None
    assert known[0] == "T-shirt/top"
    assert class_names(fashion) == known
    assert class_names({**fashion, "num_classes": 5, "class_names": names}) is None
    assert class_names(METADATA) is None


BAD = {
    "missing": ("missing.jpg", BadImageError, "image missing.jpg cannot be read: there is no such"),
    "a folder": (".", BadImageError, r"image \. cannot be read"),
    "floats": (photo() / 255, TypeError, r"must be uint8, levels of 0 to 255, got float64; .*255 "),
    "channels first": (photo().transpose(2, 0, 1), ValueError, r"use image.transpose\(1, 2, 0\)"),
    "NCHW": (photo()[None].transpose(0, 3, 1, 2), ValueError, r"images.transpose\(0, 2, 3, 1\)"),
    "two channels": (photo()[..., :2], ValueError, r"\(H, W, 3\), got \(20, 30, 2\)"),
    "a number": (3, TypeError, "images must be files, images of Pillow or uint8 arrays, got int"),
    "numbers": ([3], TypeError, "an image must be a file, .*, got int"),
    "nothing": ([], ValueError, "images is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_answered(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, error, message = BAD[case]
    with pytest.raises(error, match=message) as raised:
        SMALL.pixels(images)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_cut_short_is_named(tmp_path):
    file = tmp_path / "half.jpg"
    Image.fromarray(photo(64, 64)).save(file)
    data = file.read_bytes()
    for length in (len(data) // 2, 10, 0):
        file.write_bytes(data[:length])
        with pytest.raises(BadImageError, match=r"image .*half.jpg cannot be read: "):
            IMAGENET.pixels(pathlib.Path(file))
