"""RandAugment on the device: each image goes through a few random operations of Pillow's.

    table     brightness, contrast, posterize, solarize, auto_contrast, equalize: a level of a
              channel becomes another level
    blend     color, sharpness: the image and a plain version of it are mixed, or moved apart
    affine    shear_x, shear_y, translate_x, translate_y, rotate: pixels move, black comes in

Every image goes through all three stages, and the two that its operation has no use for leave it
as it is. A branch for each operation would be computed for every image all the same. Levels are
rounded as Pillow rounds them, and positions are its fixed-point numbers.
"""

import jax
import jax.numpy as jnp

from lrnet_jax import random_keys

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness", "posterize", "solarize", "auto_contrast", "equalize",
)  # fmt: skip
MAX_MAGNITUDE = 30
_LAST_SIGNED = OPERATIONS.index("sharpness")  # those up to here have a random sign
_LEVELS = 256
_FIXED = 16  # bits after the point of a position


def rand_augment(
    images: jax.Array, index: jax.Array, key: jax.Array, *, operations: int, magnitude: float
) -> jax.Array:
    """Applies random operations to each image, one after the other.

    Each is drawn evenly from the 14 of `OPERATIONS`, with a random sign where it has one. At
    `MAX_MAGNITUDE` a shear is 0.3, a move 150 / 331 of the side, a rotation 30 degrees, a factor of
    a colour 1 +- 0.9, posterize keeps 4 bits and solarize inverts all levels.

    Args:
      images: (B, H, W, 3) uint8.
      index: (B,) int32, each image's place in the global batch. It alone decides an image's draws.
      key: of the step, the same on every device.
      operations: number of operations for each image.
      magnitude: in 0 to `MAX_MAGNITUDE`.

    Returns:
      (B, H, W, 3) uint8.

    Raises:
      ValueError: an argument is out of range.

    Source: Cubuk et al., "RandAugment", arXiv 1909.13719, with torchvision's ranges. Not in the
    paper's recipes.
    """
    if operations < 0:
        raise ValueError(f"operations must be at least 0, got {operations}")
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(f"magnitude must be in [0, {MAX_MAGNITUDE}], got {magnitude}")
    key = jax.random.fold_in(key, random_keys.RAND_AUGMENT)
    _, height, width, _ = images.shape
    strengths = jnp.asarray(_strengths(height, width, magnitude), jnp.float32)

    def augment(image: jax.Array, place: jax.Array) -> jax.Array:
        for draw in jax.random.split(jax.random.fold_in(key, place), operations):
            which, sign = jax.random.split(draw)
            operation = jax.random.randint(which, (), 0, len(OPERATIONS))
            image = apply(image, operation, strengths[_row(sign), operation])
        return image

    return jax.vmap(augment)(images, index) if operations else images


