"""Formats, modes and orientations of images, by what Pillow itself and the pixels say."""

import io
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from lrnet_jax.data import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(image, format="PNG", **options):
    return np.asarray(decode.decode(encode(image, format, **options)))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_formats_without_loss(format):
    np.testing.assert_array_equal(decoded(Image.fromarray(PIXELS), format), PIXELS)
    np.testing.assert_array_equal(decoded(Image.fromarray(PIXELS), "WEBP", lossless=True), PIXELS)


def test_the_first_frame_of_a_gif():
    first, second = (
        Image.fromarray(np.full((6, 6, 3), color, np.uint8)) for color in ((255, 0, 0), (0, 255, 0))
    )
    got = decoded(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(got, np.asarray(first))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_modes(mode):
    """Alpha is dropped, and the rest is what Pillow converts it to."""
    image = Image.fromarray(PIXELS).convert(mode)
    format = "TIFF" if mode in ("CMYK", "YCbCr", "LAB") else "PNG"
    got = decoded(image, format)
    with Image.open(io.BytesIO(encode(image, format))) as saved:
        np.testing.assert_array_equal(got, np.asarray(saved.convert("RGB")))
    assert got.shape == PIXELS.shape


def test_colours_with_a_transparent_one():
    """Pillow warns about these unless they are converted in two steps; warnings are errors here."""
    image = Image.fromarray(PIXELS).quantize(8)
    encoded = encode(image, transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(
        np.asarray(decode.decode(encoded)), np.asarray(image.convert("RGB"))
    )


def test_a_text_of_the_name_exif_is_no_exif():
    text = PngImagePlugin.PngInfo()
    text.add_text("exif", "none")
    np.testing.assert_array_equal(decoded(Image.fromarray(PIXELS), pnginfo=text), PIXELS)


def test_sixteen_bits_become_eight():
    levels = np.arange(0, 65536, 257, np.uint16).reshape(16, 16)  # v * 257 is v in 8 bits
    got = decoded(Image.fromarray(levels))
    np.testing.assert_array_equal(got, np.repeat(levels[..., None] // 257, 3, axis=2))


def test_pixels_of_no_known_range_are_refused():
    image = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="pixels of mode F have no known range; save it with 8"):
        decode.decode(encode(image, "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(format, orientation):
    """As Pillow turns them."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    exif[ExifTags.Base.Orientation] = orientation
    encoded = encode(Image.fromarray(PIXELS), format, exif=exif)
    with Image.open(io.BytesIO(encoded)) as image:
        want = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    got = np.asarray(decode.decode(encoded))
    assert (got.shape == PIXELS.shape) == (orientation < 5)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(decode.upright_rgb(decode.decode(encoded)), want)


def blocks():
    """EXIF blocks of both byte orders, with orientation 6."""
    for order, mark in (("little", b"II*\0"), ("big", b"MM\0*")):
        entry = [(0x0112, 2), (3, 2), (1, 4), (6, 2), (0, 2)]
        fields = [(8, 4), (1, 2), *entry]
        yield mark + b"".join(number.to_bytes(size, order) for number, size in fields)


@pytest.mark.parametrize("block", list(blocks()))
def test_a_damaged_exif_block_turns_nothing(block):
    assert decode.orientation(block) == decode.orientation(b"Exif\0\0" + block) == 6
    for end in range(len(block) - 4):  # up to the number itself
        assert decode.orientation(block[:end]) == 1
    for byte in range(len(block)):
        for bit in range(8):
            damaged = bytearray(block)
            damaged[byte] ^= 1 << bit
            decode.orientation(bytes(damaged))
    nonsense = Image.fromarray(PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(nonsense, "JPEG", exif=block[:14]).shape == PIXELS.shape
