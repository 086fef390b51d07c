"""Random erasing on the device: a random box of some images gets one colour."""

import math

import jax
import jax.numpy as jnp

from lrnet_jax import random_keys

AREA = (0.02, 0.33)  # of a box, in shares of the image
ASPECT = (0.3, 3.3)  # its height in units of its width
ATTEMPTS = 10  # a box that does not fit into the image is drawn again


def erase(
    images: jax.Array,
    index: jax.Array,
    key: jax.Array,
    *,
    probability: float,
    fill: tuple[float, float, float],
) -> jax.Array:
    """Erases a box of an image with a probability.

    The area of a box is uniform over `AREA` and the logarithm of its aspect ratio over `ASPECT`,
    given that it fits. Its place is uniform.

    Args:
      images: (B, H, W, 3) uint8.
      index: (B,) int32, each image's place in the global batch. It alone decides an image's draws.
      key: of the step, the same on every device.
      probability: in [0, 1].
      fill: the colour, in levels of 0 to 255; the mean of the data set, which is 0 when it is
        normalised.

    Returns:
      (B, H, W, 3) uint8.

    Raises:
      ValueError: probability is not in [0, 1].

    Source: Zhong et al., "Random Erasing Data Augmentation", arXiv 1708.04896, with torchvision's
    ranges. Not in the paper's recipes.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    if not probability:
        return images
    _, height, width, _ = images.shape
    key = jax.random.fold_in(key, random_keys.ERASE)

    def erased(place: jax.Array) -> jax.Array:
        return _draw(jax.random.fold_in(key, place), height, width, probability)

    colour = jnp.round(jnp.asarray(fill)).astype(jnp.uint8)
    return jnp.where(jax.vmap(erased)(index)[..., None], colour, images)


def _draw(key: jax.Array, height: int, width: int, probability: float) -> jax.Array:
    """(H, W) bool: the box of one image, or nothing."""
    is_erased, areas, aspects, top, left = jax.random.split(key, 5)
    area = height * width * jax.random.uniform(areas, (ATTEMPTS,), minval=AREA[0], maxval=AREA[1])
    low, high = map(math.log, ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspects, (ATTEMPTS,), minval=low, maxval=high))
    rows = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (rows < height) & (columns < width)
    first = jnp.argmax(fits)
    erases = jax.random.bernoulli(is_erased, probability) & fits[first]
    in_rows = _interval(top, rows[first], height)
    in_columns = _interval(left, columns[first], width)
    return erases & in_rows[:, None] & in_columns[None, :]


def _interval(key: jax.Array, size: jax.Array, length: int) -> jax.Array:
    """(length,) bool: an interval of `size` pixels that lies anywhere inside."""
    start = jax.random.randint(key, (), 0, jnp.maximum(length - size, 0) + 1)
    pixels = jnp.arange(length)
    return (pixels >= start) & (pixels < start + size)
