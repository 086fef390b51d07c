"""What both passes of the XLA path share: plans, isolated stages, sums, padding."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from pallas_kernels.spec import Spec

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to cut the work for a platform.

    Attributes:
      block: about how many query elements (pixels times groups) a row block has.
      isolate: whether every stage is a call that XLA does not inline.
    """

    block: int
    isolate: bool

    def stage(self, function: Callable, *static: object) -> Callable[..., jax.Array]:
        """`partial(function, *static)` as one stage, whose result is computed once and stored."""
        return _stage(self.isolate, function, *static)

    def rows(self, height: int, row_elements: int) -> tuple[int, int]:
        """Cuts output rows into equal blocks: (rows of a block, number of blocks).

        Blocks are near the wanted size, but a block may be smaller or larger to save padding rows.
        """
        wanted = max(1, round(self.block / row_elements))

        def cost(rows: int) -> float:
            padding = -(-height // rows) * rows / height - 1
            return 4 * padding + abs(rows - wanted) / wanted

        rows = min(range(1, min(height, 2 * wanted) + 1), key=cost)
        return rows, -(-height // rows)


@functools.cache
def _stage(isolate: bool, function: Callable, *static: object) -> Callable[..., jax.Array]:
    staged = functools.wraps(function)(functools.partial(function, *static))
    if not isolate:
        return staged
    jitted = jax.jit(staged)

    def call(*arrays: jax.Array) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return jitted(*arrays)

    return call


def combine(
    terms: Sequence[jax.Array],
    function: Callable[[jax.Array, jax.Array], jax.Array] = operator.add,
    chains: int = 4,
) -> jax.Array:
    """Sum (or maximum) of many terms, in independent chains because one long chain is slow."""
    totals = list(terms[:chains])
    for i, term in enumerate(terms[chains:]):
        totals[i % chains] = function(totals[i % chains], term)
    while len(totals) > 1:
        pairs = [function(a, b) for a, b in zip(totals[::2], totals[1::2], strict=False)]
        totals = pairs + totals[len(totals) - len(totals) % 2 :]
    return totals[0]


def scaled_phi(spec: Spec, query: Sequence[jax.Array], key: Sequence[jax.Array]) -> jax.Array:
    """The logits without the prior, from D arrays of queries and D arrays of keys."""
    phi = combine([spec.component(q, k) for q, k in zip(query, key, strict=True)])
    return phi if spec.scale == 1.0 else phi * spec.scale


def phase_and_steps(spec: Spec, tap: int | jax.Array) -> tuple:
    """The place of tap a (or b) of a window once rows (or columns) are split by the stride.

    Padded input position i * stride + tap * dilation of output i is element i + steps of the
    phase. Returns (phase, steps).
    """
    offset = tap * spec.dilation
    return offset % spec.stride, offset // spec.stride


def pad_image(spec: Spec, array: jax.Array, height: int, width: int, axis: int = 0) -> jax.Array:
    """Zeros around the image axes (axis, axis+1), to (height, width) with the window's border.

    A stride beyond the window leaves input that no tap reads, so padding may be negative (a crop).
    """
    ph, pw = spec.padding
    border = [(0, 0, 0)] * array.ndim
    border[axis] = (ph, height - array.shape[axis] - ph, 0)
    border[axis + 1] = (pw, width - array.shape[axis + 1] - pw, 0)
    return lax.pad(array, jnp.zeros((), array.dtype), border)


def pad_channels(spec: Spec, array: jax.Array) -> jax.Array:
    """(..., C) -> (..., G * M): zeros fill the last group."""
    spare = -array.shape[-1] % spec.channels_per_group
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, spare)])


def over_images(function: Callable[[Tree], Any], images: Tree) -> Any:
    """Maps over the batch of a pytree, one image at a time; one image needs no loop."""
    count = jax.tree.leaves(images)[0].shape[0]
    if not isinstance(count, int) or count > 1:  # a symbol is any number (`jax.export`)
        return lax.map(function, images)
    only = jax.tree.map(lambda x: x[0], images)
    return jax.tree.map(lambda x: x[None], function(only))