def apply(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """One operation on one image.

    Args:
      image: (H, W, 3) uint8.
      operation: int32 scalar, a place in `OPERATIONS`.
      strength: float32 scalar, what the operation takes: a slope, pixels, degrees anticlockwise,
        the factor of a colour (1 changes nothing), the number of bits, the level from which on
        levels are inverted. Some take nothing.

    Returns:
      (H, W, 3) uint8.
    """
    image = _table_stage(image, operation, strength)
    image = _blend_stage(image, operation, strength)
    return _affine_stage(image, operation, strength)


def _row(key: jax.Array) -> jax.Array:
    return jax.random.bernoulli(key).astype(jnp.int32)


def _strengths(height: int, width: int, magnitude: float) -> list[list[float]]:
    """The strength of each operation with a positive sign, and with a negative one."""
    share = magnitude / MAX_MAGNITUDE
    bits = 8 - round(4 * share)
    rows = []
    for sign in (1, -1):
        move, factor = sign * 150 / 331 * share, 1 + sign * 0.9 * share
        geometry = [sign * 0.3 * share] * 2 + [int(move * width), int(move * height)]
        rows.append([0, *geometry, sign * 30 * share, *[factor] * 4, bits, 255 * (1 - share), 0, 0])
    return rows


def _is(operation: jax.Array, name: str) -> jax.Array:
    return operation == OPERATIONS.index(name)


def _blend(plain: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Computes plain + factor * (image - plain), cut off to a level as Pillow does."""
    plain, image = plain.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(plain + factor * (image - plain), 0, 255).astype(jnp.uint8)


def _gray(image: jax.Array) -> jax.Array:
    """(H, W, 3) uint8 -> (H, W) int32, by ITU-R 601."""
    weights = jnp.asarray([19595, 38470, 7471])
    return (jnp.sum(image.astype(jnp.int32) * weights, axis=-1) + (1 << 15)) >> 16


# ---- table


def _table_stage(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    levels = jnp.broadcast_to(jnp.arange(_LEVELS)[:, None], (_LEVELS, 3))
    gray, pixels = _gray(image), image.shape[0] * image.shape[1]
    mean = (2 * jnp.sum(gray) + pixels) // (2 * pixels)
    bits = jnp.clip(8 - strength, 0, 8).astype(jnp.int32)
    tables = {
        "brightness": _blend(jnp.zeros_like(levels), levels, strength),
        "contrast": _blend(jnp.full_like(levels, mean), levels, strength),
        "posterize": (levels >> bits) << bits,
        "solarize": jnp.where(levels < strength, levels, 255 - levels),
        "auto_contrast": _auto_contrast(image, levels),
        "equalize": _equalize(image, levels),
    }
    table = jnp.select(
        [_is(operation, name) for name in tables],
        [table.astype(jnp.uint8) for table in tables.values()],
        levels.astype(jnp.uint8),
    )
    return table[image, jnp.arange(3)]


def _auto_contrast(image: jax.Array, levels: jax.Array) -> jax.Array:
    """The least and the greatest level of each channel become 0 and 255."""
    low = jnp.min(image, axis=(0, 1)).astype(jnp.int32)
    high = jnp.max(image, axis=(0, 1)).astype(jnp.int32)
    stretched = jnp.clip((levels - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, levels)


def _equalize(image: jax.Array, levels: jax.Array) -> jax.Array:
    """Each channel has about as many pixels of each level."""
    counts = jnp.zeros((_LEVELS, 3), jnp.int32).at[image, jnp.arange(3)].add(1)
    last = jnp.take_along_axis(counts, jnp.max(image, axis=(0, 1))[None].astype(jnp.int32), 0)
    step = (jnp.sum(counts, axis=0, keepdims=True) - last) // 255
    below = jnp.cumsum(counts, axis=0) - counts
    even = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, even, levels)


# ---- blend


def _blend_stage(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    is_color, is_sharpness = _is(operation, "color"), _is(operation, "sharpness")
    gray = jnp.broadcast_to(_gray(image)[..., None], image.shape)
    plain = jnp.where(is_color, gray, _smooth(image))
    return jnp.where(is_color | is_sharpness, _blend(plain, image, strength), image)


def _smooth(image: jax.Array) -> jax.Array:
    """Means of 3 x 3 pixels, in which the middle counts 5 times; the border stays."""
    whole = image.astype(jnp.int32)
    if min(image.shape[:2]) < 3:  # all of it is border
        return whole
    nine = _sums_of_three(_sums_of_three(whole, 0), 1)
    inner = (2 * (nine + 4 * whole[1:-1, 1:-1]) + 13) // 26
    return whole.at[1:-1, 1:-1].set(inner)


def _sums_of_three(image: jax.Array, axis: int) -> jax.Array:
    length = image.shape[axis] - 2
    one, two, three = (
        jax.lax.slice_in_dim(image, start, start + length, axis=axis) for start in range(3)
    )
    return one + two + three


# ---- affine


def _affine_stage(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    from_x, from_y = _sources(height, width, operation, strength)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    moved = image[jnp.clip(from_y, 0, height - 1), jnp.clip(from_x, 0, width - 1)]
    return jnp.where(inside[..., None], moved, 0).astype(jnp.uint8)


def _sources(
    height: int, width: int, operation: jax.Array, strength: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Column and row (H, W) int32 of the pixel that comes to each place."""
    angle = jnp.where(_is(operation, "rotate"), -jnp.deg2rad(strength), 0.0)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    xy = sine + jnp.where(_is(operation, "shear_x"), strength, 0.0)
    yx = -sine + jnp.where(_is(operation, "shear_y"), strength, 0.0)
    # A rotation is about the middle of the image, a shear about its corner.
    x, y = jnp.where(_is(operation, "rotate"), jnp.asarray([width / 2, height / 2]), 0.0)
    x_start = x - cosine * x - sine * y - jnp.where(_is(operation, "translate_x"), strength, 0.0)
    y_start = y + sine * x - cosine * y - jnp.where(_is(operation, "translate_y"), strength, 0.0)
    columns, rows = jnp.arange(width)[None, :], jnp.arange(height)[:, None]

    def positions(along_x: jax.Array, along_y: jax.Array, start: jax.Array) -> jax.Array:
        first = _fixed(start + 0.5 * along_x + 0.5 * along_y)  # the middle of a pixel
        return (first + _fixed(along_x) * columns + _fixed(along_y) * rows) >> _FIXED

    return positions(cosine, xy, x_start), positions(yx, cosine, y_start)


def _fixed(number: jax.Array) -> jax.Array:
    return jnp.floor(number * (1 << _FIXED) + 0.5).astype(jnp.int32)
