"""Mixup and CutMix on the device: each image with its neighbour in the global batch.

Rows 2i and 2i + 1 of the global batch are a pair. The stream is shuffled, so a neighbour is as good
as any other partner; and a device's share, a block of an even number of rows, holds both rows of
every pair. Each row's draw is keyed by its place in the global batch, so a step mixes the same
images in the same way however many devices share the batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lrnet_jax import random_keys


class Mixed(NamedTuple):
    """Mixed images and what is left of each.

    Attributes:
      images: (B, H, W, C).
      share: (B,) float32 in [0, 1]: how much of row i is its own image. Its target is
        share * own + (1 - share) * its partner's, see `swap_pairs`.
    """

    images: jax.Array
    share: jax.Array


def mix(
    images: jax.Array,
    index: jax.Array,
    key: jax.Array,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> Mixed:
    """Mixes each image with its partner; where both alphas are above 0, by either with odds 1/2.

        Mixup:   image = share * own + (1 - share) * partner,  share ~ Beta(alpha, alpha)
        CutMix:  a box of the partner, its sides sqrt(1 - share) of the image's and its centre
                 anywhere, pasted into the own image; share is then what the box leaves

    Args:
      images: (B, H, W, C) floating point; B even.
      index: (B,) int32, each image's place in the global batch.
      key: of the step, the same on every device, and not that of `augment`.
      mixup_alpha: 0 for no Mixup. Small values leave most images nearly whole.
      cutmix_alpha: 0 for no CutMix. With 1, the area of a box is uniform before it is cut off at
        the border.

    Returns:
      Images in the dtype given (mixed in float32), and shares.

    Raises:
      ValueError: an odd number of images, or an alpha is negative.

    Source: Zhang et al., "mixup", arXiv 1710.09412; Yun et al., "CutMix", arXiv 1905.04899,
    algorithm 1. Not in the paper's recipes.
    """
    _check(len(images), mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    if not mixup_alpha and not cutmix_alpha:
        return Mixed(images, jnp.ones(len(images), jnp.float32))
    _, height, width, _ = images.shape
    draw = functools.partial(_draw, height, width, mixup_alpha, cutmix_alpha)
    mixup, cutmix = jax.vmap(lambda place: draw(jax.random.fold_in(key, place)))(index)
    cuts = _choose_cutmix(index, key, mixup_alpha, cutmix_alpha)
    share = jnp.where(cuts, cutmix.share, mixup.share)
    weight = jnp.where(cuts[:, None, None], cutmix.weight, mixup.weight)[..., None]
    own = images.astype(jnp.float32)
    mixed = weight * own + (1 - weight) * swap_pairs(own)
    return Mixed(mixed.astype(images.dtype), share)


def swap_pairs(rows: jax.Array) -> jax.Array:
    """Row 2i in the place of row 2i + 1 and the other way round: (B, ...) -> (B, ...)."""
    pairs = rows.reshape(len(rows) // 2, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


class _Weights(NamedTuple):
    """How one row is mixed: the weight (H, W) of its own pixels, and their share of the whole."""

    weight: jax.Array
    share: jax.Array


def _draw(
    height: int, width: int, mixup_alpha: float, cutmix_alpha: float, key: jax.Array
) -> tuple[_Weights, _Weights]:
    """How one row is mixed by Mixup, and how by CutMix."""
    keys = jax.random.split(key, 4)
    blend = jax.random.beta(keys[0], mixup_alpha or 1.0, mixup_alpha or 1.0)
    keep = jax.random.beta(keys[1], cutmix_alpha or 1.0, cutmix_alpha or 1.0)
    side = jnp.sqrt(1 - keep)
    inside_rows = _interval(keys[2], side, height)
    inside_columns = _interval(keys[3], side, width)
    own = ~(inside_rows[:, None] & inside_columns[None, :])
    return (
        _Weights(jnp.full((height, width), blend), blend),
        _Weights(own.astype(jnp.float32), jnp.mean(own, dtype=jnp.float32)),
    )


def _interval(key: jax.Array, side: jax.Array, length: int) -> jax.Array:
    """(length,) bool: the pixels of an interval of side * length around a pixel drawn evenly."""
    half = (side * length).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (), 0, length)
    pixels = jnp.arange(length)
    return (pixels >= centre - half) & (pixels < centre + half)


def _choose_cutmix(
    index: jax.Array, key: jax.Array, mixup_alpha: float, cutmix_alpha: float
) -> jax.Array:
    """(B,) bool: the rows that are mixed by CutMix; the others are mixed by Mixup."""
    if not cutmix_alpha:
        return jnp.zeros(len(index), bool)
    if not mixup_alpha:
        return jnp.ones(len(index), bool)
    choice = jax.random.fold_in(key, random_keys.CHOICE)
    return jax.vmap(lambda place: jax.random.bernoulli(jax.random.fold_in(choice, place)))(index)


def _check(count: int, **alphas: float) -> None:
    for name, alpha in alphas.items():
        if not alpha >= 0:
            raise ValueError(f"{name} must be at least 0, got {alpha}")
    if count % 2:
        raise ValueError(f"images are mixed in pairs: their number must be even, got {count}")
