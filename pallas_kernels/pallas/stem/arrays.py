"""The arrays of the stem's kernels."""

from typing import Any, NamedTuple, Protocol

import jax

from pallas_kernels.spec import strided_size


class Inputs(NamedTuple):
    """The arrays of a stem; N groups of consecutive images have statistics of their own.

    Attributes:
      x: (B, H, W, I) images, any float dtype of at most 32 bits.
      mean: (N, I) float32, what is subtracted from the images of each group.
      weights: (N, I, C) float32.
      bias: (C,) float32.
      key: (C, K) float32.
      query: (C, Q) float32.
    """

    x: jax.Array
    mean: jax.Array
    weights: jax.Array
    bias: jax.Array
    key: jax.Array
    query: jax.Array


class Maps(NamedTuple):
    """What a stem makes of images, or the gradients of that.

    Attributes:
      value: (B, H, W, C), relu((x - mean) @ weights + bias).
      key: (B, H, W, K), value @ key.
      query: (B, Ho, Wo, Q), value @ query at every stride-th pixel of both axes.
    """

    value: jax.Array
    key: jax.Array
    query: jax.Array


class Sums(NamedTuple):
    """Sums over pixels.

    Attributes:
      gradient: (N, C) float32, of the gradient before the ReLU.
      products: (N, I, C) float32, of its products with the images about their mean.
      key: (C, K) float32, the gradient of the projection to keys.
      query: (C, Q) float32, that of the projection to queries.
    """

    gradient: jax.Array
    products: jax.Array
    key: jax.Array
    query: jax.Array


def padded(size: int) -> int:
    """The least power of two of at least 16 and `size`: what a side of a matrix product is."""
    return max(16, 1 << (size - 1).bit_length())


class HasMaps(Protocol):
    """What has maps: the `Inputs` of this package and of `projections`."""

    @property
    def x(self) -> jax.Array:
        """(B, H, W, ...)."""

    @property
    def key(self) -> jax.Array:
        """(C, K)."""

    @property
    def query(self) -> jax.Array:
        """(C, Q)."""


def map_shapes(inputs: HasMaps, stride: int) -> Maps:
    """The maps as `jax.ShapeDtypeStruct`s."""
    batch, height, width, _ = inputs.x.shape
    strided = strided_size(height, stride), strided_size(width, stride)

    def shape(size: tuple[int, int], channels: int) -> Any:
        return jax.ShapeDtypeStruct((batch, *size, channels), inputs.x.dtype)

    (channels, keys), queries = inputs.key.shape, inputs.query.shape[1]
    return Maps(
        shape((height, width), channels), shape((height, width), keys), shape(strided, queries)
    )
