"""What a lane computes with: the types of its variables, masks and loops.

A lane is one thread of the GPU. A kernel is written for the N lanes of a program at once, so every
variable of a lane is an array with one element per lane. Lists of such arrays are the lane's
registers: an entry per pixel, channel or component, unrolled at trace time.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax

Vector = jax.Array
"""One number per lane: (N,)."""

Vectors = list[Vector]
"""The D components or the channels of one pixel."""

Mask = jax.Array | None
"""One bool per lane: (N,). None is True for every lane, and costs nothing."""

Scalar = jax.Array | int
"""A number that all lanes of a program share."""

Ref = Any
"""A flat array in memory, as a kernel receives it: a `jax.Ref`."""

Carry = TypeVar("Carry")


def and_masks(a: Mask, b: Mask) -> Mask:
    """The conjunction of two masks."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


def loop(
    count: Scalar, body: Callable[[Scalar, Carry], Carry], init: Carry, start: Scalar = 0
) -> Carry:
    """Runs `body(i, carry)` for i in start .. count - 1.

    A single iteration is no loop, and its i is a Python int: constants then fold.
    """
    if isinstance(count, int) and isinstance(start, int) and count - start == 1:
        return body(start, init)
    return lax.fori_loop(start, count, body, init)
