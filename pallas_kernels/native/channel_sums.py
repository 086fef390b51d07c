"""Means over pixels for batch normalisation, each in one pass; `channel_sums.cc` has the algorithm.

Arrays are (N, R, W, C) float32, of N groups of images that share statistics.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.native import calls, library


def unsupported(*arrays: jax.Array) -> str | None:
    """Why the library cannot run this on any CPU; None if it can. Takes abstract arrays too."""
    if any(array.dtype != jnp.float32 for array in arrays):
        return "it computes in float32, of float32"
    return None if all(array.size for array in arrays) else "an array is empty"


def unavailable() -> str | None:
    """Why this machine cannot run it; None if it can. A program for CPUs may be run elsewhere."""
    return library.obstacle()


def moments(x: jax.Array, pivot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The means of x - pivot and of its square, (N, C) each; the pivot is (C,)."""
    return _means(library.MOMENTS, x.shape, (x, pivot))


def products(
    x: jax.Array, gradient: jax.Array, gain: jax.Array, offset: jax.Array, *, relu: bool
) -> tuple[jax.Array, jax.Array]:
    """The means of a gradient and of its product with x, (N, C) each.

    Args:
      x: (N, R, W, C).
      gradient: like x; of relu(x * gain + offset) if there is a ReLU, else it is taken as it is.
      gain: (N, C).
      offset: (N, C).
      relu: whether there is a ReLU.
    """
    return _means(library.PRODUCTS, x.shape, (x, gradient, gain, offset), relu=relu)


def _means(
    name: str, shape: tuple[int, ...], arrays: Sequence[jax.Array], **options: bool
) -> tuple[jax.Array, jax.Array]:
    groups, rows, width, channels = shape
    sizes = groups, rows * width, channels
    mean = calls.float32_shape((groups, channels))
    results = mean, mean, calls.float32_shape((library.channel_sums(sizes),))
    call = jax.ffi.ffi_call(name, results, vmap_method="sequential")
    first, second, _ = call(*arrays, sizes=np.array(sizes, np.int64), **options)
    return first, second
