"""The arrays of the kernels between a normalisation and a local relation."""

from typing import NamedTuple

import jax


class Inputs(NamedTuple):
    """Channels before their normalisation, of N groups of images with statistics of their own.

    Attributes:
      x: (B, H, W, C), a float dtype of 16 bits.
      gain: (N, C) float32; the normalised channels are x * gain + offset.
      offset: (N, C) float32.
      key: (C, K) float32, the projection to keys.
      query: (C, Q) float32, that to queries.
    """

    x: jax.Array
    gain: jax.Array
    offset: jax.Array
    key: jax.Array
    query: jax.Array


class Sums(NamedTuple):
    """Sums over pixels.

    Attributes:
      gradient: (N, C) float32, of the gradient before the ReLU.
      products: (N, C) float32, of its products with x.
      key: (C, K) float32, the gradient of the projection to keys.
      query: (C, Q) float32, that of the projection to queries.
    """

    gradient: jax.Array
    products: jax.Array
    key: jax.Array
    query: jax.Array
