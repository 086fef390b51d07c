"""Checks that several constructors share. Errors give the value and the mend."""

import jax
import jax.numpy as jnp
from flax import nnx


def check_positive(name: str, number: object, alternative: str = "") -> None:
    """Raises unless `number` is an int of at least 1; `alternative` ends that part of the message.

    Raises:
      TypeError: it is not an int.
      ValueError: it is less than 1.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1{alternative}, got {number}")


def check_odd(name: str, number: object) -> None:
    """Raises unless `number` is an odd int of at least 1.

    Raises:
      TypeError: it is not an int.
      ValueError: it is even or less than 1.
    """
    check_positive(name, number)
    if isinstance(number, int) and number % 2 == 0:
        raise ValueError(f"{name} must be odd, got {number}; use {number - 1} or {number + 1}")


def check_rngs(rngs: object) -> None:
    """Raises unless `rngs` is a source of random numbers of Flax.

    Raises:
      TypeError: it is something else, such as a seed.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs must be flax.nnx.Rngs, got {rngs!r}; write rngs=nnx.Rngs(0)")


def check_images(images: jax.Array, channels: int) -> None:
    """Raises unless `images` are (B, H, W, channels) floating point.

    Raises:
      ValueError: they have another shape; the message has the transpose of images with channels
        first.
      TypeError: they are integers, which nobody has normalised yet.
    """
    shape, last = tuple(images.shape), f"(B, H, W, {channels})"
    if len(shape) == 4 and shape[-1] != channels and shape[1] == channels:
        raise ValueError(
            f"images must be {last}, got {shape}, which has the channels first; "
            "use images.transpose(0, 2, 3, 1)"
        )
    if len(shape) != 4 or shape[-1] != channels:
        raise ValueError(
            f"images must be {last}, got {shape}; "
            "add a batch axis with images[None], or set in_channels"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be normalised and floating point, got {images.dtype}; use "
            "classifier = lrnet_jax.load_classifier(path), then classifier.predict(images) or "
            "classifier.model(classifier.preprocess(images))"
        )
