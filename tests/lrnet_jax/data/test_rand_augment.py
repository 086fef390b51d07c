"""RandAugment's operations against Pillow's, and its draws."""

import functools
import math

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from lrnet_jax.data.rand_augment import OPERATIONS, apply, rand_augment
from tests.lrnet_jax.data.miniature import photograph

KEY = jax.random.key(11)
SIZE = (60, 45)


@functools.cache
def pictures():
    """Photographs, one of few levels, a plain one, and noise: (5, 45, 60, 3) uint8."""
    cat, rocket = (
        np.asarray(photograph(name).crop((20, 10, 80, 55))) for name in ("chelsea", "rocket")
    )
    few = 100 + cat // 32
    plain = np.broadcast_to(np.array([7, 0, 255], np.uint8), cat.shape)
    noise = np.random.default_rng(0).integers(0, 256, cat.shape, np.uint8)
    return np.stack([cat, rocket, few, plain, noise])


def shift(x, y):
    return lambda image: image.transform(SIZE, Image.Transform.AFFINE, (1, 0, x, 0, 1, y))


def enhance(kind, factor):
    return lambda image: kind(image).enhance(factor)


def cases():
    """(operation, strength, the same by Pillow)."""
    yield "identity", 0, lambda image: image
    for slope in (0.09, -0.3):
        yield (
            "shear_x",
            slope,
            lambda image, m=slope: image.transform(
                SIZE, Image.Transform.AFFINE, (1, m, 0, 0, 1, 0)
            ),
        )
        yield (
            "shear_y",
            slope,
            lambda image, m=slope: image.transform(
                SIZE, Image.Transform.AFFINE, (1, 0, 0, m, 1, 0)
            ),
        )
    for pixels in (8, -13):
        yield "translate_x", pixels, shift(-pixels, 0)
        yield "translate_y", pixels, shift(0, -pixels)
    for degrees in (9, -30):
        yield "rotate", degrees, lambda image, d=degrees: image.rotate(d)
    for factor in (0.1, 0.73, 1.27, 1.9):
        yield "brightness", factor, enhance(ImageEnhance.Brightness, factor)
        yield "color", factor, enhance(ImageEnhance.Color, factor)
        yield "contrast", factor, enhance(ImageEnhance.Contrast, factor)
        yield "sharpness", factor, enhance(ImageEnhance.Sharpness, factor)
    for bits in (4, 7, 8):
        yield "posterize", bits, lambda image, b=bits: ImageOps.posterize(image, b)
    for threshold in (0, 178.5, 255):
        yield "solarize", threshold, lambda image, t=threshold: ImageOps.solarize(image, t)
    yield "auto_contrast", 0, ImageOps.autocontrast
    yield "equalize", 0, ImageOps.equalize


applied = jax.jit(jax.vmap(apply, in_axes=(0, None, None)))


@pytest.mark.parametrize(("name", "strength", "by_pillow"), list(cases()))
def test_operations_are_pillows(name, strength, by_pillow):
    """Roundings at a whole number may fall either way, in float32 here and float64 there."""
    got = applied(pictures(), np.int32(OPERATIONS.index(name)), np.float32(strength))
    want = np.stack([np.asarray(by_pillow(Image.fromarray(image))) for image in pictures()])
    assert got.dtype == np.uint8
    differs = np.asarray(got) != want
    if name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"):
        assert differs.mean() < 1e-3
        return
    assert np.abs(np.asarray(got, int) - want).max() <= 1
    assert differs.mean() < 1e-2
    assert name == "identity" or strength in (8, 255) or (want != pictures()).any()


augmented = jax.jit(rand_augment, static_argnames=("operations", "magnitude"))
BATCH = 600
INDEX = np.arange(BATCH, dtype=np.int32)


def same(magnitude, key=0, operations=1):
    """A batch of one photograph, augmented."""
    image = np.broadcast_to(pictures()[0], (BATCH, *pictures()[0].shape))
    key = jax.random.fold_in(KEY, key)
    return np.asarray(augmented(image, INDEX, key, operations=operations, magnitude=magnitude))


