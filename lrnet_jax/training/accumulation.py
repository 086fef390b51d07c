"""Processes a batch that is too large for the memory of a device, part by part."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lrnet_jax.functional import Tree


def mean_over_parts(function: Callable[[Tree], Tree], batch: Tree, parts: int) -> Tree:
    """The mean of function(part) over equal parts of a batch, with one part in memory at a time.

        mean_over_parts(f, batch, 2) = (f(batch[:b / 2]) + f(batch[b / 2:])) / 2

    Args:
      function: from arrays (b / parts, ...) to a tree of floating-point arrays.
      batch: arrays (b, ...).
      parts: how many; 1 calls the function with the batch as it is.

    Raises:
      ValueError: b is not divisible by parts.
    """
    if parts == 1:
        return function(batch)
    size = len(jax.tree.leaves(batch)[0])
    if size % parts:
        raise ValueError(f"a share of {size} images cannot be split into {parts} equal parts")
    stacked = jax.tree.map(lambda x: x.reshape(parts, size // parts, *x.shape[1:]), batch)

    def add(total: Tree, part: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], stacked))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, stacked)
    return jax.tree.map(lambda x: x / parts, total)
