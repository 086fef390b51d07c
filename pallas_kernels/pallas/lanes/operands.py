"""The inputs of a kernel, bound to how lanes read them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pallas_kernels.pallas.lanes.arithmetic import Alu
from pallas_kernels.pallas.lanes.memory import Address, Layout, Operand
from pallas_kernels.pallas.lanes.priors import Priors, prior_table
from pallas_kernels.pallas.lanes.vectors import Mask, Ref, Vector, Vectors
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.spec import Inputs


@dataclasses.dataclass(frozen=True)
class Components:
    """Queries, keys or their gradients: D components per pixel and group.

    A place is a number pixel * G + group.

    Attributes:
      problem: the problem.
      operand: the array.
    """

    problem: Problem
    operand: Operand

    @classmethod
    def of_queries(cls, problem: Problem, alu: Alu, ref: Ref) -> "Components":
        """Queries or their gradient."""
        return cls(problem, Operand(alu, ref, Layout.query(problem)))

    @classmethod
    def of_keys(cls, problem: Problem, alu: Alu, ref: Ref) -> "Components":
        """Keys or their gradient."""
        return cls(problem, Operand(alu, ref, Layout.key(problem)))

    def base(self, place: Vector) -> Vector:
        """What `load` and `store` count from: the last access of a place."""
        depth = self.problem.depth
        return self.operand.base(place * depth + (depth - self.operand.layout.size))

    def load(self, base: Vector, places: int, mask: Mask, distant: int = 0) -> Vectors:
        """Reads the D components as float32.

        Args:
          base: of some place.
          places: how far from that place, not positive.
          mask: which lanes read.
          distant: what masked lanes get: this times `Problem.distant_value`; 1, -1 or 0.
        """
        depth, layout = self.problem.depth, self.operand.layout
        other = distant * self.problem.distant_value(layout.dtype) if distant else 0.0
        replace = math.isinf(other)  # float16 cannot hold it
        end = places * depth
        offsets = range(layout.size - depth, 1, layout.size)
        addresses = [Address(base, end + i) for i in offsets]
        masks = [mask] * len(addresses)
        parts = self.operand.load(addresses, masks, 0.0 if replace else other)
        if replace and mask is not None:
            other32 = distant * self.problem.distant_value(np.dtype(np.float32))
            parts = [jnp.where(mask, x, other32) for x in parts]
        return parts

    def store(self, base: Vector, places: int, parts: Sequence[Vector], mask: Mask) -> None:
        """Writes the D components; the arguments of `load`."""
        depth, size = len(parts), self.operand.layout.size
        for first in range(0, depth, size):
            offset = places * depth + first + size - depth
            self.operand.store(Address(base, offset), parts[first : first + size], mask)


class Operands(NamedTuple):
    """The inputs of the local relation, for a lane to read."""

    query: Components
    key: Components
    value: Operand
    prior: Priors

    @classmethod
    def of(cls, problem: Problem, alu: Alu, refs: Inputs) -> "Operands":
        """Binds the refs of what `in_memory` returned."""
        return cls(
            Components.of_queries(problem, alu, refs.query),
            Components.of_keys(problem, alu, refs.key),
            Operand(alu, refs.value, Layout.value(problem)),
            Priors(problem, refs.prior),
        )


def in_memory(problem: Problem, inputs: Inputs) -> Inputs:
    """The inputs as flat arrays, for a kernel to read."""
    return Inputs(
        Layout.query(problem).flatten(inputs.query),
        Layout.key(problem).flatten(inputs.key),
        Layout.value(problem).flatten(inputs.value),
        prior_table(problem, inputs.prior),
    )
