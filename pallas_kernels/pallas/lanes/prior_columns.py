"""The partial sums of d_prior, a column of memory per lane.

d_prior sums over all pixels into few numbers. A lane keeps its group over several strips
(`Tile.strips_per_lane`) and adds the Kw sums of each window row to a column of memory that no other
lane touches. That needs neither shuffles nor atomics, and the lanes are few enough for the columns
to stay in the L2 cache. XLA adds up the columns after the kernel.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.pallas.lanes.arithmetic import Alu
from pallas_kernels.pallas.lanes.memory import (
    base_address,
    deinterleave,
    interleave,
    load,
    result,
    span,
    store,
)
from pallas_kernels.pallas.lanes.priors import ACCESS, padded
from pallas_kernels.pallas.lanes.ptx import opaque
from pallas_kernels.pallas.lanes.vectors import Mask, Ref, Scalar, Vector, Vectors, loop
from pallas_kernels.pallas.problem import Problem


@dataclasses.dataclass(frozen=True)
class PriorColumns:
    """The column of each lane of a program; without a prior there is none.

    Attributes:
      problem: the problem.
      alu: runs arithmetic.
      ref: (Kh, columns, Kw padded), flat; None without a prior.
      columns: number of columns of all programs.
      first: the column of lane 0.
      lane: number of each lane.
      exists: which lanes have a column.
      zero: (N,).
    """

    problem: Problem
    alu: Alu
    ref: Ref | None
    columns: int
    first: jax.Array
    lane: Vector
    exists: Mask
    zero: Vector

    def clear(self) -> None:
        """Sets all sums to 0."""
        if self.ref is None:
            return
        ref = self.ref

        def clear_row(row: Scalar, carry: int) -> int:
            for index in self._indices(row):
                store(self.alu, ref, index, interleave([self.zero] * ACCESS), self.exists)
            return carry

        loop(self.problem.spec.kernel_size[0], clear_row, 0)

    def add(self, row: Scalar, sums: Vectors, mask: Mask) -> None:
        """Adds a strip's sums of a window row, in the lanes of the mask."""
        if self.ref is None:
            return
        for i, index in enumerate(self._indices(row)):
            old = deinterleave(load(self.ref, index, self.exists))
            new = sums[i * ACCESS :][:ACCESS]
            total = [x + y for x, y in zip(old, new, strict=False)] + old[len(new) :]
            store(self.alu, self.ref, index, interleave(total), mask)

    def _indices(self, row: Scalar) -> list[jax.Array]:
        """Where the sums of a window row are, for each memory access."""
        width = padded(self.problem.spec.kernel_size[1])
        # Opaque, so that no sum with `lane` occupies another register all the time.
        column = row * self.columns + self.first + opaque(self.lane, jnp.int32(row))
        last = width - ACCESS
        base = base_address(column * width + last, ACCESS)
        return [span(base, i - last, ACCESS) for i in range(0, width, ACCESS)]


def columns_result(problem: Problem, like: jax.Array, columns: int) -> Any:
    """The memory of so many columns; see `memory.result`."""
    kh, kw = problem.spec.kernel_size
    return result(like, kh * columns * padded(kw), jnp.float32)


def add_columns(problem: Problem, columns: jax.Array) -> jax.Array:
    """The sum of all columns: (Kh, G, Kw)."""
    kh, kw = problem.spec.kernel_size
    return jnp.sum(columns.reshape(kh, -1, problem.groups, padded(kw)), axis=1)[..., :kw]
