"""Means over pixels, for the statistics of batch normalisation and for its gradient.

Means over float32 pixels are those of `pallas_kernels/native/channel_sums.cc` on a CPU, where the
library is there, and plain JAX elsewhere. The platform is chosen when the program is lowered.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.native import channel_sums
from pallas_kernels.platform_switch import PyTreeFunction, by_platform


def channel_means(kind: str, relu: bool, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means over the pixels of the first array (N, R, W, C), (N, C) float32 each.

    Args:
      kind: "moments" of x about a pivot (C,), the first and the second; or "products", of the
        gradient and of its product with x, of x, the gradient, gain (N, C) and offset (N, C).
      relu: whether the gradient goes through a ReLU.
      *arrays: those of the kind.
    """
    on_cpu = channel_sums.unsupported(*arrays) is None and channel_sums.unavailable() is None
    return _switched(kind, relu, on_cpu)(*arrays)


@cache  # JAX shares traced programs by the identity of the function
def _switched(kind: str, relu: bool, on_cpu: bool) -> PyTreeFunction:
    functions: dict[str, tuple[PyTreeFunction, PyTreeFunction]] = {
        "moments": (_plain_moments, channel_sums.moments),
        "products": (partial(_plain_products, relu), partial(channel_sums.products, relu=relu)),
    }
    plain, native = functions[kind]
    if not on_cpu:
        return plain
    # A program for CPUs runs here: it is either not exported, or has plain JAX.
    return by_platform(plain, shapes=_shapes, not_exported=("cpu",), cpu=native)


def _shapes(x: jax.Array, *others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Zeros of the shapes of both means."""
    del others
    mean = jnp.zeros((x.shape[0], x.shape[-1]))
    return mean, mean


def _plain_moments(x: jax.Array, pivot: jax.Array) -> tuple[jax.Array, jax.Array]:
    centred = x.astype(jnp.float32) - pivot
    return _mean(centred), _mean(centred * centred)


def _plain_products(
    relu: bool, x: jax.Array, dy: jax.Array, gain: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    wide, masked = widened(relu, x, dy, gain, offset)
    return _mean(masked), _mean(masked * wide)


def _mean(x: jax.Array) -> jax.Array:
    """(N, R, W, C) -> (N, C). Row by row is faster on a CPU than all at once, and rounds less."""
    return jnp.sum(jnp.sum(x, 2), 1) / (x.shape[1] * x.shape[2])


def to_pixels(statistics: jax.Array) -> jax.Array:
    """(N, C) -> (N, 1, 1, C)."""
    return statistics[:, None, None, :]


def widened(
    relu: bool, x: jax.Array, dy: jax.Array, gain: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both in float32, and dy through the ReLU: x tells its sign, so that no mask is kept."""
    wide, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    if relu:
        dy = jnp.where(affine(x.dtype, x, to_pixels(gain), to_pixels(offset)) > 0, dy, 0)
    return wide, dy


def affine(dtype: DTypeLike, x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
    """One multiply-add per element, in float32."""
    return (x * gain + offset).astype(dtype)
