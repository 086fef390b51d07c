"""Max pooling: overlapping windows for the stem, and the cells of layers over the full image."""

import jax
import jax.numpy as jnp

from pallas_kernels.spec import strided_size


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Maxima of 3 x 3 windows at stride 2, border 1: (B, H, W, C) -> (B, Ho, Wo, C).

    It compares shifted images instead of calling nnx.max_pool. On a CPU the gradient of XLA's
    windowed maximum takes seven times as long. On a GPU that gradient adds in any order, so that
    runs would not repeat. Equal maxima share the gradient; after a ReLU these are zeros, and a ReLU
    passes no gradient there.
    """
    for axis in (1, 2):
        size = strided_size(x.shape[axis], 2)
        border = [(0, 0)] * 4
        border[axis] = (1, 1)
        padded = jnp.pad(x, border, constant_values=-jnp.inf)
        parts = [jax.lax.slice_in_dim(padded, a, a + 2 * size - 1, 2, axis) for a in range(3)]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x


def max_pool_cells(x: jax.Array, cell: int) -> jax.Array:
    """Maxima of cell x cell pixels, of fewer at the far borders: (B, H, W, C) -> (B, Hp, Wp, C)."""
    if cell == 1:
        return x
    batch, height, width, channels = x.shape
    rows, columns = -(-height // cell), -(-width // cell)
    border = ((0, 0), (0, rows * cell - height), (0, columns * cell - width), (0, 0))
    padded = jnp.pad(x, border, constant_values=-jnp.inf)
    return padded.reshape(batch, rows, cell, columns, cell, channels).max((2, 4))
