"""Normalisation and augmentation on the device, as pure functions inside the step.

Random numbers are keyed per image by its place in the global batch, so a step sees the same images
however many devices share the batch.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def normalize(
    images: jax.Array,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """(images - mean) / std, computed in float32.

    Args:
      images: (B, H, W, 3) uint8, or floating point in 0 to 255 (an attacked image).
      mean: of R, G, B in 0 to 255.
      std: of R, G, B in 0 to 255.
      dtype: of the result.

    Returns:
      (B, H, W, 3) in `dtype`.
    """
    centred = images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)
    return (centred / jnp.asarray(std, jnp.float32)).astype(dtype)


def augment(
    images: jax.Array, index: jax.Array, key: jax.Array, *, flip: bool, shift: int = 0
) -> jax.Array:
    """Mirrors each image with probability 1/2, and moves it by up to `shift` pixels.

    Row i draws from fold_in(key, index[i]) alone; `flip` and `shift` do not change each other's
    draws.

    Args:
      images: (B, H, W, C), any dtype.
      index: (B,) int32, each image's place in the global batch.
      key: of the step, the same on every device.
      flip: mirror left and right.
      shift: largest move along H and along W, in pixels; what comes in from outside is 0. For small
        images, whose random crops would be too coarse.

    Returns:
      (B, H, W, C) in the dtype of `images`.

    Raises:
      ValueError: shift is negative.
    """
    if shift < 0:
        raise ValueError(f"shift must be at least 0, got {shift}")
    if not flip and not shift:
        return images
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)  # (B, 2)
    if flip:
        mirrored = jax.vmap(jax.random.bernoulli)(keys[:, 0])
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    if shift:
        corners = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, 2 * shift + 1))(keys[:, 1])
        _, height, width, channels = images.shape
        padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        images = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), (height, width, channels)
            )
        )(padded, corners)
    return images
