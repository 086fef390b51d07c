"""How lanes read and write flat arrays in memory."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.pallas.lanes.arithmetic import Alu, Number, Ops
from pallas_kernels.pallas.lanes.ptx import opaque
from pallas_kernels.pallas.lanes.vectors import Mask, Ref, Vector, Vectors
from pallas_kernels.pallas.problem import Problem


def load(ref: Ref, index: jax.Array, mask: Mask = None, other: Any = 0) -> jax.Array:
    """Reads elements; where the mask is False, `other` without a memory access.

    Args:
      ref: the array.
      index: (N,) or (N, size).
      mask: of lanes.
      other: a scalar of the array's dtype.
    """
    if mask is None:
        return plt.load(ref.at[index])
    mask = jnp.broadcast_to(mask if index.ndim == 1 else mask[:, None], index.shape)
    return plt.load(ref.at[index], mask=mask, other=jnp.asarray(other, ref.dtype))


def store(alu: Alu, ref: Ref, index: jax.Array, x: jax.Array, mask: Mask = None) -> None:
    """Writes elements where the mask is True; the arguments of `load`."""
    if mask is not None:
        mask = jnp.broadcast_to(mask if index.ndim == 1 else mask[:, None], index.shape)
        if not alu.ptx:  # interpret mode writes back what masked lanes read, in any order
            index = jnp.where(mask, index, ref.shape[0])
    plt.store(ref.at[index], x.astype(ref.dtype), mask=mask)


def result(like: jax.Array, size: int, dtype: Any) -> Any:
    """A `jax.ShapeDtypeStruct` of a flat array for a kernel to write.

    Inside `jax.shard_map`, it differs between devices where `like` does.
    """
    kind = jax.typeof(like).manual_axis_type
    return jax.ShapeDtypeStruct((size,), dtype, manual_axis_type=kind)


def span(index: Vector, start: int, size: int) -> jax.Array:
    """Indices of `size` adjacent elements per lane: (N, size)."""
    # `start` is added last, so that spans from one index share the other additions.
    return index[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :] + start


def deinterleave(x: jax.Array) -> Vectors:
    """(N, c), c a power of two, to c vectors. Renames registers without moving data."""
    if x.ndim == 1:
        return [x]
    if x.shape[1] == 2:
        return list(jnp.unstack(x, axis=-1))
    halves = jnp.unstack(x.reshape(x.shape[0], -1, 2), axis=-1)
    even, odd = (deinterleave(half) for half in halves)
    return [part for pair in zip(even, odd, strict=True) for part in pair]


def interleave(parts: Sequence[Vector]) -> jax.Array:
    """The inverse of `deinterleave`."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return jnp.stack(parts, axis=1)
    halves = jnp.stack([interleave(parts[::2]), interleave(parts[1::2])], axis=-1)
    return halves.reshape(halves.shape[0], -1)


def base_address(index: Vector, multiple: int = 1) -> Vector:
    """An index that LLVM knows to be non-negative and a multiple of a number, and nothing else.

    Only non-positive constants may be added to it. Such an addition cannot overflow, so LLVM folds
    the constant into the load instruction; otherwise every load spends two instructions on its
    address. The index is opaque because LLVM rewrites the addition, and the folding fails, once it
    also knows that the sum is non-negative.
    """
    return pl.multiple_of(opaque(index) & 0x7FFFFFFF, multiple)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the floats of an array are stored and accessed.

    Where possible, 16-bit floats are moved in pairs as 32-bit words: a word is one register, and
    each half widens to float32 with one instruction.

    Attributes:
      dtype: of the floats.
      size: floats per access.
    """

    dtype: np.dtype
    size: int

    @classmethod
    def query(cls, problem: Problem) -> "Layout":
        """Of queries and their gradients: the D components of a pixel and group."""
        return cls._components(problem, problem.dtypes[0])

    @classmethod
    def key(cls, problem: Problem) -> "Layout":
        """Of keys and their gradients."""
        return cls._components(problem, problem.dtypes[1])

    @classmethod
    def value(cls, problem: Problem) -> "Layout":
        """Of values, outputs and their gradients: the channels of a pixel."""
        return cls(problem.dtypes[2], problem.vector)

    @classmethod
    def _components(cls, problem: Problem, dtype: np.dtype) -> "Layout":
        return cls(dtype, math.gcd(16 // dtype.itemsize, problem.depth))

    @property
    def packing(self) -> int:
        """Floats per element of the array in memory."""
        return 2 if self.dtype.itemsize == 2 and self.size % 2 == 0 else 1

    def flatten(self, x: jax.Array) -> jax.Array:
        """The array as a kernel reads it; moves no data."""
        if self.packing == 1:
            return x.reshape(-1)
        return lax.bitcast_convert_type(x.reshape(-1, 2), jnp.int32)

    def unflatten(self, x: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The inverse of `flatten`."""
        if self.packing == 2:
            x = lax.bitcast_convert_type(x, self.dtype)
        return x.reshape(shape)

    def result(self, like: jax.Array, floats: int) -> Any:
        """A flat array of so many floats for a kernel to write; see the function `result`."""
        return result(like, floats // self.packing, self.dtype if self.packing == 1 else jnp.int32)


class Address(NamedTuple):
    """Where one access of a lane begins: a base and a constant number of floats from there."""

    base: Vector
    offset: int


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array of floats, bound to how lanes access it.

    Attributes:
      alu: converts between dtypes.
      ref: the array in memory.
      layout: of the array.
    """

    alu: Alu
    ref: Ref
    layout: Layout

    def base(self, index: Vector) -> Vector:
        """The base of addresses; `index` counts floats and is a multiple of the access size."""
        if self.layout.packing == 2:
            index = lax.shift_right_logical(index, jnp.int32(1))
        return base_address(index, self.layout.size // self.layout.packing)

    def load(
        self, addresses: Sequence[Address], masks: Sequence[Mask], other: float = 0.0
    ) -> Vectors:
        """Reads one access per address, as a list of float32 vectors.

        Args:
          addresses: their offsets are non-positive multiples of the access size.
          masks: which lanes read, for each address.
          other: what a masked lane gets; a number of the array's dtype.
        """
        layout, count = self.layout, self.layout.size // self.layout.packing
        fill: Any = np.asarray(other, layout.dtype)
        if layout.packing == 2:
            fill = np.full(2, fill).view(np.int32)[0]
        parts: list[jax.Array] = []
        for (base, offset), mask in zip(addresses, masks, strict=True):
            offset //= layout.packing
            index = span(base, offset, count) if count > 1 else base + offset
            parts += deinterleave(load(self.ref, index, mask, fill))
        if layout.packing == 1:
            return [part.astype(jnp.float32) for part in parts]

        def widen(ops: Ops[Number], words: list[Number]) -> list[Number]:
            return [half for word in words for half in ops.widen(word, layout.dtype)]

        return self.alu.inline(widen, parts)

    def store(self, address: Address, parts: Sequence[Vector], mask: Mask) -> None:
        """Writes one access of float32 vectors."""
        layout, offset = self.layout, address.offset // self.layout.packing
        if layout.packing == 2:

            def narrow(ops: Ops[Number], parts: list[Number]) -> list[Number]:
                pairs = zip(parts[::2], parts[1::2], strict=True)
                return [ops.narrow(low, high, layout.dtype) for low, high in pairs]

            parts = self.alu.inline(narrow, list(parts), words=True)
        count = len(parts)
        index = span(address.base, offset, count) if count > 1 else address.base + offset
        store(self.alu, self.ref, index, interleave(parts), mask)