def test_each_image_takes_one_of_the_fourteen_with_a_random_sign():
    """Magnitude 9 of 30, torchvision's default: the results by Pillow, and how often each comes."""
    image = Image.fromarray(pictures()[0])
    by = {name: {} for name in OPERATIONS}
    strengths = {
        "shear_x": 0.09, "shear_y": 0.09, "rotate": 9.0, "brightness": 0.27, "color": 0.27,
        "contrast": 0.27, "sharpness": 0.27,
        "translate_x": int(150 / 331 * 60 * 0.3), "translate_y": int(150 / 331 * 45 * 0.3),
    }  # fmt: skip
    kinds = {
        "brightness": ImageEnhance.Brightness, "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast, "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    for sign in (1, -1):
        for name, size in strengths.items():
            m = sign * size
            by[name][sign] = {
                "shear_x": lambda m=m: image.transform(SIZE, 0, (1, m, 0, 0, 1, 0)),
                "shear_y": lambda m=m: image.transform(SIZE, 0, (1, 0, 0, m, 1, 0)),
                "translate_x": lambda m=m: shift(-m, 0)(image),
                "translate_y": lambda m=m: shift(0, -m)(image),
                "rotate": lambda m=m: image.rotate(m),
            }.get(name, lambda m=m, name=name: kinds[name](image).enhance(1 + m))()
    by["identity"][1] = image
    by["posterize"][1] = ImageOps.posterize(image, 8 - round(9 / 7.5))
    by["solarize"][1] = ImageOps.solarize(image, 255 * (1 - 9 / 30))
    by["auto_contrast"][1] = ImageOps.autocontrast(image)
    by["equalize"][1] = ImageOps.equalize(image)
    known = {(name, sign): np.asarray(x, int) for name in by for sign, x in by[name].items()}
    counts = dict.fromkeys(known, 0)
    for got in same(9.0):
        distance = {key: np.abs(got - want).mean() for key, want in known.items()}
        nearest = min(distance, key=distance.get)
        assert distance[nearest] < 0.2, nearest
        counts[nearest] += 1
    for (name, _), count in counts.items():
        share = 1 / 14 / len(by[name])
        deviation = math.sqrt(BATCH * share * (1 - share))
        assert abs(count - BATCH * share) < 5 * deviation, (name, counts)


def test_two_operations_are_one_after_another():
    """At magnitude 0 only auto_contrast and equalize change anything (levels above 255: none)."""
    once, twice = same(0.0), same(0.0, operations=2)
    changed = [(x != pictures()[0]).any((1, 2, 3)).mean() for x in (once, twice)]
    for got, want in zip(changed, (2 / 14, 1 - (12 / 14) ** 2), strict=True):
        assert abs(got - want) < 5 * math.sqrt(want * (1 - want) / BATCH)
    both = ImageOps.equalize(ImageOps.autocontrast(Image.fromarray(pictures()[0])))
    distance = np.abs(twice.astype(int) - np.asarray(both)).mean((1, 2, 3))
    assert (distance < 0.2).any()


def test_any_split_over_devices_gives_the_same_images_and_steps_draw_anew():
    image = np.broadcast_to(pictures()[0], (8, *pictures()[0].shape))
    draw = functools.partial(rand_augment, operations=2, magnitude=9.0)
    key = jax.random.fold_in(KEY, 0)
    split = jax.pmap(draw, in_axes=(0, 0, None))(
        image.reshape(4, 2, *image.shape[1:]), INDEX[:8].reshape(4, 2), key
    )
    whole = same(9.0, operations=2)
    np.testing.assert_array_equal(np.asarray(split).reshape(image.shape), whole[:8])
    other = same(9.0, key=1, operations=2)
    assert (whole != other).any((1, 2, 3)).mean() > 0.9


def test_an_image_that_is_all_border():
    image = pictures()[0][:2, :2]
    got = apply(image, np.int32(OPERATIONS.index("sharpness")), np.float32(1.9))
    want = ImageEnhance.Sharpness(Image.fromarray(image)).enhance(1.9)
    np.testing.assert_array_equal(got, want)


def test_nothing_asked_and_bad_arguments():
    images = pictures()
    assert rand_augment(images, INDEX[:5], KEY, operations=0, magnitude=9.0) is images
    with pytest.raises(ValueError, match="operations must be at least 0, got -1"):
        rand_augment(images, INDEX[:5], KEY, operations=-1, magnitude=9.0)
    with pytest.raises(ValueError, match=r"magnitude must be in \[0, 30\], got 31"):
        rand_augment(images, INDEX[:5], KEY, operations=1, magnitude=31)
