"""Arithmetic of the kernels, written once: inline PTX on a GPU, jnp in interpret mode.

XLA's Triton never fuses a multiplication with an addition. One of its passes also takes time that
grows with the cube of the number of operations, because it follows every operation from every load.
Both are avoided by emitting all arithmetic on a column of keys as a single operation: a Python
function of `Ops` and numbers, which `Alu.inline` turns into one block of inline assembly.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.pallas.lanes import ptx
from pallas_kernels.pallas.lanes.vectors import Vector
from pallas_kernels.platform_switch import multiplies_pairs


class SupportsArithmetic(Protocol):
    """Has +, -, * and the sign change, rounded to the nearest float32."""

    def __add__(self, other: Self | float, /) -> Self: ...
    def __sub__(self, other: Self | float, /) -> Self: ...
    def __mul__(self, other: Self | float, /) -> Self: ...
    def __neg__(self) -> Self: ...


Number = TypeVar("Number", bound=SupportsArithmetic)
"""`Vector` in interpret mode, `ptx.Register` while PTX is recorded."""


class Ops(Protocol[Number]):
    """The operations beside +, - and *, on float32 numbers unless stated otherwise."""

    def fma(self, a: Number | float, b: Number | float, c: Number | float) -> Number:
        """The sum a * b + c, rounded once on a GPU and twice in interpret mode."""

    def add_weighted(
        self, weight: Number, x: Sequence[Number], sums: Sequence[Number]
    ) -> list[Number]:
        """The sums plus weight * x, each a fused multiply-add."""

    def dot(self, a: Sequence[Number], b: Sequence[Number], start: Number) -> Number:
        """The start plus the products of two sequences, as a chain of fused multiply-adds."""

    def exp2(self, x: Number) -> Number:
        """2**x, on a GPU to 2 units in the last place; results below 2**-126 become 0."""

    def reciprocal(self, x: Number) -> Number:
        """1 / x of a normal x, on a GPU to 1 unit in the last place."""

    def absolute(self, x: Number) -> Number:
        """The magnitude of x."""

    def sign_of(self, d: Number, x: Number, zero_is_positive: bool) -> Number:
        """The product of x and the sign of d, where the sign of 0 is 1 or -1 by the flag."""

    def widen(self, word: Number, dtype: np.dtype) -> tuple[Number, Number]:
        """The two 16-bit floats in a 32-bit word, the lower half first, as float32."""

    def narrow(self, low: Number, high: Number, dtype: np.dtype) -> Number:
        """A 32-bit word that holds two numbers rounded to 16-bit floats."""


class JnpOps:
    """`Ops` on arrays."""

    def fma(self, a: Vector | float, b: Vector | float, c: Vector | float) -> Any:
        """See `Ops`."""
        return a * b + c

    def add_weighted(
        self, weight: Vector, x: Sequence[Vector], sums: Sequence[Vector]
    ) -> list[Vector]:
        """See `Ops`."""
        return [self.fma(weight, a, total) for a, total in zip(x, sums, strict=True)]

    def dot(self, a: Sequence[Vector], b: Sequence[Vector], start: Vector) -> Vector:
        """See `Ops`."""
        for x, y in zip(a, b, strict=True):
            start = self.fma(x, y, start)
        return start

    def exp2(self, x: Vector) -> Vector:
        """See `Ops`."""
        return jnp.exp2(x)

    def reciprocal(self, x: Vector) -> Vector:
        """See `Ops`."""
        return 1.0 / x

    def absolute(self, x: Vector) -> Vector:
        """See `Ops`."""
        return jnp.abs(x)

    def sign_of(self, d: Vector, x: Vector, zero_is_positive: bool) -> Vector:
        """See `Ops`."""
        return jnp.where(d >= 0 if zero_is_positive else d > 0, x, -x)

    def widen(self, word: Vector, dtype: np.dtype) -> tuple[Vector, Vector]:
        """See `Ops`."""
        halves = lax.bitcast_convert_type(word, jnp.uint16)
        low, high = lax.bitcast_convert_type(halves, dtype).astype(jnp.float32).T
        return low, high

    def narrow(self, low: Vector, high: Vector, dtype: np.dtype) -> Vector:
        """See `Ops`."""
        halves = lax.bitcast_convert_type(jnp.stack([low, high], 1).astype(dtype), jnp.uint16)
        return lax.bitcast_convert_type(halves, jnp.int32)


@dataclasses.dataclass(frozen=True)
class Alu:
    """Runs arithmetic that is written with `Ops`.

    Attributes:
      ptx: whether to emit inline PTX. Interpret mode cannot run it and takes plain jnp.
      pairs: whether sums over channels take two float32 at a time, which only some GPUs can.
    """

    ptx: bool
    pairs: bool = False

    @classmethod
    def of(cls, interpret: bool) -> "Alu":
        """That of interpret mode, or of the GPU that is compiled for."""
        return cls(not interpret, not interpret and multiplies_pairs())

    def inline(self, body: Callable[..., Any], *inputs: Any, words: bool = False) -> Any:
        """Runs `body(ops, *inputs)` as one operation.

        Args:
          body: arithmetic on float32 (or 32-bit words) with `Ops`, +, -, * and Python floats. None
            of its results may be an input.
          *inputs: trees of arrays that broadcast to one shape.
          words: whether the results are 32-bit words instead of float32.

        Returns:
          What `body` returns, as arrays.
        """
        if not self.ptx:
            return body(JnpOps(), *inputs)
        return ptx.record(body, inputs, jnp.int32 if words else jnp.float32, self.pairs)

    def inline_each(
        self, body: Callable[..., Any], shared: tuple[Any, ...], each: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Runs `body(ops, *shared, *x)` for every x of `each`, all as one operation."""
        return self.inline(
            lambda ops, shared, each: [body(ops, *shared, *x) for x in each], shared, list(each)
        )
