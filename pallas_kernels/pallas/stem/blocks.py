"""What a program of the stem's kernels owns, and how it reads and computes it.

A block is a number of consecutive pixels with all their channels: (P, C). A matrix product needs
powers of two of at least 16, so channels are filled up by zeros, and so are the columns of keys and
queries. Pixels beyond the group of images, and channels and columns that are filled up, are masked.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.pallas.lanes.arithmetic import Alu, Number, Ops
from pallas_kernels.pallas.lanes.vectors import Mask, Ref, Scalar, Vector, Vectors, and_masks
from pallas_kernels.pallas.stem.arrays import Inputs, padded
from pallas_kernels.spec import strided_size

ELEMENTS = 2048  # of a block
MOST_PIXELS = 32
WARPS = 4


@dataclasses.dataclass(frozen=True)
class Stem:
    """The sizes of a stem.

    Attributes:
      images: B.
      height: H.
      width: W.
      inputs: I.
      channels: C.
      keys: K, columns of keys.
      queries: Q, columns of queries.
      groups: N.
      stride: of the queries.
      dtype: of images and maps.
    """

    images: int
    height: int
    width: int
    inputs: int
    channels: int
    keys: int
    queries: int
    groups: int
    stride: int
    dtype: np.dtype

    @classmethod
    def of(cls, inputs: Inputs, stride: int) -> "Stem":
        """The sizes of arrays."""
        batch, height, width, channels = inputs.x.shape
        widths = inputs.bias.shape[0], inputs.key.shape[1], inputs.query.shape[1]
        dtype = jnp.dtype(inputs.x.dtype)
        return cls(batch, height, width, channels, *widths, inputs.mean.shape[0], stride, dtype)

    @property
    def group_pixels(self) -> int:
        """Pixels of a group."""
        return self.images * self.height * self.width // self.groups

    @property
    def padded_channels(self) -> int:
        """Channels of a block."""
        return padded(self.channels)

    @property
    def padded_columns(self) -> int:
        """Columns of keys and queries of a block."""
        return padded(self.keys + self.queries)

    @property
    def pixels(self) -> int:
        """P, pixels of a block."""
        return max(16, min(MOST_PIXELS, ELEMENTS // self.padded_channels))

    def blocks(self, programs: int) -> int:
        """Blocks of a program, if the whole group has so many programs or fewer."""
        return -(-self.group_pixels // (self.pixels * programs))


class Operands(NamedTuple):
    """The arrays as kernels read them: flat, with the weights filled up.

    Attributes:
      x: as in `Inputs`, and so are mean, weights and bias.
      mean: see there.
      weights: see there.
      bias: see there.
      columns: (C, columns), the projections to keys and queries in the dtype of the maps.
    """

    x: Ref
    mean: Ref
    weights: Ref
    bias: Ref
    columns: Ref


def in_memory(stem: Stem, inputs: Inputs) -> Operands:
    """The arrays as kernels read them."""
    spare = stem.padded_channels - stem.channels
    columns = jnp.concatenate([inputs.key, inputs.query], 1).astype(stem.dtype)
    columns = jnp.pad(columns, ((0, spare), (0, stem.padded_columns - columns.shape[1])))
    weights = jnp.pad(inputs.weights, ((0, 0), (0, 0), (0, spare)))
    bias = jnp.pad(inputs.bias, (0, spare))
    arrays = inputs.x, inputs.mean, weights, bias, columns
    return Operands(*(array.reshape(-1) for array in arrays))


def load(ref: Ref, index: Scalar, mask: Mask = None) -> jax.Array:
    """Reads elements; 0 where the mask, which broadcasts to the index, is False."""
    if mask is None:
        return plt.load(ref.at[index])
    zero = jnp.zeros((), ref.dtype)
    return plt.load(ref.at[index], mask=jnp.broadcast_to(mask, jnp.shape(index)), other=zero)


def store(alu: Alu, ref: Ref, index: jax.Array, x: jax.Array, mask: Mask = None) -> None:
    """Writes elements where the mask, which broadcasts to the index, is True."""
    if mask is not None:
        mask = jnp.broadcast_to(mask, index.shape)
        if not alu.ptx:  # interpret mode writes back what masked lanes read, in any order
            index = jnp.where(mask, index, ref.shape[0])
    plt.store(ref.at[index], x.astype(ref.dtype), mask=mask)


def projection_index(stem: Stem) -> jax.Array:
    """Where the weights of the projections are, (C, columns)."""
    c, column = _range(stem.padded_channels), _range(stem.padded_columns)
    return c[:, None] * stem.padded_columns + column[None, :]


def product(a: jax.Array, b: jax.Array, axes: tuple[int, int] = (1, 0)) -> jax.Array:
    """The sum of products over an axis of each, in float32; products of float32 are exact ones."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (((axes[0],), (axes[1],)), ((), ())), precision, preferred_element_type=jnp.float32
    )


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What the programs of a group share, in registers.

    Attributes:
      mean: I scalars, float32.
      weights: I vectors (C,), float32.
      bias: (C,) float32.
    """

    mean: list[jax.Array]
    weights: Vectors
    bias: Vector

    @classmethod
    def load(cls, stem: Stem, refs: Operands, group: Scalar) -> "Parameters":
        """Reads those of a group."""
        c, width = _range(stem.padded_channels), stem.padded_channels
        rows = [group * stem.inputs + i for i in range(stem.inputs)]
        return cls(
            [load(refs.mean, row) for row in rows],
            [load(refs.weights, row * width + c) for row in rows],
            load(refs.bias, c),
        )


@dataclasses.dataclass(frozen=True)
class Block:
    """Pixels in memory, with their channels, keys and queries.

    Attributes:
      stem: the sizes.
      alu: runs arithmetic.
      pixel: (P,) numbers in the whole batch.
      exists: which of them are in the group; None for all.
    """

    stem: Stem
    alu: Alu
    pixel: Vector
    exists: Mask

    @classmethod
    def at(cls, stem: Stem, alu: Alu, group: Scalar, number: Scalar, whole: bool) -> "Block":
        """The block of a number in a group; `whole` says that all pixels of all blocks exist."""
        pixel = number * stem.pixels + _range(stem.pixels)
        exists = None if whole else pixel < stem.group_pixels
        return cls(stem, alu, group * stem.group_pixels + pixel, exists)

    def centred(self, x: Ref, parameters: Parameters) -> Vectors:
        """The I channels of the images about the mean, (P,) float32 each."""
        index = self.pixel * self.stem.inputs
        return [
            load(x, index + i, self.exists).astype(jnp.float32) - mean
            for i, mean in enumerate(parameters.mean)
        ]

    def linear(self, centred: Vectors, parameters: Parameters) -> jax.Array:
        """(x - mean) @ weights + bias, (P, C) float32."""

        def body(ops: Ops[Number], x: list[Number], w: list[Number], bias: Number) -> Number:
            return ops.dot(x, w, bias)

        rows = [x[:, None] for x in centred]
        weights = [w[None, :] for w in parameters.weights]
        return self.alu.inline(body, rows, weights, parameters.bias[None, :])

    def channels(self) -> tuple[jax.Array, Mask]:
        """Where the values of the pixels are, (P, C), and which of them exist."""
        c, width = _range(self.stem.padded_channels), self.stem.channels
        mask = None if self.exists is None else self.exists[:, None]
        if width < self.stem.padded_channels:
            mask = and_masks(mask, c[None, :] < width)
        return self.pixel[:, None] * width + c[None, :], mask

    def keys(self) -> tuple[jax.Array, Mask]:
        """Where the keys of the pixels are, (P, columns), and which columns are keys."""
        column, width = _range(self.stem.padded_columns), self.stem.keys
        mask = None if self.exists is None else self.exists[:, None]
        return self.pixel[:, None] * width + column[None, :], and_masks(
            mask, column[None, :] < width
        )

    def queries(self) -> tuple[jax.Array, Mask]:
        """As `keys`, for the pixels that have a query."""
        stem, column = self.stem, _range(self.stem.padded_columns) - self.stem.keys
        row, x = _divide(self.pixel, stem.width)
        image, y = _divide(row, stem.height)
        (row, y), (x, spare) = _divide(y, stem.stride), _divide(x, stem.stride)
        height, width = (
            strided_size(stem.height, stem.stride),
            strided_size(stem.width, stem.stride),
        )
        place = (image * height + row) * width + x
        exists = (y == 0) & (spare == 0)
        exists = exists if self.exists is None else exists & self.exists
        mask = exists[:, None] & (column >= 0)[None, :] & (column < stem.queries)[None, :]
        return place[:, None] * stem.queries + column[None, :], mask


def _range(size: int) -> Vector:
    return jnp.arange(size, dtype=jnp.int32)


def _divide(x: Vector, by: int) -> tuple[Vector, Vector]:
    """Quotient and remainder of numbers that are not negative."""
    if by == 1:
        return x, jnp.zeros_like(x)
    quotient = lax.div(x.astype(jnp.uint32), jnp.uint32(by)).astype(jnp.int32)
    return quotient, x - quotient * by


def call(kernel: Any, name: str, interpret: bool, warps: int = WARPS, **options: Any) -> Any:
    """`pl.pallas_call` with what kernels of blocks have in common."""
    return pl.pallas_call(
        kernel,
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name=name,
        **options,
    )
